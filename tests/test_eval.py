"""`score eval` from end to end: models, tables that exist, votes, JSON lines, many attempts."""

import json
import re
from itertools import combinations
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from score_cli.cli import run_command
from score_cli.config import DataConfig
from score_cli.stages import evaluate_tables
from score_cli.stages.data import write_problems
from score_cli.tables.parquet import METRICS, TRACES, read_footer
from score_cli.tables.provenance import file_sha256
from tests.conftest import make_batch, rewrite, write_checkpoint
from tests.test_cli import one_line

SMALL = ["--max-tokens", 6, "--samples", 2, "--threads", 1]


def score(*arguments: object) -> int:
    return run_command([str(argument) for argument in arguments])


def metrics(path: Path) -> dict[tuple[str, str, str], tuple[float, float | None, int]]:
    rows = pl.read_parquet(path).rows()
    found = {row[:3]: row[3:] for row in rows}
    assert len(found) == len(rows)
    return found


def grade(path: Path, seed: int) -> None:
    """Rewards by a rule of its own, since an untrained policy is never right; every 11th attempt is unscored."""
    places = iter(range(10**6))

    def change(row: dict[str, Any]) -> None:
        for attempt in range(len(row["verdicts"])):
            place = next(places) * 7919 + seed * 104729
            row["answers"][attempt] = str(place % 3)
            row["verdicts"][attempt] = "unscored" if place % 11 == 0 else "correct" if place % 3 == 0 else "incorrect"
            row["rewards"][attempt] = None if place % 11 == 0 else float(place % 3 == 0)

    rewrite(path, change)


