"""What a run tells while it goes: hand-made logs, figures worked out by hand, event files read by TensorBoard."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from score_cli.config import Stage1Config
from score_cli.errors import UserError
from score_cli.phases import Phase
from score_cli.run_log import RunLog, flat, overhead, read_log, verdict_shares
from score_cli.status import pace_of, status_lines
from score_cli.stopwatch import Stopwatch
from score_cli.tables.atomic import locked_folder
from score_cli.tables.records import Trace, Verdict

PHASE = Phase(name="stage1", config=Stage1Config(), first=0, last=30, attempts=2)
SECONDS = {"sample": 6.0, "verify": 1.0, "train": 2.0, "refresh": 0.5, "write": 0.5}


def verdict(*names: str) -> Verdict:
    return Verdict("p", 0, [None] * len(names), list(names), [float(name == "correct") for name in names])


VERDICTS = [verdict("correct", "correct"), verdict("incorrect", "correct"), verdict("no_answer", "correct")]


def entry(update: int, **changes: Any) -> dict[str, Any]:
    return {
        "update": update,
        "phase": "stage1",
        "phase_first": 0,
        "phase_last": 30,
        "run_last": 40,
        "time": "2026-11-26T12:00:00+00:00",
        "seconds": SECONDS,
        "sampled_tokens": 1200,
        "verdicts": {"t1": {"correct": 0.25, "incorrect": 0.75}},
        "metrics": {"kl@t1": 0.5, "grad_norm": 2.0, "edit_ratio@t2": 0.1},
    } | changes


def write_run(folder: Path, entries: list[dict[str, Any]], *, torn: str = "") -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text("{}")
    (folder / "log.jsonl").write_text("".join(json.dumps(each) + "\n" for each in entries) + torn)


def test_a_stopwatch_gives_each_part_the_time_since_the_last_lap() -> None:
    times = iter([100.0, 103.0, 104.0, 110.0, 111.5, 120.0, 121.0])
    watch = Stopwatch(lambda: next(times))
    watch.lap("sample")
    watch.lap("verify")
    watch.lap("sample")
    assert watch.take() == {"sample": 9.0, "verify": 1.0}  # and 1.5 s up to the taking are nobody's
    watch.lap("train")
    assert watch.take() == {"train": 8.5}


def test_overhead_is_what_is_not_sampling_grading_learning_or_refreshing() -> None:
    assert overhead(SECONDS) == pytest.approx(0.05)
    assert overhead({"write": 3.0}) == 1.0
    assert overhead({}) == 0.0


def test_verdicts_are_shares_of_the_traces_that_have_the_attempt() -> None:
    ragged = [*VERDICTS, verdict("correct")]
    assert verdict_shares(ragged) == {
        "t1": {"correct": 0.5, "incorrect": 0.25, "no_answer": 0.25},
        "t2": {"correct": 1.0},
    }


def write_update(log: RunLog, update: int, traces: list[Trace]) -> dict[str, Any]:
    metrics = [
        {"stage": "stage1", "iteration": update, "name": "kl", "attempt": 2, "value": 0.25},
        {"stage": "stage1", "iteration": update, "name": "grad_norm", "attempt": None, "value": 3.0},
    ]
    entry = log.entry(PHASE, update, traces=traces, verdicts=VERDICTS, metrics=metrics)
    log.write(entry, SECONDS)
    return entry


def test_a_line_an_update_holds_what_it_took_and_measured(tmp_path: Path) -> None:
    log = RunLog(tmp_path, 40)
    log.go_on_from(0)
    # Three tokens of the first attempt, two of the second; of the second trace the first attempt was given.
    owners = np.array([0, 0, 1, 1, 1, 0, 2, 2], dtype=np.int8)
    trace = Trace("p", 0, ["a", "b"], ["stop"] * 2, np.arange(8, dtype=np.int32), owners, np.zeros(8, np.float32), 0)
    write_update(log, 0, [trace, replace(trace, offline_attempts=1)])
    (found,) = read_log(tmp_path / "log.jsonl")
    assert found["sampled_tokens"] == 5 + 2
    assert found["metrics"] == {"kl@t2": 0.25, "grad_norm": 3.0}
    assert found["verdicts"]["t1"] == pytest.approx({"correct": 1 / 3, "incorrect": 1 / 3, "no_answer": 1 / 3})
    assert (found["phase"], found["phase_first"], found["phase_last"], found["run_last"]) == ("stage1", 0, 30, 40)
    assert flat(found) == {
        "stage1/kl@t2": 0.25,
        "stage1/grad_norm": 3.0,
        **{f"seconds/{part}": value for part, value in SECONDS.items()},
        "seconds/update": 10.0,
        "overhead": pytest.approx(0.05),
        "tokens_per_second": pytest.approx(7 / 6),
        **{f"verdicts/t1/{name}": pytest.approx(1 / 3) for name in ("correct", "incorrect", "no_answer")},
        "verdicts/t2/correct": 1.0,
    }


def test_updates_that_are_done_again_are_said_once(tmp_path: Path) -> None:
    write_run(tmp_path, [entry(0), entry(1), entry(2)], torn='{"update": 3, "sec')
    assert [each["update"] for each in read_log(tmp_path / "log.jsonl")] == [0, 1, 2]
    log = RunLog(tmp_path, 40)
    log.go_on_from(2)
    write_update(log, 2, [])
    assert [(each["update"], each["sampled_tokens"]) for each in read_log(tmp_path / "log.jsonl")] == [
        (0, 1200),
        (1, 1200),
        (2, 0),
    ]


def test_a_log_with_a_broken_line_inside_is_refused(tmp_path: Path) -> None:
    write_run(tmp_path, [entry(0)], torn='not json\n{"update": 1, "seconds": {}, "metrics": {}}\n')
    with pytest.raises(UserError, match=r"log.jsonl, line 2 is no entry of a run's log: delete the file"):
        read_log(tmp_path / "log.jsonl")


def test_tensorboard_reads_what_was_logged_and_forgets_what_is_done_again(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    log = RunLog(tmp_path, 40, ["tensorboard"])
    log.go_on_from(0)
    for update in range(3):
        write_update(log, update, [])
    log.close()
    again = RunLog(tmp_path, 40, ["tensorboard"])
    again.go_on_from(2)
    write_update(again, 2, [])
    again.close()
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [(e.step, e.value) for e in events.Scalars("stage1/kl_t2")] == [(0, 0.25), (1, 0.25), (2, 0.25)]
    assert [e.value for e in events.Scalars("seconds/update")] == [10.0] * 3


def test_tensorboard_draws_every_figure_of_the_log_and_no_other(tmp_path: Path) -> None:
    """By hand from the lines themselves; the last update of Stage I is done twice, and only the second time counts."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    for first, last, validation in ((0, 3, 0.5), (2, 5, 0.75)):
        log = RunLog(tmp_path, 5, ["tensorboard"])
        log.go_on_from(first)
        for update in range(first, last):
            seconds = {"sample": 2.0 + update + validation, "train": 1.0, "write": 0.25 * update}
            phase = "stage1" if update < 3 else "stage2"
            metrics = {"kl@t1": update / 7, "grad_norm": 1 + update / 3}
            log.write(entry(update, phase=phase, metrics=metrics, validation=validation + update / 100), seconds)
        log.close()
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    wanted: dict[str, dict[int, float]] = {}
    for line in lines:
        wall = sum(line["seconds"].values())
        figures = {f"{line['phase']}/{name.replace('@', '_')}": value for name, value in line["metrics"].items()}
        figures |= {f"seconds/{part}": value for part, value in line["seconds"].items()}
        figures |= {f"{line['phase']}/validation": line["validation"], "seconds/update": wall}
        figures |= {"verdicts/t1/correct": 0.25, "verdicts/t1/incorrect": 0.75}
        figures |= {"overhead": line["seconds"]["write"] / wall, "tokens_per_second": 1200 / line["seconds"]["sample"]}
        for name, value in figures.items():
            wanted.setdefault(name, {})[line["update"]] = value
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    drawn = {tag: events.Scalars(tag) for tag in events.Tags()["scalars"]}
    assert [line["update"] for line in lines] == [0, 1, 2, 3, 4]
    assert {tag: [point.step for point in own] for tag, own in drawn.items()} == {t: [*w] for t, w in wanted.items()}
    for tag, points in wanted.items():  # event files hold 32 bits of a number
        assert [point.value for point in drawn[tag]] == pytest.approx([*points.values()], rel=1e-6)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("tensorbord", "run.log_to names tensorbord, expected some of tensorboard, wandb, trackio"),
        ("trackio", "run.log_to names trackio, which is not installed: `pip install trackio`, or leave it out"),
    ],
)
def test_who_cannot_draw_is_refused_before_anything_is_trained(
    name: str, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError) as refused:
        RunLog(tmp_path, 40, [name])
    assert words in str(refused.value)


