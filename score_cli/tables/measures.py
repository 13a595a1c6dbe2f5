"""What a pair of attempts shows: accuracy, progress, change. Pure functions over one row.

An unscored attempt is never counted as wrong: a measure that needs it is None for that row.
"""

from collections.abc import Callable

from rapidfuzz.distance import Levenshtein

from score_cli.tables.records import Trace, Verdict

Measure = Callable[[Trace, Verdict, int], float | None]


def accuracy(trace: Trace, reward: Verdict, attempt: int) -> float | None:
    """Whether the attempt (counted from 1) was judged correct."""
    right = reward.correct[attempt - 1]
    return None if right is None else float(right)


def delta(trace: Trace, reward: Verdict, attempt: int) -> float | None:
    """Accuracy of the attempt minus that of the one before."""
    now, before = accuracy(trace, reward, attempt), accuracy(trace, reward, attempt - 1)
    return None if now is None or before is None else now - before


def incorrect_to_correct(trace: Trace, reward: Verdict, attempt: int) -> float | None:
    """Whether the attempt put right what the one before had wrong."""
    change = delta(trace, reward, attempt)
    return None if change is None else float(change > 0)


def correct_to_incorrect(trace: Trace, reward: Verdict, attempt: int) -> float | None:
    """Whether the attempt broke what the one before had right."""
    change = delta(trace, reward, attempt)
    return None if change is None else float(change < 0)


def edit_ratio(trace: Trace, reward: Verdict, attempt: int) -> float | None:
    """Edit distance in characters between the attempt and the one before, over their summed length."""
    before, now = trace.attempts[attempt - 2], trace.attempts[attempt - 1]
    total = len(before) + len(now)
    return Levenshtein.distance(before, now) / total if total else 0.0


def changed_answer(trace: Trace, reward: Verdict, attempt: int) -> float | None:
    """Whether the extracted answer differs from the one before; an absent answer is an answer too."""
    return float(reward.answers[attempt - 1] != reward.answers[attempt - 2])


# Name in the metrics table -> measure; the second group needs an attempt before.
SINGLE: dict[str, Measure] = {"acc": accuracy}
PAIRED: dict[str, Measure] = {
    "delta": delta,
    "i_to_c": incorrect_to_correct,
    "c_to_i": correct_to_incorrect,
    "edit_ratio": edit_ratio,
    "changed": changed_answer,
}


def measures_of(attempts: int) -> list[tuple[str, Measure, int]]:
    """(`acc@t1`, measure, attempt), ... for traces of that many attempts."""
    single = [(f"{name}@t{a}", measure, a) for a in range(1, attempts + 1) for name, measure in SINGLE.items()]
    paired = [(f"{name}@t{a}", measure, a) for a in range(2, attempts + 1) for name, measure in PAIRED.items()]
    return single + paired
