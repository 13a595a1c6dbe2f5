"""Sampling beside its peers, in one run: generate of transformers, its continuous batching, and vLLM where installed.

    python benchmarks/sample.py [--requests 256] [--batch 64] [--repeats 3] [--lengths skewed,uniform]

The same random model of the built-in base's architecture, with a longer context, answers the same random prompts; how
many new tokens each request writes, 8 to 256, is drawn beforehand. `generate` keeps a finished row in its batch as
padding until the longest row ends, as it always does; the others put a waiting request in its place. Each engine has
a process of its own and decodes up to --batch requests at a time; in each repeat they take turns.

Prints, from medians of the repeats, tokens per second of the clock and of processor time (which a loaded machine
distorts less), how much the memory of the engine's processes grew (vLLM's own processes are all growth), and the share
of the memory's bandwidth reached: bytes that decoding cannot do without (the weights once per --batch tokens, and each
token's keys and values) per second, over what a copy in memory reaches. The last line is JSON: `vs_generate`,
`vs_continuous` and `vs_vllm` say how many times as fast as each this engine is with skewed lengths (log-uniform);
null where a peer is not installed or cannot run here. Continuous batching without a GPU needs psutil (`.[bench]`).
"""

import argparse
import contextlib
import importlib.util
import json
import logging
import os
import random
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch

LEAST, MOST = 8, 256
NAMES = {
    "generate": "transformers generate",
    "continuous": "transformers continuous batching",
    "vllm": "vLLM",
    "score": "this engine",
}


class Request(NamedTuple):
    """A prompt, and how many tokens to write after it."""

    prompt: list[int]
    new: int


def draw_requests(kind: str, count: int, vocabulary: int) -> list[Request]:
    """Requests of mixed length; the same for every engine and repeat."""
    rng = random.Random(0)
    lengths = {
        "uniform": lambda: rng.randint(LEAST, MOST),
        # Log-uniform: most responses are short and a few are long.
        "skewed": lambda: round(LEAST * (MOST / LEAST) ** rng.random()),
    }
    return [
        Request([rng.randrange(vocabulary) for _ in range(rng.randint(8, 48))], lengths[kind]()) for _ in range(count)
    ]


def write_model(folder: Path, options: argparse.Namespace) -> None:
    """The built-in base's architecture with random weights and room for the longest request."""
    from transformers import GPT2Config, GPT2LMHeadModel

    from score_cli.config import BaseConfig
    from score_cli.tables.checkpoints import TrainerState, fingerprint, save_policy
    from score_cli.tasks.division_tokenizer import make_tokenizer
    from score_cli.training.base_policy import make_model

    shape = BaseConfig(width=options.width, heads=options.width // 32, layers=options.layers)
    config = make_model(shape, make_tokenizer()).config
    assert isinstance(config, GPT2Config)
    config.n_positions = 512
    # Lengths are given, so that no token ends a response.
    config.eos_token_id = None
    torch.manual_seed(0)
    model = GPT2LMHeadModel(config).eval()
    save_policy(folder, model, make_tokenizer(), TrainerState(fingerprint=fingerprint(model)))


def load(folder: Path) -> Any:
    from score_cli.tables.checkpoints import load_policy

    policy = load_policy(folder)
    policy.model.generation_config.eos_token_id = None
    return policy.model


def generation(**settings: Any) -> Any:
    """Sampling from the whole distribution at temperature 1."""
    from transformers import GenerationConfig

    return GenerationConfig(do_sample=True, temperature=1.0, top_k=0, top_p=1.0, pad_token_id=0, **settings)


Sampler = Callable[[list[Request]], int]  # returns how many tokens were written


def start_generate(folder: Path, batch: int) -> Sampler:
    from transformers import StoppingCriteria, StoppingCriteriaList

    model = load(folder)

    class Lengths(StoppingCriteria):  # type: ignore[misc]
        """Ends each row at its own length."""

        def __init__(self, ends: torch.Tensor) -> None:
            self.ends = ends

        def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor, **kwargs: Any) -> torch.Tensor:
            return input_ids.shape[1] >= self.ends

    @torch.no_grad()
    def run(requests: list[Request]) -> int:
        for start in range(0, len(requests), batch):
            part = requests[start : start + batch]
            width = max(len(request.prompt) for request in part)
            tokens = torch.tensor([[0] * (width - len(request.prompt)) + request.prompt for request in part])
            mask = torch.tensor([[0] * (width - len(r.prompt)) + [1] * len(r.prompt) for r in part])
            ends = torch.tensor([width + request.new for request in part])
            made = model.generate(
                input_ids=tokens,
                attention_mask=mask,
                generation_config=generation(max_new_tokens=MOST),
                stopping_criteria=StoppingCriteriaList([Lengths(ends)]),
            )
            assert made.shape[1] == max(ends)
        return sum(request.new for request in requests)

    return run


