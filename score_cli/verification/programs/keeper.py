"""A worker: a small process of its own that forks a judge and a program for each job and ends both.

It is started by exec in a clean environment, so that nothing of the command that runs it (threads, memory, open
files) is in it. It never reads a job: the judge reads the job from a descriptor it inherits, and so the memory that
the next program starts from has never held a test.

Three processes: the watcher lives outside of the namespaces and ends with the command; the keeper forks; judge and
program last for one job. Each dies with the one before it.
"""

import contextlib
import gc
import importlib
import os
import select
import signal
import socket
import struct
import sys
import time
from collections.abc import Callable

from score_cli.verification.programs import isolation, judge, program
from score_cli.verification.programs.isolation import LANDLOCK, NONE, Confinement, die_with

READY, FAILED = b"R", b"F"
# One end of a job: whether it ran out of time, whether the judge answered, the program's wait status.
ENDED = struct.Struct("=??i")

# What programs commonly import: forked with the keeper instead of read again for each program.
_PRELOADED = (
    "array bisect calendar cmath collections contextlib copy dataclasses datetime decimal enum fractions functools "
    "heapq inspect itertools json math numbers operator queue random re statistics string textwrap threading time "
    "typing unicodedata"
)
_CHANNEL = 3
# What one job leaves in a judge's memory is little, and this bounds it.
_JOBS_PER_JUDGE = 200
_MOST_DESCRIPTORS = 4096
# How long a program may take to end by itself once it has left the conversation.
_LEAVING_SECONDS = 0.2


def main(arguments: list[str]) -> None:
    """Run a worker: its control socket, level, memory and time limits stand in the arguments."""
    descriptor, command, level, memory_mb, milliseconds = arguments
    control = socket.socket(fileno=int(descriptor))
    cpu_seconds = int(milliseconds) // 1000 + 2
    confinement = Confinement(level=level, memory_mb=int(memory_mb), cpu_seconds=cpu_seconds)
    try:
        if level not in (LANDLOCK, NONE):
            isolation.enter_namespaces()
    except OSError as error:
        control.sendall(FAILED + str(error).encode())
        return
    watcher = os.getpid()
    keeper = os.fork()
    if keeper:
        control.close()
        _watch(keeper, int(command))
        return
    try:
        if sys.platform == "linux":
            die_with(None if level not in (LANDLOCK, NONE) else watcher)
        _Keeper(control, confinement, int(milliseconds) / 1000).run()
    except OSError as error:
        control.sendall(FAILED + str(error).encode())
    finally:
        os._exit(0)


def _watch(keeper: int, command: int) -> None:
    """End the keeper when the command ends, however it does, and end with the keeper.

    A parent-death signal would not do: it follows the thread that started this process, not the command.
    """
    try:
        watched = [os.pidfd_open(command), os.pidfd_open(keeper)]
    except (OSError, AttributeError):
        watched = []
    while os.getppid() == command and os.waitpid(keeper, os.WNOHANG) == (0, 0):
        # With descriptors the wait ends by itself; without them the loop looks twice a second.
        select.select(watched, [], [], None if watched else 0.5)
    with contextlib.suppress(ProcessLookupError):
        os.kill(keeper, signal.SIGKILL)


