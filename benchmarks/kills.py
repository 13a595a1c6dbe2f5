"""Disturb a run in every way that a week on a shared machine may, and set what it ends with beside a run left alone.

    python benchmarks/kills.py --kills 100 --out /tmp/kills

Runs of one tiny recipe on the CPU, from the built-in task's base to the evaluation:

whole      left alone
exact      killed (SIGKILL) N times, in every part of the work; it goes on each time with other values of the settings
           that cannot change a bit of the result
rounding   killed too, and goes on with other values of those that change the order of additions: micro-batches, traces
           decoded together, threads (--rounding kills)
disk       on a disk that somebody fills up again and again, in every part of the work (needs the right to mount one)
clock      under a clock of the day that is up to a day off at every reading (needs a C compiler)
torchrun   in several processes, of which a random one is killed (--torchrun 2), set beside one that nobody disturbs
ray        the same on a Ray cluster, with actors that train, sample and grade (--ray local)

The last lines say where the kills fell, and how far the policies and tables are from those of the first run.
"""

import argparse
import contextlib
import json
import os
import random
import shutil
import subprocess
import sys
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import kills_spread
import polars as pl
import torch
from kill_moments import Child, Moment, moments_of
from safetensors.torch import load_file

from score_cli import Trace, load_policy
from score_cli.config import BaseConfig, DataConfig
from score_cli.stages.data import write_problems
from score_cli.tables.provenance import file_sha256
from score_cli.tables.traces import read_traces
from score_cli.training.base_policy import train_base
from score_cli.training.batching import micro_batches

RECIPE = """
seed = 4
[base]
steps = 240
threads = 1
[sample]
samples = 4
problems_per_iteration = 6
max_tokens = 14
threads = 1
chunk_problems = 3
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
best_every = 3
compact_every = 2
"""
STAGE1 = 5
TRACES = 24  # of an update
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


def command(recipe: Path, out: Path, changes: list[str]) -> list[str]:
    options = [part for change in changes for part in ("--set", change)]
    return ["run", str(recipe), "--out", str(out), "--limit", "12", *options]


def process(recipe: Path, out: Path, changes: list[str], **variables: str) -> "subprocess.Popen[str]":
    """The command by itself, in a process of its own."""
    arguments = [sys.executable, "-m", "score_cli", *command(recipe, out, changes)]
    environment = os.environ | variables
    return subprocess.Popen(arguments, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)


def finish(recipe: Path, out: Path, changes: list[str], **variables: str) -> None:
    """Run the command to its end, which has to come."""
    started = process(recipe, out, changes, **variables)
    _, said = started.communicate()
    if started.returncode:
        raise SystemExit(f"a run failed by itself: {said}")


