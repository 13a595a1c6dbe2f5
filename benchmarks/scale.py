"""Time and peak memory of the commands that read traces, on generated tables of growing size.

    python benchmarks/scale.py --traces 10000,100000 --out /tmp/scale

Traces of two attempts at the built-in task's problems, 52 tokens each: nothing is sampled.
Their rewards and signals are made up with them; `verify` grades the traces into another file, and `escalate` hands
their first answers over to their own second ones.
Each command runs in a process of its own; its processor time and its largest resident memory are the kernel's. The
last table says what a further trace costs, from the two largest sizes: what grows with the rows and what does not.
"""

import argparse
import json
import os
import sys
from collections.abc import Collection
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from score_cli.tables.parquet import REWARDS, SIGNALS, TRACES, Table
from score_cli.tables.problems import write_problems_table
from score_cli.tables.provenance import FOOTER_KEY, Footer, file_sha256
from score_cli.tables.records import Problem

ROWS = 4096
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


def write_tables(folder: Path, count: int, samples: int) -> None:
    """Problems and traces, a row group at a time."""
    folder.mkdir(parents=True)
    problems = [
        Problem(problem_id=f"p{n}", task="division", question=f"Divide {n} by 7. ", answer=str(n // 7), source="made")
        for n in range(count // samples)
    ]
    write_problems_table(folder / "problems.parquet", problems, Footer(table="problems", stage="data"))
    footer = Footer(
        table="traces",
        stage="sample",
        config={"temperature": 1.0, "engine": "transformers"},
        inputs={"problems": file_sha256(folder / "problems.parquet")},
        policy="made up",
    )
    draw = np.random.default_rng(0)
    rewards_footer, signals_footer = Footer(table="rewards", stage="verify"), Footer(table="signals", stage="signal")
    with (
        writing(folder / "made.traces.parquet", TRACES, footer) as traces,
        writing(folder / "made.rewards.parquet", REWARDS, rewards_footer) as rewards,
        writing(folder / "signals.parquet", SIGNALS, signals_footer) as signals,
    ):
        for start in range(0, count, ROWS):
            numbers = np.arange(start, min(start + ROWS, count))
            for writer, table in zip(
                (traces, rewards, signals), graded(numbers // samples, numbers % samples, draw), strict=True
            ):
                writer.write_table(table.cast(writer.schema))


def writing(path: Path, table: Table, footer: Footer) -> pq.ParquetWriter:
    """A writer that takes columns: records of ten million rows would take an hour."""
    return pq.ParquetWriter(path, table.schema.with_metadata({FOOTER_KEY: footer.to_bytes()}), compression="zstd")


def graded(
    problems: NDArray[np.int64], samples: NDArray[np.int64], draw: np.random.Generator
) -> tuple[pa.Table, pa.Table, pa.Table]:
    """Traces of the given problems, their rewards and signals.

    A third of the attempts are right, the others wrong by 1 to 8; the signals know nothing of it.
    """
    rows = len(problems)
    wrong = np.where(draw.random((rows, 2)) < 1 / 3, 0, draw.integers(1, 9, (rows, 2)))
    answers = pl.Series((problems[:, None] // 7 + wrong).ravel())
    boxes = [pl.lit("\\boxed{"), answers.cast(pl.String), pl.lit("}: product "), (7 * answers).cast(pl.String)]
    texts = pl.select(pl.concat_str(boxes)).to_series()
    owners = np.tile(np.repeat(np.array([0, 1, 0, 2], np.int8), [20, 12, 8, 12]), rows)
    tokens = draw.integers(0, 64, len(owners), dtype=np.int32)
    logprobs = np.where(owners > 0, -draw.random(len(owners), dtype=np.float32), np.float32(0))

    def lists(values: Any, each: int) -> pa.Array:
        return pa.ListArray.from_arrays(np.arange(0, rows * each + 1, each, dtype=np.int32), values)

    each = len(owners) // rows
    named = {
        "problem_id": pl.select(pl.format("p{}", pl.Series(problems))).to_series().to_arrow().cast(pa.string()),
        "sample_index": samples.astype(np.int32),
    }
    right = (wrong == 0).ravel()
    traces = pa.table(
        named
        | {
            "attempts": lists(texts.to_arrow().cast(pa.string()), 2),
            "finish_reasons": lists(pa.array(["stop"] * (2 * rows)), 2),
            "token_ids": lists(tokens, each),
            "attempt_ids": lists(owners, each),
            "logprobs": lists(logprobs, each),
            "offline_attempts": np.zeros(rows, np.int8),
        }
    )
    rewards = pa.table(
        named
        | {
            "answers": lists(answers.cast(pl.String).to_arrow().cast(pa.string()), 2),
            "verdicts": lists(pa.array(np.where(right, "correct", "incorrect"), pa.string()), 2),
            "rewards": lists(pa.array(right.astype(np.float32)), 2),
        }
    )
    scores = lists(np.round(draw.random(2 * rows), 2), 2)
    signals = pa.table(
        named
        | {
            "name": ["confidence"] * rows,
            "scores": scores,
            "accepted": lists(pa.nulls(2 * rows, pa.bool_()), 2),
            "values": scores,
        }
    )
    return traces, rewards, signals


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


def costs(folder: Path, only: Collection[str]) -> dict[str, Cost]:
    """Some of the commands on the tables of a folder."""
    score = ("-m", "score_cli")
    made, problems, out = folder / "made.traces.parquet", folder / "problems.parquet", folder / "metrics.parquet"
    rewards = folder / "made.rewards.parquet"
    (folder / "run/eval").mkdir(parents=True)
    for name in ("traces", "rewards"):
        os.link(folder / f"made.{name}.parquet", folder / f"run/eval/made-sampled.{name}.parquet")
        os.link(folder / f"made.{name}.parquet", folder / f"other.{name}.parquet")
    commands = {
        "verify": (*score, "verify", "--traces", made, "--problems", problems, "--out", folder / "graded.parquet"),
        "join": ("-c", JOIN, made, rewards),
        "eval": (*score, "eval", "--traces", made, "--problems", problems, "--out", out),
        "escalate": (
            *(*score, "eval", "--traces", made, "--escalate", folder / "other.traces.parquet"),
            *("--signals", folder / "signals.parquet", "--out", folder / "escalated.parquet"),
        ),
        "show": (*score, "show", made, "--limit", 5),
        "report": (*score, "report", folder / "run"),
    }
    found = {}
    for name, arguments in commands.items():
        if name in only:
            found[name] = run(*arguments)
            print(f"{folder.name} {name}: {found[name]}", flush=True)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--traces", default="10000,100000", help="Sizes, with commas between.")
    parser.add_argument("--samples", type=int, default=64, help="Traces a problem.")
    parser.add_argument(
        "--only", default="verify,join,eval,escalate,show,report", help="Commands, with commas between."
    )
    parser.add_argument("--out", type=Path, required=True, help="A folder that does not exist yet.")
    options = parser.parse_args()
    if "," not in options.traces:
        parser.error("--traces is one size, and the last column is of two: give two or more")
    found: dict[int, dict[str, Cost]] = {}
    for count in sorted(map(int, options.traces.split(","))):
        write_tables(options.out / str(count), count, options.samples)
        found[count] = costs(options.out / str(count), options.only.split(","))
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
