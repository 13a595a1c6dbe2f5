"""Signals as they stand in their table: read with the checks that they are of these traces."""

import math
from collections.abc import Iterable, Sequence
from pathlib import Path

import pyarrow as pa

from score_cli.errors import UserError
from score_cli.tables.parquet import SIGNALS, TRACES, count_rows, iterate_batches, read_footer
from score_cli.tables.provenance import file_sha256
from score_cli.tables.records import REVISION, SOLVE, Signal, Trace
from score_cli.tables.traces import Rows


def read_signals(path: Path, traces: Iterable[Trace], traces_path: Path) -> Sequence[Signal]:
    """The signals of exactly these traces.

    Raises:
        UserError: the table cannot be read, was made from other traces, or its rows are not theirs.
    """
    footer = read_footer(path, SIGNALS)
    again = "run `score signal` again on these traces"
    if footer is not None and footer.inputs.get("traces") not in (None, file_sha256(traces_path)):
        raise UserError(f"{path} was made from other traces than {traces_path}: {again}")
    found = Rows(_signals, iterate_batches(path, SIGNALS))
    if len(found) != (count := count_rows(traces_path, TRACES)):
        raise UserError(f"{path} has {len(found)} rows, {traces_path} {count}: {again}")
    names = {signal.name for signal in found}
    if len(names) > 1:
        raise UserError(f"{path} holds {', '.join(sorted(names))}, expected one signal a file: {again}")
    for row, (signal, trace) in enumerate(zip(found, traces, strict=True)):
        _check_row(signal, trace, f"row {row} of {path}", again)
    return found


def _signals(piece: pa.Table) -> list[Signal]:
    return [Signal(**row) for row in piece.to_pylist()]


def _check_row(signal: Signal, trace: Trace, row: str, again: str) -> None:
    ours, theirs = (trace.problem_id, trace.sample_index), (signal.problem_id, signal.sample_index)
    if ours != theirs:
        raise UserError(f"{row} is {theirs}, of the traces {ours}: {again}")
    turns = len(trace.attempts)
    if not turns == len(signal.scores) == len(signal.accepted) == len(signal.values):
        raise UserError(f"{row} speaks of {len(signal.values)} turns, its trace has {turns}: {again}")
    for role, value in zip(trace.turn_roles, signal.values, strict=True):
        needed = role == SOLVE and signal.name != REVISION
        if (needed and value is None) or (value is not None and not math.isfinite(value)):
            raise UserError(f"{row} gives a {role} the value {value}, expected a finite number: {again}")
