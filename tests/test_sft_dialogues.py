"""Which of a script's own dialogues are learned, and how far, for a table of traces made by hand."""

from collections.abc import Sequence

import pytest

from score_cli.config import SftConfig, SftMethod
from score_cli.errors import JobError, UserError
from score_cli.tables.records import Trace, Verdict
from score_cli.training.sft import make_examples
from score_cli.training.sft_dialogues import filtered_examples, turns_kept
from tests.scripts import dialogue, script, scripted_policy

C, I = "correct", "incorrect"  # noqa: E741


def told(*verdicts: str, finish: dict[int, str] | None = None) -> tuple[Trace, Verdict]:
    """Solve, verify, solve ... with these verdicts."""
    return dialogue(
        *((("solve", "verify")[turn % 2], "x", verdict) for turn, verdict in enumerate(verdicts)), finish=finish
    )


# verdicts of solve, verify, solve, verify ...; turns kept by right, right-and-true, search
KEPT = [
    ((C, C), 2, 2, 2),
    ((C, I), 2, 0, 1),  # right, and called wrong
    ((I, C, C, C), 4, 4, 4),
    ((I, I), 0, 0, 0),  # wrong, and called right
    ((I, I, C, C), 4, 0, 4),
    ((C, I, I, C), 0, 0, 1),  # a right one given up
    ((C, I, C, C), 4, 0, 1),
    ((I, C, C, "no_answer"), 4, 0, 3),
    ((I, C, C), 3, 3, 3),
    ((I, C, I, C, C), 5, 5, 5),
    (("unscored", "unscored", C, C), 4, 0, 4),
    ((C, "ungraded"), 2, 2, 1),
]


@pytest.mark.parametrize(("verdicts", "right", "true", "search"), KEPT)
def test_each_method_keeps_the_turns_written_by_hand(
    verdicts: Sequence[str], right: int, true: int, search: int
) -> None:
    trace, verdict = told(*verdicts)
    kept = [turns_kept(trace, verdict, method) for method in ("right", "right-and-true", "search")]
    assert kept == [right, true, search]


@pytest.mark.parametrize("method", ["right", "search"])
def test_a_right_solve_that_was_cut_off_is_no_right_solve(method: SftMethod) -> None:
    trace, verdict = told(I, C, C, C, finish={2: "length"})
    assert turns_kept(trace, verdict, method) == 0


def test_a_turn_that_was_cut_off_is_read_and_not_learned() -> None:
    rows = [told("truncated", "truncated", C, C, finish={0: "length", 1: "length"})]
    traces, verdicts = ([row[part] for row in rows] for part in (0, 1))
    (example,) = filtered_examples(traces, verdicts, "right", "all")  # type: ignore[arg-type]
    assert example.learned == [3, 4] and example.roles == ["solve", "verify", "solve", "verify"]


def test_a_search_is_cut_behind_its_first_right_solve_and_keeps_its_tokens() -> None:
    """By hand: the helper's traces have one token a turn, which is its number."""
    rows = [told(I, C, C, I), told(I, I), told(C, C)]
    (first, last) = filtered_examples(*zip(*rows, strict=True), "search", "verify,last-solve")  # type: ignore[call-arg, arg-type]
    assert first.token_ids.tolist() == first.attempt_ids.tolist() == [0, 1, 2, 3]
    assert (first.roles, first.learned, first.verdicts) == (["solve", "verify", "solve"], [2, 3], [I, C, C])
    assert last.attempt_ids.tolist() == [0, 1, 2] and last.learned == [1, 2]
    assert (first.target_sample_index, first.target_attempt, first.method) == (0, 3, "search")


def test_methods_of_two_solves_refuse_other_turns_and_nothing_kept_is_a_failed_job() -> None:
    policy = scripted_policy(script())
    trace, verdict = told(I, I)
    with pytest.raises(UserError, match="method star learns from two solves, and a trace of problem p has other turns"):
        make_examples(SftConfig(method="star"), policy, [trace], [verdict])
    with pytest.raises(JobError, match="no example of method search, which needs dialogues with a right solve"):
        make_examples(SftConfig(method="search", loss_on="all"), policy, [trace], [verdict])
