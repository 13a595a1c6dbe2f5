"""Grade answers to mathematics problems: extract, recall, compare quickly, and leave the rest to killable workers.

Verdicts: `correct` and `incorrect` are the comparison's; `no_answer` is a response in which no answer was found.
`timeout`, `out_of_memory` and `crashed` are a response whose answer alone brings a worker down. `unscored` is our
fault or the problem's: no gold answer or a broken one (empty, unbalanced, too long, or itself too hard for a worker),
or a worker that was killed twice from outside.
"""

from collections import OrderedDict
from collections.abc import Sequence
from importlib.metadata import version

from score_cli.tables.schemas import CORRECT, CRASHED, INCORRECT, NO_ANSWER, OUT_OF_MEMORY, TIMEOUT, UNSCORED
from score_cli.verification.task_grader import Graded, Item
from score_cli.verification.math import pool as math_pool
from score_cli.verification.math.extract import extract_answer, last_boxes
from score_cli.verification.math.pool import MathPool, Pair
from score_cli.verification.math.quick import is_broken_gold, quick_verdict
from score_cli.verification.math.tokens import MAX_ANSWER_CHARS, strip_wrapping

DEFAULT_WORKERS = 2
DEFAULT_TIMEOUT_SECONDS = 2.0
_KIND = "math"
_MEMO_ENTRIES = 200_000
_VERDICTS = {math_pool.SAME: CORRECT, math_pool.DIFFERENT: INCORRECT, math_pool.LOST: UNSCORED}
_BLAMED = {math_pool.TIMED_OUT: TIMEOUT, math_pool.NO_MEMORY: OUT_OF_MEMORY, math_pool.CRASHED: CRASHED}

Key = tuple[str, str, str]


class MathGrader:
    """Grades responses against gold answers in LaTeX or plain text.

    Args:
        workers: processes for what takes algebra; results do not depend on it.
        timeout_seconds: how long one comparison may take before its worker is killed.
    """

    def __init__(self, *, workers: int = DEFAULT_WORKERS, timeout_seconds: float = DEFAULT_TIMEOUT_SECONDS) -> None:
        self._pool = MathPool(workers=max(1, workers), timeout_seconds=timeout_seconds)
        self._timeout_seconds = timeout_seconds
        self._memo: OrderedDict[Key, str] = OrderedDict()
        self._golds: dict[str, str | None] = {}
        self._gold_is_hard: dict[str, bool] = {}
        self._pool.start()

    def grade(self, items: Sequence[Item]) -> list[Graded]:
        """One result per item, in order."""
        answers = [extract_answer(item.response) for item in items]
        verdicts: list[str | None] = []
        pending: dict[Key, None] = {}
        keys: list[Key | None] = []
        for item, answer in zip(items, answers, strict=True):
            gold = self._gold(item.problem.answer)
            key = None if gold is None or answer is None else (_KIND, strip_wrapping(answer), gold)
            verdict = self._recall(key) if key is not None else UNSCORED if gold is None else NO_ANSWER
            if verdict is None and key is not None:
                pending[key] = None
            verdicts.append(verdict)
            keys.append(key)
        decided = self._decide(list(pending))
        results = []
        for answer, verdict, key in zip(answers, verdicts, keys, strict=True):
            if verdict is None:
                assert key is not None
                verdict = decided[key]
            results.append(Graded(_shown(answer), verdict))
        return results

    def describe(self) -> dict[str, str]:
        """The libraries that decided and the deadline they had."""
        return {
            "math_verify": version("math-verify"),
            "sympy": version("sympy"),
            "math_timeout_seconds": str(self._timeout_seconds),
        }

    def close(self) -> None:
        """End the worker processes."""
        self._pool.close()

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

    def _recall(self, key: Key) -> str | None:
        """A verdict that is known or quickly found, None where it takes a worker."""
        known = self._memo.get(key)
        if known is not None:
            self._memo.move_to_end(key)
            return known
        same = quick_verdict(key[1], key[2])
        return None if same is None else self._remember(key, CORRECT if same else INCORRECT)

    def _remember(self, key: Key, verdict: str) -> str:
        self._memo[key] = verdict
        if len(self._memo) > _MEMO_ENTRIES:
            self._memo.popitem(last=False)
        return verdict

    def _decide(self, keys: list[Key]) -> dict[Key, str]:
        """Verdicts of the workers; what brings one down is blamed on the answer unless the gold alone does it too."""
        outcomes = self._pool.run([Pair(answer, gold) for _, answer, gold in keys])
        suspects = [gold for (_, _, gold), outcome in zip(keys, outcomes, strict=True) if outcome in _BLAMED]
        untried = [gold for gold in dict.fromkeys(suspects) if gold not in self._gold_is_hard]
        trials = self._pool.run([Pair(None, gold) for gold in untried])
        self._gold_is_hard.update((gold, trial != math_pool.SAME) for gold, trial in zip(untried, trials, strict=True))
        decided = {}
        for key, outcome in zip(keys, outcomes, strict=True):
            if outcome in _BLAMED:
                verdict = UNSCORED if self._gold_is_hard[key[2]] else _BLAMED[outcome]
            else:
                verdict = _VERDICTS[outcome]
            decided[key] = verdict if outcome == math_pool.LOST else self._remember(key, verdict)
        return decided


def _shown(answer: str | None) -> str | None:
    """The answer as the table keeps it: no longer than an answer, and text that can be encoded."""
    if answer is None:
        return None
    return strip_wrapping(answer)[:MAX_ANSWER_CHARS].encode("utf-8", "replace").decode("utf-8")