@pytest.fixture(scope="module")
def tables(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with traces and rewards of `first` and `second`, graded unlike, of twelve problems and four samples.

    Beside them: `others.parquet`, problems of another split; `long`, other traces of the same problems; `greedy`,
    two of each decoded at temperature 0; and a copy of `first` under the name `a - b`. Tests write elsewhere.
    """
    folder = tmp_path_factory.mktemp("tables")
    checkpoint = write_checkpoint(folder / "ckpt")
    write_problems("division", DataConfig(limit=12), out=folder / "problems.parquet")
    write_problems("division", DataConfig(limit=12, split="test"), out=folder / "others.parquet")
    make_batch(folder, checkpoint, folder / "problems.parquet")
    for kind in ("traces", "rewards"):
        for name in ("first", "second"):
            (folder / f"{name}.{kind}.parquet").write_bytes((folder / f"{kind}.parquet").read_bytes())
    grade(folder / "first.rewards.parquet", 0)
    grade(folder / "second.rewards.parquet", 1)
    for kind in ("traces", "rewards"):
        (folder / f"a - b.{kind}.parquet").write_bytes((folder / f"first.{kind}.parquet").read_bytes())
    make_batch(folder / "cold", checkpoint, folder / "problems.parquet", samples=2, temperature=0.0)
    for kind in ("traces", "rewards"):
        (folder / "cold" / f"{kind}.parquet").rename(folder / f"greedy.{kind}.parquet")
    rewrite(folder / "traces.parquet", lambda row: None, keep_footer=False)
    (folder / "traces.parquet").rename(folder / "long.traces.parquet")
    return folder


def test_tables_that_exist_give_the_metrics_that_their_models_gave(
    tmp_path: Path, problems: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    models = [write_checkpoint(tmp_path / name, seed=seed) for seed, name in enumerate(["one", "two"])]
    named = [argument for model in models for argument in ("--model", model)]
    asked = ["--problems", problems, "--pass-at", "1,2"]
    folder, measured, again = tmp_path / "eval", tmp_path / "metrics.parquet", tmp_path / "again.parquet"
    assert score("eval", *named, *asked, *SMALL, "--traces-folder", folder, "--out", measured) == 0
    # Twelve problems: twice each, and once greedily.
    assert re.findall("(?m)^(.*) in [0-9.]+ s$", capsys.readouterr().err) == [
        f"{doing} {policy}, {decoding}: {traces}"
        for policy in ("one", "two")
        for decoding, traces in (("sampled", 24), ("greedy", 12))
        for doing in ("sampling", "verifying")
    ]
    files = [folder / f"{m.name}-{decoding}.traces.parquet" for m in models for decoding in ("sampled", "greedy")]
    given = [argument for file in files for argument in ("--traces", file)]
    assert score("eval", *given, *asked, "--out", again) == 0
    found = metrics(again)
    assert found == metrics(measured)
    assert ("two - one", "greedy", "edit_ratio@t2") in found and ("one", "sampled", "pass@2@t2") in found
    levels = pl.read_parquet(problems)["level"].unique()
    assert {key[2] for key in found if "acc@t2|" in key[2]} == {f"acc@t2|level={level}" for level in levels}


def test_each_file_is_hashed_once(tables: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hashed: list[str] = []

    def counting(path: Path) -> str:
        hashed.append(path.name)
        return file_sha256(path)

    monkeypatch.setattr(evaluate_tables, "file_sha256", counting)
    given = ["--traces", tables / "greedy.traces.parquet", "--problems", tables / "problems.parquet"]
    assert score("eval", *given, "--out", tmp_path / "m.parquet") == 0
    assert sorted(hashed) == ["greedy.rewards.parquet", "greedy.traces.parquet", "problems.parquet"]


def test_metrics_of_tables_are_what_a_query_finds(tables: Path, tmp_path: Path) -> None:
    out = tmp_path / "m.parquet"
    given = [argument for name in ("first", "second") for argument in ("--traces", tables / f"{name}.traces.parquet")]
    assert score("eval", *given, "--out", out) == 0
    found = metrics(out)
    means = {}
    for name in ("first", "second"):
        graded = pl.read_parquet(tables / f"{name}.rewards.parquet").select(
            pl.col("problem_id"),
            first=pl.col("rewards").list.get(0),
            second=pl.col("rewards").list.get(1),
        )
        both = graded.drop_nulls()
        assert 0 < len(both) < len(graded)
        put_right = both.filter((pl.col("first") == 0) & (pl.col("second") == 1))
        assert found[name, "sampled", "acc@t1"][0] == pytest.approx(graded["first"].mean())
        assert found[name, "sampled", "acc@t1"][2] == graded["first"].count()
        assert found[name, "sampled", "i_to_c@t2"][0] == pytest.approx(len(put_right) / len(both))
        means[name] = graded["second"].mean()
    difference = found["second - first", "sampled", "acc@t2"]
    assert difference[0] == pytest.approx(means["second"] - means["first"])
    assert difference[2] == 12
    footer = read_footer(out, METRICS)
    assert footer is not None and set(footer.inputs) == {
        f"{name}-sampled-{kind}" for name in ("first", "second") for kind in ("traces", "rewards")
    }


def test_differences_are_printed_under_the_table(
    tables: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = [argument for name in ("first", "second") for argument in ("--traces", tables / f"{name}.traces.parquet")]
    assert score("eval", *given, "--out", tmp_path / "m.parquet") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split("  ")[0] == "policy"
    assert [line.split()[0] for line in lines[1:3]] == ["first", "second"]
    assert lines[3] == "" and lines[4].startswith("differences on the same problems")
    assert lines[6].startswith("second - first  sampled") and " p=" in lines[6]


def test_votes_are_held_at_their_own_temperature_over_twice_the_largest_budget(tmp_path: Path, problems: Path) -> None:
    model, folder = write_checkpoint(tmp_path / "one"), tmp_path / "eval"
    asked = ["--problems", problems, "--traces-folder", folder, "--votes", "1,3", "--out", tmp_path / "m.parquet"]
    assert score("eval", "--model", model, *asked, *SMALL) == 0
    footer = read_footer(folder / "one-votes.traces.parquet", TRACES)
    assert footer is not None
    assert [footer.config[key] for key in ("temperature", "samples", "attempts")] == [0.7, 6, 2]
    names = {key[2] for key in metrics(tmp_path / "m.parquet") if key[2].startswith("majority")}
    assert names == {f"majority@{kind}[{n}]" for kind in ("parallel", "sequential", "gain") for n in (2, 6)}


def test_votes_on_tables_are_what_listing_every_pair_finds(tables: Path, tmp_path: Path) -> None:
    table, out = tables / "first.traces.parquet", tmp_path / "m.parquet"
    assert score("eval", "--traces", table, "--votes", "1", "--out", out) == 0
    graded = pl.read_parquet(tables / "first.rewards.parquet").group_by("problem_id", maintain_order=True).agg(pl.all())
    parallel, sequential = [], []
    for row in graded.iter_rows(named=True):
        first, second = (
            [(a[t], r[t]) for a, r in zip(row["answers"], row["rewards"], strict=True) if r[t] is not None]
            for t in (0, 1)
        )
        if len(first) >= 2 and second:
            # Of two unlike answers either may be drawn; of two like ones both say the same.
            parallel.append(
                sum((x[1] + y[1]) / 2 for x, y in combinations(first, 2)) * 2 / len(first) / (len(first) - 1)
            )
            sequential.append(sum(value for _, value in second) / len(second))
    found = metrics(out)
    assert found["first", "sampled", "majority@parallel[2]"][0] == pytest.approx(sum(parallel) / len(parallel))
    assert found["first", "sampled", "majority@sequential[2]"][0] == pytest.approx(sum(sequential) / len(sequential))
    assert found["first", "sampled", "majority@gain[2]"][2] == len(parallel)


def test_json_lines_say_of_every_trace_what_its_tables_say(tables: Path, tmp_path: Path) -> None:
    out, samples = tmp_path / "m.parquet", tmp_path / "samples.jsonl"
    given = ["--traces", tables / "first.traces.parquet", "--problems", tables / "problems.parquet"]
    assert score("eval", *given, "--out", out, "--samples-jsonl", samples) == 0
    records = [json.loads(line) for line in samples.read_text().splitlines()]
    known = pl.read_parquet(tables / "problems.parquet").to_dicts()
    traces = pl.read_parquet(tables / "first.traces.parquet").to_dicts()
    rewards = pl.read_parquet(tables / "first.rewards.parquet").to_dicts()
    assert len(records) == 48
    for record, trace, reward in zip(records, traces, rewards, strict=True):
        doc = known[record["doc_id"]]
        assert record["doc"] == doc and doc["problem_id"] == trace["problem_id"] == record["problem_id"]
        assert record["target"] == doc["answer"]
        assert record["resps"] == [[trace["attempts"][0]], [trace["attempts"][1]]]
        assert record["filtered_resps"] == reward["answers"]
        assert [record["acc@t1"], record["acc@t2"]] == reward["rewards"] and record["acc"] == reward["rewards"][1]
        assert record["metrics"] == ["acc", "acc@t1", "acc@t2"]
        assert (record["policy"], record["decoding"], record["sample_index"]) == (
            "first",
            "sampled",
            trace["sample_index"],
        )
    scored = [record["acc"] for record in records if record["acc"] is not None]
    assert metrics(out)["first", "sampled", "acc@t2"][::2] == (pytest.approx(sum(scored) / len(scored)), len(scored))


def test_ten_attempts_are_measured_and_printed(
    tmp_path: Path, problems: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model, folder, out = write_checkpoint(tmp_path / "one", attempts=10), tmp_path / "eval", tmp_path / "m.parquet"
    asked = ["--problems", problems, "--traces-folder", folder, "--attempts", 10, "--out", out]
    assert score("eval", "--model", model, *asked, *SMALL) == 0
    assert [line.split()[:3] for line in capsys.readouterr().out.splitlines()[1:]] == [
        ["one", decoding, f"t{attempt}"] for decoding in ("sampled", "greedy") for attempt in range(1, 11)
    ]
    grade(folder / "one-sampled.rewards.parquet", 0)
    assert score("eval", "--traces", folder / "one-sampled.traces.parquet", "--out", out, "--overwrite") == 0
    graded = pl.read_parquet(folder / "one-sampled.rewards.parquet")["rewards"].to_list()
    assert all(len(row) == 10 for row in graded)
    found = metrics(out)
    for attempt in range(2, 11):
        pairs = [(row[attempt - 2], row[attempt - 1]) for row in graded if None not in row[attempt - 2 : attempt]]
        assert found["one", "sampled", f"delta@t{attempt}"][0] == pytest.approx(
            sum(now - before for before, now in pairs) / len(pairs)
        )
        broken = sum((before, now) == (1, 0) for before, now in pairs)
        assert found["one", "sampled", f"c_to_i@t{attempt}"][0] == pytest.approx(broken / len(pairs))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--attempts", 40], "leaves no room for 40 attempts in the model's context of 64: .* lower --attempts"),
        (["--attempts", 10, "--max-tokens", 6], "the model's context is 64 .*: lower --max-tokens"),
    ],
)
def test_a_context_too_small_for_the_attempts_is_refused(
    tables: Path, tmp_path: Path, options: list[object], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, out = tmp_path / "eval", tmp_path / "m.parquet"
    asked = ["--problems", tables / "problems.parquet", "--traces-folder", folder, "--out", out]
    assert score("eval", "--model", tables / "ckpt", *asked, *options) == 2
    assert re.search(message, one_line(capsys))
    assert not out.exists() and not list(folder.glob("*"))


def test_a_context_that_leaves_attempts_little_room_is_told(
    tables: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """An answer of the built-in task takes 12 tokens: ten attempts of 3 are all cut off, the first one too."""
    asked = ["--problems", tables / "problems.parquet", "--traces-folder", tmp_path / "eval", "--samples", 1]
    model = ["--model", tables / "ckpt", "--threads", 1]
    assert score("eval", *model, *asked, "--attempts", 10, "--out", tmp_path / "m.parquet") == 0
    said = f"{tables / 'ckpt'}: an attempt may have 3 tokens, an equal share of the context of 64; "
    assert capsys.readouterr().err.count(said) == 1, "once for both decodings"


def test_votes_on_programs_are_refused(tmp_path: Path, checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    problems, out = tmp_path / "p.parquet", tmp_path / "m.parquet"
    source = Path(__file__).parents[1] / "data" / "mbpp.jsonl"
    write_problems("mbpp", DataConfig(check=False, split="all"), source=str(source), out=problems)
    assert score("eval", "--model", checkpoint, "--problems", problems, "--votes", "2", "--out", out) == 2
    assert "the answers of mbpp are programs" in one_line(capsys)
    assert not out.exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--traces", "first.traces.parquet", "--model", "ckpt"], "give one of the two"),
        (["--rewards", "first.rewards.parquet"], "--rewards belongs to --traces"),
        (["--traces", "first.traces.parquet", "--first-attempts", "long.traces.parquet"], "leave one out"),
        (["--votes", "1", "--first-attempts", "long.traces.parquet"], "leave out --first-attempts"),
        (["--samples", "5", "--max-tokens", "6", "--first-attempts", "first.traces.parquet"], "lacks 12 of the 60"),
        (
            ["--traces", "first.traces.parquet", "--traces", "second.traces.parquet", "--rewards", "rewards.parquet"],
            "--rewards is given 1 times, --traces 2",
        ),
        (
            ["--traces", "first.traces.parquet", "--traces", "first.traces.parquet"],
            "second sampled table of policy first",
        ),
        (["--traces", "first.traces.parquet", "--pass-at", "5"], "pass@5 needs 5 graded traces of a problem"),
        (["--traces", "first.traces.parquet", "--votes", "1,4"], "--votes 4 needs 8 graded traces"),
        (["--traces", "greedy.traces.parquet", "--votes", "1"], "votes need samples, .* leave --votes out"),
        (["--traces", "first.traces.parquet", "--votes", "1;4"], "votes is 1;4, expected whole numbers"),
        (["--traces", "first.traces.parquet", "--pass-at", "0"], "pass_at is 0, expected whole numbers"),
        (["--traces", "first.traces.parquet", "--problems", "others.parquet"], "which others.parquet lacks"),
        (["--traces", "a - b.traces.parquet"], "stands for a difference"),
        (
            ["--traces", "long.traces.parquet", "--rewards", "rewards.parquet"],
            "grades traces .* run `score verify` again",
        ),
        (["--pass-at", "4", "--samples", "2"], "pass@4 needs 4 sampled traces a problem, there are 2"),
        (["--pass-at", "2", "--temperature", "0"], "there are 1"),
    ],
)
def test_what_cannot_be_measured_is_one_line_and_nothing_is_written(
    tables: Path,
    tmp_path: Path,
    arguments: list[str],
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tables)
    before = sorted(tables.iterdir())
    assert score("eval", *arguments, "--out", tmp_path / "m.parquet", "--samples-jsonl", tmp_path / "s.jsonl") == 2
    assert re.search(message, one_line(capsys))
    assert not list(tmp_path.iterdir()) and sorted(tables.iterdir()) == before


def test_policies_are_compared_on_the_same_first_attempts(tables: Path, tmp_path: Path) -> None:
    """Three samples a problem go on from the given traces, whose first attempts were graded as any others are."""
    other, folder, out = write_checkpoint(tmp_path / "other", seed=1), tmp_path / "eval", tmp_path / "m.parquet"
    asked = ["--problems", tables / "problems.parquet", "--first-attempts", tables / "first.traces.parquet"]
    sizes = ["--samples", 3, "--max-tokens", 6, "--threads", 1]
    models = ["--model", tables / "ckpt", "--model", other]
    assert score("eval", *models, *asked, *sizes, "--traces-folder", folder, "--out", out) == 0
    key = ["problem_id", "sample_index"]
    given = pl.read_parquet(tables / "first.traces.parquet").filter(pl.col("sample_index") < 3).sort(key)
    seconds = {}
    for name in ("ckpt", "other"):
        for decoding in ("sampled", "greedy"):
            made = pl.read_parquet(folder / f"{name}-{decoding}.traces.parquet").sort(key)
            assert made.select(*key).equals(given.select(*key))
            assert made["attempts"].list.get(0).to_list() == given["attempts"].list.get(0).to_list()
            assert made["offline_attempts"].to_list() == [1] * 36
            seconds[name, decoding] = made["attempts"].list.get(1).to_list()
    assert len({tuple(texts) for texts in seconds.values()}) == 4
    found = metrics(out)
    assert found["other", "greedy", "acc@t1"][2] == 36
    assert found["other - ckpt", "greedy", "acc@t1"][:2] == (0.0, 0.0)
    footer = read_footer(out, METRICS)
    assert footer is not None and footer.inputs["first_attempts"] == file_sha256(tables / "first.traces.parquet")
