"""The report of a run: its numbers by hand, and nothing of a response ever runs."""

import importlib.util
import json
import random
import re
import shutil
from collections import Counter
from collections.abc import Sequence
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from score_cli.cli import run_command
from score_cli.config import ReportConfig
from score_cli.metrics import clustered_mean
from score_cli.report import write_report
from score_cli.report.plots import COLOURS, Line, inline_svg, lines_figure, style, svg_file
from score_cli.report.run import curve_lines, edit_bins, edit_upper, smoothed, stage_rules
from score_cli.report.traces import choose_rows, mean_logprob, pair_facts, pairs_shown, spread
from score_cli.tables.records import Trace, Verdict
from score_cli.tables.traces import GradedPiece, graded_piece
from tests.report_support import (
    HOSTILE,
    ROWS,
    Row,
    curve_of,
    write_run,
    write_runs,
    write_study,
    write_traces,
    write_updates,
)

# Elements without an end tag.
VOID = {"meta", "input", "br", "img", "link", "path", "use", "rect"}


class Page(HTMLParser):
    """The tables of each section, its figure captions, the scripts, and every element there is."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tables: dict[str, list[list[list[str]]]] = {}
        self.captions: list[str] = []
        self.scripts: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self._section = ""
        self._inside: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag == "section":
            self._section = dict(attrs).get("id") or self._section
        if tag == "table":
            self.tables.setdefault(self._section, []).append([])
        if tag == "tr":
            self.tables[self._section][-1].append([])
        if tag in ("td", "th"):
            self.tables[self._section][-1][-1].append("")
        if tag == "figcaption":
            self.captions.append("")
        if tag == "script":
            self.scripts.append("")
        if tag not in VOID:
            self._inside.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag in self._inside:
            while self._inside.pop() != tag:
                pass

    def handle_data(self, data: str) -> None:
        if "script" in self._inside:
            self.scripts[-1] += data
        elif "td" in self._inside or "th" in self._inside:
            self.tables[self._section][-1][-1][-1] += data
        elif "figcaption" in self._inside:
            self.captions[-1] += data
        elif "style" not in self._inside:
            self.text += data

    @property
    def data(self) -> Any:
        return json.loads(self.scripts[0])


def report(run: Path, out: Path | None = None, plots: Path | None = None, **settings: int) -> Page:
    out = out or run / "report.html"
    write_report(ReportConfig(**settings), run=run, out=out, plots=plots, overwrite=True)
    return Page(out.read_text())


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = write_run(tmp_path_factory.mktemp("run"))
    write_updates(folder, 3)
    return folder


@pytest.fixture(scope="module")
def page(run: Path) -> Page:
    return report(run)


@pytest.fixture(scope="module", params=["run", "study"])
def folder(request: pytest.FixtureRequest, run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What holds for the page of a run holds for that of a study."""
    return run if request.param == "run" else write_runs(write_study(tmp_path_factory.mktemp("study")))


def test_the_paper_table_stands_first_with_standard_errors(page: Page) -> None:
    titles, base, score = page.tables["results"][0]
    assert titles == ["policy", "decoding", "acc@t1", "acc@t2", "delta", "i->c", "c->i", "edit ratio"]
    assert base == ["base", "sampled", "60.0 ±24.5", "66.7 ±16.7", "+0.0", "20.0 ±18.3", "", ""]
    assert score == ["score", "sampled", "72.5 ±24.5", "79.2 ±16.7", "+12.5", "32.5 ±18.3", "", ""]


def test_the_headline_compares_the_first_policy_with_the_last(page: Page) -> None:
    expected = (
        "From base to score, sampled: the first attempt went from 60.0% to 72.5%, the last went from 66.7% to 79.2%"
    )
    assert f"{expected}, their difference went from +0.0 points to +12.5 points." in page.text


def test_every_metric_is_there_with_its_count(page: Page) -> None:
    rows = page.tables["results"][1]
    assert rows[0] == ["metric", "base, sampled", "score, sampled"]
    assert rows[1] == ["acc@t1", "0.6000 ±0.2449 (5)", "0.7250 ±0.2449 (5)"]
    assert rows[3] == ["delta@t2", "0.0000 (5)", "0.1250 (5)"]


