"""A study's tables and claims, for the terminal and as Markdown. Pure functions."""

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from score_cli.evaluation.printing import Printed
from score_cli.evaluation.votes import GAIN, PARALLEL, SEQUENTIAL
from score_cli.study.claims import SCORE, Claim, correction_rate, judge_claims
from score_cli.study.paper import PAPER
from score_cli.study.results import BASE_FIRST, MORE, OWN, VOTED, Figures, Row, summarize

DECODINGS = ("sampled", "greedy")
COLUMNS = {
    "acc@t1": "acc@t1",
    "acc@t2": "acc@t2",
    "delta@t2": "delta",
    "i_to_c@t2": "i->c",
    "c_to_i@t2": "c->i",
    "edit_ratio@t2": "edit ratio",
    "changed@t2": "changed",
}


class PrintedStudy(NamedTuple):
    """What a study shows: tables, then claims."""

    tables: list[Printed]
    claims: list[Claim]


def print_study(rows: Sequence[Row], tuning: Sequence[Mapping[str, Any]], notes: Mapping[str, str]) -> PrintedStudy:
    """Lay a study out.

    Args:
        rows: of study.parquet; tuning: of tuning.parquet.
        notes: what to say of a condition, by condition.
    """
    found = Figures(rows)
    seeds = len({row["seed"] for row in rows})
    tables = [_main(found, seeds), _fixed(found), _more(found, notes.get(MORE, "")), _votes(found), _tuning(tuning)]
    return PrintedStudy([table for table in tables if table.lines], judge_claims(found))


def study_markdown(printed: PrintedStudy) -> str:
    """The tables and claims as a Markdown page."""
    parts = ["# The study"]
    for table in printed.tables:
        lines = [table.titles, ["---"] * len(table.titles), *table.lines]
        parts.append(f"{table.caption}\n\n" + "\n".join("| " + " | ".join(map(_escape, line)) + " |" for line in lines))
    parts.append("## The paper's claims\n\n" + "\n".join(f"- {_escape(str(claim))}" for claim in printed.claims))
    return "\n\n".join(parts) + "\n"


def _main(found: Figures, seeds: int) -> Printed:
    lines = []
    for row in found.rows:
        paper = PAPER[row].figures() if row in PAPER else {}
        for decoding in DECODINGS:
            if found.values(row, "acc@t1", decoding=decoding):
                cells = [_cell(found.values(row, name, decoding=decoding), name, paper.get(name)) for name in COLUMNS]
                table = f"Table {PAPER[row].table}" if row in PAPER else ""
                lines.append([row, decoding, *cells, table])
    spread = f", mean ± standard deviation over {seeds} seeds of base and training" if seeds > 1 else ", one seed"
    caption = (
        f"Held-out problems of the built-in task, percent{spread}. In parentheses the paper's (MATH, Gemini 1.5 "
        "Flash, greedy) from the table named last. self-refine stands for prompting alone: the base asked in the words "
        "that its corpus revises with skill under"
    )
    return Printed(caption, ["row", "decoding", *COLUMNS.values(), "paper"], lines)


def _fixed(found: Figures) -> Printed:
    lines = []
    for row in found.rows:
        if found.values(row, "acc@t1", condition=BASE_FIRST):
            lines += [[row, condition, *_rates(found, row, condition)] for condition in (OWN, BASE_FIRST)]
    caption = (
        "After first attempts of the seed's base and after own ones, sampled; correction rate: share of wrong first "
        "attempts that are put right"
    )
    return Printed(caption, ["row", "first attempts", "acc@t1", "acc@t2", "delta", "correction rate"], lines)


def _rates(found: Figures, row: str, condition: str) -> list[str]:
    cells = [_cell(found.values(row, name, condition=condition), name) for name in ("acc@t1", "acc@t2", "delta@t2")]
    return [*cells, _cell(correction_rate(found, row, condition), "rate")]


def _more(found: Figures, note: str) -> Printed:
    lines = []
    for row, decoding in ((row, decoding) for row in found.rows for decoding in DECODINGS):
        for name in found.names(row, MORE, decoding):
            if attempt := re.fullmatch(r"acc@t(\d+)", name):
                accuracy = _cell(found.values(row, name, decoding=decoding, condition=MORE), name)
                step = f"delta@t{attempt[1]}"
                gained = _cell(found.values(row, step, decoding=decoding, condition=MORE), step)
                lines.append([row, decoding, f"t{attempt[1]}", accuracy, gained])
    return Printed(f"More attempts: {note}", ["row", "decoding", "attempt", "accuracy", "delta"], lines)


def _votes(found: Figures) -> Printed:
    cells: dict[tuple[str, int], dict[str, str]] = {}
    for row in found.rows:
        for name in found.names(row, VOTED, "sampled"):
            if parsed := re.fullmatch(r"majority@(\w+)\[(\d+)\]", name):
                shown = "delta" if parsed[1] == GAIN else name
                cell = _cell(found.values(row, name, condition=VOTED), shown)
                cells.setdefault((row, int(parsed[2])), {})[parsed[1]] = cell
    kinds = [PARALLEL, SEQUENTIAL, GAIN]
    lines = [[row, str(budget), *(line.get(kind, "") for kind in kinds)] for (row, budget), line in cells.items()]
    caption = "Majority vote at T = 0.7: all first attempts, or half as many each corrected once"
    return Printed(caption, ["row", "responses", *kinds], lines)


def _tuning(tuning: Sequence[Mapping[str, Any]]) -> Printed:
    lines = [[t["row"], t["settings"], f"{100 * t['value']:.1f}", "chosen" if t["chosen"] else ""] for t in tuning]
    caption = (
        f"Settings tried on the first seed's base: sampled acc@t2 on the validation problems, by which {SCORE} and "
    )
    caption += "each baseline got theirs"
    return Printed(caption, ["row", "settings", "acc@t2", ""], lines)


def _cell(values: Sequence[float], name: str, paper: float | None = None) -> str:
    """`54.2 ±1.3 (52.6)`: percent, spread over seeds, the paper's figure."""
    if not values:
        return ""
    summary = summarize(values)
    sign = "+" if name.startswith("delta") else ""
    return "".join(_parts(summary.mean, summary.spread, paper, sign))


def _parts(mean: float, spread: float | None, paper: float | None, sign: str) -> Iterator[str]:
    yield f"{100 * mean:{sign}.1f}"
    if spread is not None:
        yield f" ±{100 * spread:.1f}"
    if paper is not None:
        yield f" ({100 * paper:{sign}.1f})"


def _escape(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;")
