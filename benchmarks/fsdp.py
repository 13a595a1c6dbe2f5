"""How far several processes and one come apart over twenty updates of one policy, on the CPU with gloo.

    python -m torch.distributed.run --nproc-per-node 2 benchmarks/fsdp.py [--updates 20]
    python benchmarks/fsdp.py --resume [--updates 20]

Untrained models of two layers (gpt2 with a tied head, qwen2 with one of its own), traces of two attempts of random
tokens with random rewards, the same for every update; Adam with steps of 1e-3, KL over the vocabulary in Stage I and
sampled in Stage II. An odd number of micro-batches, so that one process has an empty one. Prints, by stage, head and
precision, the largest difference of a weight after the updates, and how far the weights moved.

`--resume` starts `torchrun` itself: some updates in two processes, some in one, some in three, each going on from the
checkpoint of the one before, in float32; and as many in one process.
"""

import argparse
import copy
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from transformers import Qwen2Config, Qwen2ForCausalLM

from score_cli.cli import started_by_torchrun
from score_cli.config import BaseConfig, Stage1Config, Stage2Config
from score_cli.tables.checkpoints import Policy, TrainerState, fingerprint, load_optimizer, load_policy, save_policy
from score_cli.tables.processes import take_part
from score_cli.tables.records import Trace, Verdict
from score_cli.training import learner
from score_cli.training.base_policy import untrained_policy
from score_cli.training.trainer import Trainer

STAGES = {
    "Stage I": Stage1Config(learning_rate=1e-3, kl="full", threads=1, micro_batch_tokens=200),
    "Stage II": Stage2Config(learning_rate=1e-3, kl="sampled", threads=1, micro_batch_tokens=200),
}


def policy_of(head: str) -> Policy:
    """A policy whose head is tied to its embeddings, or has weights of its own."""
    tied = untrained_policy(BaseConfig(width=32, heads=4))
    if head == "tied":
        return tied
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = Qwen2Config(
        vocab_size=len(tied.tokenizer), num_key_value_heads=2, tie_word_embeddings=False, pad_token_id=0, **sizes
    )
    torch.manual_seed(0)
    model = Qwen2ForCausalLM(config).eval()
    return Policy(model, tied.tokenizer, TrainerState(fingerprint=fingerprint(model)), "untied")


def traces_of(vocabulary: int, problems: int = 8, samples: int = 4) -> tuple[list[Trace], list[Verdict]]:
    """Traces of random tokens, and random verdicts."""
    numbers = np.random.default_rng(0)
    traces, verdicts = [], []
    for problem in range(problems):
        for sample in range(samples):
            first, second = numbers.integers(3, 12, 2).tolist()
            owners = np.array([0] * 5 + [1] * first + [0] * 2 + [2] * second, dtype=np.int8)
            tokens = numbers.integers(1, vocabulary, len(owners)).astype(np.int32)
            tokens[:5] = 1 + problem  # traces of a problem have one prompt
            logprobs = np.where(owners > 0, -np.log(vocabulary), 0.0).astype(np.float32)
            traces.append(Trace(str(problem), sample, ["", ""], ["stop"] * 2, tokens, owners, logprobs, 0))
            rewards: list[float | None] = [float(value) for value in numbers.integers(0, 2, 2)]
            names = ["correct" if value else "incorrect" for value in rewards]
            verdicts.append(Verdict(str(problem), sample, [None, None], names, rewards))
    return traces, verdicts


def updated(config: Any, policy: Policy, updates: int, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """The weights after some updates of a copy of a policy."""
    base = replace(policy, model=copy.deepcopy(policy.model).to(dtype))
    trainer = Trainer(config, replace(policy, model=copy.deepcopy(base.model)), base)
    traces, verdicts = traces_of(len(policy.tokenizer))
    for _ in range(updates):
        trainer.update(traces, verdicts, check=False)
    return dict(trainer.policy.model.named_parameters())


def compare(updates: int) -> int:
    """Print what two processes and one make of the same updates."""
    print("| stage | head | precision | largest difference | largest move |\n|---|---|---|---|---|")
    for stage, config in STAGES.items():
        for head in ("tied", "untied"):
            policy = policy_of(head)
            for dtype in (torch.float32, torch.float64):
                with patch.object(learner, "team", lambda: None):
                    one = updated(config, policy, updates, dtype)
                several = updated(config, policy, updates, dtype)
                start = dict(policy.model.named_parameters())
                apart = max((one[name] - several[name]).abs().max().item() for name in one)
                moved = max((one[name] - start[name]).abs().max().item() for name in one)
                print(f"| {stage} | {head} | {str(dtype)[6:]} | {apart:.1e} | {moved:.1e} |", flush=True)
    return 0


def go_on(place: Path, start: str, end: str, updates: int) -> int:
    """Take some updates from checkpoint to checkpoint."""
    policy = load_policy(place / start)
    trainer = Trainer(STAGES["Stage II"], policy, load_policy(place / "base"), load_optimizer(place / start))
    traces, verdicts = traces_of(len(policy.tokenizer))
    for _ in range(updates):
        trainer.update(traces, verdicts, check=False)
    trainer.save(place / end)
    return 0


def resume(updates: int) -> None:
    """Print how far two, then one, then three processes come from one."""
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        base = policy_of("tied")
        (place / "base").mkdir()
        save_policy(place / "base", base.model, base.tokenizer, base.state)
        go_on(place, "base", "alone", updates)
        left, start = updates, "base"
        for number, (processes, count) in enumerate(((2, updates // 3), (1, updates // 3), (3, updates))):
            count = min(count, left)
            end, left = f"after{number}", left - count
            command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(processes), __file__]
            subprocess.run([*command, "--go-on", folder, start, end, "--updates", str(count)], check=True)
            start = end
        one, other = (dict(load_policy(place / name).model.named_parameters()) for name in ("alone", start))
        apart = max((one[name] - other[name]).abs().max().item() for name in one)
        print(
            f"{updates} updates of Stage II, 2 -> 1 -> 3 processes against 1, float32: largest difference {apart:.1e}"
        )


def main() -> int:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--updates", type=int, default=20)
    parser.add_argument("--resume", action="store_true")
    parser.add_argument("--go-on", nargs=3, metavar=("FOLDER", "FROM", "TO"))
    given = parser.parse_args()
    torch.set_num_threads(1)
    if given.resume:
        resume(given.updates)
        return 0

    def command() -> int:
        if given.go_on:
            return go_on(Path(given.go_on[0]), given.go_on[1], given.go_on[2], given.updates)
        return compare(given.updates)

    return take_part(command) if started_by_torchrun() else command()


if __name__ == "__main__":
    sys.exit(main())
