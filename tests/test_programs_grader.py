"""Verdicts, order, retries and refusals of the program grader."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from score_cli.errors import UserError
from score_cli.tables.schemas import CORRECT, INCORRECT, NO_ANSWER, OUT_OF_MEMORY, TIMEOUT, UNSCORED, VERDICTS
from score_cli.verification.programs import grader as grader_module
from score_cli.verification.programs.grader import ProgramGrader
from tests.processes import descendants, runs
from tests.programs_support import item, lines, verdict
from tests.test_forkserver import kill_the_first

GOOD = "def add(a, b): return a + b"


@pytest.fixture(scope="module")
def grader() -> Iterator[ProgramGrader]:
    found = ProgramGrader(timeout_seconds=1.5, memory_mb=256)
    yield found
    found.close()


MIXED = [
    item(GOOD),
    item("def add(a, b): return a - b"),
    item("no code at all", fenced=False),
    item("def add(a, b):\n    while True: pass"),
    item("def add(a, b): return bytearray(2**40)"),
    item("def add(a, b) return"),
    item(GOOD, tests=[]),
    *(item(f"def add(a, b): return a + b + {n % 2}") for n in range(20)),
]
EXPECTED = [CORRECT, INCORRECT, NO_ANSWER, TIMEOUT, OUT_OF_MEMORY, NO_ANSWER, UNSCORED, *[CORRECT, INCORRECT] * 10]


def test_every_end_has_its_verdict_in_the_order_of_the_items(grader: ProgramGrader) -> None:
    assert [graded.verdict for graded in grader.grade(MIXED)] == EXPECTED
    assert set(EXPECTED) <= set(VERDICTS)


def test_the_number_of_workers_does_not_show(grader: ProgramGrader) -> None:
    several = ProgramGrader(workers=3, timeout_seconds=1.5, memory_mb=256)
    try:
        assert several.grade(MIXED) == grader.grade(MIXED)
    finally:
        several.close()


def test_the_answer_is_the_code_that_was_judged(grader: ProgramGrader) -> None:
    [graded] = grader.grade([item(GOOD)])
    assert graded.answer == GOOD + "\n"


def test_no_items_no_results(grader: ProgramGrader) -> None:
    assert grader.grade([]) == []


def test_tests_that_are_not_python_leave_the_item_unscored(grader: ProgramGrader) -> None:
    assert verdict(grader, item(GOOD, tests="def check(:")) == UNSCORED


def test_tests_that_never_call_the_program_leave_the_item_unscored(grader: ProgramGrader) -> None:
    assert verdict(grader, item(GOOD, tests="def check(candidate):\n    assert True")) == UNSCORED


@pytest.mark.parametrize(
    "response", ["", "\0", "\ud800", "```python\n\0\n```", "```python\n\ud800\n```", "`" * 9, "(" * 70_000]
)
def test_odd_responses_do_not_pass_and_do_not_raise(grader: ProgramGrader, response: str) -> None:
    assert verdict(grader, item(response, fenced=False)) in (NO_ANSWER, INCORRECT)


def test_the_same_seed_and_hash_order_for_every_program(grader: ProgramGrader) -> None:
    code = "import random\ndef add(a, b): return [random.random(), list({'a', 'b', 'c'})]"
    test = "def check(candidate):\n    assert candidate(1, 2) == {}"
    space: dict[str, object] = {}
    exec("import random\nrandom.seed(0)\nvalue = random.random()", space)
    assert verdict(grader, lines(code, f"assert add(1, 2)[0] == {space['value']!r}")) == CORRECT
    assert verdict(grader, item(code, tests=test.format([]))) == INCORRECT


def test_a_function_named_like_a_builtin_is_the_programs_where_the_tests_name_nothing_else(
    grader: ProgramGrader,
) -> None:
    assert verdict(grader, lines("def sum(a, b): return a * b", "assert sum(2, 5) == 10")) == CORRECT
    assert verdict(grader, lines("def other(a, b): return a * b", "assert sum([2, 5]) == 7")) != CORRECT


def test_types_can_be_passed(grader: ProgramGrader) -> None:
    code = "def without(xs, kind): return [x for x in xs if not isinstance(x, kind)]"
    assert verdict(grader, lines(code, "assert without((1, 'a', 2.5), int) == ['a', 2.5]")) == CORRECT


def test_a_function_of_the_tests_can_be_passed_and_called(grader: ProgramGrader) -> None:
    code = "def apply(f, xs): return [f(x) for x in xs]"
    assert verdict(grader, lines(code, "assert apply(lambda x: x + 1, [1, 2]) == [2, 3]")) == CORRECT
    assert verdict(grader, lines(code, "assert apply(len, ['a', 'bc']) == [1, 2]")) == CORRECT


def test_a_module_that_only_the_program_imports_is_there_for_the_tests(grader: ProgramGrader) -> None:
    code = "import sys\ndef size(x): return sys.getsizeof(x)"
    assert verdict(grader, lines(code, "assert size((1, 2)) == sys.getsizeof((1, 2))")) == CORRECT


def test_a_class_of_the_program_can_be_made_and_filled_by_the_tests(grader: ProgramGrader) -> None:
    code = (
        "class Node:\n    def __init__(self, v): self.v, self.left = v, None\n"
        "def depth(n): return 1 + depth(n.left) if n else 0"
    )
    setup = "root = Node(1)\nroot.left = Node(2)\nroot.left.left = Node(3)"
    assert verdict(grader, lines(code, "assert depth(root) == 3", "assert root.left.v == 2", setup=setup)) == CORRECT


def test_generators_and_iterators_cross_both_ways(grader: ProgramGrader) -> None:
    code = "import itertools\ndef count(): return itertools.count()\ndef total(xs): return sum(xs)"
    tests = ("assert [x for x, _ in zip(count(), range(3))] == [0, 1, 2]", "assert total(x for x in (1, 2)) == 3")
    assert verdict(grader, lines(code, *tests)) == CORRECT


def test_exceptions_cross_by_name(grader: ProgramGrader) -> None:
    code = "class Mine(ValueError): pass\ndef bad(): raise Mine('why')"
    test = "try:\n    bad()\nexcept ValueError as error:\n    assert str(error) == 'why'\nelse:\n    assert False"
    assert verdict(grader, lines(code, test)) == CORRECT


def test_a_main_guard_does_not_run(grader: ProgramGrader) -> None:
    assert verdict(grader, item(GOOD + "\nif __name__ == '__main__':\n    raise SystemExit(1)")) == CORRECT


def test_a_killed_worker_costs_no_result() -> None:
    found = ProgramGrader(workers=2, timeout_seconds=3.0)
    slow = "import time\ndef add(a, b):\n    time.sleep(0.15)\n    return a + b + {}"
    killer = subprocess.Popen([sys.executable, "-c", _KILLER, str(os.getpid())])
    try:
        graded = found.grade([item(slow.format(f"0 * {n}")) for n in range(8)])
    finally:
        killer.kill()
        killer.wait()
        found.close()
    assert [result.verdict for result in graded] == [CORRECT] * 8


# Kills, one after another, a watcher, a server, and what the server forked last, while items are judged.
_KILLER = """
import os, sys, time, signal, pathlib
def below(process):
    try: return [int(x) for x in pathlib.Path(f"/proc/{process}/task/{process}/children").read_text().split()]
    except OSError: return []
