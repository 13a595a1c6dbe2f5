"""The head and the loss by themselves: this package's, chunk by chunk, beside other ways to the same gradient.

    python benchmarks/head.py [--tokens 512] [--width 896] [--vocabularies 32000,151936] [--repeats 3]

From the last hidden states of so many tokens to the gradient of states and head weights, float32, one thread. `naive`
makes all logits and leaves the rest to autograd. `recomputed` makes all logits, and their log-softmax piece by piece
and again in the backward pass. `linear_cross_entropy` is torch's, which takes no
coefficient for each token and measures no entropy: it sums them, which is less to do. `fused` is this package's: each
token has its own coefficient, and entropies are measured.

Each way has a process of its own. Prints medians of processor time, the memory above weights and states at the peak
(the weights' gradient is in it, which all of them hold), and how far the gradient is from the naive one's. The last
line is JSON: `time_ratio` and `memory_ratio` of this package's way to each other, by vocabulary.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from score_cli.tables.records import Trace
from score_cli.training.batching import MicroBatch, micro_batches
from score_cli.training.gradients import Gradients
from score_cli.training.head import Head
from score_cli.training.logprobs import add_gradient

WAYS = ("naive", "recomputed", "linear_cross_entropy", "fused")


class Model(nn.Module):
    """States as they are, with a head behind them."""

    def __init__(self, tokens: int, width: int, vocabulary: int) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.states = nn.Parameter(torch.randn(1, tokens + 1, width))
        self.head = nn.Linear(width, vocabulary, bias=False)
        self.head.weight.data.normal_(std=width**-0.5)
        self.device = torch.device("cpu")

    def get_output_embeddings(self) -> nn.Linear:
        return self.head

    def forward(self, *, logits_to_keep: Tensor, **_: object) -> SimpleNamespace:
        return SimpleNamespace(logits=self.head(self.states[:, logits_to_keep]))


def make_batch(tokens: int, vocabulary: int) -> MicroBatch:
    """One trace of one context token and an attempt."""
    ids = np.random.default_rng(0).integers(1, vocabulary, tokens + 1).astype(np.int32)
    owners = np.array([0] + [1] * tokens, dtype=np.int8)
    return next(micro_batches([Trace("p", 0, [""], ["stop"], ids, owners, np.zeros(tokens + 1), 0)], tokens + 1))


def score(logits: Tensor, tokens: Tensor) -> Tensor:
    """[n] logprobs of the tokens."""
    return logits.log_softmax(-1).gather(-1, tokens[:, None])[:, 0]


def take_gradient(way: str, model: Model, batch: MicroBatch, coefficients: Tensor) -> None:
    """Leave the gradient of the weighted logprobs in the model."""
    tokens = batch.sampled_tokens
    if way == "fused":
        head = Head(model)  # type: ignore[arg-type]
        loss = lambda part: (part.logprobs * coefficients[part.places]).sum(0, keepdim=True)  # noqa: E731
        add_gradient(head, batch, 1.0, loss, Gradients(model))
        return
    if way == "linear_cross_entropy":
        options = torch.nn.LinearCrossEntropyOptions()
        states = model.states[0, :-1]
        loss = torch.nn.functional.linear_cross_entropy(
            states, model.head.weight, tokens, reduction="sum", options=options
        )
        (-coefficients[0] * loss).backward()
        return
    logits = model.head(model.states[0, :-1])
    if way == "naive":
        logprobs = score(logits, tokens)
    else:
        pieces = zip(logits.split(441), tokens.split(441), strict=True)
        logprobs = torch.cat([checkpoint(score, *piece, use_reentrant=False) for piece in pieces])
        [-(each.exp() * each).sum(-1) for each in (p.detach().log_softmax(-1) for p in logits.split(441))]
    (logprobs * coefficients).sum().backward()


def memory(name: str) -> float:
    """MiB of this process: VmRSS now, VmHWM at the peak."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name)) / 1024


def measure(way: str, options: argparse.Namespace) -> dict[str, float]:
    """One way's figures."""
    torch.set_num_threads(1)
    vocabulary = int(options.vocabularies)
    model, batch = Model(options.tokens, options.width, vocabulary), make_batch(options.tokens, vocabulary)
    coefficients = torch.linspace(-1, 1, options.tokens) if options.spread else torch.full((options.tokens,), -0.5)
    before, seconds = memory("VmRSS"), []
    for _ in range(options.repeats):
        model.zero_grad()
        start = time.process_time()
        take_gradient(way, model, batch, coefficients)
        seconds.append(time.process_time() - start)
    peak = memory("VmHWM") - before
    assert model.head.weight.grad is not None and model.states.grad is not None
    weights, states = model.head.weight.grad, model.states.grad[0, :-1]
    exact = naive_row(model, batch, coefficients)
    return {
        "seconds": statistics.median(seconds),
        "mib": peak,
        "norm": weights.norm().item(),
        "gap": ((states[0] - exact).norm() / exact.norm()).item(),
    }


def naive_row(model: Model, batch: MicroBatch, coefficients: Tensor) -> Tensor:
    """The gradient of the first state, by hand in float64."""
    weight, state = model.head.weight.detach().double(), model.states[0, 0].detach().double()
    expected = weight[batch.sampled_tokens[0]] - (weight @ state).softmax(-1) @ weight
    return (coefficients[0] * expected).float()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tokens", type=int, default=512)
    parser.add_argument("--width", type=int, default=896)
    parser.add_argument("--vocabularies", default="32000,151936")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--spread", type=int, default=0)
    parser.add_argument("--way")
    options = parser.parse_args()
    if options.way:
        print(json.dumps(measure(options.way, options)))
        return
    summary: dict[str, dict[str, dict[str, float]]] = {"time_ratio": {}, "memory_ratio": {}}
    for vocabulary in options.vocabularies.split(","):
        found = {}
        for way in WAYS:
            command = [sys.executable, __file__, "--way", way, "--vocabularies", vocabulary]
            command += [f"--{name}={getattr(options, name)}" for name in ("tokens", "width", "repeats", "spread")]
            found[way] = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
            each = found[way]
            print(
                f"{vocabulary:>8} {way:<21}{each['seconds']:>7.2f} s {each['mib']:>6.0f} MiB"
                f"  gradient's norm {each['norm']:.5f}, gap {each['gap']:.1e}"
            )
        ratio: Callable[[str], dict[str, float]] = lambda name: {  # noqa: E731
            way: round(found["fused"][name] / found[way][name], 3)  # noqa: B023
            for way in WAYS
            if way != "fused"
        }
        summary["time_ratio"][vocabulary], summary["memory_ratio"][vocabulary] = ratio("seconds"), ratio("mib")
    print(json.dumps(summary))


if __name__ == "__main__":
    main()
