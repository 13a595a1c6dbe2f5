"""Answers handed over, the least trusted first: the curve by hand and over all orders, and the command."""

import itertools
import math
from collections.abc import Callable, Sequence
from pathlib import Path

import polars as pl
import pytest

from score_cli.cli import run_command
from score_cli.evaluation.escalation import escalation_curve
from score_cli.tables.parquet import METRICS, REWARDS, SIGNALS, read_footer, traces_with, write_table
from score_cli.tables.provenance import Footer
from tests.conftest import rewrite
from tests.report_support import write_traces
from tests.scripts import dialogue

Case = tuple[str, float, int, int]  # problem, trust, whether one's own answer is right, and the other policy's
# The one that is trusted least is put right; of two that are trusted alike one is put right and one broken.
CASES: list[Case] = [("a", 0.9, 1, 1), ("b", 0.2, 1, 0), ("c", 0.1, 0, 1), ("d", 0.2, 0, 1)]


def frame(cases: Sequence[Case]) -> pl.DataFrame:
    return pl.DataFrame(cases, schema=["problem_id", "trust", "own", "other"], orient="row")


def test_the_curve_by_hand() -> None:
    """0.5 rises in a line to 0.75 at a quarter, and stays: area 0.25 x 0.625 + 0.75 x 0.75 = 0.71875.

    In random order the line from 0.5 to 0.75 has the area 0.625.
    """
    found = {name: estimate.value for name, estimate in escalation_curve(frame(CASES), (0, 0.1, 0.25, 0.5, 1)).items()}
    expected = {"0.00": 0.5, "0.10": 0.6, "0.25": 0.75, "0.50": 0.75, "1.00": 0.75, "area": 0.71875, "gain": 0.09375}
    assert found == {name: pytest.approx(value) for name, value in expected.items()}


def test_the_curve_is_the_mean_over_all_orders_of_the_ties() -> None:
    answers = [(1, 0, 1), (1, 1, 0), (1, 0, 0), (2, 1, 1), (2, 0, 1), (2, 1, 0)]
    orders = [
        order for order in itertools.permutations(answers) if [trust for trust, *_ in order] == [1, 1, 1, 2, 2, 2]
    ]
    cases = [(str(number % 3), trust, own, other) for number, (trust, own, other) in enumerate(answers)]
    curve = escalation_curve(frame(cases), [count / 6 for count in range(7)])
    values = list(curve.values())
    means = [
        sum(sum(other for _, _, other in order[:count]) + sum(own for _, own, _ in order[count:]) for order in orders)
        / 6
        / len(orders)
        for count in range(7)
    ]
    assert [estimate.value for estimate in values[:7]] == pytest.approx(means)
    area = sum((left + right) / 2 / 6 for left, right in itertools.pairwise(means))
    assert curve["area"].value == pytest.approx(area)
    assert curve["gain"].value == pytest.approx(area - (means[0] + means[-1]) / 2)


def test_errors_are_clustered_by_problem() -> None:
    """All handed over: a and b are right in both of their samples, c in none."""
    cases = [(name, 0.5, 0, int(name != "c")) for name in "abc" for _ in range(2)]
    last = escalation_curve(frame(cases))["1.00"]
    # Pulls 1/9, 1/9, -2/9: squares 6/81, times 3/2.
    assert (last.value, last.count) == (pytest.approx(2 / 3), 6) and last.stderr == pytest.approx((1 / 9) ** 0.5)


def write_signals(path: Path, scores: list[float | None]) -> None:
    rows = [
        {"problem_id": problem, "sample_index": 0, "name": "confidence"}
        | {"scores": [score, 0.5], "accepted": [None, None], "values": [score or 0.0, 0.5]}
        for problem, score in zip("abcd", scores, strict=True)
    ]
    write_table(path, SIGNALS, rows, Footer(table=SIGNALS.name, stage="signal"))


def write_policy(name: str, verdicts: list[str], first: str = "one") -> None:
    write_traces(
        Path(),
        f"{name}-sampled",
        [(p, 0, (first, "two"), v, ("1", "2"), -0.5) for p, v in zip("abcd", verdicts, strict=True)],
    )


@pytest.fixture
def policies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """First solves right of a and b, and b trusted as little as d, which has no answer; then the command."""
    monkeypatch.chdir(tmp_path)
    write_policy("base", ["cc", "cc", "ic", "ic"])
    write_policy("strong", ["cc", "ci", "ic", "cc"])
    write_signals(tmp_path / "signals.parquet", [0.9, 0.2, 0.1, 0.2])
    return ["eval", "--traces", "base-sampled.traces.parquet", "--escalate", "strong-sampled.traces.parquet"]


def curve(column: str = "value") -> dict[str, float]:
    rows = pl.read_parquet("metrics.parquet").filter(pl.col("name").str.starts_with("escalated@strong["))
    return {
        name.removeprefix("escalated@strong[").rstrip("]"): v for name, v in rows.select("name", column).iter_rows()
    }


