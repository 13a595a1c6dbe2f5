"""Call functions in killable processes: what hangs is killed, what dies is told apart, the rest comes back.

    pool = CallPool(workers=2, timeout_seconds=5.0, memory_mb=1024, preload=["sympy"])
    pool.call("math:gcd", 12, 18)  # Outcome(VALUE, 6)
    pool.map([Call("time:sleep", (60,)), Call("math:sqrt", (-1,))])
    # [Outcome(TIMED_OUT, None), Outcome(RAISED, "ValueError: math domain error")]
    pool.close()

Arguments travel by pickle, since they come from here. Values come back as JSON, since they come from a process that
may have run anything, and reading a pickle can run anything too.
"""

import contextlib
import json
import os
import pickle
import selectors
import signal
import socket
import struct
import time
from collections import Counter, deque
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from score_cli.verification.forkserver import (
    CHANNEL,
    KILLED,
    Child,
    ForkServer,
    ForkServerError,
    ServerDiedError,
    resolve,
)

# How a call ended. LOST: the process was killed, and not by us, as often as the call was tried.
VALUE, RAISED, TIMED_OUT, NO_MEMORY, CRASHED, LOST = "value", "raised", "timed out", "no memory", "crashed", "lost"

_SERVE = "score_cli.verification.call_pool:serve_calls"
# A call is tried this often where its process dies under it.
_TRIES = 2
# What functions leave behind, caches above all, grows with their calls; this bounds it.
_CALLS_PER_CHILD = 2000
_LONGEST_VALUE = 1024 * 1024
_LONGEST_ERROR = 300
_LONGEST_ANSWER = _LONGEST_VALUE + 4096
_HEADER = struct.Struct("=I")
# How long a child whose socket has ended may take to end itself.
_LEAVING_SECONDS = 0.5
_SERVERS_TRIED = 3
# A process that ends by one of these, or by an exit of its own, was not killed by somebody else.
_OWN_FAULT = frozenset((signal.SIGSEGV, signal.SIGABRT, signal.SIGBUS, signal.SIGFPE, signal.SIGILL, signal.SIGSYS))


class Call(NamedTuple):
    """A module-level function, as "package.module:name", and what to call it with."""

    function: str
    arguments: tuple[Any, ...] = ()


class Outcome(NamedTuple):
    """How a call ended, and with what: the value as JSON gives it back, or what was raised, in one line."""

    ending: str
    value: Any = None


def serve_calls() -> int:
    """A child's entry: answer one call after the other until the command closes the channel."""
    channel = socket.socket(fileno=CHANNEL)
    myself = os.getpid()
    while (request := _read(channel)) is not None:
        number, function, arguments = pickle.loads(request)
        ending, value = _outcome(function, arguments)
        if os.getpid() != myself:
            return 0  # the function has forked, and this is the copy: the answer is the other's to give
        answer = json.dumps([number, ending, value]).encode()
        channel.sendall(_HEADER.pack(len(answer)) + answer)
        if ending == NO_MEMORY:
            return 0
    return 0


def _outcome(function: str, arguments: tuple[Any, ...]) -> Outcome:
    try:
        value = resolve(function)(*arguments)
        size = len(json.dumps(value))
    except MemoryError:
        return Outcome(NO_MEMORY)
    except BaseException as error:  # the boundary: whatever the function raises is told, not suffered
        return Outcome(RAISED, _in_one_line(error))
    if size > _LONGEST_VALUE:
        return Outcome(RAISED, f"ValueError: a value of {size} characters, at most {_LONGEST_VALUE} are read")
    return Outcome(VALUE, value)


def _in_one_line(error: BaseException) -> str:
    name = type(error).__name__
    try:
        text = " ".join(str(error).split())
    except Exception:  # its own code, of which the name says enough
        text = ""
    return f"{name}: {text}"[:_LONGEST_ERROR] if text else name


def _read(channel: socket.socket) -> bytes | None:
    header = channel.recv(_HEADER.size, socket.MSG_WAITALL)
    if len(header) < _HEADER.size:
        return None
    (size,) = _HEADER.unpack(header)
    parts = bytearray()
    while len(parts) < size:
        part = channel.recv(min(size - len(parts), 1 << 20))
        if not part:
            return None
        parts += part
    return bytes(parts)


