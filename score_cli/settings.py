"""What a setting is: a dataclass field with a help text and bounds; how one is declared, checked and read back."""

import math
from collections.abc import Mapping
from dataclasses import field, fields, is_dataclass
from typing import Any, TypeVar, get_args, get_type_hints

from score_cli.errors import UserError

Config = TypeVar("Config")


def option(
    default: Any,
    text: str,
    *,
    least: float | None = None,
    above: float | None = None,
    most: float | None = None,
    counts: bool = False,
) -> Any:
    """A dataclass field with its help text and the values it may take; `counts` is text like 1,2,4."""
    return field(
        default=default, metadata={"help": text, "least": least, "above": above, "most": most, "counts": counts}
    )


def read_counts(text: str | None, name: str) -> list[int]:
    """The numbers of an option like `--votes 1,2,4`, in rising order; none where it was left out.

    Raises:
        UserError: not whole numbers of at least 1.
    """
    parts = [part.strip() for part in text.split(",")] if text is not None else []
    if not all(part.isascii() and part.isdigit() and int(part) > 0 for part in parts):
        raise UserError(f"{name} is {text}, expected whole numbers of at least 1 with commas between, such as 1,2,4")
    return sorted({int(part) for part in parts})


def check_config(settings: Any, table: str = "") -> None:
    """Check every field against its bounds, before any work is done.

    Args:
        table: what a message puts before a field's name: of a recipe's table its name and a dot.
    Raises:
        UserError: a value is out of bounds or not a finite number.
    """
    for each in fields(settings):
        value = getattr(settings, each.name)
        if each.metadata.get("counts"):
            read_counts(value, f"{table}{each.name}")
        if isinstance(value, bool) or not isinstance(value, int | float):
            continue
        least, above, most = (each.metadata.get(bound) for bound in ("least", "above", "most"))
        bounds = [
            (least is None or value >= least, f"at least {least:g}" if least is not None else ""),
            (above is None or value > above, f"more than {above:g}" if above is not None else ""),
            (most is None or value <= most, f"at most {most:g}" if most is not None else ""),
            (math.isfinite(value), "a finite number"),
        ]
        expected = [text for holds, text in bounds if not holds]
        if expected:
            raise UserError(f"{table}{each.name} is {value}, expected {expected[0]}")


def config_of(kind: type[Config], values: Mapping[str, Any]) -> Config:
    """A dataclass from the JSON of one; a key that is not written down is its default."""
    hints = get_type_hints(kind)
    found = {}
    for each in fields(kind):  # type: ignore[arg-type]
        if each.name in values:
            hint = hints[each.name]
            kinds = [one for one in (*get_args(hint), hint) if isinstance(one, type) and is_dataclass(one)]
            nested = isinstance(values[each.name], dict) and kinds
            found[each.name] = config_of(kinds[0], values[each.name]) if nested else values[each.name]
    return kind(**found)
