"""The program's side of the sandbox: run its code, then answer the judge's requests.

Everything here shares an interpreter with code from outside. Nothing secret may be in this process, and nothing
it says is believed: the judge decodes it as plain values and compares for itself.
"""

import builtins
import contextlib
import random
import sys
import types
from typing import Any

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


def prepare(descriptor: int) -> Peer:
    """The program's end of a conversation over a descriptor; made in the keeper, so that no program waits for it."""
    peer = Peer(descriptor, operations=ALL_OPERATIONS, lends=True)
    peer.lend(load)
    return peer


def run(peer: Peer) -> int:
    """Serve the judge until it is gone; returns the exit status for the process."""
    # A fork draws a new seed; every program draws the same numbers, whichever worker it falls to.
    random.seed(0)
    with contextlib.suppress(ClosedError):
        peer.serve()
    return 0
