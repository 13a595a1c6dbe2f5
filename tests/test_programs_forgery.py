"""A program cannot pass by anything but right answers, one trick a test."""

from collections.abc import Iterator

import pytest

from score_cli.tables.schemas import CORRECT
from score_cli.verification.programs.grader import ProgramGrader
from tests.programs_support import item, lines, verdict


@pytest.fixture(scope="module")
def grader() -> Iterator[ProgramGrader]:
    found = ProgramGrader(timeout_seconds=1.5, memory_mb=256)
    yield found
    found.close()


EQUAL = "    def __eq__(self, other): return True\n    def __ne__(self, other): return False\n    __hash__ = None\n"

TRICKS = {
    "leaves with status 0": "import os\nos._exit(0)",
    "leaves with status 0 in the call": "import os\ndef add(a, b): os._exit(0)",
    "leaves at exit": "import atexit, os\natexit.register(os._exit, 0)\ndef add(a, b): return a - b",
    "raises SystemExit": "def add(a, b): raise SystemExit(0)",
    "raises KeyboardInterrupt": "def add(a, b): raise KeyboardInterrupt",
    "raises GeneratorExit": "def add(a, b): raise GeneratorExit",
    "raises StopIteration": "def add(a, b): raise StopIteration",
    "an object equal to all": f"class All:\n{EQUAL}def add(a, b): return All()",
    "an int equal to all": f"class All(int):\n{EQUAL}def add(a, b): return All(0)",
    "a str equal to all": f"class All(str):\n{EQUAL}def add(a, b): return All('')",
    "a float equal to all": f"class All(float):\n{EQUAL}def add(a, b): return All(0)",
    "a tuple equal to all": f"class All(tuple):\n{EQUAL}def add(a, b): return All()",
    "a class equal to all": f"class Meta(type):\n{EQUAL}class All(metaclass=Meta): pass\ndef add(a, b): return All",
    "a function": "def add(a, b): return add",
    "NotImplemented": "def add(a, b): return NotImplemented",
    "a mock": "from unittest.mock import ANY\ndef add(a, b): return ANY",
    "a patched assertion": "import builtins\nbuiltins.AssertionError = KeyError\ndef add(a, b): return 0",
    "a patched int": "import builtins\nbuiltins.int = lambda *a: 3\ndef add(a, b): return 0",
    "a trace function": "import sys\nsys.settrace(lambda *a: sys._exit(0))\ndef add(a, b): return 0",
    "a patched encoder": (
        "import json\njson.dumps = json.JSONEncoder.encode = lambda *a: '\"3\"'\ndef add(a, b): return 0"
    ),
    "a patched import": "import builtins\nbuiltins.__import__ = None\ndef add(a, b): return 0",
    "no builtins": "import builtins\nvars(builtins).clear()",
    "a check of its own": "def check(candidate): pass\ndef add(a, b): return 0",
    "words on every descriptor": (
        "import os\nfor n in range(64):\n"
        "    for word in (b'passed\\n', b'D', b'\"passed\"\\n', b'null\\n\"passed\"\\n'):\n"
        "        try: os.write(n, word)\n        except OSError: pass\ndef add(a, b): return 0"
    ),
    "a made up reply": (
        'import os\ntext = b\'["return",{"dict":[["add",{"tuple":["value",3]}]]}]\'\n'
        "os.write(3, len(text).to_bytes(4, 'little') + text)\ndef add(a, b): return 0"
    ),
    "a request for the judge's objects": (
        "import os\ndef add(a, b):\n"
        '    for text in (b\'["do",0,"call",[],{"dict":[]}]\', b\'["return",{"yours":0}]\'):\n'
        "        os.write(3, len(text).to_bytes(4, 'little') + text)\n    return 0"
    ),
    "an endless length": "import os\ndef add(a, b):\n    os.write(3, b'\\xff' * 100)\n    return 0",
    "nonsense": "import os\ndef add(a, b):\n    os.write(3, b'\\x05\\0\\0\\0hello')\n    os._exit(0)",
    "an unknown tag": (
        'import os\ndef add(a, b):\n    t = b\'["return",{"eval":"1"}]\'\n'
        "    os.write(3, len(t).to_bytes(4, 'little') + t)"
    ),
    "a closed conversation": "import os\ndef add(a, b): os.close(3)",
    "a replaced conversation": (
        "import os\ndef add(a, b):\n    os.dup2(os.open(os.devnull, os.O_RDWR), 3)\n    return 0"
    ),
    "a list that holds itself": "def add(a, b):\n    x = []\n    x.append(x)\n    return x",
    "a deep list": "def add(a, b):\n    x = []\n    for _ in range(10**5): x = [x]\n    return x",
    "endless recursion": "def add(a, b): return add(a, b)",
    "endless recursion without a limit": "import sys\nsys.setrecursionlimit(10**9)\ndef add(a, b): return add(a, b)",
    "an endless generator": "def add(a, b):\n    while True: yield 3",
    "a long string": "def add(a, b): return 'x' * 40_000_000",
    "a long number": "def add(a, b): return 1 << 10**8",
    "a wrong type that is near": "def add(a, b): return str(a + b)",
    "one right answer": "def add(a, b): return 3",
    "no such name": "def sub(a, b): return a + b",
    "no function": "add = 3",
}


