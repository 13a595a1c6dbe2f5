"""Runs whose phases differ in attempts: three of them, one, and first attempts that were given."""

from pathlib import Path

import polars as pl
import pytest

from score_cli import loop, run_phases
from score_cli.errors import UserError
from score_cli.run import Run, RunInputs
from score_cli.tables.checkpoints import load_optimizer, stored_state
from score_cli.tables.parquet import TRACES, read_footer
from tests.runs import THREE, digests, recipe, stop_and_go_on

pytestmark = pytest.mark.pipeline


def test_three_attempts_are_trained_one_after_the_other(start: RunInputs, tmp_path: Path) -> None:
    """Stage I (b) is pinned to the policy of (a), Stage II to the base; each begins with fresh moments."""
    folder = tmp_path / "run"
    rows = Run(recipe(3, **THREE), folder, start).execute()
    assert {"acc@t3", "delta@t3"} <= {row["name"] for row in rows}
    base = stored_state(tmp_path / "ckpt").fingerprint
    part_a, part_b, score = (stored_state(folder / name) for name in ("stage1-t2", "stage1-t3", "stage2"))
    assert (part_a.reference, part_b.reference, score.reference) == (base, part_a.fingerprint, base)
    widths = [
        set(pl.read_parquet(path)["attempts"].list.len()) for path in sorted(folder.glob("iterations/*/traces.parquet"))
    ]
    assert widths == [{2}, {2}, {3}, {3}, {3}, {3}]
    for name in ("stage1-t2", "stage1-t3", "stage2"):
        moments = load_optimizer(folder / name)
        assert moments is not None and {v.item() for k, v in moments.items() if k.startswith("step.")} == {2.0}
    # The first update of (b) stands where its reference does; that of Stage II is already away from the base.
    curve = pl.read_parquet(folder / "train_metrics.parquet").filter(pl.col("name") == "full_kl")
    kl = {iteration: part["value"].to_list() for (iteration,), part in curve.group_by("iteration")}
    assert max(kl[2]) < 1e-9 < 1e-5 < min(kl[4])


def test_a_run_stopped_between_the_parts_of_stage_one_ends_with_the_same_bytes(
    start: RunInputs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Run(recipe(3, **THREE), tmp_path / "whole", start).execute()
    for call in (3, 4):
        folder = tmp_path / str(call)
        stop_and_go_on(recipe(3, **THREE), start, folder, monkeypatch, loop, "check_logprobs_match", call)
        assert digests(folder) == digests(tmp_path / "whole"), call


def test_one_attempt_is_trained_and_two_are_evaluated(start: RunInputs, tmp_path: Path) -> None:
    """Single-turn RL: the whole path, with one attempt in the traces and their curve, two in the metrics."""
    made = recipe(1, stage2_iterations=2)
    made.change(["eval.attempts=2"])
    rows = Run(made, tmp_path / "run", start).execute()
    assert {"acc@t1", "acc@t2", "delta@t2"} <= {row["name"] for row in rows if row["policy"] == "stage2"}
    traces = pl.read_parquet(tmp_path / "run" / "iterations" / "0001" / "traces.parquet")
    assert set(traces["attempts"].list.len()) == {1}
    assert set(traces["attempt_ids"].explode()) == {0, 1}
    curve = pl.read_parquet(tmp_path / "run" / "train_metrics.parquet")
    assert set(curve.filter(pl.col("name") == "accuracy")["attempt"]) == {1}
    assert stored_state(tmp_path / "run" / "stage2").iteration == 2


def test_stage_two_goes_on_from_the_bases_first_attempts_and_never_trains_on_them(
    start: RunInputs, tmp_path: Path
) -> None:
    made = recipe(stage1_iterations=2, stage2_iterations=2, offline_first_attempts=0.5)
    Run(made, tmp_path / "run", start).execute()
    drawn, base = tmp_path / "run" / "first_attempts.parquet", stored_state(tmp_path / "ckpt").fingerprint
    footer = read_footer(drawn, TRACES)
    assert footer is not None and footer.policy == base
    firsts = {(row["problem_id"], row["sample_index"]): row for row in pl.read_parquet(drawn).to_dicts()}
    assert len(firsts) == 12 * 4 and all(len(row["attempts"]) == 1 for row in firsts.values())
    for iteration in (2, 3):
        traces = pl.read_parquet(tmp_path / "run" / "iterations" / f"{iteration:04d}" / "traces.parquet").to_dicts()
        given = [row for row in traces if row["offline_attempts"] == 1]
        assert len(given) == len(traces) / 2
        for row in given:
            assert row["attempts"][0] == firsts[row["problem_id"], row["sample_index"]]["attempts"][0]


def test_stage_one_is_untouched_by_first_attempts_given_to_stage_two(start: RunInputs, tmp_path: Path) -> None:
    for name, share in (("own", 0.0), ("given", 1.0)):
        made = recipe(stage1_iterations=2, stage2_iterations=1, offline_first_attempts=share)
        Run(made, tmp_path / name, start).execute()
    own, given = digests(tmp_path / "own"), digests(tmp_path / "given")
    same = {name for name in own if own[name] == given[name]}
    assert "stage1/model.safetensors" in same and "stage2/model.safetensors" not in same
    assert {f"iterations/000{n}/traces.parquet" for n in (0, 1)} <= same
    curve = pl.read_parquet(tmp_path / "given" / "train_metrics.parquet").filter(pl.col("name") == "entropy")
    # What is measured of the tokens trained on: both attempts' in Stage I, the second's alone in Stage II.
    assert curve.select("iteration", "attempt").rows() == [(0, 1), (0, 2), (1, 1), (1, 2), (2, 2)]


def test_a_run_stopped_at_its_first_attempts_ends_with_the_same_bytes(
    start: RunInputs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = recipe(stage1_iterations=1, stage2_iterations=2, offline_first_attempts=1.0)
    Run(made, tmp_path / "whole", start).execute()
    for function in ("sample", "read_offline"):  # before the first attempts are drawn, and after
        folder = tmp_path / function
        stop_and_go_on(made, start, folder, monkeypatch, run_phases, function, 1)
        assert digests(folder) == digests(tmp_path / "whole"), function


def test_first_attempts_without_a_stage_two_are_refused(start: RunInputs, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="Stage II"):
        Run(recipe(stage1_iterations=1, offline_first_attempts=1.0), tmp_path / "run", start)
