"""Requests to stop that come at a bad moment are not lost."""

import signal
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

from score_cli.interrupts import interrupt_on_signals


@pytest.fixture(autouse=True)
def handlers() -> Iterator[None]:
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    signal.signal(signal.SIGINT, signal.default_int_handler)
    interrupt_on_signals()
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


class Dying:
    """Asked to stop in the moment in which Python drops whatever is raised."""

    def __init__(self, number: signal.Signals, went_on: list[bool]) -> None:
        self.number = number
        self.went_on = went_on

    def __del__(self) -> None:
        signal.raise_signal(self.number)
        self.went_on.append(True)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_request_within_a_del_is_met_after_it(number: signal.Signals) -> None:
    went_on: list[bool] = []
    with pytest.raises(KeyboardInterrupt):
        victim = Dying(number, went_on)
        del victim
        deadline = time.monotonic() + 10
        while time.monotonic() < deadline:
            time.sleep(0.01)
    assert went_on == [True]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_request_at_any_other_moment_is_met_at_once(number: signal.Signals) -> None:
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(number)


def test_what_was_started_in_the_background_goes_on_ignoring_ctrl_c() -> None:
    code = (
        "import signal; signal.signal(signal.SIGINT, signal.SIG_IGN)\n"
        "from score_cli.interrupts import interrupt_on_signals; interrupt_on_signals()\n"
        "signal.raise_signal(signal.SIGINT); print('on')"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "on\n"


CHILD = """
import time
from score_cli.interrupts import interrupt_on_signals, interrupt_when_parent_dies
interrupt_on_signals()
interrupt_when_parent_dies()
try:
    print("ready", flush=True)
    time.sleep(60)
except KeyboardInterrupt:
    print("asked to stop", flush=True)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="needs Linux")
def test_the_death_of_what_started_a_process_asks_it_to_stop() -> None:
    parent = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {CHILD!r}])"
    started = subprocess.Popen([sys.executable, "-c", parent], stdout=subprocess.PIPE, text=True)
    assert started.stdout is not None and started.stdout.readline() == "ready\n"
    started.kill()
    assert started.stdout.readline() == "asked to stop\n"
    started.wait()
