"""What a frozen policy says of solves: confidence by hand, in runs and in tables; training alone reads it."""

import math
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
from torch import Tensor

from score_cli.cli import run_command
from score_cli.config import BaseConfig, DataConfig, SignalConfig, Stage2Config
from score_cli.errors import UserError
from score_cli.evaluation.calibration import calibration_error, calibration_rows, sums_of_solves
from score_cli.recipe import Recipe, read_recipe
from score_cli.replay import replay
from score_cli.run import Run, RunInputs
from score_cli.run_phases import RunPhases
from score_cli.stages.data import write_problems
from score_cli.stages.signal import Signaller, signal
from score_cli.stages.train import train
from score_cli.tables.checkpoints import load_policy, stored_state
from score_cli.tables.parquet import SIGNALS, TRACES, read_footer
from score_cli.tables.provenance import file_sha256
from score_cli.tables.records import Problem, Signal, Trace, Verdict
from score_cli.tables.traces import read_traces, read_verdicts
from score_cli.tasks.confidence import confidences, tokens_at
from score_cli.training import credit
from score_cli.training.base_policy import train_base
from tests.conftest import make_batch, rewrite, small_policy
from tests.scripts import S2R_TOML, dialogue, write_scripted
from tests.signals import CONFIDENCE, JUDGE, SOLVED, WORDS, division_trace

# Confidence.


def test_an_answers_tokens_are_those_that_reach_into_it() -> None:
    pieces = ["so \\bo", "xed{1", "2", "3}", " ok"]
    text = "".join(pieces)
    place = slice(text.index("123"), text.index("123") + 3)

    def decode(tokens: list[int]) -> str:
        return "".join(pieces[token] for token in tokens)

    assert list(tokens_at([0, 1, 2, 3, 4], place, decode)) == [1, 2, 3]
    inside = slice(text.index("2"), text.index("2") + 1)
    assert list(tokens_at([0, 1, 2, 3, 4], inside, decode)) == [2]


def test_confidence_by_hand() -> None:
    """Tokens are characters here: of the last box, mean and product of the probabilities of `4` and `2`."""
    first, second = "\\boxed{7} or \\boxed{42}!", "no box"
    texts = [first, "right", second]
    codes = [ord(letter) for text in texts for letter in text]
    owners = [number for number, text in enumerate(texts, start=1) for _ in text]
    logprobs = [0.0] * len(codes)
    at = first.index("42")
    logprobs[at], logprobs[at + 1] = math.log(0.5), math.log(0.25)
    trace, _ = dialogue(("solve", first, "correct"), ("verify", "right", "correct"), ("solve", second, "no_answer"))
    arrays = {"token_ids": np.array(codes, dtype=np.int32), "attempt_ids": np.array(owners, dtype=np.int8)}
    trace = replace(trace, **arrays)

    def decode(tokens: list[int]) -> str:
        return "".join(map(chr, tokens))

    assert confidences(trace, logprobs, "mean", decode) == [pytest.approx(0.375), None, 0.0]
    assert confidences(trace, logprobs, "product", decode) == [pytest.approx(0.125), None, 0.0]
    cut = replace(trace, finish_reasons=["length", "stop", "stop"])
    assert confidences(cut, logprobs, "mean", decode)[0] == 0.0


@pytest.mark.parametrize("form", ["mean", "product"])
def test_confidence_is_the_frozen_models_probability_of_the_quotients_digits(form: str) -> None:
    policy = small_policy()
    trace = division_trace(policy, "\\boxed{53}: product ", "\\boxed{5", "\\boxed{04}: product ")
    tokens = torch.tensor(trace.token_ids, dtype=torch.long)
    with torch.no_grad():
        chances = policy.model(tokens[None]).logits[0].softmax(-1)
    digits = [place + step for place in (trace.attempt_ids == 1).nonzero()[0][:1] for step in (1, 2)]
    p = [chances[place - 1, tokens[place]].item() for place in digits]
    [found] = Signaller(SignalConfig(over=form, threads=1), policy).signals([trace], {})  # type: ignore[arg-type]
    assert found.values == found.scores and found.accepted == [None] * 3
    expected = (p[0] + p[1]) / 2 if form == "mean" else p[0] * p[1]
    assert found.values[0] == pytest.approx(expected, rel=1e-4) and found.values[1] == 0.0
    assert found.values[2] not in (0.0, found.values[0])