class _Worker:
    """A child, and the call it is at."""

    def __init__(self, child: Child, server: ForkServer) -> None:
        self.child = child
        self.server = server
        self.calls = 0
        self.ready = False
        self.index = -1
        self.deadline = 0.0
        self._heard = bytearray()

    def send(self, call: Call, seconds: float) -> None:
        """Hand over a call; raises OSError where nobody reads."""
        self.calls += 1
        self.deadline = time.monotonic() + seconds
        self._heard.clear()
        data = pickle.dumps((self.calls, *call))
        self.child.channel.settimeout(seconds)
        self.child.channel.sendall(_HEADER.pack(len(data)) + data)

    def hear(self) -> Outcome | None:
        """The outcome once it is there, None before; raises OSError where there will be none."""
        data = self.child.channel.recv(1 << 16)
        self._heard += data
        size = _HEADER.size
        if len(self._heard) >= size:
            size += _HEADER.unpack_from(self._heard)[0]
        if not data or size > _LONGEST_ANSWER:
            raise ConnectionError
        if len(self._heard) < size or size == _HEADER.size:
            return None
        try:
            number, ending, value = json.loads(self._heard[_HEADER.size : size])
        except (ValueError, TypeError, RecursionError) as error:
            raise ConnectionError from error
        if number != self.calls or ending not in (VALUE, RAISED, NO_MEMORY):
            raise ConnectionError
        return Outcome(ending, value)


class CallPool:
    """Calls functions in the children of a fork server; results do not depend on how many children there are.

    The server starts with the first call. A child serves many calls and is replaced when it is killed or dies.

    Args:
        workers: calls at a time; each keeps one core busy.
        timeout_seconds: wall time of one call.
        memory_mb: address space of one child; no limit where None.
        preload: modules to import and functions to call once, in the server.
        environment: the children's environment; this process's where None.
        first: a call that each child makes before any other, such as loading what the others use.
        first_seconds: wall time of that call.
    """

    def __init__(
        self,
        *,
        workers: int = 1,
        timeout_seconds: float,
        memory_mb: int | None = None,
        preload: Sequence[str] = (),
        environment: Mapping[str, str] | None = None,
        first: Call | None = None,
        first_seconds: float = 120.0,
    ) -> None:
        self.workers = workers
        self.timeout_seconds = timeout_seconds
        self.first = first
        self.first_seconds = first_seconds
        self._memory_mb = memory_mb
        self._preload = preload
        self._environment = environment
        self._server: ForkServer | None = None
        self._idle: list[_Worker] = []

    def call(self, function: str, *arguments: Any) -> Outcome:
        """Call one function; see `map`."""
        return self.map([Call(function, arguments)])[0]

    def map(self, calls: Sequence[Call]) -> list[Outcome]:
        """One outcome per call, in order.

        Raises:
            ForkServerError: no process can be started, or `first` gave no value; says how it ended.
        """
        return _Batch(self, calls).run()

    def start(self) -> ForkServer:
        """The server, started now where it does not run.

        Raises:
            ForkServerError: it does not start.
        """
        if self._server is not None and not self._server.alive():
            self.close()
        if self._server is None:
            self._server = ForkServer(
                entries=[_SERVE],
                preload=[__name__, *self._preload],
                options={"memory_mb": self._memory_mb},
                environment=self._environment,
            )
        return self._server

    def close(self) -> None:
        """End every process; the next call starts new ones."""
        for worker in self._idle:
            worker.child.channel.close()
        self._idle.clear()
        if self._server is not None:
            self._server.close()
            self._server = None

    def take(self, *, fresh: bool) -> _Worker:
        """A child that is free, or a new one.

        Raises:
            ForkServerError: none can be forked.
        """
        if self._idle and not fresh:
            return self._idle.pop()
        for _ in range(_SERVERS_TRIED):
            try:
                server = self.start()
            except ServerDiedError:
                continue
            try:
                return _Worker(server.fork(_SERVE), server)
            except ForkServerError:
                self.close()
        raise ForkServerError("the fork server keeps dying")

    def keep(self, worker: _Worker) -> None:
        """Take a child back for later, or end one that has made enough calls."""
        if worker.calls < _CALLS_PER_CHILD and worker.server is self._server:
            self._idle.append(worker)
        else:
            self.end(worker)

    def end(self, worker: _Worker, *, patience: float = 0.0) -> str:
        """End a child; LOST where something else had killed it, and CRASHED otherwise."""
        try:
            status = worker.child.end(patience=patience)
        except ForkServerError:
            if worker.server is self._server:
                self.close()
            return LOST
        signalled = status != KILLED and os.WIFSIGNALED(status)
        return LOST if signalled and os.WTERMSIG(status) not in _OWN_FAULT else CRASHED


