"""Graders that users bring: what they may answer, what they may do wrong, and what is kept of them."""

import hashlib
import os
import sys
import time
from collections.abc import Iterator
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from score_cli.config import VerifyConfig
from score_cli.errors import JobError, UserError
from score_cli.tables.records import Problem, Trace
from score_cli.tables.schemas import CORRECT, INCORRECT, UNSCORED
from score_cli.verification import grader as grader_module
from score_cli.verification import own_grader
from score_cli.verification.grader import Grader, VerdictCounts, check_unscored, make_graders
from score_cli.verification.own_grader import OwnGrader, find_source
from score_cli.verification.task_grader import Graded, Item
from tests.processes import descendants, runs

# Does what the response says.
REWARD = """
import os, signal, sys, time
import numpy

def grade(problem, response):
    kind, _, rest = response.partition(" ")
    if kind == "give":
        return eval(rest)
    if kind == "column":
        return problem[rest] == "seen"
    if kind == "raise":
        raise ValueError("no " + rest)
    if kind == "hang":
        time.sleep(600)
    if kind == "exit":
        os._exit(1)
    if kind == "segfault":
        os.kill(os.getpid(), signal.SIGSEGV)
    if kind == "quit":
        sys.exit("enough")
    if kind == "fork":
        os.fork()
        return 1.0
    if kind == "print":
        for _ in range(1024):
            print("x" * (1 << 20))
        return 1.0
    if kind == "hog":
        return len(bytearray(1 << 32)) > 0
    if kind == "thread":
        import threading
        threading.Thread(target=time.sleep, args=(600,)).start()
        return 1.0

async def slowly(problem, response):
    return float(response)

def three(problem, response, more):
    return 1.0

class Exact:
    def __call__(self, problem, response):
        return response == problem["answer"]

exact = Exact()
number = 7
"""


def item(response: str, **extra: Any) -> Item:
    problem = Problem(problem_id="p", task="own", question="?", answer="42", source="test", extra=extra)
    return Item(problem, response)


def make(path: Path, function: str = "grade", **changes: Any) -> OwnGrader:
    settings: dict[str, Any] = {"workers": 2, "timeout_seconds": 10.0, "memory_mb": 2048, "correct_at": 1.0}
    return OwnGrader(find_source(f"{path}:{function}"), **{**settings, **changes})


