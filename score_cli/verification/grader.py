"""Traces to verdicts: one grader for each kind of task, started when its first problem comes and kept warm."""

import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from score_cli.config import VerifyConfig
from score_cli.errors import JobError, UserError
from score_cli.tables.records import Problem, Trace, Verdict
from score_cli.tables.schemas import CORRECT, LENGTH, TRUNCATED, UNSCORED
from score_cli.verification.number import NumberGrader
from score_cli.verification.task_grader import Graded, Item, TaskGrader

NUMBER_TASKS = {"division"}
MATH_TASKS = {"math"}
PROGRAM_TASKS = {"mbpp", "humaneval"}


@dataclass(frozen=True)
class VerdictCounts:
    """How many attempts of a file got each verdict."""

    counts: dict[str, int]

    @property
    def unscored_share(self) -> float:
        """Share of attempts that the verifier could not grade."""
        return self.counts.get(UNSCORED, 0) / max(1, sum(self.counts.values()))

    def __str__(self) -> str:
        return ", ".join(f"{count} {verdict}" for verdict, count in sorted(self.counts.items()))


class Grader:
    """Grades every attempt of traces against the problems that they answer.

    Use it as a context, or `close` it: graders hold processes.
    """

    def __init__(self, config: VerifyConfig) -> None:
        self.config = config
        self._graders: dict[str, TaskGrader] = {}

    def grade(self, traces: Sequence[Trace], problems: Mapping[str, Problem]) -> list[Verdict]:
        """One verdict a trace, in their order.

        A truncated attempt is `truncated`, whatever it says: its end was never seen.

        Args:
            problems: by problem_id.
        Raises:
            UserError: a trace answers a problem that is not there, or a task has no grader.
        """
        pending: dict[str, list[tuple[int, int]]] = {}
        graded: list[list[Graded]] = []
        for row, trace in enumerate(traces):
            if trace.problem_id not in problems:
                raise UserError(
                    f"a trace answers problem {trace.problem_id}, which is not among the problems: "
                    "verify against the problems the traces were sampled from"
                )
            graded.append([Graded(None, TRUNCATED)] * len(trace.finish_reasons))
            for attempt, reason in enumerate(trace.finish_reasons):
                if reason != LENGTH:
                    pending.setdefault(problems[trace.problem_id].task, []).append((row, attempt))
        self.start(pending)
        for task, places in pending.items():
            items = [Item(problems[traces[row].problem_id], traces[row].attempts[attempt]) for row, attempt in places]
            for (row, attempt), result in zip(places, self._graders[task].grade(items), strict=True):
                graded[row][attempt] = result
        return [_verdict(trace, results) for trace, results in zip(traces, graded, strict=True)]

    def start(self, tasks: Iterable[str]) -> None:
        """Make the graders of some tasks.

        Raises:
            UserError: a task has no grader.
        """
        missing = set(tasks) - set(self._graders)
        if missing:
            self._graders |= make_graders(missing, self.config)

    def describe(self, tasks: Iterable[str]) -> dict[str, dict[str, str]]:
        """What the footer of the rewards records of how each task is graded; errors as `start`."""
        tasks = sorted(set(tasks))
        self.start(tasks)
        return {task: self._graders[task].describe() for task in tasks}

    def close(self) -> None:
        """Give back processes and files; the next trace starts other graders."""
        for grader in set(self._graders.values()):
            grader.close()
        self._graders = {}

    def __enter__(self) -> "Grader":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


@contextmanager
def grader_for(config: VerifyConfig, grader: Grader | None = None) -> Iterator[Grader]:
    """The grader given, which its owner closes, or one of our own, closed at the end."""
    if grader is not None:
        yield grader
        return
    with Grader(config) as own:
        yield own


def count_verdicts(verdicts: Iterable[Verdict]) -> VerdictCounts:
    """How many attempts got each verdict."""
    return VerdictCounts(dict(Counter(name for verdict in verdicts for name in verdict.verdicts)))


def check_unscored(verdicts: Iterable[Verdict] | VerdictCounts, limit: float) -> None:
    """Refuse rewards of which too many are missing.

    Raises:
        JobError: the unscored share is above the limit.
    """
    counts = verdicts if isinstance(verdicts, VerdictCounts) else count_verdicts(verdicts)
    if counts.unscored_share > limit:
        raise JobError(
            f"{counts.unscored_share:.1%} of the attempts could not be graded, the limit is {limit:.1%} ({counts}): "
            "mend the problems, or raise --unscored-limit"
        )


def make_graders(tasks: Iterable[str], config: VerifyConfig) -> dict[str, TaskGrader]:
    """One grader for each task.

    Raises:
        UserError: a task has no grader.
    """
    unknown = set(tasks) - {*NUMBER_TASKS, *MATH_TASKS, *PROGRAM_TASKS}
    if unknown:
        known = ", ".join(sorted(NUMBER_TASKS | MATH_TASKS | PROGRAM_TASKS))
        raise UserError(f"no grader for task {min(unknown)}, expected one of {known}: check the column `task`")
    workers = config.workers if config.workers is not None else len(os.sched_getaffinity(0))
    if workers < 1:
        raise UserError(f"workers is {workers}, expected at least 1")
    graders: dict[str, TaskGrader] = {task: NumberGrader() for task in NUMBER_TASKS & set(tasks)}
    # Tasks of one kind share a grader, and with it the workers. Each kind loads its libraries when it is needed.
    if MATH_TASKS & set(tasks):
        from score_cli.verification.math.grader import MathGrader

        math = MathGrader()
        graders |= dict.fromkeys(MATH_TASKS & set(tasks), math)
    if PROGRAM_TASKS & set(tasks):
        from score_cli.verification.programs.grader import ProgramGrader

        programs = ProgramGrader(
            workers=workers,
            timeout_seconds=config.program_timeout_seconds,
            memory_mb=config.program_memory_mb,
            allow_unsandboxed=config.allow_unsandboxed,
        )
        graders |= dict.fromkeys(PROGRAM_TASKS & set(tasks), programs)
    return graders


def _verdict(trace: Trace, results: Sequence[Graded]) -> Verdict:
    return Verdict(
        problem_id=trace.problem_id,
        sample_index=trace.sample_index,
        answers=[result.answer for result in results],
        verdicts=[result.verdict for result in results],
        rewards=[None if result.verdict == UNSCORED else float(result.verdict == CORRECT) for result in results],
    )
