"""Traces and verdicts as they stand in their tables: read with the checks that one row's lists agree."""

import bisect
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from sys import intern
from typing import Any, NamedTuple, TypeVar, overload

import polars as pl
import pyarrow as pa

from score_cli.errors import UserError
from score_cli.tables.parquet import (
    REWARDS,
    ROWS_PER_BATCH,
    TRACE_COLUMNS,
    TRACES,
    Table,
    count_rows,
    has_column,
    iterate_batches,
    read_footer,
    traces_with,
)
from score_cli.tables.pieces import Pieces
from score_cli.tables.provenance import Footer, file_sha256
from score_cli.tables.records import Trace, Verdict
from score_cli.tables.row_checks import (
    KEY,
    TOKEN_COLUMNS,
    RowCheck,
    as_frame,
    check_rows,
    pair_checks,
    trace_checks,
    verdict_checks,
)

Record = TypeVar("Record")


def rewards_beside(traces: Path) -> Path:
    """Where the rewards of a traces file are looked for: `x-traces.parquet` has `x-rewards.parquet`, `x.parquet` has
    `x.rewards.parquet`."""
    if "traces" in traces.name:
        return traces.with_name(traces.name.replace("traces", "rewards"))
    return traces.with_name(f"{traces.stem}.rewards{traces.suffix}")


def iterate_traces(path: Path, *, rows: int = ROWS_PER_BATCH) -> Iterator[list[Trace]]:
    """Yield traces in pieces of at most `rows`.

    Raises:
        UserError: as `tables.parquet.iterate_batches`, or a row's lists disagree in length or hold NaN.
    """
    for piece in _trace_pieces(path, rows):
        yield _traces(piece)


def traces_table(path: Path) -> Table:
    """The kind of traces table that a file is: with the columns beside the usual ones; errors as `iterate_traces`."""
    return traces_with(*(column.name for column in TRACE_COLUMNS if has_column(path, TRACES, column.name)))


def read_traces(path: Path) -> Sequence[Trace]:
    """All traces; errors as `iterate_traces`."""
    return Rows(_traces, _trace_pieces(path))


def read_verdicts(path: Path) -> Sequence[Verdict]:
    """All rewards.

    Raises:
        UserError: as `tables.parquet.iterate_batches`, or a row's lists disagree or hold what no verifier gives.
    """
    return Rows(_verdicts, _verdict_pieces(path))


def iterate_verdicts(path: Path, *, rows: int = ROWS_PER_BATCH) -> Iterator[list[Verdict]]:
    """Yield rewards in pieces of at most `rows`; errors as `read_verdicts`."""
    for piece in _verdict_pieces(path, rows):
        yield _verdicts(piece)


class GradedPiece(NamedTuple):
    """Some rows of a traces table and their rewards, as columns."""

    traces: pa.Table
    rewards: pa.Table

    def records(self) -> Iterator[tuple[Trace, Verdict]]:
        """Trace by trace."""
        return zip(_traces(self.traces), _verdicts(self.rewards), strict=True)

    def record(self, row: int) -> tuple[Trace, Verdict]:
        """One of them."""
        (found,) = GradedPiece(self.traces.slice(row, 1), self.rewards.slice(row, 1)).records()
        return found

    def frame(self) -> pl.DataFrame:
        """The columns of both, those that they share but once."""
        rewards = as_frame(self.rewards)
        return as_frame(self.traces).hstack(rewards.rename({name: f"{name}_of_rewards" for name in KEY}))


def graded_piece(traces: Sequence[Trace], verdicts: Sequence[Verdict]) -> GradedPiece:
    """Traces in memory and their verdicts as columns, without the token ids, of which no measure asks."""
    lists = [
        {"token_ids": [], "attempt_ids": trace.attempt_ids.tolist(), "logprobs": trace.logprobs.tolist()}
        for trace in traces
    ]
    rows = [trace_row(trace) | tokens for trace, tokens in zip(traces, lists, strict=True)]
    if any(trace.roles is not None for trace in traces):
        rows = [row | {"roles": trace.turn_roles} for row, trace in zip(rows, traces, strict=True)]
    table = traces_with(*(column.name for column in TRACE_COLUMNS if any(column.name in row for row in rows)))
    return GradedPiece(
        pa.Table.from_pylist(rows, schema=table.schema),
        pa.Table.from_pylist([verdict_row(verdict) for verdict in verdicts], schema=REWARDS.schema),
    )