@pytest.fixture(scope="module")
def learned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base that writes boxes, if seldom the right quotient, with problems and the same without gold answers."""
    folder = tmp_path_factory.mktemp("learned")
    train_base(BaseConfig(layers=1, width=32, batch_size=64, steps=120, threads=1), out=folder / "base")
    write_problems("division", DataConfig(limit=8), out=folder / "problems.parquet")
    shutil.copy(folder / "problems.parquet", folder / "bare.parquet")
    rewrite(folder / "bare.parquet", lambda row: row.update(answer=None))
    write_problems("division", DataConfig(split="test", limit=4), out=folder / "test.parquet")
    return folder


def rlsf(**signal: object) -> Recipe:
    threads = {"threads": 1}
    return Recipe(
        {
            "sample": {"samples": 4, "problems_per_iteration": 4, "max_tokens": 14, "attempts": 1, **threads},
            "signal": {**threads, **signal},
            "train-stage2": {"learning_rate": 1e-2, "beta1": 0.05, **threads},
            "eval": {"samples": 1, "attempts": 1, "max_tokens": 14, **threads},
            "run": {"stage2_iterations": 3, "save_every": 1},
        },
        nested={"pay": {"solve": {"signal:confidence": 1.0}}},
    )


def run_both(learned: Path, out: Path) -> tuple[Path, Path]:
    """A run with gold answers, and one without."""
    folders = out / "gold", out / "bare"
    for folder, name in zip(folders, ("problems", "bare"), strict=True):
        files = {"problems": learned / f"{name}.parquet", "eval_problems": learned / "test.parquet"}
        Run(rlsf(), folder, RunInputs(model=learned / "base", **files)).execute()
    return folders


def check_gold_answers_have_no_part(learned: Path, out: Path) -> None:
    gold, bare = run_both(learned, out)
    for number in range(3):
        verdicts = [read_verdicts(run / f"iterations/000{number}/rewards.parquet") for run in (gold, bare)]
        assert {name for verdict in verdicts[1] for name in verdict.verdicts} <= {"unscored", "truncated"}
        values = pl.read_parquet(gold / f"iterations/000{number}/signals.parquet")["values"].explode()
        assert values.n_unique() > 2, "nothing to learn from"
    assert {name for verdict in verdicts[0] for name in verdict.verdicts} - {"unscored", "truncated"}
    # Digests: where bytes differ, pytest would spell out how, for minutes where its output is not cut short.
    assert file_sha256(gold / "stage2/model.safetensors") == file_sha256(bare / "stage2/model.safetensors")
    assert stored_state(gold / "stage2").fingerprint != stored_state(gold / "stage2").reference


def test_a_run_without_gold_answers_trains_bit_for_bit_alike(learned: Path, tmp_path: Path) -> None:
    check_gold_answers_have_no_part(learned, tmp_path)


def test_what_is_trainable_told_by_verdicts_is_caught(
    learned: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = credit.advantages

    def look(values: Tensor, groups: Tensor, rewards: Tensor, *rest: object, **more: object) -> Tensor:
        unknown = rewards.isnan().reshape(*rewards.shape, *[1] * (values.dim() - 2))
        return real(values.masked_fill(unknown, torch.nan), groups, rewards, *rest, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(credit, "advantages", look)
    with pytest.raises(AssertionError):
        check_gold_answers_have_no_part(learned, tmp_path)


def check_signals_are_of_the_base(learned: Path, out: Path, *changes: str) -> None:
    """The second and third updates' signals are those that the command makes with the base."""
    files = {"problems": learned / "problems.parquet", "eval_problems": learned / "test.parquet"}
    recipe = rlsf()
    recipe.change(changes)
    Run(recipe, out / "run", RunInputs(model=learned / "base", **files)).execute()
    for number in range(3):
        folder = out / f"run/iterations/000{number}"
        made = out / f"{number}.parquet"
        config = SignalConfig(by=str(learned / "base"), threads=1)
        signal(config, traces=folder / "traces.parquet", problems=files["problems"], out=made)
        assert made.read_bytes() == (folder / "signals.parquet").read_bytes()


