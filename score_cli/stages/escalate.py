"""Two traces tables and what one trusts of its answers, to accuracy against the share handed over."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from itertools import chain
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
from score_cli.tables.traces import iterate_graded, iterate_traces

ROWS = 4096
# More than any problem has: what a problem's number is multiplied by, for keys of its traces.
SAMPLES = 2**32


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
    numbers: dict[str, int] = {}
    first = pl.concat(_firsts(own, numbers, claims=signals is None))
    if signals is not None:
        first = first.with_columns(trust=_scores(signals, own[0]))
    last = pl.concat(_lasts(other, numbers)).sort("key")
    places = _partners(first, last, list(numbers), own[0], other[0])
    cases = first.select("problem_id", "trust", "own").hstack([last["other"].gather(places)]).drop_nulls()
    del first, last, places  # gigabytes, of ten million traces
    if cases.is_empty():
        raise UserError(f"no trace of {own[0]} was scored there and in {other[0]}: nothing can be handed over")
    return [
        {"policy": policy, "decoding": decoding, "name": f"escalated@{to}[{name}]"} | asdict(found)
        for name, found in escalation_curve(cases).items()
    ]


def _keyed(frame: pl.DataFrame, numbers: dict[str, int]) -> dict[str, pl.Expr]:
    """The number of a trace's problem in place of its name, and the trace's own: ten million names take too much."""
    names = frame["problem_id"].unique(maintain_order=True).to_list()
    own = {name: numbers.setdefault(name, len(numbers)) for name in names}
    problem = pl.col("problem_id").replace_strict(own, return_dtype=pl.UInt32)
    return {"problem_id": problem, "key": problem.cast(pl.UInt64) * SAMPLES + pl.col("sample_index")}


def _firsts(tables: tuple[Path, Path], numbers: dict[str, int], *, claims: bool) -> Iterator[pl.DataFrame]:
    """Of each trace its key, the hash of its first `text`, whether its first solve is right (1 or 0), and `trust`.

    Args:
        claims: whether trust is what a trace claims of its first solve; else it is null.
    """
    text = pl.col("attempts").list.first().hash()
    for piece in iterate_graded(*tables, rows=ROWS):
        frame = piece.frame()
        right = by_solve(frame).select(own=accuracy(1).cast(pl.Int8))
        trust = _claimed(frame, tables[0]) if claims else pl.lit(None)
        yield frame.select(**_keyed(frame, numbers), text=text, trust=trust).hstack(right)


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


def _lasts(tables: tuple[Path, Path], numbers: dict[str, int]) -> Iterator[pl.DataFrame]:
    """Of each trace its key, the hash of its first text if that was given, and whether its last solve is right."""
    right = pl.when(pl.col("rewards").list.last().is_not_null()).then(pl.col("verdicts").list.last() == CORRECT)
    given = pl.when(pl.col("offline_attempts") > 0).then(pl.col("attempts").list.first().hash())
    for piece in iterate_graded(*tables, rows=ROWS):
        frame = piece.frame()
        key = _keyed(frame, numbers)["key"]
        yield frame.select(key=key, given=given).hstack(by_solve(frame).select(other=right.cast(pl.Int8)))


def _scores(signals: Path, traces: Path) -> pl.Series:
    """The score of each first solve; below all others where there is no answer."""
    found = read_signals(signals, chain.from_iterable(iterate_traces(traces)), traces)
    scores = (-1.0 if signal.scores[0] is None else signal.scores[0] for signal in found)
    return pl.Series(np.fromiter(scores, np.float64, len(found)))


def _partners(first: pl.DataFrame, last: pl.DataFrame, names: Sequence[str], traces: Path, partners: Path) -> pl.Series:
    """Of each trace the row of its partner, of which it must have one; `last` is sorted by key.

    Raises:
        UserError: a trace has none, or two; or its first attempt is not the one that its partner was given.
    """

    def told(key: int) -> str:
        return f"sample {key % SAMPLES} of problem {names[key // SAMPLES]}"

    for path, keys in ((traces, first["key"].sort()), (partners, last["key"])):
        twice = keys.filter(keys == keys.shift(1))
        if len(twice):
            raise UserError(f"{path} holds two traces of {told(twice[0])}: keep one of them")
    places = last["key"].search_sorted(first["key"]).clip(upper_bound=last.height - 1)
    lacking = first["key"].filter(last["key"].gather(places) != first["key"])
    if len(lacking):
        raise UserError(
            f"{partners} lacks {told(lacking[0])}, which {traces} has: "
            "sample both from the same problems, with as many samples"
        )
    strange = first["key"].filter(last["given"].gather(places) != first["text"])
    if len(strange):
        raise UserError(
            f"{partners} goes on from another first attempt at {told(strange[0])}, than {traces} has: "
            f"sample it again with --first-attempts {traces}"
        )
    return places
