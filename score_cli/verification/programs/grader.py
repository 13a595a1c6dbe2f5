"""Grade responses that are programs, by running their problem's tests in a sandbox."""

import contextlib
import signal
import sys
import time
from collections import deque
from collections.abc import Iterable, Sequence

from score_cli.errors import JobError, UserError
from score_cli.tables.schemas import (
    CORRECT,
    CRASHED,
    INCORRECT,
    NO_ANSWER,
    OUT_OF_MEMORY,
    TIMEOUT,
    UNSCORED,
)
from score_cli.verification.forkserver import ForkServerError, ServerDiedError
from score_cli.verification.programs import judge
from score_cli.verification.programs.isolation import LEVELS, NONE
from score_cli.verification.programs.worker import (
    TIMED_OUT,
    Ending,
    Fault,
    Limits,
    Worker,
    signal_of,
    wait_for,
)
from score_cli.verification.task_grader import Graded, Item

_VERDICTS = {
    judge.PASSED: CORRECT,
    judge.FAILED: INCORRECT,
    judge.OUT_OF_MEMORY: OUT_OF_MEMORY,
    judge.NO_PROGRAM: NO_ANSWER,
    judge.BAD_TESTS: UNSCORED,
    judge.GONE: CRASHED,
    TIMED_OUT: TIMEOUT,
}
# A job is tried this often where its worker dies under it, and a worker's start where it is killed.
_TRIES = 2
_STARTS = 3


class ProgramGrader:
    """Runs each response's program against its problem's tests.

    Args:
        workers: programs judged at a time; each uses one core, shared by judge and program.
        timeout_seconds: wall time for one item, from finding its program to its last test.
        memory_mb: address space of one program.
        allow_unsandboxed: run programs with this user's rights where no confinement is available.
    Raises:
        UserError: this machine can confine nothing and `allow_unsandboxed` is not set.
    """

    in_processes = True

    def __init__(
        self,
        *,
        workers: int = 1,
        timeout_seconds: float = 5.0,
        memory_mb: int = 512,
        allow_unsandboxed: bool = False,
    ) -> None:
        if workers < 1 or timeout_seconds <= 0 or memory_mb < 64:
            raise UserError(
                f"cannot grade programs with {workers} workers, {timeout_seconds} s and {memory_mb} MB: "
                "give at least 1 worker, some time and 64 MB"
            )
        self._size = workers
        self._limits = Limits(timeout_seconds, memory_mb)
        # The first worker is kept: finding out what the machine allows means starting one.
        self.level, first = _strongest(self._limits, allow_unsandboxed)
        self._idle = [first]

    def grade(self, items: Sequence[Item]) -> list[Graded]:
        """One result per item, in the order of the items; the same program for the same problem is run once.

        Raises:
            JobError: workers cannot be started any more.
        """
        jobs = [_job(item) for item in items]
        batch = _Batch(self, dict.fromkeys(jobs))
        results = batch.run()
        return [results[job] for job in jobs]

    def worker(self) -> Worker:
        """A worker that is free: one that has worked before, or a new one.

        Raises:
            JobError: none can be started.
        """
        while self._idle:
            worker = self._idle.pop()
            if worker.alive():
                return worker
            worker.close()
        try:
            return _started(self.level, self._limits)
        except ForkServerError as error:
            raise JobError(f"a worker for programs could not be started ({error}): free memory or processes") from error

    def release(self, worker: Worker) -> None:
        """Take a free worker back for later."""
        self._idle.append(worker)

    @property
    def size(self) -> int:
        """How many workers may run at a time."""
        return self._size

    def describe(self) -> dict[str, str]:
        """The level of isolation and the limits: another level or limit could give other verdicts."""
        return {
            "programs": "split sandbox",
            "isolation": self.level,
            "timeout_seconds": f"{self._limits.timeout_seconds:g}",
            "memory_mb": str(self._limits.memory_mb),
            "python": f"{sys.version_info.major}.{sys.version_info.minor}",
        }

    def close(self) -> None:
        """End the workers."""
        while self._idle:
            self._idle.pop().close()


