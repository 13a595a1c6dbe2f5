"""What the rows of a study measured: one table of all of it, means over seeds, and how both are shown.

`own_tables` shows the rows that have a table of their own.
"""

import itertools
import re
import statistics
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from score_cli.evaluation.evaluate import MINUS, SAMPLED, Row
from score_cli.evaluation.layout import (
    SECONDARY,
    TextTable,
    attempts_of,
    escape,
    grid,
    markdown,
    metric_cell,
    paper_table,
    percent,
    vote_table,
)
from score_cli.evaluation.votes import VOTES
from score_cli.phases import BASE
from score_cli.study.intervals import Interval, Verdict, interval
from score_cli.tables.parquet import METRICS, STUDY, TRAIN_METRICS, read_table, write_table
from score_cli.tables.provenance import Footer

SCORE = "score"
# What rows are compared by, seed by seed -> its title.
COMPARED = {"acc@t1": "acc@t1", "acc@t2": "acc@t2", "delta@t2": "delta"}
# What a row's policy was measured under.
OWN, BASE_FIRST, MORE, VOTED = "own", "base-first-attempts", "more-attempts", VOTES
# Not a measurement: what a row's updates logged, the first of them and the last.
TRAINING = "training"
UPDATES = 10

# Row -> the paper's table and its figures on MATH with Gemini 1.5 Flash, decoded greedily, as fractions in the order
# of PAPER_COLUMNS, as far as the table has them. Source: Kumar et al., ICLR 2025, arXiv 2409.12917.
PAPER: dict[str, tuple[int, tuple[float, ...]]] = {
    "base": (2, (0.526, 0.414, -0.112, 0.046, 0.158)),
    "self-refine": (2, (0.528, 0.518, -0.010, 0.032, 0.042)),
    "star": (1, (0.554, 0.412, -0.142, 0.054, 0.196)),
    "star-plus": (1, (0.536, 0.540, 0.004, 0.026, 0.022)),
    "pair-sft": (1, (0.524, 0.542, 0.018, 0.054, 0.036)),
    "pair-sft-plus": (1, (0.550, 0.550, 0.0, 0.0, 0.0)),
    "score": (2, (0.600, 0.644, 0.044, 0.058, 0.014)),
    "single-turn": (4, (0.618, 0.594, -0.024)),
    "no-stage1": (4, (0.592, 0.614, 0.022)),
    "no-shaping": (4, (0.600, 0.626, 0.026)),
    "star-for-stage2": (4, (0.562, 0.584, 0.022)),
    "no-online-first-attempts": (4, (0.604, 0.606, 0.002)),
}
PAPER_COLUMNS = ("acc@t1", "acc@t2", "delta@t2", "i_to_c@t2", "c_to_i@t2")


def row_folder(study: Path, row: str, seed: int) -> Path:
    """The run folder of a row."""
    return study / f"seed-{seed}" / row


class Source(NamedTuple):
    """A metrics table and what it stands for in the study."""

    row: str
    seed: int
    condition: str
    metrics: Path
    whole: bool = False  # keep what the run measured of its base, too


class Claim(NamedTuple):
    """A claim, the criterion in words, the figures it was judged by, and the verdict."""

    text: str
    criterion: str
    figures: str
    verdict: Verdict

    def __str__(self) -> str:
        return f"{self.verdict}: {self.text} ({self.criterion}): {self.figures}"


@dataclass(frozen=True)
class Seeds:
    """One number measured in several seeds."""

    values: Mapping[int, float]
    counts: Mapping[int, int] = field(default_factory=dict)  # how many things each value is over

    @property
    def mean(self) -> float:
        """Mean over the seeds."""
        return statistics.fmean(self.values.values())

    @property
    def deviation(self) -> float | None:
        """Standard deviation over the seeds (divisor n - 1); None of a single one."""
        return statistics.stdev(self.values.values()) if len(self.values) > 1 else None

    @property
    def interval(self) -> Interval:
        """The mean with its interval over the seeds."""
        return interval(self.values.values())

    def minus(self, other: "Seeds | None") -> Interval | None:
        """The mean difference, paired by the seeds that both have: they share a base each. None without such a seed."""
        shared = [seed for seed in self.values if other and seed in other.values]
        return interval(self.values[seed] - other.values[seed] for seed in shared) if other and shared else None

    def __str__(self) -> str:
        """`54.2 ±1.3`, in percent."""
        return percent(self.mean, self.deviation)