class _Batch:
    """The calls of one `map`, spread over the children."""

    def __init__(self, pool: CallPool, calls: Sequence[Call]) -> None:
        self._pool = pool
        self._calls = calls
        self._outcomes: list[Outcome] = [Outcome(LOST)] * len(calls)
        self._waiting = deque(range(len(calls)))
        self._deaths: Counter[int] = Counter()
        self._selector = selectors.DefaultSelector()

    def run(self) -> list[Outcome]:
        """Make every call."""
        with self._selector:
            try:
                while self._waiting or self._busy():
                    while self._waiting and len(self._busy()) < self._pool.workers:
                        self._start(self._waiting.popleft())
                    self._wait()
            finally:
                for worker in self._busy():  # only after an interruption or an error
                    self._pool.end(worker)
        return self._outcomes

    def _busy(self) -> list[_Worker]:
        return [key.data for key in self._selector.get_map().values()]

    def _start(self, index: int) -> None:
        # A second try must not suffer from what an earlier call left in its process.
        worker = self._pool.take(fresh=self._deaths[index] > 0)
        worker.index = index
        reused = worker.ready
        try:
            self._send(worker)
        except OSError:
            if reused:  # it died while it was idle, which says nothing about the call
                self._pool.end(worker)
                self._waiting.appendleft(index)
            else:
                self._dead(worker)

    def _send(self, worker: _Worker) -> None:
        """Have a child make its call, or the first one before."""
        if worker.ready or self._pool.first is None:
            worker.ready = True
            worker.send(self._calls[worker.index], self._pool.timeout_seconds)
        else:
            worker.send(self._pool.first, self._pool.first_seconds)
        self._selector.register(worker.child.channel, selectors.EVENT_READ, worker)

    def _wait(self) -> None:
        busy = self._busy()
        if not busy:
            return
        soonest = min(worker.deadline for worker in busy)
        for key, _ in self._selector.select(max(0.0, soonest - time.monotonic())):
            self._hear(key.data)
        now = time.monotonic()
        for worker in [worker for worker in self._busy() if worker.deadline <= now]:
            self._selector.unregister(worker.child.channel)
            self._pool.end(worker)
            self._settle(worker, Outcome(TIMED_OUT))

    def _hear(self, worker: _Worker) -> None:
        try:
            outcome = worker.hear()
            if outcome is None:
                return
            self._selector.unregister(worker.child.channel)
            if not worker.ready and outcome.ending == VALUE:
                worker.ready = True
                self._send(worker)
                return
        except OSError:
            self._dead(worker)
            return
        self._settle(worker, outcome)
        if outcome.ending == NO_MEMORY:
            self._pool.end(worker)
        else:
            self._pool.keep(worker)

    def _dead(self, worker: _Worker) -> None:
        """A child is gone or talks nonsense: its call is tried again, in another child, and then given up."""
        with contextlib.suppress(KeyError):
            self._selector.unregister(worker.child.channel)
        ending = self._pool.end(worker, patience=_LEAVING_SECONDS)
        self._deaths[worker.index] += 1
        if self._deaths[worker.index] < _TRIES:
            self._waiting.appendleft(worker.index)
        else:
            self._settle(worker, Outcome(ending))

    def _settle(self, worker: _Worker, outcome: Outcome) -> None:
        if not worker.ready:
            # What every child does first has failed, and would fail in the next child too.
            self._pool.end(worker)
            raise ForkServerError(outcome.ending if outcome.value is None else str(outcome.value))
        self._outcomes[worker.index] = outcome
