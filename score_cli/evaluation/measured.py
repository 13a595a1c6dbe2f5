"""Traces and verdicts to sums by problem, in one pass: what is held grows with the problems, not with the traces."""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import polars as pl

from score_cli.metrics import (
    Values,
    accuracy,
    by_solve,
    measure_dialogues,
    measures_of,
    most_attempts,
    sums_of,
)
from score_cli.tables.records import Trace, Verdict
from score_cli.tables.traces import GradedPiece, graded_piece, iterate_graded

# Measure -> of each problem `problem_id`, how many values it has (`count`) and their `sum`.
Measured = dict[str, pl.DataFrame]

ROWS = 4096
BINS = 20
HISTOGRAM = "edit_ratio_hist@"
# Rows of sums that are put aside before they are added up again.
_MOST_ROWS = 100_000


def measure_tables(traces: Path, rewards: Path) -> Measured:
    """Every measure of two tables, which are gone through a piece at a time.

    Raises:
        UserError: the files do not belong together.
    """
    return _measure(iterate_graded(traces, rewards, rows=ROWS))


def measure_traces(traces: Sequence[Trace], verdicts: Sequence[Verdict]) -> Measured:
    """The same of traces in memory, and of their verdicts, row by row."""
    return _measure([graded_piece(traces, verdicts)])


def count_ballots(traces: Path, rewards: Path) -> pl.DataFrame:
    """What was answered: `problem_id`, `attempt`, `answer`, whether that was `right` (1 or 0), and the `count` of it.

    Raises:
        UserError: the files do not belong together.
    """
    return ballots_of(piece.frame() for piece in iterate_graded(traces, rewards, rows=ROWS))


def ballots_of(graded: Iterable[pl.DataFrame]) -> pl.DataFrame:
    """As `count_ballots`; unscored attempts are left out."""
    key = ["problem_id", "attempt", "answer", "right"]

    def parts() -> Iterator[pl.DataFrame]:
        for frame in graded:
            for attempt in (1, 2):
                answer = pl.col("answers").list.get(attempt - 1, null_on_oob=True)
                values = frame.select("problem_id", attempt=attempt, answer=answer, right=accuracy(attempt))
                yield values.drop_nulls("right").group_by(key, maintain_order=True).agg(count=pl.len().cast(pl.Int64))

    return add_up(parts(), key)


def add_up(parts: Iterable[pl.DataFrame], key: Sequence[str]) -> pl.DataFrame:
    """Add rows of one key up over all parts; little more is held than the sums so far.

    The order of additions is that of the parts, so that equal parts give equal bits.
    """
    waiting: list[pl.DataFrame] = []
    most = _MOST_ROWS
    for part in parts:
        waiting.append(part)
        if sum(frame.height for frame in waiting) > most:
            waiting = [_added(waiting, key)]
            most = 2 * waiting[0].height + _MOST_ROWS
    return _added(waiting, key)


def _added(frames: Sequence[pl.DataFrame], key: Sequence[str]) -> pl.DataFrame:
    return pl.concat(frames, how="diagonal").group_by(key, maintain_order=True).agg(pl.all().sum())


def _measure(pieces: Iterable[GradedPiece]) -> Measured:
    attempts, dialogues = 0, dict[str, None]()

    def parts() -> Iterator[pl.DataFrame]:
        nonlocal attempts
        for piece in pieces:
            frame = by_solve(piece.frame())
            attempts = max(attempts, most_attempts(frame))
            yield _sums(frame, attempts)
            for name, values in _dialogues(piece).items():
                dialogues[name] = None
                yield sums_of(values).rename({"count": f"count:{name}", "sum": f"sum:{name}"})

    sums = add_up(parts(), ["problem_id"])
    names = [*measures_of(attempts), *dialogues, *_histograms(attempts)]
    found = {name: sums.select("problem_id", count=f"count:{name}", sum=f"sum:{name}") for name in names}
    return {name: frame for name, frame in found.items() if frame["count"].sum()}


def _sums(frame: pl.DataFrame, attempts: int) -> pl.DataFrame:
    values = frame.select("problem_id", **measures_of(attempts)).with_columns(**_histograms(attempts))
    own = pl.all().exclude("problem_id")
    return values.group_by("problem_id", maintain_order=True).agg(
        own.count().cast(pl.Int64).name.prefix("count:"), own.sum().cast(pl.Float64).name.prefix("sum:")
    )


def _dialogues(piece: GradedPiece) -> dict[str, Values]:
    """What only a script's traces have, trace by trace."""
    if "roles" not in piece.traces.column_names:
        return {}
    traces, verdicts = zip(*piece.records(), strict=True)
    return measure_dialogues(traces, verdicts)


def _histograms(attempts: int) -> dict[str, pl.Expr]:
    """Whether a trace's edit ratio lies in each bin of width 1 / BINS; the last bin holds 1 as well."""
    return {
        f"{HISTOGRAM}t{a}[{b / BINS:.2f},{(b + 1) / BINS:.2f}{']' if b == BINS - 1 else ')'}": (
            (pl.col(f"edit_ratio@t{a}") * BINS).floor().clip(upper_bound=BINS - 1) == b
        )
        for a in range(2, attempts + 1)
        for b in range(BINS)
    }