@pytest.fixture(scope="module")
def reward(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("own") / "reward.py"
    path.write_text(REWARD)
    return path


@pytest.fixture(scope="module")
def own(reward: Path) -> Iterator[OwnGrader]:
    found = make(reward)
    yield found
    found.close()


@pytest.mark.parametrize(
    ("given", "reward_value", "verdict"),
    [
        ("True", 1.0, CORRECT),
        ("False", 0.0, INCORRECT),
        ("1", 1.0, CORRECT),
        ("0.25", 0.25, INCORRECT),
        ("1e-300", 1e-300, INCORRECT),
        ("numpy.float32(0.5)", 0.5, INCORRECT),
        ("numpy.bool_(True)", 1.0, CORRECT),
        ("numpy.array(1)", 1.0, CORRECT),
    ],
)
def test_a_reward_from_0_to_1_is_taken_as_it_is(own: OwnGrader, given: str, reward_value: float, verdict: str) -> None:
    assert own.grade([item(f"give {given}")]) == [Graded(None, verdict, reward=reward_value)]


@pytest.mark.parametrize(
    ("response", "reason"),
    [
        ("give None", "returned None"),
        ("nothing", "returned None"),
        ("give 2", "returned 2, expected a number from 0 to 1"),
        ("give -0.5", "returned -0.5, expected a number from 0 to 1"),
        ("give float('nan')", "returned nan, expected a number from 0 to 1"),
        ("give float('inf')", "returned inf, expected a number from 0 to 1"),
        ("give '1'", "returned str, expected a bool or a number from 0 to 1"),
        ("give [1]", "returned list, expected a bool or a number from 0 to 1"),
        ("give numpy.array([1.0])", "returned ndarray, expected a bool or a number from 0 to 1"),
        ("give 1 / 0", "reward.py line 8: ZeroDivisionError: division by zero"),
        ("raise such thing", "reward.py line 12: ValueError: no such thing"),
        ("column missing", "reward.py line 10: KeyError: 'missing'"),
        ("quit", "SystemExit: enough"),
        ("exit", "ended its process"),
        ("segfault", "ended its process"),
        ("hog", "needed more than 2048 MB"),
    ],
)
def test_what_is_no_reward_is_unscored_with_its_reason(own: OwnGrader, response: str, reason: str) -> None:
    assert own.grade([item(response)]) == [Graded(None, UNSCORED, reason=reason)]


def test_a_grader_that_hangs_is_killed_and_the_others_are_graded(reward: Path) -> None:
    hasty = make(reward, timeout_seconds=1.5)
    begin = time.monotonic()
    try:
        graded = hasty.grade([item("give 1"), item("hang"), item("give 1"), item("hang")])
    finally:
        hasty.close()
    assert [each.reason for each in graded] == [None, "took more than 1.5 s"] * 2
    assert time.monotonic() - begin < 20


def test_a_grader_that_only_hangs_is_given_up(reward: Path) -> None:
    hasty = make(reward, timeout_seconds=0.3, workers=4)
    try:
        assert [each.reason for each in hasty.grade([item("hang")] * 3)] == ["took more than 0.3 s"] * 3
        with pytest.raises(JobError, match=r"reward.py:grade took more than 0.3 s for each of the first 16 responses"):
            hasty.grade([item("hang")] * 1000)
    finally:
        hasty.close()


@pytest.mark.parametrize("response", ["fork", "print", "thread"])
def test_a_grader_that_does_more_than_grade_still_grades(own: OwnGrader, response: str) -> None:
    graded = own.grade([item(response), item("give 0.5"), item(response), item("give 1")])
    assert [each.reward for each in graded] == [1.0, 0.5, 1.0, 1.0]


def test_close_leaves_no_process(reward: Path) -> None:
    before = set(descendants(os.getpid()))
    found = make(reward)
    found.grade([item("fork"), item("thread"), item("give 1")])
    started = set(descendants(os.getpid())) - before
    found.close()
    deadline = time.monotonic() + 10
    while any(runs(each) for each in started) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert started and not any(runs(each) for each in started)


def test_columns_of_the_users_own_arrive(own: OwnGrader) -> None:
    rows = [item("column mine", mine="seen"), item("column mine", mine=["seen"]), item("column mine", mine=None)]
    assert [each.reward for each in own.grade(rows)] == [1.0, 0.0, 0.0]


def test_a_reward_from_correct_at_on_is_correct(reward: Path) -> None:
    lenient = make(reward, correct_at=0.5)
    try:
        graded = lenient.grade([item("give 0.49"), item("give 0.5"), item("give 1")])
    finally:
        lenient.close()
    assert [(each.verdict, each.reward) for each in graded] == [(INCORRECT, 0.49), (CORRECT, 0.5), (CORRECT, 1.0)]


def test_callables_of_every_kind(reward: Path) -> None:
    for function, response, expected in [("slowly", "0.5", 0.5), ("exact", "42", 1.0), ("exact", "43", 0.0)]:
        found = make(reward, function)
        try:
            assert found.grade([item(response)])[0].reward == expected
        finally:
            found.close()


def test_a_module_and_neighbours_of_a_file_can_be_imported(tmp_path: Path) -> None:
    (tmp_path / "helper.py").write_text("VALUE = 0.75\n")
    (tmp_path / "mine.py").write_text("import helper\ndef grade(problem, response): return helper.VALUE\n")
    found = make(tmp_path / "mine.py")
    assert found.grade([item("")])[0].reward == 0.75
    found.close()
    found = OwnGrader(find_source("operator:eq"), workers=1, timeout_seconds=5.0, memory_mb=0, correct_at=1.0)
    assert found.grade([item("")])[0].reward == 0.0
    found.close()


def test_nothing_of_the_users_runs_in_this_process(tmp_path: Path) -> None:
    marker = tmp_path / "pid"
    (tmp_path / "mine.py").write_text(
        "import os, pathlib\n"
        f"pathlib.Path({str(marker)!r}).write_text(str(os.getpid()))\n"
        "def grade(problem, response): return 1\n"
    )
    found = make(tmp_path / "mine.py")
    found.close()
    assert int(marker.read_text()) != os.getpid()
    assert "mine" not in sys.modules


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("{}/missing.py:grade", "there is no file {}/missing.py for the grader {}/missing.py:grade"),
        ("{}/broken.py:grade", "the grader broken.py:grade cannot be loaded: importing {}/broken.py raised SyntaxErr"),
        ("{}/raises.py", "the grader raises.py:grade cannot be loaded: importing {}/raises.py raised KeyError: 'x'"),
        ("{}/exits.py", "the grader exits.py:grade cannot be loaded: importing {}/exits.py raised SystemExit: 3"),
        ("{}/reward.py:marks", "has no function marks; it has grade, slowly, three, Exact, exact"),
        ("{}/reward.py:number", "has no function number"),
        ("{}/reward.py:three", r"three cannot be called as three(problem, response): missing a required argument"),
        ("no.such.module:grade", "the grader no.such.module:grade cannot be loaded: importing no.such.module raised"),
        ("nobody", "no grader is called nobody: expected FILE.py:FUNCTION, package.module:function, or a name that"),
    ],
)
def test_a_grader_that_cannot_be_had_is_one_line(reward: Path, name: str, message: str) -> None:
    folder = reward.parent
    (folder / "broken.py").write_text("def grade(:\n")
    (folder / "raises.py").write_text("{}['x']\n")
    (folder / "exits.py").write_text("import sys\nsys.exit(3)\n")
    with pytest.raises(UserError) as caught:
        make_graders({"own"}, VerifyConfig(grader=name.replace("{}", str(folder))))
    assert message.replace("{}", str(folder)) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_description_names_the_source_by_its_digest(own: OwnGrader) -> None:
    assert own.describe() == {
        "grader": "reward.py:grade",
        "sha256": hashlib.sha256(REWARD.encode()).hexdigest(),
        "timeout_seconds": "10",
        "memory_mb": "2048",
        "correct_at": "1",
    }


