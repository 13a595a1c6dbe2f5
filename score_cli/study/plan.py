"""What a study is: its rows, its seeds, the settings tried for each row. Read from a recipe's `[study]` table."""

import itertools
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from score_cli.config import BaseConfig, SampleConfig, SftConfig, Stage1Config, Stage2Config
from score_cli.errors import UserError, did_you_mean
from score_cli.phases import BASE, plan_phases
from score_cli.recipe import STUDY, Recipe, as_written, check_table, read_recipe
from score_cli.run_config import RunConfig
from score_cli.settings import read_counts

# Stages that run a model: in a study each of them takes one thread, for the processes run side by side.
THREADED = ("base", "sample", "train-stage1", "train-stage2", "train-sft", "eval")

Changes = dict[str, Any]  # "train-sft.epochs" -> value
Check = tuple[Callable[[Any], bool], str]  # whether a value fits, and what is expected


@dataclass(frozen=True, kw_only=True)
class OwnTable:
    """A table `[study.tables.NAME]`: rows by their own measures, every policy of theirs from the base on.

    Attributes:
        columns: names of the metrics table.
        training: names that updates log, such as `judge_gap@t1` or `delta@t2`: means of the first and the last ones.
        words: what the table shows.
    """

    rows: Sequence[str]
    columns: Sequence[str]
    training: Sequence[str] = ()
    words: str = ""


@dataclass(frozen=True, kw_only=True)
class StudyConfig:
    """The `[study]` table.

    Attributes:
        rows: names of recipes in `recipes`, in the order of the printed table.
        seeds: of base and training.
        tuning_seeds: those of them that settings are chosen on, by their mean; the first alone if left out.
        workers: processes side by side, of one thread each.
        recipes: folder of the rows' recipes, from where the study's own lies.
        first_attempts_of_base: rows also measured after first attempts of the base.
        further: row also measured with more attempts and by votes.
        votes: K,K,... of the votes.
        most_attempts: most attempts of one trace.
        attempt_tokens: tokens of one attempt where there are more than two.
        grid: row -> key -> the values tried.
        tuned_like: row -> rows whose chosen values it takes.
        tables: name -> a table of its own, which takes its rows out of the paper's.
    """

    rows: Sequence[str]
    seeds: Sequence[int]
    tuning_seeds: Sequence[int] = ()
    workers: int = 2
    recipes: str = "ablations"
    first_attempts_of_base: Sequence[str] = ()
    further: str | None = None
    votes: str = "1,2,4,8,16"
    most_attempts: int = 10
    attempt_tokens: int = 12
    grid: Mapping[str, Mapping[str, Sequence[Any]]] = field(default_factory=dict)
    tuned_like: Mapping[str, Sequence[str]] = field(default_factory=dict)
    tables: Mapping[str, OwnTable] = field(default_factory=dict)


@dataclass(frozen=True)
class Study:
    """A study that was seen to be possible: its settings, and the recipe of every row."""

    config: StudyConfig
    recipes: Mapping[str, Recipe]

    def policy_of(self, row: str) -> str:
        """Name of the policy that a row's run ends in."""
        recipe = self.recipes[row]
        phases = plan_phases(
            recipe.settings("run", RunConfig),
            stage1=recipe.settings("train-stage1", Stage1Config),
            stage2=recipe.settings("train-stage2", Stage2Config),
            sft=recipe.settings("train-sft", SftConfig),
            attempts=recipe.settings("sample", SampleConfig).attempts,
        )
        return phases[-1].name if phases else BASE

    def base_row(self, row: str) -> str:
        """The row whose run trains the base that a row starts from.

        Of the rows with equal bases it is the first that trains nothing else, or, where all do, the first.
        """
        own = self.recipes[row].settings("base", BaseConfig)
        alike = [other for other in self.config.rows if self.recipes[other].settings("base", BaseConfig) == own]
        return next((other for other in alike if self.policy_of(other) == BASE), alike[0])

    @property
    def tuning_seeds(self) -> Sequence[int]:
        """The seeds that settings are chosen on."""
        return self.config.tuning_seeds or self.config.seeds[:1]

    def tuned_by(self, row: str) -> list[str]:
        """The rows whose chosen settings a row takes: its own, and those of the rows it is tuned like."""
        return [row] * (row in self.config.grid) + list(self.config.tuned_like.get(row, ()))

    def recipe(self, row: str, changes: Mapping[str, Any]) -> Recipe:
        """A row's recipe with further settings put over it."""
        tables: dict[str, dict[str, Any]] = {}
        for name, value in changes.items():
            table, _, key = name.rpartition(".")
            tables.setdefault(table, {})[key] = value
        return self.recipes[row].extended(Recipe(tables))

    def described(self) -> dict[str, dict[str, Any]]:
        """All that the results depend on, not how many processes work at them or how they are shown."""
        own = asdict(self.config)
        del own["workers"], own["tables"]
        if not own["tuning_seeds"]:
            del own["tuning_seeds"]
        return {STUDY: own, **{row: {"recipe": recipe.as_toml()} for row, recipe in self.recipes.items()}}


