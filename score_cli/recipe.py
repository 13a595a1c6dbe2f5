"""Recipes: TOML files with a table for each stage and a key for each of its options."""

import dataclasses
import json
import tomllib
import types
import typing
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from score_cli import config
from score_cli.errors import UserError, did_you_mean
from score_cli.run_config import AlarmsConfig, RunConfig
from score_cli.settings import check_config
from score_cli.tasks.pay import check_pay, read_pay
from score_cli.tasks.prompts import check_prompts
from score_cli.tasks.script import check_script, read_script

Settings = TypeVar("Settings")

# Table of a recipe -> the dataclass it fills; the tables are named like the commands.
TABLES: dict[str, type] = {
    "data": config.DataConfig,
    "dialogues": config.DialoguesConfig,
    "base": config.BaseConfig,
    "sample": config.SampleConfig,
    "verify": config.VerifyConfig,
    "signal": config.SignalConfig,
    "train-stage1": config.Stage1Config,
    "train-stage2": config.Stage2Config,
    "train-sft": config.SftConfig,
    "eval": config.EvalConfig,
    "report": config.ReportConfig,
    "run": RunConfig,
    "run.alarms": AlarmsConfig,
    "lora": config.LoraConfig,
}
# The most of each setting in a run that only tries a recipe out, and of the problems of each file.
TRY_OUT = {
    "base": {"steps": 50},
    "dialogues": {"size": 64},
    "sample": {"max_tokens": 64},
    "train-stage1": {"warmup_updates": 1},
    "train-stage2": {"warmup_updates": 1},
    "train-sft": {"epochs": 1},
    "eval": {"max_tokens": 64},
    "run": {
        "stage1_iterations": 2,
        "stage2_iterations": 2,
        "start_rounds": 1,
        "sft_rounds": 1,
        "sft_problems": 8,
        "best_every": 1,
    },
}
TRY_OUT_PROBLEMS = 8
SEED = "seed"
LORA = "lora"
PROMPTS = "prompts"
SCRIPT = "script"
PAY = "pay"
EXTENDS = "extends"
STUDY = "study"
# Fields of settings that tables of their own fill.
_APART = (PROMPTS, SCRIPT, PAY)
# What a recipe may be told to hold, in words.
_KINDS = {bool: "true or false", int: "a whole number", float: "a number", str: "text", dict: "a table", list: "a list"}
# Tables that hold tables, with what checks their keys.
_NESTED = {SCRIPT: check_script, PAY: check_pay}

Nested = dict[str, Any]