class Results:
    """The rows of study.parquet, looked up by what they measure."""

    def __init__(self, rows: Sequence[Row]) -> None:
        """Of a row's policies the last one counts, which is the one its runs end in, unless another is named."""
        measured = [row for row in rows if MINUS not in row["policy"]]
        # A run lists its policies in the order of its training: the base first, the last is what the row is about.
        self.policies = {(row["row"], row["seed"], row["condition"]): row["policy"] for row in measured}
        self._values: dict[tuple[str, str, str, str, str | None], dict[int, Row]] = {}
        for row in measured:
            key = (row["row"], row["condition"], row["decoding"], row["name"])
            self._values.setdefault((*key, row["policy"]), {})[row["seed"]] = row
            if row["policy"] == self.policies[row["row"], row["seed"], row["condition"]]:
                self._values.setdefault((*key, None), {})[row["seed"]] = row
        self.rows = list(dict.fromkeys(key[0] for key in self._values))
        self.seeds = sorted({seed for _, seed, _ in self.policies})

    def find(
        self, row: str, name: str, decoding: str = SAMPLED, condition: str = OWN, policy: str | None = None
    ) -> Seeds | None:
        """One metric of one row, as a fraction."""
        found = self._values.get((row, condition, decoding, name, policy))
        if not found:
            return None
        seeds = sorted(found)
        return Seeds({seed: found[seed]["value"] for seed in seeds}, {seed: found[seed]["count"] for seed in seeds})

    def policies_of(self, row: str, condition: str = OWN) -> list[str]:
        """The policies of a row that were kept, in the order of its training."""
        keys = (key for key in self._values if key[:2] == (row, condition))
        return list(dict.fromkeys(policy for *_, policy in keys if policy is not None))

    def mean(self, row: str, name: str, condition: str = OWN) -> float | None:
        """A metric's mean over seeds, of sampled traces."""
        seeds = self.find(row, name, condition=condition)
        return seeds.mean if seeds else None

    def matching(
        self, row: str, pattern: str, decoding: str = SAMPLED, condition: str = OWN
    ) -> list[tuple[re.Match[str], Seeds]]:
        """The metrics of a row whose names match, in the order of the tables."""
        keys = [key for key in self._values if key[:3] == (row, condition, decoding) and key[4] is None]
        matches = [match for key in keys if (match := re.fullmatch(pattern, key[3]))]
        return [(match, seeds) for match in matches if (seeds := self.find(row, match[0], decoding, condition))]

    def correction_rate(self, row: str, decoding: str = SAMPLED, condition: str = OWN) -> Seeds | None:
        """Of the first attempts that were wrong, the share put right; None where none was wrong."""
        fixed = self.find(row, "i_to_c@t2", decoding, condition)
        first = self.find(row, "acc@t1", decoding, condition)
        if fixed is None or first is None:
            return None
        wrong = {seed: 1 - first.values[seed] for seed in fixed.values if first.values.get(seed, 1) < 1}
        return Seeds({seed: fixed.values[seed] / share for seed, share in wrong.items()}) if wrong else None

    def decodings(self, condition: str = OWN) -> list[str]:
        """The decodings that a condition was measured in, sampled before greedy."""
        return sorted({key[2] for key in self._values if key[1] == condition}, reverse=True)

    def means(self, condition: str = OWN, *, apart: Container[str] = ()) -> list[Row]:
        """Rows of a metrics table, row by row: means over seeds, with the deviation between them as error.

        Args:
            apart: rows left out.
        """
        return [
            {"policy": row, "decoding": decoding, "name": match[0]}
            | {"value": seeds.mean, "stderr": seeds.deviation, "count": len(seeds.values)}
            for row in self.rows
            if row not in apart
            for decoding in self.decodings(condition)
            for match, seeds in self.matching(row, ".*", decoding, condition)
        ]


