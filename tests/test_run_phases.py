"""Runs of several phases on an untrained policy: who is sampled from, pinned to what, and kills that do not show.

Verdicts are invented, a third of them right, since an untrained policy never is.
"""

import hashlib
import json
import os
import shutil
import signal
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from score_cli import loop, run_phases
from score_cli import run as run_module
from score_cli.config import SampleConfig, SftConfig, Stage1Config, Stage2Config, VerifyConfig
from score_cli.errors import JobError, UserError
from score_cli.recipe import Recipe
from score_cli.run import Run, RunInputs
from score_cli.run_folder import RunFolder
from score_cli.run_log import read_log
from score_cli.sampling import sampler
from score_cli.sampling.engine import Engine
from score_cli.sampling.sampler import make_engine
from score_cli.stages.sample import sample
from score_cli.stages.train import train
from score_cli.stages.train_sft import train_sft
from score_cli.stages.verify import verify
from score_cli.status import status_lines
from score_cli.tables.checkpoints import Policy, load_optimizer, load_policy, stored_state
from score_cli.tables.parquet import TRACES, read_footer
from score_cli.tables.problems import read_problems, write_problems_table
from score_cli.tables.provenance import Footer, file_sha256
from score_cli.tables.records import Problem, Trace, Verdict
from score_cli.tasks import division
from score_cli.training.trainer import Trainer
from score_cli.verification.grader import Grader

pytestmark = pytest.mark.pipeline

ONE_THREAD = {"threads": 1}
SAMPLE = {"samples": 4, "problems_per_iteration": 6, "max_tokens": 16, **ONE_THREAD}


def invent(grader: Grader, traces: Sequence[Trace], problems: Mapping[str, Problem]) -> list[Verdict]:
    """The real verdicts with others in their stead."""
    return [invented(verdict) for verdict in GRADE(grader, traces, problems)]


def invented(verdict: Verdict) -> Verdict:
    names = [f"{verdict.problem_id} {verdict.sample_index} {attempt}" for attempt in range(len(verdict.verdicts))]
    right = [hashlib.sha256(name.encode()).digest()[0] % 3 == 0 for name in names]
    verdicts = ["correct" if value else "incorrect" for value in right]
    return replace(verdict, rewards=[float(value) for value in right], verdicts=verdicts)


GRADE = Grader.grade


@pytest.fixture
def start(tmp_path: Path, checkpoint: Path, problems: Path, monkeypatch: pytest.MonkeyPatch) -> RunInputs:
    monkeypatch.setattr(Grader, "grade", invent)
    return RunInputs(model=checkpoint, problems=problems, eval_problems=problems)


def recipe(attempts: int = 2, **run: object) -> Recipe:
    update = {"learning_rate": 1e-3, "kl": "full", **ONE_THREAD}
    return Recipe(
        {
            "sample": SAMPLE | {"attempts": attempts},
            "train-stage1": dict(update),
            "train-stage2": dict(update),
            "train-sft": {"method": "pair-sft", "learning_rate": 1e-3, "batch_size": 8, **ONE_THREAD},
            "eval": {"samples": 1, "attempts": attempts, "max_tokens": 16, **ONE_THREAD},
            "run": {"save_every": 1, "overlap": "keep", **run},
        },
        seed=3,
    )


ROUNDS = {"stage1_iterations": 2, "stage2_iterations": 2, "sft_rounds": 3, "sft_after": "stage1", "sft_problems": 8}


def digests(folder: Path) -> dict[str, str]:
    files = [*folder.glob("*.parquet"), *folder.glob("iterations/*/*.parquet"), *folder.glob("*/*model.safetensors")]
    return {str(path.relative_to(folder)): file_sha256(path) for path in files}


