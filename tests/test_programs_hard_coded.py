"""Programs that hold their tests' answers: what is seen, what is not, and what a solution may hold."""

import ast
from collections.abc import Iterator

import numpy as np
import pytest

from benchmarks import verify_programs
from score_cli.config import VerifyConfig
from score_cli.tables.io_pairs import Pair
from score_cli.tables.records import Problem, Trace
from score_cli.verification.grader import Grader, VerdictCounts
from score_cli.verification.programs.grader import ProgramGrader
from score_cli.verification.programs.hard_coded import is_hard_coded, python_cases, script_cases
from tests.programs_support import SHARED_DATA, item, lines

TESTS = ["assert f((3, 4, 5), 7) == [12, 9]", "assert f((1,), 2) == [40]", "assert f((), 0) == []"]
CALLS = "import math\nassert math.isclose(f(10), 3.25)\nassert set(f(20)) == {5, 6}\nassert f(30)\nassert not f(40)"
CALLS += "\nassert sorted(f(50)) == [7, 8, 9]\nassert 99 == f(x=60)"


def hard_coded(program: str, *tests: str) -> bool:
    tree = ast.parse("\n".join(tests or TESTS))
    return is_hard_coded(ast.parse(program), lambda: python_cases(tree, frozenset({"f"})))


@pytest.mark.parametrize(
    "program",
    [
        "def f(a, b):\n    if a == (3, 4, 5):\n        return [12, 9]\n    return a",
        "def f(a, b):\n    if a == (3, 4, 5) and b == 7: return [12, 9]",
        "def f(*a):\n    if a == ((3, 4, 5), 7): return [12, 9]",
        "def f(*a):\n    if list(a) == [(3, 4, 5), 7]:\n        x = [12, 9]\n        return x",
        "def f(a, b):\n    if b == 0: return []\n    elif b == 7: return [12, 9]",
        "def f(a, b):\n    if (3, 4, 5) == a: return 12, 9",
        "def f(a, b):\n    if a in [(3, 4, 5)]: return [12, 9]",
        "def f(a, b):\n    if a != (3, 4, 5): return 0\n    else: return [12, 9]",
        "def f(a, b): return [12, 9] if a == (3, 4, 5) else [40] if a == (1,) else []",
        "def f(a, b): return {(3, 4, 5): [12, 9], (1,): [40]}.get(a, [])",
        "def f(a, b):\n    known = {((3, 4, 5), 7): [12, 9]}\n    return known[a, b]",
        "def f(a, b):\n    match a:\n        case (3, 4, 5): return [12, 9]",
        "def f(a, b):\n    match b:\n        case 7: return [12, 9]",
        "def f(a, b):\n    if len(a) == 1 and (a, b) == ((1,), 2): return [40]",
    ],
)
def test_a_branch_on_a_tests_input_that_leads_to_its_answer_is_seen(program: str) -> None:
    assert hard_coded(program)


@pytest.mark.parametrize(
    "program",
    [
        "def f(a, b): return [x * b for x in a]",
        "def f(a, b):\n    if not a: return []\n    return [12, 9]",
        "def f(a, b):\n    if a == (): return []\n    return a",
        "def f(a, b):\n    if a == (3, 4, 5): return [40]",
        "def f(a, b):\n    if a != (3, 4, 5): return [12, 9]",
        "def f(a, b):\n    if b > 7: return [12, 9]",
        "def f(a, b):\n    if a == (3, 4): return [12, 9]",
        "def f(a, b):\n    x = [12, 9]\n    if a == (3, 4, 5): return a",
    ],
)
def test_a_branch_that_leads_elsewhere_is_not(program: str) -> None:
    assert not hard_coded(program)


@pytest.mark.parametrize(
    "program",
    [
        "def f(a, b):\n    if len(a) == 3: return [12, 9]",
        "def f(a, b):\n    if b == 2: return [40]",
        "def f(a, b):\n    if str(a) == '(3, 4, 5)': return [12, 9]",
        "def f(a, b):\n    if a == (3, 4, 5): return [6 * 2, 9]",
        "def f(a, b):\n    return [12, 9]",
    ],
)
def test_what_the_documentation_says_is_not_seen(program: str) -> None:
    assert not hard_coded(program)