def serves(process): return "forkserver" in pathlib.Path(f"/proc/{process}/cmdline").read_text()
def workers(): return [process for process in below(int(sys.argv[1])) if serves(process)]
for depth in (0, 1, 2):
    time.sleep(0.25)
    found = workers()[:1]
    for _ in range(depth): found = [q for p in found for q in below(p)][-1:]
    for p in found:
        try: os.kill(p, signal.SIGKILL)
        except OSError: pass
time.sleep(60)
"""


def test_a_worker_that_is_killed_while_it_starts_does_not_lower_the_level(
    grader: ProgramGrader, monkeypatch: pytest.MonkeyPatch
) -> None:
    kill_the_first(monkeypatch, 2)
    found = ProgramGrader(timeout_seconds=1.5, allow_unsandboxed=True)
    assert found.level == grader.level
    found.close()


def test_idle_workers_that_were_killed_are_replaced(grader: ProgramGrader) -> None:
    found = ProgramGrader(timeout_seconds=1.5)
    found.grade([item(GOOD)])
    [process] = [worker.pid for worker in found._idle]
    os.kill(process, signal.SIGKILL)
    assert verdict(found, item(GOOD + "\n#")) == CORRECT
    found.close()


def test_workers_do_not_outlive_a_command_that_is_killed(tmp_path: Path) -> None:
    script = (
        "from tests.programs_support import item\n"
        "from score_cli.verification.programs.grader import ProgramGrader\n"
        "found = ProgramGrader(timeout_seconds=60)\nprint(found._idle[0].pid, flush=True)\n"
        "found.grade([item('while True: pass')])\n"
    )
    root = Path(__file__).resolve().parents[1]
    command = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, cwd=root, text=True)
    assert command.stdout is not None
    watcher = int(command.stdout.readline())
    time.sleep(0.3)
    family = [watcher, *descendants(watcher)]
    command.send_signal(signal.SIGKILL)
    command.wait()
    assert len(family) >= 4, "watcher, server, judge and program"
    deadline = time.monotonic() + 3
    while (left := [process for process in family if runs(process)]) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert left == []


def test_the_description_says_how_and_not_where(grader: ProgramGrader) -> None:
    described = grader.describe()
    assert described == ProgramGrader(timeout_seconds=1.5, memory_mb=256).describe()
    assert "/" not in "".join(described.values())
    assert described["isolation"] == grader.level


def test_without_a_sandbox_nothingruns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grader_module, "LEVELS", ())
    with pytest.raises(UserError, match="no sandbox is available") as raised:
        ProgramGrader()
    assert "\n" not in str(raised.value)


def test_without_a_sandbox_programs_run_where_the_user_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grader_module, "LEVELS", ())
    found = ProgramGrader(timeout_seconds=1.5, allow_unsandboxed=True)
    assert found.describe()["isolation"] == "none"
    assert [graded.verdict for graded in found.grade(MIXED[:3])] == EXPECTED[:3]
    found.close()


def test_limits_that_make_no_sense_are_refused() -> None:
    with pytest.raises(UserError, match="0 workers"):
        ProgramGrader(workers=0)