class Recipe:
    """The checked contents of a recipe file; an empty one leaves every default.

    Attributes:
        study: its table [study] as it stands, if it has one; `study.plan` reads it.
    """

    def __init__(
        self,
        tables: dict[str, dict[str, Any]],
        seed: int | None = None,
        prompts: config.Overrides = (),
        study: dict[str, Any] | None = None,
        nested: dict[str, Nested] | None = None,
    ) -> None:
        self._tables = tables
        self._prompts = prompts
        self._nested = nested or {}
        self.seed = seed
        self.study = study

    def settings(self, table: str, kind: type[Settings], /, **overrides: Any) -> Settings:
        """One stage's settings: overrides beat the recipe, the recipe beats the defaults.

        The recipe's top-level `seed`, and its table [lora], are those of every stage whose table has none of its own.
        """
        values = dict(self._tables.get(table, {}))
        names = {field.name for field in dataclasses.fields(kind)}  # type: ignore[arg-type]
        shared = {f"{LORA}_{key}": value for key, value in self._tables.get(LORA, {}).items()}
        if self.seed is not None:
            shared |= {SEED: self.seed} | ({} if f"{LORA}_{SEED}" in shared else {f"{LORA}_{SEED}": self.seed})
        values = {name: value for name, value in shared.items() if name in names} | values
        if PROMPTS in names:
            values[PROMPTS] = self._prompts
        values.update({name: value for name, value in overrides.items() if value is not None})
        script = read_script(self._nested[SCRIPT]) if self._nested.get(SCRIPT) else None
        if script is not None and SCRIPT in names:
            values[SCRIPT] = script
            if issubclass(kind, config.SamplingConfig):
                if "attempts" in values:
                    raise UserError(
                        f"{table}.attempts is {values['attempts']}, and [script] says what the turns are: leave one out"
                    )
                values["attempts"] = script.longest
        if self._nested.get(PAY) and PAY in names:
            values[PAY] = read_pay(self._nested[PAY], script)
        settings = kind(**values)
        check_config(settings, f"{table}.")
        return settings

    def extended(self, child: "Recipe") -> "Recipe":
        """This recipe with another's keys put over it, table by table."""
        tables = {name: dict(values) for name, values in self._tables.items()}
        for name, values in child._tables.items():
            tables.setdefault(name, {}).update(values)
        prompts = {(task, field): text for task, field, text in (*self._prompts, *child._prompts)}
        return Recipe(
            tables,
            self.seed if child.seed is None else child.seed,
            [[task, field, text] for (task, field), text in prompts.items()],
            self.study if child.study is None else child.study,
            {name: _merged(self._nested.get(name, {}), child._nested.get(name, {})) for name in _NESTED},
        )

    def as_toml(self) -> str:
        """The recipe as a file that says all of it by itself, but for its study."""
        tables = dict(self._tables)
        for task, field, text in self._prompts:
            tables.setdefault(f"{PROMPTS}.{task}", {})[field] = text
        for name, table in self._nested.items():
            tables |= _flat(name, table)
        lines = [] if self.seed is None else [f"{SEED} = {self.seed}"]
        for name, values in tables.items():
            # JSON's numbers, truth values and strings are TOML's too.
            lines += ["", f"[{name}]", *(f"{_key(k)} = {json.dumps(v, ensure_ascii=False)}" for k, v in values.items())]
        return "\n".join(lines).lstrip() + "\n"

    def has(self, table: str) -> bool:
        """Whether the recipe speaks of a stage."""
        return table in self._tables

    def try_out(self) -> None:
        """Cut what takes long down to what shows that all parts fit together; what is shorter stays.

        Nothing is learned from so few updates, and attempts as short are mostly cut off. The dialogues of a supervised
        start are as long as they are, so with one the attempts sampled stay as long as the recipe has them.
        """
        stays = set()
        run = self.settings("run", RunConfig)
        if run.best_every is None:  # none is kept
            stays.add("run.best_every")
        if run.start is not None:
            stays.add("sample.max_tokens")
        for table, most in TRY_OUT.items():
            values: Any = self.settings(table, TABLES[table])
            for key, number in most.items():
                value = getattr(values, key)
                if f"{table}.{key}" in stays:
                    continue
                if value is None or value > number:
                    self._tables.setdefault(table, {})[key] = number

    def change(self, assignments: Sequence[str]) -> None:
        """Apply assignments like `sample.max_tokens=64`, each as if it stood in the recipe.

        Raises:
            UserError: an assignment is not of that form, or would not be allowed in a recipe.
        """
        for assignment in assignments:
            place, equals, value = assignment.partition("=")
            table, dot, key = place.strip().rpartition(".")
            if not (equals and dot):
                raise UserError(f"--set {assignment}: expected TABLE.KEY=VALUE, such as sample.max_tokens=64")
            try:
                parsed = tomllib.loads(f"value = {value}")["value"]
            except tomllib.TOMLDecodeError:
                parsed = value.strip()
            name, _, within = table.partition(".")
            if name in _NESTED:
                change = {within: {key: parsed}} if within else {key: parsed}
                _NESTED[name](change, "--set: ")
                self._nested[name] = _merged(self._nested.get(name, {}), change)
                continue
            checked = check_table(Path("--set"), table, {key: parsed})
            self._tables.setdefault(table, {}).update(checked)


def read_recipe(path: Path, *, beneath: Recipe | None = None) -> Recipe:
    """Read and check a recipe, and those that it extends.

    `extends = "../quickstart.toml"` takes every key of another recipe that this one does not set
    itself; the path is relative to the recipe that names it.

    Args:
        beneath: keys put over the recipes that it extends, and under its own.
    Raises:
        UserError: no such file, not TOML, an unknown table or key (with its nearest neighbour), a
            value of the wrong kind, or recipes that extend each other in a circle.
    """
    return _read_chain(path, [], beneath or Recipe({}))


def _read_chain(path: Path, children: list[Path], beneath: Recipe) -> Recipe:
    """A recipe with what it extends; `children` are the recipes that led here."""
    if path.resolve() in children:
        raise UserError(f"{path} extends itself{' by way of others' if children[-1] != path.resolve() else ''}: end it")
    content = _read_toml(path)
    parent = content.pop(EXTENDS, None)
    base = Recipe({})
    if parent is not None:
        _check_value(path, EXTENDS, parent, str)
        base = _read_chain(path.parent / parent, [*children, path.resolve()], Recipe({}))
    seed = content.pop(SEED, None)
    if seed is not None:
        _check_value(path, SEED, seed, int)
    prompts = _check_prompts(path, content.pop(PROMPTS, {}))
    nested = {name: content.pop(name, {}) for name in _NESTED}
    for name, table in nested.items():
        _check_value(path, name, table, dict)
        _NESTED[name](table, f"{path}: ")
    study = content.pop(STUDY, None)
    if study is not None:
        _check_value(path, STUDY, study, dict)
    if isinstance(content.get("run"), dict) and "alarms" in content["run"]:
        content["run.alarms"] = content["run"].pop("alarms")
    tables = {table: check_table(path, table, values) for table, values in content.items()}
    return base.extended(beneath).extended(Recipe(tables, seed, prompts, study, nested))


