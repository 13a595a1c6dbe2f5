"""Metrics by hand."""

import math
from typing import Any

import numpy as np
import polars as pl
import pytest

from score_cli.evaluation.evaluate import comparison_rows, metric_rows
from score_cli.evaluation.layout import attempts_of, metric_tables, paper_table
from score_cli.evaluation.measured import measure_traces
from score_cli.metrics import clustered_mean, paired_difference, sums_of, two_sided_p
from score_cli.tables.records import Problem, Trace, Verdict


def pair(
    problem: str, first: str, second: str, verdicts: tuple[str, str], answers: tuple[str | None, str | None]
) -> tuple[Trace, Verdict]:
    empty = np.array([])
    rewards = [None if v == "unscored" else float(v == "correct") for v in verdicts]
    return (
        Trace(problem, 0, [first, second], ["stop", "stop"], empty, empty, empty, 0),
        Verdict(problem, 0, list(answers), list(verdicts), rewards),
    )


ROWS = [
    pair("a", "abcd", "abcd", ("correct", "correct"), ("1", "1")),
    pair("a", "abcd", "abxd", ("incorrect", "correct"), ("2", "1")),
    pair("b", "abcd", "wxyz", ("correct", "incorrect"), ("1", "2")),
    pair("b", "ab", "abcdef", ("incorrect", "incorrect"), ("2", "3")),
    pair("c", "", "", ("incorrect", "unscored"), ("2", "2")),
]


def measured() -> dict[str, dict[str, float]]:
    rows = metric_rows(measure_traces(*zip(*ROWS, strict=True)), policy="base", decoding="sampled")
    return {row["name"]: row for row in rows}


def test_metrics_are_fractions_of_what_could_be_scored() -> None:
    found = measured()
    assert found["acc@t1"]["value"] == pytest.approx(2 / 5) and found["acc@t1"]["count"] == 5
    assert found["acc@t2"]["value"] == pytest.approx(2 / 4) and found["acc@t2"]["count"] == 4
    assert found["delta@t2"]["value"] == 0.0 and found["delta@t2"]["count"] == 4
    assert found["i_to_c@t2"]["value"] == pytest.approx(1 / 4)
    assert found["c_to_i@t2"]["value"] == pytest.approx(1 / 4)
    assert found["changed@t2"]["value"] == pytest.approx(3 / 5)


def test_without_an_extracted_answer_the_text_says_whether_it_changed() -> None:
    """A grader of the user's own extracts nothing: two texts that differ, two alike, one cut off, both cut off."""
    cut = "truncated"
    rows = [
        pair("a", "near", "far", ("correct", "incorrect"), (None, None)),
        pair("a", "near", "near", ("incorrect", "incorrect"), (None, None)),
        pair("b", "near and", "near", (cut, "correct"), (None, None)),
        pair("b", "near and", "far and", (cut, cut), (None, None)),
    ]
    assert (rows_of(rows)["changed@t2"]["value"], rows_of(rows)["changed@t2"]["count"]) == (2 / 4, 4)


def test_lengths_and_cuts_are_of_what_was_sampled_whether_it_was_scored_or_not() -> None:
    def trace(ids: list[int], reasons: list[str], given: int) -> Trace:
        return Trace("a", 0, ["", ""], reasons, np.zeros(len(ids)), np.array(ids), np.zeros(len(ids)), given)

    traces = [
        trace([0, 1, 1, 1, 0, 2], ["length", "stop"], 0),
        trace([0, 0, 1, 0, 2, 2], ["stop", "length"], 0),
        trace([0, 1, 1, 1, 1, 0, 2, 2, 2, 2, 2, 2], ["length", "length"], 1),  # its first attempt was given
    ]
    verdicts = [Verdict("a", 0, [None, None], ["unscored", "truncated"], [None, 0.0])] * 3
    rows = metric_rows(measure_traces(traces, verdicts), policy="base", decoding="sampled")
    found = {row["name"]: (row["value"], row["count"]) for row in rows}
    assert found["length@t1"] == (2.0, 2) and found["length@t2"] == (3.0, 3)
    assert found["truncated@t1"] == (0.5, 2) and found["truncated@t2"] == (pytest.approx(2 / 3), 3)


