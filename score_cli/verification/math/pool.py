"""A pool of worker processes that can be killed at any moment without losing the batch.

The parent holds every deadline. A worker that passes it, or dies, is replaced by a new fork of the zygote; an item
whose worker died is tried once more. Workers end with the zygote (a death signal) and the zygote with the parent
(its socket closes, and it watches its parent), however either dies.
"""

import array
import json
import os
import selectors
import signal
import socket
import subprocess
import sys
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from score_cli.errors import JobError

SAME, DIFFERENT, TIMED_OUT, NO_MEMORY, CRASHED, LOST = "same", "different", "timed out", "no memory", "crashed", "lost"
ITEMS_PER_WORKER = 2000
MEMORY_BYTES = 1 << 30
_START_SECONDS = 120.0
_MAX_MESSAGE = 1 << 17
_REPLIES = {b"c": SAME, b"i": DIFFERENT, b"m": NO_MEMORY}
_OWN_FAULT = frozenset((signal.SIGSEGV, signal.SIGABRT, signal.SIGBUS, signal.SIGFPE, signal.SIGILL))
_BOOT = (
    "import json, sys; sys.path[:] = json.loads(sys.argv.pop()); "
    "from score_cli.verification.math.worker import main; main()"
)


class Pair(NamedTuple):
    """Two answers to compare; `answer` is None to try what the gold answer alone costs."""

    answer: str | None
    gold: str


class ZygoteLostError(Exception):
    """The process that forks workers has ended."""


@dataclass
class _Worker:
    pid: int
    channel: socket.socket
    zygote: "Zygote"
    index: int = -1
    deadline: float = 0.0
    graded: int = 0


