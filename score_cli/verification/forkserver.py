"""A fork server: a clean, single-threaded process that forks a killable child for each unit of work.

The command that grades may hold threads, locks and gigabytes, and a fork of it would copy them as they happen to
stand. The server is started by exec instead, imports once what its children need, and then only forks and reaps.
The command holds every deadline: who does not answer is killed, and whoever else works there does not notice.

`ForkServer` forks children that speak a protocol of their own over a socket. `call_pool.CallPool` stands on it and
calls functions. Four processes deep at most: the command, a watcher that ends with it, the server, its children.
Each dies with the one before it.
"""

import contextlib
import ctypes
import gc
import importlib
import json
import os
import resource
import select
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

# A child finds its socket to the command here, and no other descriptor but the standard ones.
CHANNEL = 3
# What `Child.end` answers of a child that was still there, and was killed.
KILLED = -1

_READY, _FAILED = b"R", b"F"
_FORK, _END = b"F", b"E"
# An order to the server: its kind, the child's number, which entry to run, how long to wait for its end.
_ORDER = struct.Struct("=cIId")
_ENDED = struct.Struct("=Ii")
_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36
_MEGABYTE = 1024 * 1024
_MOST_DESCRIPTORS = 4096
_START_SECONDS = 120.0
_CLOSE_SECONDS = 1.0
# The server itself does nothing that takes long; one that does not answer is stuck for good.
_ANSWER_SECONDS = 30.0
_BOOT = (
    "import json, sys; boot = json.loads(sys.argv.pop()); sys.path[:0] = boot.pop('path'); "
    "from score_cli.verification.forkserver import main; main(**boot)"
)


class ForkServerError(Exception):
    """The server could not be started, or is gone; says why."""


class ServerDiedError(ForkServerError):
    """The server ended without a word while it started: it was killed, and another start may well succeed."""


class Limits:
    """What a server does to itself and to each child. Subclass it for more than a limit on memory."""

    def __init__(self, *, memory_mb: int | None = None) -> None:
        """Hold the limits; nothing is applied yet. The arguments come from `ForkServer(options=...)`."""
        self.memory_mb = memory_mb

    def enter(self) -> None:
        """Run in the watcher, which then forks the server. An OSError ends the start."""

    def prepare(self) -> None:
        """Run once in the server when everything is imported. An OSError ends the start."""

    def confine(self, server: int, entry: str) -> None:
        """Run in each child before its entry; a child where this fails ends without running anything."""
        die_with(server)
        if self.memory_mb is not None:
            lower_limit(resource.RLIMIT_AS, self.memory_mb * _MEGABYTE)
        lower_limit(resource.RLIMIT_CORE, 0)

    def tidy(self) -> None:
        """Run in the server when a child has ended."""


def lower_limit(kind: int, limit: int) -> None:
    """Set a resource limit for good, as high as this process may have it and no higher than asked."""
    _, hard = resource.getrlimit(kind)
    if hard != resource.RLIM_INFINITY:
        limit = hard if limit == resource.RLIM_INFINITY else min(limit, hard)
    resource.setrlimit(kind, (limit, limit))


def die_with(parent: int, by: signal.Signals = signal.SIGKILL) -> None:
    """Ask the kernel to send this process a signal when its parent dies; nothing where the kernel is not Linux.

    Raises:
        OSError: the parent is gone already.
    """
    _process_control(_PR_SET_PDEATHSIG, by)
    # A parent outside of this process namespace shows as 0.
    if os.getppid() not in (parent, 0):
        raise ProcessLookupError("the parent is gone")


def resolve(name: str) -> Any:
    """What "package.module:name" names.

    Raises:
        ImportError, AttributeError: there is no such thing.
    """
    module, _, attribute = name.partition(":")
    return getattr(importlib.import_module(module), attribute)


def fork(work: Callable[[], int]) -> int:
    """Fork a process that does its work and ends with the exit status it returns, without coming back here."""
    child = os.fork()
    if child:
        return child
    status = 1
    try:
        status = work()
    finally:
        os._exit(status)


def _process_control(option: int, value: int) -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(ctypes.c_long(option), ctypes.c_long(value), *[ctypes.c_long(0)] * 3)


class Child:
    """The command's end of one child: its socket, and its end."""

    def __init__(self, server: "ForkServer", number: int, channel: socket.socket) -> None:
        self._server = server
        self._number = number
        self.channel = channel

    def ask_end(self, *, patience: float = 0.0) -> None:
        """Close the socket, and have the child killed unless it ends by itself within some seconds.

        The server answers when that is done: its `descriptor` can be read, and `ended` tells.

        Raises:
            ForkServerError: the server is gone, and the child with it.
        """
        self.channel.close()
        self._server.order(_END, self._number, 0, patience)

    def ended(self) -> int:
        """The wait status of a child after `ask_end`, KILLED where it did not end by itself.

        Raises:
            ForkServerError: the server is gone, and the child with it.
        """
        return self._server.answer(self._number)

    def end(self, *, patience: float = 0.0) -> int:
        """`ask_end`, then wait for the answer."""
        self.ask_end(patience=patience)
        return self.ended()