def collect(sources: Sequence[Source], seeds: Sequence[int]) -> list[Row]:
    """Rows of study.parquet: row by row, then seed by seed.

    A row's run measures its base again; that policy is kept in the rows alone that end in it or are kept whole.
    """
    order = list(dict.fromkeys(source.row for source in sources))
    rows = []
    for source in sorted(sources, key=lambda each: (order.index(each.row), seeds.index(each.seed))):
        key = {"row": source.row, "seed": source.seed, "condition": source.condition}
        if source.condition == TRAINING:
            rows += [key | row for row in logged(read_table(source.metrics, TRAIN_METRICS).to_pylist())]
            continue
        found = [row for row in read_table(source.metrics, METRICS).to_pylist() if MINUS not in row["policy"]]
        if not source.whole and any(row["policy"] != BASE for row in found):
            found = [row for row in found if row["policy"] != BASE]
        if source.condition == VOTED:
            found = [row for row in found if row["name"].startswith("majority@")]
        rows += [key | row for row in found]
    return rows


def logged(lines: Sequence[Mapping[str, Any]]) -> list[Row]:
    """Means of what the first and the last updates logged, as rows of a metrics table; of an attempt, `accuracy@t1`.

    Ten updates at either end; fewer where a run has fewer than twenty.
    """
    updates = sorted({line["iteration"] for line in lines})
    most = max(1, min(UPDATES, len(updates) // 2))
    rows = []
    for end, chosen in (("first", updates[:most]), ("last", updates[-most:])):
        values: dict[str, list[float]] = {}
        for line in lines:
            if line["iteration"] in chosen:
                name = line["name"] if line["attempt"] is None else f"{line['name']}@t{line['attempt']}"
                values.setdefault(name, []).append(line["value"])
        named = {"policy": f"{end} {most} updates", "decoding": SAMPLED, "stderr": None}
        rows += [
            named | {"name": name, "value": statistics.fmean(own), "count": len(own)} for name, own in values.items()
        ]
    return rows


def write_study(path: Path, rows: Sequence[Row], config: Mapping[str, Any]) -> None:
    """Write study.parquet; its footer holds the study's settings."""
    write_table(path, STUDY, rows, Footer(table=STUDY.name, stage="study", config=dict(config)))


def study_tables(
    results: Results, tuning: Sequence[Mapping[str, Any]], note: str = "", *, apart: Container[str] = ()
) -> dict[str, TextTable]:
    """The tables that a study has the rows for, by what they show.

    Args:
        tuning: rows of tuning.parquet; note: what to say of the measurement with more attempts.
        apart: rows with a table of their own, which the first leaves out.
    """
    more = results.means(MORE)
    tables = {
        "results": _main(results, results.means(apart=apart)),
        "seeds": _seed_by_seed(results, apart),
        "against": _against_score(results, apart),
        "shift": _shift(results),
        "attempts": paper_table(
            more, max(3, attempts_of(more)), caption=f"More attempts{note}", titles=("row", "decoding")
        ),
        "votes": vote_table(
            results.means(VOTED),
            "Majority vote at T = 0.7: all first attempts, or half as many each corrected once",
            title="row",
            gain=lambda row: metric_cell(row, signed=True),
        ),
        "tuning": _tuning(tuning),
    }
    return {name: table for name, table in tables.items() if table.lines}


def study_markdown(tables: Sequence[TextTable], claims: Sequence[object]) -> str:
    """The tables and claims as a Markdown page."""
    judged = "## Claims\n\n" + "\n".join(f"- {escape(str(claim))}" for claim in claims)
    return "\n\n".join(["# The study", *map(markdown, tables), judged]) + "\n"


def _main(results: Results, means: Sequence[Row]) -> TextTable:
    def cell(row: Row) -> str:
        _, figures = PAPER.get(row["policy"], (0, ()))
        paper = dict(zip(PAPER_COLUMNS, figures, strict=False)).get(row["name"])
        signed = row["name"].startswith("delta")
        return metric_cell(row) + ("" if paper is None else f" ({percent(paper, signed=signed)})")

    seeds = len(results.seeds)
    spread = f", mean ± standard deviation over {seeds} seeds of base and training" if seeds > 1 else ", one seed"
    caption = (
        f"Held-out problems of the built-in task, percent{spread}. In parentheses the paper's (MATH, Gemini 1.5 "
        "Flash, greedy) from the table named last. self-refine stands for prompting alone: the base asked in the words "
        "that its corpus revises with skill under"
    )
    secondary = SECONDARY | {"changed": "changed"}
    table = paper_table(means, caption=caption, titles=("row", "decoding"), secondary=secondary, cell=cell)
    counts = {(row["policy"], row["decoding"]): row["count"] for row in means if row["name"] == "acc@t1"}
    lines = []
    for line in table.lines:
        named = f"Table {PAPER[line[0]][0]}" if line[0] in PAPER else ""
        lines.append([*line, named, str(counts.get((line[0], line[1]), ""))])
    return table._replace(titles=[*table.titles, "paper", "seeds"], lines=lines)


def _seed_by_seed(results: Results, apart: Container[str]) -> TextTable:
    """Every row's sampled figures of each seed; no lines where there is one seed."""
    cells = {
        (row, title): {seed: percent(value, signed=title == "delta") for seed, value in found.values.items()}
        for row in results.rows
        if row not in apart and len(results.seeds) > 1
        for name, title in COMPARED.items()
        if (found := results.find(row, name))
    }
    return grid("Seed by seed, sampled", ["row", ""], {seed: f"seed {seed}" for seed in results.seeds}, cells)


def _against_score(results: Results, apart: Container[str]) -> TextTable:
    """Every row's figures minus SCoRe's, paired by seed, decoding by decoding."""
    cells: dict[tuple[str, ...], dict[str, str]] = {}
    for row, decoding in itertools.product(results.rows, results.decodings()):
        ours = {name: results.find(SCORE, name, decoding) for name in COMPARED}
        found = {name: results.find(row, name, decoding) for name in COMPARED}
        if row != SCORE and row not in apart and len(results.seeds) > 1:
            line = {name: str(less) for name, seeds in found.items() if seeds and (less := seeds.minus(ours[name]))}
            cells |= {(row, decoding): line} if line else {}
    caption = "Each row less score, paired by seed, points: mean [Student's interval of 95 percent over the seeds]"
    return grid(caption, ["row", "decoding"], COMPARED, cells)


def _shift(results: Results) -> TextTable:
    columns = {"acc@t1": "acc@t1", "acc@t2": "acc@t2", "delta@t2": "delta", "i_to_c@t2": "i->c", "": "correction rate"}
    cells = {}
    for row in results.rows:
        for decoding in results.decodings(BASE_FIRST):
            for condition in (OWN, BASE_FIRST) if results.find(row, "acc@t1", decoding, BASE_FIRST) else ():
                found = {name: results.find(row, name, decoding, condition) for name in columns}
                found[""] = results.correction_rate(row, decoding, condition)
                cells[row, decoding, condition] = {
                    name: percent(seeds.mean, seeds.deviation, signed=name == "delta@t2")
                    for name, seeds in found.items()
                    if seeds
                }
    caption = (
        "After first attempts of the seed's base and after own ones; correction rate: share of wrong first attempts "
        "that are put right"
    )
    return grid(caption, ["row", "decoding", "first attempts"], columns, cells)


def _tuning(tuning: Sequence[Mapping[str, Any]]) -> TextTable:
    caption = (
        "Settings tried on the tuning seeds' bases: mean sampled acc@t2 on the validation problems, by which score and "
        "each baseline got theirs"
    )
    lines = [
        [t["row"], t["settings"], percent(t["value"], t["stderr"]), "chosen" if t["chosen"] else ""] for t in tuning
    ]
    return TextTable(caption, ["row", "settings", "acc@t2", ""], lines)
