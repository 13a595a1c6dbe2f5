"""Shards, parts and merging: the same bytes for one shard or three, killed or not."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from score_cli.cli import run_command
from score_cli.config import SampleConfig
from score_cli.errors import UserError
from score_cli.sampling.transformers_engine import TransformersEngine
from score_cli.stages.sample import Shard, merge, sample
from score_cli.tables.atomic import resumable_folder
from score_cli.tables.checkpoints import load_policy
from score_cli.tables.parquet import TRACES, read_footer
from score_cli.tables.traces import read_traces
from tests.conftest import rewrite, write_checkpoint
from tests.killed_sampler import CONFIG  # six chunks of two problems


@pytest.fixture
def folder(tmp_path: Path, checkpoint: Path, problems: Path) -> Path:
    """A checkpoint, its problems, and the traces of one whole run."""
    sample_into(tmp_path / "whole.parquet", CONFIG)
    return tmp_path


def sample_into(out: Path, config: SampleConfig, *, model: str = "ckpt", overwrite: bool = False) -> None:
    folder = out.parent
    policy = load_policy(folder / model)
    sample(config, policy=policy, problems=folder / "problems.parquet", out=out, overwrite=overwrite)


def hidden(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir() if path.name.startswith(".")]


class StoppedError(Exception):
    """Stands for whatever ends a job."""


@pytest.fixture
def chunks_until_interrupt(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Sampling raises once the first entry is used up; every chunk sampled adds its size to the list."""
    plain = TransformersEngine.generate
    budget: list[int] = [1_000_000]

    def generate(self: TransformersEngine, rollouts: list[object], decoding: object) -> None:
        if budget[0] == 0:
            raise StoppedError
        budget[0] -= 1
        budget.append(len(rollouts))
        plain(self, rollouts, decoding)  # type: ignore[arg-type]

    monkeypatch.setattr(TransformersEngine, "generate", generate)
    return budget


