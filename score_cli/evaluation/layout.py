"""Numbers as tables of text, in one way for the terminal, Markdown and the report's page. Pure functions."""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from score_cli.evaluation.evaluate import MINUS, Row
from score_cli.evaluation.votes import GAIN, PARALLEL, SEQUENTIAL
from score_cli.metrics import two_sided_p

# Measures beside accuracy: name in the metrics table -> title of the column.
SECONDARY = {"delta": "delta", "i_to_c": "i->c", "c_to_i": "c->i", "edit_ratio": "edit ratio"}


# Of a script's dialogues; shares of claims say how many they are over, which falls as errors become rare.
TRIALS = "mean_trials"
DIALOGUES = {
    "acc@final": "acc@final",
    "i_to_c@final": "i->c",
    "c_to_i@final": "c->i",
    "verify_acc": "verify acc",
    "error_recall": "error recall",
    "correct_precision": "correct precision",
    "unreadable": "unreadable",
    TRIALS: "trials",
}
# Of critics: what their claims say, and what becomes of the solves, round by round.
CRITICS = {
    "f1_correct": "F1 correct",
    "f1_wrong": "F1 wrong",
    "verify_acc": "verify acc",
    "error_recall": "error recall",
    "holds_answer": "holds answer",
}
COUNTED = ("error_recall", "correct_precision")


class TextTable(NamedTuple):
    """A table to show: what it holds, column titles, lines of cells, and how many columns are names, not numbers."""

    caption: str
    titles: list[str]
    lines: list[list[str]]
    names: int = 2


def percent(value: float, spread: float | None = None, *, signed: bool = False, unit: str = "") -> str:
    """`54.2 ±1.3`: a fraction in percent, with its error or deviation where that is known."""
    error = "" if spread is None else f" ±{100 * spread:.1f}"
    return f"{100 * value:{'+' if signed else ''}.1f}{unit}{error}"


def grid(
    caption: str,
    titles: Sequence[str],
    columns: Mapping[Any, str],
    cells: Mapping[Any, Mapping[Any, str]],
) -> TextTable:
    """Lay out cells by line and column.

    Args:
        titles: of the columns that a line's key, a tuple of text, fills.
        columns: key within a line -> title; what a line lacks stays empty.
    """
    lines = [[*key, *(line.get(column, "") for column in columns)] for key, line in cells.items()]
    return TextTable(caption, [*titles, *columns.values()], lines, len(titles))


def markdown(table: TextTable) -> str:
    """The caption, and the table as Markdown."""
    lines = [table.titles, ["---"] * len(table.titles), *table.lines]
    return f"{table.caption}\n\n" + "\n".join("| " + " | ".join(map(escape, line)) + " |" for line in lines)


def escape(text: str) -> str:
    """Text that Markdown shows as it is."""
    return text.replace("|", "\\|").replace("<", "&lt;")


def attempts_of(rows: Iterable[Row]) -> int:
    """The most attempts that rows of the metrics table speak of."""
    return max((int(match[1]) for row in rows if (match := re.fullmatch(r"\w+@t(\d+)", row["name"]))), default=1)


def metric_cell(row: Row, *, signed: bool = False) -> str:
    """A row of the metrics table in percent; differences carry their sign."""
    return percent(row["value"], row["stderr"], signed=signed or row["name"].startswith("delta"))


def paper_table(
    rows: Iterable[Row],
    attempts: int = 2,
    *,
    caption: str = "",
    titles: Sequence[str] = ("policy", "decoding"),
    secondary: Mapping[str, str] = SECONDARY,
    cell: Callable[[Row], str] = metric_cell,
) -> TextTable:
    """Metrics rows as the paper prints them: one line a policy and decoding, cells like `54.2 ±1.3`.

    With more than two attempts, one line an attempt: ten side by side would be wider than any terminal.
    """
    wide = attempts <= 2
    cells: dict[tuple[str, ...], dict[str, str]] = {}
    for row in rows:
        if match := re.fullmatch(r"(\w+)@(t\d+)", row["name"]):
            key = (row["policy"], row["decoding"], *([] if wide else [match[2]]))
            cells.setdefault(key, {})[row["name"] if wide else match[1]] = cell(row)
    if not wide:
        return grid(caption, [*titles, "attempt"], {"acc": "acc", **secondary}, cells)
    columns = {f"acc@t{attempt}": f"acc@t{attempt}" for attempt in range(1, attempts + 1)}
    columns |= {f"{name}@t2": title for name, title in secondary.items() if attempts == 2}
    return grid(caption, titles, columns, cells)


