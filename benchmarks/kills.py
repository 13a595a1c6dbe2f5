"""Kill a run at random moments, change settings in between, and set what it ends with beside a run left alone.

    python benchmarks/kills.py --kills 20 --out /tmp/kills

Three runs of one tiny recipe on the CPU, from the built-in task's base to the evaluation. The first is left alone. The
second is killed (SIGKILL) N times and goes on each time with other values of the settings that cannot change a bit.
The third is killed N times too, and goes on with other values of those that change the order of additions as well:
micro-batches, traces decoded together, threads. A moment is a random time after a random file that is next to appear.

The last lines say where the kills fell, and how far the policies and tables are from those of the first run.
"""

import argparse
import json
import math
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import polars as pl
import torch
from safetensors.torch import load_file

from score_cli import Trace, load_policy
from score_cli.tables.provenance import file_sha256
from score_cli.tables.traces import read_traces
from score_cli.training.batching import micro_batches

RECIPE = """
seed = 4
[base]
steps = 30
batch_size = 32
threads = 1
[sample]
samples = 4
problems_per_iteration = 12
max_tokens = 14
threads = 1
chunk_problems = 4
[train-stage1]
learning_rate = 5e-4
kl = "full"
threads = 1
[train-stage2]
learning_rate = 2e-4
threads = 1
[eval]
samples = 2
max_tokens = 14
threads = 1
[run]
stage1_iterations = 5
stage2_iterations = 5
save_every = 2
"""
UPDATES = {"stage1": range(5), "stage2": range(5, 10)}
# Settings that cannot change a bit of the result, and those that change the order of additions too.
EXACT = {
    "verify.workers": [1, 2],
    "run.save_every": [1, 2, 3],
    "run.keep_checkpoints": [1, 3],
    "train-stage1.logprob_tolerance": [0.001, 0.01],
    "train-stage2.logprob_tolerance": [0.001, 0.01],
    "sample.gpu_memory_utilization": [0.3, 0.5],
    "sample.device": ["'cpu'", "'auto'"],
    "train-stage2.device": ["'cpu'", "'auto'"],
}
ROUNDING = EXACT | {
    "train-stage1.micro_batch_tokens": [128, 700, 4096],
    "train-stage2.micro_batch_tokens": [128, 700, 4096],
    "sample.batch_size": [5, 16, 64],
    "eval.batch_size": [5, 64],
    "sample.threads": [1, 2],
    "train-stage1.threads": [1, 2],
    "train-stage2.threads": [1, 2],
}
WAIT_SECONDS = 600


def command(recipe: Path, out: Path, changes: list[str]) -> list[str]:
    options = [part for change in changes for part in ("--set", change)]
    return [sys.executable, "-m", "score_cli", "run", str(recipe), "--out", str(out), "--limit", "40", *options]


def files_of(run: Path) -> list[str]:
    """What a run leaves behind, in the order in which it appeared; what is kept in between is not always there."""
    paths = [path for path in run.rglob("*") if path.is_file() and not any(p[0] == "." for p in path.parts[-3:])]
    names = [str(path.relative_to(run)) for path in sorted(paths, key=lambda path: path.stat().st_mtime_ns)]
    return [name for name in names if not name.startswith(("latest/", "log", "config.json"))]


def phase_of(run: Path) -> str:
    """What a run was doing when it ended, by what it had written last."""
    if not (run / "base").exists():
        return "problems, base"
    if (run / "stage2").exists():
        return "evaluation"
    done = sorted(run.glob("iterations/*/*.parquet"))
    number = int(done[-1].parent.name) if done else 0
    stage = "stage1" if number in UPDATES["stage1"] else "stage2"
    kinds = {path.stem for path in done if path.parent == done[-1].parent} if done else set()
    doing = {0: "sampling, grading", 1: "sampling, grading", 2: "updating", 3: "saving, sampling"}[len(kinds)]
    return f"{stage}: {doing}"


