"""A disk that fills: refused before the run, stopped between updates, and gone on from once there is room."""

import shutil
import subprocess
from collections import namedtuple
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import pytest

from score_cli.config import EvalConfig, SampleConfig, Stage2Config
from score_cli.errors import NoRoomError
from score_cli.run import Run, RunInputs
from score_cli.run_config import RunConfig
from score_cli.run_disk import Disk, check_next_save, check_room, predicted_disk
from score_cli.run_folder import RunFolder
from score_cli.tables.atomic import replacing_folder
from score_cli.tables.records import Problem, Trace, Verdict
from score_cli.verification.grader import Grader
from tests.runs import digests, invent, recipe

Usage = namedtuple("Usage", "free")
MIB = 2**20


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunFolder:
    """A run's folder with 3 MiB of checkpoints and 2 of traces besides its base and tables, and 10 MiB free."""
    files = {
        **{"stage1/trainer/moments": 1, "latest/0004/model": 2, "iterations/0002-0003/t": 1, "iterations/0004/t": 1},
        **{"base/trainer/state": 5, "eval/traces": 7, "solves": 4},
    }
    for name, size in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(bytes(size * MIB))
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(10 * MIB))
    return RunFolder(tmp_path)


def test_what_lies_there_already_need_not_be_written(folder: RunFolder) -> None:
    assert check_room(folder, Disk(checkpoints=13 * MIB, traces=2 * MIB)) is None
    with pytest.raises(NoRoomError, match=r"with 10 MiB free, and the run's checkpoints take 11 MiB more: make room"):
        check_room(folder, Disk(checkpoints=14 * MIB, traces=2 * MIB))
    # Their lengths are a guess: a warning, not a refusal.
    warning = check_room(folder, Disk(checkpoints=4 * MIB, traces=12 * MIB))
    assert warning is not None and "10 MiB free, and the run will write about 11 MiB" in warning


def test_a_save_needs_as_much_room_as_the_latest_and_its_updates(
    folder: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved = folder.next_kept(4)
    # 2 of the checkpoint, 1 of update 4, 1 to spare; with two updates a save also the folder that holds update 3.
    for every, needed in ((1, 4), (2, 5)):
        monkeypatch.setattr(shutil, "disk_usage", lambda path, free=needed: Usage(free * MIB))
        check_next_save(folder, saved, 5, every)
        monkeypatch.setattr(shutil, "disk_usage", lambda path, free=needed: Usage(free * MIB - 1))
        with pytest.raises(NoRoomError, match=rf"stopped after update 4, .* writes about {needed} MiB up to its next"):
            check_next_save(folder, saved, 5, every)


def test_the_prediction_is_that_of_doctor(checkpoint: Path) -> None:
    run = RunConfig(stage1_iterations=3, stage2_iterations=7, keep_checkpoints=2)
    found = predicted_disk(
        checkpoint,
        sample=SampleConfig(problems_per_iteration=5, samples=2, max_tokens=100),
        train=Stage2Config(),
        evaluate=EvalConfig(),
        run=run,
    )
    weights = (checkpoint / "model.safetensors").stat().st_size
    # Two stages' ends, two kept and one being written; 4 bytes of a weight and 8 of its moments.
    assert found is not None and found.checkpoints == pytest.approx(5 * 3 * weights, rel=0.05)
    # Ten updates of ten traces: a prompt of 150 tokens, two attempts of 40, 60 between them, 8 bytes a token.
    assert found.traces == 10 * 10 * (150 + 2 * 40 + 60) * 8


def test_every_phase_leaves_a_checkpoint_and_a_supervised_one_no_moments(checkpoint: Path) -> None:
    stages = {"stage1_iterations": 3, "stage1_by_attempt": True, "stage2_iterations": 7}
    found = predicted_disk(
        checkpoint,
        sample=SampleConfig(problems_per_iteration=5, samples=2, max_tokens=100, attempts=3),
        train=Stage2Config(),
        evaluate=EvalConfig(),
        run=RunConfig(start="author", sft_rounds=2, best_every=1, **stages),
    )
    weights = (checkpoint / "model.safetensors").stat().st_size
    # The ends of start and sft; with moments of Stage I twice and of Stage II, the best, one kept, one being written.
    assert found is not None and found.checkpoints == pytest.approx((2 + 6 * 3) * weights, rel=0.05)
    # Three updates with two attempts, and ten with three.
    assert found.traces == (3 * (150 + 2 * 40 + 60) + 10 * (150 + 3 * 40 + 2 * 60)) * 10 * 8


def test_a_library_that_finds_no_room_in_its_own_words_is_understood(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="No space left on device") as caught, replacing_folder(tmp_path / "out"):
        raise RuntimeError("Error while serializing: I/O error: No space left on device (os error 28)")
    assert (caught.value.errno, caught.value.filename) == (28, str(tmp_path / "out"))
    with pytest.raises(RuntimeError), replacing_folder(tmp_path / "out"):
        raise RuntimeError("something else (os error 5)")
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", disk], capture_output=True, check=False)
    if mounted.returncode:
        pytest.skip("needs the right to mount a small disk")
    yield disk
    # Lazily: weights that were read from it may still be mapped.
    subprocess.run(["umount", "--lazy", disk], check=True)


@pytest.mark.pipeline
def test_a_run_whose_disk_fills_up_goes_on_once_there_is_room(
    tmp_path: Path, checkpoint: Path, problems: Path, monkeypatch: pytest.MonkeyPatch, small_disk: Path
) -> None:
    """Somebody else fills it while an update is graded, and leaves room for more and more files each time."""
    ballast, files, room = small_disk / "ballast", tmp_path / "whole", {"left": 0}

    def fill(grader: Grader, traces: Sequence[Trace], problems: Mapping[str, Problem]) -> list[Verdict]:
        if room["left"] and not ballast.exists():
            ballast.write_bytes(bytes(max(0, shutil.disk_usage(small_disk).free - room["left"])))
        return invent(grader, traces, problems)

    monkeypatch.setattr(Grader, "grade", fill)
    start = RunInputs(model=checkpoint, problems=problems, eval_problems=problems)
    made = recipe(stage1_iterations=2, stage2_iterations=2)
    Run(made, files, start).execute()
    folder, stopped = small_disk / "run", []
    for room["left"] in (1, 60_000, 200_000, 700_000, 0):
        try:
            Run(made, folder, start).execute()
        except (NoRoomError, OSError) as error:
            stopped.append(str(error))
        ballast.unlink(missing_ok=True)
    assert "No space left on device" in stopped[0] and "traces.parquet" in stopped[0]
    assert "up to its next checkpoint" in stopped[-1]
    assert digests(folder) == digests(files)