def metric_tables(rows: Sequence[Row], attempts: int) -> list[TextTable]:
    """The paper's table; then differences between policies, pass@k and majority votes, where there are any."""
    compared = "differences on the same problems, ± paired standard error clustered by problem, two-sided p"
    differences = [row for row in rows if MINUS in row["policy"]]
    tables = [
        dialogue_table([row for row in rows if MINUS not in row["policy"]]),
        critic_table([row for row in rows if MINUS not in row["policy"]]),
        paper_table(differences, attempts, caption=compared, cell=_difference),
        _passes(rows),
        vote_table(rows, "majority vote: all first attempts, or half as many each corrected once"),
        _escalations(rows),
        _trials_by_level(rows),
    ]
    own = paper_table([row for row in rows if MINUS not in row["policy"]], attempts)
    return [own, *(table for table in tables if table.lines)]


def dialogue_table(rows: Iterable[Row]) -> TextTable:
    """What a script's dialogues show, one line a policy and decoding; no line where all turns are solves."""
    cells: dict[tuple[str, ...], dict[str, str]] = {}
    rows = list(rows)
    dialogues = {(row["policy"], row["decoding"]) for row in rows if row["name"] == TRIALS}
    for row in rows:
        if row["name"] in DIALOGUES and (row["policy"], row["decoding"]) in dialogues:
            counted = row["name"] in COUNTED
            cell = f"{row['value']:.2f}" if row["name"] == TRIALS else metric_cell(row)
            cells.setdefault((row["policy"], row["decoding"]), {})[row["name"]] = cell + f" of {row['count']}" * counted
    caption = "dialogues: their last solve, and what their claims say of the solves they judge"
    return grid(caption, ["policy", "decoding"], DIALOGUES, cells)


def critic_table(rows: Iterable[Row]) -> TextTable:
    """Critics side by side, one line a policy and decoding; no line where there are none."""
    cells: dict[tuple[str, ...], dict[str, str]] = {}
    columns: dict[str, str] = {}
    rows = list(rows)
    critics = {(row["policy"], row["decoding"]) for row in rows if row["name"].startswith("acc@round")}
    for row in rows:
        key, name = (row["policy"], row["decoding"]), row["name"]
        if key in critics and name.startswith("acc@round"):
            columns[name] = name
        if key in critics and (name in CRITICS or name in columns):
            counted = name in COUNTED
            cells.setdefault(key, {})[name] = metric_cell(row) + f" of {row['count']}" * counted
    caption = "critics: accuracy after each round, and what their claims say of the solves they judge"
    return grid(caption, ["policy", "decoding"], columns | CRITICS, cells)


def vote_table(
    rows: Iterable[Row],
    caption: str,
    *,
    title: str = "policy",
    gain: Callable[[Row], str] | None = None,
) -> TextTable:
    """One line a policy and budget: parallel, sequential, and the gain, with its p if `gain` shows no other."""
    cells: dict[tuple[str, ...], dict[str, str]] = {}
    for row in rows:
        if match := re.fullmatch(r"majority@(\w+)\[(\d+)\]", row["name"]):
            show = (gain or _difference) if match[1] == GAIN else metric_cell
            cells.setdefault((row["policy"], match[2]), {})[match[1]] = show(row)
    return grid(caption, [title, "responses"], {kind: kind for kind in (PARALLEL, SEQUENTIAL, GAIN)}, cells)


def every_metric(rows: Sequence[Row]) -> TextTable:
    """All metrics but histograms, as fractions: a line for each name, a column for each policy and decoding."""
    cells: dict[tuple[str, ...], dict[tuple[str, str], str]] = {}
    for row in rows:
        if not row["name"].startswith("edit_ratio_hist@"):
            spread = "" if row["stderr"] is None else f" ±{row['stderr']:.4f}"
            cell = f"{row['value']:.4f}{spread} ({row['count']})"
            cells.setdefault((row["name"],), {})[row["policy"], row["decoding"]] = cell
    columns = dict.fromkeys((row["policy"], row["decoding"]) for row in rows)
    return grid("", ["metric"], {column: ", ".join(column) for column in columns}, cells)