def test_the_flow_of_answers_is_over_the_scored_traces(page: Page) -> None:
    """Five of six traces are scored twice: two stay right, one each goes the other ways.

    Of right -> right: residuals of problems a, b, c sum to 0.2, -0.8, 0.6; sqrt(3/2 * 1.04) / 5 = 0.2498.
    Of the others: 0.6, -0.4, -0.2 in some order; sqrt(3/2 * 0.56) / 5 = 0.1833.
    """
    line = page.tables["flow"][0][1]
    assert line == ["base, sampled", "40.0% ±25.0", "20.0% ±18.3", "20.0% ±18.3", "20.0% ±18.3", "5"]


def test_who_gets_changed_is_told_by_whether_the_first_attempt_was_right(page: Page) -> None:
    """Of three right ones one is changed (0, 1, 0: error 1/3), of two wrong ones both."""
    assert page.tables["changed"][0][1] == ["base, sampled", "33.3% ±33.3", "100.0% ±0.0"]
    assert "base, sampled: 50.0% left as they were" in page.captions


def test_verdicts_are_counted_in_full(page: Page) -> None:
    counts = {row[1]: row[2] for row in page.tables["about"][1][1:] if row[0] == "base, sampled"}
    assert counts == {
        "correct → correct": "2",
        "incorrect → correct": "1",
        "correct → incorrect": "1",
        "incorrect → incorrect": "1",
        "unscored → correct": "1",
    }


def test_a_trace_is_shown_as_it_was_written(page: Page) -> None:
    place = [source["key"] for source in page.data["sources"]].index("base-sampled")
    found = {(t["problem"], t["sample"]): t for t in page.data["traces"] if t["source"] == place}
    assert len(found) == 6
    shown = found["b", 1]
    assert shown["chain"] == "i-i"
    assert [attempt["text"] for attempt in shown["attempts"]] == [HOSTILE, "three"]
    assert [attempt["answer"] for attempt in shown["attempts"]] == ["2", "3"]
    assert [attempt["tokens"] for attempt in shown["attempts"]] == [2, 2]
    assert [attempt["logprob"] for attempt in shown["attempts"]] == [-0.6, -1.2]
    assert page.data["problems"]["b"]["text"] == f"b? {HOSTILE}"


def test_what_a_response_holds_is_text_and_never_markup(run: Path, page: Page) -> None:
    assert "<img" not in (run / "report.html").read_text()
    assert [attributes.get("type") for tag, attributes in page.elements if tag == "script"] == [
        "application/json",
        None,
    ]
    assert not {"b", "img", "iframe", "object", "embed", "link"} & {tag for tag, _ in page.elements}


def test_a_policy_may_be_named_like_markup(tmp_path: Path) -> None:
    name = "<img src=x onerror=alert(1)> _$x$"
    page = report(write_run(tmp_path, policies=[name, "'\"&"]))
    assert "<img src=x" not in (tmp_path / "report.html").read_text()
    assert page.tables["results"][0][1][0] == name
    assert f"{name}, sampled" in page.captions


def test_nothing_is_fetched_no_other_script_runs_and_links_lead_to_unique_ids(folder: Path) -> None:
    page = report(folder)
    policy = next(a["content"] for tag, a in page.elements if tag == "meta" and a.get("http-equiv"))
    assert policy is not None and policy.startswith("default-src 'none'") and "script-src 'sha256-" in policy
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    for _, attributes in page.elements:
        assert not {"src", "srcset", "data"} & set(attributes)
        links = [value or "" for name, value in attributes.items() if name.endswith("href")]
        assert all(link[0] == "#" and ("=" in link or link[1:] in ids) for link in links)
        assert not any(name.startswith("on") for name in attributes)