class Zygote:
    """The parent's handle on the fork server."""

    def __init__(self) -> None:
        self._control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            command = [sys.executable, "-c", _BOOT, str(theirs.fileno()), str(MEMORY_BYTES), json.dumps(sys.path)]
            # One hash seed: the order of SymPy's terms must not differ from run to run.
            environment = {**os.environ, "PYTHONHASHSEED": "0", "OMP_NUM_THREADS": "1"}
            self._process = subprocess.Popen(
                command,
                pass_fds=(theirs.fileno(),),
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
            )
        self._control.settimeout(_START_SECONDS)
        try:
            ready = self._control.recv(64)
        except OSError:
            ready = b""
        if ready != b"ready":
            self.close()
            raise JobError("the mathematics workers did not start: check that math-verify and sympy can be imported")

    @property
    def pid(self) -> int:
        """The fork server's process."""
        return self._process.pid

    def fork(self) -> _Worker:
        """A fresh worker."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            descriptor = array.array("i", [theirs.fileno()])
            reply = self._ask(b"fork", [(socket.SOL_SOCKET, socket.SCM_RIGHTS, descriptor)])
        return _Worker(pid=reply, channel=ours, zygote=self)

    def reap(self, pid: int) -> int:
        """Wait for a worker that is dead or dying; its status as of `os.waitpid`."""
        return self._ask(str(pid).encode(), [])

    def _ask(self, message: bytes, ancillary: list[tuple[int, int, "array.array[int]"]]) -> int:
        try:
            self._control.sendmsg([message], ancillary)
            reply = self._control.recv(64)
        except OSError as error:
            raise ZygoteLostError from error
        if not reply:
            raise ZygoteLostError
        return int(reply)

    def close(self) -> None:
        """End the fork server, and with it every worker."""
        self._control.close()
        self._process.kill()
        self._process.wait()


@dataclass
class MathPool:
    """Compares pairs in worker processes; the results do not depend on how many there are."""

    workers: int
    timeout_seconds: float
    _zygote: Zygote | None = None
    _idle: list[_Worker] = field(default_factory=list)
    _busy: dict[int, _Worker] = field(default_factory=dict)

    def start(self) -> None:
        """Start the fork server now rather than within the first pair's time.

        Raises:
            JobError: it does not start.
        """
        if self._zygote is None:
            self._zygote = Zygote()

    def run(self, pairs: Sequence[Pair]) -> list[str]:
        """One outcome per pair, in order.

        Raises:
            JobError: no worker process can be started.
        """
        outcomes = [LOST] * len(pairs)
        waiting = deque(range(len(pairs)))
        deaths: dict[int, int] = {}
        with selectors.DefaultSelector() as selector:
            try:
                while waiting or self._busy:
                    while waiting and len(self._busy) < self.workers:
                        self._start(selector, waiting, pairs)
                    self._wait(selector, outcomes, waiting, deaths)
            finally:
                for worker in list(self._busy.values()):  # only after an interruption
                    self._end(worker)
                self._busy.clear()
        return outcomes

    def pids(self) -> list[int]:
        """The processes held now, the fork server first."""
        own = [] if self._zygote is None else [self._zygote.pid]
        return own + [worker.pid for worker in [*self._idle, *self._busy.values()]]

    def close(self) -> None:
        """End every process."""
        for worker in self._idle:
            worker.channel.close()
        self._idle.clear()
        if self._zygote is not None:
            self._zygote.close()
            self._zygote = None

    def _start(self, selector: selectors.BaseSelector, waiting: deque[int], pairs: Sequence[Pair]) -> None:
        """Hand the next pair to an idle or new worker."""
        worker = self._idle.pop() if self._idle else self._fork()
        index = waiting.popleft()
        try:
            worker.channel.send(json.dumps({"answer": pairs[index].answer, "gold": pairs[index].gold}).encode())
        except OSError:  # it died while idle: no fault of this pair
            waiting.appendleft(index)
            self._end(worker)
            return
        worker.index = index
        worker.deadline = time.monotonic() + self.timeout_seconds
        self._busy[worker.channel.fileno()] = worker
        selector.register(worker.channel, selectors.EVENT_READ, worker)

    def _fork(self) -> _Worker:
        """A new worker, from a new fork server if the old one is gone."""
        for _ in range(3):
            self.start()
            assert self._zygote is not None
            try:
                return self._zygote.fork()
            except ZygoteLostError:
                self.close()
        raise JobError("the mathematics workers keep dying: check the machine's memory limits")

    def _wait(
        self, selector: selectors.BaseSelector, outcomes: list[str], waiting: deque[int], deaths: dict[int, int]
    ) -> None:
        """Take the replies that are in, and kill the workers past their deadline."""
        if not self._busy:
            return
        soonest = min(worker.deadline for worker in self._busy.values())
        for key, _ in selector.select(max(0.0, soonest - time.monotonic())):
            worker: _Worker = key.data
            self._release(selector, worker)
            try:
                reply = worker.channel.recv(_MAX_MESSAGE)
            except OSError:
                reply = b""
            if reply in _REPLIES:
                outcomes[worker.index] = _REPLIES[reply]
                self._keep(worker, healthy=reply != b"m")
                continue
            own_fault = os.WIFSIGNALED(status := self._end(worker)) and os.WTERMSIG(status) in _OWN_FAULT
            deaths[worker.index] = deaths.get(worker.index, 0) + 1
            if deaths[worker.index] < 2:
                waiting.appendleft(worker.index)
            else:
                outcomes[worker.index] = CRASHED if own_fault else LOST
        now = time.monotonic()
        for worker in [worker for worker in self._busy.values() if worker.deadline <= now]:
            self._release(selector, worker)
            outcomes[worker.index] = TIMED_OUT
            self._end(worker)

    def _release(self, selector: selectors.BaseSelector, worker: _Worker) -> None:
        selector.unregister(worker.channel)
        del self._busy[worker.channel.fileno()]

    def _keep(self, worker: _Worker, *, healthy: bool) -> None:
        """Put a worker back, or end it after so many items: SymPy's caches only grow."""
        worker.graded += 1
        if healthy and worker.graded < ITEMS_PER_WORKER:
            self._idle.append(worker)
        else:
            self._end(worker)

    def _end(self, worker: _Worker) -> int:
        """Kill a worker and reap it; its exit status. Unreaped, its number cannot be another process's."""
        worker.channel.close()
        if worker.zygote is not self._zygote:
            return 0  # its fork server has ended, and it with it
        try:
            os.kill(worker.pid, signal.SIGKILL)
            return self._zygote.reap(worker.pid)
        except (ProcessLookupError, ZygoteLostError):
            return 0