class ForkServer:
    """The command's handle on one server.

    Args:
        entries: functions without arguments, as "package.module:name", that a child may run; what they return is
            the child's exit status.
        preload: modules to import, or functions ("package.module:name") to call, before the first fork.
        limits: a subclass of `Limits`, as "package.module:name".
        options: the keyword arguments of its constructor, as JSON has them.
        environment: the server's environment; this process's where None. Its hash seed is always 0, so that sets
            have one order in every child and every run.
        isolated: leave site packages and the user's own settings out of the interpreter.
    Raises:
        ForkServerError: it does not start.
    """

    def __init__(
        self,
        *,
        entries: Sequence[str],
        preload: Sequence[str] = (),
        limits: str = "score_cli.verification.forkserver:Limits",
        options: Mapping[str, Any] | None = None,
        environment: Mapping[str, str] | None = None,
        isolated: bool = False,
    ) -> None:
        self._entries = list(entries)
        self._forked = 0
        self._control, theirs = socket.socketpair()
        boot = {
            "path": [str(Path(__file__).resolve().parents[2]), *([] if isolated else sys.path)],
            "control": theirs.fileno(),
            "command": os.getpid(),
            "entries": self._entries,
            "preload": list(preload),
            "limits": limits,
            "options": dict(options or {}),
        }
        flags = ["-S", "-s", "-P", "-B"] if isolated else []
        environment = os.environ if environment is None else environment
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, *flags, "-c", _BOOT, json.dumps(boot)],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                pass_fds=(theirs.fileno(),),
                cwd="/" if isolated else None,
                env={**environment, "PYTHONHASHSEED": "0"},
                # Ctrl-C is the command's to handle; it ends its servers itself.
                start_new_session=True,
            )
        self._wait_until_ready()

    def _wait_until_ready(self) -> None:
        self._control.settimeout(_START_SECONDS)
        try:
            said = self._control.recv(4096)
        except OSError as error:
            said = _FAILED + f"no answer: {error}".encode()
        if said != _READY:
            self.close()
            if not said:
                raise ServerDiedError("it ended at once")
            raise ForkServerError(said[1:].decode(errors="replace"))
        self._control.settimeout(_ANSWER_SECONDS)

    @property
    def pid(self) -> int:
        """The process that the command started; the server and its children are below it."""
        return self._process.pid

    @property
    def descriptor(self) -> int:
        """Can be read when an end that was asked for has come, or the server is gone."""
        return self._control.fileno()

    def alive(self) -> bool:
        """Whether the server is still there."""
        return self._process.poll() is None

    def fork(self, entry: str) -> Child:
        """A child that runs one of the entries.

        Nothing is waited for: a child that could not be forked shows by the end of its channel.

        Raises:
            ForkServerError: the server is gone.
        """
        ours, theirs = socket.socketpair()
        self._forked += 1
        try:
            with theirs:
                self.order(_FORK, self._forked, self._entries.index(entry), 0.0, theirs)
        except ForkServerError:
            ours.close()
            raise
        return Child(self, self._forked, ours)

    def order(self, kind: bytes, number: int, entry: int, patience: float, *passed: socket.socket) -> None:
        """Send the server one order.

        Raises:
            ForkServerError: the server is gone.
        """
        message = _ORDER.pack(kind, number, entry, patience)
        try:
            socket.send_fds(self._control, [message], [each.fileno() for each in passed])
        except OSError as error:
            raise ForkServerError("the fork server is gone") from error

    def answer(self, number: int) -> int:
        """The wait status of a child whose end was asked for; ends are answered in the order they were asked."""
        try:
            message = self._control.recv(_ENDED.size, socket.MSG_WAITALL)
        except TimeoutError as error:
            raise ForkServerError("the fork server does not answer") from error
        except OSError as error:
            raise ForkServerError("the fork server is gone") from error
        if len(message) != _ENDED.size:
            raise ForkServerError("the fork server is gone")
        answered, status = _ENDED.unpack(message)
        assert answered == number, f"the end of child {answered} was told where {number} was asked"
        return int(status)

    def close(self) -> None:
        """End the server and every child."""
        # It ends with its socket; if it cannot, killing the watcher kills it and all below it.
        self._control.close()
        try:
            self._process.wait(_CLOSE_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


def main(
    *, control: int, command: int, entries: list[str], preload: list[str], limits: str, options: dict[str, Any]
) -> None:
    """The server's process, from its start to its end."""
    channel = socket.socket(fileno=control)
    try:
        prepared: Limits = resolve(limits)(**options)
        prepared.enter()
        watcher = os.getpid()
        server = os.fork()
    except Exception as error:
        # The start's boundary: whatever is missing here, the command must hear of it.
        channel.sendall(_FAILED + _in_words(error))
        return
    if server:
        channel.close()
        _watch(server, command)
        return
    try:
        die_with(watcher)
        _Server(channel, prepared, entries).run(preload)
    except Exception as error:
        channel.sendall(_FAILED + _in_words(error))
    finally:
        os._exit(0)


def _in_words(error: Exception) -> bytes:
    kind = "" if isinstance(error, OSError) else f"{type(error).__name__}: "
    return f"{kind}{error}".encode(errors="replace")[:1024]


def _watch(server: int, command: int) -> None:
    """End the server when the command ends, however it does, and end with the server.

    A parent-death signal would not do: it follows the thread that started this process, not the command.
    """
    try:
        watched = [os.pidfd_open(command), os.pidfd_open(server)]
    except (OSError, AttributeError):
        watched = []
    while os.getppid() == command and os.waitpid(server, os.WNOHANG) == (0, 0):
        # With descriptors the wait ends by itself; without them the loop looks twice a second.
        select.select(watched, [], [], None if watched else 0.5)
    with contextlib.suppress(ProcessLookupError):
        os.kill(server, signal.SIGKILL)


class _Server:
    """The process that children are forked from."""

    def __init__(self, control: socket.socket, limits: Limits, entries: list[str]) -> None:
        self._control = control
        self._limits = limits
        self._entries = [(entry, resolve(entry)) for entry in entries]
        self._children: dict[int, int | None] = {}

    def run(self, preload: list[str]) -> None:
        """Import, prepare, then follow orders until the command closes the control socket."""
        for name in preload:
            if ":" in name:
                resolve(name)()
            else:
                importlib.import_module(name)
        # What a child leaves behind when it ends becomes the server's, which can then find and end it.
        _process_control(_PR_SET_CHILD_SUBREAPER, 1)
        self._limits.prepare()
        gc.collect()
        # What is here now is never garbage, and looking at it would copy it into every child.
        gc.freeze()
        gc.set_threshold(20_000)
        self._control.sendall(_READY)
        while True:
            message, descriptors, _, _ = socket.recv_fds(self._control, _ORDER.size, 1, socket.MSG_WAITALL)
            if len(message) != _ORDER.size:
                return
            kind, number, entry, patience = _ORDER.unpack(message)
            if kind == _FORK:
                name, work = self._entries[entry]
                self._fork(number, name, work, descriptors[0])
                continue
            self._control.sendall(_ENDED.pack(number, self._end(number, patience)))

    def _fork(self, number: int, name: str, entry: Callable[[], int], descriptor: int) -> None:
        server = os.getpid()

        def work() -> int:
            os.setpgid(0, 0)
            self._limits.confine(server, name)
            # Away with every descriptor of the server before anything from outside runs.
            os.dup2(descriptor, CHANNEL)
            os.closerange(CHANNEL + 1, _MOST_DESCRIPTORS)
            return entry()

        try:
            child = self._children[number] = fork(work)
        except OSError:
            self._children[number] = None
        else:
            # In both processes: whoever comes first must find the group.
            with contextlib.suppress(OSError):
                os.setpgid(child, child)
        os.close(descriptor)

    def _end(self, number: int, patience: float) -> int:
        """The wait status of a child that is given some seconds to end, with what it started."""
        child = self._children.pop(number, None)
        if child is None:
            return 1 << 8
        status = self._end_process(child, patience)
        self._end_orphans()
        self._limits.tidy()
        return status

    def _end_process(self, child: int, patience: float) -> int:
        deadline = time.monotonic() + patience
        peek = os.WEXITED | os.WNOHANG | os.WNOWAIT
        while (ended := os.waitid(os.P_PID, child, peek)) is None and time.monotonic() < deadline:
            time.sleep(0.001)
        # Not yet reaped, so that its number is nobody else's: the group may outlive its first process.
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        return status if ended is not None else KILLED

    def _end_orphans(self) -> None:
        """End what a child has started in a group of its own and left behind, as a daemon is."""
        listed = Path(f"/proc/self/task/{os.getpid()}/children")
        known = {child for child in self._children.values() if child is not None}
        while True:
            try:
                orphans = {int(child) for child in listed.read_text().split()} - known
            except OSError:  # no /proc here, or none that lists children
                return
            if not orphans:
                return
            for orphan in orphans:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(orphan, signal.SIGKILL)
                os.waitpid(orphan, 0)