def start_continuous(folder: Path, batch: int) -> Sampler:
    from transformers import ContinuousBatchingConfig

    # It logs the end of every session as a warning.
    logging.getLogger("transformers").setLevel(logging.ERROR)
    model = load(folder)
    pages = 32
    config = ContinuousBatchingConfig(
        page_size=pages,
        # Room for a full batch of longest requests; it can only measure a GPU's memory.
        num_blocks=batch * (MOST + 64) // pages + 1,
        max_batch_tokens=2048,
        max_requests_per_batch=batch,
        return_logprobs=True,
    )

    @torch.no_grad()
    def run(requests: list[Request]) -> int:
        done = {}
        with model.continuous_batching_context_manager(
            generation_config=generation(max_new_tokens=MOST, eos_token_id=-1), continuous_batching_config=config
        ) as manager:
            for request in requests:
                manager.add_request(request.prompt, max_new_tokens=request.new, eos_token_id=-1)
            while len(done) < len(requests):
                result = manager.get_result(timeout=1)
                if result is None:
                    if not manager.is_running():
                        raise RuntimeError(f"its loop ended: {manager.background_thread_status.fatal_error}")
                elif result.error is not None:
                    raise RuntimeError(result.error)
                elif result.is_finished():
                    done[result.request_id] = len(result.generated_tokens)
        return sum(done.values())

    return run


def start_vllm(folder: Path, batch: int) -> Sampler:
    os.environ |= {"VLLM_LOGGING_LEVEL": "ERROR", "VLLM_NO_USAGE_STATS": "1"}
    os.environ |= {"VLLM_CPU_OMP_THREADS_BIND": "nobind", "OMP_NUM_THREADS": str(torch.get_num_threads())}
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
    from vllm import LLM, SamplingParams

    engine = LLM(
        str(folder),
        skip_tokenizer_init=True,
        generation_config="vllm",
        dtype="float32",
        enforce_eager=not torch.cuda.is_available(),
        max_num_seqs=batch,
        disable_log_stats=True,
    )

    def run(requests: list[Request]) -> int:
        outputs = engine.generate(
            [{"prompt_token_ids": request.prompt} for request in requests],
            [SamplingParams(max_tokens=r.new, ignore_eos=True, logprobs=0, detokenize=False) for r in requests],
            use_tqdm=False,
        )
        return sum(len(output.outputs[0].token_ids) for output in outputs)

    return run


def start_score(folder: Path, batch: int) -> Sampler:
    from score_cli.sampling.engine import Decoding
    from score_cli.sampling.renderer import Bridge
    from score_cli.sampling.rollout import Rollout
    from score_cli.sampling.seeds import sample_digest
    from score_cli.sampling.transformers_engine import TransformersEngine

    engine = TransformersEngine(load(folder), batch_size=batch)

    def run(requests: list[Request]) -> int:
        rollouts = [
            Rollout(
                problem_id=str(index),
                sample_index=0,
                prompt=request.prompt,
                bridge=Bridge([], []),
                stop_ids=frozenset(),
                seeds=[sample_digest(0, 0, str(index), 0, 1)],
                max_tokens=request.new,
            )
            for index, request in enumerate(requests)
        ]
        engine.generate(rollouts, Decoding())
        return sum(len(rollout.attempt_tokens(1)) for rollout in rollouts)

    return run


