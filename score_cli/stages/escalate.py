"""Two traces tables and what one trusts of its answers, to accuracy against the share handed over."""

from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import numpy as np
import polars as pl

from score_cli.errors import UserError
from score_cli.evaluation.escalation import escalation_curve
from score_cli.evaluation.evaluate import Row
from score_cli.metrics import accuracy, by_solve
from score_cli.tables.records import SOLVE
from score_cli.tables.row_checks import KEY
from score_cli.tables.schemas import CORRECT, UNGRADED, UNSCORED
from score_cli.tables.signals import read_signals
from score_cli.tables.traces import iterate_graded, read_traces

ROWS = 4096


def escalation_rows(
    own: tuple[Path, Path],
    other: tuple[Path, Path],
    signals: Path | None,
    *,
    policy: str,
    to: str,
    decoding: str,
) -> list[Row]:
    """Rows of the metrics table: the first solves of one policy, with the last ones of another in place of some.

    Args:
        own, other: traces and their rewards, joined by problem and sample.
        signals: of `own`; the lowest score of a first solve goes first. Left out, the claim on it: one that it is
            incorrect, or that cannot be read, goes first.
    Raises:
        UserError: the tables do not belong together, or nothing says which answers are trusted.
    """
    first = pl.concat(_firsts(own, claims=signals is None))
    if signals is not None:
        first = first.with_columns(trust=_scores(signals, own[0]))
    pairs = first.join(_lasts(other), on=KEY, how="left", maintain_order="left")
    _check_partners(pairs, own[0], other[0])
    cases = pairs.select("problem_id", "trust", "own", "other").drop_nulls()
    if cases.is_empty():
        raise UserError(f"no trace of {own[0]} was scored there and in {other[0]}: nothing can be handed over")
    return [
        {"policy": policy, "decoding": decoding, "name": f"escalated@{to}[{name}]"} | asdict(found)
        for name, found in escalation_curve(cases).items()
    ]


def _firsts(tables: tuple[Path, Path], *, claims: bool) -> Iterator[pl.DataFrame]:
    """Of each trace its key, the hash of its first `text`, whether its first solve is right (1 or 0), and `trust`.

    Args:
        claims: whether trust is what a trace claims of its first solve; else it is null.
    """
    text = pl.col("attempts").list.first().hash()
    for piece in iterate_graded(*tables, rows=ROWS):
        frame = piece.frame()
        right = by_solve(frame).select(own=accuracy(1).cast(pl.Int8))
        trust = _claimed(frame, tables[0]) if claims else pl.lit(None)
        yield frame.select(*KEY, text=text, trust=trust).hstack(right)


def _claimed(frame: pl.DataFrame, traces: Path) -> pl.Expr:
    """1 where the first solve is claimed to be correct, else 0; null where nobody could tell what it is."""
    role = pl.col("roles").list.get(1, null_on_oob=True) if "roles" in frame.columns else pl.lit(None, pl.String)
    claim = pl.col("verdicts").list.get(1, null_on_oob=True)
    silent = frame.filter(role.is_null() | (role == SOLVE) | (claim == UNGRADED))
    if silent.height:
        problem, sample = silent.select(KEY).row(0)
        raise UserError(
            f"{traces} makes no claim on sample {sample} of problem {problem}: name --signals of its solves, which "
            "`score signal` makes"
        )
    readable = pl.col("answers").list.get(1, null_on_oob=True).is_not_null()
    says_correct = readable & ((claim == CORRECT) == (accuracy(1) == 1))
    return pl.when(accuracy(1).is_not_null() & (claim != UNSCORED)).then(says_correct.cast(pl.Float64))


def _lasts(tables: tuple[Path, Path]) -> pl.DataFrame:
    """Of each trace its key, the hash of its first text if that was given, and whether its last solve is right."""
    right = pl.when(pl.col("rewards").list.last().is_not_null()).then(pl.col("verdicts").list.last() == CORRECT)
    given = pl.when(pl.col("offline_attempts") > 0).then(pl.col("attempts").list.first().hash())
    parts = [
        by_solve(piece.frame()).select(*KEY, other=right.cast(pl.Int8)).hstack(piece.frame().select(given=given))
        for piece in iterate_graded(*tables, rows=ROWS)
    ]
    return pl.concat(parts).unique(KEY, keep="last").with_columns(found=True)


def _scores(signals: Path, traces: Path) -> pl.Series:
    """The score of each first solve; below all others where there is no answer."""
    found = read_signals(signals, read_traces(traces), traces)
    scores = (-1.0 if signal.scores[0] is None else signal.scores[0] for signal in found)
    return pl.Series(np.fromiter(scores, np.float64, len(found)))


def _check_partners(pairs: pl.DataFrame, traces: Path, partners: Path) -> None:
    """Every trace must have its partner; first attempts that one was given must be those that are handed over."""
    lacking = pairs.filter(pl.col("found").is_null())
    if lacking.height:
        problem, sample = lacking.select(KEY).row(0)
        raise UserError(
            f"{partners} lacks sample {sample} of problem {problem}, which {traces} has: "
            "sample both from the same problems, with as many samples"
        )
    strange = pairs.filter(pl.col("given") != pl.col("text"))
    if strange.height:
        problem, sample = strange.select(KEY).row(0)
        raise UserError(
            f"{partners} goes on from another first attempt at problem {problem}, sample "
            f"{sample}, than {traces} has: sample it again with --first-attempts {traces}"
        )
