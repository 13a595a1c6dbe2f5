"""The fork server and the calls made through it: deadlines, deaths, limits, survivors."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from score_cli.verification.call_pool import CRASHED, LOST, NO_MEMORY, RAISED, TIMED_OUT, VALUE, Call, CallPool, Outcome
from score_cli.verification.forkserver import KILLED, Child, ForkServer, ForkServerError
from tests.processes import descendants, runs

HERE = "tests.test_forkserver"
ROOT = Path(__file__).parents[1]


# What the children call.


def add(left: float, right: float) -> float:
    return left + right


def process() -> int:
    return os.getpid()


def leave() -> None:
    os._exit(3)


def hog() -> int:
    return len(bytearray(1 << 30))


def kill_itself(signal_number: int) -> None:
    os.kill(os.getpid(), signal_number)
    time.sleep(60)


def kill_itself_once(marker: str) -> str:
    path = Path(marker)
    if path.exists():
        return "second try"
    path.touch()
    os.kill(os.getpid(), signal.SIGKILL)
    return "not reached"


def fork_and_return() -> int:
    os.fork()
    return 7


def fork_and_stay(*, session: bool) -> int:
    """Start a process that outlives the call, in a group of its own where asked."""
    child = os.fork()
    if child == 0:
        if session:
            os.setsid()
        time.sleep(600)
        os._exit(0)
    return child


def fork_and_hang(session: bool, marker: str) -> None:
    Path(marker).write_text(str(fork_and_stay(session=session)))
    time.sleep(600)


def print_much() -> str:
    block = "x" * (1 << 20)
    for _ in range(1024):
        print(block)
    return "done"


def long_value() -> str:
    return "x" * (2 << 20)


def unhappy() -> None:
    raise ValueError("first line\nsecond line")


def odd_value() -> object:
    return object()


def hold(seconds: float) -> float:
    time.sleep(seconds)
    return seconds


def descriptors() -> list[int]:
    # The one that lists the folder is gone when it is looked for.
    return sorted(int(link.name) for link in list(Path("/proc/self/fd").iterdir()) if link.exists())


LOADED: list[str] = []


def load(what: str) -> None:
    LOADED.append(what)


def loaded() -> list[str]:
    return LOADED


def loaded_in_server() -> None:
    LOADED.append("server")


def threads() -> int:
    return threading.active_count()


def environment(name: str) -> str | None:
    return os.environ.get(name)


def sleep_in_child() -> int:
    time.sleep(600)
    return 0


def end_in_child() -> int:
    return 5


@pytest.fixture(scope="module")
def pool() -> Iterator[CallPool]:
    pool = CallPool(workers=2, timeout_seconds=10.0, memory_mb=512)
    yield pool
    pool.close()


@pytest.fixture
def impatient() -> Iterator[CallPool]:
    pool = CallPool(workers=2, timeout_seconds=1.5, preload=[HERE])
    pool.start()
    yield pool
    pool.close()


def call(name: str, *arguments: object) -> Call:
    return Call(f"{HERE}:{name}", arguments)


def soon(process: int) -> bool:
    """Whether a process is gone within a few seconds."""
    end = time.monotonic() + 10
    while runs(process) and time.monotonic() < end:
        time.sleep(0.02)
    return not runs(process)


def test_values_come_back_in_the_order_of_the_calls(pool: CallPool) -> None:
    calls = [call("add", number, 0.5) for number in range(20)]
    assert pool.map(calls) == [Outcome(VALUE, number + 0.5) for number in range(20)]


def test_no_calls_start_no_process() -> None:
    before = set(descendants(os.getpid()))
    pool = CallPool(timeout_seconds=1.0)
    assert pool.map([]) == []
    assert set(descendants(os.getpid())) == before


def test_a_child_makes_many_calls(pool: CallPool) -> None:
    assert len({outcome.value for outcome in pool.map([call("process")] * 20)}) <= 2


def test_an_exception_comes_back_in_one_line(pool: CallPool) -> None:
    assert pool.call(f"{HERE}:unhappy") == Outcome(RAISED, "ValueError: first line second line")
    assert pool.call(f"{HERE}:missing").ending == RAISED
    assert pool.call("sys:exit") == Outcome(RAISED, "SystemExit")


def test_a_value_that_json_cannot_hold_or_that_is_too_long_is_an_error(pool: CallPool) -> None:
    assert pool.call(f"{HERE}:odd_value").value.startswith("TypeError")
    assert pool.call(f"{HERE}:long_value").value.startswith("ValueError: a value of 2097154 characters")


def test_memory_is_limited_and_the_next_call_has_it_all_again(pool: CallPool) -> None:
    assert [o.ending for o in pool.map([call("hog"), call("process"), call("hog")])] == [NO_MEMORY, VALUE, NO_MEMORY]


def test_a_call_that_hangs_is_killed_and_the_others_are_answered(impatient: CallPool) -> None:
    begin = time.monotonic()
    outcomes = impatient.map([call("hold", 60), call("add", 1, 2), call("hold", 60), call("add", 3, 4)])
    assert outcomes == [Outcome(TIMED_OUT), Outcome(VALUE, 3), Outcome(TIMED_OUT), Outcome(VALUE, 7)]
    assert time.monotonic() - begin < 8


@pytest.mark.parametrize(
    ("given", "ending"),
    [
        (call("leave"), CRASHED),
        (call("kill_itself", int(signal.SIGSEGV)), CRASHED),
        (call("kill_itself", int(signal.SIGKILL)), LOST),
    ],
    ids=["exits", "segfault", "killed"],
)
def test_a_process_that_dies_twice_has_its_ending_and_the_pool_goes_on(
    pool: CallPool, given: Call, ending: str
) -> None:
    assert [outcome.ending for outcome in pool.map([given, call("process")])] == [ending, VALUE]


def test_a_call_whose_process_is_killed_once_is_made_again(pool: CallPool, tmp_path: Path) -> None:
    assert pool.call(f"{HERE}:kill_itself_once", str(tmp_path / "marker")) == Outcome(VALUE, "second try")


def test_a_process_that_was_killed_while_idle_costs_no_call(pool: CallPool) -> None:
    held = {outcome.value for outcome in pool.map([call("process")] * 4)}
    for child in held:
        os.kill(child, signal.SIGKILL)
    after = pool.map([call("process")] * 4)
    assert [outcome.ending for outcome in after] == [VALUE] * 4
    assert not held & {outcome.value for outcome in after}


def test_a_server_that_was_killed_is_replaced() -> None:
    pool = CallPool(workers=2, timeout_seconds=10.0)
    killer = threading.Timer(0.5, lambda: os.kill(pool.start().pid, signal.SIGKILL))
    pool.start()
    killer.start()
    try:
        assert pool.map([call("hold", 1.0)] * 2) == [Outcome(VALUE, 1.0)] * 2
        os.kill(pool.start().pid, signal.SIGKILL)
        assert pool.call(f"{HERE}:add", 1, 2) == Outcome(VALUE, 3)
    finally:
        killer.join()
        pool.close()


def test_a_function_that_forks_and_returns_twice_answers_once(pool: CallPool) -> None:
    assert pool.map([call("fork_and_return")] * 8) == [Outcome(VALUE, 7)] * 8
    assert pool.map([call("add", 1, number) for number in range(8)]) == [Outcome(VALUE, 1 + n) for n in range(8)]


@pytest.mark.parametrize("session", [False, True], ids=["same-group", "own-session"])
def test_what_a_killed_call_has_started_is_killed_with_it(impatient: CallPool, tmp_path: Path, session: bool) -> None:
    marker = tmp_path / "started"
    assert impatient.call(f"{HERE}:fork_and_hang", session, str(marker)) == Outcome(TIMED_OUT)
    assert soon(int(marker.read_text()))


def test_a_gigabyte_printed_goes_nowhere(pool: CallPool) -> None:
    assert pool.call(f"{HERE}:print_much") == Outcome(VALUE, "done")


def test_a_child_has_its_channel_and_the_standard_descriptors_alone(pool: CallPool) -> None:
    assert pool.call(f"{HERE}:descriptors") == Outcome(VALUE, [0, 1, 2, 3])


def test_preloading_happens_once_in_the_server_and_first_in_each_child() -> None:
    pool = CallPool(
        workers=2,
        timeout_seconds=1.5,
        preload=[f"{HERE}:loaded_in_server"],
        first=call("load", "child"),
    )
    try:
        assert [o.value for o in pool.map([call("loaded"), call("hold", 9), call("loaded")])] == [
            ["server", "child"],
            None,
            ["server", "child"],
        ]
    finally:
        pool.close()


def test_a_first_call_that_fails_says_why() -> None:
    pool = CallPool(timeout_seconds=1.0, first=call("unhappy"))
    with pytest.raises(ForkServerError, match="^ValueError: first line second line$"):
        pool.call(f"{HERE}:add", 1, 2)
    pool.close()
    slow = CallPool(timeout_seconds=1.0, first=call("hold", 60), first_seconds=0.3)
    with pytest.raises(ForkServerError, match="timed out"):
        slow.call(f"{HERE}:add", 1, 2)
    slow.close()


def kill_the_first(monkeypatch: pytest.MonkeyPatch, starts: int) -> None:
    """Kill servers in the moment in which they are started, so many of them."""
    real, left = subprocess.Popen, [None] * starts

    def start(*given: Any, **named: Any) -> Any:
        process = real(*given, **named)
        if left:
            left.pop()
            process.kill()
        return process

    monkeypatch.setattr(subprocess, "Popen", start)


def test_a_server_that_is_killed_while_it_starts_is_started_again(monkeypatch: pytest.MonkeyPatch) -> None:
    kill_the_first(monkeypatch, 2)
    pool = CallPool(timeout_seconds=5.0)
    assert pool.call("math:gcd", 12, 18) == Outcome(VALUE, 6)
    pool.close()
    kill_the_first(monkeypatch, 3)
    with pytest.raises(ForkServerError, match="keeps dying"):
        pool.call("math:gcd", 12, 18)


def test_a_server_that_cannot_import_what_it_should_says_so() -> None:
    pool = CallPool(timeout_seconds=1.0, preload=["no_such_module"])
    with pytest.raises(ForkServerError, match="ModuleNotFoundError: No module named 'no_such_module'"):
        pool.call(f"{HERE}:add", 1, 2)


def test_the_environment_is_the_one_given_and_the_hash_seed_is_fixed() -> None:
    pool = CallPool(timeout_seconds=5.0, environment={"COLOUR": "red"})
    names = ("COLOUR", "HOME", "PYTHONHASHSEED")
    try:
        assert [pool.call(f"{HERE}:environment", name).value for name in names] == ["red", None, "0"]
    finally:
        pool.close()


def test_children_of_a_command_with_threads_have_one_thread(pool: CallPool) -> None:
    stop = threading.Event()
    thread = threading.Thread(target=stop.wait)
    thread.start()
    try:
        assert pool.call(f"{HERE}:threads") == Outcome(VALUE, 1)
    finally:
        stop.set()
        thread.join()


def test_close_leaves_no_process() -> None:
    before = set(descendants(os.getpid()))
    pool = CallPool(workers=2, timeout_seconds=5.0)
    pool.map([call("process")] * 4)
    started = set(descendants(os.getpid())) - before
    pool.close()
    assert len(started) >= 3
    assert not any(runs(each) for each in started)


@pytest.mark.parametrize("busy", [False, True])
def test_processes_do_not_outlive_a_command_that_is_killed(busy: bool) -> None:
    begin = "threading.Timer(0.5, tell).start(); pool.call('time:sleep', 600)" if busy else "tell(); time.sleep(600)"
    code = (
        "import threading, time\n"
        "from score_cli.verification.call_pool import CallPool\n"
        "pool = CallPool(timeout_seconds=600.0)\n"
        f"pool.call('{HERE}:process')\n"
        "def tell(): print('ready', flush=True)\n"
        f"{begin}\n"
    )
    command = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, cwd=ROOT)
    assert command.stdout is not None
    assert command.stdout.readline() == "ready\n"
    started = list(descendants(command.pid))
    assert len(started) >= 3
    command.kill()
    command.wait()
    command.stdout.close()
    assert all(soon(each) for each in started)


@pytest.fixture(scope="module")
def server() -> Iterator[ForkServer]:
    server = ForkServer(entries=[f"{HERE}:sleep_in_child", f"{HERE}:end_in_child"])
    yield server
    server.close()


def end_of(child: Child, *, patience: float) -> int:
    begin = time.monotonic()
    status = child.end(patience=patience)
    assert time.monotonic() - begin < 10
    return status


def test_a_child_that_ends_in_time_tells_its_status(server: ForkServer) -> None:
    child = server.fork(f"{HERE}:end_in_child")
    assert os.waitstatus_to_exitcode(end_of(child, patience=20.0)) == 5


def test_a_child_that_does_not_end_is_killed(server: ForkServer) -> None:
    assert end_of(server.fork(f"{HERE}:sleep_in_child"), patience=0.1) == KILLED


def test_ends_are_told_in_the_order_in_which_they_were_asked(server: ForkServer) -> None:
    children = [server.fork(f"{HERE}:{name}") for name in ("sleep_in_child", "end_in_child")]
    for child in children:
        child.ask_end(patience=0.5)
    assert [child.ended() for child in children] == [KILLED, 5 << 8]


def test_a_server_that_is_gone_is_told() -> None:
    server = ForkServer(entries=[f"{HERE}:sleep_in_child"])
    child = server.fork(f"{HERE}:sleep_in_child")
    started = [server.pid, *descendants(server.pid)]
    os.kill(server.pid, signal.SIGKILL)
    assert all(soon(each) for each in started)
    with pytest.raises(ForkServerError, match="gone"):
        child.end()
    assert not server.alive()
    server.close()