STARTS = {"generate": start_generate, "continuous": start_continuous, "vllm": start_vllm, "score": start_score}


def family(process: int) -> Iterator[Path]:
    """The /proc folders of a process, its children and theirs."""
    yield Path(f"/proc/{process}")
    for children in Path(f"/proc/{process}/task").glob("*/children"):
        with contextlib.suppress(OSError):  # it ended meanwhile
            for child in children.read_text().split():
                yield from family(int(child))


def resident_bytes() -> int:
    """Memory of this process and its children; a page that several of them share counts once (Pss)."""
    total = 0
    for process in family(os.getpid()):
        with contextlib.suppress(OSError):
            lines = (process / "smaps_rollup").read_text().splitlines()
            total += next(int(line.split()[1]) for line in lines if line.startswith("Pss:")) * 1024
    return total


def processor_seconds() -> float:
    """Processor time that this process and its children have used."""
    ticks = 0
    for process in family(os.getpid()):
        with contextlib.suppress(OSError):
            # User and system time; the name before them stands in brackets and may hold spaces.
            ticks += sum(map(int, (process / "stat").read_text().rsplit(")", 1)[1].split()[11:13]))
    return ticks / os.sysconf("SC_CLK_TCK")


class PeakMemory:
    """Looks every 100 ms at what this process and its children hold."""

    def __init__(self) -> None:
        self.start = self.peak = resident_bytes()
        threading.Thread(target=self._watch, daemon=True).start()

    def _watch(self) -> None:
        while True:
            self.peak = max(self.peak, resident_bytes())
            time.sleep(0.1)

    @property
    def growth(self) -> int:
        self.peak = max(self.peak, resident_bytes())
        return self.peak - self.start


def serve(options: argparse.Namespace) -> None:
    """One engine's process: start it, then answer each line of lengths on standard input with a line of JSON."""
    # What libraries print must not mix with the answers.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    torch.set_num_threads(options.threads)
    load(options.folder)  # so that the imports of transformers count for nobody
    memory = PeakMemory()
    try:
        run = STARTS[options.serve](options.folder, options.batch)
        run(draw_requests("uniform", 8, options.vocabulary))
    except Exception as error:  # whatever a library raises: the table says that it cannot run here
        print(json.dumps({"error": f"{type(error).__name__}: {error}".splitlines()[0]}), file=answers, flush=True)
        return
    print(json.dumps({"started": True}), file=answers, flush=True)
    for line in sys.stdin:
        requests = draw_requests(line.strip(), options.requests, options.vocabulary)
        start, used = time.perf_counter(), processor_seconds()
        tokens = run(requests)
        seconds, used = time.perf_counter() - start, processor_seconds() - used
        assert tokens == sum(request.new for request in requests), (tokens, options.serve)
        answer = {"seconds": seconds, "processor_seconds": used, "bytes": memory.growth}
        print(json.dumps(answer), file=answers, flush=True)


def copy_bandwidth(threads: int) -> float:
    """Bytes a second that a copy in memory reads and writes; the best of ten."""
    torch.set_num_threads(threads)
    source = torch.ones(64 * 2**20)
    target = torch.empty_like(source)
    best = float("inf")
    for _ in range(10):
        start = time.perf_counter()
        target.copy_(source)
        best = min(best, time.perf_counter() - start)
    return 2 * source.nbytes / best


