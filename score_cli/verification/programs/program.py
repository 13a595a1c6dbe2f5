"""The program's side of the sandbox: run its code, then answer the judge's requests.

Run as a script, it has its standard input and output as the system has them: programs of competitions read and write
by every way there is (`input`, `sys.stdin.buffer`, `os.read(0, ...)`), so the descriptors themselves lead to pipes.

Everything here shares an interpreter with code from outside. Nothing secret may be in this process, and nothing
it says is believed: the judge decodes it as plain values and compares for itself.
"""

import atexit
import builtins
import contextlib
import functools
import io
import os
import random
import sys
import threading
import types
from collections.abc import Iterator
from typing import Any

from score_cli.verification.forkserver import CHANNEL
from score_cli.verification.programs.rpc import ALL_OPERATIONS, ClosedError, Peer

# The numbers of the first objects lent: the functions that load the program, and that run it as a script.
LOADER, SCRIPT = 0, 1
# More than this is no answer; it is read and thrown away.
_LONGEST_OUTPUT = 16 * 1024 * 1024
# A thread of the program may hold its output open for ever.
_DRAIN_SECONDS = 1.0


def load(sources: list[str], names: list[str]) -> dict[str, Any]:
    """Run sources in one module and return those of the names it then has: ("value", it) or ("module", its name).

    The module is not `__main__`: a program's main guard must not run.
    """
    module = types.ModuleType("solution")
    sys.modules["solution"] = module
    space = vars(module)
    space["__builtins__"] = builtins
    for source in sources:
        exec(compile(source, "<solution>", "exec", dont_inherit=True), space)
    found: dict[str, Any] = {}
    for name in names:
        if name in space:
            value = space[name]
            found[name] = ("module", value.__name__) if isinstance(value, types.ModuleType) else ("value", value)
    return found


def run_script(source: str, given: str) -> list[object]:
    """Whether the program ended well, and what it printed."""
    random.seed(0)
    before = set(sys.modules)
    with _standard_files(given) as printed:
        well = _run_main(source)
    # The next run imports for itself: modules such as fileinput remember what they read.
    for name in set(sys.modules) - before:
        del sys.modules[name]
    return [well, bytes(printed).decode(errors="replace")]


def _run_main(source: str) -> bool:
    module = types.ModuleType("__main__")
    sys.modules["__main__"] = module
    # What `site` gives, which programs have without asking.
    vars(builtins).update(exit=sys.exit, quit=sys.exit)
    try:
        exec(compile(source, "<solution>", "exec", dont_inherit=True), vars(module))
        well = True
    except SystemExit as error:
        well = error.code in (None, 0)
    except MemoryError:
        raise
    except BaseException:  # the program's own failure, which an interpreter would print before it ends
        well = False
    for thread in threading.enumerate():
        if thread is not threading.current_thread() and not thread.daemon:
            thread.join()
    atexit._run_exitfuncs()
    return well


@contextlib.contextmanager
def _standard_files(given: str) -> Iterator[bytearray]:
    """Put the input on descriptor 0 and collect what is written to descriptor 1; complete when the context ends."""
    kept = [os.dup(0), os.dup(1)]
    feed, collect = os.pipe(), os.pipe()
    os.dup2(feed[0], 0)
    os.dup2(collect[1], 1)
    os.close(feed[0])
    os.close(collect[1])
    printed = bytearray()
    feeder = threading.Thread(target=_feed, args=(feed[1], given.encode(errors="surrogatepass")), daemon=True)
    collector = threading.Thread(target=_collect, args=(collect[0], printed), daemon=True)
    feeder.start()
    collector.start()
    sys.stdin, sys.stdout = _opened(0, "r"), _opened(1, "w")
    # Programs that put a buffer in place of sys.stdout write it out through these.
    vars(sys).update(__stdin__=sys.stdin, __stdout__=sys.stdout)
    output = sys.stdout
    try:
        yield printed
    finally:
        for stream in (sys.stdout, output):
            with contextlib.suppress(Exception):  # the program may have closed it, or put its own there
                stream.flush()
        for place, descriptor in enumerate(kept):
            os.dup2(descriptor, place)
            os.close(descriptor)
        collector.join(_DRAIN_SECONDS)


def _opened(descriptor: int, mode: str) -> io.TextIOWrapper:
    raw = io.FileIO(descriptor, mode, closefd=False)
    buffered = io.BufferedReader(raw) if mode == "r" else io.BufferedWriter(raw)
    return io.TextIOWrapper(buffered, encoding="utf-8", errors="surrogateescape")


def _feed(descriptor: int, data: bytes) -> None:
    view = memoryview(data)
    with contextlib.suppress(OSError), os.fdopen(descriptor, "wb", buffering=0) as pipe:
        while view:
            view = view[pipe.write(view) or 0 :]


def _collect(descriptor: int, printed: bytearray) -> None:
    with contextlib.suppress(OSError), os.fdopen(descriptor, "rb", buffering=0) as pipe:
        while data := pipe.read(1 << 16):
            if len(printed) < _LONGEST_OUTPUT:
                printed += data


@functools.cache
def peer() -> Peer:
    """The program's end of the conversation; made in the fork server, so that no program waits for it."""
    made = Peer(CHANNEL, operations=ALL_OPERATIONS, lends=True)
    assert (made.lend(load), made.lend(run_script)) == (LOADER, SCRIPT)
    return made


def run() -> int:
    """A child's entry: serve the judge until it is gone."""
    # A fork draws a new seed; every program draws the same numbers, whichever worker it falls to.
    random.seed(0)
    with contextlib.suppress(ClosedError):
        peer().serve()
    return 0
