"""Processes of vLLM's end with the one that started them; stand-ins are enough to see that."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from score_cli.sampling.vllm_watch import MARK, Watcher
from tests.processes import runs

ROOT = Path(__file__).parents[1]
# Starts two processes within the block, of which one starts another and closes nothing, and one outside of it.
OWNER = """
import subprocess, sys, time
from score_cli.sampling.vllm_watch import Watcher

wait = "import time; time.sleep(600)"
sleep = [sys.executable, "-S", "-c", wait]
start = f"import subprocess; print(subprocess.Popen({sleep!r}).pid, flush=True); {wait}"
nested = [sys.executable, "-S", "-c", start]
watcher = Watcher()
with watcher.starting():
    ours = subprocess.Popen(nested, stdout=subprocess.PIPE, text=True, start_new_session=True)
    below = ours.stdout.readline().strip()
other = subprocess.Popen(sleep)
print(ours.pid, below, other.pid, watcher._process.pid, flush=True)
time.sleep(600)
"""


def ends(process: int) -> bool:
    deadline = time.monotonic() + 10
    while runs(process) and time.monotonic() < deadline:
        time.sleep(0.01)
    return not runs(process)


def test_what_was_started_within_the_block_ends_with_a_killed_process_and_nothing_else_does() -> None:
    owner = subprocess.Popen([sys.executable, "-c", OWNER], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert owner.stdout is not None
    ours, below, other, watcher = map(int, owner.stdout.readline().split())
    try:
        assert all(map(runs, (ours, below, other, watcher)))
        owner.kill()
        owner.wait()
        assert ends(ours) and ends(below) and ends(watcher)
        assert runs(other)
    finally:
        os.kill(other, signal.SIGKILL)


def test_the_mark_is_for_what_starts_within_the_block_and_a_closed_watcher_is_gone() -> None:
    watcher = Watcher()
    with watcher.starting():
        assert os.environ[MARK] == watcher._mark
    assert MARK not in os.environ and "SPT_NOENV" not in os.environ
    process = watcher._process.pid
    watcher.close()
    assert not runs(process)