@pytest.mark.pipeline
def test_a_job_killed_at_any_moment_ends_with_the_bytes_of_one_that_was_not(folder: Path) -> None:
    """Killed while sampling, while writing a part, while joining, and before cleaning up."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.killed_sampler", folder], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    # Each process samples what no other has finished, and at most its own chunk in flight again:
    # chunk 0 | 0, 1, 2 | 2, 3 | 3, 4, 5 | none | none.
    assert json.loads(done.stdout) == [1, 3, 2, 3, 0, 0]
    assert (folder / "killed.parquet").read_bytes() == (folder / "whole.parquet").read_bytes()
    assert hidden(folder) == []


@pytest.mark.parametrize("count", [1, 3, 4, 6])
def test_merged_shards_are_the_file_of_one_run(folder: Path, count: int) -> None:
    """Six chunks in four shards make shards of different size; the order the files are given in means nothing."""
    files = [folder / f"shard-{number}.parquet" for number in range(1, count + 1)]
    for number, file in enumerate(files, start=1):
        sample_into(file, replace(CONFIG, shard=f"{number}/{count}"))
    assert run_command(["merge", *map(str, files[::-1]), "--out", str(folder / "merged.parquet")]) == 0
    assert (folder / "merged.parquet").read_bytes() == (folder / "whole.parquet").read_bytes()
    held = [trace.problem_id for file in files for trace in read_traces(file)]
    assert held == [trace.problem_id for trace in read_traces(folder / "whole.parquet")]


def test_a_chunk_is_a_row_group(folder: Path) -> None:
    import pyarrow.parquet as pq

    metadata = pq.ParquetFile(folder / "whole.parquet").metadata
    assert [metadata.row_group(index).num_rows for index in range(metadata.num_row_groups)] == [4] * 6


def test_shards_of_a_drawn_iteration_with_open_settings_are_alike(folder: Path) -> None:
    """The room for tokens and the problems drawn are those of the whole job, not of the shard."""
    config = replace(CONFIG, problems_per_iteration=7, iteration=3, max_tokens=None, samples=1)
    sample_into(folder / "drawn.parquet", config)
    files = [folder / f"drawn-{number}.parquet" for number in (1, 2)]
    for number, file in enumerate(files, start=1):
        sample_into(file, replace(config, shard=f"{number}/2"))
    merge(files, out=folder / "merged.parquet")
    assert (folder / "merged.parquet").read_bytes() == (folder / "drawn.parquet").read_bytes()


def test_an_interrupted_job_goes_on_from_its_parts(folder: Path, chunks_until_interrupt: list[int]) -> None:
    out = folder / "traces.parquet"
    chunks_until_interrupt[0] = 4
    with pytest.raises(StoppedError):
        sample_into(out, CONFIG)
    assert not out.exists() and hidden(folder) == [".traces.parquet.parts"]
    chunks_until_interrupt[:] = [1_000_000]
    sample_into(out, CONFIG)
    assert chunks_until_interrupt[1:] == [4, 4], "two chunks of two problems with two samples were left"
    assert out.read_bytes() == (folder / "whole.parquet").read_bytes()
    assert hidden(folder) == []


CHANGES = [
    {"seed": 7},
    {"temperature": 0.5},
    {"max_tokens": 4},
    {"correction": "<check>"},
    {"iteration": 1},
    {"problems_per_iteration": 12},
    {"shard": "1/1"},
]


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: next(iter(change)))
def test_parts_of_other_settings_are_not_used(
    folder: Path, chunks_until_interrupt: list[int], change: dict[str, object]
) -> None:
    out = folder / "traces.parquet"
    chunks_until_interrupt[0] = 3
    with pytest.raises(StoppedError):
        sample_into(out, CONFIG)
    chunks_until_interrupt[:] = [1_000_000]
    other = replace(CONFIG, **change)  # type: ignore[arg-type]
    sample_into(out, other)
    assert len(chunks_until_interrupt) == 1 + 6
    sample_into(folder / "straight.parquet", other)
    assert out.read_bytes() == (folder / "straight.parquet").read_bytes()
    assert hidden(folder) == []


def test_parts_of_another_policy_or_other_problems_are_not_used(
    folder: Path, chunks_until_interrupt: list[int]
) -> None:
    write_checkpoint(folder / "other", seed=1)
    out = folder / "traces.parquet"
    for model, question in (("other", None), ("ckpt", "Divide 7 by 3. ")):
        chunks_until_interrupt[:] = [2]
        with pytest.raises(StoppedError):
            sample_into(out, CONFIG, overwrite=True)
        if question is not None:
            rewrite(folder / "problems.parquet", lambda row, text=question: row.update(question=text))  # type: ignore[misc]
        chunks_until_interrupt[:] = [1_000_000]
        sample_into(out, CONFIG, model=model, overwrite=True)
        assert len(chunks_until_interrupt) == 1 + 6, model


def test_a_damaged_part_is_sampled_again(folder: Path, chunks_until_interrupt: list[int]) -> None:
    out = folder / "traces.parquet"
    chunks_until_interrupt[0] = 3
    with pytest.raises(StoppedError):
        sample_into(out, CONFIG)
    part = folder / ".traces.parquet.parts" / "00001.parquet"
    part.write_bytes(part.read_bytes()[:-20])
    chunks_until_interrupt[:] = [1_000_000]
    sample_into(out, CONFIG)
    assert len(chunks_until_interrupt) == 1 + 4
    assert out.read_bytes() == (folder / "whole.parquet").read_bytes()


def test_two_processes_do_not_write_the_same_output(folder: Path) -> None:
    out = folder / "traces.parquet"
    with resumable_folder(out), pytest.raises(UserError, match="another process is writing .*traces.parquet"):
        sample_into(out, CONFIG)
    sample_into(out, CONFIG)
    assert out.read_bytes() == (folder / "whole.parquet").read_bytes()


def test_a_job_that_fails_before_its_first_part_leaves_nothing(folder: Path, chunks_until_interrupt: list[int]) -> None:
    chunks_until_interrupt[0] = 0
    with pytest.raises(StoppedError):
        sample_into(folder / "traces.parquet", CONFIG)
    assert hidden(folder) == []


@pytest.mark.parametrize("text", ["0/3", "4/3", "1", "1/", "/3", "-1/3", "1/3/5", "a/b", "1.0/2", "¹/3", ""])
def test_what_is_no_shard_is_refused(text: str) -> None:
    with pytest.raises(UserError, match="expected I/N with I from 1 to N, such as 1/3"):
        Shard.parse(text)


def test_slices_after_one_another_are_all_chunks_and_differ_by_one_at_most() -> None:
    for size in range(1, 20):
        for count in range(1, size + 1):
            slices = [Shard(part, count).slice(range(size)) for part in range(1, count + 1)]
            assert [chunk for piece in slices for chunk in piece] == list(range(size))
            assert max(map(len, slices)) - min(map(len, slices)) <= 1
    with pytest.raises(UserError, match="only 2 chunks of problems: use at most 2 shards"):
        Shard(1, 3).slice(range(2))


def test_what_is_not_every_shard_of_one_job_is_not_merged(folder: Path) -> None:
    def shard(name: str, **settings: object) -> Path:
        out = folder / f"{name}.parquet"
        if not out.exists():
            sample_into(out, replace(CONFIG, **settings))  # type: ignore[arg-type]
        return out

    first, second = shard("a", shard="1/2"), shard("b", shard="2/2")
    cases = {
        "shard 2/2 is missing: sample it with --shard 2/2": [first],
        "are both shard 1/2: give each shard once": [first, first, second],
        "whole.parquet is not a shard": [first, folder / "whole.parquet"],
        "another seed": [first, shard("seed", shard="2/2", seed=7)],
        "temperature is 0.5, not 1.0": [first, shard("temperature", shard="2/2", temperature=0.5)],
        "is one of 2 shards, but .* is shard 2/3": [first, second, shard("third", shard="2/3")],
        "does not exist": [first, folder / "absent.parquet"],
    }
    for message, files in cases.items():
        with pytest.raises(UserError, match=message):
            merge(files, out=folder / "merged.parquet")
    assert not (folder / "merged.parquet").exists() and hidden(folder) == []


def test_the_footer_of_a_shard_says_which_one_it_is(folder: Path) -> None:
    sample_into(folder / "a.parquet", replace(CONFIG, shard="01/2"))
    found, whole = (read_footer(folder / name, TRACES) for name in ("a.parquet", "whole.parquet"))
    assert found is not None and whole is not None
    assert found.config == whole.config | {"shard": "1/2"} and whole.config["shard"] is None
