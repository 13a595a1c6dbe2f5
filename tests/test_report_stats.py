"""What the report computes, by hand."""

import re

import numpy as np
import pytest

from score_cli.evaluation.report_plots import (
    COLOURS,
    Series,
    curve_figure,
    edit_shares,
    edit_upper,
    inline_svg,
    style,
    svg_file,
)
from score_cli.evaluation.report_stats import choose_rows, mean_logprob, moving_average, pair_facts, pairs_shown, spread
from score_cli.evaluation.report_text import curve_lines
from score_cli.tables.records import Trace, Verdict


def trace(problem: str, logprobs: list[float], *, offline: int = 0) -> Trace:
    """A prompt token, the first attempt's tokens, a bridge token, one token of the second attempt."""
    owners = np.array([0] + [1] * len(logprobs) + [0, 2], dtype=np.int8)
    values = np.array([0.0, *logprobs, 0.0, -9.0], dtype=np.float32)
    return Trace(
        problem, 0, ["one", "two"], ["stop"] * 2, np.arange(len(owners), dtype=np.int32), owners, values, offline
    )


def reward(problem: str, letters: str, *, sample: int = 0, changed: bool = True) -> Verdict:
    verdicts = [{"c": "correct", "i": "incorrect", "u": "unscored"}[letter] for letter in letters]
    values = [None if letter == "u" else float(letter == "c") for letter in letters]
    return Verdict(problem, sample, ["1", "2" if changed else "1"], verdicts, values)


def test_mean_logprob_is_over_the_attempt_s_own_tokens() -> None:
    assert mean_logprob(trace("a", [-0.5, -1.5, -1.0]), 1) == -1.0
    assert mean_logprob(trace("a", [-0.5], offline=1), 1) is None
    assert mean_logprob(trace("a", []), 1) is None


def test_bins_by_logprob_are_of_equal_size_and_ordered_by_doubt() -> None:
    """24 traces, three bins of eight: the least sure third is wrong and changed, the middle changed alone."""
    rows = []
    for place in range(24):
        third = place // 8
        rows.append(
            (
                trace(f"p{place}", [-3.0 + place / 8]),
                reward(f"p{place}", "ic" if third == 0 else "cc", changed=third < 2),
            )
        )
    bins = pair_facts(list(reversed(rows)), 2).bins
    assert [part.changed.count for part in bins] == [8, 8, 8]
    assert [part.wrong.value for part in bins] == [1.0, 0.0, 0.0]
    assert [part.changed.value for part in bins] == [1.0, 1.0, 0.0]
    assert [part.mean for part in bins] == pytest.approx([-3 + 3.5 / 8, -2 + 3.5 / 8, -1 + 3.5 / 8])


def test_equal_logprobs_are_never_parted() -> None:
    rows = [(trace(f"p{n}", [-1.0]), reward(f"p{n}", "cc")) for n in range(40)]
    assert [part.changed.count for part in pair_facts(rows, 2).bins] == [40]


def test_unscored_first_attempts_are_in_no_bin() -> None:
    rows = [(trace(f"p{n}", [-1.0]), reward(f"p{n}", "uc" if n < 3 else "cc")) for n in range(20)]
    assert [part.wrong.count for part in pair_facts(rows, 2).bins] == [17]


def test_the_traces_shown_take_every_chain_of_verdicts_in_turn() -> None:
    chains = ["cc"] * 90 + ["ii"] * 8 + ["ic"] * 2
    rewards = [reward("p", letters, sample=n) for n, letters in enumerate(chains)]
    chosen = choose_rows(rewards, 12)
    kinds = [chains[row] for row in chosen]
    assert len(set(chosen)) == 12 and chosen == sorted(chosen)
    assert (kinds.count("cc"), kinds.count("ii"), kinds.count("ic")) == (5, 5, 2)
    assert choose_rows(rewards, 500) == list(range(100)) and choose_rows(rewards, 0) == []


def test_policies_that_behave_alike_are_shown_on_the_same_problems() -> None:
    rewards = [reward(f"p{n}", "cc") for n in range(50)]
    backwards = list(reversed(rewards))
    names = {rewards[row].problem_id for row in choose_rows(rewards, 7)}
    assert names == {backwards[row].problem_id for row in choose_rows(backwards, 7)}


