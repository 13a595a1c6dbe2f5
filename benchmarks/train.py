"""This package's update beside that of TRL's RLOO trainer, in one run, on the same given completions.

    python benchmarks/train.py [--shapes 32000,151936] [--prompts 2] [--samples 4] [--repeats 3] [--device cuda]

An update is all that follows sampling: the reference's logprobs, KL, baselines, the gradient, and the optimiser's step.
TRL is told to take the completions given, and their rewards, in place of generating; it scores them with the policy
once more, since it does not keep the sampler's logprobs. Both sides: the same random model (llama or qwen2, tied
embeddings), tokens, rewards and rows a pass, a frozen reference, KL in the reward at the same coefficient, a
leave-one-out baseline, Adam without decay, float32 on the CPU and bfloat16 over float32 weights on a GPU, sdpa. `trl`
keeps its activations, as this package does; `trl-defaults` computes them again in the backward pass, as TRL does
unless told otherwise.

Each side has a process of its own, and they take turns. Prints, from medians of the repeats, real tokens per second of
processor time (on a GPU: of the GPU's), what each added to the memory of the model at its peak, and the share of the
thread's (or GPU's) fastest matrix product that the floating-point operations come to which an update cannot do
without. Before that, each side's first gradient: policy and reference are still the same there, so that all advantages
are equal, and so must be the gradients; `cosine` and `norm_ratio` say how nearly they are.

The last line is JSON: `speed_ratio` (times TRL's tokens a second) and `memory_ratio` (share of its memory above the
model), this side's `mfu`, and the gradients' cosine, each by vocabulary. Needs trl (`.[bench]`).
"""

import argparse
import contextlib
import ctypes
import gc
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch

BETA = 0.05
# So small that the policy of every repeat is the first one's, in all but its last bits.
LEARNING_RATE = 1e-8
NAMES = {"score": "this package", "trl": "TRL RLOO", "trl-defaults": "TRL RLOO, recomputing activations"}


class Completion(NamedTuple):
    """What was sampled for a prompt, and what it earned."""

    problem: int
    prompt: list[int]
    tokens: list[int]
    reward: float


