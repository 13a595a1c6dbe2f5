"""The tables of old updates in one folder: one glob reads them, each comes back byte for byte, kills lose none."""

import os
import shutil
import signal
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow.parquet as pq
import pytest

from score_cli.config import ReportConfig
from score_cli.progress import SILENT
from score_cli.report.page import Figures
from score_cli.report.run import run_page
from score_cli.run_folder import RunFolder
from score_cli.show import show_traces
from score_cli.tables.parquet import REWARDS, TRACES, TRAIN_METRICS, read_footer, write_table
from score_cli.tables.provenance import Footer, file_sha256
from score_cli.tables.traces import read_traces, read_verdicts, trace_row, verdict_row
from score_cli.tables.updates import Updates, opened_beside

FILES = ("metrics.parquet", "rewards.parquet", "traces.parquet")


def write_update(batch: Path, folder: Path, number: int) -> None:
    """One update's tables, in two row groups of traces, with other rows and another policy for each."""
    origin = read_footer(batch / "traces.parquet", TRACES)
    assert origin is not None
    traces, verdicts = read_traces(batch / "traces.parquet")[number:], read_verdicts(batch / "rewards.parquet")[number:]
    write_table(
        folder / "traces.parquet",
        TRACES,
        [trace_row(trace) for trace in traces],
        replace(origin, policy=f"policy {number}"),
    )
    inputs = {"traces": file_sha256(folder / "traces.parquet")}
    rows = [verdict_row(verdict) for verdict in verdicts]
    write_table(folder / "rewards.parquet", REWARDS, rows, Footer(table="rewards", stage="verify", inputs=inputs))
    metric = {"stage": "stage1", "iteration": number, "name": "kl", "attempt": 1, "value": number / 8}
    write_table(folder / "metrics.parquet", TRAIN_METRICS, [metric], Footer(table="train_metrics", stage="run"))


@pytest.fixture
def updates(batch: Path, monkeypatch: pytest.MonkeyPatch) -> Updates:
    """Updates 0 to 4, and a disk that is never waited for."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)
    found = Updates(batch / "run" / "iterations")
    for number in range(5):
        write_update(batch, found.folder(number), number)
    return found


def digests(updates: Updates, below: int = 5) -> dict[int, dict[str, str]]:
    found = {}
    for number in updates.numbers()[:below]:
        with updates.opened(number) as folder:
            found[number] = {path.name: file_sha256(path) for path in folder.iterdir()}
    return found


def test_each_updates_tables_come_back_byte_for_byte_and_one_glob_reads_all(updates: Updates) -> None:
    before = digests(updates)
    rows = {name: pl.read_parquet(updates.root / "*" / name) for name in FILES}
    footers = [updates.traces_footer(number) for number in range(5)]
    assert updates.compact(0, 3)
    assert sorted(str(path.relative_to(updates.root)) for path in updates.root.rglob("*.*")) == [
        f"{folder}/{name}" for folder in ("0000-0002", "0003", "0004") for name in FILES
    ]
    assert digests(updates) == before and sorted(before) == [0, 1, 2, 3, 4]
    assert all(pl.read_parquet(updates.root / "*" / name).equals(table) for name, table in rows.items())
    assert [updates.traces_footer(number) for number in range(5)] == footers
    assert [row["value"] for row in updates.metrics(1, 5)] == [1 / 8, 2 / 8, 3 / 8, 4 / 8]
    with opened_beside(updates.folder(1) / "traces.parquet") as path:
        assert file_sha256(path) == before[1]["traces.parquet"]


def test_an_update_that_is_done_again_has_its_own_folder_again(updates: Updates) -> None:
    before = digests(updates)
    updates.compact(0, 2)
    updates.compact(2, 2)
    updates.expand_from(2)  # what begins earlier stays
    assert [path.name for path in sorted(updates.root.iterdir())] == ["0000-0001", "0002", "0003", "0004"]
    assert digests(updates) == before


def test_what_would_be_lost_stays_where_it_is(updates: Updates) -> None:
    note = updates.folder(1) / "note.txt"
    note.write_text("mine")
    assert updates.compact(0, 2) and note.exists()
    assert not updates.compact(1, 2)  # one of them is in another folder
    assert not updates.compact(3, 3)  # there is no update 5
    assert updates.numbers() == [0, 1, 2, 3, 4]


def test_tables_written_otherwise_than_at_first_still_name_each_other(
    updates: Updates, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = digests(updates)[1]["traces.parquet"]
    updates.compact(0, 2)
    # As another version of pyarrow would: equal rows, other bytes.
    writer = partial(pq.ParquetWriter, compression_level=19)
    monkeypatch.setattr(pq, "ParquetWriter", writer)
    with updates.opened(1) as folder:
        found, traces = read_footer(folder / "rewards.parquet", REWARDS), file_sha256(folder / "traces.parquet")
        assert found is not None and traces != before and found.inputs["traces"] == traces


def killed_at(step: int, work: Callable[[], Any]) -> bool:
    """Do some work in a process that is killed before its `step`-th change of the disk; whether it was."""
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    left = step

    def dying(real: Callable[..., Any]) -> Callable[..., Any]:
        def act(*arguments: Any, **named: Any) -> Any:
            nonlocal left
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            left -= 1
            return real(*arguments, **named)

        return act

    for owner, name in ((os, "fsync"), (Path, "rename"), (Path, "unlink"), (Path, "rmdir"), (shutil, "rmtree")):
        setattr(owner, name, dying(getattr(owner, name)))
    work()
    os._exit(0)


@pytest.mark.parametrize("work", ["compact", "expand"])
def test_a_kill_between_any_two_changes_of_the_disk_loses_nothing(updates: Updates, work: str) -> None:
    before = digests(updates, 1)
    if work == "expand":
        updates.compact(0, 1)
    names = sorted(path.name for path in updates.root.iterdir())
    doing = {"compact": lambda: updates.compact(0, 1), "expand": lambda: updates.expand_from(0)}[work]
    step = 0
    while killed_at(step, doing):
        step += 1
        assert digests(updates, 1) == before, step
        updates.tidy()
        # Start each time from where the first began.
        updates.expand_from(0) if work == "compact" else updates.compact(0, 1)
        assert sorted(path.name for path in updates.root.iterdir() if path.name[0] != ".") == names
    assert step > 10
    assert digests(updates, 1) == before


def test_show_and_report_read_updates_that_stand_with_others(
    updates: Updates, capsys: pytest.CaptureFixture[str]
) -> None:
    path = updates.folder(1) / "traces.parquet"
    show_traces(path, limit=2)
    shown, page = capsys.readouterr().out, run_page(updates.root.parent, ReportConfig(), Figures(), SILENT)
    updates.compact(0, 2)
    show_traces(path, limit=2)
    assert capsys.readouterr().out == shown and "2 of 47 traces" in shown
    assert run_page(updates.root.parent, ReportConfig(), Figures(), SILENT) == page and "update 1 (stage1)" in page


def test_the_newest_updates_keep_a_folder_each(updates: Updates) -> None:
    RunFolder(updates.root.parent).compact(5, 2)
    assert [path.name for path in sorted(updates.root.iterdir())] == ["0000-0001", "0002", "0003", "0004"]
    RunFolder(updates.root.parent).compact(5, 0)
    assert len(list(updates.root.iterdir())) == 4
