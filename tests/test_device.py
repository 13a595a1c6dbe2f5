"""The machine a stage runs on is set up so that the first call computes what every later call computes."""

import subprocess
import sys

# A process of its own, since first calls are what this is about.
FIRST_CALLS = """
import torch
from score_cli.config import DeviceConfig
from score_cli.tables import device

threads = {}
def watched(function):
    def call(values):
        threads.setdefault(function.__name__, torch.get_num_threads())
        return function(values)
    return call
device.VECTOR_FUNCTIONS = [watched(function) for function in device.VECTOR_FUNCTIONS]
device.setup_device(DeviceConfig(threads=2))
print(torch.get_num_threads(), threads["tanh"], threads["exp"], threads["log"], set(threads.values()))
"""


def test_vector_functions_are_first_called_on_one_thread() -> None:
    """MKL picks their kernels at the first call, and two threads at once may pick two that round differently."""
    done = subprocess.run([sys.executable, "-c", FIRST_CALLS], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["2", "1", "1", "1", "{1}"]