def test_the_pace_is_that_of_the_latest_updates_of_the_phase() -> None:
    slow = [entry(number, phase="stage1", seconds={"sample": 100.0}) for number in range(5)]
    quick = [entry(5 + n, phase="stage2", seconds={"sample": 1.0 + n, "train": 1.0, "write": 0.5}) for n in range(3)]
    pace = pace_of([*slow, *quick])
    # Updates of 2.5, 3.5 and 4.5 s; sampling 1 + 2 + 3 s of 10.5, for 3,600 tokens.
    assert pace.seconds == 3.5
    assert pace.shares == pytest.approx({"sample": 6 / 10.5, "train": 3 / 10.5, "write": 1.5 / 10.5})
    assert pace.overhead == pytest.approx(1.5 / 10.5)
    assert pace.tokens_per_second == 600
    assert pace.count == 3


def test_status_says_where_a_run_stands_and_when_it_ends(tmp_path: Path) -> None:
    run = tmp_path / "run"
    write_run(run, [entry(number) for number in range(10)])
    assert status_lines(run) == [
        f"{run}: stopped: the command that began it goes on with it",
        "stage1: update 10 of 30; 10 of the run's 40",
        "an update takes 10 s (median of 10): sample 60%, train 20%, verify 10%, refresh 5%, write 5%; overhead 5.0%",
        "200 tokens sampled a second",
        "verdicts t1: incorrect 75%, correct 25%",
        "last update: kl@t1 0.5, grad_norm 2",
    ]
    with locked_folder(run):
        # 30 updates of 10 s from noon on.
        first, *_, last = status_lines(run)
    assert first == f"{run}: running"
    assert last.startswith("ends about 2026-11-26 ") and last.endswith(":05, at this pace; the evaluation comes after")


def test_status_of_what_is_no_run_or_has_not_begun(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds no run: name a folder that `score run` wrote into"):
        status_lines(tmp_path)
    write_run(tmp_path / "run", [])
    assert status_lines(tmp_path / "run") == [
        f"{tmp_path / 'run'}: stopped: the command that began it goes on with it; no update yet"
    ]
