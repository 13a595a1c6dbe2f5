"""Requests to stop (Ctrl-C, SIGTERM) that are met where nothing is lost."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from score_cli.progress import Progress


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
