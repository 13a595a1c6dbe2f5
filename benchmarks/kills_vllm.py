"""Kill a run that vLLM samples for, in several parts of its work, and see that it goes on to a policy that is proved.

    VLLM_CPU_KVCACHE_SPACE=2 python benchmarks/kills_vllm.py --out /tmp/kills-vllm

The recipe of `kills.py`, with a wider base: vLLM's heads have 32 numbers or more on the CPU. A start takes most of a
minute, so the kills are few. vLLM's answers are not the same twice to the last bit, so there is no run to compare with:
updates are taken again from their files (`score replay`), and have to give the policy that the run went on with.
"""

import argparse
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import polars as pl
from kills import RECIPE, check_learned

from score_cli.run_log import read_log

UPDATES = 10
PATIENCE = 300.0
# Seconds after which vLLM's own process is there and has not answered yet.
START = 25.0


def logged(run: Path) -> int:
    """Updates that the run has told of."""
    return len(read_log(run / "log.jsonl"))


def moments(run: Path) -> list[tuple[str, Callable[[], bool]]]:
    """Where to kill: in words, and whether the run has come so far."""
    iterations = run / "iterations"
    return [
        ("while vLLM starts", lambda: (base := run / "base").exists() and time.time() - base.stat().st_mtime > START),
        ("sampling of update 1", lambda: logged(run) >= 1),
        ("learning from update 3", lambda: (iterations / "0003" / "traces.parquet").exists()),
        ("keeping the policy after Stage I", lambda: any(run.glob(".stage1.score-*"))),
        ("sampling of update 8, Stage II", lambda: logged(run) >= 8),
        ("evaluation", lambda: (run / "eval").exists()),
    ]


def children(parent: int) -> list[int]:
    """The processes beneath a process."""
    found = []
    for task in Path(f"/proc/{parent}/task").glob("*/children"):
        for child in map(int, task.read_text().split()):
            found += [child, *children(child)]
    return found


def kill_at(command: list[str], said: Path, reached: Callable[[], bool]) -> list[int]:
    """Start the run, kill its first process once it has come so far; returns vLLM's processes of that moment."""
    with said.open("w") as output:
        started = subprocess.Popen(command, stdout=output, stderr=output)
    deadline = time.monotonic() + PATIENCE
    while not reached():
        if started.poll() is not None or time.monotonic() > deadline:
            started.kill()
            raise SystemExit(f"the run did not come so far: {said.read_text()[-500:]}")
        time.sleep(0.002)
    left = children(started.pid)
    started.kill()
    started.wait()
    return left


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--out", type=Path, required=True, help="A folder that does not exist yet.")
    out: Path = parser.parse_args().out
    out.mkdir(parents=True)
    recipe, run = out / "recipe.toml", out / "run"
    recipe.write_text(
        RECIPE.replace("[base]\n", "[base]\nwidth = 128\n").replace("[sample]\n", '[sample]\nengine = "vllm"\n')
    )
    score = [sys.executable, "-m", "score_cli"]
    command = [*score, "run", str(recipe), "--out", str(run), "--limit", "12"]
    for name, reached in moments(run):
        left, began = kill_at(command, out / "said.txt", reached), time.monotonic()
        while any(Path(f"/proc/{each}").exists() for each in left) and time.monotonic() < began + 60:
            time.sleep(0.1)
        alive = [each for each in left if Path(f"/proc/{each}").exists()]
        for each in alive:
            os.kill(each, signal.SIGKILL)
        print(
            f"killed in {name}; {logged(run)} updates done; {len(left)} processes of vLLM's, {len(alive)} of them left "
            f"after {time.monotonic() - began:.1f} s",
            flush=True,
        )
    subprocess.run(command, check=True, capture_output=True)
    updates = [entry["update"] for entry in read_log(run / "log.jsonl")]
    if updates != list(range(UPDATES)):
        raise SystemExit(f"the log tells of updates {updates}")
    check_learned(run)
    for update in (4, 9):  # the last of each stage: from the checkpoint kept before it to the stage's end
        replayed = subprocess.run(
            [*score, "replay", str(run), "--iteration", str(update)], check=True, capture_output=True, text=True
        )
        print(replayed.stdout.strip())
    curve = pl.read_parquet(run / "train_metrics.parquet").filter(pl.col("name") == "logprob_diff_abs")
    print(f"largest mean difference of the logprobs of vLLM and the trainer: {curve['value'].max():.2g} nats a token")


if __name__ == "__main__":
    main()