@pytest.mark.parametrize("code", TRICKS.values(), ids=TRICKS.keys())
def test_a_trick_does_not_pass(grader: ProgramGrader, code: str) -> None:
    assert verdict(grader, item(code)) != CORRECT


def test_a_right_program_passes(grader: ProgramGrader) -> None:
    assert verdict(grader, item("def add(a, b): return a + b")) == CORRECT


def test_tests_that_catch_everything_do_not_hide_that_the_program_is_gone(grader: ProgramGrader) -> None:
    tests = "def check(candidate):\n    try:\n        candidate(1)\n    except BaseException:\n        pass\n"
    assert verdict(grader, item("import os\ndef add(a): os._exit(0)", tests=tests)) != CORRECT


def test_a_program_cannot_empty_what_the_test_compares_with(grader: ProgramGrader) -> None:
    tests = "def check(candidate):\n    xs = [1, 2, 3]\n    assert candidate(xs) == len(xs)\n"
    assert verdict(grader, item("def add(xs):\n    xs.clear()\n    return 0", tests=tests)) != CORRECT


def test_builtins_of_the_tests_are_not_the_programs(grader: ProgramGrader) -> None:
    code = (
        "def abs(x): return 0\ndef sorted(x): return []\ndef set(x): return 0\n"
        "def all(x): return True\ndef add(a, b): return [9]"
    )
    for test in (
        "assert abs(add(1, 2)[0] - 3) < 1",
        "assert sorted(add(1, 2)) == sorted([3])",
        "assert set(add(1, 2)) == {3}",
    ):
        assert verdict(grader, lines(code, test)) != CORRECT


def test_modules_of_the_tests_are_not_the_programs(grader: ProgramGrader) -> None:
    code = (
        "import math\nmath.isclose = lambda *a, **k: True\nclass math:\n"
        "    isclose = staticmethod(lambda *a, **k: True)\ndef add(a, b): return 9"
    )
    assert verdict(grader, lines(code, "assert math.isclose(add(1, 2), 3)")) != CORRECT
    assert verdict(grader, lines(code, "assert math.isclose(add(1, 2), 3)", setup="import math")) != CORRECT


def test_helpers_of_the_prompt_are_not_the_programs(grader: ProgramGrader) -> None:
    question = 'def twice(x):\n    return 2 * x\n\n\ndef half(x):\n    """Undo twice."""\n'
    tests = "def check(candidate):\n    assert twice(candidate(8)) == 8\n"
    honest = item("    return x // 2", tests=tests, entry_point="half", question=question, fenced=False)
    lying = item("def twice(x): return 8\ndef half(x): return 0", tests=tests, entry_point="half", question=question)
    assert verdict(grader, honest) == CORRECT
    assert verdict(grader, lying) != CORRECT


def test_an_object_of_the_program_is_equal_to_nothing_but_itself(grader: ProgramGrader) -> None:
    code = f"class All:\n{EQUAL}one = All()\ndef same(): return one\ndef other(): return All()"
    assert verdict(grader, lines(code, "x = same()", "assert x == x and same() is same()")) == CORRECT
    assert verdict(grader, lines(code, "assert same() == other()")) != CORRECT
    assert verdict(grader, lines(code, "assert same() in [1, 2, 'x']")) != CORRECT


def test_random_numbers_of_the_tests_cannot_be_foreseen_by_drawing_them(grader: ProgramGrader) -> None:
    tests = "import random\ndef check(candidate):\n    assert candidate() == random.random()\n"
    assert verdict(grader, item("import random\ndef add(): return random.random()", tests=tests)) != CORRECT


def test_an_object_cannot_answer_for_a_method_of_a_plain_value(grader: ProgramGrader) -> None:
    code = "class Yes:\n    def __getattr__(self, name): return lambda *a: True\ndef word(x): return Yes()"
    assert verdict(grader, lines(code, "assert word(1).startswith('ab')", "assert word(1).isdigit()")) != CORRECT


def test_an_object_cannot_claim_to_contain_what_it_is_asked_for(grader: ProgramGrader) -> None:
    code = (
        "class Yes:\n    def __contains__(self, x): return True\n"
        "    def __iter__(self): return iter([1])\ndef some(x): return Yes()"
    )
    assert verdict(grader, lines(code, "assert 1 in some(1)")) == CORRECT
    assert verdict(grader, lines(code, "assert 2 in some(1)")) != CORRECT


def test_stop_iteration_does_not_end_a_loop_of_the_tests(grader: ProgramGrader) -> None:
    code = "def add(a, b): raise StopIteration"
    test = "assert all(map(lambda case: add(case, 1) == case + 1, [1, 2, 3]))"
    assert verdict(grader, lines(code, test)) != CORRECT
