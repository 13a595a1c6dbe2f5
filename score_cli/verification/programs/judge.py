"""The judge's process: find the program of a response, run its problem's tests, and say how they ended.

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
import re
import socket
import struct
import sys
import types
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

from score_cli.tables.io_pairs import Pair, io_pairs
from score_cli.verification.forkserver import CHANNEL
from score_cli.verification.programs.extraction import extract_program, parse, prelude_of
from score_cli.verification.programs.free_names import STANDARD_MODULES, names_of_tests
from score_cli.verification.programs.hard_coded import Case, is_hard_coded, python_cases, script_cases
from score_cli.verification.programs.problem_tests import python_tests, same_output
from score_cli.verification.programs.program import LOADER, SCRIPT
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
_BRANCH = re.compile(r"\bif\b|\bmatch\b|\{")


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


class GoneError(BaseException):
    """The program ended or stopped making sense; not an Exception, so that no test can catch it."""


class Program(Peer):
    """The program as the tests see it: counts requests, and turns a broken conversation into `GoneError`."""

    def __init__(self, descriptor: int, wanted: frozenset[str]) -> None:
        super().__init__(descriptor, operations={"call": _call}, lends=False)
        # Only tests that name a class of the program have a use for attributes and methods of its objects.
        self.reads_attributes = any(name[0].isupper() for name in wanted)
        self.requests = 0
        self.broken = False

    def ask(self, number: int, operation: str, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> Any:
        """As for `Peer`, but a broken conversation is `GoneError`, now and ever after."""
        self.requests += 1
        if self.broken:
            raise GoneError
        try:
            return super().ask(number, operation, arguments, keywords)
        except (ClosedError, WireError) as error:
            self.broken = True
            raise GoneError from error

    def load(self, sources: list[str], names: list[str]) -> dict[str, Any]:
        """Have the program run its code, and bind what it offers of the names asked for."""
        offered = self.ask(LOADER, "call", (sources, names), {})
        self.requests = 0
        space: dict[str, Any] = {}
        if not isinstance(offered, dict):
            raise GoneError
        for name in names:
            kind, value = offered.get(name) or (None, None)
            if kind == "module" and isinstance(value, str) and value.partition(".")[0] in STANDARD_MODULES:
                space[name] = importlib.import_module(value)
            elif kind == "value":
                space[name] = value
        return space

    def run_script(self, source: str, given: str) -> str | None:
        """What the program prints when it is run as a script with that input; None where it ends badly."""
        answered = self.ask(SCRIPT, "call", (source, given), {})
        well, printed = answered if isinstance(answered, list) and len(answered) == 2 else (False, "")
        return printed if well is True and isinstance(printed, str) else None


def _call(target: Callable[..., Any], *arguments: Any, **keywords: Any) -> Any:
    return target(*arguments, **keywords)


class TestRunner(Protocol):
    """The tests of one problem, ready to be run against one program after another."""

    @property
    def wanted(self) -> frozenset[str]:
        """The names that the tests take from the program."""

    @property
    def prompt(self) -> str | None:
        """The function's head that a response may continue."""

    @property
    def cases(self) -> Sequence[Case]:
        """The tests whose input and expected value are literals, found when they are asked for."""

    def run(self, answer: str, program: Program) -> bool:
        """Whether the program passes; it fails too where a test raises."""


# The samples of one problem come one after another.
@functools.lru_cache(maxsize=16)
def make_runner(tests: tuple[str, ...], setup: str, question: str, entry_point: str | None) -> TestRunner | None:
    """The runner for a problem's tests; None where there are none or they are in no form that is known."""
    pairs = io_pairs(tests)
    if pairs is not None:
        return _ScriptRunner(pairs)
    sources = [source.replace("\r\n", "\n") for source in (setup, *python_tests(tests))]
    trees = [tree for source in sources if (tree := parse(source)) is not None]
    if len(trees) != len(sources) or not any(tree.body for tree in trees[1:]):
        return None
    return _PythonRunner(sources, trees, question, entry_point)


class _ScriptRunner:
    """Pairs of input and output: the program is run as a script for each."""

    wanted: frozenset[str] = frozenset()
    prompt = None

    def __init__(self, pairs: list[Pair]) -> None:
        self._pairs = pairs

    @functools.cached_property
    def cases(self) -> Sequence[Case]:
        return script_cases(self._pairs)

    def run(self, answer: str, program: Program) -> bool:
        for pair in self._pairs:
            printed = program.run_script(answer, pair.given)
            if printed is None or not same_output(printed, pair.expected):
                return False
        return True