def test_the_same_folder_gives_the_same_bytes_wherever_it_lies(folder: Path, tmp_path: Path) -> None:
    report(folder, tmp_path / "one.html", tmp_path / "plots")
    shutil.copytree(folder, tmp_path / "elsewhere" / "other-name")
    report(tmp_path / "elsewhere" / "other-name", tmp_path / "two.html", tmp_path / "again")
    assert (tmp_path / "one.html").read_bytes() == (tmp_path / "two.html").read_bytes()
    names = sorted(path.name for path in (tmp_path / "plots").iterdir())
    assert names == sorted(path.name for path in (tmp_path / "again").iterdir()) and len(names) >= 14
    for name in names:
        assert (tmp_path / "plots" / name).read_bytes() == (tmp_path / "again" / name).read_bytes(), name


def test_the_page_is_bounded_however_long_the_run(tmp_path: Path) -> None:
    """Of 60 traces of 7,000 characters an attempt, 10 of the policy and 2 of the update are shown, cut at 4,000."""
    long: list[Row] = [(f"p{n}", 0, ("x" * 7_000, "y" * 7_000), "ic", ("1", "2"), -0.1) for n in range(60)]
    write_run(tmp_path, policies=["base"], rows=long)
    write_updates(tmp_path, 1, rows=long)
    page = report(tmp_path, traces_per_policy=10, traces_per_update=2)
    assert [trace["source"] for trace in page.data["traces"]] == [0] * 10 + [1] * 2
    attempts = [attempt for trace in page.data["traces"] for attempt in trace["attempts"]]
    assert {(len(attempt["text"]), attempt["cut"]) for attempt in attempts} == {(4000, 3000)}
    assert "At most 10 traces of each policy and decoding and 2 of each of 1 of 1 updates" in page.text
    assert (tmp_path / "report.html").stat().st_size < 400_000


def test_traces_of_a_long_training_are_shown_of_updates_spread_over_it(tmp_path: Path) -> None:
    write_updates(tmp_path, 7)
    page = report(tmp_path, updates_shown=3, traces_per_update=1)
    assert [source["key"] for source in page.data["sources"]] == ["update-0000", "update-0003", "update-0006"]
    assert "1 of each of 3 of 7 updates" in page.text


def test_policies_whose_names_have_no_plain_letters_keep_figures_of_their_own(tmp_path: Path) -> None:
    page = report(write_run(tmp_path, policies=["основа", "итог"]), tmp_path / "page.html", tmp_path / "plots")
    assert {"основа, sampled", "итог, sampled"} <= set(page.captions)
    assert len(list((tmp_path / "plots").glob("flow-*.svg"))) == 2
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(ids) == len(set(ids))


def test_a_run_under_way_is_reported_on_without_results(tmp_path: Path) -> None:
    write_updates(tmp_path, 2)
    page = report(tmp_path)
    assert "results" not in page.tables and page.captions == ["Accuracy", "Gradient norm"]
    assert ["training", "stage1: 2 updates"] in page.tables["about"][0]
    assert [source["title"] for source in page.data["sources"]] == ["update 0 (stage1)", "update 1 (stage1)"]


def test_single_attempts_have_no_flow(tmp_path: Path) -> None:
    rows: list[Row] = [("a", 0, ("one",), "c", ("1",), -0.1), ("b", 0, ("two",), "i", ("2",), -0.3)]
    page = report(write_run(tmp_path, rows=rows))
    assert "flow" not in page.tables and len(page.data["traces"]) == 4


def test_many_attempts_show_the_first_pair_and_the_last(tmp_path: Path) -> None:
    rows: list[Row] = [
        ("a", 0, ("1", "2", "3", "4"), "icci", ("1", "2", "3", "4"), -0.1),
        ("b", 0, ("1", "2", "3", "4"), "iicc", ("1", "2", "3", "4"), -0.1),
    ]
    page = report(write_run(tmp_path, policies=["base"], rows=rows))
    assert [line[1][1:5] for line in page.tables["flow"]] == [["0.0% ±0.0", "0.0% ±0.0", "50.0% ±50.0", "50.0% ±50.0"]]
    assert "Flow of answers, attempt 3 to 4" in page.text