def needed_bytes(requests: list[Request], options: argparse.Namespace, weights: int) -> float:
    """What decoding must read: the weights once per full batch of tokens, each token's keys and values once."""
    tokens = sum(request.new for request in requests)
    contexts = sum(len(r.prompt) * r.new + r.new * (r.new + 1) // 2 for r in requests)
    return weights * tokens / options.batch + contexts * 2 * options.layers * options.width * 4


class Engine:
    """An engine's process, as seen by the parent."""

    def __init__(self, name: str, arguments: list[str]) -> None:
        self.name = name
        self._process = subprocess.Popen(
            [sys.executable, __file__, "--serve", name, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=None if os.environ.get("VERBOSE") else subprocess.DEVNULL,
            text=True,
        )
        self.error = self._read().get("error")

    def run(self, lengths: str) -> dict[str, Any]:
        assert self._process.stdin is not None
        print(lengths, file=self._process.stdin, flush=True)
        return self._read()

    def close(self) -> None:
        self._process.communicate()

    def _read(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        answer: dict[str, Any] = json.loads(line) if line else {"error": "its process died; VERBOSE=1 shows why"}
        return answer


def measure(engines: list[Engine], options: argparse.Namespace, weights: int) -> dict[str, dict[str, float]]:
    """Print one table for each kind of lengths; tokens per second of each engine, by kind."""
    bandwidth = copy_bandwidth(options.threads)
    print(f"copy bandwidth {bandwidth / 1e9:.1f} GB/s; model {weights / 2**20:.1f} MiB of float32")
    rates: dict[str, dict[str, float]] = {}
    for kind in options.lengths.split(","):
        requests = draw_requests(kind, options.requests, options.vocabulary)
        tokens = sum(request.new for request in requests)
        print(f"\n{options.requests} requests, {options.batch} at a time, {kind} lengths, {tokens} new tokens")
        print("| engine | tokens/s | slowest-fastest | per processor second | memory, MiB | bandwidth |")
        print("|---|---|---|---|---|---|")
        answers: dict[str, list[dict[str, Any]]] = {engine.name: [] for engine in engines}
        for _ in range(options.repeats):
            for engine in engines:
                answers[engine.name].append(engine.run(kind))
        rates[kind] = {}
        for name, given in answers.items():
            speeds = sorted(tokens / answer["seconds"] for answer in given)
            rates[kind][name] = rate = statistics.median(speeds)
            effort = tokens / statistics.median(answer["processor_seconds"] for answer in given)
            share = needed_bytes(requests, options, weights) * rate / tokens / bandwidth
            grown = max(answer["bytes"] for answer in given) / 2**20
            spread = f"{speeds[0]:,.0f}-{speeds[-1]:,.0f}"
            print(f"| {NAMES[name]} | {rate:,.0f} | {spread} | {effort:,.0f} | {grown:,.0f} | {share:.1%} |")
    return rates


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=256)
    parser.add_argument("--batch", type=int, default=64, help="requests decoded at a time")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--lengths", default="skewed,uniform")
    parser.add_argument("--layers", type=int, default=2)
    # Heads of 32 numbers, the least that vLLM has a kernel for on CPU; the built-in base's width of 96 has 24.
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--engines", default=",".join(STARTS))
    for hidden in ("--serve", "--folder", "--vocabulary"):
        parser.add_argument(hidden, type={"--folder": Path, "--vocabulary": int}.get(hidden), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        serve(options)
        return
    with tempfile.TemporaryDirectory() as folder:
        write_model(Path(folder), options)
        model = load(Path(folder))
        options.vocabulary = model.config.vocab_size
        arguments = [f"--{name}={getattr(options, name)}" for name in ("requests", "batch", "layers", "width")]
        arguments += [f"--threads={options.threads}", f"--folder={folder}", f"--vocabulary={options.vocabulary}"]
        engines = []
        for name in options.engines.split(","):
            if name == "vllm" and importlib.util.find_spec("vllm") is None:
                print("vLLM is not installed")
                continue
            engine = Engine(name, arguments)
            if engine.error:
                print(f"{NAMES[name]} cannot run here: {engine.error}")
                engine.close()
            else:
                engines.append(engine)
        weights = sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())
        rates = measure(engines, options, weights)
        for engine in engines:
            engine.close()
    figures: dict[str, float | None] = {}
    for kind, found in rates.items():
        for peer in ("generate", "continuous", "vllm"):
            ratio = round(found["score"] / found[peer], 2) if peer in found and "score" in found else None
            figures[f"vs_{peer}" if kind == "skewed" else f"vs_{peer}_{kind}"] = ratio
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