def test_edit_ratio_is_edit_distance_over_the_summed_length() -> None:
    # 0/8, one substitution of 8, four of 8, four insertions of 8, and nothing of nothing.
    assert measured()["edit_ratio@t2"]["value"] == pytest.approx((0 + 1 / 8 + 4 / 8 + 4 / 8 + 0) / 5)


def test_delta_is_what_was_put_right_minus_what_was_broken() -> None:
    found = measured()
    assert found["delta@t2"]["value"] == pytest.approx(found["i_to_c@t2"]["value"] - found["c_to_i@t2"]["value"])


def test_standard_error_is_clustered_by_problem() -> None:
    """Two problems, values 1 1 and 0 0: by hand sqrt(2/1 * (1^2 + 1^2)) / 4."""
    found = clustered_mean([1.0, 1.0, 0.0, 0.0], ["a", "a", "b", "b"])
    assert found.value == 0.5
    assert found.stderr == pytest.approx(math.sqrt(2 * 2) / 4)


def test_clusters_of_one_give_the_usual_standard_error() -> None:
    values = [0.1, 0.7, 0.4, 0.9, 0.3]
    expected = np.std(values, ddof=1) / math.sqrt(5)
    assert clustered_mean(values, list("abcde")).stderr == pytest.approx(expected)