def kill_once(start: list[str], run: Path, files: list[str], kills_left: int, draw: random.Random) -> str | None:
    """Go on with a run until a random file further on has appeared, and a moment more; then kill it.

    Returns:
        Where it was; None if it had ended by itself.
    """
    missing = [name for name in files if not (run / name).exists()]
    ahead = math.ceil(2 * len(missing) / (kills_left + 1))
    mark = missing[min(draw.randrange(ahead), len(missing) - 1)] if missing else "metrics.parquet"
    process = subprocess.Popen(start, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + WAIT_SECONDS
    while not (run / mark).exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.005)
    time.sleep(draw.uniform(0, 0.3))
    process.send_signal(signal.SIGKILL)
    _, said = process.communicate()
    if process.returncode == 0:
        return None
    if process.returncode != -signal.SIGKILL:
        raise SystemExit(f"a run failed by itself: {said}")
    return phase_of(run)


def killed_run(recipe: Path, run: Path, files: list[str], kills: int, settings: dict, seed: int) -> Counter[str]:
    """A run killed so many times, each start with other settings, and then run to its end."""
    draw = random.Random(seed)
    places: Counter[str] = Counter()
    for number in range(kills):
        changes = [f"{key}={draw.choice(values)}" for key, values in settings.items()]
        place = kill_once(command(recipe, run, changes), run, files, kills - number, draw)
        if place is None:
            break
        places[place] += 1
        print(f"  kill {number + 1}: {place}", flush=True)
    subprocess.run(command(recipe, run, []), check=True, capture_output=True)
    return places


def token_logprobs(folder: Path, traces: list[Trace]) -> torch.Tensor:
    """What a policy gives the tokens of some traces, by transformers alone."""
    model, found = load_policy(folder).model, []
    for batch in micro_batches(traces, 10**6):
        with torch.no_grad():
            scores = model(input_ids=batch.token_ids).logits.log_softmax(-1)
        own = scores[:, :-1].gather(-1, batch.token_ids[:, 1:, None])[..., 0]
        found.append(own[batch.attempt_ids[:, 1:] > 0])
    return torch.cat(found)


def compare(whole: Path, other: Path) -> dict[str, float]:
    """How far a run is from another: files that differ, tokens, weights, and what the policy does."""
    names = [name for name in files_of(whole) if name.endswith((".parquet", ".safetensors"))]
    differing = [name for name in names if file_sha256(whole / name) != file_sha256(other / name)]
    traces = [name for name in names if name.endswith("traces.parquet")]
    columns = ["problem_id", "sample_index", "token_ids"]
    same = [
        pl.read_parquet(whole / name, columns=columns).equals(pl.read_parquet(other / name, columns=columns))
        for name in traces
    ]
    found = {"files": len(names), "files that differ": len(differing), "tables of other tokens": same.count(False)}
    for policy in ("stage1", "stage2"):
        ours, theirs = (load_file(run / policy / "model.safetensors") for run in (whole, other))
        gaps = {name: (ours[name] - theirs[name]).abs().max().item() for name in ours}
        found[f"{policy}: weights, largest difference"] = max(gaps.values())
        probe = read_traces(whole / "iterations" / "0009" / "traces.parquet")
        gap = (token_logprobs(whole / policy, probe) - token_logprobs(other / policy, probe)).abs()
        found[f"{policy}: logprobs, largest difference"] = gap.max().item()
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True, help="A folder that does not exist yet.")
    options = parser.parse_args()
    options.out.mkdir(parents=True)
    recipe = options.out / "recipe.toml"
    recipe.write_text(RECIPE)
    print("a run left alone", flush=True)
    subprocess.run(command(recipe, options.out / "whole", []), check=True, capture_output=True)
    files = files_of(options.out / "whole")
    report = {}
    for name, settings in (("exact", EXACT), ("rounding", ROUNDING)):
        print(f"killed {options.kills} times, other values of {', '.join(settings)}", flush=True)
        places = killed_run(recipe, options.out / name, files, options.kills, settings, options.seed)
        report[name] = {"kills": places, "found": compare(options.out / "whole", options.out / name)}
    places = sorted({place for each in report.values() for place in each["kills"]})
    print("\n| killed while | exact | rounding |\n|---|---|---|")
    for place in places:
        print(f"| {place} | {report['exact']['kills'][place]} | {report['rounding']['kills'][place]} |")
    print("\n| against the run left alone | exact | rounding |\n|---|---|---|")
    for key in report["exact"]["found"]:
        print(f"| {key} | {report['exact']['found'][key]:.3g} | {report['rounding']['found'][key]:.3g} |")
    print(json.dumps(report))


if __name__ == "__main__":
    main()