def read_study(path: Path, recipe: Recipe) -> Study:
    """Check a recipe's `[study]` table, and read the recipes of its rows.

    What else the study's recipe sets holds for every row that does not set it in its own lines.

    Args:
        path: of the recipe, for its rows and for messages.
    Raises:
        UserError: a key, row, seed or setting that cannot be.
    """
    config = _read_config(path, recipe.study or {})
    folder = path.parent / config.recipes
    known = sorted(file.stem for file in folder.glob("*.toml"))
    if not known:
        raise UserError(f"{path}: {folder} holds no recipes: give [study] recipes the folder of the rows' recipes")
    for row in [*config.rows, *config.grid, *config.tuned_like]:
        if row not in known:
            raise UserError(f"{path}: {folder} has no recipe of a row {row}{did_you_mean(row, known)}")
    named = itertools.chain(config.first_attempts_of_base, config.grid, config.tuned_like, *config.tuned_like.values())
    shown = itertools.chain(*(table.rows for table in config.tables.values()))
    for row in [*named, *([] if config.further is None else [config.further]), *shown]:
        if row not in config.rows:
            raise UserError(f"{path}: [study] speaks of row {row}, which its rows lack: add it, or leave it out")
    strange = set(config.tuning_seeds) - set(config.seeds)
    if strange:
        raise UserError(f"{path}: [study] tunes on seed {min(strange)}, which its seeds lack: add it, or leave it out")
    untuned = {row for rows in config.tuned_like.values() for row in rows} - set(config.grid)
    if untuned:
        raise UserError(f"{path}: rows are tuned like {min(untuned)}, which has no grid: give it one")
    own_thread = Recipe({table: {"threads": 1} for table in THREADED})
    recipes = {row: read_recipe(folder / f"{row}.toml", beneath=recipe).extended(own_thread) for row in config.rows}
    for row in config.rows:
        recipes[row].settings("base", BaseConfig)
    for row, grid in config.grid.items():
        _check_grid(path, row, grid)
    study = Study(config, recipes)
    if BASE in config.rows and study.policy_of(BASE) != BASE:
        raise UserError(f"{path}: row {BASE} trains a {study.policy_of(BASE)} policy, expected one without iterations")
    return study


def expand_grid(grid: Mapping[str, Sequence[Any]]) -> list[Changes]:
    """Every combination of a grid's values; the last key's values change fastest."""
    return [dict(zip(grid, values, strict=True)) for values in itertools.product(*grid.values())]


def choose(values: Sequence[float]) -> int:
    """Index of the largest value; of equal ones the first, which stands for the settings written first."""
    return max(range(len(values)), key=lambda index: (values[index], -index))


