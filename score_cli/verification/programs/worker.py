"""One place to judge programs: a fork server in its sandbox, a judge that lasts, and a program for each job.

Judge and program are children of the same server and talk over a socket of their own. The server never sees a job:
the memory that the next program starts from has never held a test.
"""

import contextlib
import enum
import json
import os
import select
import signal
import socket
import time
from collections import deque
from collections.abc import Iterable
from typing import NamedTuple

from score_cli.verification.forkserver import KILLED, Child, ForkServer
from score_cli.verification.programs import judge

_ROOM = "score_cli.verification.programs"
_JUDGE, _PROGRAM = f"{_ROOM}.judge:serve", f"{_ROOM}.program:run"
# What programs commonly import: forked with the server instead of read again for each program.
_PRELOADED = (
    "array bisect calendar cmath collections contextlib copy dataclasses datetime decimal enum fractions functools "
    "heapq inspect itertools json math numbers operator queue random re statistics string textwrap threading time "
    "typing unicodedata"
)
# What one job leaves in a judge's memory is little, and this bounds it.
_JOBS_PER_JUDGE = 200
# How long a program may take to end by itself once it has left the conversation.
_LEAVING_SECONDS = 0.2
_ANSWER_SECONDS = 10.0

TIMED_OUT = "timed_out"


class Limits(NamedTuple):
    """What one program may use."""

    timeout_seconds: float
    memory_mb: int


class Fault(enum.Enum):
    """A job that was not judged, through no decision of ours."""

    WORKER = "the worker died or stopped answering"
    JUDGE = "the judge ended without a word"
    PROGRAM = "the program was killed, and not by us"


class Ending(NamedTuple):
    """How a job ended.

    `outcome` is one of the judge's endings, TIMED_OUT, or a Fault; `status` is the program's wait status where the
    judge found it gone, KILLED where it was ended; `hard_coded` says that a program that passed holds its tests'
    answers, as `hard_coded.py` sees them.
    """

    answer: str | None
    outcome: str | Fault
    status: int
    hard_coded: bool = False


