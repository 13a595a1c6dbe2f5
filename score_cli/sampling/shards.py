"""Sampling in shards: which chunks each takes, and `score merge`, which joins their files."""

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple, TypeVar

from score_cli.errors import UserError
from score_cli.tables.atomic import check_output
from score_cli.tables.parquet import TRACES, join_tables, read_footer
from score_cli.tables.provenance import Footer

Chunk = TypeVar("Chunk")


class Shard(NamedTuple):
    """The `part`-th of `of` slices of the work, counted from 1."""

    part: int
    of: int

    @staticmethod
    def parse(text: str) -> "Shard":
        """Read `2/3`.

        Raises:
            UserError: it is not of that form.
        """
        if re.fullmatch("[0-9]{1,9}/[0-9]{1,9}", text):
            shard = Shard(*map(int, text.split("/")))
            if 1 <= shard.part <= shard.of:
                return shard
        raise UserError(f"shard is {text}, expected I/N with I from 1 to N, such as 1/3")

    def __str__(self) -> str:
        return f"{self.part}/{self.of}"

    def slice(self, chunks: Sequence[Chunk]) -> list[Chunk]:
        """This shard's consecutive chunks; the shards' slices after one another are all of them.

        Raises:
            UserError: there are fewer chunks than shards.
        """
        if len(chunks) < self.of:
            raise UserError(
                f"shard is {self}, but there are only {len(chunks)} chunks of problems: "
                f"use at most {len(chunks)} shards, or lower --chunk-problems"
            )
        start, end = ((self.part + step) * len(chunks) // self.of for step in (-1, 0))
        return list(chunks[start:end])


def merge(shards: Sequence[Path], *, out: Path, overwrite: bool = False) -> int:
    """Join the traces of all shards of one sampling job into the file of the whole.

    Args:
        shards: one file a shard, in any order.
    Returns:
        How many shards there were.
    Raises:
        UserError: a file is no shard, is another job's, stands twice, or is missing; nothing is written.
    """
    check_output(out, overwrite=overwrite)
    found: dict[Shard, Path] = {}
    whole: Footer | None = None
    for path in shards:
        shard, footer = _shard_of(path)
        whole = whole or footer
        if footer != whole:
            raise UserError(
                f"{path} is not of the same job as {shards[0]} ({_difference(whole, footer)}): "
                "merge shards of one policy, one problems file and one set of settings"
            )
        if shard in found:
            raise UserError(f"{path} and {found[shard]} are both shard {shard}: give each shard once")
        found[shard] = path
    if whole is None:
        raise UserError("no shard was given, expected the traces of every shard: name their files")
    count = next(iter(found)).of
    others = [f"{path} is shard {shard}" for shard, path in found.items() if shard.of != count]
    if others:
        raise UserError(f"{shards[0]} is one of {count} shards, but {others[0]}: merge shards of one cutting")
    every = [Shard(part, count) for part in range(1, count + 1)]
    missing = [str(shard) for shard in every if shard not in found]
    if missing:
        raise UserError(
            f"shard {', '.join(missing)} is missing: sample it with --shard {missing[0]}, and give all {count} files"
        )
    join_tables([found[shard] for shard in every], out, TRACES, whole)
    return count


def _shard_of(path: Path) -> tuple[Shard, Footer]:
    """Which shard a file is, and the footer of the whole it belongs to."""
    footer = read_footer(path, TRACES)
    text = None if footer is None else footer.config.get("shard")
    if footer is None or text is None:
        raise UserError(f"{path} is not a shard: `score sample --shard I/N` makes them")
    return Shard.parse(text), replace(footer, config=footer.config | {"shard": None})


def _difference(one: Footer, other: Footer) -> str:
    """The first thing in which two footers differ."""
    for name in ("policy", "seed"):
        if getattr(one, name) != getattr(other, name):
            return f"another {name}"
    for role in sorted(one.inputs.keys() | other.inputs.keys()):
        if one.inputs.get(role) != other.inputs.get(role):
            return f"another input: {role}"
    for key in sorted(one.config.keys() | other.config.keys()):
        if one.config.get(key) != other.config.get(key):
            return f"{key} is {other.config.get(key)}, not {one.config.get(key)}"
    return "another footer"
