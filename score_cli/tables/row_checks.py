"""What the rows of traces and rewards must be beyond the kinds of their columns, looked at a whole piece at a time."""

from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import polars as pl
import pyarrow as pa

from score_cli.errors import UserError
from score_cli.tables.records import ROLES
from score_cli.tables.schemas import UNGRADED, UNSCORED, VERDICTS

# What tells the traces of a table apart.
KEY = ("problem_id", "sample_index")
TOKEN_COLUMNS = ("token_ids", "attempt_ids", "logprobs")

Row = dict[str, Any]


class RowCheck(NamedTuple):
    """Where a row is wrong, and what is said of the first such row."""

    wrong: pl.Expr
    message: Callable[[Row], str]


def trace_checks(columns: Collection[str]) -> list[RowCheck]:
    """What the lists of a trace must agree in; `columns` are those of its table."""
    attempts, again = pl.col("attempts").list.len(), "sample again"
    checks = [
        RowCheck(
            _lengths_differ(*TOKEN_COLUMNS),
            lambda row: (
                f"lists of one length expected, got { ({name: len(row[name]) for name in TOKEN_COLUMNS}) }: {again}"
            ),
        ),
        RowCheck(
            _lengths_differ("attempts", "finish_reasons") | (attempts == 0),
            lambda row: (
                f"{len(row['attempts'])} attempts and {len(row['finish_reasons'])} finish reasons, expected one reason "
                f"an attempt and at least one attempt: {again}"
            ),
        ),
        # A sum is finite where all that it is of is finite.
        RowCheck(
            ~pl.col("logprobs").list.sum().is_finite(),
            lambda _: f"a logprob is not finite, expected nats of 0 or less: {again}",
        ),
        RowCheck(
            (pl.col("attempt_ids").list.min() < 0) | (pl.col("attempt_ids").list.max() > attempts),
            lambda row: (
                f"attempt_ids from {min(row['attempt_ids'])} to {max(row['attempt_ids'])}, expected 0 to "
                f"{len(row['attempts'])}: {again}"
            ),
        ),
    ]
    if "roles" in columns:
        checks.append(
            RowCheck(
                _lengths_differ("attempts", "roles") | ~_all_among("roles", ROLES),
                lambda row: (
                    f"roles {', '.join(row['roles'])} of {len(row['attempts'])} attempts, expected one of "
                    f"{', '.join(ROLES)} for each: {again}"
                ),
            )
        )
    return checks


def verdict_checks() -> list[RowCheck]:
    """What a verifier says of the attempts of a trace, and nothing else."""
    unscored = pl.col("verdicts").list.eval(pl.element().is_in([UNSCORED, UNGRADED]))
    return [
        RowCheck(
            _lengths_differ("answers", "verdicts", "rewards"),
            lambda _: "answers, verdicts and rewards differ in length: run `score verify` again",
        ),
        RowCheck(
            ~_all_among("verdicts", VERDICTS)
            | (pl.col("rewards").list.eval(pl.element().is_null()) != unscored)
            | ~pl.col("rewards").list.eval(pl.element().is_between(0, 1)).list.all(),
            _wrong_verdict,
        ),
    ]


def pair_checks(rewards: Path) -> list[RowCheck]:
    """That rewards stand row by row for the traces beside them; see `verdict_columns`."""
    again = "run `score verify` again on these traces"
    return [
        RowCheck(
            pl.any_horizontal(pl.col(name) != pl.col(f"{name}_of_rewards") for name in KEY),
            lambda row: (
                f"{tuple(row[name] for name in KEY)}, of {rewards} "
                f"{tuple(row[f'{name}_of_rewards'] for name in KEY)}: {again}"
            ),
        ),
        RowCheck(
            _lengths_differ("attempts", "verdicts"),
            lambda row: f"{len(row['attempts'])} attempts, of which {rewards} grades {len(row['verdicts'])}: {again}",
        ),
    ]


def check_rows(frame: pl.DataFrame, checks: Sequence[RowCheck], path: Path, start: int) -> None:
    """Refuse a piece of a table that begins at row `start`.

    Raises:
        UserError: a row is wrong; the first is named.
    """
    numbered = [pl.when(check.wrong).then(pl.lit(number)) for number, check in enumerate(checks)]
    wrong = frame.select(pl.coalesce(numbered).alias("check")).with_row_index("row").drop_nulls()
    if wrong.height:
        row, number = wrong.row(0)
        raise UserError(f"{path}, row {start + row}: {checks[number].message(frame.row(row, named=True))}")


def as_frame(batch: pa.Table) -> pl.DataFrame:
    """The same columns, for polars."""
    frame = pl.from_arrow(batch)
    assert isinstance(frame, pl.DataFrame)
    return frame


def _lengths_differ(first: str, *others: str) -> pl.Expr:
    return pl.any_horizontal(pl.col(name).list.len() != pl.col(first).list.len() for name in others)


def _all_among(name: str, known: Sequence[str]) -> pl.Expr:
    return pl.col(name).list.eval(pl.element().is_in(list(known))).list.all()


def _wrong_verdict(row: Row) -> str:
    again = "run `score verify` again"
    strange = next((verdict for verdict in row["verdicts"] if verdict not in VERDICTS), None)
    if strange is not None:
        return f"verdict {strange}, expected one of {', '.join(VERDICTS)}: {again}"
    verdict, value = next(
        (verdict, value)
        for verdict, value in zip(row["verdicts"], row["rewards"], strict=True)
        if (value is None) != (verdict in (UNSCORED, UNGRADED)) or (value is not None and not 0.0 <= value <= 1.0)
    )
    return f"reward {value} for {verdict}, expected 0 to 1, and none where unscored: {again}"