def test_a_policy_that_could_not_be_scored_at_all_is_no_failure(tmp_path: Path) -> None:
    rows: list[Row] = [("a", 0, ("1", "2"), "uu", (None, None), -0.1)]
    page = report(write_run(tmp_path, rows=rows))
    assert "No trace was scored at both attempts." in page.text
    assert page.tables["changed"][0][1] == ["base, sampled", "", ""]


def refused(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    assert run_command(["report", *map(str, arguments)]) == 2
    # What is not the error is the progress made until then.
    lines = [line for line in capsys.readouterr().err.splitlines() if not line.startswith("reading: ")]
    assert len(lines) == 1, lines
    return lines[0]


def test_what_cannot_be_reported_on_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "is not a folder" in refused(capsys, tmp_path / "nowhere")
    assert "holds no metrics.parquet" in refused(capsys, tmp_path)
    assert not (tmp_path / "report.html").exists()


def test_an_existing_page_or_figure_is_kept_without_overwrite(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page, plots = tmp_path / "page.html", tmp_path / "plots"
    page.write_text("mine")
    assert "--overwrite" in refused(capsys, run, "--out", page)
    plots.mkdir()
    (plots / "curve-accuracy.png").write_text("mine")
    assert "curve-accuracy.png exists" in refused(capsys, run, "--out", tmp_path / "new.html", "--plots", plots)
    assert [path.name for path in plots.iterdir()] == ["curve-accuracy.png"] and not (tmp_path / "new.html").exists()


def test_rewards_that_the_metrics_were_not_made_of_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_run(tmp_path)
    changed: Sequence[Row] = [*ROWS[:-1], ("c", 1, ("late", "late"), "cc", ("1", "1"), -0.1)]
    write_traces(tmp_path / "eval", "base-sampled", changed)
    assert "base-sampled.rewards.parquet is not what" in refused(capsys, tmp_path)


def test_a_missing_extra_is_one_line(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "matplotlib" else find(name))
    assert "pip install 'score-cli[report]'" in refused(capsys, run, "--out", tmp_path / "page.html")


def trace(problem: str, logprobs: list[float], *, offline: int = 0) -> Trace:
    """A prompt token, the first attempt's tokens, a bridge token, one token of the second attempt."""
    owners = np.array([0] + [1] * len(logprobs) + [0, 2], dtype=np.int8)
    values = np.array([0.0, *logprobs, 0.0, -9.0], dtype=np.float32)
    return Trace(
        problem, 0, ["one", "two"], ["stop"] * 2, np.arange(len(owners), dtype=np.int32), owners, values, offline
    )


def reward(problem: str, letters: str, *, sample: int = 0, changed: bool = True) -> Verdict:
    verdicts = [{"c": "correct", "i": "incorrect", "u": "unscored"}[letter] for letter in letters]
    values = [None if letter == "u" else float(letter == "c") for letter in letters]
    return Verdict(problem, sample, ["1", "2" if changed else "1"], verdicts, values)


def in_pieces(rows: Sequence[tuple[Trace, Verdict]], size: int) -> list[GradedPiece]:
    parts = [rows[start : start + size] for start in range(0, len(rows), size)]
    return [graded_piece([trace for trace, _ in part], [verdict for _, verdict in part]) for part in parts]


def chosen_rows(rewards: Sequence[Verdict], most: int, *, rows: int = 1000) -> list[int]:
    return choose_rows(in_pieces([(trace(each.problem_id, [-1.0]), each) for each in rewards], rows), most).rows


def test_mean_logprob_is_over_the_attempt_s_own_tokens() -> None:
    assert mean_logprob(trace("a", [-0.5, -1.5, -1.0]), 1) == -1.0
    assert mean_logprob(trace("a", [-0.5], offline=1), 1) is None
    assert mean_logprob(trace("a", []), 1) is None


def test_bins_by_logprob_are_of_equal_size_and_ordered_by_doubt() -> None:
    """24 traces, three bins of eight: the least sure third is wrong and changed, the middle changed alone."""
    rows = []
    for place in range(24):
        third = place // 8
        rows.append(
            (
                trace(f"p{place}", [-3.0 + place / 8]),
                reward(f"p{place}", "ic" if third == 0 else "cc", changed=third < 2),
            )
        )
    bins = pair_facts(in_pieces(list(reversed(rows)), 5), 2).bins
    assert [part.changed.count for part in bins] == [8, 8, 8]
    assert [part.wrong.value for part in bins] == [1.0, 0.0, 0.0]
    assert [part.changed.value for part in bins] == [1.0, 1.0, 0.0]
    assert [part.mean for part in bins] == pytest.approx([-3 + 3.5 / 8, -2 + 3.5 / 8, -1 + 3.5 / 8])


def test_pairs_add_up_over_pieces_of_any_size_to_what_trace_by_trace_gives() -> None:
    draw = random.Random(0)
    rows = [
        (
            trace(name := f"p{draw.randrange(9)}", [-draw.random()], offline=draw.randrange(2)),
            reward(name, draw.choice("ciu") + draw.choice("ciu"), changed=draw.random() < 0.4),
        )
        for _ in range(70)
    ]
    scored = [each for _, each in rows if None not in each.rewards]
    wanted = {
        f"{a}-{b}": clustered_mean(
            [float(each.rewards == [float(a == "c"), float(b == "c")]) for each in scored],
            [each.problem_id for each in scored],
        )
        for a in "ci"
        for b in "ci"
    }
    known = sorted(
        (float(first.logprobs[1]), verdict)
        for first, verdict in rows
        if not first.offline_attempts and verdict.rewards[0] is not None
    )
    for size in (1, 6, 70):
        facts = pair_facts(in_pieces(rows, size), 2)
        assert facts.flow == wanted and sum(facts.edit_ratios.values()) == 70
        for letter, value in (("c", 1.0), ("i", 0.0)):
            own = [each for _, each in rows if each.rewards[0] == value]
            edited = [float(each.answers[0] != each.answers[1]) for each in own]
            assert facts.changed[letter] == clustered_mean(edited, [each.problem_id for each in own])
        start = 0
        for part in facts.bins:
            own = [each for _, each in known[start : start + part.wrong.count]]
            start += part.wrong.count
            wrong = [float(each.rewards[0] == 0.0) for each in own]
            assert part.wrong == clustered_mean(wrong, [each.problem_id for each in own])
        assert start == len(known)


def test_equal_logprobs_are_never_parted_and_unscored_first_attempts_are_in_no_bin() -> None:
    rows = [(trace(f"p{n}", [-1.0]), reward(f"p{n}", "uc" if n < 3 else "cc")) for n in range(40)]
    assert [part.changed.count for part in pair_facts(in_pieces(rows, 7), 2).bins] == [37]


def test_the_traces_shown_take_every_chain_of_verdicts_in_turn() -> None:
    chains = ["cc"] * 90 + ["ii"] * 8 + ["ic"] * 2
    rewards = [reward("p", letters, sample=n) for n, letters in enumerate(chains)]
    chosen = chosen_rows(rewards, 12)
    kinds = [chains[row] for row in chosen]
    assert len(set(chosen)) == 12 and chosen == sorted(chosen)
    assert (kinds.count("cc"), kinds.count("ii"), kinds.count("ic")) == (5, 5, 2)
    assert chosen_rows(rewards, 500) == list(range(100)) and chosen_rows(rewards, 0) == []
    assert chosen_rows(rewards, 12, rows=9) == chosen


def test_policies_that_behave_alike_are_shown_on_the_same_problems() -> None:
    rewards = [reward(f"p{n}", "cc") for n in range(50)]
    backwards = list(reversed(rewards))
    names = {rewards[row].problem_id for row in chosen_rows(rewards, 7)}
    assert names == {backwards[row].problem_id for row in chosen_rows(backwards, 7)}


def test_numbers_are_spread_from_the_first_to_the_last() -> None:
    assert spread(5, 9) == [0, 1, 2, 3, 4] and spread(9, 5) == [0, 2, 4, 6, 8] and spread(200, 2) == [0, 199]
    assert spread(7, 1) == [0] and spread(7, 0) == [] and spread(0, 3) == []
    # Of the pairs of attempts, the first and the last.
    assert [pairs_shown(attempts) for attempts in (1, 2, 3, 10)] == [[], [2], [2, 3], [2, 10]]


def test_only_a_long_curve_is_averaged_each_value_with_its_neighbours_and_the_ends_alone() -> None:
    """Forty updates make a window of two: one neighbour on each side."""
    assert smoothed([0.3, 0.6] * 19) == [0.3, 0.6] * 19
    assert smoothed([0.3, 0.6] * 20)[:3] == pytest.approx([0.3, 0.4, 0.5])
    assert smoothed([0.3, 0.6] * 20)[-1] == 0.6


def test_edit_shares_are_percent_of_all_traces_and_leave_zero_out() -> None:
    """Twenty bins of width 0.05: a bin holds its right end, as 0.05 and 1.0 show."""
    bins = edit_bins(Counter([0.0, 0.0, 0.01, 0.05, 0.051, 1.0, 0.99, 0.0]), 1.0)
    assert [bar.value for bar in bins.values()] == [0.25, 0.125] + [0.0] * 17 + [0.25]
    assert list(bins)[1] == (0.05, 0.1)
    assert [edit_upper(ratios) for ratios in ([0.0], [], [0.05], [0.051], [1.0])] == [0.05, 0.05, 0.05, 0.1, 1.0]


def test_curves_are_grouped_by_what_they_measure() -> None:
    rows = [
        {"stage": "stage1", "iteration": 1, "name": "accuracy", "attempt": 2, "value": 0.75},
        {"stage": "stage1", "iteration": 0, "name": "accuracy", "attempt": 2, "value": 0.25},
        {"stage": "stage2", "iteration": 2, "name": "accuracy", "attempt": 2, "value": 0.5},
        {"stage": "stage1", "iteration": 0, "name": "accuracy", "attempt": 1, "value": 1.0},
        {"stage": "stage1", "iteration": 0, "name": "i_to_c@t2", "attempt": None, "value": 0.1},
        {"stage": "stage1", "iteration": 0, "name": "c_to_i@t2", "attempt": None, "value": 0.2},
        {"stage": "stage1", "iteration": 0, "name": "something_new", "attempt": None, "value": 7.0},
    ]
    found = {title: lines for (title, _, _), lines in curve_lines(rows).items()}
    assert list(found) == ["Accuracy", "Progress between the attempts", "something_new"]
    assert found["Accuracy"] == {
        "attempt 1": {"stage1": [(0, 1.0)]},
        "attempt 2": {"stage1": [(0, 0.25), (1, 0.75)], "stage2": [(2, 0.5)]},
    }
    assert found["Progress between the attempts"] == {
        "wrong to right": {"stage1": [(0, 0.1)]},
        "right to wrong": {"stage1": [(0, 0.2)]},
    }
    assert found["something_new"] == {"all": {"stage1": [(0, 7.0)]}}


def test_a_rule_stands_half_an_update_before_a_stage() -> None:
    assert stage_rules([*curve_of(0, "stage1"), *curve_of(7, "stage2"), *curve_of(1, "stage1")]) == [6.5]


def test_a_figure_on_the_page_has_no_colour_of_its_own() -> None:
    """Every colour is a variable, so that light and dark can each set it; a file keeps the colours."""
    with style():
        figure = lines_figure([Line("attempt 1", [[(0, 0.1), (1, 0.2)]])], across="update", up="unit")
        page, file = inline_svg(figure, "name", 'a "label"'), svg_file(figure, "name")
    assert not re.search(r"#[0-9a-f]{6}", page) and "var(--blue)" in page and COLOURS["blue"] in file
    assert page.startswith('<svg role="img" aria-label="a &quot;label&quot;"') and page.endswith("</svg>")
    assert all(found.startswith("name-") for found in re.findall(r' id="([^"]*)"', page))
    assert "<dc:date>" not in file and "<dc:date>" not in page
