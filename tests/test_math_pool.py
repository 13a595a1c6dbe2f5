"""The worker processes: deadlines, deaths, survivors."""

import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from score_cli.tables.records import Problem
from score_cli.tables.schemas import CORRECT, INCORRECT, TIMEOUT, UNSCORED
from score_cli.verification.task_grader import Item
from score_cli.verification.math import pool as math_pool
from score_cli.verification.math.grader import MathGrader
from score_cli.verification.math.pool import DIFFERENT, LOST, SAME, TIMED_OUT, MathPool, Pair
from tests.processes import runs

HANGS = r"\prod_{k=1}^{10000000} k"
TAKES_ALGEBRA = Pair(r"\sqrt{8}", r"2\sqrt{2}")


@pytest.fixture
def pool():
    pool = MathPool(workers=2, timeout_seconds=10.0)
    yield pool
    pool.close()


def soon(condition) -> bool:
    end = time.monotonic() + 20
    while not condition() and time.monotonic() < end:
        time.sleep(0.02)
    return condition()


def item(answer: str, gold: str | None) -> Item:
    problem = Problem(problem_id="p", task="math", question="?", answer=gold, source="test")
    return Item(problem, f"The final answer is ${answer}$. I hope it is correct.")


def test_outcomes_come_back_in_order(pool):
    pairs = [TAKES_ALGEBRA, Pair(r"\sqrt{8}", r"3\sqrt{2}"), TAKES_ALGEBRA, Pair("x+1", r"x+\sqrt{1+y}")]
    assert pool.run(pairs) == [SAME, DIFFERENT, SAME, DIFFERENT]


def test_a_hanging_pair_is_killed_and_the_others_are_answered():
    pool = MathPool(workers=2, timeout_seconds=1.0)
    pool.start()
    begin = time.monotonic()
    try:
        assert pool.run([Pair(HANGS, "5"), TAKES_ALGEBRA, Pair(HANGS, "6"), TAKES_ALGEBRA]) == [
            TIMED_OUT,
            SAME,
            TIMED_OUT,
            SAME,
        ]
    finally:
        pool.close()
    assert time.monotonic() - begin < 10


def test_an_idle_worker_that_was_killed_is_replaced(pool):
    pool.run([TAKES_ALGEBRA] * 4)
    for pid in pool.pids()[1:]:
        os.kill(pid, signal.SIGKILL)
    assert pool.run([TAKES_ALGEBRA] * 4) == [SAME] * 4


def test_a_fork_server_that_was_killed_is_replaced(pool):
    pool.run([TAKES_ALGEBRA])
    os.kill(pool.pids()[0], signal.SIGKILL)
    assert pool.run([TAKES_ALGEBRA] * 4) == [SAME] * 4


def test_a_pair_whose_worker_is_killed_once_is_tried_again(pool):
    assert kill_while_running(pool, deaths=1) == [SAME]


def test_a_pair_whose_worker_is_killed_twice_is_lost(pool):
    assert kill_while_running(pool, deaths=2) == [LOST]


def kill_while_running(pool: MathPool, *, deaths: int) -> list[str]:
    """Run one pair whose worker is stopped as it starts, then killed from outside, so many times."""
    pool.run([TAKES_ALGEBRA])
    left = deaths
    original = MathPool._start

    def start(self, selector, waiting, pairs):
        nonlocal left
        if left and self._idle:
            os.kill(self._idle[-1].pid, signal.SIGSTOP)
        elif left:
            self._idle.append(self._fork())
            os.kill(self._idle[-1].pid, signal.SIGSTOP)
        original(self, selector, waiting, pairs)
        if left:
            left -= 1
            for worker in self._busy.values():
                os.kill(worker.pid, signal.SIGKILL)

    MathPool._start = start
    try:
        return pool.run([TAKES_ALGEBRA])
    finally:
        MathPool._start = original


def test_workers_are_recycled(pool, monkeypatch):
    monkeypatch.setattr(math_pool, "ITEMS_PER_WORKER", 2)
    pool.workers = 1
    assert pool.run([TAKES_ALGEBRA] * 5) == [SAME] * 5
    first = pool.pids()[1]
    pool.run([TAKES_ALGEBRA] * 3)
    assert pool.pids()[1:] != [first]


def test_closing_leaves_no_process():
    pool = MathPool(workers=2, timeout_seconds=10.0)
    pool.run([TAKES_ALGEBRA] * 2)
    pids = pool.pids()
    pool.close()
    assert len(pids) >= 2
    assert soon(lambda: not any(map(runs, pids)))


def test_no_process_outlives_a_killed_parent():
    code = (
        "from score_cli.verification.math.pool import MathPool, Pair; import threading, time\n"
        "pool = MathPool(workers=2, timeout_seconds=60.0); pool.start()\n"
        f"threading.Thread(target=lambda: pool.run([Pair({HANGS!r}, '5')] * 2), daemon=True).start()\n"
        "while len(pool.pids()) < 3: time.sleep(0.02)\n"
        "print(*pool.pids(), flush=True); time.sleep(60)\n"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        pids = [int(pid) for pid in parent.stdout.readline().split()]
        assert len(pids) == 3 and all(map(runs, pids))
        parent.kill()
    assert soon(lambda: not any(map(runs, pids)))


def test_grading_works_outside_the_main_thread():
    found = []
    with MathGrader(workers=1) as grader:
        thread = threading.Thread(target=lambda: found.extend(grader.grade([item(r"\sqrt{8}", r"2\sqrt{2}")])))
        thread.start()
        thread.join()
    assert [graded.verdict for graded in found] == [CORRECT]


def test_a_hanging_answer_is_the_response_s_fault_and_a_hanging_gold_is_not():
    with MathGrader(workers=2, timeout_seconds=1.0) as grader:
        verdicts = [graded.verdict for graded in grader.grade([item(HANGS, "5"), item("5", HANGS), item("6", "5")])]
    assert verdicts == [TIMEOUT, UNSCORED, INCORRECT]


def test_the_number_of_workers_changes_nothing():
    items = [item(answer, r"2\sqrt{2}") for answer in (r"\sqrt{8}", "3", r"\sqrt{9}-x", r"\int_0^1 x\,dx", "(1,2)")] * 3
    results = []
    for workers in (1, 3):
        with MathGrader(workers=workers) as grader:
            results.append(grader.grade(items))
            assert grader.describe()["math_verify"]
    assert results[0] == results[1]
