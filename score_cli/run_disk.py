"""Whether the disk has room for what a run has still to write: by prediction at its start, by measure at each save."""

import shutil
from dataclasses import dataclass
from pathlib import Path

from score_cli.config import EvalConfig, SampleConfig, UpdateConfig
from score_cli.doctor.cards import CARDS, CPU, GIB, Assumptions
from score_cli.doctor.duration import disk_bytes
from score_cli.doctor.memory import MIB, Job
from score_cli.doctor.shape import read_shape
from score_cli.errors import NoRoomError
from score_cli.run_config import RunConfig
from score_cli.run_folder import RunFolder
from score_cli.tables.adapters import has_adapter


@dataclass(frozen=True)
class Disk:
    """What a run will have written by its end, in bytes.

    Attributes:
        checkpoints: the most that lie there at a time.
        traces: of all updates.
    """

    checkpoints: float
    traces: float


def predicted_disk(
    base: Path, *, sample: SampleConfig, train: UpdateConfig, evaluate: EvalConfig, run: RunConfig
) -> Disk | None:
    """As `score doctor` predicts it; None where the base is an adapter, whose size its configuration does not say."""
    if has_adapter(base):
        return None
    job = Job(
        shape=read_shape(base),
        card=CARDS[CPU],
        sample=sample,
        train=train,
        evaluate=evaluate,
        vllm=False,
        workers=None,
        assumptions=Assumptions(),
    )
    (_, checkpoints), (_, traces) = disk_bytes(job, run)
    return Disk(checkpoints, traces)


def check_room(folder: RunFolder, predicted: Disk) -> str | None:
    """See, before anything is trained, that the checkpoints have room.

    Returns:
        A warning, where the traces may have none: their lengths are a guess.
    Raises:
        NoRoomError: the checkpoints have none.
    """
    free = free_bytes(folder.root)
    traces = bytes_of(folder.updates.root)
    checkpoints = max(0.0, predicted.checkpoints - sum(map(bytes_of, folder.checkpoints())))
    if free < checkpoints:
        raise NoRoomError(
            f"{folder.root} is on a disk with {in_words(free)} free, and the run's checkpoints take "
            f"{in_words(checkpoints)} more: make room, or name another --out"
        )
    traces_to_come = max(0.0, predicted.traces - traces)
    if free < checkpoints + traces_to_come:
        return (
            f"{folder.root} is on a disk with {in_words(free)} free, and the run will write about "
            f"{in_words(checkpoints + traces_to_come)}: it stops where no room is left, and goes on once there is some"
        )
    return None


def check_next_save(folder: RunFolder, saved: Path, finished: int, every: int) -> None:
    """See, once a policy is kept, that the disk has room until the next one is.

    Args:
        saved: the checkpoint that was just written; the next is as large, and is written before this one goes.
        every: updates between two; as much is written as in the latest of them.
    Raises:
        NoRoomError: it has not.
    """
    latest = folder.updates.places(range(max(0, finished - every), finished))
    needed = bytes_of(saved) + sum(bytes_of(place) for place in latest) + MIB
    free = free_bytes(folder.root)
    if free < needed:
        raise NoRoomError(
            f"stopped after update {finished - 1}, with its policy kept: the disk of {folder.root} has "
            f"{in_words(free)} free, and the run writes about {in_words(needed)} up to its next checkpoint: make room, "
            "and run the same command again"
        )


def free_bytes(folder: Path) -> int:
    """What a folder's disk has room for."""
    return shutil.disk_usage(folder).free


def bytes_of(folder: Path) -> int:
    """The sizes of a folder's files together."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def in_words(count: float) -> str:
    """Bytes as a person reads them."""
    return f"{count / GIB:.3g} GiB" if count >= GIB / 10 else f"{count / MIB:.3g} MiB"