def plan_kills(moments: list[Moment], kills: int, draw: random.Random) -> list[Moment]:
    """Random moments in the order of the run, as many of each part of the work as of any other."""
    parts: dict[str, list[int]] = {}
    for number, moment in enumerate(moments):
        parts.setdefault(moment.part, []).append(number)
    names = list(parts) * (kills // len(parts) + 1)
    return [moments[number] for number in sorted(draw.choice(parts[name]) for name in names[:kills])]


def killed_run(
    recipe: Path, run: Path, moments: list[Moment], kills: int, settings: dict[str, Any], seed: int
) -> Counter[str]:
    """A run killed so many times, each start with other settings, and then run to its end by the plain command."""
    draw, places = random.Random(seed), Counter[str]()
    order = {moment.place: number for number, moment in reversed(list(enumerate(moments)))}
    seconds = {moment.place: moment.seconds for moment in moments}
    for number, moment in enumerate(plan_kills(moments, kills, draw)):
        changes = [f"{key}={draw.choice(values)}" for key, values in settings.items()]
        said = run.with_name(f"{run.name}.said")
        child = Child(command(recipe, run, changes), said, run.with_name(f"{run.name}.log"), STAGE1)
        place = child.kill_at(moment, order, seconds, draw)
        if isinstance(place, int):
            if place:
                raise SystemExit(f"a run failed by itself: {said.read_text()}")
            break
        part = Moment(place, 0).part
        places[part] += 1
        print(f"  kill {number + 1}: {part} (asked for: {moment.place})", flush=True)
    finish(recipe, run, [])
    return places


def filled_run(recipe: Path, run: Path, moments: list[Moment], fills: int, seed: int) -> Counter[str]:
    """A run on a small disk, which somebody fills up at random moments and makes room on again."""
    disk, said, draw = run.parent, Counter[str](), random.Random(seed)
    order = {moment.place: number for number, moment in reversed(list(enumerate(moments)))}
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", disk], check=True)
    try:
        for moment in [*plan_kills(moments, fills, draw), None]:
            log = recipe.with_name("disk.said")
            child = Child(command(recipe, run, []), log, recipe.with_name("disk.log"), STAGE1)
            if moment is not None and child.come_to(moment, order) is None:
                fill(disk, draw.randrange(1 << draw.choice([17, 21])))
            code = child.wait()
            (disk / "ballast").unlink(missing_ok=True)
            lines = log.read_text().strip().splitlines()
            if code not in (0, 3) or (code == 3 and not lines[-1].startswith("score: ")):
                raise SystemExit(f"a full disk ended with code {code}: {lines[-1:]}")
            kinds = {"make room, and run": "stopped with its policy kept", "no space to write": "no room for a file"}
            said[next((kind for words, kind in kinds.items() if words in lines[-1]), "ended")] += 1
            print(f"  {moment and moment.place}: {lines[-1]}", flush=True)
        subprocess.run(["cp", "-r", run, disk.with_name("disk-result")], check=True)
    finally:
        subprocess.run(["umount", disk], check=True)
    return said


def fill(disk: Path, left: int) -> None:
    """Leave so many bytes of a disk."""
    free = shutil.disk_usage(disk).free
    with contextlib.suppress(OSError), (disk / "ballast").open("wb", buffering=0) as file:
        for _ in range(max(0, free - left) // 4096):
            file.write(bytes(4096))


def files_of(run: Path) -> list[str]:
    """What a run leaves behind and is to be the same."""
    names = [str(path.relative_to(run)) for path in sorted(run.rglob("*")) if path.is_file()]
    return [n for n in names if n.endswith((".parquet", "model.safetensors", "best.json")) and n[:6] != "latest"]


def check_learned(run: Path, base: Path | None = None) -> None:
    """See that the policy moved in both stages: one that nothing is paid for stays the same however it is disturbed."""
    ends = [
        file_sha256(folder / "model.safetensors") for folder in (base or run / "base", run / "stage1", run / "stage2")
    ]
    if len(set(ends)) < len(ends):
        raise SystemExit(f"{run} ends its stages in the same policy: there is nothing to compare")


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
    names = files_of(whole)
    if files_of(other) != names:
        raise SystemExit(f"{other} has other files than {whole}: {sorted(set(files_of(other)) ^ set(names))}")
    differing = [name for name in names if file_sha256(whole / name) != file_sha256(other / name)]
    traces = [name for name in names if name.endswith("traces.parquet")]
    columns = ["problem_id", "sample_index", "token_ids"]
    same = [
        pl.read_parquet(whole / name, columns=columns).equals(pl.read_parquet(other / name, columns=columns))
        for name in traces
    ]
    found: dict[str, float] = {
        "files": len(names),
        "files that differ": len(differing),
        "tables of other tokens": same.count(False),
    }
    for policy in ("stage1", "stage2"):
        ours, theirs = (load_file(run / policy / "model.safetensors") for run in (whole, other))
        gaps = {name: (ours[name] - theirs[name]).abs().max().item() for name in ours}
        found[f"{policy}: weights, largest difference"] = max(gaps.values())
        probe = read_traces(whole / "iterations" / "0009" / "traces.parquet")
        gap = (token_logprobs(whole / policy, probe) - token_logprobs(other / policy, probe)).abs()
        found[f"{policy}: logprobs, largest difference"] = gap.max().item()
    return found


def disturb(options: argparse.Namespace, recipe: Path, moments: list[Moment]) -> dict[str, dict[str, Any]]:
    """Every disturbed run that was asked for and can be had here: its disturbances by kind, and what it ended with."""
    out, report = options.out, {}
    whole = out / "whole"

    def note(name: str, disturbed: Any, run: Path) -> None:
        # Apart: polars' threads, once there, are missing in the forks of this process, which would wait for them.
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as apart:
            found = apart.submit(compare, whole, run).result()
        report[name] = {"disturbed": disturbed, "found": found}
        print(f"{name}: {json.dumps(report[name])}", flush=True)

    for name, kills, settings in (("exact", options.kills, EXACT), ("rounding", options.rounding, ROUNDING)):
        if kills:
            print(f"killed {kills} times, other values of {', '.join(settings)}", flush=True)
            places = killed_run(recipe, out / name, moments, kills, settings, options.seed)
            note(name, places, out / name)
    if options.clock:
        library = out / "jumping_clock.so"
        source = Path(__file__).with_name("jumping_clock.c")
        subprocess.run(["cc", "-shared", "-fPIC", "-O1", "-o", library, source, "-ldl"], check=True)
        finish(recipe, out / "clock", [], LD_PRELOAD=str(library))
        note("clock", {"runs": 1}, out / "clock")
    if options.disk:
        (out / "disk").mkdir()
        stops = filled_run(recipe, out / "disk" / "run", moments, options.fills, options.seed)
        note("disk", stops, out / "disk-result")
    return report


def spread_runs(options: argparse.Namespace, recipe: Path) -> dict[str, dict[str, Any]]:
    """Runs of several processes, killed as often as asked for: each beside one undisturbed, and beside one process."""
    out, report = options.out, {}
    (out / "reward.py").write_text(kills_spread.REWARD)
    shared = out / "shared.toml"
    own = f'[verify]\nworkers = 1\ngrader = "{out.resolve()}/reward.py:grade"\n'
    # So small that every process that trains has some of each batch.
    small = [(f"[{stage}]\n", f"[{stage}]\nmicro_batch_tokens = 200\n") for stage in ("train-stage1", "train-stage2")]
    text = recipe.read_text()
    for old, new in small:
        text = text.replace(old, new)
    shared.write_text(text + own)
    inputs = spread_inputs(out)
    print("a run of one process left alone", flush=True)
    subprocess.run(
        [sys.executable, "-m", "score_cli", *command(shared, out / "alone", []), *inputs],
        check=True,
        capture_output=True,
    )
    check_learned(out / "alone", out / "base")
    ways = [kills_spread.torchrun(options.torchrun)] if options.torchrun else []
    ways += [kills_spread.on_ray(options.ray)] if options.ray else []
    for way in ways:
        print(f"{way.name}: a run left alone", flush=True)
        whole, killed = out / f"{way.name}-whole", out / f"{way.name}-killed"
        moments = kills_spread.whole_run(way, [*command(shared, whole, []), *inputs], out, STAGE1)
        print(f"{way.name}: a run of which a process is killed {options.spread_kills} times", flush=True)
        found = kills_spread.killed_run(
            way, [*command(shared, killed, []), *inputs], out, STAGE1, moments, options.spread_kills, options.seed
        )
        check_learned(killed, out / "base")
        report[way.name] = {
            "killed": [[*place, count] for place, count in sorted(found.places.items())],
            "seconds until all had ended": found.seconds,
            "processes left": found.left,
            "said": found.said,
            "against the same way left alone": compare(whole, killed),
            "against one process": compare(out / "alone", killed),
            "left alone against one process": compare(out / "alone", whole),
            "first traces as of one process": first_traces_equal(out / "alone", killed),
        }
        print(f"{way.name}: {json.dumps(report[way.name])}", flush=True)
        print_spread(way.name, list(way.kinds), report[way.name])
    return report


def spread_inputs(out: Path) -> list[str]:
    """A base and problems, made once for all runs of several processes; the options that name them."""
    train_base(BaseConfig(steps=240, seed=4, threads=1), out=out / "base")
    inputs = ["--model", str(out / "base")]
    for option, split in (("problems", "train"), ("eval-problems", "test"), ("validation-problems", "validation")):
        path = out / f"{split}.parquet"
        write_problems("division", DataConfig(split=split, limit=12), out=path)
        inputs += [f"--{option}", str(path)]
    return inputs


def first_traces_equal(whole: Path, other: Path) -> bool:
    """Whether the first update's traces, which the same policy has sampled, are the same."""
    ours, theirs = (
        pl.read_parquet(min((run / "iterations").glob("*/traces.parquet"))).head(TRACES) for run in (whole, other)
    )
    return ours.equals(theirs)


def print_spread(name: str, kinds: list[str], found: dict[str, Any]) -> None:
    """The tables of a run of several processes: kills by part and kind, and what it ended with."""
    counts = {(part, kind): count for part, kind, count in found["killed"]}
    print(f"\n| {name}: killed in | " + " | ".join(kinds) + " |\n|---|" + "---|" * len(kinds))
    for part in dict.fromkeys(part for part, _ in counts):
        print(f"| {part} | " + " | ".join(str(counts.get((part, kind), "")) for kind in kinds) + " |")
    columns = ["against the same way left alone", "against one process", "left alone against one process"]
    print("\n| | " + " | ".join(columns) + " |\n|---|" + "---|" * len(columns))
    for key in found[columns[0]]:
        print(f"| {key} | " + " | ".join(f"{found[column][key]:.3g}" for column in columns) + " |")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--rounding", type=int, default=0, help="Kills of a run whose roundings differ.")
    parser.add_argument("--fills", type=int, default=20, help="How often the disk is filled.")
    for name in ("disk", "clock"):
        parser.add_argument(f"--{name}", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--torchrun", type=int, default=0, help="Processes of a run under torchrun, which is killed.")
    parser.add_argument("--ray", metavar="local|auto|ADDRESS", help="Cluster of a run on Ray, which is killed.")
    parser.add_argument("--spread-kills", type=int, default=20, help="Kills of each run of several processes.")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True, help="A folder that does not exist yet.")
    options = parser.parse_args()
    torch.set_num_threads(1)
    options.out.mkdir(parents=True)
    recipe = options.out / "recipe.toml"
    recipe.write_text(RECIPE)
    if options.torchrun or options.ray:
        spread_runs(options, recipe)
    if not (options.kills or options.rounding or options.disk or options.clock):
        return
    print("a run left alone", flush=True)
    finish(recipe, options.out / "whole", [])
    check_learned(options.out / "whole")
    log = options.out / "whole.log"
    # Once more in a child, which tells what each part takes.
    if Child(command(recipe, options.out / "told", []), options.out / "told.said", log, STAGE1).wait():
        raise SystemExit((options.out / "told.said").read_text())
    report = disturb(options, recipe, moments_of(log))
    kinds = [name for name in ("exact", "rounding") if name in report]
    print("\n| killed in | " + " | ".join(kinds) + " |\n|---|" + "---|" * len(kinds))
    for part in sorted({part for name in kinds for part in report[name]["disturbed"]}):
        print(f"| {part} | " + " | ".join(str(report[name]["disturbed"][part]) for name in kinds) + " |")
    print("\n| against the run left alone | " + " | ".join(report) + " |\n|---|" + "---|" * len(report))
    for key in next(iter(report.values()))["found"]:
        print(f"| {key} | " + " | ".join(f"{each['found'][key]:.3g}" for each in report.values()) + " |")
    print(json.dumps(report))


if __name__ == "__main__":
    main()
