"""A run's folder: one process at a time, settings that must agree and others that need not, no stranger's policies."""

import json
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import pytest

from score_cli.errors import UserError
from score_cli.recipe import Recipe
from score_cli.run_folder import FREE, RAISED, RunFolder, pin_config
from score_cli.run_phases import RunConfigs

BEGUN = {"sample": {"batch_size": 64, "seed": 0}, "run": {"stage1_iterations": 10, "save_every": 10}}


def goes_on(folder: Path, **changes: object) -> list[str]:
    now = {stage: dict(values) for stage, values in BEGUN.items()}
    for name, value in changes.items():
        stage, key = name.split("__")
        now[stage][key] = value  # type: ignore[assignment]
    return pin_config(folder / "config.json", now, free=FREE, raised=RAISED, defaults={"sample": {"top_k": 0}})


def test_what_cannot_change_the_result_may_differ_and_is_said(tmp_path: Path) -> None:
    assert goes_on(tmp_path) == []
    assert goes_on(tmp_path, sample__batch_size=8) == ["sample.batch_size was 64, is 8"]
    # What it was last told is what the next start is compared with.
    assert goes_on(tmp_path, sample__batch_size=8) == []


def test_what_changes_the_result_is_refused_with_every_difference(tmp_path: Path) -> None:
    goes_on(tmp_path)
    with pytest.raises(UserError, match=r"sample.seed was 0, is 1; run.stage1_iterations was 10, is 9.*--out"):
        goes_on(tmp_path, sample__seed=1, run__stage1_iterations=9)
    assert json.loads((tmp_path / "config.json").read_text()) == BEGUN


def test_iterations_may_be_raised(tmp_path: Path) -> None:
    goes_on(tmp_path)
    assert goes_on(tmp_path, run__stage1_iterations=12) == ["run.stage1_iterations was 10, is 12"]
    with pytest.raises(UserError, match="stage1_iterations was 12, is 11"):
        goes_on(tmp_path, run__stage1_iterations=11)


def test_a_key_that_an_earlier_version_did_not_know_had_its_default(tmp_path: Path) -> None:
    goes_on(tmp_path)
    assert goes_on(tmp_path, sample__top_k=0) == []
    with pytest.raises(UserError, match="sample.top_k was 0, is 5"):
        goes_on(tmp_path, sample__top_k=5)


def test_every_setting_that_may_differ_is_one_that_a_run_has() -> None:
    known = asdict(RunConfigs.of(Recipe({})))
    assert all(key in known[stage] for stage, key in FREE | RAISED)


def test_a_second_process_is_kept_out_until_the_first_has_ended_however_that_came_about(tmp_path: Path) -> None:
    code = (
        "import sys, time; from pathlib import Path; from score_cli.run_folder import RunFolder\n"
        "with RunFolder(Path(sys.argv[1])).locked():\n    print('in', flush=True); time.sleep(60)"
    )
    other = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    try:
        assert other.stdout is not None and other.stdout.readline() == "in\n"
        with pytest.raises(UserError, match="another process is at work there"), RunFolder(tmp_path).locked():
            pass
    finally:
        other.kill()
        other.wait()
    with RunFolder(tmp_path).locked():
        pass


def test_a_run_that_has_sampled_nothing_yet_takes_other_settings(tmp_path: Path) -> None:
    folder, other = RunFolder(tmp_path), BEGUN | {"sample": {"batch_size": 64, "seed": 1}}
    folder.pin(BEGUN, {})
    (tmp_path / "train.parquet").write_text("of the settings before")
    assert folder.pin(other, {}) == []
    assert [path.name for path in tmp_path.iterdir()] == ["config.json"]
    folder.iteration(0).mkdir(parents=True)
    with pytest.raises(UserError, match=r"sample.seed was 1, is 0"):
        folder.pin(BEGUN, {})


def test_a_refusal_says_of_a_file_the_first_digits(tmp_path: Path) -> None:
    pin_config(tmp_path / "config.json", {"inputs": {"problems": "a" * 64, "limit": None}})
    with pytest.raises(UserError, match=r"\(--problems was aaaaaaaaaaaa\.\.\., is bbbbbbbbbbbb\.\.\.\)"):
        pin_config(tmp_path / "config.json", {"inputs": {"problems": "b" * 64, "limit": None}})


def test_a_refusal_names_settings_as_the_user_writes_them_and_four_at_most(tmp_path: Path) -> None:
    plan, script = Recipe({}), {"turns": ["solve", "verify"], "words": "x" * 300}
    begun = asdict(RunConfigs.of(plan)) | {"inputs": {"limit": None, "model": "a" * 64}}
    RunFolder(tmp_path).pin(begun, {})
    (tmp_path / "iterations").mkdir()
    changed = json.loads(json.dumps(begun))
    changed["sample"] |= {"script": script, "correction": "no\nlook"}
    changed["eval"]["script"] = script
    changed["stage2"] |= {"alpha": 5.0, "kl": "full"}
    changed["run"]["stage1_by_attempt"] = True
    changed["inputs"]["limit"] = 8
    with pytest.raises(UserError) as error:
        RunFolder(tmp_path).pin(changed, {})
    assert str(error.value) == (
        f"{tmp_path} was begun with other settings (sample.correction was left out, is given; [script] was left out, "
        'is given; train-stage2.kl was "sampled", is "full"; train-stage2.alpha was 10.0, is 5.0; and 2 more): set '
        "them back, or name another --out, or go on from it under these with --fork FOLDER"
    )
    changed = json.loads(json.dumps(begun)) | {"inputs": {"limit": 8, "model": "a" * 64}}
    with pytest.raises(UserError, match=r"other settings \(--limit was left out, is 8\): set them back"):
        RunFolder(tmp_path).pin(changed, {})


def test_a_study_is_not_told_of_forks_and_not_shown_whole_recipes(tmp_path: Path) -> None:
    begun = {"study": {"seeds": [0], "limit": None}, "star": {"recipe": "[sample]\nsamples = 2\n"}}
    pin_config(tmp_path / "config.json", begun)
    with pytest.raises(UserError) as error:
        pin_config(
            tmp_path / "config.json",
            {"study": {"seeds": [0], "limit": 8}, "star": {"recipe": "[sample]\nsamples = 4\n"}},
        )
    assert str(error.value) == (
        f"{tmp_path} was begun with other settings (--limit was left out, is 8; the recipe of row star is another): "
        "set them back, or name another --out"
    )


def test_a_folder_of_an_earlier_version_is_refused_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "settings.json").write_text("{}")
    with pytest.raises(UserError, match="holds a run of an earlier version of score: name another --out"):
        RunFolder(tmp_path).pin(BEGUN, {})


@pytest.mark.parametrize("name", ["train.parquet", "base", "iterations"])
def test_what_a_run_would_take_for_its_own_work_is_refused(name: str, tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    (tmp_path / "notes.txt").write_text("anybody's")
    (tmp_path / name).mkdir(parents=True)
    with pytest.raises(UserError, match=f"holds no run, and {name}, which a run would take for its own"):
        folder.pin(BEGUN, {})
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([name, "notes.txt"])
    (tmp_path / "forked_from.json").write_text("{}")
    folder.pin(BEGUN, {})