def test_numbers_are_spread_from_the_first_to_the_last() -> None:
    assert spread(5, 9) == [0, 1, 2, 3, 4] and spread(9, 5) == [0, 2, 4, 6, 8] and spread(200, 2) == [0, 199]
    assert spread(7, 1) == [0] and spread(7, 0) == [] and spread(0, 3) == []


def test_pairs_of_attempts_shown() -> None:
    assert [pairs_shown(attempts) for attempts in (1, 2, 3, 10)] == [[], [2], [2, 3], [2, 10]]


def test_a_moving_average_is_centred_and_narrows_at_the_ends() -> None:
    assert moving_average([1, 2, 6, 4, 5], 3) == [1, 3, 4, 5, 5]
    assert moving_average([3, 1], 1) == [3, 1]
    line = [float(n) for n in range(50)]
    assert moving_average(line, 6) == pytest.approx(line)


def test_edit_shares_are_percent_of_all_traces_and_leave_zero_out() -> None:
    """Twenty bins of width 0.05: a bin holds its right end, as 0.05 and 1.0 show."""
    shares = edit_shares([0.0, 0.0, 0.01, 0.05, 0.051, 1.0, 0.99, 0.0], 1.0)
    assert shares == [25.0, 12.5] + [0.0] * 17 + [25.0]
    assert [edit_upper(ratios) for ratios in ([0.0], [], [0.05], [0.051], [1.0])] == [0.05, 0.05, 0.05, 0.1, 1.0]


def test_curves_are_grouped_by_what_they_measure() -> None:
    rows = [
        {"stage": "stage1", "iteration": 1, "name": "accuracy", "attempt": 2, "value": 0.75},
        {"stage": "stage1", "iteration": 0, "name": "accuracy", "attempt": 2, "value": 0.25},
        {"stage": "stage2", "iteration": 2, "name": "accuracy", "attempt": 2, "value": 0.5},
        {"stage": "stage1", "iteration": 0, "name": "accuracy", "attempt": 1, "value": 1.0},
        {"stage": "stage1", "iteration": 0, "name": "i_to_c@t2", "attempt": None, "value": 0.1},
        {"stage": "stage1", "iteration": 0, "name": "c_to_i@t2", "attempt": None, "value": 0.2},
        {"stage": "stage1", "iteration": 0, "name": "something_new", "attempt": None, "value": 7.0},
    ]
    found = {title: lines for (title, _, _), lines in curve_lines(rows).items()}
    assert list(found) == ["Accuracy", "Progress between the attempts", "something_new"]
    assert found["Accuracy"] == {
        "attempt 1": {"stage1": [(0, 1.0)]},
        "attempt 2": {"stage1": [(0, 0.25), (1, 0.75)], "stage2": [(2, 0.5)]},
    }
    assert found["Progress between the attempts"] == {
        "wrong to right": {"stage1": [(0, 0.1)]},
        "right to wrong": {"stage1": [(0, 0.2)]},
    }
    assert found["something_new"] == {"all": {"stage1": [(0, 7.0)]}}


def test_a_figure_on_the_page_has_no_colour_of_its_own() -> None:
    """Every colour is a variable, so that light and dark can each set it; a file keeps the colours."""
    with style():
        figure = curve_figure([Series("attempt 1", {"s": [(0, 0.1), (1, 0.2)]})], "unit")
        page, file = inline_svg(figure, "name", 'a "label"'), svg_file(figure, "name")
    assert not re.search(r"#[0-9a-f]{6}", page) and "var(--blue)" in page and COLOURS["blue"] in file
    assert page.startswith('<svg role="img" aria-label="a &quot;label&quot;"') and page.endswith("</svg>")
    assert all(found.startswith("name-") for found in re.findall(r' id="([^"]*)"', page))
    assert "<dc:date>" not in file and "<dc:date>" not in page


def test_the_line_drawn_goes_through_the_logged_values_in_percent() -> None:
    with style():
        figure = curve_figure([Series("x", {"one": [(0, 0.1), (1, 0.4)], "two": [(2, 0.2)]})], "unit", percent=True)
    drawn = [(list(line.get_xdata()), list(line.get_ydata())) for line in figure.axes[0].lines]
    # Two parts, and the rule where the second begins.
    assert drawn[:2] == [([0, 1], [10.0, 40.0]), ([2], [20.0])]
    assert drawn[2][0] == [1.5, 1.5]
