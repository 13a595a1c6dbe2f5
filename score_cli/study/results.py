"""What the rows of a study measured: one table of all of it, and means over seeds."""

import math
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from score_cli.evaluation.evaluate import MINUS
from score_cli.evaluation.votes import VOTES
from score_cli.phases import BASE
from score_cli.tables.parquet import METRICS, STUDY, read_table, write_table
from score_cli.tables.provenance import Footer

OWN, BASE_FIRST, MORE, VOTED = "own", "base-first-attempts", "more-attempts", VOTES

Row = dict[str, Any]


class Source(NamedTuple):
    """A metrics table and what it stands for in the study."""

    row: str
    seed: int
    condition: str
    metrics: Path


class Summary(NamedTuple):
    """Mean over seeds and standard deviation between them (divisor n - 1); None with a single seed."""

    mean: float
    spread: float | None


def collect(sources: Sequence[Source], seeds: Sequence[int]) -> list[Row]:
    """Rows of study.parquet: row by row, then seed by seed.

    A row's run measures its base again; that policy is kept in the rows alone that end in it.
    """
    order = list(dict.fromkeys(source.row for source in sources))
    rows = []
    for source in sorted(sources, key=lambda each: (order.index(each.row), seeds.index(each.seed))):
        found = [row for row in read_table(source.metrics, METRICS).to_pylist() if MINUS not in row["policy"]]
        if any(row["policy"] != BASE for row in found):
            found = [row for row in found if row["policy"] != BASE]
        if source.condition == VOTED:
            found = [row for row in found if row["name"].startswith("majority@")]
        key = {"row": source.row, "seed": source.seed, "condition": source.condition}
        rows += [key | row for row in found]
    return rows


def write_study(path: Path, rows: Sequence[Row], settings: Mapping[str, Any]) -> None:
    """Write study.parquet; its footer holds the study's settings."""
    write_table(path, STUDY, rows, Footer(table=STUDY.name, stage="study", config=dict(settings)))


def summarize(values: Sequence[float]) -> Summary:
    """Mean and standard deviation of one figure over seeds.

    Raises:
        ValueError: no values.
    """
    if not values:
        raise ValueError("summarize needs at least one value")
    return Summary(math.fsum(values) / len(values), statistics.stdev(values) if len(values) > 1 else None)


class Figures:
    """The rows of a study by what they measure, each with its values seed by seed."""

    def __init__(self, rows: Sequence[Row]) -> None:
        """Of a row's policies the last one counts, which is the one its run ends in."""
        final = {(row["row"], row["condition"]): row["policy"] for row in rows}
        self._values: dict[tuple[str, str, str, str], list[float]] = {}
        for row in rows:
            if row["policy"] == final[row["row"], row["condition"]]:
                key = (row["row"], row["condition"], row["decoding"], row["name"])
                self._values.setdefault(key, []).append(row["value"])
        self.rows = list(dict.fromkeys(row["row"] for row in rows))

    def values(self, row: str, name: str, *, decoding: str = "sampled", condition: str = OWN) -> list[float]:
        """A figure's values in the order of the seeds; empty where it was not measured."""
        return self._values.get((row, condition, decoding, name), [])

    def mean(self, row: str, name: str, *, decoding: str = "sampled", condition: str = OWN) -> float | None:
        """A figure's mean over seeds; None where it was not measured."""
        values = self.values(row, name, decoding=decoding, condition=condition)
        return summarize(values).mean if values else None

    def names(self, row: str, condition: str, decoding: str) -> list[str]:
        """What was measured of a row under a condition, in the order of the tables."""
        return [name for (r, c, d, name) in self._values if (r, c, d) == (row, condition, decoding)]