def test_first_solves_are_handed_over_to_the_other_s_last_ones(
    policies: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    """The curve of CASES."""
    assert run_command([*policies, "--signals", "signals.parquet"]) == 0
    found = curve()
    assert [found[name] for name in ("0.00", "0.10", "0.50", "1.00", "area", "gain")] == pytest.approx(
        [0.5, 0.6, 0.75, 0.75, 0.71875, 0.09375]
    )
    assert set(curve("count").values()) == {4}
    footer = read_footer(Path("metrics.parquet"), METRICS)
    assert footer is not None and {"signals", "escalate-traces", "escalate-rewards"} <= set(footer.inputs)
    printed = capsys.readouterr().out
    assert "handed over" in printed and "71.9" in printed and "+9.4" in printed
    assert run_command(["report", ".", "--out", "page.html", "--plots", "plots"]) == 0
    assert Path("plots/escalation-base-sampled.svg").exists() and "random order" in Path("page.html").read_text()


def test_no_answer_goes_first_and_what_nobody_scored_counts_nowhere(policies: list[str]) -> None:
    """d has no answer: at a quarter it alone is handed over, and put right. a was unscored: 1/3, then 2/3."""
    write_policy("base", ["uc", "cc", "ic", "ic"])
    write_signals(Path("signals.parquet"), [0.9, 0.8, 0.7, None])
    assert run_command([*policies, "--signals", "signals.parquet"]) == 0
    assert curve()["0.00"] == pytest.approx(1 / 3) and set(curve("count").values()) == {3}
    # A tenth of three cases is 0.3 of the first of them.
    assert curve()["0.10"] == pytest.approx(1 / 3 + 0.1)


def test_claims_say_who_goes_where_no_signal_does(policies: list[str]) -> None:
    """a is claimed right and is; b is claimed wrong, and right; c is unread; d is claimed wrong: b, c, d go."""
    said = [
        (("solve", "x", "correct"), ("verify", "right", "correct")),
        (("solve", "x", "correct"), ("verify", "wrong", "incorrect")),
        (("solve", "x", "incorrect"), ("verify", "hm", "no_answer")),
        (("solve", "x", "incorrect"), ("verify", "wrong", "correct")),
    ]
    pairs = [dialogue(*turns, problem=problem) for problem, turns in zip("abcd", said, strict=True)]
    rows = [dict(vars(trace)) for trace, _ in pairs]
    write_table(Path("base-sampled.traces.parquet"), traces_with("roles"), rows, Footer(table="traces", stage="sample"))
    judged = [dict(vars(verdict)) for _, verdict in pairs]
    write_table(Path("base-sampled.rewards.parquet"), REWARDS, judged, Footer(table="rewards", stage="verify"))
    assert run_command(policies) == 0
    # b breaks, c and d are put right: 2/4 + 1/4 in all, on a line until three quarters.
    assert curve()["0.50"] == pytest.approx(0.5 + 0.25 * 0.5 / 0.75) and curve()["0.80"] == pytest.approx(0.75)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda: Path("signals.parquet").unlink(), "signals.parquet does not exist"),
        (lambda: write_signals(Path("signals.parquet"), [0.1, 0.2, 0.3, math.nan]), "expected a finite number"),
        (
            lambda: write_traces(Path(), "strong-sampled", [("a", 0, ("x", "y"), "cc", ("1", "1"), -1)]),
            "lacks sample 0 of",
        ),
        (
            lambda: write_traces(Path(), "strong-sampled", [(p, 0, ("x", "y"), "cc", ("1", "1"), -1) for p in "abbcd"]),
            "strong-sampled.traces.parquet holds two traces of sample 0 of problem b",
        ),
        (lambda: Path("strong-sampled.rewards.parquet").unlink(), "has no rewards beside it"),
        (lambda: write_policy("base", ["uc"] * 4), "nothing can be handed over"),
    ],
)
def test_tables_that_do_not_belong_together_are_refused_in_one_line(
    policies: list[str], change: Callable[[], object], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    change()
    assert run_command([*policies, "--signals", "signals.parquet"]) == 2
    error = capsys.readouterr().err.strip()
    assert message in error and "\n" not in error and not Path("metrics.parquet").exists()


def test_without_signals_or_claims_nothing_says_who_goes(
    policies: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_command(policies) == 2
    assert "makes no claim on sample 0 of problem a: name --signals" in capsys.readouterr().err
    assert run_command(["eval", "--signals", "signals.parquet"]) == 2
    assert "--signals says which answers to hand over" in capsys.readouterr().err


def test_first_attempts_that_were_given_must_be_those_handed_over(
    policies: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    write_policy("strong", ["cc", "ci", "ic", "cc"], first="another")
    rewrite(Path("strong-sampled.traces.parquet"), lambda row: row.update(offline_attempts=1))
    assert run_command([*policies, "--signals", "signals.parquet"]) == 2
    assert "goes on from another first attempt at sample 0 of problem a, than" in capsys.readouterr().err