def headline(rows: Sequence[Row], ends: tuple[str, str] | None = None, *, mean: str = "") -> list[str]:
    """One sentence a decoding: how the first attempt, the last and their difference went from policy to policy.

    Args:
        ends: the two policies; the first and the last if left out.
        mean: what the figures are a mean over, such as `, mean over seeds`.
    """
    last = attempts_of(rows)
    figures = [("acc@t1", "the first attempt", ""), (f"acc@t{last}", "the last", "")]
    figures.append((f"delta@t{last}", "their difference" if last == 2 else "the last step", "+"))
    sentences = []
    for decoding in dict.fromkeys(row["decoding"] for row in rows):
        values = {(row["policy"], row["name"]): row["value"] for row in rows if row["decoding"] == decoding}
        policies = list(dict.fromkeys(policy for policy, _ in values))
        before, after = ends or (policies[0], policies[-1])
        parts = []
        for name, words, sign in figures:
            if before != after and last > 1 and {(before, name), (after, name)} <= set(values):
                unit = " points" if sign else "%"
                shown = (percent(values[policy, name], signed=bool(sign)) + unit for policy in (before, after))
                parts.append(f"{words} went from {' to '.join(shown)}")
        if parts:
            sentences.append(f"From {before} to {after}, {decoding}{mean}: {', '.join(parts)}.")
    return sentences


def _escalations(rows: Iterable[Row]) -> TextTable:
    """One line a policy that hands answers over and a policy that takes them, one column a share."""
    cells: dict[tuple[str, ...], dict[str, str]] = {}
    for row in rows:
        if match := re.fullmatch(r"escalated@(.+)\[([\w.]+)\]", row["name"]):
            # Eleven shares fit a terminal without their errors, which are about that of the area.
            cell = percent(row["value"]) if "." in match[2] else metric_cell(row, signed=match[2] == GAIN)
            cells.setdefault((row["policy"], match[1], row["decoding"]), {})[match[2]] = cell
    shares = list(dict.fromkeys(share for line in cells.values() for share in line))
    columns = {share: f"{float(share):.0%}" if "." in share else share for share in shares}
    caption = "accuracy with a share of the answers handed over, the least trusted first; gain over a random order"
    return grid(caption, ["policy", "to", "decoding"], columns, cells)


def _trials_by_level(rows: Iterable[Row]) -> TextTable:
    """Solves a dialogue, one column a level, where the problems have several."""
    cells: dict[tuple[str, ...], dict[str, str]] = {}
    for row in rows:
        name, _, level = row["name"].partition("|level=")
        if name == TRIALS and level and MINUS not in row["policy"]:
            cells.setdefault((row["policy"], row["decoding"]), {})[level] = f"{row['value']:.2f} of {row['count']}"
    levels = sorted({level for line in cells.values() for level in line})
    return grid(
        "solves a dialogue by level", ["policy", "decoding"], {level: f"level {level}" for level in levels}, cells
    )


def _difference(row: Row) -> str:
    p = two_sided_p(row["value"], row["stderr"])
    shown = "" if p is None else " p<0.001" if p < 0.0005 else f" p={p:.3f}"
    return metric_cell(row, signed=True) + shown


def _passes(rows: Iterable[Row]) -> TextTable:
    """One line a policy and attempt, one column a k."""
    cells: dict[tuple[str, ...], dict[int, str]] = {}
    for row in rows:
        if match := re.fullmatch(r"pass@(\d+)@(t\d+)", row["name"]):
            key = (row["policy"], row["decoding"], match[2])
            cells.setdefault(key, {})[int(match[1])] = metric_cell(row)
    ks = sorted({k for line in cells.values() for k in line})
    titles = ["policy", "decoding", "attempt"]
    return grid("at least one of k samples is correct", titles, {k: f"pass@{k}" for k in ks}, cells)
