"""Grading beside the sampling: the verdicts of grading after it, begun before the last attempt has ended."""

import threading
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from score_cli.config import SampleConfig, VerifyConfig
from score_cli.errors import JobError
from score_cli.sampling.sampler import Sampler
from score_cli.tables.records import Problem, Trace
from score_cli.tables.schemas import LENGTH
from score_cli.verification.ahead import Ahead
from score_cli.verification.grader import Grader
from score_cli.verification.number import NumberGrader
from score_cli.verification.task_grader import Graded, Item
from tests.conftest import small_policy

PROBLEMS = [
    Problem(problem_id=f"p{n}", task="division", question=f"Divide {100 + n} by 7. ", answer=str(n), source="me")
    for n in range(3)
]


class Slow(NumberGrader):
    """The built-in task's grader as if it were in processes, which keeps what it was asked."""

    in_processes = True

    def __init__(self) -> None:
        self.batches: list[list[Item]] = []
        self.threads: set[int] = set()

    def grade(self, items: Sequence[Item]) -> list[Graded]:
        self.batches.append(list(items))
        self.threads.add(threading.get_ident())
        return super().grade(items)


def test_attempts_graded_as_they_end_have_the_verdicts_of_those_graded_afterwards() -> None:
    sampler = Sampler(SampleConfig(samples=4, max_tokens=12, threads=1, chunk_problems=2), small_policy())
    job, by_id = sampler.plan(PROBLEMS), {problem.problem_id: problem for problem in PROBLEMS}
    told: list[tuple[str, str]] = []
    traces = sampler.run(job, lambda problem, text: told.append((problem.problem_id, text)))
    whole = [
        (trace.problem_id, text)
        for trace in traces
        for text, reason in zip(trace.attempts, trace.finish_reasons, strict=True)
        if reason != LENGTH
    ]
    assert sorted(told) == sorted(whole) and len(whole) > 5
    with Grader(VerifyConfig()) as plain:
        expected, said = plain.grade(traces, by_id), plain.reasons
    with Grader(VerifyConfig()) as grader:
        grader._graders["division"] = slow = Slow()
        sampler.run(job, grader.begin)
        assert grader.grade(traces, by_id) == expected and grader.reasons == said
        # Everything was graded in another thread, each response to a problem once; nothing was left over.
        assert slow.batches.pop() == [] and len(slow.threads) == 2
        asked = [(item.problem.problem_id, item.response) for batch in slow.batches for item in batch]
        assert sorted(asked) == sorted(set(whole))
        # The next update begins anew.
        slow.batches.clear()
        assert grader.grade(traces, by_id) == expected and sum(map(len, slow.batches)) == len(whole)


def test_what_comes_while_others_are_graded_is_graded_next_and_once() -> None:
    began, go_on = threading.Event(), threading.Event()
    batches: list[list[str]] = []

    def grade(task: str, items: Sequence[Item]) -> list[Graded]:
        batches.append([item.response for item in items])
        began.set()
        assert go_on.wait(10)
        return [Graded(item.response, "correct") for item in items]

    ahead = Ahead(grade)
    ahead.take(Item(PROBLEMS[0], "a"))
    assert began.wait(10)  # while "a" is being graded ...
    for response in ("b", "c", "b"):
        ahead.take(Item(PROBLEMS[0], response))
    go_on.set()
    found = ahead.results()
    assert batches == [["a"], ["b", "c"]]
    assert {key[2]: grade.answer for key, grade in found.items()} == {"a": "a", "b": "b", "c": "c"}
    assert ahead.results() == {}
    ahead.close()


def test_what_the_grader_raises_is_raised_where_its_grades_are_asked_for() -> None:
    def grade(task: str, items: Sequence[Item]) -> list[Graded]:
        raise JobError("no worker can be started")

    ahead = Ahead(grade)
    ahead.take(Item(PROBLEMS[0], "a"))
    with pytest.raises(JobError, match="no worker"):
        ahead.results()
    ahead.close()


def test_a_grader_that_answers_in_an_instant_is_left_alone(tmp_path: Path) -> None:
    with Grader(VerifyConfig()) as grader:
        grader.begin(PROBLEMS[0], "\\boxed{3}")
        assert grader._ahead.results() == {}


def test_programs_run_beside_the_sampling_get_the_verdicts_that_they_get_after_it() -> None:
    problem = Problem(
        problem_id="double",
        task="mbpp",
        question="Write a function that doubles a number.",
        tests=["assert double(2) == 4", "assert double(-1) == -2"],
        entry_point="double",
        source="me",
    )
    responses = [
        "def double(x):\n    return 2 * x",
        "def double(x):\n    return x * x",
        "def double(x):\n    while 1: pass",
    ]
    texts = [f"```python\n{code}\n```" for code in responses]
    traces = [
        Trace(
            problem_id="double",
            sample_index=index,
            attempts=[first, second],
            finish_reasons=["stop", "stop"],
            token_ids=np.zeros(1, np.int32),
            attempt_ids=np.zeros(1, np.int8),
            logprobs=np.zeros(1, np.float32),
            offline_attempts=0,
        )
        for index, (first, second) in enumerate([(texts[0], texts[1]), (texts[1], texts[0]), (texts[2], texts[0])])
    ]
    with Grader(VerifyConfig(workers=2, program_timeout_seconds=1, allow_unsandboxed=True)) as grader:
        for trace in traces:
            grader.begin(problem, trace.attempts[0])
        ahead = grader.grade(traces, {"double": problem})
        assert [verdict.verdicts for verdict in ahead] == [
            ["correct", "incorrect"],
            ["incorrect", "correct"],
            ["timeout", "correct"],
        ]
        assert grader.grade(traces, {"double": problem}) == ahead
