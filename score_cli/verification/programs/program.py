"""The program's side of the sandbox: run its code, then answer the judge's requests.

Everything here shares an interpreter with code from outside. Nothing secret may be in this process, and nothing
it says is believed: the judge decodes it as plain values and compares for itself.
"""

import builtins
import contextlib
import functools
import random
import sys
import types
from typing import Any

from score_cli.verification.forkserver import CHANNEL
from score_cli.verification.programs.rpc import ALL_OPERATIONS, ClosedError, Peer

# The number of the first object lent: the function that loads the program.
LOADER = 0


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


@functools.cache
def peer() -> Peer:
    """The program's end of the conversation; made in the fork server, so that no program waits for it."""
    made = Peer(CHANNEL, operations=ALL_OPERATIONS, lends=True)
    made.lend(load)
    return made


def run() -> int:
    """A child's entry: serve the judge until it is gone."""
    # A fork draws a new seed; every program draws the same numbers, whichever worker it falls to.
    random.seed(0)
    with contextlib.suppress(ClosedError):
        peer().serve()
    return 0
