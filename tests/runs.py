"""Runs on an untrained policy, small enough for tests. It is never right, so a third of the verdicts are invented."""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from score_cli.recipe import Recipe
from score_cli.run import Run, RunInputs
from score_cli.tables.provenance import file_sha256
from score_cli.tables.records import Problem, Trace, Verdict
from score_cli.verification.grader import Grader

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


THREE = {"stage1_iterations": 2, "stage2_iterations": 2, "stage1_by_attempt": True}
ROUNDS = {"stage1_iterations": 2, "stage2_iterations": 2, "sft_rounds": 3, "sft_after": "stage1", "sft_problems": 8}


def digests(folder: Path) -> dict[str, str]:
    files = [*folder.glob("*.parquet"), *folder.glob("iterations/*/*.parquet"), *folder.glob("*/*model.safetensors")]
    return {str(path.relative_to(folder)): file_sha256(path) for path in files}


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
