"""Traces and verdicts as they stand in their tables: read with the checks that one row's lists agree."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from score_cli.errors import UserError
from score_cli.tables.parquet import (
    REWARDS,
    TRACE_COLUMNS,
    TRACES,
    Table,
    has_column,
    iterate_batches,
    read_footer,
    traces_with,
)
from score_cli.tables.provenance import Footer, file_sha256
from score_cli.tables.records import ROLES, Trace, Verdict
from score_cli.tables.schemas import UNGRADED, UNSCORED, VERDICTS


def rewards_beside(traces: Path) -> Path:
    """Where the rewards of a traces file are looked for: `x-traces.parquet` has `x-rewards.parquet`, `x.parquet` has
    `x.rewards.parquet`."""
    if "traces" in traces.name:
        return traces.with_name(traces.name.replace("traces", "rewards"))
    return traces.with_name(f"{traces.stem}.rewards{traces.suffix}")


def iterate_traces(path: Path, *, rows: int = 1024) -> Iterator[list[Trace]]:
    """Yield traces in pieces of at most `rows`.

    Raises:
        UserError: as `tables.parquet.iterate_batches`, or a row's lists disagree in length or hold NaN.
    """
    start = 0
    for batch in iterate_batches(path, traces_table(path), rows=rows):
        yield [_trace(row, start + index, path) for index, row in enumerate(_rows(batch))]
        start += batch.num_rows


def traces_table(path: Path) -> Table:
    """The kind of traces table that a file is: with the columns beside the usual ones; errors as `iterate_traces`."""
    return traces_with(*(column.name for column in TRACE_COLUMNS if has_column(path, TRACES, column.name)))


def read_traces(path: Path) -> list[Trace]:
    """All traces; errors as `iterate_traces`."""
    return [trace for part in iterate_traces(path) for trace in part]


def iterate_verdicts(path: Path, *, rows: int = 1024) -> Iterator[list[Verdict]]:
    """Yield rewards in pieces of at most `rows`.

    Raises:
        UserError: as `tables.parquet.iterate_batches`, or a row's lists disagree or hold what no verifier gives.
    """
    start = 0
    for batch in iterate_batches(path, REWARDS, rows=rows):
        yield [_reward(row, start + index, path) for index, row in enumerate(batch.to_pylist())]
        start += batch.num_rows


def read_verdicts(path: Path) -> list[Verdict]:
    """All rewards; errors as `iterate_verdicts`."""
    return [reward for part in iterate_verdicts(path) for reward in part]


@dataclass(frozen=True)
class GradedTraces:
    """Traces and their verdicts, row by row, and where the traces come from."""

    traces: list[Trace]
    verdicts: list[Verdict]
    footer: Footer | None


def read_graded(traces: Path, rewards: Path, *, allow_foreign: bool = True) -> GradedTraces:
    """Traces and the rewards of exactly these traces: the one place that sees whether two tables belong together.

    Args:
        allow_foreign: take tables that carry no footer, of which nobody can say where they come from.
    Raises:
        UserError: a table cannot be read, the rewards were made from other traces, or a footer is missing.
    """
    origin, judged = read_footer(traces, TRACES), read_footer(rewards, REWARDS)
    for path, footer in ((traces, origin), (rewards, judged)):
        if footer is None and not allow_foreign:
            raise UserError(
                f"{path} was not made by score, so nothing says which policy sampled it: "
                "pass --allow-foreign to train on it"
            )
    if judged is not None and judged.inputs.get("traces") not in (None, file_sha256(traces)):
        raise UserError(f"{rewards} was made from other traces than {traces}: run `score verify` again on these traces")
    rows, grades = read_traces(traces), read_verdicts(rewards)
    check_pairs(rows, grades, traces, rewards)
    return GradedTraces(rows, grades, origin)


def check_pairs(traces: list[Trace], rewards: list[Verdict], traces_path: Path, rewards_path: Path) -> None:
    """Check that rewards stand row by row for the traces.

    Raises:
        UserError: another number of rows, another order, or another number of attempts.
    """
    again = "run `score verify` again on these traces"
    if len(traces) != len(rewards):
        raise UserError(f"{rewards_path} has {len(rewards)} rows, {traces_path} {len(traces)}: {again}")
    for row, (trace, reward) in enumerate(zip(traces, rewards, strict=True)):
        ours, theirs = (trace.problem_id, trace.sample_index), (reward.problem_id, reward.sample_index)
        if ours != theirs:
            raise UserError(f"row {row} of {rewards_path} is {theirs}, of {traces_path} {ours}: {again}")
        if not len(trace.attempts) == len(reward.verdicts) == len(reward.rewards):
            raise UserError(
                f"row {row} of {rewards_path} grades {len(reward.verdicts)} attempts, of {traces_path} has "
                f"{len(trace.attempts)}: {again}"
            )


def trace_row(trace: Trace) -> dict[str, Any]:
    """A trace as a row of its table; what a table has only where it is needed is left out where it is None."""
    apart = {column.name for column in TRACE_COLUMNS}
    return {name: value for name, value in vars(trace).items() if value is not None or name not in apart}


def verdict_row(verdict: Verdict) -> dict[str, Any]:
    """A verdict as a row of the rewards table."""
    return dict(vars(verdict))


def _rows(batch: pa.Table) -> Iterator[dict[str, Any]]:
    """Rows with the token columns as arrays: Python integers would cost thirty bytes a token."""
    arrays = {name: batch.column(name) for name in ("token_ids", "attempt_ids", "logprobs")}
    plain = batch.drop_columns(list(arrays)).to_pylist()
    for index, row in enumerate(plain):
        yield row | {name: column[index].values.to_numpy() for name, column in arrays.items()}


def _reward(row: dict[str, Any], number: int, path: Path) -> Verdict:
    reward = Verdict(**row)
    again = "run `score verify` again"
    if not len(reward.answers) == len(reward.verdicts) == len(reward.rewards):
        raise UserError(f"{path}, row {number}: answers, verdicts and rewards differ in length: {again}")
    for verdict, value in zip(reward.verdicts, reward.rewards, strict=True):
        if verdict not in VERDICTS:
            raise UserError(f"{path}, row {number}: verdict {verdict}, expected one of {', '.join(VERDICTS)}: {again}")
        if (value is None) != (verdict in (UNSCORED, UNGRADED)) or (value is not None and not 0.0 <= value <= 1.0):
            raise UserError(
                f"{path}, row {number}: reward {value} for {verdict}, expected 0 to 1, and none where unscored: {again}"
            )
    return reward


def _trace(row: dict[str, Any], number: int, path: Path) -> Trace:
    trace = Trace(**row)
    lengths = {
        "token_ids": len(trace.token_ids),
        "attempt_ids": len(trace.attempt_ids),
        "logprobs": len(trace.logprobs),
    }
    if len(set(lengths.values())) != 1:
        raise UserError(f"{path}, row {number}: lists of one length expected, got {lengths}: sample again")
    if len(trace.attempts) != len(trace.finish_reasons) or not trace.attempts:
        raise UserError(
            f"{path}, row {number}: {len(trace.attempts)} attempts and {len(trace.finish_reasons)} finish reasons, "
            "expected one reason an attempt and at least one attempt: sample again"
        )
    roles = trace.turn_roles
    if len(roles) != len(trace.attempts) or not set(roles) <= set(ROLES):
        raise UserError(
            f"{path}, row {number}: roles {', '.join(roles)} of {len(trace.attempts)} attempts, expected one of "
            f"{', '.join(ROLES)} for each: sample again"
        )
    if not np.isfinite(trace.logprobs).all():
        raise UserError(f"{path}, row {number}: a logprob is not finite, expected nats of 0 or less: sample again")
    owners = np.unique(trace.attempt_ids)
    if len(owners) and (owners[0] < 0 or owners[-1] > len(trace.attempts)):
        raise UserError(
            f"{path}, row {number}: attempt_ids from {owners[0]} to {owners[-1]}, expected 0 to {len(trace.attempts)}: "
            "sample again"
        )
    return trace
