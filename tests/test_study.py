"""The study's figures: what is averaged, claimed and shown, by hand."""

import math

import pytest

from score_cli.study.claims import judge_claims
from score_cli.study.intervals import Verdict, interval, t_quantile
from score_cli.study.own_tables import own_tables
from score_cli.study.results import PAPER, Results, Seeds, logged, study_markdown, study_tables


def rows_of(
    row: str, name: str, *values: float, condition: str = "own", policy: str = "p", decoding: str = "sampled"
) -> list[dict[str, object]]:
    key = {"row": row, "condition": condition, "policy": policy, "decoding": decoding, "name": name}
    return [key | {"seed": seed, "value": value, "stderr": None, "count": 8} for seed, value in enumerate(values)]


def test_figures_are_means_over_seeds_with_the_deviation_between_them() -> None:
    """0.1, 0.2, 0.6: mean 0.3, squared deviations 0.04 + 0.01 + 0.09 = 0.14, over n - 1 = 2: 0.07."""
    seeds = Seeds({0: 0.1, 1: 0.2, 2: 0.6})
    assert seeds.mean == pytest.approx(0.3) and seeds.deviation == pytest.approx(0.07**0.5)
    assert Seeds({0: 0.25}).deviation is None and str(seeds) == "30.0 ±26.5"


YES, NO, OPEN = Verdict.APPEARS, Verdict.ABSENT, Verdict.OPEN


def verdicts(rows: list[dict[str, object]]) -> dict[str, Verdict]:
    return {claim.text: claim.verdict for claim in judge_claims(Results(rows))}


@pytest.mark.parametrize(
    ("deltas", "expected"),
    [
        ((-0.03, -0.0301), YES),
        ((0.03, 0.0301), NO),
        ((-0.03, -0.01), OPEN),  # -0.02 ± 12.706 x 0.01: two seeds say little
        ((-0.03, -0.01, -0.02, -0.025, -0.015), YES),  # -0.02 ± 2.776 x 0.0079 / sqrt(5), which is 0.0098
        ((-0.03,), OPEN),  # of one seed there is no interval
    ],
)
def test_the_base_claim_is_about_the_interval_of_delta(deltas: tuple[float, ...], expected: Verdict) -> None:
    assert verdicts(rows_of("base", "delta@t2", *deltas)) == {"the base loses by correcting itself": expected}


def test_rows_are_compared_seed_by_seed() -> None:
    """Deltas range over 20 points, but each seed's is 2.0 or 2.1 below SCoRe's: 2.05 ± 12.706 x 0.05 is below 0."""
    for gaps, expected in (((0.02, 0.021), YES), ((0.02, 0.05), OPEN), ((-0.02, -0.021), NO)):
        rows = rows_of("score", "delta@t2", 0.1, 0.3) + rows_of("star", "delta@t2", 0.1 - gaps[0], 0.3 - gaps[1])
        assert verdicts(rows)["supervised training falls short: star"] is expected


def test_a_seed_that_only_one_row_has_is_in_no_difference() -> None:
    (claim,) = [
        claim
        for claim in judge_claims(
            Results(rows_of("score", "acc@t2", 0.5, 0.6, 0.9) + rows_of("star", "acc@t2", 0.4, 0.5))
        )
        if claim.text.endswith("of the baselines")
    ]
    assert claim.figures == "66.7 against 45.0 of star: +10.0 [+10.0, +10.0]" and claim.verdict is YES


def test_collapse_needs_fewer_changes_and_a_smaller_delta() -> None:
    known = rows_of("base", "changed@t2", 0.2, 0.2) + rows_of("score", "delta@t2", 0.1, 0.1)
    for changed, delta, expected in (
        ((0.1, 0.1), (0.0, 0.0), YES),
        ((0.3, 0.3), (0.0, 0.0), NO),
        ((0.1, 0.1), (0.2, 0.2), NO),
        ((0.1, 0.1), (0.0, 0.09), OPEN),
        ((0.3, 0.3), (0.0, 0.09), NO),  # whatever the other part is
    ):
        rows = [*known, *rows_of("no-stage1", "changed@t2", *changed), *rows_of("no-stage1", "delta@t2", *delta)]
        assert verdicts(rows)["no-stage1 collapses to answering the same twice"] is expected


