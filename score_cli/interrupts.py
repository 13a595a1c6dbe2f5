"""Requests to stop (Ctrl-C, SIGTERM) that are met where nothing is lost."""

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from score_cli.progress import Progress
from score_cli.verification.forkserver import die_with

# Seconds after which a request that came at a bad moment is made again.
AGAIN = 0.05


def interrupt_on_signals() -> None:
    """Let Ctrl-C and a scheduler's SIGTERM end the command by a KeyboardInterrupt; SIGINT that is ignored stays so."""
    signal.signal(signal.SIGTERM, _interrupt)
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _interrupt)


def interrupt_when_parent_dies() -> None:
    """Let this process get a SIGTERM when the one that started it dies; nothing where the kernel is not Linux."""
    die_with(os.getppid(), signal.SIGTERM)


def _interrupt(number: int, frame: FrameType | None) -> None:
    """Raise KeyboardInterrupt, where somebody will see it.

    What is raised within a `__del__` is printed and dropped. A signal that comes while the garbage collector works is
    handled in the first Python code after it, and that is the `__del__` of what it found: every second Ctrl-C in the
    first moments of `score sample` was lost so.
    """
    while frame is not None:
        if frame.f_code.co_name == "__del__":
            again = threading.Timer(AGAIN, os.kill, (os.getpid(), number))
            again.daemon = True
            again.start()
            return
        frame = frame.f_back
    raise KeyboardInterrupt


@contextmanager
def stopping_between_updates(progress: Progress) -> Iterator[Callable[[], bool]]:
    """Yield a function that says whether somebody asked to stop; a second request interrupts at once.

    Signals reach the main thread alone; elsewhere nothing changes.
    """
    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return
    asked = False

    def ask(number: int, frame: FrameType | None) -> None:
        nonlocal asked
        if asked:
            raise KeyboardInterrupt
        asked = True
        progress.line("asked to stop: this update is finished and its policy kept first; ask again to stop at once")

    before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