def iterate_graded(traces: Path, rewards: Path, *, rows: int = ROWS_PER_BATCH) -> Iterator[GradedPiece]:
    """Yield traces with their rewards in pieces of at most `rows`, which is all that is in memory.

    Raises:
        UserError: as `iterate_traces` and `read_verdicts`, or the rewards do not stand row by row for the traces.
    """
    sizes = count_rows(traces, TRACES), count_rows(rewards, REWARDS)
    if sizes[0] != sizes[1]:
        raise UserError(f"{rewards} has {sizes[1]} rows, {traces} {sizes[0]}: run `score verify` again on these traces")
    start = 0
    for pair in zip(_trace_pieces(traces, rows), _verdict_pieces(rewards, rows), strict=True):
        piece = GradedPiece(*pair)
        check_rows(piece.frame(), pair_checks(rewards), traces, start)
        start += piece.traces.num_rows
        yield piece


@dataclass(frozen=True)
class GradedTraces:
    """Traces and their verdicts, row by row, and where the traces come from."""

    traces: Sequence[Trace]
    verdicts: Sequence[Verdict]
    footer: Footer | None


def read_pair(traces: Path, rewards: Path) -> tuple[Sequence[Trace], Sequence[Verdict]]:
    """All traces and their rewards, row by row; errors as `iterate_graded`."""
    rows, verdicts = Rows(_traces), Rows(_verdicts)
    for piece in iterate_graded(traces, rewards):
        rows.append(piece.traces)
        verdicts.append(piece.rewards)
    return rows, verdicts


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
    return GradedTraces(*read_pair(traces, rewards), origin)


def newest_verdicts(verdicts: Iterable[Verdict]) -> dict[tuple[str, int], str]:
    """The verdict of the newest solve of each trace; every name is held once, for there may be millions."""
    return {(intern(verdict.problem_id), verdict.sample_index): intern(verdict.verdicts[-1]) for verdict in verdicts}


def trace_row(trace: Trace) -> dict[str, Any]:
    """A trace as a row of its table; what a table has only where it is needed is left out where it is None."""
    apart = {column.name for column in TRACE_COLUMNS}
    return {name: value for name, value in vars(trace).items() if value is not None or name not in apart}


def verdict_row(verdict: Verdict) -> dict[str, Any]:
    """A verdict as a row of the rewards table."""
    return dict(vars(verdict))


class Rows(Sequence[Record]):
    """The records of a table, each made when it is asked for: a token takes nine bytes in columns, ninety in records.

    Args:
        make: the records of a piece.
        pieces: of the table; more may be appended.
    """

    def __init__(self, make: Callable[[pa.Table], list[Record]], pieces: Iterable[pa.Table] = ()) -> None:
        self._make = make
        self._pieces = Pieces()
        self._ends: list[int] = []
        for piece in pieces:
            self.append(piece)

    def append(self, piece: pa.Table) -> None:
        """Take the records of one more piece."""
        self._pieces.append(piece)
        self._ends.append(len(self) + piece.num_rows)

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def __iter__(self) -> Iterator[Record]:
        for piece in self._pieces:
            yield from self._make(piece)

    @overload
    def __getitem__(self, index: int) -> Record: ...

    @overload
    def __getitem__(self, index: slice) -> list[Record]: ...

    def __getitem__(self, index: int | slice) -> Record | list[Record]:
        places = range(len(self))[index]
        return self._record(places) if isinstance(places, int) else [self._record(place) for place in places]

    def _record(self, place: int) -> Record:
        number = bisect.bisect_right(self._ends, place)
        before = self._ends[number - 1] if number else 0
        return self._make(self._pieces.row(number, place - before))[0]


def _trace_pieces(path: Path, rows: int = ROWS_PER_BATCH) -> Iterator[pa.Table]:
    table = traces_table(path)
    return _checked(path, table, trace_checks(table.schema.names), rows)


def _verdict_pieces(path: Path, rows: int = ROWS_PER_BATCH) -> Iterator[pa.Table]:
    return _checked(path, REWARDS, verdict_checks(), rows)


def _checked(path: Path, table: Table, checks: Sequence[RowCheck], rows: int) -> Iterator[pa.Table]:
    start = 0
    for piece in iterate_batches(path, table, rows=rows):
        check_rows(as_frame(piece), checks, path, start)
        start += piece.num_rows
        yield piece


def _traces(piece: pa.Table) -> list[Trace]:
    columns = {
        name: _arrays(piece.column(name)) if name in TOKEN_COLUMNS else piece.column(name).to_pylist()
        for name in piece.column_names
    }
    return [Trace(**dict(zip(columns, row, strict=True))) for row in zip(*columns.values(), strict=True)]


def _verdicts(piece: pa.Table) -> list[Verdict]:
    return [
        Verdict(*row) for row in zip(*(piece.column(name).to_pylist() for name in REWARDS.schema.names), strict=True)
    ]


def _arrays(column: pa.ChunkedArray) -> list[Any]:
    """The lists of a column as arrays over its own memory."""
    lists = column.combine_chunks()
    values, bounds = lists.values.to_numpy(), lists.offsets.to_pylist()
    return [values[start:end] for start, end in pairwise(bounds)]
