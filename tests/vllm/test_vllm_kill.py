"""A sampler that is killed leaves no process of vLLM's behind, which would keep the GPU's memory from the next one."""

import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.processes import descendants, runs

pytestmark = [pytest.mark.vllm, pytest.mark.skipif(find_spec("vllm") is None, reason="vLLM is not installed")]

ROOT = Path(__file__).parents[2]
SAMPLER = """
import time
from score_cli.sampling.vllm_engine import VllmEngine
from tests.vllm.conftest import CONFIG, noisy_policy
engine = VllmEngine(noisy_policy(0), CONFIG)
engine.token_logprobs([[1, 2, 3]], 1.0)
print("ready", flush=True)
time.sleep(600)
"""


def test_vllms_processes_end_when_the_sampler_is_killed() -> None:
    sampler = subprocess.Popen([sys.executable, "-c", SAMPLER], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    try:
        assert sampler.stdout is not None and any("ready" in line for line in sampler.stdout)
        started = list(descendants(sampler.pid))
        assert started, "vLLM runs in processes of its own"
    finally:
        sampler.kill()
        sampler.wait()
    deadline = time.monotonic() + 60
    while any(map(runs, started)) and time.monotonic() < deadline:
        time.sleep(0.2)
    assert not [process for process in started if runs(process)]