def test_a_run_writes_the_signals_that_the_command_makes_with_its_base(learned: Path, tmp_path: Path) -> None:
    check_signals_are_of_the_base(learned, tmp_path)
    footer = read_footer(tmp_path / "run/iterations/0002/signals.parquet", SIGNALS)
    assert footer is not None and footer.config["by"] == stored_state(learned / "base").fingerprint != footer.policy
    assert footer.inputs == {"traces": file_sha256(tmp_path / "run/iterations/0002/traces.parquet")}
    found = replay(tmp_path / "run", 2, model=learned / "base")
    assert found.proved_by == tmp_path / "run/stage2"
    curve = pl.read_parquet(tmp_path / "run/train_metrics.parquet").filter(pl.col("name") == "confidence")
    values = pl.read_parquet(tmp_path / "run/iterations/0001/signals.parquet")["values"].explode()
    assert curve["value"].to_list()[1] == pytest.approx(values.mean(), rel=1e-5)


def test_an_adapter_in_training_does_not_reach_the_frozen_base(learned: Path, tmp_path: Path) -> None:
    pytest.importorskip("peft")
    check_signals_are_of_the_base(learned, tmp_path, "train-stage2.lora_rank=2")
    sampled = [read_footer(tmp_path / f"run/iterations/000{n}/traces.parquet", TRACES) for n in range(3)]
    assert len({footer.policy for footer in sampled if footer is not None}) == 3


