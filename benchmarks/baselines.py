"""How noisy the gradient is under each baseline, at the policy that Stage II starts from.

    python benchmarks/baselines.py runs/quickstart [--batches 32]

Draws independent batches from RUN/stage1, computes the Stage II gradient of each under both
baselines and without one, and prints the noise: the summed variance of the gradient's entries over
the squared norm of their mean. Both baselines have the same expectation (tests/test_objectives.py),
so less noise is better. The last line is JSON.
"""

import argparse
import json
import tempfile
from dataclasses import replace
from pathlib import Path

import torch

from score_cli.config import SampleConfig, Stage2Config, VerifyConfig
from score_cli.stages.sample import sample
from score_cli.stages.verify import verify
from score_cli.tables.checkpoints import load_policy
from score_cli.tables.records import Trace
from score_cli.tables.traces import read_traces, read_verdicts
from score_cli.training import credit
from score_cli.training.step import forward_backward, prepare


def draw(run: Path, folder: Path, seed: int, policy: object) -> tuple[list[Trace], torch.Tensor]:
    settings = SampleConfig(samples=8, problems_per_iteration=32, max_tokens=14, batch_size=256, seed=seed)
    problems, traces, rewards = run / "train.parquet", folder / "traces.parquet", folder / "rewards.parquet"
    sample(settings, policy=policy, problems=problems, out=traces, overwrite=True)  # type: ignore[arg-type]
    verify(VerifyConfig(), traces=traces, problems=problems, out=rewards, overwrite=True)
    return read_traces(traces), torch.tensor([verdict.rewards for verdict in read_verdicts(rewards)])


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("run", type=Path)
    parser.add_argument("--batches", type=int, default=32)
    arguments = parser.parse_args()
    torch.set_num_threads(2)
    policy, reference = load_policy(arguments.run / "stage1"), load_policy(arguments.run / "base")
    configs = {
        name: Stage2Config(baseline=name, kl="full", beta1=0.01, micro_batch_tokens=16384)  # type: ignore[arg-type]
        for name in ("leave-one-out", "conditional")
    }
    gradients: dict[str, list[torch.Tensor]] = {name: [] for name in ["none", *configs]}
    with tempfile.TemporaryDirectory() as folder:
        for seed in range(arguments.batches):
            traces, rewards = draw(arguments.run, Path(folder), 1000 + seed, policy)
            for name in gradients:
                policy.model.zero_grad()
                kept = credit.group_baseline
                if name == "none":
                    credit.group_baseline = lambda values, groups: torch.zeros_like(values)
                chosen = configs.get(name) or replace(configs["leave-one-out"])
                batch = prepare(policy.model, reference.model, traces, rewards, chosen)
                forward_backward(policy.model, reference.model, batch, chosen)
                credit.group_baseline = kept
                parts = [p.grad.flatten() for p in policy.model.parameters() if p.grad is not None]
                gradients[name].append(torch.cat(parts).double())
    noise = {}
    for name, drawn in gradients.items():
        stacked = torch.stack(drawn)
        variance = stacked.var(0).sum().item()
        # The squared norm of a mean of n draws overstates by the variance over n.
        signal = max(1e-12, stacked.mean(0).square().sum().item() - variance / len(drawn))
        noise[name] = variance / signal
        print(f"{name:<15} noise {noise[name]:8.1f}   gradient norm {signal**0.5:.3f}")
    print(json.dumps({name: round(value, 2) for name, value in noise.items()}))


if __name__ == "__main__":
    main()