class _Batch:
    """The jobs of one call, spread over the workers."""

    def __init__(self, grader: ProgramGrader, jobs: Iterable[judge.Job]) -> None:
        self._grader = grader
        self._results: dict[judge.Job, Graded] = {}
        self._waiting: deque[tuple[judge.Job, int]] = deque()
        self._running: dict[Worker, tuple[judge.Job, int]] = {}
        for job in jobs:
            if job.tests:
                self._waiting.append((job, 1))
            else:
                self._results[job] = Graded(None, UNSCORED)

    def run(self) -> dict[judge.Job, Graded]:
        """Judge every job."""
        try:
            while self._waiting or self._running:
                while self._waiting and len(self._running) < self._grader.size:
                    self._start(*self._waiting.popleft())
                self._wait()
                for worker in list(self._running):
                    self._hear(worker)
        finally:
            for worker in self._running:
                worker.close()
        return self._results

    def _start(self, job: judge.Job, attempt: int) -> None:
        worker = self._grader.worker()
        try:
            worker.start(job)
        except (OSError, ForkServerError):
            # It died while it was idle, which says nothing about the job.
            worker.close()
            self._waiting.appendleft((job, attempt))
            return
        self._running[worker] = (job, attempt)

    def _wait(self) -> None:
        if not self._running:
            return
        descriptors = [worker.descriptor for worker in self._running]
        nearest = min(worker.deadline for worker in self._running)
        wait_for(descriptors, nearest - time.monotonic() + 0.001)

    def _hear(self, worker: Worker) -> None:
        job, attempt = self._running[worker]
        try:
            ending = worker.read()
        except (OSError, ForkServerError):
            del self._running[worker]
            worker.close()
            self._settle(job, attempt, Ending(None, Fault.WORKER, -1))
            return
        if ending is not None:
            del self._running[worker]
            self._grader.release(worker)
            self._settle(job, attempt, ending)

    def _settle(self, job: judge.Job, attempt: int, ending: Ending) -> None:
        if isinstance(ending.outcome, Fault) and attempt < _TRIES:
            self._waiting.appendleft((job, attempt + 1))
        else:
            self._results[job] = Graded(ending.answer, _verdict(ending), hard_coded=ending.hard_coded)


def _verdict(ending: Ending) -> str:
    if isinstance(ending.outcome, Fault):
        # A program that is killed each time it runs kills itself; the rest is our own failure.
        return CRASHED if ending.outcome is Fault.PROGRAM else UNSCORED
    if ending.outcome == judge.GONE and signal_of(ending.status) == signal.SIGXCPU:
        return TIMEOUT
    return _VERDICTS[ending.outcome]


def _job(item: Item) -> judge.Job:
    problem = item.problem
    return judge.Job(
        response=item.response,
        # Without an entry point the question is prose, and no part of what is run.
        question=problem.question if problem.entry_point else "",
        tests=tuple(problem.tests or ()),
        setup=problem.setup or "",
        entry_point=problem.entry_point,
    )


def _started(level: str, limits: Limits) -> Worker:
    """A worker at a level. One that is killed while it starts says nothing of the level, and another is started.

    Raises:
        ForkServerError: the level is not available here, or every start was killed.
    """
    for _ in range(_STARTS - 1):
        with contextlib.suppress(ServerDiedError):
            return Worker(level, limits)
    return Worker(level, limits)


def _strongest(limits: Limits, allow_unsandboxed: bool) -> tuple[str, Worker]:
    """The strongest level that this machine has, and a worker at it."""
    reasons = []
    for level in LEVELS:
        try:
            return level, _started(level, limits)
        except ForkServerError as error:
            reasons.append(f"{level}: {error}")
    if not allow_unsandboxed:
        raise UserError(
            f"no sandbox is available here ({'; '.join(reasons)}), and programs are not run without one: use a Linux "
            "kernel with Landlock (5.13 or later) or user namespaces, or allow unsandboxed programs"
        )
    try:
        return NONE, _started(NONE, limits)
    except ForkServerError as error:
        raise JobError(f"a worker for programs could not be started ({error}): free memory or processes") from error
