"""Grade answers to mathematics problems: extract, recall, compare; what takes algebra goes to the last judge.

Verdicts: `correct` and `incorrect` are the comparison's; `unfinished` is an equal answer that only restates the
question or leaves something to be computed; `no_answer` is a response in which no answer was found.
`timeout`, `out_of_memory` and `crashed` are a response whose answer alone brings the last judge's worker down.
`unscored` is our fault or the problem's: no gold answer or a broken one (empty, unbalanced, too long, or itself too
hard for a worker), or a worker that was killed twice from outside.
"""

from collections import OrderedDict
from collections.abc import Sequence
from importlib.metadata import version
from typing import NamedTuple

from score_cli.errors import JobError
from score_cli.tables.schemas import (
    CORRECT,
    CRASHED,
    INCORRECT,
    NO_ANSWER,
    OUT_OF_MEMORY,
    TIMEOUT,
    UNFINISHED,
    UNSCORED,
)
from score_cli.verification import call_pool
from score_cli.verification.call_pool import Call, CallPool, Outcome
from score_cli.verification.forkserver import ForkServerError
from score_cli.verification.math.answers import is_broken_gold, needs_algebra, same_answer
from score_cli.verification.math.extract import extract_answer, last_boxes
from score_cli.verification.math.restatement import keeps_rules
from score_cli.verification.math.tokens import MAX_ANSWER_CHARS, strip_wrapping
from score_cli.verification.task_grader import NO_GOLD, Graded, Item

_MEMO_ENTRIES = 200_000
_JUDGE = "score_cli.verification.math.algebra:same_by_algebra"
_TRY_GOLD = "score_cli.verification.math.algebra:try_gold"
_WARM_UP = "score_cli.verification.math.algebra:warm_up"
_JUDGE_MEMORY_MB = 1024
_BLAMED = {call_pool.TIMED_OUT: TIMEOUT, call_pool.NO_MEMORY: OUT_OF_MEMORY, call_pool.CRASHED: CRASHED}


class Pair(NamedTuple):
    """Two answers to compare."""

    answer: str
    gold: str


class MathGrader:
    """Grades responses against gold answers in LaTeX or plain text.

    Args:
        workers: processes for what takes algebra, started when the first such pair comes; results do not depend on it.
        timeout_seconds: how long one comparison there may take before its process is killed.
        refuse_restatements: an answer that stands in the question is `unfinished`, unless it is the gold answer's own.
        require_finished: an answer that leaves more to compute than the gold answer does is `unfinished`.
    """

    in_processes = False

    def __init__(
        self,
        *,
        workers: int = 1,
        timeout_seconds: float = 2.0,
        refuse_restatements: bool = True,
        require_finished: bool = True,
    ) -> None:
        self._pool = CallPool(
            workers=workers, timeout_seconds=timeout_seconds, memory_mb=_JUDGE_MEMORY_MB, preload=[_WARM_UP]
        )
        self._refuse_restatements = refuse_restatements
        self._require_finished = require_finished
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
        for item, answer, verdict, pair in zip(items, answers, verdicts, pairs, strict=True):
            if pair is not None:
                verdict = decided[pair] if verdict is None else verdict
                verdict = self._by_rules(pair, item.problem.question) if verdict == CORRECT else verdict
            assert verdict is not None
            reason = NO_GOLD if self._gold(item.problem.answer) is None else None
            results.append(Graded(_shown(answer), verdict, reason=reason))
        return results

    def describe(self) -> dict[str, str]:
        """The libraries that decided, the deadline they had, and the rules an equal answer must keep."""
        return {
            "python_flint": version("python-flint"),
            "sympy": version("sympy"),
            "math_timeout_seconds": str(self._pool.timeout_seconds),
            "refuse_restatements": str(self._refuse_restatements).lower(),
            "require_finished": str(self._require_finished).lower(),
        }

    def close(self) -> None:
        """End the processes, if any were started."""
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

    def _recall(self, pair: Pair) -> str | None:
        """A verdict that is known or found here, None where it takes algebra."""
        known = self._memo.get(pair)
        if known is not None:
            self._memo.move_to_end(pair)
            return known
        same = same_answer(pair.answer, pair.gold)
        if same is None and needs_algebra(pair.answer, pair.gold):
            return None
        return self._remember(pair, CORRECT if same else INCORRECT)

    def _remember(self, pair: Pair, verdict: str) -> str:
        self._memo[pair] = verdict
        if len(self._memo) > _MEMO_ENTRIES:
            self._memo.popitem(last=False)
        return verdict

    def _by_rules(self, pair: Pair, question: str) -> str:
        """`correct`, or `unfinished` where a rule is broken."""
        if pair.answer == pair.gold:
            return CORRECT
        kept = keeps_rules(
            *pair,
            question if self._refuse_restatements or self._require_finished else "",
            restatements=not self._refuse_restatements,
            unfinished=not self._require_finished,
        )
        return CORRECT if kept else UNFINISHED

    def _decide(self, pairs: list[Pair]) -> dict[Pair, str]:
        """The last judge's verdicts; what brings it down is blamed on the answer unless the gold alone does it too."""
        outcomes = self._map([Call(_JUDGE, pair) for pair in pairs])
        suspects = [pair.gold for pair, outcome in zip(pairs, outcomes, strict=True) if outcome.ending in _BLAMED]
        untried = [gold for gold in dict.fromkeys(suspects) if gold not in self._gold_is_hard]
        trials = self._map([Call(_TRY_GOLD, (gold,)) for gold in untried])
        self._gold_is_hard.update((gold, trial.ending in _BLAMED) for gold, trial in zip(untried, trials, strict=True))
        decided = {}
        for pair, outcome in zip(pairs, outcomes, strict=True):
            if outcome.ending == call_pool.LOST:
                decided[pair] = UNSCORED  # and not remembered: it was killed from outside
            elif outcome.ending in _BLAMED:
                hard = self._gold_is_hard[pair.gold]
                decided[pair] = self._remember(pair, UNSCORED if hard else _BLAMED[outcome.ending])
            else:  # whatever a library raises on this text, it has not shown the answers to be equal
                same = outcome.ending == call_pool.VALUE and outcome.value is True
                decided[pair] = self._remember(pair, CORRECT if same else INCORRECT)
        return decided

    def _map(self, calls: list[Call]) -> list[Outcome]:
        try:
            return self._pool.map(calls)
        except ForkServerError as error:
            raise JobError(f"the workers for algebra do not start ({error}): check that sympy imports") from error


def _shown(answer: str | None) -> str | None:
    """The answer as the table keeps it: no longer than an answer, and text that can be encoded."""
    if answer is None:
        return None
    return strip_wrapping(answer)[:MAX_ANSWER_CHARS].encode("utf-8", "replace").decode("utf-8")
