"""The overhead of a run, whose actors stay warm, and of the same updates by chained commands, in one go.

    python benchmarks/loop.py --updates 10 --out /tmp/loop

Overhead is 1 - busy / wall: the share of the time that goes neither to sampling nor to grading, learning or handing the
policy to the sampler. A run says what each of its updates took (RUN/log.jsonl). Of the commands the wall-clock of each
process is taken, and the run's busy seconds for the same updates, which make the same bytes.

Then programs: an update's attempts stand for programs that loop for a while, and are graded by processes of their own,
beside the sampling (as a run does it) and after it. The traces and verdicts are compared.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from score_cli import Grader, Problem, SampleConfig, Sampler, VerifyConfig, load_policy
from score_cli.recipe import read_recipe
from score_cli.run_log import BUSY, overhead, read_log
from score_cli.sampling.renderer import TaskRenderer
from score_cli.tables.provenance import file_sha256

ROOT = Path(__file__).parents[1]
SMALL = ["base.steps=50"]
LARGE = [*SMALL, "sample.problems_per_iteration=96"]
LOOPS = 40_000  # of one program: some milliseconds


def score(*arguments: object) -> float:
    """Run a command; returns its wall-clock seconds."""
    began = time.perf_counter()
    subprocess.run([sys.executable, "-m", "score_cli", *map(str, arguments)], check=True, capture_output=True)
    return time.perf_counter() - began


def run(out: Path, updates: int, changes: Sequence[str]) -> list[Mapping[str, Any]]:
    """A run of Stage I; returns its log."""
    settings = [f"run.stage1_iterations={updates}", "run.stage2_iterations=0", "eval.samples=1", *changes]
    options = [part for change in settings for part in ("--set", change)]
    score("run", ROOT / "pipelines" / "quickstart.toml", "--out", out, "--limit", 200, *options)
    return read_log(out / "log.jsonl")


def commands(run: Path, out: Path, updates: int, changes: Sequence[str]) -> float:
    """The same updates by commands; the wall-clock of all of them."""
    out.mkdir()
    recipe = read_recipe(ROOT / "pipelines" / "quickstart.toml")
    recipe.change(changes)
    config = out / "recipe.toml"
    config.write_text(recipe.as_toml())
    model, wall = run / "base", 0.0
    for number in range(updates):
        place = out / f"{number:04d}"
        place.mkdir()
        traces, rewards, problems = place / "traces.parquet", place / "rewards.parquet", run / "train.parquet"
        with_config = ["--config", config]
        wall += score("sample", *with_config, "--model", model, "--problems", problems, "--out", traces)
        wall += score("verify", *with_config, "--traces", traces, "--problems", problems, "--out", rewards)
        graded = ["--traces", traces, "--rewards", rewards, "--model", model, "--reference", run / "base"]
        wall += score("train-stage1", *with_config, *graded, "--out", place / "policy")
        for name in ("traces.parquet", "rewards.parquet"):
            if file_sha256(place / name) != file_sha256(run / "iterations" / place.name / name):
                raise SystemExit(f"{place / name} is not the run's")
        model = place / "policy"
    return wall


def busy(entry: Mapping[str, Any]) -> float:
    """Seconds of an update that went into the policy."""
    return sum(entry["seconds"].get(part, 0.0) for part in BUSY)


def write_programs() -> None:
    """Let every attempt stand for a program that loops for a while: an untrained policy writes none."""

    def program(self: TaskRenderer, tokens: list[int]) -> str:
        number = sum(tokens) % 1000
        body = (
            f"    total = {number}\n    for i in range({LOOPS}):\n        total += i % 7\n    return x + {number % 2}"
        )
        return f"```python\ndef add(x):\n{body}\n```"

    TaskRenderer.text = program  # type: ignore[method-assign]


def programs(model: Path, samples: int) -> dict[str, Any]:
    """Sampling and grading of programs, one beside the other and one after the other, by turns."""
    write_programs()
    problems = [
        Problem(
            problem_id=f"p{n}",
            task="mbpp",
            question=f"Divide {100 + n} by 7. ",
            tests=["assert add(1) == 1", "assert add(5) == 5"],
            entry_point="add",
            source="made up",
        )
        for n in range(16)
    ]
    by_id = {problem.problem_id: problem for problem in problems}
    config = SampleConfig(samples=samples, max_tokens=14, threads=1, batch_size=16, device="cpu", iteration=0)
    found: dict[str, list[tuple[float, float]]] = {"beside": [], "after": []}
    verdicts = []
    with Sampler(config, load_policy(model, device="cpu")) as sampler, Grader(VerifyConfig(workers=1)) as grader:
        job = sampler.plan(problems)
        grader.grade(sampler.run(job), by_id)  # everything is warm from here on
        for turn in range(6):
            kind = ("beside", "after")[turn % 2]
            began = time.perf_counter()
            traces = sampler.run(job, grader.begin if kind == "beside" else None)
            sampled = time.perf_counter()
            verdicts.append(grader.grade(traces, by_id))
            found[kind].append((sampled - began, time.perf_counter() - sampled))
    if any(each != verdicts[0] for each in verdicts):
        raise SystemExit("the verdicts differ")
    return {kind: tuple(map(statistics.median, zip(*times, strict=True))) for kind, times in found.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--updates", type=int, default=10)
    parser.add_argument("--out", type=Path, required=True, help="A folder that does not exist yet.")
    options = parser.parse_args()
    options.out.mkdir(parents=True)
    found: dict[str, Any] = {}
    print("| updates | seconds, median | busy | overhead of the run | of the commands |\n|---|---|---|---|---|")
    for name, changes in (("small", SMALL), ("large", LARGE)):
        entries = run(options.out / name, options.updates, changes)
        compared = entries[: min(2, options.updates)]
        wall = commands(options.out / name, options.out / f"{name}-commands", len(compared), changes)
        took = statistics.median(sum(entry["seconds"].values()) for entry in entries)
        ours = overhead(
            {part: sum(entry["seconds"].get(part, 0) for entry in entries) for part in entries[0]["seconds"]}
        )
        theirs = 1 - sum(map(busy, compared)) / wall
        work = statistics.median(map(busy, entries))
        print(f"| {name} | {took:.2f} | {work:.2f} | {ours:.1%} | {theirs:.1%} |", flush=True)
        found[name] = {"seconds": took, "busy": work, "run": ours, "commands": theirs}
    found["programs"] = programs(options.out / "small" / "base", 8)
    print("\n| programs graded | sampling, s | grading after it, s | together |\n|---|---|---|---|")
    for kind, (sampling, grading) in found["programs"].items():
        print(f"| {kind} | {sampling:.2f} | {grading:.2f} | {sampling + grading:.2f} |")
    print(json.dumps(found))


if __name__ == "__main__":
    main()
