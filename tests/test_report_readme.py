"""The README's figures: one trace with its tokens, mask and advantages by hand, the same bytes every time."""

import json
import re
from pathlib import Path

import pytest

from score_cli.cli import run_command
from score_cli.report.plots import COLOURS
from score_cli.report.readme import find_example
from tests.conftest import write_checkpoint
from tests.report_support import Row, write_run, write_updates

# Of problem p, three samples: put right, right twice, wrong twice; all of problem q is wrong.
GROUP: list[Row] = [
    ("p", 0, ("one", "two"), "ic", ("2", "1"), -0.1),
    ("p", 1, ("one", "two"), "cc", ("1", "1"), -0.1),
    ("p", 2, ("one", "two"), "ii", ("2", "3"), -0.1),
    *[("q", n, ("one", "two"), "ii", ("2", "3"), -0.1) for n in range(3)],
]
STAGE2 = {"alpha": 10.0, "stagnation_penalty": 0.0, "discount": 0.0, "baseline": "leave-one-out"}


def run_of(folder: Path, rows: list[Row], **changes: object) -> Path:
    write_updates(write_run(folder, rows=rows), 3, rows=rows, stage="stage2")
    (folder / "config.json").write_text(json.dumps({"stage2": STAGE2 | changes}))
    write_checkpoint(folder / "stage2")
    return folder


@pytest.mark.parametrize(
    ("changes", "returns", "advantages"),
    [
        # y1 earns 0 beside 1 and 0; y2 earns 1 + 10 beside 1 and 0, or beside 0 alone where the first was wrong too.
        ({}, [0, 11], [-0.5, 10.5]),
        ({"baseline": "conditional"}, [0, 11], [-0.5, 11]),
        # With discount 1 the first attempt earns 11 too, beside 1 + 1 and 0.
        ({"discount": 1.0}, [11, 11], [10, 10.5]),
    ],
)
def test_the_example_s_advantages_are_those_of_the_trainer(
    changes: dict[str, object], returns: list[float], advantages: list[float], tmp_path: Path
) -> None:
    example = find_example(run_of(tmp_path, GROUP, **changes))
    assert (example.update, example.trace.problem_id, example.trace.sample_index) == (2, "p", 0)
    assert example.shaped == [0, 11] and example.returns == returns and example.advantages == advantages


def test_the_loop_shows_every_token_with_its_owner_and_what_is_learned_of_it(tmp_path: Path) -> None:
    run = run_of(tmp_path / "run", GROUP)
    arguments = ["report", str(run), "--figures", str(tmp_path / "figures"), "--overwrite"]
    assert run_command(arguments) == 0
    files = {path.name: path.read_bytes() for path in (tmp_path / "figures").iterdir()}
    assert sorted(files) == ["curve-dark.svg", "curve.svg", "loop-dark.svg", "loop.svg"]
    loop = files["loop.svg"].decode()
    tokens = re.findall(r'class="mono"[^>]*>([^<]*)<', loop)
    # A prompt of two tokens and an attempt of two, a bridge of one and an attempt of two: word, owner, word, owner.
    assert tokens[1::2] == ["0", "0", "1", "1", "0", "2", "2"]
    for text in ("✗ incorrect", "✓ correct", "y2: 1 + 10·(1 − 0) = 11", "y1: 0 − 0.50 = −0.50", "2: +10.50 · ∇log π"):
        assert f">{text}<" in loop, text
    curve = files["curve.svg"].decode()
    assert " Stage II " in curve and " Stage I " not in curve
    for name in ("loop", "curve"):
        assert COLOURS["orange"] in files[f"{name}.svg"].decode()
        assert not any(colour in files[f"{name}-dark.svg"].decode() for colour in COLOURS.values())
    assert run_command(arguments) == 0
    assert files == {path.name: path.read_bytes() for path in (tmp_path / "figures").iterdir()}


def test_a_run_that_put_nothing_right_is_refused_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = run_of(tmp_path / "run", GROUP[1:])
    assert run_command(["report", str(run), "--figures", str(tmp_path / "figures")]) == 2
    assert "a wrong first attempt was put right: run more updates" in capsys.readouterr().err
    assert not (tmp_path / "figures").exists() and not (run / "report.html").exists()
