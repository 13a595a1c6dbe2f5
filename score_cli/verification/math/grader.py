"""Grade answers to mathematics problems: extract, recall, compare; what takes algebra goes to the last judge.

Verdicts: `correct` and `incorrect` are the comparison's; `no_answer` is a response in which no answer was found.
`timeout`, `out_of_memory` and `crashed` are a response whose answer alone brings the last judge's worker down.
`unscored` is our fault or the problem's: no gold answer or a broken one (empty, unbalanced, too long, or itself too
hard for a worker), or a worker that was killed twice from outside.
"""

from collections import OrderedDict
from collections.abc import Callable, Sequence
from importlib.metadata import version
from typing import NamedTuple, Protocol

from score_cli.tables.schemas import CORRECT, CRASHED, INCORRECT, NO_ANSWER, OUT_OF_MEMORY, TIMEOUT, UNSCORED
from score_cli.verification.math.answers import is_broken_gold, needs_algebra, same_answer
from score_cli.verification.math.extract import extract_answer, last_boxes
from score_cli.verification.math.tokens import MAX_ANSWER_CHARS, strip_wrapping
from score_cli.verification.task_grader import Graded, Item

SAME, DIFFERENT, TIMED_OUT, NO_MEMORY, DIED, LOST = "same", "different", "timed out", "no memory", "died", "lost"
_MEMO_ENTRIES = 200_000
_VERDICTS = {SAME: CORRECT, DIFFERENT: INCORRECT, LOST: UNSCORED}
_BLAMED = {TIMED_OUT: TIMEOUT, NO_MEMORY: OUT_OF_MEMORY, DIED: CRASHED}


class Pair(NamedTuple):
    """Two answers to compare; `answer` is None to try what the gold answer alone costs."""

    answer: str | None
    gold: str


class LastJudge(Protocol):
    """Compares what takes algebra, in processes that it may kill."""

    def decide(self, pairs: Sequence[Pair]) -> list[str]:
        """One of `SAME`, `DIFFERENT`, `TIMED_OUT`, `NO_MEMORY`, `DIED` and `LOST` for each pair, in order."""

    def close(self) -> None:
        """End its processes."""


class MathGrader:
    """Grades responses against gold answers in LaTeX or plain text.

    Args:
        last_judge: starts the judge of what takes algebra when the first such pair comes; None believes no such pair.
    """

    def __init__(self, *, last_judge: Callable[[], LastJudge] | None = None) -> None:
        self._start_judge = last_judge
        self._judge: LastJudge | None = None
        self._memo: OrderedDict[Pair, str] = OrderedDict()
        self._golds: dict[str, str | None] = {}
        self._gold_is_hard: dict[str, bool] = {}

    def grade(self, items: Sequence[Item]) -> list[Graded]:
        """One result per item, in order."""
        answers = [extract_answer(item.response) for item in items]
        verdicts: list[str | None] = []
        pending: dict[Pair, None] = {}
        pairs: list[Pair | None] = []
        for item, answer in zip(items, answers, strict=True):
            gold = self._gold(item.problem.answer)
            pair = None if gold is None or answer is None else Pair(strip_wrapping(answer), gold)
            verdict = self._recall(pair) if pair is not None else UNSCORED if gold is None else NO_ANSWER
            if verdict is None and pair is not None:
                pending[pair] = None
            verdicts.append(verdict)
            pairs.append(pair)
        decided = self._decide(list(pending)) if pending else {}
        results = []
        for answer, verdict, pair in zip(answers, verdicts, pairs, strict=True):
            if verdict is None:
                assert pair is not None
                verdict = decided[pair]
            results.append(Graded(_shown(answer), verdict))
        return results

    def describe(self) -> dict[str, str]:
        """The libraries that decided."""
        return {"python_flint": version("python-flint")}

    def close(self) -> None:
        """End the last judge, if it was started."""
        if self._judge is not None:
            self._judge.close()
            self._judge = None

    def __enter__(self) -> "MathGrader":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _gold(self, text: str | None) -> str | None:
        """A problem's answer, taken out of its box if it stands in one; None where there is none that can be graded."""
        if text is None:
            return None
        if text not in self._golds:
            gold = strip_wrapping(last_boxes(text) or text) if "\\boxed" in text else strip_wrapping(text)
            self._golds[text] = None if is_broken_gold(gold) else gold
        return self._golds[text]

    def _recall(self, pair: Pair) -> str | None:
        """A verdict that is known or found here, None where it takes algebra."""
        known = self._memo.get(pair)
        if known is not None:
            self._memo.move_to_end(pair)
            return known
        assert pair.answer is not None
        same = same_answer(pair.answer, pair.gold)
        if same is None and self._start_judge is not None and needs_algebra(pair.answer, pair.gold):
            return None
        return self._remember(pair, CORRECT if same else INCORRECT)

    def _remember(self, pair: Pair, verdict: str) -> str:
        self._memo[pair] = verdict
        if len(self._memo) > _MEMO_ENTRIES:
            self._memo.popitem(last=False)
        return verdict

    def _decide(self, pairs: list[Pair]) -> dict[Pair, str]:
        """The last judge's verdicts; what brings it down is blamed on the answer unless the gold alone does it too."""
        if self._judge is None:
            assert self._start_judge is not None
            self._judge = self._start_judge()
        outcomes = self._judge.decide(pairs)
        suspects = [pair.gold for pair, outcome in zip(pairs, outcomes, strict=True) if outcome in _BLAMED]
        untried = [gold for gold in dict.fromkeys(suspects) if gold not in self._gold_is_hard]
        trials = self._judge.decide([Pair(None, gold) for gold in untried]) if untried else []
        self._gold_is_hard.update((gold, trial != SAME) for gold, trial in zip(untried, trials, strict=True))
        decided = {}
        for pair, outcome in zip(pairs, outcomes, strict=True):
            if outcome in _BLAMED:
                verdict = UNSCORED if self._gold_is_hard[pair.gold] else _BLAMED[outcome]
            else:
                verdict = _VERDICTS[outcome]
            decided[pair] = verdict if outcome == LOST else self._remember(pair, verdict)
        return decided


def _shown(answer: str | None) -> str | None:
    """The answer as the table keeps it: no longer than an answer, and text that can be encoded."""
    if answer is None:
        return None
    return strip_wrapping(answer)[:MAX_ANSWER_CHARS].encode("utf-8", "replace").decode("utf-8")