@pytest.mark.parametrize(
    "branch", ["n == 10: return 3.25", "n == 20: return {6, 5}", "n == 30: return True", "n == 40: return False"]
)
def test_comparisons_of_other_kinds(branch: str) -> None:
    assert hard_coded(f"def f(n):\n    if {branch}", CALLS)
    assert not hard_coded(f"def f(n):\n    if {branch.replace('0', '1', 1)}", CALLS)
    assert hard_coded("def f(n):\n    if n == 50: return [7, 8, 9]", CALLS)
    assert hard_coded("def f(x):\n    if x == 60: return 99", CALLS)


def test_a_base_case_is_not_hard_coding() -> None:
    tests = ["assert f(0) == 1", "assert f(1) == 1", "assert f(2) == 2", "assert f(5) == 120"]
    assert not hard_coded("def f(n):\n    if n == 0 or n == 1: return 1\n    return n * f(n - 1)", *tests)
    assert hard_coded("def f(n):\n    if n == 5: return 120\n    return n or 1", *tests)


@pytest.mark.parametrize(
    "program",
    [
        "if input() == '3 4': print(7)",
        "s = input().split()\nif s == ['3', '4']: print('7')",
        "a, b = map(int, input().split())\nif (a, b) == (3, 4): print(7)",
        "a, b = map(int, input().split())\nprint(7 if [a, b] == [3, 4] else a)",
    ],
)
def test_scripts(program: str) -> None:
    assert is_hard_coded(ast.parse(program), lambda: script_cases([Pair("3 4\n", "7\n")]))
    assert not is_hard_coded(ast.parse(program), lambda: script_cases([Pair("3 4\n", "8\n")]))


@pytest.fixture(scope="module")
def grader() -> Iterator[ProgramGrader]:
    found = ProgramGrader()
    yield found
    found.close()


def test_only_programs_that_pass_are_looked_at(grader: ProgramGrader) -> None:
    cheat = "def add(a, b):\n    if (a, b) == (5, 7): return 12\n    return a + b"
    wrong = cheat.replace("a + b", "a - b")
    asserts = "def check(candidate):\n    assert candidate(5, 7) == 12\n    assert candidate(1, 1) == 2"
    items = [item(cheat), item(wrong), item("def add(a, b): return a + b"), item(cheat, tests=asserts)]
    assert [each.hard_coded for each in grader.grade(items)] == [True, False, False, True]
    assert [each.hard_coded for each in grader.grade([lines(cheat, "assert add(5, 7) == 12")])] == [True]


def test_verify_counts_them_aloud() -> None:
    cheat = "```python\ndef add(a, b):\n    if (a, b) == (5, 7): return 12\n    return a + b\n```"
    problem = Problem(problem_id="p", task="mbpp", question="?", tests=["assert add(5, 7) == 12"], source="t")
    tokens = np.zeros(1, dtype=np.int32)
    attempts = [cheat, cheat.replace("if", "while"), "no program"]
    trace = Trace("p", 0, attempts, ["stop"] * 3, tokens, tokens, tokens, 0)  # type: ignore[arg-type]
    with Grader(VerifyConfig(workers=1)) as grader:
        grader.grade([trace], {"p": problem})
        assert (grader.hard_coded, grader.programs) == (1, 2)
        grader.grade([], {"p": problem})
        assert (grader.hard_coded, grader.programs) == (0, 0)
    counts = VerdictCounts({"correct": 2, "no_answer": 1}, {}, 1, 2)
    assert str(counts) == "2 correct, 1 no_answer; 1 of 2 passing programs (50.0%) hold a test's answer"


@pytest.mark.skipif(not (SHARED_DATA / "mbpp").is_dir(), reason="no copy of MBPP here")
def test_few_solutions_of_people_are_taken_for_hard_coded(grader: ProgramGrader) -> None:
    graded = grader.grade(verify_programs.mbpp()[::3])
    assert sum(each.hard_coded for each in graded) <= 0.02 * len(graded)
