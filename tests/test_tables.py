"""Files are whole or absent, say where they came from, and are refused in one line when they do not fit."""

import errno
import os
import tempfile
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from score_cli.errors import UserError
from score_cli.tables import traces as traces_module
from score_cli.tables.atomic import check_output, replacing_file, replacing_folder
from score_cli.tables.parquet import (
    METRICS,
    PROBLEMS,
    REWARDS,
    TRACES,
    iterate_batches,
    read_footer,
    read_table,
    write_table,
)
from score_cli.tables.pieces import Pieces
from score_cli.tables.problems import read_problems
from score_cli.tables.provenance import Footer, file_sha256
from score_cli.tables.traces import (
    Rows,
    iterate_graded,
    iterate_traces,
    read_pair,
    read_traces,
    read_verdicts,
    rewards_beside,
)
from tests.conftest import rewrite

ROW = {"policy": "base", "decoding": "greedy", "name": "acc@t1", "value": 0.5, "stderr": None, "count": 3}
FOOTER = Footer(table="metrics", stage="eval", config={"samples": 8}, seed=1, inputs={"problems": "ab"}, policy="cd")


def test_a_failed_write_leaves_the_earlier_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("earlier")
    with pytest.raises(RuntimeError), replacing_file(path) as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert [p.name for p in tmp_path.iterdir()] == ["a.txt"]
    assert path.read_text() == "earlier"


def test_a_failed_folder_leaves_the_earlier_folder_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "ckpt"
    path.mkdir()
    (path / "weights").write_text("earlier")
    with pytest.raises(RuntimeError), replacing_folder(path) as temporary:
        (temporary / "weights").write_text("half")
        raise RuntimeError
    assert [p.name for p in tmp_path.iterdir()] == ["ckpt"]
    assert (path / "weights").read_text() == "earlier"


def test_a_finished_folder_replaces_the_earlier_one_whole(tmp_path: Path) -> None:
    path = tmp_path / "ckpt"
    path.mkdir()
    (path / "old").write_text("x")
    with replacing_folder(path) as temporary:
        (temporary / "new").write_text("y")
    assert [p.name for p in path.iterdir()] == ["new"]
    assert [p.name for p in tmp_path.iterdir()] == ["ckpt"]


def test_an_existing_output_is_refused_before_any_work(tmp_path: Path) -> None:
    path = tmp_path / "traces.parquet"
    check_output(path, overwrite=False)
    path.touch()
    check_output(path, overwrite=True)
    with pytest.raises(UserError, match="exists: pass --overwrite"):
        check_output(path, overwrite=False)


