"""Recipes that extend others, and the phases that a run makes of a recipe."""

import re
import tomllib
from pathlib import Path

import pytest

from score_cli.config import SampleConfig, SftConfig, Stage1Config, Stage2Config
from score_cli.errors import UserError
from score_cli.phases import Phase, plan_phases
from score_cli.recipe import Recipe, read_recipe
from score_cli.run_config import RunConfig

ROOT = Path(__file__).parents[1]
ABLATIONS = ROOT / "pipelines" / "ablations"


def write(folder: Path, **recipes: str) -> dict[str, Path]:
    paths = {name: folder / f"{name}.toml" for name in recipes}
    for name, text in recipes.items():
        paths[name].write_text(text)
    return paths


def test_a_childs_keys_beat_its_parents_and_the_parents_the_grandparents(tmp_path: Path) -> None:
    (tmp_path / "below").mkdir()
    write(
        tmp_path,
        old="seed = 1\n[sample]\nsamples = 2\nattempts = 3\nmax_tokens = 4\n[prompts.math]\nsystem = 'old'",
        middle="seed = 5\nextends = 'old.toml'\n[sample]\nsamples = 6\nattempts = 7",
    )
    child = write(
        tmp_path / "below",
        new="extends = '../middle.toml'\n[sample]\nsamples = 8\n[train-stage2]\nalpha = 9\n"
        "[prompts.math]\nsystem = 'new'",
    )["new"]
    recipe = read_recipe(child)
    settings = recipe.settings("sample", SampleConfig)
    assert (settings.samples, settings.attempts, settings.max_tokens, settings.seed) == (8, 7, 4, 5)
    assert settings.prompts == [["math", "system", "new"]]
    assert recipe.settings("train-stage2", Stage2Config).alpha == 9.0


def test_a_mistake_in_a_parent_names_the_parent(tmp_path: Path) -> None:
    paths = write(tmp_path, parent="[sample]\nsampels = 8", child="extends = 'parent.toml'\n[sample]\nsamples = 2")
    with pytest.raises(UserError, match=r"parent.toml: \[sample\] has no key sampels: did you mean samples"):
        read_recipe(paths["child"])


def test_recipes_that_extend_each_other_are_refused(tmp_path: Path) -> None:
    paths = write(tmp_path, a="extends = 'b.toml'", b="extends = 'c.toml'", c="extends = './a.toml'")
    for path in paths.values():
        with pytest.raises(UserError, match=f"{path.name} extends itself by way of others"):
            read_recipe(path)


def test_the_same_grandparent_twice_is_no_circle(tmp_path: Path) -> None:
    paths = write(tmp_path, old="[sample]\nsamples = 2", new="extends = 'old.toml'", newer="extends = 'new.toml'")
    assert read_recipe(paths["newer"]).settings("sample", SampleConfig).samples == 2


STAGE1, STAGE2, SFT = Stage1Config(), Stage2Config(), SftConfig()


def plan(attempts: int = 2, **run: object) -> list[tuple[str, str, int, int, int, str]]:
    phases = plan_phases(RunConfig(**run), stage1=STAGE1, stage2=STAGE2, sft=SFT, attempts=attempts)  # type: ignore[arg-type]
    return [told(phase) for phase in phases]


def told(phase: Phase) -> tuple[str, str, int, int, int, str]:
    kind = type(phase.config).__name__.removesuffix("Config").lower()
    return phase.name, kind, phase.first, phase.last, phase.attempts, phase.reference


def test_the_two_stages_follow_each_other_against_the_base() -> None:
    assert plan(stage1_iterations=3, stage2_iterations=4) == [
        ("stage1", "stage1", 0, 3, 2, "base"),
        ("stage2", "stage2", 3, 7, 2, "base"),
    ]
    assert plan(stage2_iterations=4, attempts=1) == [("stage2", "stage2", 0, 4, 1, "base")]
    assert plan() == []


@pytest.mark.parametrize(
    ("after", "order"), [("base", ["sft", "stage1", "stage2"]), ("stage1", ["stage1", "sft", "stage2"])]
)
def test_supervised_rounds_stand_where_they_are_put(after: str, order: list[str]) -> None:
    found = plan(stage1_iterations=3, stage2_iterations=4, sft_rounds=2, sft_after=after)
    assert [row[0] for row in found] == order
    assert [row[3] - row[2] for row in found if row[0] == "sft"] == [2]
    assert [row[2] for row in found[1:]] == [row[3] for row in found[:-1]]


def test_rounds_after_a_stage_without_iterations_are_refused() -> None:
    with pytest.raises(UserError, match="run.sft_after is stage1, which has no iterations"):
        plan(sft_rounds=2, sft_after="stage1")


def test_stage_one_split_by_attempt_is_refused_where_there_is_one_attempt() -> None:
    with pytest.raises(UserError, match="run.stage1_by_attempt splits Stage I .* sample.attempts is 1"):
        plan(stage1_iterations=3, stage2_iterations=4, stage1_by_attempt=True, attempts=1)


