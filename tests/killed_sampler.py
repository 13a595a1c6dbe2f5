"""Samples in child processes that kill themselves (SIGKILL) at chosen moments, then once to the end.

    python -m tests.killed_sampler FOLDER      FOLDER holds ckpt and problems.parquet

Prints, as JSON, how many chunks each process sampled. Children are forked before torch computes
anything, so that one start-up serves them all.
"""

import json
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from score_cli.config import SampleConfig
from score_cli.sampling.transformers_engine import TransformersEngine
from score_cli.stages.sample import sample
from score_cli.tables import atomic, parquet
from score_cli.tables.checkpoints import load_policy

CONFIG = SampleConfig(samples=2, max_tokens=5, threads=1, chunk_problems=2)  # twelve problems: six chunks


def die(*_: object, **__: object) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def dying_after(calls: int, function: Callable[..., Any]) -> Callable[..., Any]:
    """The function, but its call after `calls` others does its work and dies before it returns."""
    done = 0

    def wrapped(*arguments: Any, **named: Any) -> Any:
        nonlocal done
        result = function(*arguments, **named)
        done += 1
        return die() if done > calls else result

    return wrapped


def while_sampling(chunk: int) -> None:
    TransformersEngine.generate = dying_after(chunk, TransformersEngine.generate)  # type: ignore[method-assign]


def while_writing_a_part() -> None:
    """After a part's bytes are on disk under its temporary name, before its rename."""
    atomic._sync = dying_after(2, atomic._sync)


def while_joining() -> None:
    parquet.TableWriter.copy_row_groups = dying_after(2, parquet.TableWriter.copy_row_groups)  # type: ignore[method-assign]


def after_the_end() -> None:
    """The output has its name, the parts are still there."""
    real = atomic.shutil.rmtree
    atomic.shutil.rmtree = lambda path, *a, **k: (  # type: ignore[assignment]
        die() if str(path).endswith(".parts") else real(path, *a, **k)
    )


MOMENTS: list[Callable[[], None]] = [
    lambda: while_sampling(0),
    lambda: while_sampling(2),
    while_writing_a_part,
    while_joining,
    after_the_end,
]


def sample_here(folder: Path, counts: Path) -> None:
    plain = TransformersEngine.generate

    def counted(self: TransformersEngine, *arguments: Any) -> None:
        with counts.open("a") as stream:
            stream.write("1")
        plain(self, *arguments)

    TransformersEngine.generate = counted  # type: ignore[method-assign]
    sample(
        CONFIG,
        policy=load_policy(folder / "ckpt"),
        problems=folder / "problems.parquet",
        out=folder / "killed.parquet",
        overwrite=True,
    )


def main(folder: Path) -> None:
    sampled = []
    for number, prepare in enumerate([*MOMENTS, lambda: None]):
        counts = folder / f"count-{number}"
        counts.touch()
        child = os.fork()
        if child == 0:
            prepare()
            sample_here(folder, counts)
            os._exit(0)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        expected = 0 if number == len(MOMENTS) else -signal.SIGKILL
        assert status == expected, f"process {number} ended with {status}, expected {expected}"
        sampled.append(len(counts.read_text()))
    print(json.dumps(sampled))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
