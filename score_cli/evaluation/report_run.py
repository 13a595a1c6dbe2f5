"""Read what a run folder holds for its report, one file of traces at a time.

Nothing in it is required but the result of some work: a run that is under way or stopped has a report too.
"""

import json
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from score_cli.errors import UserError
from score_cli.evaluation.evaluate import MINUS
from score_cli.evaluation.votes import VOTES
from score_cli.tables.parquet import METRICS, TRACES, TRAIN_METRICS, read_footer, read_table
from score_cli.tables.problems import read_problems
from score_cli.tables.provenance import file_sha256
from score_cli.tables.records import Problem, Trace, Verdict
from score_cli.tables.traces import check_pairs, read_traces, read_verdicts

TRACES_SUFFIX = ".traces.parquet"
REWARDS_SUFFIX = ".rewards.parquet"
# Where a run keeps its problems, and where the single commands do.
PROBLEM_FILES = ("train", "validation", "test", "problems")


@dataclass(frozen=True)
class Source:
    """Traces and rewards of one policy: evaluated in one decoding, or sampled for one update."""

    key: str  # base-sampled, or update-0007
    title: str
    policy: str
    decoding: str | None  # None for the traces of an update
    traces: Path
    rewards: Path

    def read(self) -> tuple[list[tuple[Trace, Verdict]], str | None]:
        """The rows, and the fingerprint of the policy they were sampled from, where the footer says it.

        Raises:
            UserError: the two files do not belong together.
        """
        traces, rewards = read_traces(self.traces), read_verdicts(self.rewards)
        check_pairs(traces, rewards, self.traces, self.rewards)
        footer = read_footer(self.traces, TRACES)
        return list(zip(traces, rewards, strict=True)), footer.policy if footer else None


@dataclass(frozen=True)
class RunFolder:
    """A run folder's tables, and where its traces are."""

    settings: dict[str, Any]
    metrics: list[dict[str, Any]]
    comparisons: list[dict[str, Any]]
    curve: list[dict[str, Any]]
    problems: dict[str, Problem]
    problem_counts: dict[str, int]
    evaluated: list[Source]
    updates: list[Source]


def read_run(folder: Path) -> RunFolder:
    """Read all tables but the traces.

    Raises:
        UserError: no such folder, or nothing in it to report on, or rewards that metrics.parquet was not made of.
    """
    if not folder.is_dir():
        raise UserError(f"{folder} is not a folder: name one that `score run` or `score eval` wrote into")
    curve = read_curve(folder)
    metrics_path = folder / "metrics.parquet"
    rows = read_table(metrics_path, METRICS).to_pylist() if metrics_path.exists() else []
    metrics = [row for row in rows if MINUS not in row["policy"]]
    evaluated = list(evaluated_sources(folder / "eval", list(dict.fromkeys(row["policy"] for row in metrics))))
    updates = list(_updates(folder, {row["iteration"]: row["stage"] for row in curve}))
    if not (metrics or evaluated or updates):
        raise UserError(
            f"{folder} holds no metrics.parquet, eval/ or iterations/ with traces and rewards: "
            "name the folder that holds them, such as runs/quickstart, or `.` after a bare `score eval`"
        )
    if metrics:
        check_rewards(metrics_path, evaluated)
    parts = {name: read_problems(path) for name in PROBLEM_FILES if (path := folder / f"{name}.parquet").exists()}
    return RunFolder(
        settings=read_settings(folder / "config.json"),
        metrics=metrics,
        comparisons=[row for row in rows if MINUS in row["policy"]],
        curve=curve,
        problems={problem.problem_id: problem for part in parts.values() for problem in part},
        problem_counts={name: len(part) for name, part in parts.items()},
        evaluated=evaluated,
        updates=updates,
    )


def read_settings(path: Path) -> dict[str, Any]:
    """The settings a run was started with; none where the file is not there.

    Raises:
        UserError: the file holds something else.
    """
    if not path.exists():
        return {}
    try:
        found = json.loads(path.read_text())
    except ValueError as error:
        raise UserError(f"{path} is not JSON ({error}): restore it, or delete it to report without settings") from None
    if not isinstance(found, dict):
        raise UserError(f"{path} holds no table of settings: restore it, or delete it to report without settings")
    return found


def read_curve(folder: Path) -> list[dict[str, Any]]:
    """The whole curve, or, before the run has ended, what its updates logged so far."""
    whole = folder / "train_metrics.parquet"
    paths = [whole] if whole.exists() else sorted((folder / "iterations").glob("[0-9]*/metrics.parquet"), key=_number)
    return [row for path in paths for row in read_table(path, TRAIN_METRICS).to_pylist()]


def evaluated_sources(folder: Path, policies: list[str]) -> Iterator[Source]:
    """Policies in the order of metrics.parquet, sampled before greedy; then any others."""
    found: defaultdict[str, dict[str, Path]] = defaultdict(dict)
    for path in sorted(folder.glob(f"*{TRACES_SUFFIX}")):
        policy, _, decoding = path.name.removesuffix(TRACES_SUFFIX).rpartition("-")
        if decoding != VOTES:
            found[policy or decoding][decoding] = path
    ranks = {policy: rank for rank, policy in enumerate(policies)}
    for policy in sorted(found, key=lambda name: (ranks.get(name, len(ranks)), name)):
        for decoding, traces in sorted(found[policy].items(), reverse=True):
            key = traces.name.removesuffix(TRACES_SUFFIX)
            rewards = folder / f"{key}{REWARDS_SUFFIX}"
            if rewards.exists():
                yield Source(key, f"{policy}, {decoding}", policy, decoding, traces, rewards)


def _updates(folder: Path, stages: dict[int, str]) -> Iterator[Source]:
    for path in sorted((folder / "iterations").glob("[0-9]*/traces.parquet"), key=_number):
        rewards, number = path.parent / "rewards.parquet", _number(path)
        if rewards.exists():
            stage = stages.get(number)
            title = f"update {number}" + (f" ({stage})" if stage else "")
            yield Source(f"update-{number:04d}", title, "update", None, path, rewards)


def _number(path: Path) -> int:
    return int(path.parent.name) if path.parent.name.isdecimal() else -1


def check_rewards(metrics: Path, evaluated: list[Source]) -> None:
    """Make sure that the tables and the figures speak of the same traces.

    Raises:
        UserError: rewards that metrics.parquet was not made of.
    """
    footer = read_footer(metrics, METRICS)
    for source in evaluated:
        recorded = footer.inputs.get(f"{source.key}-rewards") if footer else None
        if recorded is not None and recorded != file_sha256(source.rewards):
            raise UserError(
                f"{source.rewards} is not what {metrics} was made of: evaluate again, or delete {metrics} to report "
                "without it"
            )
