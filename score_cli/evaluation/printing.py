"""Metrics rows as the tables that are printed: percent, with standard errors."""

import re
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

from score_cli.evaluation.evaluate import MINUS, Row
from score_cli.evaluation.votes import GAIN, PARALLEL, SEQUENTIAL
from score_cli.metrics import two_sided_p

SECONDARY = [("delta", "delta"), ("i->c", "i_to_c"), ("c->i", "c_to_i"), ("edit ratio", "edit_ratio")]


class Printed(NamedTuple):
    """A table to print: what it shows, column titles, and lines of cells."""

    caption: str
    titles: list[str]
    lines: list[list[str]]


def attempts_of(rows: Iterable[Row]) -> int:
    """The most attempts that rows of the metrics table speak of."""
    return max((int(found[1]) for row in rows if (found := re.fullmatch(r"\w+@t(\d+)", row["name"]))), default=1)


def paper_table(rows: Iterable[Row], attempts: int = 2) -> tuple[list[str], list[list[str]]]:
    """Metrics rows as the paper prints them: percent, one line a policy and decoding.

    With more than two attempts, one line an attempt.

    Returns:
        Column titles, and cells like `54.2 ±1.3`.
    """
    return _lay_out([row for row in rows if MINUS not in row["policy"]], attempts, _percent)


def further_tables(rows: Sequence[Row], attempts: int) -> list[Printed]:
    """What else was measured: differences between policies, pass@k, majority votes; only what there is."""
    differences = [row for row in rows if MINUS in row["policy"]]
    compared = "differences on the same problems, ± paired standard error clustered by problem, two-sided p"
    tables = [
        Printed(compared, *_lay_out(differences, attempts, _difference)),
        _passes(rows),
        _votes(rows),
    ]
    return [table for table in tables if table.lines]


def _lay_out(rows: Sequence[Row], attempts: int, cell: Callable[[Row], str]) -> tuple[list[str], list[list[str]]]:
    cells: dict[tuple[str, str], dict[str, str]] = {}
    for row in rows:
        cells.setdefault((row["policy"], row["decoding"]), {})[row["name"]] = cell(row)
    if attempts <= 2:
        columns = [(f"acc@t{a}", f"acc@t{a}") for a in range(1, attempts + 1)]
        columns += [(title, f"{name}@t2") for title, name in SECONDARY if attempts == 2]
        titles = ["policy", "decoding", *(title for title, _ in columns)]
        return titles, [[*key, *(found.get(name, "") for _, name in columns)] for key, found in cells.items()]
    # Ten attempts side by side would be wider than any terminal.
    measures = [("acc", "acc"), *SECONDARY]
    return ["policy", "decoding", "attempt", *(title for title, _ in measures)], [
        [*key, f"t{a}", *(found.get(f"{name}@t{a}", "") for _, name in measures)]
        for key, found in cells.items()
        for a in range(1, attempts + 1)
    ]


def _percent(row: Row, *, signed: bool = False) -> str:
    sign = "+" if signed or row["name"].startswith("delta") else ""
    spread = "" if row["stderr"] is None else f" ±{100 * row['stderr']:.1f}"
    return f"{100 * row['value']:{sign}.1f}{spread}"


def _difference(row: Row) -> str:
    p = two_sided_p(row["value"], row["stderr"])
    shown = "" if p is None else " p<0.001" if p < 0.0005 else f" p={p:.3f}"
    return _percent(row, signed=True) + shown


def _passes(rows: Iterable[Row]) -> Printed:
    """One line a policy and attempt, one column a k."""
    cells: dict[tuple[str, str, str], dict[int, str]] = {}
    for row in rows:
        if found := re.fullmatch(r"pass@(\d+)@(t\d+)", row["name"]):
            cells.setdefault((row["policy"], row["decoding"], found[2]), {})[int(found[1])] = _percent(row)
    ks = sorted({k for line in cells.values() for k in line})
    titles = ["policy", "decoding", "attempt", *(f"pass@{k}" for k in ks)]
    lines = [[*key, *(line.get(k, "") for k in ks)] for key, line in cells.items()]
    return Printed("at least one of k samples is correct", titles, lines)


def _votes(rows: Iterable[Row]) -> Printed:
    """One line a policy and budget: parallel, sequential, and the gain with its p."""
    cells: dict[tuple[str, int], dict[str, str]] = {}
    for row in rows:
        if found := re.fullmatch(r"majority@(\w+)\[(\d+)\]", row["name"]):
            cell = _difference(row) if found[1] == GAIN else _percent(row)
            cells.setdefault((row["policy"], int(found[2])), {})[found[1]] = cell
    titles = ["policy", "responses", PARALLEL, SEQUENTIAL, GAIN]
    lines = [[key[0], str(key[1]), *(line.get(k, "") for k in titles[2:])] for key, line in cells.items()]
    return Printed("majority vote: all first attempts, or half as many each corrected once", titles, lines)