def test_score_is_largest_only_above_every_row_of_its_kind() -> None:
    """Against star-plus 0.1 and 0.11 are not decided: -0.01 to 0.22 with t = 12.706 would need a gap of 0.06."""
    rows = rows_of("score", "acc@t2", 0.5, 0.5) + rows_of("star", "acc@t2", 0.4, 0.4)
    (claim,) = judge_claims(Results(rows))
    assert (claim.verdict, claim.figures) == (YES, "50.0 against 40.0 of star: +10.0 [+10.0, +10.0]")
    rows += rows_of("star-plus", "acc@t2", 0.3, 0.4)
    (claim,) = judge_claims(Results(rows))
    assert claim.verdict is OPEN
    assert claim.figures == "50.0 against 40.0 of star: +10.0 [+10.0, +10.0]; nor decided against star-plus"
    rows += rows_of("pair-sft", "acc@t2", 0.6, 0.6)
    (claim,) = judge_claims(Results(rows))
    assert claim.verdict is NO and claim.figures.startswith("50.0 against 60.0 of pair-sft: -10.0")


def test_score_is_compared_with_its_rivals_as_sampled_and_as_decoded_greedily() -> None:
    rows = rows_of("score", "acc@t2", 0.5, 0.5) + rows_of("no-stage1", "acc@t2", 0.6, 0.6)
    rows += rows_of("score", "acc@t2", 0.9, 0.9, decoding="greedy")
    rows += rows_of("no-stage1", "acc@t2", 0.8, 0.8, decoding="greedy")
    title = "SCoRe has the largest accuracy at the second attempt, of the ablations"
    found = {claim.text: (claim.verdict, claim.figures) for claim in judge_claims(Results(rows))}
    assert found == {
        title: (NO, "50.0 against 60.0 of no-stage1: -10.0 [-10.0, -10.0]"),
        f"{title}, decoded greedily": (YES, "90.0 against 80.0 of no-stage1: +10.0 [+10.0, +10.0]"),
    }


@pytest.mark.parametrize(
    ("freedom", "confidence", "table"),
    # W. S. Gosset's t, two-sided, as printed in the NIST/SEMATECH handbook, section 1.3.6.7.2.
    [(1, 0.95, 12.706), (2, 0.95, 4.303), (4, 0.95, 2.776), (7, 0.95, 2.365), (30, 0.95, 2.042), (7, 0.99, 3.499)],
)
def test_quantiles_of_students_t_are_those_of_printed_tables(freedom: int, confidence: float, table: float) -> None:
    assert t_quantile(freedom, confidence) == pytest.approx(table, abs=5e-4)


def test_quantiles_of_students_t_have_a_closed_form_at_one_and_two_degrees() -> None:
    """Of one degree tan(pi p / 2); of two p sqrt(2 / (1 - p^2))."""
    for p in (0.5, 0.9, 0.95, 0.99):
        assert t_quantile(1, p) == pytest.approx(math.tan(math.pi * p / 2), rel=1e-9)
        assert t_quantile(2, p) == pytest.approx(p * math.sqrt(2 / (1 - p * p)), rel=1e-9)


def test_an_interval_is_students_about_the_mean() -> None:
    """1, 2, 3, 4, 5 points: deviation sqrt(2.5), over sqrt(5) 0.7071, times 2.7764 is 1.9632."""
    found = interval([0.01, 0.02, 0.03, 0.04, 0.05])
    assert found.half == pytest.approx(0.019632, abs=1e-6) and str(found) == "+3.0 [+1.0, +5.0]"
    assert [found.above(border) for border in (0.0, 0.02, 0.06)] == [YES, OPEN, NO]
    assert [found.below(border) for border in (0.0, 0.02, 0.06)] == [NO, OPEN, YES]
    assert [found.within(radius) for radius in (0.06, 0.04, 0.01)] == [YES, OPEN, NO]
    assert str(interval([0.01])) == "+1.0 [one seed]" and interval([0.01]).above() is OPEN


def test_every_row_is_shown_seed_by_seed_and_less_score() -> None:
    rows = rows_of("score", "acc@t2", 0.5, 0.75) + rows_of("star", "acc@t2", 0.4, 0.55)
    tables = study_tables(Results(rows), [])
    assert tables["seeds"].titles == ["row", "", "seed 0", "seed 1"]
    assert tables["seeds"].lines == [["score", "acc@t2", "50.0", "75.0"], ["star", "acc@t2", "40.0", "55.0"]]
    # -15 ± 12.706 x 5, in points: the deviation of -10 and -20 over sqrt(2) is 5.
    assert tables["against"].lines == [["star", "sampled", "", "-15.0 [-78.5, +48.5]", ""]]
    for row, value in (("score", 0.5), ("star", 0.4)):
        rows += rows_of(row, "acc@t2", value, value, decoding="greedy")
    assert study_tables(Results(rows), [])["against"].lines[1] == ["star", "greedy", "", "-10.0 [-10.0, -10.0]", ""]
    assert {"seeds", "against"} & set(study_tables(Results(rows_of("score", "acc@t2", 0.5)), [])) == set()