def test_clustered_error_covers_the_spread_of_repeated_experiments() -> None:
    """400 experiments of 30 problems with 4 equal samples each: the spread of means is the standard error."""
    rng = np.random.default_rng(0)
    means, errors = [], []
    for _ in range(400):
        values = np.repeat(rng.random(30) < 0.4, 4).astype(float)
        found = clustered_mean(values.tolist(), [str(i // 4) for i in range(120)])
        means.append(found.value)
        errors.append(found.stderr)
    assert np.mean(errors) == pytest.approx(np.std(means), rel=0.12)  # type: ignore[arg-type]


def test_one_problem_has_no_standard_error() -> None:
    assert clustered_mean([1.0, 0.0], ["a", "a"]).stderr is None


def test_the_paper_table_shows_percent_with_spread() -> None:
    rows = [
        {"policy": "score", "decoding": "greedy", "name": "acc@t1", "value": 0.6, "stderr": 0.012, "count": 9},
        {"policy": "score", "decoding": "greedy", "name": "delta@t2", "value": 0.044, "stderr": None, "count": 9},
    ]
    _, titles, lines, names = paper_table(rows)
    assert names == 2 and titles == ["policy", "decoding", "acc@t1", "acc@t2", "delta", "i->c", "c->i", "edit ratio"]
    assert lines == [["score", "greedy", "60.0 ±1.2", "", "+4.4", "", "", ""]]


def grouped(values: list[float], names: list[str]) -> pl.DataFrame:
    return sums_of(list(zip(names, values, strict=True)))


def test_a_paired_difference_of_one_trace_a_problem_is_the_paired_t_test() -> None:
    ours, theirs, names = [0.9, 0.4, 0.7, 0.1], [0.5, 0.5, 0.2, 0.3], list("abcd")
    found = paired_difference(grouped(ours, names), grouped(theirs, names))
    differences = np.array(ours) - np.array(theirs)
    assert found is not None
    assert found.value == pytest.approx(differences.mean())
    assert found.stderr == pytest.approx(differences.std(ddof=1) / math.sqrt(4))
    assert found.count == 4


def test_a_paired_difference_is_the_cluster_robust_regression_on_whose_trace_it_is() -> None:
    """Unequal numbers of traces: least squares with an intercept and an indicator, sandwiched by problem."""
    rng = np.random.default_rng(1)
    who = np.array([1] * 9 + [0] * 12)
    problem = np.concatenate([rng.integers(0, 5, 9), rng.integers(0, 5, 12)])
    problem[[0, 1, 2, 3, 4]] = problem[[9, 10, 11, 12, 13]] = range(5)
    values = rng.random(21)
    design = np.stack([np.ones(21), who], axis=1)
    bread = np.linalg.inv(design.T @ design)
    coefficients = bread @ design.T @ values
    residuals = values - design @ coefficients
    scores = np.stack([design[problem == g].T @ residuals[problem == g] for g in range(5)])
    variance = bread @ scores.T @ scores @ bread * 5 / 4

    names = np.array([f"p{g}" for g in problem])
    ours = grouped(values[who == 1].tolist(), names[who == 1].tolist())
    found = paired_difference(ours, grouped(values[who == 0].tolist(), names[who == 0].tolist()))
    assert found is not None
    assert found.value == pytest.approx(coefficients[1])
    assert found.stderr == pytest.approx(math.sqrt(variance[1, 1]))
    assert found.count == 5


def test_a_difference_is_over_the_problems_that_both_have() -> None:
    theirs = grouped([1.0, 0.0, 1.0, 0.0], list("bccd"))
    found = paired_difference(grouped([1.0, 0.0, 1.0], list("abc")), theirs)
    assert found is not None
    assert found.count == 2
    assert found.value == pytest.approx(1 / 2 - 2 / 3)
    assert paired_difference(grouped([1.0], ["a"]), grouped([1.0], ["b"])) is None


@pytest.mark.parametrize(("z", "p"), [(1.959963985, 0.05), (-2.575829304, 0.01), (0.0, 1.0), (0.674489750, 0.5)])
def test_p_is_the_two_sided_tail_of_the_normal_distribution(z: float, p: float) -> None:
    assert two_sided_p(z * 0.3, 0.3) == pytest.approx(p, abs=1e-8)


def test_p_is_absent_where_nothing_tells_the_noise() -> None:
    assert two_sided_p(0.1, None) is None
    assert two_sided_p(0.1, 0.0) is None
    assert two_sided_p(0.0, 0.0) == 1.0


def test_p_is_uniform_where_policies_do_not_differ() -> None:
    """600 experiments of two equal policies on 60 problems with 4 traces each: 5% fall below 0.05."""
    rng = np.random.default_rng(0)
    small = 0
    for _ in range(600):
        difficulty = rng.random(60)
        ours, theirs = (
            sums_of([(str(g), float(value)) for g, d in enumerate(difficulty) for value in rng.random(4) < d])
            for _ in "ab"
        )
        found = paired_difference(ours, theirs)
        assert found is not None
        p = two_sided_p(found.value, found.stderr)
        small += p is not None and p < 0.05
    # Binomial(600, 0.05) has mean 30 and standard deviation 5.3.
    assert 14 <= small <= 46


def test_comparisons_name_both_policies_and_every_measure() -> None:
    traces, rewards = [t for t, _ in ROWS], [r for _, r in ROWS]
    base = measure_traces(traces, rewards)
    better = measure_traces(traces, [Verdict(r.problem_id, 0, r.answers, ["correct"] * 2, [1.0, 1.0]) for r in rewards])
    rows = comparison_rows({"base": base, "stage1": base, "score": better}, decoding="greedy")
    found = {(row["policy"], row["name"]): row for row in rows}
    assert {row["policy"] for row in rows} == {"stage1 - base", "score - base", "score - stage1"}
    assert found["score - base", "acc@t1"]["value"] == pytest.approx(1 - 2 / 5)
    assert found["score - base", "acc@t1"]["count"] == 3
    # Problem c has no scored second attempt of the base.
    assert found["score - base", "acc@t2"]["value"] == pytest.approx(1 - 2 / 4)
    assert found["score - base", "acc@t2"]["count"] == 2
    assert found["stage1 - base", "delta@t2"]["value"] == 0.0 and found["stage1 - base", "delta@t2"]["stderr"] == 0.0


def chain(problem: str, index: int, verdicts: str, texts: list[str] | None = None) -> tuple[Trace, Verdict]:
    """A trace of as many attempts as letters: c correct, i incorrect, u unscored; its answers are the letters."""
    empty = np.array([])
    words = {"c": "correct", "i": "incorrect", "u": "unscored"}
    values = [None if letter == "u" else float(letter == "c") for letter in verdicts]
    attempts = texts or list(verdicts)
    return (
        Trace(problem, index, attempts, ["stop"] * len(verdicts), empty, empty, empty, 0),
        Verdict(problem, index, list(verdicts), [words[letter] for letter in verdicts], values),
    )


def rows_of(pairs: list[tuple[Trace, Verdict]], **settings: Any) -> dict[str, dict[str, Any]]:
    rows = metric_rows(measure_traces(*zip(*pairs, strict=True)), policy="base", decoding="sampled", **settings)
    return {row["name"]: row for row in rows}


def test_every_pair_of_neighbouring_attempts_is_measured() -> None:
    """Four attempts; an unscored one hides the pairs it is in and no other."""
    found = rows_of([chain("a", 0, "icci"), chain("a", 1, "iiuc"), chain("b", 0, "ccic"), chain("b", 1, "iccc")])
    values = {name: (row["value"], row["count"]) for name, row in found.items() if "hist" not in name}
    assert values["acc@t1"] == (1 / 4, 4) and values["acc@t2"] == (3 / 4, 4)
    assert values["acc@t3"] == (2 / 3, 3) and values["acc@t4"] == (3 / 4, 4)
    assert values["delta@t2"] == (2 / 4, 4) and values["i_to_c@t2"] == (2 / 4, 4) and values["c_to_i@t2"] == (0, 4)
    assert values["i_to_c@t3"] == (0, 3) and values["c_to_i@t3"] == (1 / 3, 3)
    assert values["delta@t4"] == (0, 3) and values["i_to_c@t4"] == (1 / 3, 3) and values["c_to_i@t4"] == (1 / 3, 3)
    assert values["changed@t3"] == (2 / 4, 4)
    assert {name for name in found if name.endswith("@t1")} == {"acc@t1", "truncated@t1", "length@t1"}


def test_the_histogram_shares_out_every_trace_and_bounds_belong_to_the_upper_bin() -> None:
    # Ratios: 0, the bounds 1/20 and 3/20, 1/2, and 1.
    pairs = [
        chain("a", 0, "cc", ["abcd", "abcd"]),
        chain("a", 1, "cc", ["a" * 10, "b" + "a" * 9]),
        chain("b", 0, "cc", ["a" * 10, "bbb" + "a" * 7]),
        chain("b", 1, "cc", ["abcd", "wxyz"]),
        chain("c", 0, "cc", ["abc", ""]),
    ]
    found = {name: row for name, row in rows_of(pairs).items() if name.startswith("edit_ratio_hist@t2")}
    assert len(found) == 20
    expected = ["[0.00,0.05)", "[0.05,0.10)", "[0.15,0.20)", "[0.50,0.55)", "[0.95,1.00]"]
    assert [name for name, row in found.items() if row["value"]] == [
        f"edit_ratio_hist@t2{bounds}" for bounds in expected
    ]
    assert {row["value"] for row in found.values()} == {0.0, 1 / 5}
    # One of five, in a problem of two traces: residuals of the problems are 1 - 2/5, -2/5, -1/5.
    spread = math.sqrt(3 / 2 * (0.6**2 + 0.4**2 + 0.2**2)) / 5
    assert found["edit_ratio_hist@t2[0.00,0.05)"]["stderr"] == pytest.approx(spread)


def leveled(name: str, level: str | None, subject: str | None = None) -> Problem:
    return Problem(problem_id=name, task="math", question="", level=level, subject=subject, source="by hand")


def test_levels_and_subjects_have_figures_of_their_own() -> None:
    pairs = [chain("a", 0, "ic"), chain("a", 1, "uc"), chain("b", 0, "ci"), chain("c", 0, "cc")]
    problems = [leveled("a", "1", "Algebra"), leveled("b", "1", "Geometry"), leveled("c", "2", "Algebra")]
    found = rows_of(pairs, problems=problems)
    assert found["acc@t1|level=1"]["value"] == 1 / 2 and found["acc@t1|level=1"]["count"] == 2
    assert found["acc@t2|subject=Algebra"]["value"] == 1.0 and found["acc@t2|subject=Algebra"]["count"] == 3
    assert found["delta@t2|subject=Geometry"]["value"] == -1.0
    assert found["acc@t1|level=2"]["stderr"] is None
    assert found["acc@t1"]["count"] == 3


def test_a_column_that_says_one_thing_of_all_problems_is_no_breakdown() -> None:
    pairs = [chain("a", 0, "ic"), chain("b", 0, "ci")]
    found = rows_of(pairs, problems=[leveled("a", "1", "division"), leveled("b", None, "division")])
    assert not [name for name in found if "|" in name]


def test_pass_at_k_is_taken_at_each_attempt_over_problems_with_enough_scored_samples() -> None:
    pairs = [chain("a", 0, "ic"), chain("a", 1, "cc"), chain("a", 2, "ii"), chain("b", 0, "ii"), chain("b", 1, "uc")]
    found = rows_of(pairs, pass_at=[1, 2])
    assert found["pass@1@t1"]["value"] == pytest.approx((1 / 3 + 0) / 2)
    # At t1, b has one scored sample; of a's three pairs of samples two hold the right one.
    assert found["pass@2@t1"]["value"] == pytest.approx(2 / 3) and found["pass@2@t1"]["count"] == 1
    assert found["pass@2@t2"]["value"] == pytest.approx((1 + 1) / 2) and found["pass@2@t2"]["count"] == 2
    assert not [name for name in rows_of(pairs) if name.startswith("pass")]


def row(name: str, value: float, stderr: float | None = 0.01, policy: str = "score") -> dict[str, Any]:
    return {"policy": policy, "decoding": "greedy", "name": name, "value": value, "stderr": stderr, "count": 9}


def test_more_attempts_are_printed_one_a_line() -> None:
    rows = [row("acc@t1", 0.5), row("acc@t2", 0.6), row("acc@t3", 0.7), row("delta@t3", 0.1), row("i_to_c@t2", 0.2)]
    _, titles, lines, names = paper_table(rows, attempts_of(rows))
    assert names == 3 and titles == ["policy", "decoding", "attempt", "acc", "delta", "i->c", "c->i", "edit ratio"]
    assert lines == [
        ["score", "greedy", "t1", "50.0 ±1.0", "", "", "", ""],
        ["score", "greedy", "t2", "60.0 ±1.0", "", "20.0 ±1.0", "", ""],
        ["score", "greedy", "t3", "70.0 ±1.0", "+10.0 ±1.0", "", "", ""],
    ]


def test_one_attempt_is_printed_without_pairs() -> None:
    table = paper_table([row("acc@t1", 0.5)], 1)
    assert (table.titles, table.lines) == (["policy", "decoding", "acc@t1"], [["score", "greedy", "50.0 ±1.0"]])


def test_differences_passes_and_votes_have_tables_of_their_own() -> None:
    rows = [
        row("acc@t1", 0.5),
        row("acc@t2", 0.6),
        row("acc@t1", 0.02, policy="score - base"),
        row("delta@t2", -0.05, policy="score - base"),
        row("pass@4@t2", 0.75),
        row("majority@parallel[8]", 0.7),
        row("majority@sequential[8]", 0.72),
        row("majority@gain[8]", 0.02),
    ]
    paper, differences, passes, votes = metric_tables(rows, 2)
    assert [line[0] for line in paper.lines] == ["score"]
    # z of 2 and -5: p of 0.0455 and 6e-7.
    assert differences.lines == [["score - base", "greedy", "+2.0 ±1.0 p=0.046", "", "-5.0 ±1.0 p<0.001", "", "", ""]]
    assert passes.titles[-1] == "pass@4" and passes.lines == [["score", "greedy", "t2", "75.0 ±1.0"]]
    assert votes.titles == ["policy", "responses", "parallel", "sequential", "gain"]
    assert votes.lines == [["score", "8", "70.0 ±1.0", "72.0 ±1.0", "+2.0 ±1.0 p=0.046"]]
    assert metric_tables(rows[:2], 2) == [paper]
