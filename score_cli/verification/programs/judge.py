"""The judge's side of the sandbox: find the program, run the tests, and say how they ended.

The tests exist in this process alone. The program is reached by requests, and what it answers is rebuilt as plain
values before a test sees it. One judge serves many jobs, each in a namespace of its own; after a job that left it
without memory or without an answer the next gets a new judge.
"""

import ast
import functools
import importlib
import json
import os
import random
import socket
import struct
import sys
import types
from collections.abc import Callable
from typing import Any, NamedTuple

from score_cli.verification.forkserver import CHANNEL
from score_cli.verification.programs.extraction import extract_program, parse, prelude_of
from score_cli.verification.programs.free_names import STANDARD_MODULES, Names, names_of_tests
from score_cli.verification.programs.program import LOADER
from score_cli.verification.programs.rpc import ClosedError, Peer, ProgramExit, WireError

# How a judgement ended. PASSED to NO_PROGRAM are about the response; GONE needs the fork server to say how the program
# ended; BAD_TESTS is the problem's own fault.
PASSED, FAILED, OUT_OF_MEMORY, NO_PROGRAM, GONE, BAD_TESTS = (
    "passed",
    "failed",
    "out_of_memory",
    "no_program",
    "gone",
    "bad_tests",
)

# A judge is not used again after these: it may have no memory left, or wait for an answer that never comes.
SPOILING = frozenset((GONE, OUT_OF_MEMORY))

_HEADER = struct.Struct("=I")
_RECURSION_LIMIT = 1000


class Job(NamedTuple):
    """What is judged: a response, and the columns of its problem that say how."""

    response: str
    question: str
    tests: tuple[str, ...]
    setup: str
    entry_point: str | None

    def to_message(self) -> bytes:
        """The job as it is sent to a judge."""
        data = json.dumps(self).encode()
        return _HEADER.pack(len(data)) + data

    @classmethod
    def receive(cls, channel: socket.socket) -> tuple["Job", int] | None:
        """The next job and the descriptor of its program; None where no more will come."""
        header, descriptors, _, _ = socket.recv_fds(channel, _HEADER.size, 1, socket.MSG_WAITALL)
        if len(header) < _HEADER.size:
            return None
        data = channel.recv(_HEADER.unpack(header)[0], socket.MSG_WAITALL)
        response, question, tests, setup, entry_point = json.loads(data)
        return cls(response, question, tuple(tests), setup, entry_point), descriptors[0]


class _Tests(NamedTuple):
    """The tests of a problem, ready to run."""

    prelude: str
    code: list[types.CodeType]
    names: Names
    define_check: bool


class _Gone(BaseException):
    """The program ended or stopped making sense; not an Exception, so that no test can catch it."""


class _Program(Peer):
    """The program as the tests see it: counts requests, and turns a broken conversation into `_Gone`."""

    def __init__(self, descriptor: int, names: Names) -> None:
        super().__init__(descriptor, operations={"call": _call}, lends=False)
        # Only tests that name a class of the program have a use for attributes and methods of its objects.
        self.reads_attributes = any(name[0].isupper() for name in names.program)
        self.requests = 0
        self.broken = False

    def ask(self, number: int, operation: str, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> Any:
        self.requests += 1
        if self.broken:
            raise _Gone
        try:
            return super().ask(number, operation, arguments, keywords)
        except (ClosedError, WireError) as error:
            self.broken = True
            raise _Gone from error

    def load(self, sources: list[str], names: list[str]) -> dict[str, Any]:
        """Have the program run its code, and bind what it offers of the names asked for."""
        offered = self.ask(LOADER, "call", (sources, names), {})
        self.requests = 0
        space: dict[str, Any] = {}
        if not isinstance(offered, dict):
            raise _Gone
        for name in names:
            kind, value = offered.get(name) or (None, None)
            if kind == "module" and isinstance(value, str) and value.partition(".")[0] in STANDARD_MODULES:
                space[name] = importlib.import_module(value)
            elif kind == "value":
                space[name] = value
        return space


def _call(target: Callable[..., Any], *arguments: Any, **keywords: Any) -> Any:
    return target(*arguments, **keywords)


def serve() -> int:
    """A child's entry: judge jobs until the command closes its end.

    Each job is answered by two lines: the program that was found, and how the judgement ended.
    """
    channel = socket.socket(fileno=CHANNEL)
    while (received := Job.receive(channel)) is not None:
        job, program = received
        try:
            _run(job, channel, program)
        finally:
            os.close(program)
    return 0


def _run(job: Job, channel: socket.socket, descriptor: int) -> None:
    # Not the program's stream of random numbers, which it could use to foresee a shuffled test.
    random.seed("judge")
    sys.setrecursionlimit(_RECURSION_LIMIT)
    tests = _prepare(job.tests, job.setup, job.question, job.entry_point)
    prompt = job.question if job.entry_point else None
    answer = extract_program(job.response, wanted=tests.names.program if tests else frozenset(), prompt=prompt)
    _tell(channel, answer)
    if tests is None:
        _tell(channel, BAD_TESTS)
    elif answer is None:
        _tell(channel, NO_PROGRAM)
    else:
        _tell(channel, _judge(job, tests, answer, _Program(descriptor, tests.names)))


def _tell(channel: socket.socket, value: str | None) -> None:
    channel.sendall(json.dumps(value).encode() + b"\n")


@functools.lru_cache(maxsize=16)
def _prepare(tests: tuple[str, ...], setup: str, question: str, entry_point: str | None) -> _Tests | None:
    """Compile a problem's tests; None where there are none or they are not Python."""
    # Remembered for the next job: the samples of one problem come one after another.
    sources = [source.replace("\r\n", "\n") for source in (setup, *tests)]
    trees = [tree for source in sources if (tree := parse(source)) is not None]
    if len(trees) != len(sources) or not any(tree.body for tree in trees[1:]):
        return None
    prelude = prelude_of(question, entry_point) if entry_point else ""
    whole = ast.Module(body=[node for tree in trees for node in tree.body], type_ignores=[])
    define_check = any(isinstance(node, ast.FunctionDef) and node.name == "check" for node in whole.body)
    code = [_compile(source) for source in (prelude, *sources)]
    return _Tests(prelude, code, names_of_tests(whole, entry_point), define_check)


def _compile(source: str) -> types.CodeType:
    return compile(source, "<tests>", "exec", dont_inherit=True)


def _judge(job: Job, tests: _Tests, answer: str, program: _Program) -> str:
    try:
        ending = _run_tests(job, tests, answer, program)
    except MemoryError:
        ending = OUT_OF_MEMORY
    except (_Gone, ClosedError, WireError):
        ending = GONE
    except (Exception, ProgramExit, SystemExit):  # whatever a test raises, the program failed it
        ending = FAILED
    # A test may have caught the end of the conversation and gone on.
    return GONE if program.broken else ending


def _run_tests(job: Job, tests: _Tests, answer: str, program: _Program) -> str:
    sources = [tests.prelude, answer] if tests.prelude else [answer]
    offered = program.load(sources, sorted(tests.names.program))
    space: dict[str, Any] = {"__name__": "tests"}
    for name in tests.names.modules:
        space[name] = importlib.import_module(name)
    # Bound before the helpers and tests run, which may put their own in place of the program's, never the reverse.
    space |= offered
    for code in tests.code:
        exec(code, space)
    if job.entry_point and tests.define_check:
        if job.entry_point not in offered:
            return FAILED
        space["check"](offered[job.entry_point])
    return PASSED if program.requests else BAD_TESTS
