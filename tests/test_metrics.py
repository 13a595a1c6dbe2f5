"""Metrics by hand."""

import math

import numpy as np
import pytest

from score_cli.evaluation.evaluate import metric_rows, paper_table
from score_cli.evaluation.metrics import clustered_mean
from score_cli.tables.traces import Reward, Trace


def pair(
    problem: str, first: str, second: str, verdicts: tuple[str, str], answers: tuple[str, str]
) -> tuple[Trace, Reward]:
    empty = np.array([])
    rewards = [None if v == "unscored" else float(v == "correct") for v in verdicts]
    return (
        Trace(problem, 0, [first, second], ["stop", "stop"], empty, empty, empty, 0),
        Reward(problem, 0, list(answers), list(verdicts), rewards),
    )


ROWS = [
    pair("a", "abcd", "abcd", ("correct", "correct"), ("1", "1")),
    pair("a", "abcd", "abxd", ("incorrect", "correct"), ("2", "1")),
    pair("b", "abcd", "wxyz", ("correct", "incorrect"), ("1", "2")),
    pair("b", "ab", "abcdef", ("incorrect", "incorrect"), ("2", "3")),
    pair("c", "", "", ("incorrect", "unscored"), ("2", "2")),
]


def measured() -> dict[str, dict[str, float]]:
    rows = metric_rows([t for t, _ in ROWS], [r for _, r in ROWS], policy="base", decoding="sampled")
    return {row["name"]: row for row in rows}


def test_metrics_are_fractions_of_what_could_be_scored() -> None:
    found = measured()
    assert found["acc@t1"]["value"] == pytest.approx(2 / 5) and found["acc@t1"]["count"] == 5
    assert found["acc@t2"]["value"] == pytest.approx(2 / 4) and found["acc@t2"]["count"] == 4
    assert found["delta@t2"]["value"] == 0.0 and found["delta@t2"]["count"] == 4
    assert found["i_to_c@t2"]["value"] == pytest.approx(1 / 4)
    assert found["c_to_i@t2"]["value"] == pytest.approx(1 / 4)
    assert found["changed@t2"]["value"] == pytest.approx(3 / 5)


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
    titles, lines = paper_table(rows)
    assert titles == ["policy", "decoding", "acc@t1", "acc@t2", "delta", "i->c", "c->i", "edit ratio"]
    assert lines == [["score", "greedy", "60.0 ±1.2", "", "+4.4", "", "", ""]]