def test_equal_content_gives_equal_bytes_and_the_footer_comes_back(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_table(tmp_path / name, METRICS, [ROW], FOOTER)
    assert file_sha256(tmp_path / "a") == file_sha256(tmp_path / "b")
    assert read_footer(tmp_path / "a", METRICS) == FOOTER
    assert pl.read_parquet(tmp_path / "a").to_dicts() == [ROW]


def test_the_footer_holds_no_path_host_or_clock(batch: Path) -> None:
    for name, table in (("traces", TRACES), ("rewards", REWARDS), ("problems", PROBLEMS)):
        footer = read_footer(batch / f"{name}.parquet", table)
        assert footer is not None
        text = footer.to_bytes().decode()
        assert str(batch) not in text
        assert os.uname().nodename not in text
        assert "time" not in text.replace("timeout", "") and "date" not in text


def test_the_footer_ties_rewards_to_traces_and_traces_to_problems_and_policy(batch: Path) -> None:
    from score_cli.tables.checkpoints import load_policy

    traces = read_footer(batch / "traces.parquet", TRACES)
    rewards = read_footer(batch / "rewards.parquet", REWARDS)
    assert traces is not None and rewards is not None
    assert traces.inputs["problems"] == file_sha256(batch / "problems.parquet")
    assert rewards.inputs["traces"] == file_sha256(batch / "traces.parquet")
    assert traces.policy == load_policy(batch / "ckpt").state.fingerprint


def test_polars_reads_the_traces_directly(batch: Path) -> None:
    frame = pl.read_parquet(batch / "traces.parquet")
    lengths = frame.select(
        (pl.col("attempt_ids").list.eval(pl.element() == 2).list.sum()).alias("second"), pl.col("token_ids").list.len()
    )
    assert frame["attempts"].list.len().unique().to_list() == [2]
    assert (lengths["second"] > 0).all() and (lengths["second"] <= 6).all()


@pytest.mark.parametrize("keep", [0, 3, 100, 0.5, 0.99])
def test_a_truncated_file_is_refused_in_one_line(batch: Path, keep: float) -> None:
    path = batch / "traces.parquet"
    content = path.read_bytes()
    path.write_bytes(content[: int(keep * len(content)) if isinstance(keep, float) else keep])
    with pytest.raises(UserError, match="not a whole Parquet file .*score sample") as caught:
        read_traces(path)
    assert "\n" not in str(caught.value)


def test_a_damaged_page_is_refused(batch: Path) -> None:
    path = batch / "traces.parquet"
    content = bytearray(path.read_bytes())
    content[200:600] = b"\xff" * 400
    path.write_bytes(bytes(content))
    with pytest.raises(UserError, match="damaged|not a whole Parquet file"):
        read_traces(path)


def test_a_missing_file_names_the_command_that_makes_it(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not exist: `score sample` makes it"):
        read_traces(tmp_path / "traces.parquet")


def test_one_table_in_place_of_another_is_called_by_its_name(batch: Path) -> None:
    with pytest.raises(UserError) as error:
        read_traces(batch / "rewards.parquet")
    assert str(error.value) == (
        f"{batch / 'rewards.parquet'} is a rewards table, expected a traces table: name one that `score sample` made"
    )
    with pytest.raises(
        UserError, match=f"{batch} is a folder, .*: name the Parquet file in it, such as .*/traces.parq"
    ):
        read_traces(batch)


def test_missing_columns_are_named(tmp_path: Path) -> None:
    pq.write_table(pa.table({"problem_id": ["a"], "attempts": [["y"]]}), tmp_path / "t.parquet")
    with pytest.raises(UserError, match="it lacks sample_index, finish_reasons, token_ids"):
        read_traces(tmp_path / "t.parquet")


def test_wrong_types_are_named(batch: Path) -> None:
    table = pq.read_table(batch / "rewards.parquet")
    changed = table.set_column(1, "sample_index", pa.array(["0"] * table.num_rows))
    pq.write_table(changed, batch / "rewards.parquet")
    with pytest.raises(UserError, match="column sample_index holds text, expected integer"):
        read_verdicts(batch / "rewards.parquet")


def test_nulls_are_refused_where_a_value_is_required(batch: Path) -> None:
    frame = pl.read_parquet(batch / "traces.parquet").with_columns(pl.lit(None, dtype=pl.String).alias("problem_id"))
    frame.write_parquet(batch / "traces.parquet")
    with pytest.raises(UserError, match="column problem_id has 48 null values"):
        read_traces(batch / "traces.parquet")


def test_nulls_inside_lists_are_refused(batch: Path) -> None:
    frame = pl.read_parquet(batch / "traces.parquet")
    frame = frame.with_columns(pl.col("token_ids").list.concat(pl.lit(None, dtype=pl.Int32)))
    frame.write_parquet(batch / "traces.parquet")
    with pytest.raises(UserError, match="token_ids"):
        read_traces(batch / "traces.parquet")


def test_tables_written_by_polars_are_read(batch: Path) -> None:
    """Polars writes large strings and 64-bit integers; both mean the same."""
    before = read_traces(batch / "traces.parquet")
    frame = pl.read_parquet(batch / "traces.parquet").with_columns(pl.col("sample_index").cast(pl.Int64))
    frame.write_parquet(batch / "traces.parquet")
    assert read_footer(batch / "traces.parquet", TRACES) is None
    after = read_traces(batch / "traces.parquet")
    assert [t.token_ids.tolist() for t in after] == [t.token_ids.tolist() for t in before]
    problems = pl.read_parquet(batch / "problems.parquet")
    problems.write_parquet(batch / "problems.parquet")
    assert len(read_problems(batch / "problems.parquet")) == 12


def test_an_empty_table_is_refused(batch: Path) -> None:
    pl.read_parquet(batch / "traces.parquet").head(0).write_parquet(batch / "traces.parquet")
    with pytest.raises(UserError, match="has no rows, expected at least one trace"):
        read_traces(batch / "traces.parquet")


def test_a_problem_that_stands_twice_is_refused(problems: Path) -> None:
    rewrite(problems, lambda row: row.update(problem_id="same"))
    with pytest.raises(UserError, match="problem_id same stands 12 times"):
        read_problems(problems)


def test_lists_of_different_length_are_refused(batch: Path) -> None:
    rewrite(batch / "traces.parquet", lambda row: row["logprobs"].pop())  # type: ignore[attr-defined]
    with pytest.raises(UserError, match="row 0: lists of one length expected"):
        read_traces(batch / "traces.parquet")


def test_nan_logprobs_are_refused(batch: Path) -> None:
    rewrite(batch / "traces.parquet", lambda row: row.update(logprobs=[float("nan")] * len(row["logprobs"])))  # type: ignore[arg-type]
    with pytest.raises(UserError, match="row 0: a logprob is not finite"):
        read_traces(batch / "traces.parquet")


def test_an_attempt_number_without_its_attempt_is_refused(batch: Path) -> None:
    rewrite(batch / "traces.parquet", lambda row: row.update(attempt_ids=[3] * len(row["attempt_ids"])))  # type: ignore[arg-type]
    with pytest.raises(UserError, match="attempt_ids from 3 to 3, expected 0 to 2"):
        read_traces(batch / "traces.parquet")


def test_rewards_of_other_rows_are_refused(batch: Path) -> None:
    traces, rewards = batch / "traces.parquet", batch / "rewards.parquet"
    whole = pl.read_parquet(rewards)
    whole[1:].write_parquet(rewards)
    with pytest.raises(UserError, match="has 47 rows, .* 48: run `score verify` again"):
        read_pair(traces, rewards)
    pl.concat([whole[:30], whole[31:], whole[30:31]]).write_parquet(rewards)
    first, second = whole["problem_id"][30], whole["problem_id"][31]
    with pytest.raises(
        UserError, match=rf"row 30: \('{first}', 2\), of .* \('{second}', 3\): run `score verify` again"
    ):
        read_pair(traces, rewards)
    whole.with_columns(pl.col("answers", "verdicts", "rewards").list.head(1)).write_parquet(rewards)
    with pytest.raises(UserError, match="row 0: 2 attempts, of which .* grades 1"):
        read_pair(traces, rewards)


def test_the_first_wrong_row_is_named_whichever_piece_it_stands_in(batch: Path) -> None:
    number = iter(range(48))
    rewrite(batch / "traces.parquet", lambda row: next(number) in (19, 40) and row.update(logprobs=[0.0]))
    with pytest.raises(UserError, match="row 19: lists of one length expected"):
        list(iterate_traces(batch / "traces.parquet", rows=8))


def test_graded_rows_come_in_pieces_and_are_those_of_both_tables(batch: Path) -> None:
    traces, rewards = batch / "traces.parquet", batch / "rewards.parquet"
    pieces = list(iterate_graded(traces, rewards, rows=7))
    assert [piece.traces.num_rows for piece in pieces] == [piece.rewards.num_rows for piece in pieces] == [7] * 6 + [6]
    found = [pair for piece in pieces for pair in piece.records()]
    raw = zip(pq.read_table(traces).to_pylist(), pq.read_table(rewards).to_pylist(), strict=True)
    for (trace, verdict), (row, graded) in zip(found, raw, strict=True):
        assert vars(verdict) == graded
        assert trace.attempts == row["attempts"] and trace.sample_index == row["sample_index"]
        assert trace.token_ids.tolist() == row["token_ids"] and trace.token_ids.dtype == np.int32
        assert trace.attempt_ids.tolist() == row["attempt_ids"] and trace.logprobs.tolist() == row["logprobs"]


@pytest.mark.parametrize("in_memory", [0, 4000, 2**20])
def test_records_are_made_from_any_place_of_a_table(
    batch: Path, in_memory: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of pieces in a file, in memory and a file, and in memory."""
    monkeypatch.setattr(traces_module, "Pieces", lambda: Pieces(in_memory=in_memory))
    path = batch / "traces.parquet"
    rows = Rows(lambda piece: piece["sample_index"].to_pylist(), iterate_batches(path, TRACES, rows=7))
    expected = pq.read_table(path)["sample_index"].to_pylist()
    assert list(rows) == expected and len(rows) == 48
    assert [rows[place] for place in (0, 6, 7, 41, 42, 47, -1, -48)] == [
        expected[place] for place in (0, 6, 7, 41, 42, 47, -1, -48)
    ]
    assert rows[5:30:6] == expected[5:30:6] and rows[:0] == []
    with pytest.raises(IndexError):
        rows[48]


def test_pieces_beyond_the_memory_are_kept_in_a_file_and_are_the_same(batch: Path) -> None:
    """Lists, absent values and texts, read twice and from the end; rows that are kept keep no file mapped."""
    pieces = [
        *iterate_batches(batch / "traces.parquet", TRACES, rows=7),
        *iterate_batches(batch / "traces.parquet", TRACES, rows=9),
    ]
    kept = Pieces(in_memory=pieces[0].nbytes + pieces[1].nbytes)
    for piece in pieces:
        kept.append(piece)
    for number in [*range(len(pieces)), *reversed(range(len(pieces)))]:
        assert kept[number].equals(pieces[number])
    assert kept[-1].equals(pieces[-1]) and [piece.num_rows for piece in kept[6:8]] == [6, 9]
    before = count_mappings()
    rows = [kept.row(number, 2) for number in range(len(pieces))]
    assert rows == [piece.slice(2, 1) for piece in pieces] and count_mappings() == before
    held = [kept[number] for number in (0, 1, 2, 3)]
    assert count_mappings() == before + 2, held


def test_pieces_for_which_the_disk_has_no_room_name_its_folder(batch: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.TemporaryFile", lambda: open("/dev/full", "r+b"))  # noqa: PTH123, SIM115
    with pytest.raises(OSError) as raised:
        Pieces(in_memory=0).append(next(iterate_batches(batch / "traces.parquet", TRACES)))
    assert raised.value.errno == errno.ENOSPC and raised.value.filename == tempfile.gettempdir()


def count_mappings() -> int:
    """Of files without a name that this process has mapped."""
    return Path("/proc/self/maps").read_text().count("(deleted)")


def test_a_footer_of_another_schema_version_is_refused(tmp_path: Path) -> None:
    newer = Footer(**{**FOOTER.__dict__, "schema": 99})
    write_table(tmp_path / "m", METRICS, [ROW], newer)
    with pytest.raises(UserError, match="schema version 99, this program reads 2"):
        read_footer(tmp_path / "m", METRICS)


def test_reading_in_pieces_gives_every_row_in_order(batch: Path) -> None:
    pieces = list(iterate_batches(batch / "traces.parquet", TRACES, rows=7))
    assert max(piece.num_rows for piece in pieces) <= 7
    assert pa.concat_tables(pieces).equals(read_table(batch / "traces.parquet", TRACES))


def test_a_checkpoint_set_aside_by_a_killed_process_comes_back(tmp_path: Path) -> None:
    """Killed between the two renames: the next writer first puts the earlier folder back."""
    left = tmp_path / ".ckpt.score-abc"
    (left / "earlier").mkdir(parents=True)
    (left / "earlier" / "config.json").write_text("earlier")
    with pytest.raises(RuntimeError), replacing_folder(tmp_path / "ckpt"):
        raise RuntimeError
    assert [p.name for p in tmp_path.iterdir()] == ["ckpt"]
    assert (tmp_path / "ckpt" / "config.json").read_text() == "earlier"


def test_an_interrupt_between_the_renames_puts_the_earlier_folder_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "ckpt"
    path.mkdir()
    (path / "config.json").write_text("earlier")
    real = Path.rename

    def interrupted(self: Path, target: Path) -> Path:
        if self.name == "new":
            raise KeyboardInterrupt
        return real(self, target)

    monkeypatch.setattr(Path, "rename", interrupted)
    with pytest.raises(KeyboardInterrupt), replacing_folder(path) as temporary:
        (temporary / "config.json").write_text("later")
    assert (path / "config.json").read_text() == "earlier"
    assert [p.name for p in tmp_path.iterdir()] == ["ckpt"]


def test_a_living_writers_workspace_and_other_hidden_files_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / ".ckpt.backup").mkdir()
    with replacing_file(tmp_path / "ckpt") as first:
        first.write_text("first")
        with replacing_file(tmp_path / "ckpt") as second:
            second.write_text("second")
    assert sorted(p.name for p in tmp_path.iterdir()) == [".ckpt.backup", "ckpt"]
    assert (tmp_path / "ckpt").read_text() == "first"


def test_a_folder_with_other_files_is_never_replaced_by_a_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match="holds files that are no checkpoint"):
        check_output(tmp_path, overwrite=True, folder=True)
    (tmp_path / "config.json").touch()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="is the folder this command runs in"):
        check_output(Path(), overwrite=True, folder=True)
    with pytest.raises(UserError, match="is a folder, expected a file"):
        check_output(tmp_path, overwrite=True)
    with pytest.raises(UserError, match="notes.txt is not a folder"):
        check_output(tmp_path / "notes.txt" / "deep" / "out", overwrite=False)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rewards": [3.0, 0.0]}, "reward 3.0 for"),
        ({"rewards": [float("nan"), 0.0]}, "reward nan for"),
        ({"verdicts": ["banana", "correct"]}, "verdict banana, expected one of"),
        ({"rewards": [None, 0.0]}, "none where unscored"),
        ({"answers": []}, "differ in length"),
    ],
)
def test_rewards_that_no_verifier_gives_are_refused(batch: Path, change: dict[str, object], message: str) -> None:
    rewrite(batch / "rewards.parquet", lambda row: row.update(change))
    with pytest.raises(UserError, match=message):
        read_verdicts(batch / "rewards.parquet")


@pytest.mark.parametrize(
    ("traces", "rewards"),
    [
        ("traces.parquet", "rewards.parquet"),
        ("eval/score-greedy.traces.parquet", "eval/score-greedy.rewards.parquet"),
        ("base.parquet", "base.rewards.parquet"),
    ],
)
def test_rewards_are_looked_for_under_the_name_of_their_traces(traces: str, rewards: str) -> None:
    assert rewards_beside(Path(traces)) == Path(rewards)