def _merged(under: Nested, over: Nested) -> Nested:
    """One table with another's keys put over it; of tables within, key by key."""
    within = {key: {**under.get(key, {}), **value} for key, value in over.items() if isinstance(value, dict)}
    return {**under, **over, **within}


def _flat(name: str, table: Nested) -> dict[str, dict[str, Any]]:
    """A table and the tables within it, each under its whole name; nothing for an empty one."""
    within = {f"{name}.{key}": value for key, value in table.items() if isinstance(value, dict)}
    plain = {key: value for key, value in table.items() if not isinstance(value, dict)}
    return ({name: plain} if plain else {}) | within


def _key(name: str) -> str:
    """A key as TOML has it: in quotes where it is more than letters, digits, dashes and underscores."""
    return name if name.replace("-", "").replace("_", "").isalnum() and name.isascii() else json.dumps(name)


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text())
    except FileNotFoundError:
        raise UserError(f"{path} does not exist: name a recipe such as pipelines/quickstart.toml") from None
    except (UnicodeDecodeError, IsADirectoryError, NotADirectoryError):
        raise UserError(f"{path} is no text, expected a recipe: name one such as pipelines/quickstart.toml") from None
    except tomllib.TOMLDecodeError as error:
        raise UserError(f"{path} is not a TOML file: {error}") from None


def _check_prompts(path: Path, tables: Any) -> list[list[str]]:
    """Tables like [prompts.math] with texts for the fields of the task's prompts."""
    found = []
    for task, changes in tables.items() if isinstance(tables, dict) else [(PROMPTS, None)]:
        if not isinstance(changes, dict):
            raise UserError(f"{path}: {PROMPTS} holds no table {task}, expected [{PROMPTS}.TASK] with texts in it")
        for field, text in changes.items():
            check_prompts(task, {field: text})
            found.append([task, field, text])
    return found


def check_table(path: Path, table: str, values: Any) -> dict[str, Any]:
    """A recipe's table, checked key by key; whole numbers become floats where a float is meant."""
    if table not in TABLES:
        known = [EXTENDS, SEED, PROMPTS, *_NESTED, STUDY, *TABLES]
        raise UserError(f"{path}: no table is called [{table}]{did_you_mean(table, known)}")
    if not isinstance(values, dict):
        raise UserError(f"{path}: {table} is a value, expected a table: write [{table}]")
    kinds = typing.get_type_hints(TABLES[table])
    checked = {}
    for key, value in values.items():
        if key not in kinds or key in _APART:
            raise UserError(f"{path}: [{table}] has no key {key}{_key_hint(key, kinds)}")
        _check_value(path, f"[{table}] {key}", value, kinds[key])
        is_float = isinstance(value, int) and kinds[key] in (float, float | None)
        checked[key] = float(value) if is_float else value
    return checked


def _key_hint(key: str, kinds: Iterable[str]) -> str:
    """The end of a message about an unknown key: the tables that have it, or the nearest of this table's keys."""
    known = {name: [k for k in typing.get_type_hints(kind) if k not in _APART] for name, kind in TABLES.items()}
    tables = [f"[{name}]" for name, keys in known.items() if key in keys]
    return (
        f": it is a key of {', '.join(tables)}" if tables else did_you_mean(key, [k for k in kinds if k not in _APART])
    )


def _check_value(path: Path, key: str, value: Any, kind: Any) -> None:
    if typing.get_origin(kind) is typing.Literal:
        if value not in typing.get_args(kind):
            raise UserError(f"{path}: {key} is {as_written(value)}, expected one of {', '.join(typing.get_args(kind))}")
        return
    kinds = typing.get_args(kind) if isinstance(kind, types.UnionType) else (kind,)
    wanted = [kind for kind in kinds if kind is not type(None)]
    # bool is an int to Python; a recipe that says `samples = true` is still wrong.
    fits = any(type(value) is kind or (kind is float and type(value) is int) for kind in wanted)
    if not fits:
        names = " or ".join(_KINDS[kind] for kind in wanted)
        raise UserError(f"{path}: {key} is {as_written(value)}, expected {names}")


def as_written(value: Any) -> str:
    """A value as TOML has it."""
    return json.dumps(value, ensure_ascii=False, default=str)
