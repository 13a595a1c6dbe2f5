"""Arguments that several commands share; a stage's dataclass as command-line options, and options back into it."""

import dataclasses
import functools
import inspect
import textwrap
import typing
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from score_cli.recipe import Recipe, read_recipe

Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace the output if it exists.")]
Problems = Annotated[Path, typer.Option(help="Problems table, made by `score data`.")]
Traces = Annotated[Path, typer.Option(help="Traces table, made by `score sample`.")]
Rewards = Annotated[Path, typer.Option(help="Rewards table, made by `score verify`.")]
Signals = Annotated[
    Path | None,
    typer.Option(help="Signals table of these traces, made by `score signal`, where [pay] of --config reads it."),
]
ScriptPart = Annotated[
    str | None,
    typer.Option(
        "--script",
        metavar="PASS",
        help="Of a [script] that begins with critique: solve, the generator's first solves; critique, a critic's of "
        "--from; revise, the generator's newest solve after --critiques.",
    ),
]
GivenSolves = Annotated[
    Path | None,
    typer.Option(
        "--from", help="Traces of solves that --script critique or revise builds its conversations from, newest solve."
    ),
]
Critiques = Annotated[
    Path | None,
    typer.Option(
        help="Critiques that --script revise answers. With --script critique, those of the round before: what they "
        "call correct gets no further round."
    ),
]
GivenRewards = Annotated[
    Path | None,
    typer.Option(help="Of critiques of given solves: the rewards of the solves, which their claims are judged by."),
]
Revisions = Annotated[
    Path | None, typer.Option(help="revision: traces of --script revise, whose rewards are the critiques' signal.")
]
Model = Annotated[Path, typer.Option(help="Policy: a checkpoint folder, or a Hugging Face model id.")]
Reference = Annotated[
    Path | None,
    typer.Option(help="Policy the KL terms are measured from: the start of the chain; left out, --model is the start."),
]
AllowForeign = Annotated[
    bool, typer.Option("--allow-foreign", help="Train on tables without a score footer; the policy is not proved.")
]
NewPhase = Annotated[
    bool,
    typer.Option(
        "--new-phase",
        help="--model ends one phase and starts another: fresh Adam moments, and --reference may be another policy "
        "than before (the model itself if left out).",
    ),
]

Command = Callable[..., None]

# The one option whose value, an object of JSON, --config takes in a recipe's place.
DATASET_CONFIG = "dataset_config"
RECIPE_HELP = "Recipe (TOML) whose table of this command's name sets options; the command line beats it."


def with_settings(
    kind: type, *, table: str, beside: Mapping[str, tuple[str, type]] | None = None
) -> Callable[[Command], Command]:
    """Give a command one option for each field of a dataclass, and `--config` for a recipe.

    The command's parameter `settings` receives the dataclass: the command line beats the recipe,
    the recipe beats the defaults.

    Args:
        beside: parameters of the command that the recipe alone fills: the table, and the dataclass, of each.
    """
    others = beside or {}

    def decorate(command: Command) -> Command:
        names = [field.name for field in _option_fields(kind)]
        own = [p for p in inspect.signature(command).parameters.values() if p.name not in {"settings", *others}]

        @functools.wraps(command)
        def wrapper(*, config: str | None, **values: Any) -> None:
            chosen = {name: values.pop(name) for name in names}
            if config is not None and config.lstrip().startswith("{") and DATASET_CONFIG in chosen:
                chosen[DATASET_CONFIG], config = config, None
            recipe = read_recipe(Path(config)) if config is not None else Recipe({})
            values |= {name: recipe.settings(other, whose) for name, (other, whose) in others.items()}
            command(settings=recipe.settings(table, kind, **chosen), **values)

        recipe_option = Annotated[str | None, typer.Option("--config", help=RECIPE_HELP, show_default=False)]
        parameters = [
            *(p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in own),
            inspect.Parameter("config", inspect.Parameter.KEYWORD_ONLY, default=None, annotation=recipe_option),
            *_field_parameters(kind),
        ]
        wrapper.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        wrapper.__annotations__ = {p.name: p.annotation for p in parameters}
        return wrapper

    return decorate


def _option_fields(kind: type) -> list[dataclasses.Field[Any]]:
    """The fields that are options: those with a help text."""
    return [field for field in dataclasses.fields(kind) if "help" in field.metadata]


def _help_text(field: dataclasses.Field[Any]) -> str:
    """What a setting means, and its default."""
    default = "" if field.default in (None, "") else f" [default: {field.default}]"
    return str(field.metadata["help"]) + default


def keys_help(table: str, kind: type) -> str:
    """The end of a help page: the keys of a recipe's table whose settings no command has as options."""
    lines, hints = [f"Keys of [{table}], for a recipe and --set {table}.KEY=VALUE:"], typing.get_type_hints(kind)
    for field in _option_fields(kind):
        words = "|".join(typing.get_args(hints[field.name])) if typing.get_origin(hints[field.name]) is Literal else ""
        text = f"{words}: {_help_text(field)}" if words else _help_text(field)
        indent = f"  {field.name:<24}"
        lines += textwrap.wrap(text, 78, initial_indent=indent, subsequent_indent=" " * len(indent))
    return "\b\n" + "\n".join(lines)


def _field_parameters(kind: type) -> list[inspect.Parameter]:
    """One option a field; unset is None, so that a recipe's value can stand."""
    hints = typing.get_type_hints(kind)
    parameters = []
    for field in _option_fields(kind):
        # Said in the help text, because typer would show the default of an unset option, which is None.
        option = typer.Option(help=_help_text(field), show_default=False)
        parameters.append(
            inspect.Parameter(
                field.name,
                inspect.Parameter.KEYWORD_ONLY,
                default=None,
                annotation=Annotated[hints[field.name] | None, option],
            )
        )
    return parameters
