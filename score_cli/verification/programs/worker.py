"""The command's handle on one worker process: start it, hand it a job, hear how the job ended."""

import contextlib
import enum
import json
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from score_cli.verification.programs import judge
from score_cli.verification.programs.keeper import ENDED, READY

_PACKAGE_ROOT = Path(__file__).resolve().parents[3]
_START = (
    "import sys; sys.path.insert(0, sys.argv[1]); "
    "from score_cli.verification.programs.keeper import main; main(sys.argv[2:])"
)
_START_SECONDS = 30.0
# The keeper holds the deadline; the command steps in only where the keeper itself is stuck.
_GRACE_SECONDS = 5.0
_CLOSE_SECONDS = 1.0


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

    `outcome` is one of the judge's endings, TIMED_OUT, or a Fault; `status` is the program's wait status, -1 where
    it was still there and was ended.
    """

    answer: str | None
    outcome: str | Fault
    status: int


class StartError(Exception):
    """A worker could not be started at this level; says why."""


class Worker:
    """One worker process, judging one job at a time."""

    def __init__(self, level: str, limits: Limits) -> None:
        """Start the process and wait until its confinement is proven.

        Raises:
            StartError: the level is not available here.
        """
        self._limits = limits
        self._control, theirs = socket.socketpair()
        arguments = (str(theirs.fileno()), str(os.getpid()), level, str(limits.memory_mb))
        milliseconds = str(round(limits.timeout_seconds * 1000))
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-S", "-s", "-P", "-B", "-c", _START, str(_PACKAGE_ROOT), *arguments, milliseconds],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                pass_fds=(theirs.fileno(),),
                cwd="/",
                env=_clean_environment(),
                # Ctrl-C is the command's to handle; it ends its workers itself.
                start_new_session=True,
            )
        self._report: int | None = None
        self._heard = bytearray()
        self._deadline = 0.0
        self._control.settimeout(_START_SECONDS)
        try:
            answer = self._control.recv(4096)
        except OSError as error:
            answer = f"?no answer: {error}".encode()
        if answer != READY:
            self.close()
            raise StartError(answer[1:].decode(errors="replace") or "the worker ended at once")
        self._control.settimeout(None)

    @property
    def pid(self) -> int:
        """The process that the command started; its descendants do the work."""
        return self._process.pid

    def start(self, job: judge.Job) -> None:
        """Hand over a job; `descriptors` then say when there is something to read.

        Raises:
            OSError: the worker is gone.
        """
        reader, writer = os.pipe()
        with tempfile.TemporaryFile() as file:
            file.write(job.to_json())
            file.flush()
            file.seek(0)
            try:
                socket.send_fds(self._control, [b"J"], [file.fileno(), writer])
            except OSError:
                os.close(reader)
                raise
            finally:
                os.close(writer)
        self._report = reader
        self._heard.clear()
        self._deadline = time.monotonic() + self._limits.timeout_seconds + _GRACE_SECONDS

    def alive(self) -> bool:
        """Whether the process is still there."""
        return self._process.poll() is None

    @property
    def deadline(self) -> float:
        """When to give the worker up, by the monotonic clock."""
        return self._deadline

    def descriptors(self) -> list[int]:
        """What to wait on while a job runs."""
        return [self._control.fileno(), *([] if self._report is None else [self._report])]

    def read(self) -> Ending | None:
        """Take in what has come; the ending once the job is over, None before.

        Raises:
            OSError: the worker is gone, or has overstayed its deadline.
        """
        over = wait_for([self._control.fileno()], 0)
        # In this order: what the judge wrote before the end of the job was told is there by now.
        while self._report is not None and wait_for([self._report], 0):
            self._take()
        if not over:
            if time.monotonic() > self._deadline:
                raise TimeoutError("the worker does not answer")
            return None
        self._close_report()
        message = self._control.recv(ENDED.size)
        if len(message) != ENDED.size:
            raise ConnectionError("the worker is gone")
        return self._ending(*ENDED.unpack(message))

    def _take(self) -> None:
        assert self._report is not None
        data = os.read(self._report, 1 << 16)
        self._heard += data
        if not data:
            self._close_report()

    def _close_report(self) -> None:
        if self._report is not None:
            os.close(self._report)
            self._report = None

    def _ending(self, timed_out: bool, judged: bool, program_status: int) -> Ending:
        lines = [json.loads(line) for line in bytes(self._heard).splitlines(keepends=True) if line.endswith(b"\n")]
        answer = lines[0] if lines else None
        if timed_out:
            return Ending(answer, TIMED_OUT, program_status)
        if not judged or len(lines) != 2:
            return Ending(answer, Fault.JUDGE, program_status)
        killed = lines[1] == judge.GONE and signal_of(program_status) == signal.SIGKILL
        return Ending(answer, Fault.PROGRAM if killed else lines[1], program_status)

    def close(self) -> None:
        """End the worker and everything it started."""
        self._close_report()
        # The keeper ends with its socket; if it cannot, killing the watcher kills it and all below it.
        self._control.close()
        try:
            self._process.wait(_CLOSE_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


def wait_for(descriptors: Iterable[int], seconds: float) -> bool:
    """Whether one of the descriptors can be read, or has ended, within the time."""
    # Not select: a command with many files open has descriptors past its limit of 1,024.
    poll = select.poll()
    for descriptor in descriptors:
        poll.register(descriptor, select.POLLIN)
    return bool(poll.poll(max(0.0, seconds) * 1000))


def signal_of(status: int) -> int:
    """The signal that ended a process, by its wait status; 0 where none did."""
    return os.WTERMSIG(status) if status >= 0 and os.WIFSIGNALED(status) else 0


def _clean_environment() -> dict[str, str]:
    # A fixed hash seed gives sets the same order in every worker and every run.
    environment = {"PYTHONHASHSEED": "0", "LC_ALL": "C.UTF-8"}
    for name in ("LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH"):
        with contextlib.suppress(KeyError):
            environment[name] = os.environ[name]
    return environment
