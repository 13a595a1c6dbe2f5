"""The best policy of a run: what chooses it, and that it stays."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import polars as pl
import pytest

from score_cli import run_phases
from score_cli.config import SampleConfig, VerifyConfig
from score_cli.errors import UserError
from score_cli.run import Run, RunInputs
from score_cli.run_best import BestPolicy
from score_cli.run_folder import RunFolder
from score_cli.run_log import read_log
from score_cli.sampling import sampler
from score_cli.tables.checkpoints import TrainerState, load_optimizer, load_policy, stored_state, write_state
from score_cli.tables.problems import read_problems, write_problems_table
from score_cli.tables.provenance import Footer, file_sha256
from score_cli.tables.records import Problem, Trace, Verdict
from score_cli.tasks import division
from score_cli.training.trainer import Trainer
from score_cli.verification.grader import Grader
from tests.runs import GRADE, digests, recipe, stop_and_go_on

pytestmark = pytest.mark.pipeline


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


def test_the_record_names_the_policy_kept_also_where_a_killed_run_does_not_repeat_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed after update 3 and gone on with from update 1: by an engine that comes by other policies."""
    phase: Any = SimpleNamespace(name="stage2", first=0, last=9)
    unused: Any = None
    best = BestPolicy(
        folder=RunFolder(tmp_path),
        phase=phase,
        every=1,
        validation=[],
        sampler=unused,
        grader=unused,
        config=unused,
    )

    def come_by(iteration: int, policy: str, value: float) -> tuple[str, str]:
        """The policy kept, and the one that the record names."""

        def save(path: Path, *, moments: bool) -> None:
            path.mkdir(exist_ok=True)
            write_state(path, state)

        state = TrainerState(stage="stage2", iteration=iteration, fingerprint=policy)
        monkeypatch.setattr(BestPolicy, "_value", lambda self, finished: value)
        best.consider(cast("Trainer", SimpleNamespace(policy=SimpleNamespace(state=state), save=save)))
        record = json.loads((tmp_path / "best.json").read_text())
        return stored_state(tmp_path / "best").fingerprint, record["best"]["policy"]

    assert come_by(1, "a", 0.5) == ("a", "a")
    assert come_by(2, "b", 0.4) == ("a", "a")
    assert come_by(3, "c", 0.6) == ("c", "c")
    assert come_by(2, "B", 0.3) == ("c", "c"), "the best is kept, though the run is behind it"
    assert come_by(3, "C", 0.2) == ("c", "c")
    assert come_by(4, "D", 0.7) == ("D", "D")
    known = json.loads((tmp_path / "best.json").read_text())["candidates"]
    assert [each["policy"] for each in known] == ["a", "B", "c", "C", "D"]


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