class Worker:
    """One fork server and its children, judging one job at a time."""

    def __init__(self, level: str, limits: Limits) -> None:
        """Start the server and wait until its confinement is proven.

        Raises:
            ForkServerError: the level is not available here.
        """
        self._limits = limits
        self._server = ForkServer(
            entries=[_JUDGE, _PROGRAM],
            preload=[*_PRELOADED.split(), f"{_ROOM}.program:peer"],
            limits=f"{_ROOM}.isolation:Confinement",
            options={
                "level": level,
                "memory_mb": limits.memory_mb,
                "cpu_seconds": int(limits.timeout_seconds) + 2,
                "unlimited": _JUDGE,
            },
            environment=_clean_environment(),
            isolated=True,
        )
        self._judge: Child | None = None
        self._jobs_of_judge = 0
        self._program: Child | None = None
        self._heard = bytearray()
        self._outcome: str | Fault | None = None
        self._hard_coded = False
        # Children whose ends were asked for and not yet told.
        self._leaving: deque[Child] = deque()
        self._deadline = 0.0

    @property
    def pid(self) -> int:
        """The process that the command started; its descendants do the work."""
        return self._server.pid

    def start(self, job: judge.Job) -> None:
        """Hand over a job; `descriptor` then says when there is something to read.

        Raises:
            OSError, ForkServerError: the worker is gone.
        """
        if self._judge is None or self._jobs_of_judge == _JOBS_PER_JUDGE:
            if self._judge is not None:
                self._dismiss(self._judge)
            self._judge = self._server.fork(_JUDGE)
            self._judge.channel.settimeout(_ANSWER_SECONDS)
            self._jobs_of_judge = 0
        self._drain()
        self._jobs_of_judge += 1
        self._heard.clear()
        self._outcome = None
        self._hard_coded = False
        self._deadline = time.monotonic() + self._limits.timeout_seconds
        self._program = self._server.fork(_PROGRAM)
        message = job.to_message()
        with self._program.channel as conversation:
            sent = socket.send_fds(self._judge.channel, [message], [conversation.fileno()])
        self._judge.channel.sendall(message[sent:])

    def alive(self) -> bool:
        """Whether the server is still there."""
        return self._server.alive()

    @property
    def deadline(self) -> float:
        """When to look again, by the monotonic clock, whatever has come until then."""
        return self._deadline

    @property
    def descriptor(self) -> int:
        """What to wait on while a job runs."""
        if self._outcome is not None:
            return self._server.descriptor
        assert self._judge is not None
        return self._judge.channel.fileno()

    def read(self) -> Ending | None:
        """Take in what has come; the ending once the job is over, None before.

        Raises:
            OSError, ForkServerError: the worker is gone, or does not answer.
        """
        if self._outcome is None:
            outcome = self._hear()
            if outcome is None:
                return None
            self._end_processes(outcome)
            if outcome != judge.GONE:
                # How the program ended says nothing here: the next job need not wait for it.
                return self._ending(KILLED)
        status = self._drain()
        if status is not None:
            return self._ending(status)
        if time.monotonic() >= self._deadline:
            raise TimeoutError("the fork server does not answer")
        return None

    def _drain(self) -> int | None:
        """Read the ends that were told; the wait status of this job's program once it is among them."""
        status = None
        while self._leaving and wait_for([self._server.descriptor], 0):
            child = self._leaving.popleft()
            ended = child.ended()
            if child is self._program:
                status = ended
        return status

    def _ending(self, status: int) -> Ending:
        assert self._outcome is not None
        answer = json.loads(self._heard.splitlines()[0]) if b"\n" in self._heard else None
        killed = self._outcome == judge.GONE and signal_of(status) == signal.SIGKILL
        return Ending(answer, Fault.PROGRAM if killed else self._outcome, status, self._hard_coded)

    def _hear(self) -> str | Fault | None:
        """Read what the judge says: the outcome once it is known, None before."""
        assert self._judge is not None
        # First what has come: an answer in time counts, whenever this process finds the time to read it.
        while wait_for([self._judge.channel.fileno()], 0):
            data = b""
            with contextlib.suppress(ConnectionError):
                data = self._judge.channel.recv(1 << 16)
            if not data:
                return Fault.JUDGE
            self._heard += data
            if self._heard.count(b"\n") == 2:
                ending, self._hard_coded = json.loads(self._heard.splitlines()[1])
                return str(ending)
        return TIMED_OUT if time.monotonic() >= self._deadline else None

    def _end_processes(self, outcome: str | Fault) -> None:
        """Have the program ended, and with it a judge that cannot be used again."""
        assert self._judge is not None and self._program is not None
        self._outcome = outcome
        self._deadline = time.monotonic() + _ANSWER_SECONDS
        self._dismiss(self._program, patience=_LEAVING_SECONDS if outcome == judge.GONE else 0.0)
        if isinstance(outcome, Fault) or outcome == TIMED_OUT or outcome in judge.SPOILING:
            self._dismiss(self._judge)
            self._judge = None

    def _dismiss(self, child: Child, *, patience: float = 0.0) -> None:
        child.ask_end(patience=patience)
        self._leaving.append(child)

    def close(self) -> None:
        """End the worker and everything it started."""
        for child in (self._judge, self._program):
            if child is not None:
                child.channel.close()
        self._server.close()


def wait_for(descriptors: Iterable[int], seconds: float) -> bool:
    """Whether one of the descriptors can be read, or has ended, within the time."""
    # Not select: a command with many files open has descriptors past its limit of 1,024.
    poll = select.poll()
    for descriptor in descriptors:
        poll.register(descriptor, select.POLLIN)
    return bool(poll.poll(max(0.0, seconds) * 1000))


def signal_of(status: int) -> int:
    """The signal that ended a process, by its wait status; 0 where none did."""
    return os.WTERMSIG(status) if status != KILLED and os.WIFSIGNALED(status) else 0


def _clean_environment() -> dict[str, str]:
    environment = {"LC_ALL": "C.UTF-8"}
    for name in ("LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH"):
        with contextlib.suppress(KeyError):
            environment[name] = os.environ[name]
    return environment