def test_a_file_that_changes_meanwhile_changes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "mine.py"
    path.write_text("def grade(problem, response):\n    assert response != 'die'\n    return 0.25\n")
    found = make(path, workers=1)
    path.write_text("def grade(problem, response): return 1\n")
    try:
        for child in descendants(os.getpid()):
            assert child
        assert [each.reward for each in found.grade([item("a"), item("die"), item("b")])] == [0.25, None, 0.25]
    finally:
        found.close()


def trace(name: str, *attempts: str) -> Trace:
    tokens = np.zeros(1, dtype=np.int32)
    return Trace(name, 0, list(attempts), ["stop"] * len(attempts), tokens, tokens, tokens, 0)  # type: ignore[arg-type]


def test_the_grader_serves_every_task_and_counts_reasons(reward: Path) -> None:
    problems = {name: Problem(problem_id=name, task=name, question="?", source="t") for name in ("math", "mine")}
    traces = [trace("math", "give 1", "give 0.5"), trace("mine", "give 2", "raise it"), trace("mine", "give 2", "x")]
    with Grader(VerifyConfig(grader=f"{reward}:grade", workers=1)) as grader:
        verdicts = grader.grade(traces, problems)
        described = grader.describe(["math", "mine"])
        assert dict(grader.reasons) == {
            "returned 2, expected a number from 0 to 1": 2,
            "reward.py line 12: ValueError: no it": 1,
            "returned None": 1,
        }
        with pytest.raises(JobError) as caught:
            check_unscored(verdicts, 0.5, grader.reasons)
    assert [verdict.rewards for verdict in verdicts] == [[1.0, 0.5], [None, None], [None, None]]
    assert [verdict.correct for verdict in verdicts] == [[True, False], [None, None], [None, None]]
    assert described["math"] == described["mine"]
    assert described["math"]["grader"] == "reward.py:grade"
    assert "66.7%" in str(caught.value) and "2 returned 2, expected" in str(caught.value)


def test_reasons_are_counted_aloud_the_most_frequent_first() -> None:
    counts = VerdictCounts({"correct": 1, "unscored": 10}, {"d": 1, "a": 4, "b": 2, "c": 2, "e": 1})
    assert str(counts) == "1 correct, 10 unscored (unscored: 4 a; 2 b; 2 c; 2 for other reasons)"


def register(monkeypatch: pytest.MonkeyPatch, **points: str) -> None:
    made = [EntryPoint(name, value, own_grader.GROUP) for name, value in points.items()]

    def found(group: str, name: str | None = None) -> list[EntryPoint]:
        assert group == "score.graders"
        return [point for point in made if name in (None, point.name)]

    monkeypatch.setattr(own_grader, "entry_points", found)


def test_a_registered_grader_is_named_by_option_or_by_task(monkeypatch: pytest.MonkeyPatch) -> None:
    register(monkeypatch, equality="operator:eq")
    for config, task in [(VerifyConfig(grader="equality"), "anything"), (VerifyConfig(), "equality")]:
        [found] = make_graders({task}, config).values()
        assert found.describe()["grader"] == "operator:eq"
        found.close()
    with pytest.raises(UserError, match=r"installed package registers under score.graders \(equality\)"):
        make_graders({"x"}, VerifyConfig(grader="equalty"))


def test_a_task_that_nobody_grades_says_how_to(monkeypatch: pytest.MonkeyPatch) -> None:
    register(monkeypatch)
    with pytest.raises(UserError, match=r"no grader for task mine, expected one of division, .* --grader FILE.py:FUNC"):
        make_graders({"mine"}, VerifyConfig())
    assert grader_module.has_grader("math") and not grader_module.has_grader("mine")