def test_the_correction_rate_is_a_share_of_wrong_first_attempts() -> None:
    """On its own 0.1 of 0.5 wrong is a fifth; after the base's 0.2 of 0.4 wrong is a half."""
    rows = rows_of("star", "acc@t1", 0.5, 0.5) + rows_of("star", "i_to_c@t2", 0.1, 0.1)
    for name, value in (("acc@t1", 0.6), ("i_to_c@t2", 0.2)):
        rows += rows_of("star", name, value, value, condition="base-first-attempts")
    own = Results(rows).correction_rate("star")
    assert own is not None and own.values == {0: pytest.approx(0.2), 1: pytest.approx(0.2)}
    assert verdicts(rows) == {"star corrects the base's first attempts better than its own": YES}


def test_each_budget_of_votes_is_a_claim() -> None:
    rows = rows_of("score", "majority@gain[4]", 0.04, 0.04, condition="votes")
    rows += rows_of("score", "majority@gain[8]", -0.02, 0.0, condition="votes")
    rows += rows_of("score", "majority@gain[16]", -0.02, -0.02, condition="votes")
    assert list(verdicts(rows).values()) == [YES, OPEN, NO]


def test_the_papers_figures_stand_beside_ours() -> None:
    rows = rows_of("score", "acc@t1", 0.5, 0.6) + rows_of("score", "delta@t2", 0.1, 0.1)
    table = study_tables(Results(rows), [])["results"]
    (line,) = table.lines
    shown = dict(zip(table.titles, line, strict=True))
    assert (shown["acc@t1"], shown["delta"], shown["paper"]) == ("55.0 ±7.1 (60.0)", "+10.0 ±0.0 (+4.4)", "Table 2")
    claims = judge_claims(Results(rows + rows_of("base", "delta@t2", 0.1, 0.1)))
    page = study_markdown([table], claims)
    assert (
        "- does not appear: the base loses by correcting itself (delta of base below 0): +10.0 [+10.0, +10.0]" in page
    )


def test_the_paper_s_figures_agree_with_one_another() -> None:
    """Delta is the second attempt minus the first, and put right minus broken; the paper rounds to a tenth."""
    for row, (_, (first, second, delta, *flow)) in PAPER.items():
        assert second - first == pytest.approx(delta, abs=1.1e-3), row
        if flow:
            assert flow[0] - flow[1] == pytest.approx(delta, abs=2.1e-3), row


def test_a_row_of_its_own_table_is_shown_before_and_after_by_its_own_measures() -> None:
    """(0.5 + 0.7) / 2 = 0.6, deviation 0.2 / sqrt(2) = 0.1414; claims on wrong solves: (300 + 100) / 2 = 200."""
    rows = rows_of("s2r", "verify_acc", 0.5, 0.7, policy="base") + rows_of(
        "s2r", "verify_acc", 0.9, 0.9, policy="stage2"
    )
    rows += rows_of("s2r", "mean_trials", 1.5, 1.25, policy="stage2")
    rows += [
        row | {"count": count}
        for row, count in zip(rows_of("s2r", "error_recall", 0.5, 0.5, policy="stage2"), (300, 100), strict=True)
    ]
    rows += rows_of("score", "acc@t1", 0.5, 0.5)
    tables = {"S2R": {"rows": ["s2r"], "columns": ["verify_acc", "error_recall", "mean_trials"], "words": "w"}}
    tables["S2R"]["training"] = []
    shown = own_tables(Results(rows), tables)["S2R"]
    assert shown.titles == ["row", "policy", "decoding", "verify_acc", "error_recall", "mean_trials"]
    assert shown.lines == [
        ["s2r", "base", "sampled", "60.0 ±14.1", "", ""],
        ["s2r", "stage2", "sampled", "90.0 ±0.0", "50.0 ±0.0 of 200", "1.38 ±0.18"],
    ]
    (paper,) = study_tables(Results(rows), [], apart={"s2r"})["results"].lines
    assert paper[0] == "score"


def test_what_a_run_logged_is_shown_of_its_first_and_its_last_ten_updates() -> None:
    """Updates 0 to 21 log their number as the accepted share: means 4.5 and 16.5. Three updates: the first and last."""
    lines = [{"iteration": n, "name": "judged", "attempt": None, "value": float(n)} for n in range(22)]
    lines += [{"iteration": n, "name": "accuracy", "attempt": 1, "value": 0.25} for n in range(22)]
    found = {(row["policy"], row["name"]): (row["value"], row["count"]) for row in logged(lines)}
    assert found == {
        ("first 10 updates", "judged"): (4.5, 10),
        ("last 10 updates", "judged"): (16.5, 10),
        ("first 10 updates", "accuracy@t1"): (0.25, 10),
        ("last 10 updates", "accuracy@t1"): (0.25, 10),
    }
    assert [(row["policy"], row["value"]) for row in logged(lines[:3])] == [
        ("first 1 updates", 0.0),
        ("last 1 updates", 2.0),
    ]


