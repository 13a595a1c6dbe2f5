"""A process that ends vLLM's processes when the one that started them has ended, however that came about.

vLLM stops its processes when their owner exits in order. Those of one that is killed would go on with their start for a
minute, or stay for good, and keep the GPU's memory from the next. They are known by a mark in their environment, which
holds from their first moment on; vLLM itself runs nothing of ours that early.

    python vllm_watch.py OWNER MARK
"""

import contextlib
import os
import secrets
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

MARK = "SCORE_VLLM_OWNER"
# The library that renames vLLM's processes writes the name over their environment unless it is told not to.
_KEEP_ENVIRONMENT = "SPT_NOENV"
# A process that is killed may have begun to start another.
_QUIET_SCANS = 3
_SCAN_SECONDS = 0.1


class Watcher:
    """Watches for the end of this process, and then ends those that were started within `starting`."""

    def __init__(self) -> None:
        self._mark = secrets.token_hex(16)
        # -I, -S: nothing but the standard library is needed. A session of its own: a Ctrl-C is not for this process.
        self._process = subprocess.Popen(
            [sys.executable, "-I", "-S", __file__, str(os.getpid()), self._mark],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )

    @contextlib.contextmanager
    def starting(self) -> Iterator[None]:
        """Mark the processes that are started within."""
        names = {MARK: self._mark, _KEEP_ENVIRONMENT: "1"}
        before = {name: os.environ.get(name) for name in names}
        os.environ.update(names)
        try:
            yield
        finally:
            for name, value in before.items():
                os.environ.pop(name)
                if value is not None:
                    os.environ[name] = value

    def close(self) -> None:
        """Watch no more."""
        self._process.kill()
        self._process.wait()


def marked(mark: str) -> list[int]:
    """The processes that have a mark in their environment."""
    wanted, found = f"{MARK}={mark}".encode(), []
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if wanted in (folder / "environ").read_bytes():
                found.append(int(folder.name))
    return found


def main(owner: int, mark: str) -> None:
    """Wait until a process has ended, then end all that have the mark."""
    with contextlib.suppress(ProcessLookupError):
        ended = select.poll()
        ended.register(os.pidfd_open(owner), select.POLLIN)
        ended.poll()
    quiet = 0
    while quiet < _QUIET_SCANS:
        left = marked(mark)
        for process in left:
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)
        quiet = 0 if left else quiet + 1
        time.sleep(_SCAN_SECONDS)


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2])