class _PythonRunner:
    """Python code: assertions, or a function `check` that is called with the function asked for."""

    def __init__(self, sources: list[str], trees: list[ast.Module], question: str, entry_point: str | None) -> None:
        whole = ast.Module(body=[node for tree in trees for node in tree.body], type_ignores=[])
        defined = [node.name for node in whole.body if isinstance(node, ast.FunctionDef)]
        names = names_of_tests(whole, entry_point)
        self._checks = "check" in defined and not _calls(whole, "check")
        self._entry_point = entry_point
        if self._checks and entry_point is None and not names.program:
            self._entry_point = _asked_for(question)
            names = names_of_tests(whole, self._entry_point)
        self.wanted = names.program
        # Without an entry point the question is prose, and no part of what is run.
        self.prompt = question if self._entry_point else None
        self._modules = names.modules
        self._prelude = prelude_of(question, self._entry_point) if self._entry_point else ""
        self._code = [_compile(source) for source in (self._prelude, *sources)]
        self._tests = whole

    @functools.cached_property
    def cases(self) -> Sequence[Case]:
        return python_cases(self._tests, self.wanted | _first_parameters(self._tests))

    def run(self, answer: str, program: Program) -> bool:
        entry_point = self._entry_point
        wanted = self.wanted
        if self._checks and entry_point is None and not wanted:
            # Nothing names the function: it is the one that the program ends with.
            entry_point = _last_function(answer)
            wanted = frozenset((entry_point,)) if entry_point else wanted
        offered = program.load([self._prelude, answer] if self._prelude else [answer], sorted(wanted))
        space: dict[str, Any] = {"__name__": "tests"}
        for name in self._modules:
            space[name] = importlib.import_module(name)
        # Bound before the helpers and tests run, which may put their own in place of the program's, never the reverse.
        space |= offered
        for code in self._code:
            exec(code, space)
        if not self._checks or entry_point is None:
            return True
        if entry_point not in offered:
            return False
        space["check"](offered[entry_point])
        return True


def _calls(tests: ast.Module, name: str) -> bool:
    """Whether tests call a function at the margin."""
    calls = [node.value for node in tests.body if isinstance(node, ast.Expr) and isinstance(node.value, ast.Call)]
    return any(isinstance(call.func, ast.Name) and call.func.id == name for call in calls)


def _first_parameters(tests: ast.Module) -> frozenset[str]:
    """The names by which functions of the tests, such as `check`, call what they are given."""
    functions = [node for node in tests.body if isinstance(node, ast.FunctionDef)]
    return frozenset(function.args.args[0].arg for function in functions if function.args.args)


def _asked_for(question: str) -> str | None:
    """The function whose head a question ends with, where the question is code."""
    tree = parse(question)
    return _last_of(tree) if tree is not None else None


def _last_function(program: str) -> str | None:
    tree = parse(program)
    return _last_of(tree) if tree is not None else None


def _last_of(tree: ast.Module) -> str | None:
    return next((node.name for node in reversed(tree.body) if isinstance(node, ast.FunctionDef)), None)


def _compile(source: str) -> types.CodeType:
    return compile(source, "<tests>", "exec", dont_inherit=True)


def serve() -> int:
    """A child's entry: judge jobs until the command closes its end.

    Each job is answered by two lines of JSON: the program that was found; and how the judgement ended, with whether a
    program that passed holds its tests' answers.
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
    runner = make_runner(job.tests, job.setup, job.question, job.entry_point)
    if runner is None:
        _tell(channel, None)
        _tell(channel, [BAD_TESTS, False])
        return
    answer = extract_program(job.response, wanted=runner.wanted, prompt=runner.prompt)
    _tell(channel, answer)
    ending = NO_PROGRAM if answer is None else _judge(runner, answer, descriptor)
    _tell(channel, [ending, ending == PASSED and answer is not None and _is_hard_coded(answer, runner)])


def _is_hard_coded(answer: str, runner: TestRunner) -> bool:
    tree = parse(answer) if _BRANCH.search(answer) else None
    return tree is not None and is_hard_coded(tree, lambda: runner.cases)


def _tell(channel: socket.socket, value: object) -> None:
    channel.sendall(json.dumps(value).encode() + b"\n")


def _judge(runner: TestRunner, answer: str, descriptor: int) -> str:
    program = Program(descriptor, runner.wanted)
    try:
        passed = runner.run(answer, program)
        ending = FAILED if not passed else PASSED if program.requests else BAD_TESTS
    except MemoryError:
        ending = OUT_OF_MEMORY
    except (GoneError, ClosedError, WireError):
        ending = GONE
    except (Exception, ProgramExit, SystemExit):  # whatever a test raises, the program failed it
        ending = FAILED
    # A test may have caught the end of the conversation and gone on.
    return GONE if program.broken else ending