def test_a_run_that_goes_on_ends_as_one_that_did_not_stop(learned: Path, tmp_path: Path) -> None:
    files = {"problems": learned / "problems.parquet", "eval_problems": learned / "test.parquet"}
    inputs = RunInputs(model=learned / "base", **files)
    for updates, folder in ((2, "halves"), (3, "halves"), (3, "whole")):
        recipe = rlsf()
        recipe.change([f"run.stage2_iterations={updates}"])
        Run(recipe, tmp_path / folder, inputs).execute()
    for name in ("iterations/0002/signals.parquet", "stage2/model.safetensors"):
        assert (tmp_path / "halves" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_a_run_whose_signals_follow_the_policy_is_caught(
    learned: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = RunPhases._frozen

    def following(phases: RunPhases) -> Signaller:
        class Following(Signaller):
            def signals(self, traces: Sequence[Trace], problems: Mapping[str, Problem]) -> list[Signal]:
                self.policy = phases.sampler.policy
                return super().signals(traces, problems)

        made = real(phases)
        return Following(made.config, made.policy)

    monkeypatch.setattr(RunPhases, "_frozen", following)
    with pytest.raises(AssertionError):
        check_signals_are_of_the_base(learned, tmp_path)


def test_a_command_trains_on_signals_as_the_run_does(learned: Path, tmp_path: Path) -> None:
    files = {"problems": learned / "problems.parquet", "eval_problems": learned / "test.parquet"}
    recipe = rlsf()
    recipe.change(["run.stage2_iterations=1"])
    Run(recipe, tmp_path / "run", RunInputs(model=learned / "base", **files)).execute()
    update = tmp_path / "run/iterations/0000"
    tables = {name: update / f"{name}.parquet" for name in ("traces", "rewards", "signals")}
    config = recipe.settings("train-stage2", Stage2Config)
    train(config, model=learned / "base", reference=None, out=tmp_path / "next", **tables)
    assert stored_state(tmp_path / "next").fingerprint == stored_state(tmp_path / "run/stage2").fingerprint


# Tables.


def one_line(capsys: pytest.CaptureFixture[str]) -> str:
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1, lines
    return lines[0]


@pytest.fixture
def signalled(learned: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with traces, rewards and signals, and the recipe that pays for them."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(learned / "base", tmp_path / "ckpt")
    shutil.copy(learned / "problems.parquet", tmp_path / "problems.parquet")
    make_batch(tmp_path, tmp_path / "ckpt", tmp_path / "problems.parquet", max_tokens=14)
    (tmp_path / "paid.toml").write_text(rlsf().as_toml())
    assert run_command(["signal", "--by", "ckpt", "--threads", "1"]) == 0
    return tmp_path


def test_a_judges_table_says_who_judged_and_how(learned: Path, tmp_path: Path) -> None:
    judge = write_scripted(tmp_path / "judge", WORDS)
    make_batch(tmp_path, learned / "base", learned / "problems.parquet", max_tokens=14)
    traces, out = tmp_path / "traces.parquet", tmp_path / "signals.parquet"
    config = SignalConfig(**JUDGE | {"by": str(judge), "accept_at": 0.5})  # type: ignore[arg-type]
    signal(config, traces=traces, problems=learned / "problems.parquet", out=out)
    footer = read_footer(out, SIGNALS)
    assert footer is not None and footer.config == {
        "by": load_policy(judge).state.fingerprint,
        "kind": "judge",
        "ask": "<verify>",
        "claim": "right|wrong",
        "accept_at": 0.5,
        "accepted": 1.0,
        "rejected": 0.1,
        "boxed": True,
    }
    rows = pl.read_parquet(out)
    assert {round(value, 3) for value in rows["values"].explode()} == {0.0, 0.1, 1.0}
    yes = [[score is not None and score >= 0.5 for score in scores] for scores in rows["scores"].to_list()]
    assert rows["accepted"].to_list() == yes


def test_a_recipe_says_its_pay_again(signalled: Path) -> None:
    recipe = read_recipe(signalled / "paid.toml")
    assert recipe.settings("train-stage2", Stage2Config).pay == CONFIDENCE
    recipe.change(["pay.solve.signal:confidence=0.5"])
    changed = recipe.settings("train-stage2", Stage2Config).pay
    assert changed is not None and changed.weights == {"solve": {"signal:confidence": 0.5}}


def test_signals_of_other_traces_are_refused(signalled: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["train-stage2", "--config", "paid.toml", "--signals", "signals.parquet", "--threads", "1"]
    capsys.readouterr()
    assert run_command(command) == 0
    shutil.rmtree("ckpt-next")
    capsys.readouterr()
    shutil.copy("signals.parquet", "kept.parquet")
    rewrite(signalled / "signals.parquet", lambda row: row.update(sample_index=0), keep_footer=False)
    assert run_command(command) == 2
    assert "row 1 of signals.parquet is" in one_line(capsys)
    shutil.copy("kept.parquet", "signals.parquet")
    rewrite(signalled / "signals.parquet", lambda row: row["values"].pop(), keep_footer=False)  # type: ignore[attr-defined]
    assert run_command(command) == 2
    assert "row 0 of signals.parquet speaks of 1 turns, its trace has 2" in one_line(capsys)
    shutil.copy("kept.parquet", "signals.parquet")
    make_batch_again = [
        "sample",
        "--samples",
        "4",
        "--max-tokens",
        "14",
        "--seed",
        "9",
        "--overwrite",
        "--threads",
        "1",
    ]
    assert run_command(make_batch_again) == 0 and run_command(["verify", "--overwrite"]) == 0
    capsys.readouterr()
    assert run_command(command) == 2
    assert "signals.parquet was made from other traces than traces.parquet: run `score signal`" in one_line(capsys)


def test_pay_without_signals_and_signals_without_pay_are_refused(
    signalled: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    capsys.readouterr()
    assert run_command(["train-stage2", "--config", "paid.toml", "--threads", "1"]) == 2
    assert "[pay] reads signal:confidence, and no signals are given" in one_line(capsys)
    for stage in ("train-stage1", "train-stage2"):
        assert run_command([stage, "--signals", "signals.parquet", "--threads", "1"]) == 2
        assert "signals are given, and nothing is paid for them" in one_line(capsys)


def test_no_evaluation_reads_a_signal(signalled: Path, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    assert run_command(["eval", "--traces", "traces.parquet", "--rewards", "signals.parquet"]) == 2
    assert "signals.parquet holds signals, what a policy says of solves, and only training may read" in one_line(capsys)
    assert not Path("metrics.parquet").exists()


def test_the_command_says_how_many_solves_have_an_answer(signalled: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rewrite(signalled / "traces.parquet", lambda row: row.update(attempts=["none", "none"]), keep_footer=False)
    capsys.readouterr()
    assert run_command(["signal", "--by", "ckpt", "--overwrite", "--threads", "1"]) == 0
    assert "; 0 of 64 solves have an answer" in capsys.readouterr().err
    assert set(pl.read_parquet("signals.parquet")["values"].explode()) == {0.0}
    assert run_command(["signal", "--overwrite"]) == 2
    assert "name a checkpoint with --by" in one_line(capsys)


@pytest.mark.parametrize(
    ("pay", "signal", "message"),
    [
        ("", 'kind = "judge"', ".signal. makes judge, and .pay. pays nothing for it"),
        (
            'solve = { "signal:judge" = 1.0 }',
            "",
            ".pay. reads signal:judge, and a run makes confidence: give .signal. kind",
        ),
        ('verify = { "signal:judge" = 1.0 }', 'kind = "judge"', "which only solve turns can earn"),
        ('solve = { "signal:jury" = 1.0 }', "", "no source signal:jury: did you mean signal:judge"),
    ],
)
def test_a_recipe_that_could_not_be_meant_is_one_line(tmp_path: Path, pay: str, signal: str, message: str) -> None:
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(f"{S2R_TOML}\n[pay]\n{pay}\n" + (f"[signal]\n{signal}\n" if signal else ""))
    with pytest.raises(UserError, match=message) as error:
        Run(read_recipe(recipe), tmp_path / "run")
    assert "\n" not in str(error.value)


# Calibration.


def test_calibration_error_by_hand() -> None:
    """Bins [0.1, 0.2): mean 0.15 against 0; [0.9, 1]: mean 0.975 against 0.5; weights 2/4 each."""

    def error(sure: list[float], right: list[bool]) -> float:
        solves = pl.DataFrame({"confidence": sure, "right": right}).with_columns(solve=1, problem_id=pl.lit("a"))
        return calibration_error(sums_of_solves(solves))

    assert error([0.125, 0.175, 0.95, 1.0], [False, False, True, False]) == pytest.approx(0.5 * 0.15 + 0.5 * 0.475)
    assert error([1.0, 0.0], [True, False]) == 0.0
    assert error([0.5, 0.5], [True, False]) == 0.0


def test_calibration_of_a_policys_own_probabilities_by_hand() -> None:
    policy = small_policy()
    rows = []
    for index, (chance, verdict) in enumerate([(0.8, "correct"), (0.6, "incorrect"), (0.3, "unscored")]):
        trace = division_trace(policy, SOLVED)
        logprobs = np.where(np.isin(np.arange(len(trace.token_ids)), _digits(trace)), math.log(chance), -9.0)
        reward = {"correct": 1.0, "incorrect": 0.0}.get(verdict)
        trace = replace(trace, sample_index=index, problem_id=str(index), logprobs=logprobs.astype(np.float32))
        rows.append((trace, Verdict(str(index), index, ["53"], [verdict], [reward])))
    # Piece by piece, one of which has nothing scored.
    found = calibration_rows(
        [rows[:1], rows[1:2], rows[2:]], policy.tokenizer.decode, policy="base", decoding="sampled"
    )
    values = {row["name"]: (row["value"], row["count"]) for row in found}
    assert values["confidence@t1"] == (pytest.approx(0.7, abs=1e-6), 2)
    assert values["brier@t1"] == (pytest.approx((0.2**2 + 0.6**2) / 2, abs=1e-6), 2)
    assert values["ece@t1"] == (pytest.approx((0.2 + 0.6) / 2, abs=1e-6), 2)


def _digits(trace: Trace) -> list[int]:
    first = int((trace.attempt_ids == 1).nonzero()[0][0])
    return [first + 1, first + 2]


def test_an_evaluation_measures_calibration_where_it_is_asked_to(signalled: Path) -> None:
    command = ["eval", "--samples", "4", "--max-tokens", "14", "--threads", "1", "--overwrite"]
    assert run_command(command) == 0
    plain = pl.read_parquet("metrics.parquet")
    assert run_command([*command, "--calibration"]) == 0
    table = pl.read_parquet("metrics.parquet")
    new = table.filter(~pl.col("name").is_in(plain["name"].to_list()))
    names = {f"{name}@t{solve}" for name in ("confidence", "ece", "brier") for solve in (1, 2)}
    assert set(new["name"]) == names and table.filter(~pl.col("name").is_in(list(names))).equals(plain)
    traces, verdicts = (
        read_traces(Path("eval/ckpt-sampled.traces.parquet")),
        read_verdicts(Path("eval/ckpt-sampled.rewards.parquet")),
    )
    policy = load_policy("ckpt")
    own = [confidences(trace, trace.logprobs, "mean", policy.tokenizer.decode)[0] for trace in traces]
    brier = [(c - (v.verdicts[0] == "correct")) ** 2 for c, v in zip(own, verdicts, strict=True) if c is not None]
    row = new.filter(pl.col("name") == "brier@t1", pl.col("decoding") == "sampled")
    assert row["value"].item() == pytest.approx(sum(brier) / len(brier))
