"""Programs that read standard input, and tests that name no function."""

import json
from collections.abc import Iterator

import pytest

from score_cli.tables.schemas import CORRECT, CRASHED, INCORRECT, NO_ANSWER, OUT_OF_MEMORY, TIMEOUT, UNSCORED
from score_cli.verification.programs.grader import ProgramGrader
from score_cli.verification.task_grader import Item
from tests.programs_support import item, verdict

SUMS = ["1 2\n", "40 2\n", "-5 5\n"]


@pytest.fixture(scope="module")
def grader() -> Iterator[ProgramGrader]:
    found = ProgramGrader(timeout_seconds=2.0, memory_mb=256)
    yield found
    found.close()


def script(code: str, *pairs: tuple[str, str], fenced: bool = True) -> Item:
    """A script as the response to a problem of input and output; of adding two numbers where none are given."""
    pairs = pairs or tuple((given, f"{sum(map(int, given.split()))}\n") for given in SUMS)
    tests = [json.dumps({"input": given, "output": expected}) for given, expected in pairs]
    return item(code, tests=tests, entry_point=None, fenced=fenced)


@pytest.mark.parametrize(
    "code",
    [
        "a, b = map(int, input().split())\nprint(a + b)",
        "import sys\nprint(sum(map(int, sys.stdin.read().split())))",
        "import sys\nfor line in sys.stdin:\n    print(sum(map(int, line.split())))",
        "print(sum(map(int, open(0).read().split())))",
        "import sys\ndata = sys.stdin.buffer.read()\nsys.stdout.buffer.write(b'%d' % sum(map(int, data.split())))",
        "import os\nos.write(1, str(sum(map(int, os.read(0, 100).split()))).encode())",
        "import fileinput\nprint(sum(map(int, next(fileinput.input()).split())))",
        "def main():\n    print(sum(map(int, input().split())))\nif __name__ == '__main__':\n    main()",
        "import sys\nprint(sum(map(int, input().split())))\nsys.exit()",
        "print(sum(map(int, input().split())))\nexit(0)\nprint('more')",
        "import threading\ndef main(): print(sum(map(int, input().split())))\nthreading.Thread(target=main).start()",
        "import sys, io, atexit\nbuffer = io.StringIO()\nsys.stdout = buffer\n"
        "atexit.register(lambda: sys.__stdout__.write(buffer.getvalue()))\nprint(sum(map(int, input().split())))",
        "print(sum(map(int, input().split())), end='')",
        "import sys\ninput = sys.stdin.readline\nprint(sum(map(int, input().split())))",
        "print(sum(map(int, input('').split())))",
        "import sys\nsys.stderr.write('debug')\nprint(sum(map(int, input().split())))",
    ],
)
def test_a_script_may_read_and_write_by_every_way_there_is(grader: ProgramGrader, code: str) -> None:
    assert verdict(grader, script(code)) == CORRECT


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("print(3)", INCORRECT),
        ("a, b = map(int, input().split())\nprint(a - b)", INCORRECT),
        ("a, b = map(int, input().split())\nprint('The sum is', a + b)", INCORRECT),
        ("print(sum(map(int, input().split())))\nraise ValueError", INCORRECT),
        ("print(sum(map(int, input().split())))\nexit(1)", INCORRECT),
        ("def add(a, b): return a + b", INCORRECT),
        ("print(sum(map(int, input().split())))\ninput()", INCORRECT),
        ("while True: pass", TIMEOUT),
        ("while True: print('x' * 1000)", TIMEOUT),
        ("x = bytearray(1 << 40)", OUT_OF_MEMORY),
        ("import os\nprint(3)\nos._exit(0)", CRASHED),
        ("print(", NO_ANSWER),
    ],
)
def test_a_script_that_is_wrong(grader: ProgramGrader, code: str, expected: str) -> None:
    assert verdict(grader, script(code)) == expected


def test_each_input_is_a_run_of_its_own(grader: ProgramGrader) -> None:
    counting = "try:\n    count += 1\nexcept NameError:\n    count = 1\ninput()\nprint(count)"
    assert verdict(grader, script(counting, ("a", "1"), ("b", "1"))) == CORRECT


def test_input_longer_than_a_pipe_arrives_and_output_too(grader: ProgramGrader) -> None:
    numbers = list(range(200_000))
    given = "\n".join(map(str, numbers))
    code = "import sys\nfor line in sys.stdin.read().split(): print(int(line) + 1)"
    assert verdict(grader, script(code, (given, "\n".join(str(n + 1) for n in numbers)))) == CORRECT
    assert verdict(grader, script("print('unread')", (given, "unread"))) == CORRECT


def test_what_is_expected_is_not_in_the_memory_of_the_script(grader: ProgramGrader) -> None:
    secret = "a-secret-that-no-input-holds"
    code = (
        "import gc, sys\n"
        "texts = [x for x in gc.get_objects() if isinstance(x, (list, tuple, dict))]\n"
        "found = [v for x in texts for v in (x.values() if isinstance(x, dict) else x) if isinstance(v, str)]\n"
        "print(next((v for v in found if v.startswith('a-' + str('secret'))), 'nothing'))"
    )
    assert verdict(grader, script(code, ("", secret))) == INCORRECT
    assert verdict(grader, script(code, ("", "nothing"))) == CORRECT


def test_characters_of_any_language(grader: ProgramGrader) -> None:
    assert verdict(grader, script("print(input()[::-1])", ("žluť\U0001f600", "\U0001f600ťulž"))) == CORRECT


@pytest.mark.parametrize(
    ("tests", "expected"),
    [
        (["['assert add(1, 2) == 3', 'assert add(0, 0) == 0']"], CORRECT),
        (['["assert add(1, 2) == 4"]'], INCORRECT),
        (["def check(candidate):\n    assert candidate(1, 2) == 3"], CORRECT),
        (["def check(candidate):\n    assert candidate(1, 2) == 4"], INCORRECT),
        (["def check(candidate):\n    assert candidate(1, 2) == 3\ncheck(add)"], CORRECT),
        (["def check(f):\n    assert f(1, 2) == 4\ncheck(add)"], INCORRECT),
        (["[add(1, 2)]"], CORRECT),
        (["1, 2"], UNSCORED),
    ],
)
@pytest.mark.parametrize(
    "question", ["Write add(a, b).", "def helper(x):\n    return x\n\n\ndef add(a, b):\n    pass\n"]
)
def test_tests_without_an_entry_point(grader: ProgramGrader, tests: list[str], expected: str, question: str) -> None:
    code = "def other(a): return a\n\ndef add(a, b): return a + b"
    assert verdict(grader, item(code, tests=tests, entry_point=None, question=question)) == expected