class _Keeper:
    """The process that programs are forked from."""

    def __init__(self, control: socket.socket, confinement: Confinement, timeout_seconds: float) -> None:
        self._control = control
        self._confinement = confinement
        self._timeout_seconds = timeout_seconds
        self._judge_process: int | None = None
        self._jobs_of_judge = 0
        self._peer = program.prepare(_CHANNEL)
        self._private = confinement.level not in (LANDLOCK, NONE)

    def run(self) -> None:
        """Prepare, prove that the confinement holds, then take jobs until the command closes the control socket."""
        for name in _PRELOADED.split():
            importlib.import_module(name)
        if self._private:
            isolation.build_root()
        self._quiet()
        self._confinement.prepare()
        self._prove()
        gc.collect()
        # What is here now is never garbage, and looking at it would copy it into every process.
        gc.freeze()
        gc.set_threshold(20_000)
        self._control.sendall(READY)
        while True:
            message, descriptors, _, _ = socket.recv_fds(self._control, 1, 2)
            if not message:
                return
            job, report = descriptors
            ended = self._judge(job, report)
            if ended is None:
                return
            self._control.sendall(ENDED.pack(*ended))

    def _quiet(self) -> None:
        """Point input and output nowhere, and forget where this package was imported from."""
        nowhere = os.open(os.devnull, os.O_RDWR)
        for descriptor in (0, 1, 2):
            os.dup2(nowhere, descriptor)
        os.close(nowhere)
        os.environ.clear()
        os.chdir("/")
        sys.argv[:] = [""]
        sys.path[:] = [path for path in sys.path if path.startswith((sys.base_prefix, sys.base_exec_prefix))]

    def _prove(self) -> None:
        """Run the forbidden in a confined process.

        Raises:
            OSError: it was not forbidden.
        """
        reader, writer = os.pipe()
        keeper = os.getpid()

        def attempt() -> int:
            try:
                self._confinement.confine(keeper)
                self._confinement.prove()
            except OSError as error:
                os.write(writer, str(error).encode()[:512])
            return 0

        child = _fork(attempt)
        os.close(writer)
        with os.fdopen(reader, "rb") as file:
            problem = file.read().decode()
        _, status = os.waitpid(child, 0)
        if problem or status:
            raise OSError(problem or f"a confined process ended with wait status {status}")

    def _judge(self, job: int, report: int) -> tuple[bool, bool, int] | None:
        """Run one job to its end or its deadline; None where the command has gone meanwhile."""
        deadline = time.monotonic() + self._timeout_seconds
        judge_end, program_end = socket.socketpair()
        keeper = os.getpid()

        def run_program() -> int:
            if self._private:
                # Here and not in the keeper: the folder of the last program may have been replaced.
                os.chdir(isolation.SCRATCH)
            self._confinement.confine(keeper)
            # Away with everything that leads to the judge before anything from outside runs.
            _keep_only(program_end.fileno())
            return program.run(self._peer)

        program_pid = _fork(run_program)
        program_end.close()
        orders = self._ready_judge()
        try:
            with judge_end:
                socket.send_fds(orders, [b"J"], [job, report, judge_end.fileno()])
        except ConnectionError:
            # It was killed while it had nothing to do; the answer that does not come says so.
            pass
        os.close(job)
        os.close(report)
        readable, _, _ = select.select([orders, self._control], [], [], max(0.0, deadline - time.monotonic()))
        answer = b"" if orders not in readable else _receive(orders)
        if answer != judge.DONE:
            self._end_judge()
        status = _end(program_pid, patience=_LEAVING_SECONDS if answer == judge.LOST else 0.0)
        if self._private:
            isolation.renew_scratch()
        if readable == [self._control]:
            return None
        return not readable, bool(answer), status

    def _ready_judge(self) -> socket.socket:
        """The socket to a judge: the one of the last job, or a new one."""
        if self._judge_process is not None and self._jobs_of_judge == _JOBS_PER_JUDGE:
            self._end_judge()
        if self._judge_process is None:
            keeper = os.getpid()
            self._orders, theirs = socket.socketpair()

            def referee() -> int:
                self._confinement.confine(keeper, lasting=True)
                _keep_only(theirs.fileno())
                return judge.serve(_CHANNEL)

            self._judge_process = _fork(referee)
            self._jobs_of_judge = 0
            theirs.close()
        self._jobs_of_judge += 1
        return self._orders

    def _end_judge(self) -> None:
        assert self._judge_process is not None
        self._orders.close()
        _end(self._judge_process, patience=0.0)
        self._judge_process = None


def _keep_only(descriptor: int) -> None:
    """Close every descriptor of this process but the standard ones and this, which becomes the channel."""
    os.dup2(descriptor, _CHANNEL)
    os.closerange(_CHANNEL + 1, _MOST_DESCRIPTORS)


def _receive(orders: socket.socket) -> bytes:
    """The judge's answer, empty where it ended without one."""
    try:
        return orders.recv(1)
    except ConnectionError:
        return b""


def _fork(work: Callable[[], int]) -> int:
    """Fork a process that does its work and ends with the exit status it returns, without coming back here."""
    child = os.fork()
    if child:
        return child
    status = 1
    try:
        status = work()
    finally:
        os._exit(status)


def _end(process: int, *, patience: float) -> int:
    """The wait status of a process that is given some seconds to end; -1 where it had to be killed."""
    deadline = time.monotonic() + patience
    while True:
        found, status = os.waitpid(process, os.WNOHANG)
        if found:
            return status
        if time.monotonic() >= deadline:
            break
        time.sleep(0.001)
    os.kill(process, signal.SIGKILL)
    os.waitpid(process, 0)
    return -1
