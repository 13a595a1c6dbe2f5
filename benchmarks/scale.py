"""Time and peak memory of the commands that read traces, on generated tables of growing size.

    python benchmarks/scale.py --traces 10000,100000 --out /tmp/scale

Traces of two attempts at the built-in task's problems, eight a problem, about fifty tokens each: nothing is sampled.
Each command runs in a process of its own; its processor time and its largest resident memory are the kernel's. The
last table says what a further trace costs, from the two largest sizes: what grows with the rows and what does not.
"""

import argparse
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from score_cli.tables.parquet import TRACES, writing_table
from score_cli.tables.problems import write_problems_table
from score_cli.tables.provenance import Footer, file_sha256
from score_cli.tables.records import Problem, Trace
from score_cli.tables.traces import trace_row

SAMPLES = 8
ROWS = 512
MIB = 2**20
# The join of an update, without the update: a batch of a hundred thousand traces would be nobody's.
JOIN = """
import sys; from pathlib import Path; from score_cli.tables.traces import read_graded
found = read_graded(Path(sys.argv[1]), Path(sys.argv[2])); print(len(found.traces))
"""


class Cost(NamedTuple):
    """Of one command: processor seconds, and peak memory in MiB."""

    seconds: float
    memory: float


def write_tables(folder: Path, count: int) -> None:
    """Problems and traces, a part at a time."""
    folder.mkdir(parents=True)
    problems = [
        Problem(problem_id=f"p{n}", task="division", question=f"Divide {n} by 7. ", answer=str(n // 7), source="made")
        for n in range(count // SAMPLES)
    ]
    write_problems_table(folder / "problems.parquet", problems, Footer(table="problems", stage="data"))
    footer = Footer(
        table="traces",
        stage="sample",
        config={"temperature": 1.0, "engine": "transformers"},
        inputs={"problems": file_sha256(folder / "problems.parquet")},
        policy="made up",
    )
    with writing_table(folder / "made.traces.parquet", TRACES, footer) as writer:
        for start in range(0, len(problems), ROWS // SAMPLES):
            writer.write_rows([trace_row(trace) for trace in traces(problems[start : start + ROWS // SAMPLES], start)])


def traces(problems: list[Problem], seed: int) -> Iterator[Trace]:
    """Eight of each problem; about a third of the attempts are right."""
    draw = np.random.default_rng(seed)
    owners = np.repeat(np.array([0, 1, 0, 2], np.int8), [20, 12, 8, 12])
    for problem in problems:
        for sample in range(SAMPLES):
            right = draw.random(2) < 1 / 3
            answers = [int(problem.answer or 0) + (0 if each else int(draw.integers(1, 9))) for each in right]
            yield Trace(
                problem_id=problem.problem_id,
                sample_index=sample,
                attempts=[f"\\boxed{{{answer}}}: product {7 * answer}" for answer in answers],
                finish_reasons=["stop", "stop"],
                token_ids=draw.integers(0, 64, len(owners), dtype=np.int32),
                attempt_ids=owners,
                logprobs=np.where(owners > 0, -draw.random(len(owners)), 0).astype(np.float32),
                offline_attempts=0,
                roles=None,
            )


def run(*arguments: object) -> Cost:
    """What a command takes; it has to end well."""
    child = os.fork()
    if not child:
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, 1)
        os.execv(sys.executable, [sys.executable, *map(str, arguments)])
    _, status, used = os.wait4(child, 0)
    if status:
        raise SystemExit(f"{arguments} ended with status {status}")
    return Cost(used.ru_utime + used.ru_stime, used.ru_maxrss * 1024 / MIB)


def costs(folder: Path) -> dict[str, Cost]:
    """Every command on the tables of a folder."""
    score = ("-m", "score_cli")
    made, problems = folder / "made.traces.parquet", folder / "problems.parquet"
    rewards = folder / "made.rewards.parquet"
    found = {"verify": run(*score, "verify", "--traces", made, "--problems", problems, "--out", rewards)}
    found["train's join"] = run("-c", JOIN, made, rewards)
    measured = ("--traces", made, "--problems", problems, "--out", folder / "metrics.parquet")
    found["eval --traces"] = run(*score, "eval", *measured)
    found["show"] = run(*score, "show", made, "--limit", 5)
    (folder / "eval").mkdir()
    for name in ("traces", "rewards"):
        os.link(folder / f"made.{name}.parquet", folder / "eval" / f"made-sampled.{name}.parquet")
    (folder / "metrics.parquet").unlink()
    found["report"] = run(*score, "report", folder)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--traces", default="10000,100000", help="Sizes, with commas between.")
    parser.add_argument("--out", type=Path, required=True, help="A folder that does not exist yet.")
    options = parser.parse_args()
    found: dict[int, dict[str, Cost]] = {}
    for count in sorted(map(int, options.traces.split(","))):
        write_tables(options.out / str(count), count)
        found[count] = costs(options.out / str(count))
        print(f"{count}: {found[count]}", flush=True)
    print(
        "\n| command | "
        + " | ".join(f"{count:,} traces: s, MiB" for count in found)
        + " | a further trace: us, bytes |"
    )
    print("|---|" + "---|" * (len(found) + 1))
    small, large = list(found)[-2:]
    report: dict[str, Any] = {}
    for name in found[large]:
        cells = [f"{each[name].seconds:.1f}, {each[name].memory:.0f}" for each in found.values()]
        more = large - small
        seconds = (found[large][name].seconds - found[small][name].seconds) / more
        memory = (found[large][name].memory - found[small][name].memory) * MIB / more
        print(f"| {name} | " + " | ".join(cells) + f" | {1e6 * seconds:.0f}, {memory:.0f} |")
        report[name] = {str(count): each[name]._asdict() for count, each in found.items()}
    print(json.dumps(report))


if __name__ == "__main__":
    main()
