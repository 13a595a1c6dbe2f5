"""Remote files: a server of its own that speaks S3 (moto), and the commands that read and write there."""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import boto3
import pytest
import s3fs
from moto.server import ThreadedMotoServer

from score_cli.cli import run_command
from score_cli.config import DataConfig
from score_cli.errors import JobError, UserError
from score_cli.stages.data import write_problems
from score_cli.storage import Mirror, Remote
from tests.conftest import write_checkpoint

KEYS = {"AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b", "AWS_DEFAULT_REGION": "us-east-1"}
SAMPLING = ["--samples", "2", "--max-tokens", "6", "--device", "cpu", "--threads", "1"]


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    server = ThreadedMotoServer(port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def bucket(address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """An empty bucket named `box`, the commands told of it, and a mirror of the test's own."""
    for name, value in {**KEYS, "AWS_ENDPOINT_URL": address, "SCORE_MIRROR": str(tmp_path / "mirror")}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(tmp_path)
    s3fs.S3FileSystem.clear_instance_cache()
    box = boto3.resource("s3", endpoint_url=address).Bucket("box")
    box.create()
    yield box
    box.objects.all().delete()
    box.delete()


def stored(bucket: Any) -> dict[str, bytes]:
    return {each.key: each.get()["Body"].read() for each in bucket.objects.all()}


@contextmanager
def broken_line(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Whatever is sent breaks in the second part of two."""

    async def broken(self: Any, local: str, remote: str, **kwargs: Any) -> None:
        box, _, key = remote.partition("/")
        upload = await self._call_s3("create_multipart_upload", Bucket=box, Key=key)
        part = {"Bucket": box, "Key": key, "PartNumber": 1, "UploadId": upload["UploadId"]}
        await self._call_s3("upload_part", **part, Body=b"half")
        raise ConnectionError("the line broke")

    with monkeypatch.context() as patched:
        patched.setattr(s3fs.S3FileSystem, "_put_file", broken)
        s3fs.S3FileSystem.clear_instance_cache()  # an instance binds its methods when it is made
        yield
    s3fs.S3FileSystem.clear_instance_cache()


def test_a_loop_on_remote_files_leaves_the_bytes_of_one_on_local_files(bucket: Any, tmp_path: Path) -> None:
    """Problems, traces, rewards and a checkpoint, from one command to the next, and nothing else in the bucket."""
    start = write_checkpoint(tmp_path / "start")

    def loop(place: str) -> None:
        files = [f"{place}/{name}" for name in ("problems.parquet", "traces.parquet", "rewards.parquet", "next")]
        problems, traces, rewards, out = files
        assert run_command(["data", "division", "--limit", "2", "--out", problems]) == 0
        assert run_command(["sample", "--model", str(start), f"--problems={problems}", "--out", traces, *SAMPLING]) == 0
        assert run_command(["verify", "--traces", traces, "--problems", problems, "--out", rewards]) == 0
        given = ["--model", str(start), "--traces", traces, "--rewards", rewards, "--device", "cpu"]
        assert run_command(["train-stage1", *given, "--out", out]) == 0

    loop("s3://box/deep/run")
    loop("here")
    here = tmp_path / "here"
    local = {f"deep/run/{each.relative_to(here)}": each.read_bytes() for each in here.rglob("*") if each.is_file()}
    assert stored(bucket) == local
    # What was sent last is what makes the folder a checkpoint.
    times = {each.key: each.last_modified for each in bucket.objects.filter(Prefix="deep/run/next/")}
    assert max(times.values()) == times["deep/run/next/config.json"]


def test_a_remote_output_is_refused_or_replaced_as_a_local_one_is(
    bucket: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    bucket.put_object(Key="p.parquet", Body=b"something of mine")
    command = ["data", "division", "--limit", "1", "--out", "s3://box/p.parquet"]
    assert run_command(command) == 2
    assert capsys.readouterr().err == (
        "score: s3://box/p.parquet exists: pass --overwrite to replace it, or name another output\n"
    )
    assert stored(bucket) == {"p.parquet": b"something of mine"}
    assert run_command([*command, "--overwrite"]) == 0
    assert stored(bucket)["p.parquet"][:4] == b"PAR1"


def test_what_a_command_made_is_named_by_its_address(bucket: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(["data", "division", "--limit", "2", "--out", "s3://box/p.parquet"]) == 0
    said = capsys.readouterr()
    assert (said.err + said.out).splitlines() == ["s3://box/p.parquet: 2 problems", "s3://box/p.parquet: sent"]


def test_what_is_missing_is_named_by_its_address(bucket: Any, capsys: pytest.CaptureFixture[str]) -> None:
    write_problems("division", DataConfig(limit=1), source=None, out=Path("problems.parquet"))
    assert run_command(["verify", "--traces", "s3://box/none.parquet", "--out", "s3://box/r.parquet"]) == 2
    assert "s3://box/none.parquet" in capsys.readouterr().err and stored(bucket) == {}
    assert run_command(["data", "division", "--limit", "1", "--out", "s3://no-such-box/p.parquet"]) == 1
    assert "\nscore: s3://no-such-box/p.parquet could not be sent (" in capsys.readouterr().err
    assert run_command(["data", "division", "--out", "what://box/p.parquet"]) == 2
    assert "expected an address such as s3://bucket/key" in capsys.readouterr().err
    assert run_command(["run", "quickstart.toml", "--out", "s3://box/run"]) == 2
    assert "a folder of this machine" in capsys.readouterr().err


def test_a_broken_upload_leaves_the_earlier_file_and_is_made_good_without_the_work(
    bucket: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The line breaks in the second part of two; the same command sends what it made, and does not make it again."""
    bucket.put_object(Key="p.parquet", Body=b"the earlier one")
    command = ["data", "division", "--limit", "1", "--out", "s3://box/p.parquet", "--overwrite"]
    calls: list[int] = []
    with broken_line(monkeypatch):
        assert run_command(command) == 1
    assert "the line broke); its output is kept, and the same command again sends it" in capsys.readouterr().err
    assert stored(bucket) == {"p.parquet": b"the earlier one"}
    monkeypatch.setattr("score_cli.stages.data.write_problems", lambda *_, **__: calls.append(1))
    assert run_command(command) == 0
    assert calls == [] and stored(bucket)["p.parquet"][:4] == b"PAR1"
    assert capsys.readouterr().err == "s3://box/p.parquet: sent\n"


def test_what_one_command_has_yet_to_send_no_other_takes_away(
    bucket: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["data", "division", "--limit", "1", "--out", "s3://box/p.parquet"]
    other = ["show", "--problems", "s3://box/p.parquet"]
    with broken_line(monkeypatch):
        assert run_command(command) == 1
    capsys.readouterr()
    assert run_command(other) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"score: s3://box/p.parquet has yet to be sent by `score {' '.join(command)}`: run that ")
    assert run_command(command) == 0 and stored(bucket)["p.parquet"][:4] == b"PAR1"
    capsys.readouterr()
    # What is said to give it up does so.
    with broken_line(monkeypatch):
        assert run_command([*command, "--overwrite"]) == 1
    capsys.readouterr()
    assert run_command(other) == 2
    Path(capsys.readouterr().err.partition(", or delete ")[2].partition(" to do without")[0]).unlink()
    assert run_command(other) == 2  # for want of traces
    assert "yet to be sent" not in capsys.readouterr().err


def test_output_that_is_gone_from_the_mirror_is_made_again(bucket: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not told to be sent, and what is there not taken away for it."""
    bucket.put_object(Key="p.parquet", Body=b"the earlier one")
    command = ["data", "division", "--limit", "1", "--out", "s3://box/p.parquet", "--overwrite"]
    with broken_line(monkeypatch):
        assert run_command(command) == 1
    Remote("s3://box/p.parquet", "s3").local.unlink()
    with pytest.raises(JobError, match="is empty, so nothing was sent"):
        Remote("s3://box/p.parquet", "s3").send()
    assert stored(bucket) == {"p.parquet": b"the earlier one"}
    assert run_command(command) == 0
    assert stored(bucket)["p.parquet"][:4] == b"PAR1"


def test_output_of_inputs_that_changed_during_the_work_is_not_sent_later(
    bucket: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    bucket.put_object(Key="t", Body=b"traces")
    command = ["verify", "--traces", "s3://box/t", "--out", "s3://box/r"]

    def broken(*_: object) -> None:
        raise ConnectionError("the line broke")

    with Mirror(command) as mirror:
        assert mirror.fetch()
        bucket.put_object(Key="t", Body=b"other traces")
        Path(mirror.arguments[-1]).write_bytes(b"rewards of traces")
        with monkeypatch.context() as patched, pytest.raises(JobError, match="the line broke"):
            patched.setattr(Remote, "_send_file", broken)
            mirror.send()
    with Mirror(command) as again:
        assert again.fetch()
        assert Path(again.arguments[2]).read_bytes() == b"other traces" and not Path(again.arguments[-1]).exists()


def test_what_a_killed_command_left_in_the_mirror_is_not_taken_for_what_is_there(bucket: Any) -> None:
    bucket.put_object(Key="p", Body=b"what is there")
    Remote("s3://box/p", "s3").fetch()
    Remote("s3://box/p", "s3").local.write_bytes(b"what is not")
    again = Remote("s3://box/p", "s3")
    again.fetch()
    assert again.local.read_bytes() == b"what is there"


def test_commands_share_what_they_read_and_nothing_that_one_of_them_writes(bucket: Any) -> None:
    """Each is right, or told in one line."""
    for key in ("a", "b"):
        bucket.put_object(Key=key, Body=b"one")
    read, write = ["show", "--traces", "s3://box/a"], ["verify", "--traces=s3://box/b", "--out=s3://box/a"]
    with Mirror(read) as first, Mirror(read) as second:
        assert first.fetch() and second.fetch()
        with Mirror(write) as third, pytest.raises(UserError, match="s3://box/a: another .* reads or writes it: wait"):
            third.fetch()
        bucket.put_object(Key="a", Body=b"two")
        with Mirror(read) as fourth, pytest.raises(UserError, match="s3://box/a has changed, and another"):
            fourth.fetch()
        assert Path(first.arguments[-1]).read_bytes() == b"one"
    with Mirror(write) as first, Mirror(["show", "--traces", "s3://box/b"]) as second:
        assert first.fetch() and second.fetch()
        with Mirror(read) as third, pytest.raises(UserError, match="s3://box/a: another .* is writing it: wait"):
            third.fetch()
    with Mirror(read) as first:
        assert first.fetch() and Path(first.arguments[-1]).read_bytes() == b"two"


def test_a_file_that_has_changed_is_fetched_again_and_no_other(bucket: Any, tmp_path: Path) -> None:
    for name, text in {"one": b"1", "sub/two": b"2", "three": b"3"}.items():
        bucket.put_object(Key=f"ckpt/{name}", Body=text)
    remote = Remote("s3://box/ckpt", "s3")
    remote.fetch()
    kept = (remote.local / "one").stat().st_ino
    bucket.put_object(Key="ckpt/sub/two", Body=b"22")
    bucket.Object("ckpt/three").delete()
    remote.fetch()
    found = {
        each.relative_to(remote.local).as_posix(): each.read_bytes()
        for each in remote.local.rglob("*")
        if each.is_file()
    }
    assert found == {"one": b"1", "sub/two": b"22"}
    assert (remote.local / "one").stat().st_ino == kept


def test_a_checkpoint_is_none_while_another_takes_its_place(bucket: Any, tmp_path: Path) -> None:
    """At every write and every deletion: either all files of one of the two are there, or no config.json is."""
    old = {"config.json": b"old", "gone": b"old", "model": b"old"}
    new = {"config.json": b"new", "model": b"new", "trainer/state.json": b"new"}
    for name, text in old.items():
        bucket.put_object(Key=f"ckpt/{name}", Body=text)
    remote = Remote("s3://box/ckpt", "s3")
    remote.fetch()
    (remote.local / "gone").unlink()
    for name, text in new.items():
        (remote.local / name).parent.mkdir(exist_ok=True)
        (remote.local / name).write_bytes(text)
    system, seen = remote._at[0], []

    def watched(do: Any) -> Any:
        def then_look(*args: Any, **kwargs: Any) -> None:
            do(*args, **kwargs)
            seen.append({key.removeprefix("ckpt/"): text for key, text in stored(bucket).items()})

        return then_look

    for name in ("rm_file", "put_file"):
        setattr(system, name, watched(getattr(system, name)))
    remote.send()
    for name in ("rm_file", "put_file"):
        delattr(system, name)
    assert seen[-1] == new
    assert all(state in (old, new) or "config.json" not in state for state in seen), seen


def test_on_a_file_system_that_shows_half_files_they_arrive_under_another_name(tmp_path: Path) -> None:
    os.environ["SCORE_MIRROR"] = str(tmp_path / "mirror")
    try:
        remote = Remote(f"file://{tmp_path}/there/table", "file")
        remote.fetch()
        remote.local.parent.mkdir(parents=True)
        remote.local.write_bytes(b"whole")
        remote.send()
    finally:
        del os.environ["SCORE_MIRROR"]
    assert [each.name for each in (tmp_path / "there").iterdir()] == ["table"]
    assert (tmp_path / "there" / "table").read_bytes() == b"whole"
    assert json.loads(remote._keys_file.read_text()).keys() == {""}


def test_a_command_without_addresses_does_not_look_at_the_mirror(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As for a user whose home is no folder, and who needs none."""
    monkeypatch.setenv("SCORE_MIRROR", "/dev/null/mirror")
    assert run_command(["--version"]) == 0
    assert capsys.readouterr().err == ""