def neighbours(row: str, name: str, before: tuple[float, ...], after: tuple[float, ...]) -> list[dict[str, object]]:
    return rows_of(row, name, *before, policy="base") + rows_of(row, name, *after, policy="stage2")


def test_a_neighbour_s_measure_is_judged_by_how_far_each_seed_moved() -> None:
    for after, expected in (((0.6, 0.7), YES), ((0.9, 0.4), OPEN), ((0.3, 0.4), NO)):
        claims = verdicts(neighbours("s2r", "verify_acc", (0.5, 0.6), after))
        assert claims == {"s2r: tells its right solves from its wrong ones better": expected}
    falls = verdicts(neighbours("judge", "error_recall", (0.5, 0.5), (0.4, 0.4)))
    assert falls == {"judge: its own claims, which nobody pays, find fewer errors": YES}


def test_process_and_outcome_are_set_side_by_side() -> None:
    rows = rows_of("s2r", "verify_acc", 0.7, 0.7) + rows_of("s2r-outcome", "verify_acc", 0.6, 0.6)
    rows += rows_of("s2r", "error_recall", 0.7, 0.7) + rows_of("s2r-outcome", "error_recall", 0.6, 0.6)
    assert list(verdicts(rows).values()) == [YES, NO]


@pytest.mark.parametrize(
    ("mended", "after", "expected", "verdict"),
    [(0.35, 0.4, "sags", YES), (0.35, 0.6, "sags", NO), (0.2, 0.6, "gains", YES), (0.2, 0.4, "gains", NO)],
)
def test_the_first_attempt_sags_only_where_the_base_mends_most_of_its_errors(
    mended: float, after: float, expected: str, verdict: Verdict
) -> None:
    """Half of the first attempts are wrong: 0.35 mends 70 percent of them, 0.2 mends 40; the turn-over is at 56."""
    rows = neighbours("reflexicoder", "acc@t1", (0.5, 0.5), (after, after))
    rows += neighbours("reflexicoder", "i_to_c@t2", (mended, mended), (0.1, 0.1))
    ((text, found),) = verdicts(rows).items()
    assert f"the first attempt {expected}" in text and found is verdict


def test_greedy_answers_are_unmoved_within_two_points() -> None:
    for after, expected in ((0.81, YES), (0.77, NO)):
        greedy = [row | {"decoding": "greedy"} for row in neighbours("rlsf", "acc@t1", (0.8, 0.8), (after, after))]
        ((text, found),) = verdicts(greedy).items()
        assert text.startswith("rlsf: greedy answers stay") and found is expected


def test_the_judge_s_gap_is_that_of_the_last_updates_against_the_first() -> None:
    for last, expected in ((0.2, YES), (0.02, NO)):
        rows = rows_of("judge", "judge_gap@t1", 0.03, 0.03, condition="training", policy="first 10 updates")
        rows += rows_of("judge", "judge_gap@t1", last, last, condition="training", policy="last 10 updates")
        assert verdicts(rows) == {"judge: more passes for right than is": expected}


def test_a_supervised_start_is_where_reinforcement_learning_is_measured_from() -> None:
    """The base reads no verdict; from the start on claims grow truer in both seeds, and find fewer errors in one.

    Truer by 0.2 and 0.19: 0.195 ± 12.706 x 0.005.
    """
    rows = rows_of("s2r-start", "verify_acc", 0.0, 0.0, policy="base")
    rows += rows_of("s2r-start", "verify_acc", 0.5, 0.6, policy="start")
    rows += rows_of("s2r-start", "verify_acc", 0.7, 0.79, policy="stage2")
    rows += rows_of("s2r-start", "error_recall", 0.4, 0.4, policy="start")
    rows += rows_of("s2r-start", "error_recall", 0.5, 0.3, policy="stage2")
    assert verdicts(rows) == {
        "s2r-start: tells its right solves from its wrong ones better": YES,
        "s2r-start: finds more of its errors": OPEN,
    }


def test_a_trained_critic_is_set_beside_its_base_and_not_beside_the_oracle() -> None:
    """The oracle comes last. A thousandth of a point between two arms' first attempts is a difference."""
    for first, same in ((0.5, YES), (0.50001, NO)):
        rows = rows_of("ctrl", "acc@t1", 0.5, policy="none") + rows_of("ctrl", "acc@t1", first, policy="oracle")
        for policy, mended in (("base", 0.1), ("stage2", 0.2), ("oracle", 0.05)):
            rows += rows_of("ctrl", "i_to_c@t2", mended, mended, policy=policy)
        assert verdicts(rows) == {
            "ctrl: every arm revises the same solves": same,
            "ctrl: its critiques put more solves right": YES,
        }
