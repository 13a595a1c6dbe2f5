"""Processor seconds of one update of a real model on the CPU by part: float32 and bfloat16, all weights and an adapter.

    python benchmarks/real_update.py --model CKPT [--problems 4] [--samples 8] [--tokens 32] [--ways float32,bfloat16]

The model answers small sums twice, at T = 1, and learns from random rewards: an update costs the same whatever was
right. `sample` is all of sampling, `train` what follows it: the reference's logprobs, the gradient, Adam's step. Every
way has its own start of the same policy. Prints a line a way, and the milliseconds a sampled and a trained token; the
last line is JSON. Processor time, since a loaded machine distorts it less than the clock.
"""

import argparse
import json
import random
import time

from score_cli import Problem, SampleConfig, Sampler, Stage1Config, Trainer, Verdict, load_policy
from score_cli.config import PolicyConfig
from score_cli.tables.adapters import settle_precision
from score_cli.tables.checkpoints import adapted
from score_cli.tables.device import setup_device


def make_problems(count: int) -> list[Problem]:
    rng = random.Random(0)
    pairs = [(rng.randrange(10, 99), rng.randrange(10, 99)) for _ in range(count)]
    return [
        Problem(problem_id=str(n), task="math", question=f"What is {a} + {b}?", answer=str(a + b), source="sums")
        for n, (a, b) in enumerate(pairs)
    ]


def measure(options: argparse.Namespace, precision: str, rank: int) -> dict[str, float]:
    """Processor seconds of one update in one way."""
    asked = "bfloat16" if precision == "bfloat16" else "auto"
    setup_device(PolicyConfig(threads=1, precision=asked))
    base = load_policy(options.model)
    policy = load_policy(options.model)
    if rank:
        policy = adapted(base, rank=rank, alpha=2.0 * rank, targets="all-linear")
        settle_precision(policy.model)
    sampling = SampleConfig(samples=options.samples, max_tokens=options.tokens, threads=1, iteration=0, precision=asked)
    training = Stage1Config(kl="sampled", threads=1, precision=asked, micro_batch_tokens=options.micro_batch_tokens)
    problems = make_problems(options.problems)
    with Sampler(sampling, policy) as sampler:
        sampler.sample(problems[:1])  # what is done once a run
        start = time.process_time()
        traces = sampler.sample(problems)
        sampled = time.process_time()
    rng = random.Random(0)
    verdicts = []
    for trace in traces:
        right = [rng.random() < 0.5 for _ in trace.attempts]
        verdicts.append(
            Verdict(
                problem_id=trace.problem_id,
                sample_index=trace.sample_index,
                answers=[None] * len(right),
                verdicts=["correct" if each else "incorrect" for each in right],
                rewards=[float(each) for each in right],
            )
        )
    trainer = Trainer(training, policy, base)
    begin = time.process_time()
    stats = trainer.forward_backward(trainer.prepare(traces, verdicts))
    trainer.check_batch_is_on_policy(stats)
    trainer.optim_step()
    written = sum(int((trace.attempt_ids > 0).sum()) for trace in traces)
    read = sum(len(trace.token_ids) for trace in traces)
    return {
        "sample": sampled - start,
        "train": time.process_time() - begin,
        "written": written,
        "read": read,
        "logprob_diff": stats.logprob_diff,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--problems", type=int, default=4)
    parser.add_argument("--samples", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=32)
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--micro-batch-tokens", type=int, default=2048)
    parser.add_argument("--ways", default="float32,bfloat16")
    options = parser.parse_args()
    found = {}
    for precision in options.ways.split(","):
        for name, rank in (("all weights", 0), ("adapter", options.rank)):
            result = found[f"{precision}, {name}"] = measure(options, precision, rank)
            print(
                f"{precision:>9} {name:<11} sample {result['sample']:6.1f} s "
                f"({1e3 * result['sample'] / result['written']:.1f} ms a token), train {result['train']:6.1f} s "
                f"({1e3 * result['train'] / result['read']:.1f} ms a token), logprobs differ by "
                f"{result['logprob_diff']:.2g} nats",
                flush=True,
            )
    print(json.dumps(found))


if __name__ == "__main__":
    main()
