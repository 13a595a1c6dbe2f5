"""The paper's figures drawn of a study's rows: a section of the page each, or a sentence on what is missing."""

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

from score_cli.evaluation.report_page import Drawn, slug
from score_cli.evaluation.report_stats import spread
from score_cli.study.report_folder import StudyFolder
from score_cli.study.report_results import (
    Line,
    Results,
    Seeds,
    curve_line,
    numbers_table,
    percent,
    stage_starts,
    vote_lines,
)
from score_cli.study.results import BASE_FIRST, MORE, VOTED

SCORE = "score"
NAIVE = "naive-multi-turn"
# Whose edits are drawn.
EDITED = ("base", "star", "pair-sft", SCORE)
MOST_UPDATES_LISTED = 11


class Words(NamedTuple):
    """What a section says beside its figures, and in place of them."""

    title: str
    text: str
    missing: str


WORDS = {
    "edits": Words(
        "How much is rewritten",
        "Edit ratio from the first attempt to the second: bars are means over seeds, dots the seeds. The first bin, "
        "which holds the texts left as they were, stands in the caption and is not drawn; rows of one decoding share "
        "their axes.",
        f"Left out: no edit ratios of {', '.join(EDITED)}.",
    ),
    "collapse": Words(
        "Collapse over training",
        "What the updates logged on the traces they learned from: strong lines are means over the seeds, faint ones "
        "the seeds, long curves moving averages over a twentieth of them; a dotted rule marks where a stage begins. "
        "The paper finds that naive multi-turn training raises both attempts while its answers are changed less and "
        "less.",
        f"Left out: no curves of {NAIVE} or {SCORE}.",
    ),
    "shift": Words(
        "Distribution shift",
        "First attempts put right at the second, where they are the policy's own and where they are the base's, drawn "
        "before: bars are means over seeds, dots the seeds. The paper finds that supervised training raises this on "
        "given attempts and lowers it on its own.",
        "Left out: no row was measured on the base's first attempts.",
    ),
    "votes": Words(
        "Inference scaling",
        "Majority vote over the same number of responses: all of them first attempts (parallel), or half as many first "
        "attempts each corrected once (sequential). In the paper, 32 responses gain 7.4 points in parallel, 10.5 in "
        "sequence.",
        "Left out: no row was voted on.",
    ),
    "attempts": Words(
        "More attempts",
        "Accuracy of attempt after attempt, beyond those that were trained.",
        "Left out: no row was measured on more attempts.",
    ),
}

Section = dict[str, Any]


def draw_sections(folder: StudyFolder, drawn: Drawn) -> list[Section]:
    """All sections in the order of the page, as the template takes them."""
    results = folder.results
    return [
        _edits(results, drawn),
        _collapse(folder, drawn),
        _shift(results, drawn),
        _votes(results, drawn),
        _attempts(results, drawn),
    ]


def _section(name: str) -> Section:
    return {"name": name, "figures": [], "tables": []} | WORDS[name]._asdict()


def _edits(results: Results, drawn: Drawn) -> Section:
    from score_cli.study.report_figures import histogram_figure

    section = _section("edits")
    for decoding in results.decodings():
        found = {row: bins for row in EDITED if len(bins := results.histogram(row, decoding=decoding)) > 1}
        drawn_bins = {row: dict(list(bins.items())[1:]) for row, bins in found.items()}
        each = [(edges, seeds) for bins in drawn_bins.values() for edges, seeds in bins.items()]
        top = 105 * max((max(seeds.values.values()) for _, seeds in each), default=0)
        right = max((edges[1] for edges, seeds in each if seeds.mean), default=1.0)
        for row, bins in found.items():
            (_, end), first = next(iter(bins.items()))
            caption = f"{row}, {decoding}: {percent(first)}% below {end:g}"
            figure = histogram_figure(drawn_bins[row], right=right, top=top or 1)
            section["figures"].append(drawn.add(f"study-edits-{slug(row)}-{slug(decoding)}", caption, figure))
        if found:
            edges = list(dict.fromkeys(edge for bins in found.values() for edge in bins))
            lines = [
                [f"{low:g} to {high:g}", *(percent(bins.get((low, high))) for bins in found.values())]
                for low, high in edges
                if low < right
            ]
            section["tables"].append({"caption": decoding, "titles": ["edit ratio", *found], "lines": lines})
    return section


