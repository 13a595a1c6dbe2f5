"""A script's dialogues through every stage: tables, training on traces of different length, metrics, the terminal."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import polars as pl
import pytest
import torch

from score_cli.cli import run_command
from score_cli.config import Stage1Config, Stage2Config
from score_cli.errors import UserError
from score_cli.tables.checkpoints import load_policy
from score_cli.tables.traces import read_traces, read_verdicts
from score_cli.training.pay import Paid, shaped_rewards, stage1_pay, stage2_pay
from score_cli.training.step import reward_matrix
from score_cli.training.trainer import Trainer
from tests.conftest import rewrite, take_gradient
from tests.scripts import S2R_TOML, dialogue, script, write_scripted

# Words that a random model does say.
TOML = S2R_TOML.replace("right|wrong", "by|remainder")
LOOSE = script(verify={"ask": "<verify>", "claim": "by|remainder"})
STAGE2 = Stage2Config(alpha=10.0, beta1=0.01, threads=1)


def score(*arguments: object) -> None:
    assert run_command([str(argument) for argument in arguments]) == 0


@pytest.fixture
def folder(tmp_path: Path, problems: Path) -> Path:
    """Dialogues of a small policy with their rewards, made by the commands from a recipe."""
    write_scripted(tmp_path / "ckpt", LOOSE)
    (tmp_path / "recipe.toml").write_text(TOML + "\n[sample]\nsamples = 4\nmax_tokens = 6\nthreads = 1\nseed = 3\n")
    files = ["--problems", problems, "--out", tmp_path / "traces.parquet"]
    score("sample", "--config", tmp_path / "recipe.toml", "--model", tmp_path / "ckpt", *files)
    traces = ["--traces", tmp_path / "traces.parquet"]
    # No recipe: the footer of the traces says how claims are read.
    score("verify", *traces, "--problems", problems, "--out", tmp_path / "rewards.parquet")
    return tmp_path


def test_tables_name_roles_and_grade_every_turn(folder: Path) -> None:
    traces, verdicts = read_traces(folder / "traces.parquet"), read_verdicts(folder / "rewards.parquet")
    assert {len(trace.attempts) for trace in traces} == {2, 4}
    for trace, verdict in zip(traces, verdicts, strict=True):
        assert len(verdict.verdicts) == len(trace.attempts)
        for turn, role in enumerate(trace.turn_roles):
            if role == "verify" and trace.finish_reasons[turn] == "stop":
                claim = LOOSE.read_claim("verify", trace.attempts[turn])
                right = verdict.verdicts[turn - 1] == "correct"
                expected = "no_answer" if claim is None else ("correct" if (claim == "by") == right else "incorrect")
                assert (verdict.verdicts[turn], verdict.answers[turn]) == (expected, claim)


def test_a_recipe_that_the_traces_do_not_follow_cannot_grade_them(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "other.toml").write_text(S2R_TOML)
    files = ["--traces", folder / "traces.parquet", "--problems", folder / "problems.parquet"]
    command = ["verify", "--config", folder / "other.toml", *files, "--out", folder / "x.parquet"]
    assert run_command([str(part) for part in command]) == 2
    assert "follows another [script] than the recipe has" in capsys.readouterr().err


def reward_some(folder: Path) -> None:
    """Rewards that differ among siblings, so that there is something to learn."""

    def change(row: dict[str, object]) -> None:
        count = len(row["verdicts"])  # type: ignore[arg-type]
        rewards = [float((int(str(row["sample_index"])) + turn) % 2) for turn in range(count)]
        row.update(rewards=rewards, verdicts=["correct" if reward else "incorrect" for reward in rewards])

    rewrite(folder / "rewards.parquet", change)


def test_the_commands_train_on_dialogues_of_different_length(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    reward_some(folder)
    files = ["--traces", folder / "traces.parquet", "--rewards", folder / "rewards.parquet", "--out", folder / "next"]
    score("train-stage2", "--model", folder / "ckpt", *files, "--threads", 1, "--log-grad-norm-by-attempt")
    assert load_policy(folder / "next").state.parent == load_policy(folder / "ckpt").state.fingerprint
    rows = pl.read_parquet(folder / "next" / "trainer" / "metrics.parquet")
    assert {"verify_acc", "acc@final", "mean_trials", "delta@t2"} <= set(rows["name"])
    accuracy = rows.filter(pl.col("name") == "accuracy")
    assert accuracy["attempt"].to_list() == [1, 2], "solves, not turns"
    first, second = (f"t{solve} {100 * value:.1f}%" for solve, value in enumerate(accuracy["value"], start=1))
    assert f"; right on its traces: {first}, {second}; of its claims true: " in capsys.readouterr().err
    assert rows.filter((pl.col("name") == "length") & (pl.col("attempt") == 4))["value"].is_not_null().all()


def test_padding_a_short_dialogue_beside_a_long_one_changes_no_gradient(folder: Path) -> None:
    """Without later turns' pay, the first two turns' gradients are those of the dialogues cut after them."""
    reward_some(folder)
    traces, verdicts = read_traces(folder / "traces.parquet"), read_verdicts(folder / "rewards.parquet")
    problem = next(trace.problem_id for trace in traces if len(trace.attempts) == 4)
    rows = [row for row, trace in enumerate(traces) if trace.problem_id == problem]
    model = load_policy(folder / "ckpt").model
    config = replace(STAGE2, baseline="leave-one-out", beta1=0.0, alpha=0.0, log_grad_norm_by_attempt=True)

    def norms(shorten: bool) -> list[float]:
        batch = [traces[row] for row in rows]
        rewards = [verdicts[row] for row in rows]
        if shorten:
            batch = [
                replace(
                    trace,
                    attempts=trace.attempts[:2],
                    finish_reasons=trace.finish_reasons[:2],
                    roles=trace.turn_roles[:2],
                    token_ids=trace.token_ids[: int((trace.attempt_ids == 2).nonzero()[0][-1]) + 1],
                    attempt_ids=trace.attempt_ids[: int((trace.attempt_ids == 2).nonzero()[0][-1]) + 1],
                    logprobs=trace.logprobs[: int((trace.attempt_ids == 2).nonzero()[0][-1]) + 1],
                )
                for trace in batch
            ]
            rewards = [
                replace(v, answers=v.answers[:2], verdicts=v.verdicts[:2], rewards=v.rewards[:2]) for v in rewards
            ]
        model.zero_grad()
        matrix = reward_matrix(rewards, ragged=True)
        return take_gradient(model, model, batch, matrix, config)[1].grad_norms_by_attempt

    whole, short = norms(shorten=False), norms(shorten=True)
    assert len(whole) == 4 and len(short) == 2
    assert whole[:2] == pytest.approx(short, rel=1e-5) and whole[0] > 0


def test_stage_one_refuses_dialogues(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = ["--traces", folder / "traces.parquet", "--rewards", folder / "rewards.parquet", "--out", folder / "next"]
    assert run_command([str(part) for part in ["train-stage1", "--model", folder / "ckpt", *files]]) == 2
    assert "Stage I pins every attempt but the last" in capsys.readouterr().err
    with pytest.raises(UserError, match="Stage I pins"):
        graded = read_traces(folder / "traces.parquet"), read_verdicts(folder / "rewards.parquet")
        Trainer(Stage1Config(threads=1), load_policy(folder / "ckpt")).prepare(*graded)


def test_an_evaluation_measures_solves_and_claims(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "eval.toml").write_text(TOML + "\n[eval]\nsamples = 4\nmax_tokens = 6\nthreads = 1\n")
    files = ["--problems", folder / "problems.parquet", "--out", folder / "metrics.parquet"]
    outs = ["--traces-folder", folder / "eval", "--samples-jsonl", folder / "samples.jsonl"]
    score("eval", "--config", folder / "eval.toml", "--model", folder / "ckpt", *files, *outs)
    assert "error recall" in capsys.readouterr().out
    rows = pl.read_parquet(folder / "metrics.parquet").filter(pl.col("decoding") == "sampled")
    values = dict(zip(rows["name"], rows["count"], strict=True))
    traces = read_traces(folder / "eval" / "ckpt-sampled.traces.parquet")
    assert values["acc@t1"] == values["acc@final"] == values["mean_trials"] == 48
    assert values["verify_acc"] == sum(trace.turn_roles.count("verify") for trace in traces)
    assert "acc@t3" not in values, "two solves at most, whatever the turns"
    records = [json.loads(line) for line in (folder / "samples.jsonl").read_text().splitlines()]
    assert all(len(record["roles"]) == len(record["resps"]) for record in records)
    assert all(record["acc"] == record[f"acc@t{record['roles'].count('solve')}"] for record in records)


def test_show_calls_turns_by_their_roles(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    score("show", folder / "traces.parquet", "--limit", 50)
    printed = capsys.readouterr().out
    assert "solve 1 " in printed and "verify 1 " in printed and "solve 2 " in printed
    assert "(claims remainder)" in printed and "(claims nothing that can be read)" in printed
    assert "attempt 1" not in printed


def test_a_run_of_a_script_goes_from_base_to_report(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = tmp_path / "s2r.toml"
    quickstart = Path(__file__).parents[1] / "pipelines" / "quickstart.toml"
    recipe.write_text(f'extends = "{quickstart}"\n{S2R_TOML}\n[base]\nsteps = 150\n')
    small = ["sample.problems_per_iteration=8", "eval.samples=2", "run.stage2_iterations=2", "base.steps=150"]
    changes = [part for change in small for part in ("--set", change)]
    run = tmp_path / "run"
    assert run_command(["run", str(recipe), "--out", str(run), "--limit", "16", *changes]) == 2
    assert "run.stage1_iterations is set, and Stage I is for solves alone" in capsys.readouterr().err
    changes += ["--set", "run.stage1_iterations=0"]
    score("run", recipe, "--out", run, "--limit", "16", *changes)
    assert "error recall" in capsys.readouterr().out
    names = set(pl.read_parquet(run / "metrics.parquet")["name"])
    assert {"acc@t1", "acc@t2", "acc@final", "verify_acc", "error_recall"} <= names
    assert {len(trace.attempts) for trace in read_traces(run / "iterations" / "0000" / "traces.parquet")} == {2, 4}
    score("report", run, "--out", tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text()
    assert '"title": "verify 1"' in page or '"title":"verify 1"' in page


# What Stages I and II pay, as presets: the formulas of before, to the bit.


@pytest.mark.parametrize(("dtype", "fine"), [(torch.float32, 0.33), (torch.float64, 0.375)])
def test_the_stages_are_presets_of_pay_to_the_bit(dtype: torch.dtype, fine: float) -> None:
    generator = torch.Generator().manual_seed(0)
    rewards = torch.rand(200, 4, generator=generator, dtype=dtype)
    rewards = torch.where(torch.rand(200, 4, generator=generator) < 0.5, rewards.round(), rewards)
    rewards = torch.where(torch.rand(200, 4, generator=generator) < 0.1, torch.nan, rewards)
    paid = Paid(rewards, [["solve"] * 4] * 200)
    first = torch.zeros_like(rewards)
    first[:, -1] = rewards[:, -1]
    assert same(shaped_rewards(stage1_pay(), paid), first)
    for alpha, penalty in ((10.0, 0.0), (2.64, fine), (0.0, fine)):
        before, after = rewards[:, :-1], rewards[:, 1:]
        second = rewards.clone()
        if alpha:
            second[:, 1:] += alpha * (after - before)
        if penalty:  # nobody knows whether a wrong answer is stuck after one that nobody scored
            stuck = ((before == 0) & (after == 0)).to(dtype)
            second[:, 1:] -= penalty * torch.where(before.isnan() & (after == 0), torch.nan, stuck)
        assert same(shaped_rewards(stage2_pay(alpha, penalty), paid), second)


def same(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Equal bits; any NaN is any other."""
    bits = torch.int32 if one.dtype == torch.float32 else torch.int64
    return bool((one.isnan() & other.isnan() | (one.view(bits) == other.view(bits))).all())


def shaped(*traces: Sequence[tuple[str, str, str]]) -> list[list[float]]:
    pairs = [dialogue(*turns) for turns in traces]
    rewards = reward_matrix([verdict for _, verdict in pairs], ragged=True)
    found = shaped_rewards(stage2_pay(10.0, 3.0), Paid(rewards, [trace.turn_roles for trace, _ in pairs]))
    return [row[: len(trace.attempts)] for row, (trace, _) in zip(found.tolist(), pairs, strict=True)]


def test_progress_is_over_the_solve_before_and_absent_turns_are_paid_nothing() -> None:
    judged = [("solve", "a", "incorrect"), ("verify", "wrong", "correct"), ("solve", "b", "correct")]
    stuck = [("solve", "a", "incorrect"), ("verify", "wrong", "correct"), ("solve", "b", "incorrect")]
    short = [("solve", "a", "correct"), ("verify", "right", "correct")]
    assert shaped(judged, stuck, short) == [[0, 0, 11], [0, 0, -3], [1, 0]]
    rewards = torch.tensor([[1.0, 1.0, torch.nan]])
    assert shaped_rewards(stage2_pay(10.0), Paid(rewards, [["solve", "verify"]])).tolist() == [[1, 0, 0]]