def attempts_that_fit(*, context: int, prompt: int, bridge: int, attempt: int, most: int) -> int:
    """The most attempts of a trace, at most `most`; all else is in tokens, each the largest there is.

    A trace is the prompt, then attempts with a bridge between each two.
    """
    return min(most, (context - prompt + bridge) // (attempt + bridge))


def _read_config(path: Path, table: Mapping[str, Any]) -> StudyConfig:
    _check_keys(f"{path}: [study]", table, _CHECKS, {"rows": '["base", "score"]', "seeds": "[0, 1, 2]"})
    own = {name: _read_table(path, name, content) for name, content in table.get("tables", {}).items()}
    config = StudyConfig(**{**table, "tables": own})
    read_counts(config.votes, "votes")
    return config


def _read_table(path: Path, name: str, content: Mapping[str, Any]) -> OwnTable:
    needed = {"rows": '["s2r"]', "columns": '["acc@t1", "acc@final"]'}
    _check_keys(f"{path}: [study.tables.{name}]", content, _TABLE_CHECKS, needed)
    return OwnTable(**content)


def _check_keys(place: str, table: Mapping[str, Any], checks: Mapping[str, Check], needed: Mapping[str, str]) -> None:
    """Every key is known and fits, and none is missing of those needed, each with an example."""
    for key, value in table.items():
        if key not in checks:
            raise UserError(f"{place} has no key {key}{did_you_mean(key, list(checks))}")
        fits, expected = checks[key]
        if not fits(value):
            raise UserError(f"{place} {key} is {as_written(value)}, expected {expected}")
    for key, example in needed.items():
        if not table.get(key):
            raise UserError(f"{place} has no {key}: give it some, such as {key} = {example}")


def _is_list(value: Any, kind: type) -> bool:
    whole = isinstance(value, list) and all(type(part) is kind for part in value)
    return whole and len(set(value)) == len(value) and (kind is str or all(part >= 0 for part in value))


def _is_grid(value: Any) -> bool:
    grids = list(value.values()) if isinstance(value, dict) else [None]
    return all(isinstance(grid, dict) and all(isinstance(v, list) and v for v in grid.values()) for grid in grids)


_TEXT = (lambda value: isinstance(value, str), "text")
_COUNT = (lambda value: type(value) is int and value >= 1, "a whole number of at least 1")
_NAMES = (partial(_is_list, kind=str), "a list of texts without repetitions")
_EACH = "a table for each row, with lists in it"
# Key of [study] -> what it must be.
_CHECKS: dict[str, Check] = {
    **dict.fromkeys(("recipes", "votes", "further"), _TEXT),
    **dict.fromkeys(("workers", "most_attempts", "attempt_tokens"), _COUNT),
    **dict.fromkeys(("rows", "first_attempts_of_base"), _NAMES),
    **dict.fromkeys(
        ("seeds", "tuning_seeds"), (partial(_is_list, kind=int), "a list of whole numbers without repetitions")
    ),
    "grid": (_is_grid, _EACH),
    "tuned_like": (lambda value: isinstance(value, dict) and all(_is_list(v, str) for v in value.values()), _EACH),
    "tables": (lambda value: isinstance(value, dict) and all(isinstance(v, dict) for v in value.values()), "tables"),
}
# Key of [study.tables.NAME] -> what it must be.
_TABLE_CHECKS: dict[str, Check] = {
    **dict.fromkeys(("rows", "columns", "training"), _NAMES),
    "words": _TEXT,
}


def _check_grid(path: Path, row: str, grid: Mapping[str, Sequence[Any]]) -> None:
    """Every key of a grid is a key of recipes, written `train-sft.epochs`, and every value one that it may take."""
    for name, values in grid.items():
        table, dot, key = name.rpartition(".")
        if not dot:
            raise UserError(f"{path}: the grid of {row} has key {name}, expected TABLE.KEY such as train-sft.epochs")
        for value in values:
            check_table(path, table, {key: value})


def describe(changes: Mapping[str, Any]) -> str:
    """Settings in one line: `train-sft.learning_rate=0.0001, train-sft.epochs=3`."""
    return ", ".join(
        f"{name}={value if isinstance(value, str) else json.dumps(value)}" for name, value in changes.items()
    )