def _collapse(folder: StudyFolder, drawn: Drawn) -> Section:
    from score_cli.study.report_figures import lines_figure

    section = _section("collapse")
    curves = {row: found for row in (SCORE, NAIVE) if (found := folder.curves(row))}
    rules = sorted({start for found in curves.values() for start in stage_starts(found)})
    for title, name, attempt, unit in (
        ("Accuracy of the first attempt", "accuracy", 1, "correct (%)"),
        ("Accuracy of the second attempt", "accuracy", 2, "correct (%)"),
        ("Answers changed", "changed@t2", None, "traces (%)"),
    ):
        lines = [curve_line(row, found, name, attempt) for row, found in curves.items()]
        lines = [line for line in lines if line.points]
        if lines:
            figure = lines_figure(lines, across="update", up=unit, rules=rules)
            section["figures"].append(drawn.add(f"study-collapse-{slug(title)}", title, figure))
            updates = sorted({point.place for line in lines for point in line.points})
            listed = {updates[place] for place in spread(len(updates), MOST_UPDATES_LISTED)}
            few = [Line(line.label, [point for point in line.points if point.place in listed]) for line in lines]
            section["tables"].append(_numbers(title, "update", few))
    return section


def _shift(results: Results, drawn: Drawn) -> Section:
    from score_cli.study.report_figures import groups_figure

    section = _section("shift")
    own, given = "own first attempts", "the base's"
    for decoding in results.decodings(BASE_FIRST):
        for title, measure in (
            ("of all traces", partial(results.find, name="i_to_c@t2")),
            ("of the wrong first attempts", results.correction_rate),
        ):
            groups: dict[str, dict[str, Seeds]] = {}
            for row in results.rows:
                ours, theirs = measure(row, decoding=decoding), measure(row, decoding=decoding, condition=BASE_FIRST)
                if ours and theirs:
                    groups[row] = {own: ours, given: theirs}
            if groups:
                caption = f"Put right, {title}, {decoding}"
                figure = groups_figure(groups, across=f"% {title}")
                section["figures"].append(drawn.add(f"study-shift-{slug(title)}-{slug(decoding)}", caption, figure))
                lines = [[row, *map(percent, group.values())] for row, group in groups.items()]
                section["tables"].append({"caption": caption, "titles": ["row", own, given], "lines": lines})
    return section


def _votes(results: Results, drawn: Drawn) -> Section:
    from score_cli.study.report_figures import lines_figure

    section = _section("votes")
    for row in results.rows:
        for decoding in results.decodings(VOTED):
            if lines := vote_lines(results, row, decoding):
                up = "vote correct (% of problems)"
                figure = lines_figure(lines, across="responses", up=up, doubling=True, marked=True)
                section["figures"].append(drawn.add(f"study-votes-{slug(row)}", row, figure))
                section["tables"].append(_numbers(row, "responses", lines))
    return section


def _attempts(results: Results, drawn: Drawn) -> Section:
    from score_cli.study.report_figures import lines_figure

    section = _section("attempts")
    for decoding in results.decodings(MORE):
        found = [results.line(row, r"acc@t(\d+)", decoding=decoding, condition=MORE) for row in results.rows]
        lines = sorted((line for line in found if line.points), key=lambda line: line.label != SCORE)
        if lines:
            figure = lines_figure(lines, across="attempt", up="correct (%)", marked=True)
            section["figures"].append(drawn.add(f"study-attempts-{slug(decoding)}", decoding, figure))
            section["tables"].append(_numbers(decoding, "attempt", lines))
    return section


def _numbers(caption: str, axis: str, lines: Sequence[Line]) -> dict[str, Any]:
    titles, cells = numbers_table(axis, lines)
    return {"caption": caption, "titles": titles, "lines": cells}
