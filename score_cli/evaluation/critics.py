"""What critiques are worth: how they judge the solves they were given, and what becomes of these, round by round.

verify_acc, error_recall, correct_precision, unreadable     as of a script's dialogues, see `metrics.measure_dialogues`
f1_correct, f1_wrong                                        F1 of the claim that a solve is correct, or wrong
holds_answer                                                share of critiques in which the gold answer stands
acc@round1, i_to_c@round1, c_to_i@round1                    after a round, against the first solve
"""

import re
from collections.abc import Callable, Mapping, Sequence

from score_cli.metrics import Values
from score_cli.tables.records import Trace, Verdict

# Of each solve, by problem_id and sample_index: whether it is correct; None where nobody could tell.
Right = Mapping[tuple[str, int], bool | None]


def critique_values(
    critiques: Sequence[Trace],
    verdicts: Sequence[Verdict],
    right: Right,
    says_correct: Callable[[str], bool],
    answers: Mapping[str, str | None],
) -> dict[str, Values]:
    """Every measure of critiques, critique by critique; one of a solve that nobody could score counts nowhere.

    A claim that could not be read finds neither a correct solve nor a wrong one. F1 is 2 hits / (2 hits + claims that
    are wrong + solves that were missed): a hit stands twice in its values, the others once.

    Args:
        right: of the solves given.
        says_correct: whether a claim says so.
        answers: gold answers by problem.
    """
    found: dict[str, Values] = {}

    def note(name: str, problem: str, *values: float) -> None:
        found.setdefault(name, []).extend((problem, value) for value in values)

    for critique, verdict in zip(critiques, verdicts, strict=True):
        problem, index = critique.problem_id, critique.given_index
        truth = None if index is None else right[problem, index]
        if truth is None:
            continue
        claim = verdict.answers[-1]
        says = None if claim is None else says_correct(claim)
        note("verify_acc", problem, float(says == truth))
        note("unreadable", problem, float(says is None))
        if not truth:
            note("error_recall", problem, float(says is False))
        if says:
            note("correct_precision", problem, float(truth))
        for name, looked_for in (("f1_correct", True), ("f1_wrong", False)):
            if says is looked_for and truth is looked_for:
                note(name, problem, 1.0, 1.0)
            elif says is looked_for or truth is looked_for:
                note(name, problem, 0.0)
        answer = answers.get(problem)
        if answer is not None:
            note("holds_answer", problem, float(holds(critique.attempts[-1], answer)))
    return found


def holds(text: str, answer: str) -> bool:
    """Whether an answer stands in a text as a word or a number of its own."""
    return re.search(rf"(?<![\w.]){re.escape(answer)}(?!\w|\.\d)", text) is not None


def round_values(history: Sequence[Right]) -> dict[str, Values]:
    """Accuracy after each round, and what it mended and broke of the first solves.

    Args:
        history: the first solves; then, after each round, the newest solve of every one of them.
    """
    found: dict[str, Values] = {}
    first = history[0]
    for number, newest in enumerate(history[1:], start=1):
        for name, now in newest.items():
            before = first[name]
            if now is None or before is None:
                continue
            values = {"acc": now, "i_to_c": now and not before, "c_to_i": before and not now}
            for measure, value in values.items():
                found.setdefault(f"{measure}@round{number}", []).append((name[0], float(value)))
    return found