def test_three_attempts_are_trained_in_two_parts_of_stage_one_and_stage_two() -> None:
    """Stage I (a): two attempts against the base; (b): three against the policy of (a); Stage II against the base."""
    assert plan(stage1_iterations=3, stage2_iterations=4, stage1_by_attempt=True, attempts=3) == [
        ("stage1-t2", "stage1", 0, 3, 2, "base"),
        ("stage1-t3", "stage1", 3, 6, 3, "stage1-t2"),
        ("stage2", "stage2", 6, 10, 3, "base"),
    ]
    assert plan(stage1_iterations=3, stage1_by_attempt=True) == [("stage1", "stage1", 0, 3, 2, "base")]


# What sets each recipe apart from the quickstart, after the paper's Tables 1, 2 and 4; written by hand.
DIFFERENCES: dict[str, dict[str, object]] = {
    "score": {},
    "base": {"run.stage1_iterations": 0, "run.stage2_iterations": 0},
    "self-refine": {"eval.correction": "<check>", "run.stage1_iterations": 0, "run.stage2_iterations": 0},
    "single-turn": {"sample.attempts": 1, "run.stage1_iterations": 0, "run.stage2_iterations": 70},
    "naive-multi-turn": {"train-stage2.alpha": 0.0, "run.stage1_iterations": 0, "run.stage2_iterations": 70},
    "no-stage1": {"run.stage1_iterations": 0, "run.stage2_iterations": 70},
    "no-shaping": {"train-stage2.alpha": 0.0},
    "stagnation-penalty": {"train-stage2.stagnation_penalty": 10.0},
    "discount": {"train-stage1.discount": 0.8, "train-stage2.discount": 0.8},
    "bonus-to-first": {"train-stage2.discount": 1.0},
    "three-attempts": {
        "base.attempts": 3,
        "sample.attempts": 3,
        "eval.attempts": 3,
        "run.stage1_by_attempt": True,
    },
    "more-attempts": {"base.attempts": 10, "eval.attempts": 10},
    "no-online-first-attempts": {"run.offline_first_attempts": 1.0},
    "star-for-stage2": {
        "train-sft.method": "star",
        "run.stage2_iterations": 0,
        "run.sft_rounds": 3,
        "run.sft_after": "stage1",
    },
    **{
        name: {
            "train-sft.method": name,
            "run.stage1_iterations": 0,
            "run.stage2_iterations": 0,
            "run.sft_rounds": rounds,
        }
        for name, rounds in (("star", 3), ("star-plus", 3), ("pair-sft", 1), ("pair-sft-plus", 1))
    },
}


def flat(path: Path) -> dict[str, object]:
    content = tomllib.loads(path.read_text())
    assert content.pop("extends", "../quickstart.toml") == "../quickstart.toml"
    return {f"{table}.{key}": value for table, values in content.items() for key, value in values.items()}


@pytest.mark.parametrize("path", sorted(ABLATIONS.glob("*.toml")), ids=lambda path: path.stem)
def test_an_ablation_differs_from_the_quickstart_by_the_lines_that_name_it(path: Path) -> None:
    differences = flat(path)
    differences.pop("run.sft_problems", None)
    assert differences == DIFFERENCES[path.stem]
    recipe, settings = read_recipe(path), RunConfig()
    for name, value in differences.items():
        table, key = name.split(".")
        kind = {"sample": SampleConfig, "train-stage1": Stage1Config, "train-stage2": Stage2Config}.get(table)
        if kind is not None:
            assert getattr(recipe.settings(table, kind), key) == value
    settings = recipe.settings("run", RunConfig)
    assert settings.stage1_iterations == differences.get("run.stage1_iterations", 40)
    assert settings.sft_rounds == differences.get("run.sft_rounds", 0)


@pytest.mark.parametrize("name", ["single-turn", "naive-multi-turn", "no-stage1"])
def test_an_ablation_without_stage_one_takes_as_many_updates_as_the_quickstart(name: str) -> None:
    paths = (ABLATIONS / f"{name}.toml", ABLATIONS.parent / "quickstart.toml")
    ours, whole = (read_recipe(path).settings("run", RunConfig) for path in paths)
    assert ours.stage1_iterations + ours.stage2_iterations == whole.stage1_iterations + whole.stage2_iterations


def test_every_ablation_is_there() -> None:
    assert {path.stem for path in ABLATIONS.glob("*.toml")} == set(DIFFERENCES)
    for path in ABLATIONS.glob("*.toml"):
        assert re.match(r"# .+", path.read_text()), path


def test_an_empty_recipe_extends_nothing() -> None:
    assert Recipe({}).extended(Recipe({"run": {"sft_rounds": 1}})).settings("run", RunConfig).sft_rounds == 1
