"""What two updates held at their peak, in bytes: run as a program, in a process of its own.

    python -m tests.update_memory CONFIG_FOLDER JSON

JSON gives the lengths of the prompt and of an attempt, the number of traces, and settings of the stage.
"""

import ctypes
import gc
import importlib
import json
import sys
from pathlib import Path

import numpy as np
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from score_cli.config import Stage2Config
from score_cli.tables.checkpoints import Policy, TrainerState
from score_cli.tables.records import Trace, Verdict
from score_cli.tasks.division_tokenizer import make_tokenizer
from score_cli.training.trainer import Trainer


def status(field: str) -> int:
    """A field of this process's status, in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{field}:")) * 1024


def make_policy(folder: Path) -> Policy:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder), attn_implementation="sdpa").eval()
    return Policy(model, make_tokenizer(), TrainerState(), str(folder))


def make_traces(prompt: int, attempt: int, count: int) -> tuple[list[Trace], list[Verdict]]:
    """Traces of two attempts, all of one length, four of a problem."""
    rng = np.random.default_rng(0)
    ids = [0] * prompt + [1] * attempt + [2] * attempt
    traces, verdicts = [], []
    for index in range(count):
        tokens = rng.integers(1, 16, len(ids)).astype(np.int32)
        tokens[:prompt] = 1 + index // 4 % 15  # traces of a problem have one prompt
        logprobs = np.where(np.array(ids) > 0, -1.0, 0.0).astype(np.float32)
        name = str(index // 4)
        traces.append(Trace(name, index, ["", ""], ["stop", "stop"], tokens, np.array(ids, np.int8), logprobs, 0))
        verdicts.append(Verdict(name, index, [None] * 2, ["correct"] * 2, [float(index % 2), 1.0]))
    return traces, verdicts


def main() -> None:
    folder, given = Path(sys.argv[1]), json.loads(sys.argv[2])
    torch.set_num_threads(1)
    traces, verdicts = make_traces(given["prompt"], given["attempt"], given["traces"])
    if given["settings"].get("lora_rank"):
        importlib.import_module("peft")  # a library's own memory is not the update's
    torch.ones(64, 64) @ torch.ones(64, 64)
    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    before = status("VmRSS")
    config = Stage2Config(threads=1, device="cpu", **given["settings"])
    # With an adapter the policy it sits on is the reference.
    policy, reference = make_policy(folder), None if config.lora_rank else make_policy(folder)
    trainer = Trainer(config, policy, reference)
    for _ in range(2):
        trainer.update(traces, verdicts, check=False)
    print(status("VmHWM") - before)


if __name__ == "__main__":
    main()
