"""What a person sees of a run's progress."""

import io

import pytest
from rich.console import Console

from score_cli import console
from score_cli.console import _Bars


def test_on_a_narrow_terminal_the_note_gives_way_and_no_number_does(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    bars = _Bars()
    with bars.phase("stage1-t2", 1500) as task:
        task.advance(312, "t1 43% t2 48% right; 61.3 s, overhead 1%")
        shown = io.StringIO()
        Console(file=shown, width=80).print(bars._rich.get_renderable())
    line = shown.getvalue().rstrip("\n")
    assert "\n" not in line and len(line) == 80
    assert line.startswith("stage1-t2") and " 312/1500 0:00:00 " in line
    assert " t1 43% t2 48% right; 61.3 s" in line and line.rstrip().endswith("…")


def test_without_a_terminal_a_line_tells_done_pace_left_and_note(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    now = [0.0]
    monkeypatch.setattr(console.time, "monotonic", lambda: now[0])
    with console._Lines().phase("stage1", 40) as task:
        for seconds, note in ((9.0, "too early"), (20.0, "t1 59% right"), (32.0, "")):
            now[0] = seconds
            task.advance(8, note)
    assert capsys.readouterr().err.splitlines() == [
        "stage1: 16/40, 0.8/s, 30.0 s left; t1 59% right",
        "stage1: 24/40, 0.8/s, 21.3 s left",
        "stage1: 40 in 32.0 s",
    ]