def draw_completions(options: argparse.Namespace) -> list[Completion]:
    """The same for both sides: prompts of one length, completions of half to all of another."""
    rng = random.Random(0)
    # Token 0 pads.
    prompts = [[rng.randrange(1, options.vocabulary) for _ in range(options.prompt)] for _ in range(options.prompts)]
    found = []
    for problem, prompt in enumerate(prompts):
        for sample in range(options.samples):
            length = rng.randint(options.completion // 2, options.completion)
            tokens = [rng.randrange(1, options.vocabulary) for _ in range(length)]
            found.append(Completion(problem, prompt, tokens, float(sample % 2)))
    return found


def write_model(folder: Path, options: argparse.Namespace) -> None:
    """A random model: about 12 million parameters at a vocabulary of 32,000, 43 million at 151,936."""
    from transformers import LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM

    from score_cli.tables.checkpoints import TrainerState, fingerprint, save_policy
    from score_cli.tasks.division_tokenizer import make_tokenizer

    sizes: dict[str, Any] = {
        "vocab_size": options.vocabulary,
        "hidden_size": options.width,
        "intermediate_size": options.width * 11 // 4,
        "num_hidden_layers": options.layers,
        "num_attention_heads": options.width // 64,
        "num_key_value_heads": options.width // 128,
        "max_position_embeddings": 2048,
        "tie_word_embeddings": True,
        "bos_token_id": None,
        "eos_token_id": 0,
        "pad_token_id": 0,
    }
    torch.manual_seed(0)
    large = options.vocabulary > 100_000
    model = Qwen2ForCausalLM(Qwen2Config(**sizes)) if large else LlamaForCausalLM(LlamaConfig(**sizes))
    folder.mkdir()
    save_policy(folder, model, make_tokenizer(), TrainerState(fingerprint=fingerprint(model)))


class Side:
    """One side under measurement, in its own process."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.model: Any = None  # set before anything but the policy's weights is there
        self.base = 0
        self.gradient: Path | None = options.folder / f"{options.serve}.pt"
        self._began: Any = None
        self._peak = 0

    @property
    def cuda(self) -> bool:
        return bool(self.options.device == "cuda")

    def holds_model(self, model: Any) -> None:
        """From here on, what is held counts; `model` holds the policy's weights and nothing else is there."""
        self.model = model
        if self.cuda:
            self.base = torch.cuda.memory_allocated()
        else:
            free_memory()
            self.base = status("VmRSS")

    def begin(self) -> None:
        if self.cuda:
            torch.cuda.reset_peak_memory_stats()
            torch.cuda.synchronize()
            self._began = torch.cuda.Event(enable_timing=True)
            self._began.record()
        else:
            # The kernel forgets the peak so far.
            Path("/proc/self/clear_refs").write_text("5")
            self._began = time.process_time()

    def end(self) -> dict[str, float]:
        if self.cuda:
            ended = torch.cuda.Event(enable_timing=True)
            ended.record()
            torch.cuda.synchronize()
            seconds, peak = self._began.elapsed_time(ended) / 1000, torch.cuda.max_memory_allocated()
        else:
            seconds, peak = time.process_time() - self._began, status("VmHWM")
        return {"seconds": seconds, "bytes": peak - self.base}

    def keep_gradient(self) -> None:
        """Write the first gradient for the parent to compare."""
        if self.gradient is not None:
            found = {name: weight.grad for name, weight in self.model.named_parameters() if weight.grad is not None}
            torch.save(found, self.gradient)
            self.gradient = None


def free_memory() -> None:
    """Give the kernel back what the C library holds free."""
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").malloc_trim(0)


def status(field: str) -> int:
    """A field of this process's status, in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{field}:")) * 1024


Turns = Iterator[None]  # one a repeat, when the parent asks for it
Answer = Callable[[dict[str, Any]], None]


def serve_score(side: Side, turns: Turns, answer: Answer) -> None:
    """This package's `Trainer.update`."""
    import numpy as np

    from score_cli.config import Stage2Config
    from score_cli.tables.checkpoints import load_policy
    from score_cli.tables.records import Trace, Verdict
    from score_cli.training.trainer import Trainer

    options = side.options
    completions = draw_completions(options)
    policy = load_policy(options.folder / "model", device=options.device)
    side.holds_model(policy.model)
    config = Stage2Config(
        learning_rate=LEARNING_RATE,
        beta1=BETA,
        baseline="leave-one-out",
        max_grad_norm=1e6,
        adam_beta2=0.999,
        micro_batch_tokens=options.rows * (options.prompt + options.completion),
        threads=options.threads,
        device=options.device,
    )
    trainer = Trainer(config, policy, load_policy(options.folder / "model", device=options.device))

    def trace(index: int, given: Completion, logprobs: list[float]) -> Trace:
        tokens = [*given.prompt, *given.tokens]
        ids = [0] * len(given.prompt) + [1] * len(given.tokens)
        arrays = np.array(tokens, np.int32), np.array(ids, np.int8), np.array(logprobs, np.float32)
        return Trace(str(given.problem), index, [""], ["stop"], *arrays, offline_attempts=0)

    empty = [trace(i, each, [0.0] * len(each.prompt + each.tokens)) for i, each in enumerate(completions)]
    # A sampler has written these down.
    known = trainer.token_logprobs(empty, 1.0)
    traces = [trace(i, each, logprobs) for i, (each, logprobs) in enumerate(zip(completions, known, strict=True))]
    verdicts = [
        Verdict(str(each.problem), i, [None], ["correct" if each.reward else "incorrect"], [each.reward])
        for i, each in enumerate(completions)
    ]
    batch = trainer.prepare(traces, verdicts)
    trainer.check_batch_is_on_policy(trainer.forward_backward(batch))
    side.keep_gradient()
    trainer.optim_step()
    del batch
    answer({"started": True})
    for _ in turns:
        side.begin()
        trainer.update(traces, verdicts, check=False)
        answer(side.end())


def serve_trl(side: Side, turns: Turns, answer: Answer) -> None:
    """TRL's update: from the completions it would have generated to the optimiser's step."""
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, TrainerCallback
    from trl import RLOOConfig, RLOOTrainer

    from score_cli.tasks.division_tokenizer import make_tokenizer

    options = side.options
    completions = draw_completions(options)
    rewards = {(each.problem, *each.tokens): each.reward for each in completions}

    class Given(RLOOTrainer):  # type: ignore[misc]
        """Takes what was sampled before."""

        def _tokenize_prompts(self, prompts: list[str]) -> tuple[list[list[int]], None, dict[str, Any]]:
            return (
                [next(each.prompt for each in completions if str(each.problem) == name) for name in prompts],
                None,
                {},
            )

        def _generate_single_turn(self, prompt_ids: list[list[int]], *others: Any) -> list[list[int]]:
            assert prompt_ids == [each.prompt for each in completions]
            return [each.tokens for each in completions]

    class Turn(TrainerCallback):  # type: ignore[misc]
        """Measures from the batch of prompts to the end of the optimiser's step; the first step warms up."""

        warm = False

        def on_step_begin(self, *given: Any, **named: Any) -> None:
            if self.warm:
                next(turns, None)
                side.begin()

        def on_pre_optimizer_step(self, *given: Any, **named: Any) -> None:
            side.keep_gradient()

        def on_step_end(self, args: Any, state: Any, control: Any, **named: Any) -> None:
            answer(side.end() if self.warm else {"started": True})
            self.warm = True

    def reward(prompts: list[str], completion_ids: list[list[int]], **others: Any) -> list[float]:
        return [rewards[int(name), *tokens] for name, tokens in zip(prompts, completion_ids, strict=True)]

    config = RLOOConfig(
        output_dir=str(options.folder / options.serve),
        per_device_train_batch_size=options.rows,
        gradient_accumulation_steps=len(completions) // options.rows,
        num_generations=options.samples,
        max_steps=options.repeats + 1,
        gradient_checkpointing=options.serve == "trl-defaults",
        learning_rate=LEARNING_RATE,
        lr_scheduler_type="constant",
        max_grad_norm=1e6,
        beta=BETA,
        bf16=side.cuda,
        use_cpu=not side.cuda,
        shuffle_dataset=False,
        logging_strategy="no",
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        model_init_kwargs={"dtype": torch.float32, "attn_implementation": "sdpa", "device_map": None},
    )
    # An instance, so that what it takes is known before the trainer adds to it.
    model = AutoModelForCausalLM.from_pretrained(
        options.folder / "model", dtype=torch.float32, attn_implementation="sdpa"
    ).to(options.device)
    for parameter in model.parameters():
        parameter.data = parameter.data.clone()  # out of the file's mapping, as on the other side
    side.holds_model(model)
    # Each batch is all prompts once.
    prompts = Dataset.from_dict({"prompt": [str(number) for number in range(options.prompts)]})
    Given(
        model=model,
        reward_funcs=reward,
        args=config,
        train_dataset=prompts,
        processing_class=make_tokenizer(),
        callbacks=[Turn()],
    ).train()


def serve(options: argparse.Namespace) -> None:
    """One side's process: set up and warm up, then an update for each line on standard input."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print must not mix with the answers
    torch.set_num_threads(options.threads)

    def answer(values: dict[str, Any]) -> None:
        print(json.dumps(values), file=answers, flush=True)

    run = serve_score if options.serve == "score" else serve_trl
    run(Side(options), (None for _ in sys.stdin), answer)


class Process:
    """A side's process, as seen by the parent."""

    def __init__(self, name: str, arguments: list[str]) -> None:
        self.name = name
        self._process = subprocess.Popen(
            [sys.executable, __file__, "--serve", name, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=None if os.environ.get("VERBOSE") else subprocess.DEVNULL,
            text=True,
        )
        self._read()

    def update(self) -> dict[str, float]:
        assert self._process.stdin is not None
        print(file=self._process.stdin, flush=True)
        return self._read()

    def close(self) -> None:
        self._process.communicate()

    def _read(self) -> dict[str, float]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            sys.exit(f"{NAMES[self.name]}: its process died; VERBOSE=1 shows why")
        found: dict[str, float] = json.loads(line)
        return found


def fastest_product(options: argparse.Namespace) -> float:
    """Floating-point operations a second of a large matrix product: the best of ten."""
    cuda = options.device == "cuda"
    torch.set_num_threads(options.threads)
    size = 8192 if cuda else 1536
    left = torch.randn(size, size, device=options.device, dtype=torch.bfloat16 if cuda else torch.float32)
    best = float("inf")
    for _ in range(10):
        if cuda:
            torch.cuda.synchronize()
        start = time.perf_counter() if cuda else time.process_time()
        left @ left
        if cuda:
            torch.cuda.synchronize()
        best = min(best, (time.perf_counter() if cuda else time.process_time()) - start)
    return 2 * size**3 / best


def needed_operations(model: Any, completions: list[Completion]) -> float:
    """What an update cannot do without: the reference forward, the policy forward and backward; the head where sampled.

    Two operations a weight and token forward, four backward; attention's two products over the tokens before.
    """
    head = model.get_output_embeddings().weight.numel()
    body = sum(weight.numel() for weight in model.model.layers.parameters() if weight.dim() == 2)
    width, layers = model.config.hidden_size, model.config.num_hidden_layers
    total = 0.0
    for each in completions:
        length = len(each.prompt) + len(each.tokens)
        forward = 2 * body * length + 2 * head * len(each.tokens) + 2 * layers * width * length**2
        total += 4 * forward
    return total


def compare_gradients(folder: Path) -> tuple[float, float]:
    """Cosine between the two sides' first gradients, and the ratio of their norms."""
    ours, theirs = (torch.load(folder / f"{name}.pt") for name in ("score", "trl"))
    assert set(ours) == set(theirs), set(ours) ^ set(theirs)

    def product(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> float:
        return sum((left[name].double() * right[name].double()).sum().item() for name in left)

    norms = [product(each, each) ** 0.5 for each in (ours, theirs)]
    return product(ours, theirs) / (norms[0] * norms[1]), norms[0] / norms[1]


def measure(options: argparse.Namespace, folder: Path) -> dict[str, float]:
    """One shape: print its table and return its figures."""
    from transformers import AutoModelForCausalLM

    write_model(folder / "model", options)
    model = AutoModelForCausalLM.from_pretrained(folder / "model")
    completions = draw_completions(options)
    tokens = sum(len(each.prompt) + len(each.tokens) for each in completions)
    operations, peak = needed_operations(model, completions), fastest_product(options)
    parameters = sum(weight.numel() for weight in model.parameters())
    del model
    names = ("vocabulary", "prompts", "samples", "prompt", "completion", "rows", "repeats", "threads", "device")
    arguments = [f"--{name}={getattr(options, name)}" for name in names] + [f"--folder={folder}"]
    sides = [Process(name, arguments) for name in options.sides.split(",")]
    cosine, norm_ratio = compare_gradients(folder)
    answers: dict[str, list[dict[str, float]]] = {side.name: [] for side in sides}
    for _ in range(options.repeats):
        for side in sides:
            answers[side.name].append(side.update())
    for side in sides:
        side.close()
    print(f"\n{parameters / 1e6:.1f} million parameters, vocabulary {options.vocabulary:,}; {len(completions)} traces,")
    print(f"{tokens} tokens, {options.rows} rows a pass; fastest product {peak / 1e9:,.0f} GFLOP/s")
    print(f"first gradients: cosine {cosine:.6f}, norm ratio {norm_ratio:.5f}\n")
    print("| update | tokens/s | slowest-fastest | memory above the model, MiB | MFU |")
    print("|---|---|---|---|---|")
    rates, memories = {}, {}
    for name, given in answers.items():
        speeds = sorted(tokens / each["seconds"] for each in given)
        rates[name] = rate = statistics.median(speeds)
        memories[name] = memory = max(each["bytes"] for each in given)
        spread = f"{speeds[0]:,.1f}-{speeds[-1]:,.1f}"
        used = operations * rate / tokens / peak
        print(f"| {NAMES[name]} | {rate:,.1f} | {spread} | {memory / 2**20:,.0f} | {used:.1%} |", flush=True)
    figures = {"mfu": operations * rates["score"] / tokens / peak, "cosine": cosine, "norm_ratio": norm_ratio}
    for name in rates:
        if name != "score":
            suffix = name.removeprefix("trl").replace("-", "_")
            figures[f"speed_ratio{suffix}"] = rates["score"] / rates[name]
            figures[f"memory_ratio{suffix}"] = memories["score"] / memories[name]
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", default="32000,151936", help="vocabularies")
    parser.add_argument("--prompts", type=int, default=2)
    parser.add_argument("--samples", type=int, default=4, help="completions a prompt")
    parser.add_argument("--prompt", type=int, default=64, help="tokens of a prompt")
    parser.add_argument("--completion", type=int, default=192, help="tokens of the longest completion")
    parser.add_argument("--rows", type=int, default=8, help="traces a forward pass")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--layers", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--sides", default=",".join(NAMES), help="which to measure; score and trl at least")
    for hidden in ("--serve", "--folder", "--vocabulary"):
        parser.add_argument(hidden, type={"--folder": Path, "--vocabulary": int}.get(hidden), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        serve(options)
        return
    if options.prompts * options.samples % options.rows:
        sys.exit(f"{options.prompts * options.samples} traces do not divide into passes of {options.rows}")
    found: dict[str, dict[str, float]] = {}
    for vocabulary in options.shapes.split(","):
        options.vocabulary = int(vocabulary)
        with tempfile.TemporaryDirectory() as folder:
            for name, value in measure(options, Path(folder)).items():
                found.setdefault(name, {})[vocabulary] = round(value, 6 if name == "cosine" else 3)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