def test_rounds_sample_from_the_newest_policy_and_the_next_stage_goes_on_from_the_last(
    start: RunInputs, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    rows = Run(recipe(**ROUNDS), folder, start).execute()
    policies = dict.fromkeys(row["policy"] for row in rows if " - " not in row["policy"])
    assert list(policies) == ["base", "stage1", "sft", "stage2"]
    states = {name: load_policy(folder / name).state for name in ("stage1", "sft", "stage2")}
    assert [states[name].iteration for name in states] == [2, 5, 7]
    base = load_policy(tmp_path / "ckpt").state.fingerprint
    assert {state.reference for state in states.values()} == {base}
    sampled = [read_footer(path, TRACES) for path in sorted(folder.glob("iterations/*/traces.parquet"))]
    policies = [footer.policy for footer in sampled if footer is not None]
    assert len(set(policies)) == 7
    assert (policies[0], policies[2], policies[5]) == (base, states["stage1"].fingerprint, states["sft"].fingerprint)
    assert states["sft"].parent == policies[4]
    counts = [len(pl.read_parquet(path)) for path in sorted(folder.glob("iterations/*/traces.parquet"))]
    assert counts == [24, 24, 32, 32, 32, 24, 24]
    assert [path.parent.name for path in sorted(folder.glob("iterations/*/sft.parquet"))] == ["0002", "0003", "0004"]
    curve = pl.read_parquet(folder / "train_metrics.parquet")
    assert curve.filter(pl.col("name") == "loss_after")["iteration"].to_list() == [2, 3, 4]
    moments = load_optimizer(folder / "stage2")
    assert moments is not None and {v.item() for k, v in moments.items() if k.startswith("step.")} == {2.0}


def test_tables_are_written_while_the_policy_learns_and_lie_there_before_it_is_kept(
    start: RunInputs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Writing waits for the step, and a save looks for what was written."""
    learned, beside, found = threading.Event(), [], []
    write, step, save = run_phases.write_verdicts, Trainer.optim_step, Trainer.save

    def write_late(*given: Any) -> None:
        beside.append(learned.wait(20))
        write(*given)

    def say_so(trainer: Trainer) -> None:
        step(trainer)
        learned.set()

    def look(trainer: Trainer, out: Path) -> None:
        found.append(sorted(each.name for each in (tmp_path / "run" / "iterations" / "0000").iterdir()))
        save(trainer, out)

    monkeypatch.setattr(run_phases, "write_verdicts", write_late)
    monkeypatch.setattr(Trainer, "optim_step", say_so)
    monkeypatch.setattr(Trainer, "save", look)
    Run(recipe(stage1_iterations=1), tmp_path / "run", start).execute()
    assert beside == [True]
    assert found == [["metrics.parquet", "rewards.parquet", "traces.parquet"]]


def test_a_run_says_of_each_update_as_it_ends_what_the_tables_hold(start: RunInputs, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    Run(recipe(stage1_iterations=2, stage2_iterations=1, offline_first_attempts=0.5), folder, start).execute()
    entries = read_log(folder / "log.jsonl")
    assert [(entry["update"], entry["phase"], entry["run_last"]) for entry in entries] == [
        (0, "stage1", 3),
        (1, "stage1", 3),
        (2, "stage2", 3),
    ]
    for entry in entries:
        assert set(entry["seconds"]) == {"sample", "verify", "write", "train", "refresh"}
        update = folder / "iterations" / f"{entry['update']:04d}"
        rows = pl.read_parquet(update / "traces.parquet").iter_rows(named=True)
        assert entry["sampled_tokens"] == sum(a > row["offline_attempts"] for row in rows for a in row["attempt_ids"])
        second = pl.read_parquet(update / "rewards.parquet")["verdicts"].list.get(1)
        assert entry["verdicts"]["t2"]["correct"] == (second == "correct").mean()
        metrics = pl.read_parquet(update / "metrics.parquet").filter(pl.col("name") == "kl", pl.col("attempt") == 2)
        assert [entry["metrics"]["kl@t2"]] == metrics["value"].to_list()
    assert status_lines(folder)[:2] == [f"{folder}: finished", "stage2: update 1 of 1; 3 of the run's 3"]


def test_the_stages_called_one_by_one_give_the_bytes_of_a_runs_rounds(start: RunInputs, tmp_path: Path) -> None:
    folder, config = tmp_path / "run", SftConfig(method="pair-sft", learning_rate=1e-3, batch_size=8, threads=1, seed=3)
    Run(recipe(sft_rounds=2), folder, start).execute()
    model = tmp_path / "ckpt"
    for number in range(2):
        files = {name: tmp_path / f"{name}{number}.parquet" for name in ("traces", "rewards", "learned")}
        settings = SampleConfig(samples=4, max_tokens=16, threads=1, seed=3)
        sample(settings, policy=load_policy(model), problems=folder / "train.parquet", out=files["traces"])
        verify(VerifyConfig(), traces=files["traces"], problems=folder / "train.parquet", out=files["rewards"])
        train_sft(config, model=model, out=tmp_path / f"next{number}", **files)
        model = tmp_path / f"next{number}"
        for name, kept in (("traces", "traces"), ("rewards", "rewards"), ("learned", "sft")):
            assert files[name].read_bytes() == (folder / "iterations" / f"000{number}" / f"{kept}.parquet").read_bytes()
    assert file_sha256(model / "model.safetensors") == file_sha256(folder / "sft" / "model.safetensors")


def test_a_policy_in_the_middle_of_a_chain_is_refused_before_any_work(start: RunInputs, tmp_path: Path) -> None:
    """Its updates are numbered on: the run would look for the metrics of updates that were never made."""
    Run(recipe(sft_rounds=1), tmp_path / "first", start).execute()
    trained = tmp_path / "first" / "sft"
    inputs = replace(start, model=trained)
    for kinds in ({"sft_rounds": 2}, {"stage1_iterations": 2}):
        with pytest.raises(UserError, match="is a policy after 1 updates, and a run counts its own from 0"):
            Run(recipe(**kinds), tmp_path / "second", inputs)
    assert not (tmp_path / "second").exists()
    shutil.rmtree(trained / "trainer")
    Run(recipe(sft_rounds=1), tmp_path / "second", inputs).execute()
    assert stored_state(tmp_path / "second" / "sft").iteration == 1


def test_an_evaluation_that_outgrows_the_context_is_refused_before_any_update(start: RunInputs, tmp_path: Path) -> None:
    """Five attempts of 16 tokens, closed and asked to go on, are over the 64 that the model can count."""
    asked = recipe(stage1_iterations=2).extended(Recipe({"eval": {"attempts": 5, "max_tokens": 16}}))
    with pytest.raises(UserError, match="can reach 95 tokens, the model's context is 64"):
        Run(asked, tmp_path / "run", start).execute()
    assert not (tmp_path / "run" / "iterations").exists()
    with pytest.raises(UserError, match="can reach 95 tokens, the model's context is 64"):
        Run(asked, tmp_path / "built-in", RunInputs(limit=4)).execute()
    assert not (tmp_path / "built-in" / "base").exists()


def test_one_engine_is_held_at_a_time(start: RunInputs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two vLLM engines do not fit on a GPU: rounds between the stages have their own, so a stage gives its up."""
    held: list[Engine] = []
    counts: list[int] = []

    def make(config: SampleConfig, policy: Policy) -> Engine:
        engine = make_engine(config, policy)
        held.append(engine)
        counts.append(len(held))
        monkeypatch.setattr(engine, "close", lambda: held.remove(engine))
        return engine

    monkeypatch.setattr(sampler, "make_engine", make)
    Run(recipe(**ROUNDS), tmp_path / "run", start).execute()
    assert set(counts) == {1} and not held


def test_a_runs_schedule_ends_with_its_stage_and_cannot_be_stretched_afterwards(
    start: RunInputs, tmp_path: Path
) -> None:
    def made(iterations: int) -> Recipe:
        falling = Recipe({"train-stage1": {"schedule": "linear", "warmup_updates": 1}})
        return recipe(stage1_iterations=iterations).extended(falling)

    Run(made(3), tmp_path / "run", start).execute()
    curve = pl.read_parquet(tmp_path / "run" / "train_metrics.parquet").filter(pl.col("name") == "learning_rate")
    assert curve["value"].to_list() == pytest.approx([1e-3, 1e-3, 0.5e-3])
    with pytest.raises(UserError, match="stage1.schedule_updates was 3, is 4"):
        Run(made(4), tmp_path / "run", start).execute()
    short = made(3)
    short.change(["train-stage1.schedule_updates=2"])
    with pytest.raises(UserError, match="schedule_updates is 2, and the stage has 3 iterations"):
        Run(short, tmp_path / "run", start)


def by_text(grader: Grader, traces: Sequence[Trace], problems: Mapping[str, Problem]) -> list[Verdict]:
    """Verdicts that hang on what was said, so that policies differ."""

    def judged(trace: Trace, verdict: Verdict) -> Verdict:
        right = [hashlib.sha256(text.encode()).digest()[0] % 2 == 0 for text in trace.attempts]
        verdicts = ["correct" if value else "incorrect" for value in right]
        return replace(verdict, rewards=[float(value) for value in right], verdicts=verdicts)

    return [judged(*pair) for pair in zip(traces, GRADE(grader, traces, problems), strict=True)]


def test_the_best_policy_by_the_traces_trained_on_is_kept_beside_the_last(
    start: RunInputs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Grader, "grade", by_text)
    made = recipe(stage1_iterations=1, stage2_iterations=5, best_every=2, keep_checkpoints=9, evaluate="best")
    folder = tmp_path / "whole"
    rows = Run(made, folder, start).execute()
    curve = pl.read_parquet(folder / "train_metrics.parquet").filter(
        pl.col("name") == "accuracy", pl.col("attempt") == 2
    )
    accuracy = dict(curve.select("iteration", "value").rows())
    record = json.loads((folder / "best.json").read_text())
    # Updates 1 to 5 are Stage II's: candidates after two and four of them, and at its end.
    expected = {3: (accuracy[1] + accuracy[2]) / 2, 5: (accuracy[3] + accuracy[4]) / 2, 6: accuracy[5]}
    assert {each["iteration"]: each["value"] for each in record["candidates"]} == pytest.approx(expected)
    best = max(expected, key=lambda iteration: expected[iteration])
    assert record["best"]["iteration"] == best and "traces trained on" in record["chosen_by"]
    kept = folder / "stage2" if best == 6 else folder / "latest" / f"{best:04d}"
    assert file_sha256(folder / "best" / "model.safetensors") == file_sha256(kept / "model.safetensors")
    assert stored_state(folder / "best").iteration == best and load_optimizer(folder / "best") is None
    assert [row for row in dict.fromkeys(row["policy"] for row in rows) if " - " not in row] == [
        "base",
        "stage1",
        "best",
    ]
    stopped = tmp_path / "stopped"
    stop_and_go_on(made, start, stopped, monkeypatch, run_phases, "write_table", 4)
    assert digests(stopped) == digests(folder)
    assert json.loads((stopped / "best.json").read_text()) == record


def test_validation_problems_choose_the_best_policy_where_there_are_some(
    start: RunInputs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Grader, "grade", by_text)
    validation = tmp_path / "validation.parquet"
    write_problems_table(validation, division.split_problems("validation")[:20], Footer(table="problems", stage="data"))
    inputs = replace(start, validation_problems=validation)
    made = recipe(stage1_iterations=4, best_every=1, keep_checkpoints=9)
    folder = tmp_path / "run"
    Run(made, folder, inputs).execute()
    record = json.loads((folder / "best.json").read_text())
    problems = {problem.problem_id: problem for problem in read_problems(validation)}
    values = {}
    for number in (1, 2, 3, 4):
        policy = load_policy(folder / "stage1" if number == 4 else folder / "latest" / f"{number:04d}")
        config = SampleConfig(samples=1, max_tokens=16, temperature=0, threads=1, seed=3, iteration=0)
        traces = sampler.Sampler(config, policy).sample(list(problems.values()))
        right = [verdict.verdicts[1] == "correct" for verdict in by_text(Grader(VerifyConfig()), traces, problems)]
        values[number] = sum(right) / 20
    assert {each["iteration"]: each["value"] for each in record["candidates"]} == pytest.approx(values)
    assert record["best"]["iteration"] == max(values, key=lambda number: values[number])
    assert stored_state(folder / "best").iteration == record["best"]["iteration"]
    assert "on 20 validation problems" in record["chosen_by"]
    logged = {entry["update"] + 1: entry["validation"] for entry in read_log(folder / "log.jsonl")}
    assert logged == pytest.approx(values)


@pytest.mark.parametrize(
    ("run", "message"),
    [
        ({"stage1_iterations": 1, "evaluate": "best"}, "no best policy is kept: set run.best_every"),
        ({"sft_rounds": 1, "best_every": 1}, "a last phase of Stage I or II"),
        ({"stage1_iterations": 1, "sft_rounds": 1, "sft_after": "stage1", "best_every": 1}, "a last phase of Stage I"),
    ],
)
def test_a_best_policy_that_nothing_would_choose_is_refused(
    start: RunInputs, tmp_path: Path, run: dict[str, object], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        Run(recipe(**run), tmp_path / "run", start)


def test_the_newest_checkpoints_stay_as_many_as_asked_for(start: RunInputs, tmp_path: Path) -> None:
    for count, expected in ((1, []), (3, ["0002", "0003"])):
        folder = tmp_path / str(count)
        Run(recipe(stage1_iterations=4, keep_checkpoints=count), folder, start).execute()
        assert sorted(path.name for path in folder.glob("latest/*")) == expected


class Killed(BaseException):
    """Stands for a signal: no handler of ours catches it."""


def stop_and_go_on(
    made: Recipe, start: RunInputs, folder: Path, monkeypatch: pytest.MonkeyPatch, module: Any, function: str, call: int
) -> None:
    """Stop a run just before the given call of a function, then start it again."""
    own: Callable[..., Any] = getattr(module, function)
    calls = iter(range(1, 100))

    def stop(*arguments: Any, **keywords: Any) -> Any:
        if next(calls) == call:
            raise Killed
        return own(*arguments, **keywords)

    monkeypatch.setattr(module, function, stop)
    with pytest.raises(Killed):
        Run(made, folder, start).execute()
    monkeypatch.setattr(module, function, own)
    Run(made, folder, start).execute()


def test_a_run_with_rounds_stopped_anywhere_ends_with_the_same_bytes(
    start: RunInputs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = recipe(**ROUNDS, compact_every=2)
    Run(made, tmp_path / "whole", start).execute()
    tables = tmp_path / "whole" / "iterations"
    assert [path.name for path in sorted(tables.iterdir())] == ["0000-0001", "0002-0003", "0004", "0005", "0006"]
    curve = pl.read_parquet(tables.parent / "train_metrics.parquet")
    assert pl.read_parquet(tables / "*" / "metrics.parquet").equals(curve)
    moments: list[tuple[Any, str, int]] = [
        (Grader, "grade", 4),
        (run_phases, "sft_round", 2),
        (RunFolder, "copy_metrics", 1),
        (RunFolder, "copy_metrics", 3),
        (RunFolder, "compact", 5),
        (loop, "check_logprobs_match", 4),
    ]
    for module, function, call in moments:
        folder = tmp_path / f"{function}{call}"
        stop_and_go_on(made, start, folder, monkeypatch, module, function, call)
        assert digests(folder) == digests(tmp_path / "whole"), (function, call)


def test_a_run_that_goes_on_from_an_older_checkpoint_does_old_updates_again_to_the_same_bytes(
    start: RunInputs, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    made = recipe(stage1_iterations=5, compact_every=1, keep_checkpoints=5)
    Run(made, folder, start).execute()
    before = digests(folder)
    for lost in ("stage1", "latest/0004", "latest/0003"):
        shutil.rmtree(folder / lost)
    for lost in ("metrics.parquet", "train_metrics.parquet"):
        (folder / lost).unlink()
    Run(made, folder, start).execute()
    assert digests(folder) == before
    assert "iterations/0003-0003/traces.parquet" in before


THREE = {"stage1_iterations": 2, "stage2_iterations": 2, "stage1_by_attempt": True}


def test_three_attempts_are_trained_one_after_the_other(start: RunInputs, tmp_path: Path) -> None:
    """Stage I (b) is pinned to the policy of (a), Stage II to the base; each begins with fresh moments."""
    folder = tmp_path / "run"
    rows = Run(recipe(3, **THREE), folder, start).execute()
    assert {"acc@t3", "delta@t3"} <= {row["name"] for row in rows}
    base = stored_state(tmp_path / "ckpt").fingerprint
    part_a, part_b, score = (stored_state(folder / name) for name in ("stage1-t2", "stage1-t3", "stage2"))
    assert (part_a.reference, part_b.reference, score.reference) == (base, part_a.fingerprint, base)
    widths = [
        set(pl.read_parquet(path)["attempts"].list.len()) for path in sorted(folder.glob("iterations/*/traces.parquet"))
    ]
    assert widths == [{2}, {2}, {3}, {3}, {3}, {3}]
    for name in ("stage1-t2", "stage1-t3", "stage2"):
        moments = load_optimizer(folder / name)
        assert moments is not None and {v.item() for k, v in moments.items() if k.startswith("step.")} == {2.0}
    # The first update of (b) stands where its reference does; that of Stage II is already away from the base.
    curve = pl.read_parquet(folder / "train_metrics.parquet").filter(pl.col("name") == "full_kl")
    kl = {iteration: part["value"].to_list() for (iteration,), part in curve.group_by("iteration")}
    assert max(kl[2]) < 1e-9 < 1e-5 < min(kl[4])


def test_a_run_stopped_between_the_parts_of_stage_one_ends_with_the_same_bytes(
    start: RunInputs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Run(recipe(3, **THREE), tmp_path / "whole", start).execute()
    for call in (3, 4):
        folder = tmp_path / str(call)
        stop_and_go_on(recipe(3, **THREE), start, folder, monkeypatch, loop, "check_logprobs_match", call)
        assert digests(folder) == digests(tmp_path / "whole"), call


def test_one_attempt_is_trained_and_two_are_evaluated(start: RunInputs, tmp_path: Path) -> None:
    """Single-turn RL: the whole path, with one attempt in the traces and their curve, two in the metrics."""
    made = recipe(1, stage2_iterations=2)
    made.change(["eval.attempts=2"])
    rows = Run(made, tmp_path / "run", start).execute()
    assert {"acc@t1", "acc@t2", "delta@t2"} <= {row["name"] for row in rows if row["policy"] == "stage2"}
    traces = pl.read_parquet(tmp_path / "run" / "iterations" / "0001" / "traces.parquet")
    assert set(traces["attempts"].list.len()) == {1}
    assert set(traces["attempt_ids"].explode()) == {0, 1}
    curve = pl.read_parquet(tmp_path / "run" / "train_metrics.parquet")
    assert set(curve.filter(pl.col("name") == "accuracy")["attempt"]) == {1}
    assert stored_state(tmp_path / "run" / "stage2").iteration == 2


def test_stage_two_goes_on_from_the_bases_first_attempts_and_never_trains_on_them(
    start: RunInputs, tmp_path: Path
) -> None:
    made = recipe(stage1_iterations=2, stage2_iterations=2, offline_first_attempts=0.5)
    Run(made, tmp_path / "run", start).execute()
    drawn, base = tmp_path / "run" / "first_attempts.parquet", stored_state(tmp_path / "ckpt").fingerprint
    footer = read_footer(drawn, TRACES)
    assert footer is not None and footer.policy == base
    firsts = {(row["problem_id"], row["sample_index"]): row for row in pl.read_parquet(drawn).to_dicts()}
    assert len(firsts) == 12 * 4 and all(len(row["attempts"]) == 1 for row in firsts.values())
    for iteration in (2, 3):
        traces = pl.read_parquet(tmp_path / "run" / "iterations" / f"{iteration:04d}" / "traces.parquet").to_dicts()
        given = [row for row in traces if row["offline_attempts"] == 1]
        assert len(given) == len(traces) / 2
        for row in given:
            assert row["attempts"][0] == firsts[row["problem_id"], row["sample_index"]]["attempts"][0]


def test_stage_one_is_untouched_by_first_attempts_given_to_stage_two(start: RunInputs, tmp_path: Path) -> None:
    for name, share in (("own", 0.0), ("given", 1.0)):
        made = recipe(stage1_iterations=2, stage2_iterations=1, offline_first_attempts=share)
        Run(made, tmp_path / name, start).execute()
    own, given = digests(tmp_path / "own"), digests(tmp_path / "given")
    same = {name for name in own if own[name] == given[name]}
    assert "stage1/model.safetensors" in same and "stage2/model.safetensors" not in same
    assert {f"iterations/000{n}/traces.parquet" for n in (0, 1)} <= same
    curve = pl.read_parquet(tmp_path / "given" / "train_metrics.parquet").filter(pl.col("name") == "entropy")
    # What is measured of the tokens trained on: both attempts' in Stage I, the second's alone in Stage II.
    assert curve.select("iteration", "attempt").rows() == [(0, 1), (0, 2), (1, 1), (1, 2), (2, 2)]


def test_a_run_stopped_at_its_first_attempts_ends_with_the_same_bytes(
    start: RunInputs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = recipe(stage1_iterations=1, stage2_iterations=2, offline_first_attempts=1.0)
    Run(made, tmp_path / "whole", start).execute()
    for function in ("sample", "read_offline"):  # before the first attempts are drawn, and after
        folder = tmp_path / function
        stop_and_go_on(made, start, folder, monkeypatch, run_phases, function, 1)
        assert digests(folder) == digests(tmp_path / "whole"), function


def test_first_attempts_without_a_stage_two_are_refused(start: RunInputs, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="Stage II"):
        Run(recipe(stage1_iterations=1, offline_first_attempts=1.0), tmp_path / "run", start)


def test_a_policy_that_the_plan_did_not_make_is_not_taken_for_its_own(start: RunInputs, tmp_path: Path) -> None:
    Run(recipe(stage1_iterations=2), tmp_path / "other", replace(start, limit=8)).execute()
    for name, made, message in (
        ("longer", recipe(stage1_iterations=1), "holds a policy after 2 updates .stage1., and this run's plan has one"),
        ("same", recipe(stage1_iterations=2), "was not made from the traces of .*iterations/0001"),
    ):
        folder = tmp_path / name
        folder.mkdir()
        shutil.copytree(tmp_path / "other" / "stage1", folder / "stage1")
        with pytest.raises(UserError, match=message):
            Run(made, folder, start).execute()
        assert not (folder / "iterations").exists()


def test_a_finished_run_goes_on_to_more_iterations_as_if_it_had_been_told_at_once(
    start: RunInputs, tmp_path: Path
) -> None:
    Run(recipe(stage1_iterations=2, stage2_iterations=3), tmp_path / "whole", start).execute()
    folder = tmp_path / "raised"
    Run(recipe(stage1_iterations=2, stage2_iterations=1), folder, start).execute()
    rows = Run(recipe(stage1_iterations=2, stage2_iterations=3, save_every=5), folder, start).execute()
    assert digests(folder) == digests(tmp_path / "whole")
    assert rows and stored_state(folder / "stage2").iteration == 5
    # Stage II has gone on from the end of Stage I, which can have no more.
    with pytest.raises(UserError, match="later updates went on from it"):
        Run(recipe(stage1_iterations=3, stage2_iterations=3), folder, start).execute()


def test_a_finished_run_loads_no_model(start: RunInputs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = recipe(stage1_iterations=1)
    rows = Run(made, tmp_path / "run", start).execute()
    again = Run(made, tmp_path / "run", start)
    monkeypatch.setattr(run_module, "load_policy", lambda *_, **__: pytest.fail("a model was loaded"))
    assert again.execute() == rows


def test_a_request_to_stop_is_met_between_updates_with_the_policy_kept(
    start: RunInputs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = recipe(stage1_iterations=4, save_every=100)
    Run(made, tmp_path / "whole", start).execute()
    folder = tmp_path / "stopped"
    own = loop.check_logprobs_match
    calls = iter(range(100))

    def ask(*arguments: Any) -> None:
        if next(calls) == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        own(*arguments)

    monkeypatch.setattr(loop, "check_logprobs_match", ask)
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(KeyboardInterrupt):
        Run(made, folder, start).execute()
    assert signal.getsignal(signal.SIGTERM) == before
    assert stored_state(folder / "latest" / "0002").iteration == 2
    monkeypatch.setattr(loop, "check_logprobs_match", own)
    Run(made, folder, start).execute()
    assert digests(folder) == digests(tmp_path / "whole")


def test_an_alarm_stops_a_run_whose_policy_is_kept_and_goes_on_under_another_limit(
    start: RunInputs, tmp_path: Path
) -> None:
    Run(recipe(stage1_iterations=3, save_every=10), tmp_path / "whole", start).execute()
    folder, plan = tmp_path / "run", recipe(stage1_iterations=3, save_every=10)
    plan.change(["run.alarms.kl=stop", "run.alarms.kl_limit=1e-9"])
    # The first update's policy is its reference, the second's has moved.
    with pytest.raises(JobError, match=r"stopped after update 1 by an alarm: kl@t\d is .* \(limit 1e-09\)"):
        Run(plan, folder, start).execute()
    assert [path.name for path in (folder / "latest").iterdir()] == ["0002"]
    assert status_lines(folder)[-1].startswith("alarm kl: kl@t")
    plan.change(["run.alarms.kl=warn"])
    Run(plan, folder, start).execute()
    assert digests(folder) == digests(tmp_path / "whole")


def test_a_fork_goes_on_under_other_settings_and_leaves_the_run_as_it_was(start: RunInputs, tmp_path: Path) -> None:
    run, fork = tmp_path / "run", tmp_path / "fork"
    Run(recipe(stage1_iterations=2, stage2_iterations=1), run, start).execute()
    before = digests(run)
    changed = recipe(stage1_iterations=2, stage2_iterations=3)
    changed.change(["train-stage2.learning_rate=0.01"])
    with pytest.raises(UserError, match="stage2.learning_rate was 0.001, is 0.01.*--fork FOLDER"):
        Run(changed, run, start).execute()
    RunFolder(run).fork(fork)
    Run(changed, fork, start).execute()
    assert digests(run) == before
    own = digests(fork)
    assert all(own[name] == before[name] for name in before if name.startswith(("iterations", "stage1", "train.")))
    assert stored_state(fork / "stage2").iteration == 5
    assert json.loads((fork / "forked_from.json").read_text())["stage2"]["learning_rate"] == 0.001
    with pytest.raises(UserError, match="fork exists"):
        RunFolder(run).fork(fork)
    with pytest.raises(UserError, match="holds no run to fork"):
        RunFolder(tmp_path / "nothing").fork(tmp_path / "other")


def test_training_problems_that_the_evaluation_asks_too_are_refused_or_dropped(
    tmp_path: Path, start: RunInputs
) -> None:
    assert start.problems is not None
    train = read_problems(start.problems)
    shouted = [replace(p, problem_id=f"other-{p.problem_id}", question=f" {p.question.upper()}") for p in train[:5]]
    write_problems_table(tmp_path / "eval.parquet", shouted, Footer(table="problems", stage="by hand"))
    inputs = replace(start, eval_problems=tmp_path / "eval.parquet")
    with pytest.raises(UserError, match=r"5 of 12 training problems ask a question of .*eval.parquet \(division-"):
        Run(recipe(overlap="refuse"), tmp_path / "run", inputs).execute()
    Run(recipe(overlap="drop"), tmp_path / "run", inputs).execute()  # what the refusal says to do, in the same folder
    kept = read_problems(tmp_path / "run" / "train.parquet")
    assert [problem.problem_id for problem in kept] == [problem.problem_id for problem in train[5:]]
    with pytest.raises(UserError, match=r"12 of 12 training problems ask a question"):
        Run(recipe(overlap="drop"), tmp_path / "none", start).execute()


LORA = {"lora": {"rank": 2, "targets": "c_attn,c_fc"}}
ADAPTER = "adapter_model.safetensors"


def test_the_stages_called_one_by_one_give_the_bytes_of_a_run_with_adapters(start: RunInputs, tmp_path: Path) -> None:
    folder, made = tmp_path / "run", recipe(stage1_iterations=2, stage2_iterations=2).extended(Recipe(LORA))
    Run(made, folder, start).execute()
    base = model = tmp_path / "ckpt"
    for number in range(4):
        files = {name: tmp_path / f"{name}{number}.parquet" for name in ("traces", "rewards")}
        settings = made.settings("sample", SampleConfig)
        sample(settings, policy=load_policy(model), problems=folder / "train.parquet", out=files["traces"])
        verify(VerifyConfig(), traces=files["traces"], problems=folder / "train.parquet", out=files["rewards"])
        table, kind = ("train-stage1", Stage1Config) if number < 2 else ("train-stage2", Stage2Config)
        train(made.settings(table, kind), model=model, reference=base, out=tmp_path / f"next{number}", **files)
        model = tmp_path / f"next{number}"
        for name in files:
            kept = folder / "iterations" / f"000{number}" / f"{name}.parquet"
            assert files[name].read_bytes() == kept.read_bytes(), (name, number)
    for name in (ADAPTER, "trainer/state.json", "trainer/optimizer.safetensors", "trainer/base.json"):
        assert (model / name).read_bytes() == (folder / "stage2" / name).read_bytes(), name
    assert json.loads((model / "adapter_config.json").read_text())["base_model_name_or_path"] == str(base)
    assert stored_state(model).reference == stored_state(base).fingerprint


def test_a_run_with_adapters_stopped_anywhere_ends_with_the_same_bytes(
    start: RunInputs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Supervised rounds between the stages go on from the adapter too."""
    made = recipe(**ROUNDS).extended(Recipe(LORA))
    Run(made, tmp_path / "whole", start).execute()
    whole = digests(tmp_path / "whole")
    assert {f"{name}/{ADAPTER}" for name in ("stage1", "sft", "stage2")} <= set(whole)
    assert not {f"{name}/model.safetensors" for name in ("stage1", "sft", "stage2")} & set(whole)
    moments: list[tuple[Any, str, int]] = [(run_phases, "sft_round", 2), (loop, "check_logprobs_match", 4)]
    for module, function, call in moments:
        folder = tmp_path / f"{function}{call}"
        stop_and_go_on(made, start, folder, monkeypatch, module, function, call)
        assert digests(folder) == whole, (function, call)


def test_parts_of_stage_one_are_pinned_to_adapters_over_one_base(
    start: RunInputs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The base is loaded once, whoever is the reference, and the files are those of a run that was stopped between."""
    loads = []
    own = load_policy

    def counted(name: Path, **more: Any) -> Policy:
        loads.append((str(name), more.get("beside") is not None))
        return own(name, **more)

    made = recipe(3, **THREE).extended(Recipe(LORA))
    monkeypatch.setattr(run_phases, "load_policy", counted)
    folder = tmp_path / "run"
    Run(made, folder, start).execute()
    assert loads and all(shared for _, shared in loads)
    base = stored_state(tmp_path / "ckpt").fingerprint
    part_a, part_b, score = (stored_state(folder / name) for name in ("stage1-t2", "stage1-t3", "stage2"))
    assert (part_a.reference, part_b.reference, score.reference) == (base, part_a.fingerprint, base)
    curve = pl.read_parquet(folder / "train_metrics.parquet").filter(pl.col("name") == "full_kl")
    kl = {iteration: part["value"].to_list() for (iteration,), part in curve.group_by("iteration")}
    assert max(kl[2]) < 1e-9 < 1e-8 < min(kl[4])
    stop_and_go_on(made, start, tmp_path / "stopped", monkeypatch, loop, "check_logprobs_match", 4)
    assert digests(tmp_path / "stopped") == digests(folder)
