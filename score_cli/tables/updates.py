"""The tables of a run's updates: a folder an update, and one folder for each hundred that is old.

iterations/0107/        traces, rewards, metrics, ... of update 107
iterations/0000-0099/   those of a hundred updates after one another, under the same names and with the same columns

So `iterations/*/traces.parquet` is every trace of a run. The footer of a table of many updates says which row groups
are whose, with the footer and the sha256 that each update's own table had: `opened` writes such a table again.
"""

import re
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from score_cli.errors import UserError
from score_cli.tables.atomic import replacing_folder
from score_cli.tables.parquet import (
    EXAMPLES,
    EXAMPLES_OF_DIALOGUES,
    REWARDS,
    SIGNALS,
    TRACES,
    TRAIN_METRICS,
    Table,
    count_row_groups,
    has_column,
    read_footer,
    read_table,
    writing_table,
)
from score_cli.tables.provenance import Footer, file_sha256
from score_cli.tables.traces import traces_table

_METRICS = "metrics.parquet"
# A table stands after those whose sha256 its footer names.
TABLES: dict[str, Table] = {
    "traces.parquet": TRACES,
    "rewards.parquet": REWARDS,
    "revisions.parquet": TRACES,
    "revisions.rewards.parquet": REWARDS,
    "signals.parquet": SIGNALS,
    "sft.parquet": EXAMPLES,
    _METRICS: TRAIN_METRICS,
}
STAGE = "compact"


@dataclass(frozen=True)
class _Span:
    """A folder that holds updates `first` to `last`, the last not included."""

    path: Path
    first: int
    last: int

    def __contains__(self, number: int) -> bool:
        return self.first <= number < self.last


class Updates:
    """The updates under one folder, wherever their tables lie."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def folder(self, number: int) -> Path:
        """Where an update writes its tables."""
        return self.root / f"{number:04d}"

    def numbers(self) -> list[int]:
        """Every update that has traces, ascending."""
        single = {int(path.parent.name) for path in self.root.glob("[0-9]*/traces.parquet") if _is_number(path.parent)}
        joined = {number for span in self._spans() for number in range(span.first, span.last)}
        return sorted(single | joined)

    def has(self, number: int) -> bool:
        """Whether anything of an update is here."""
        return self._span_of(number) is not None or self.folder(number).exists()

    def place(self, number: int) -> Path:
        """The folder that an update's tables are read from."""
        span = self._span_of(number)
        return self.folder(number) if span is None else span.path

    def places(self, numbers: Iterable[int]) -> list[Path]:
        """The folders that some updates' tables are read from, each of them once."""
        joined = {number: span.path for span in self._spans() for number in range(span.first, span.last)}
        return list(dict.fromkeys(joined.get(number) or self.folder(number) for number in numbers))

    def traces_footer(self, number: int) -> Footer | None:
        """What an update's traces say of themselves; None where there are none, or where they say nothing."""
        return self._footer(number, "traces.parquet")

    def source_footer(self, number: int) -> Footer | None:
        """As `traces_footer`; of an update that learned from given dialogues, what these say."""
        return self._footer(number, "traces.parquet") or self._footer(number, "sft.parquet")

    def _footer(self, number: int, name: str) -> Footer | None:
        path = self.place(number) / name
        footer = read_footer(path, TABLES[name]) if path.exists() else None
        if footer is None or footer.stage != STAGE:
            return footer
        found = next((entry for entry in footer.config["updates"] if entry["update"] == number), None)
        return None if found is None else Footer(**found["footer"])

    def metrics(self, first: int, last: int) -> Iterator[dict[str, Any]]:
        """The train metrics of updates `first` to `last`, the last not included, in order.

        Raises:
            UserError: an update has none.
        """
        for place in self.places(range(first, last)):
            for row in read_table(place / _METRICS, TRAIN_METRICS).to_pylist():
                if first <= row["iteration"] < last:
                    yield row

    @contextmanager
    def opened(self, number: int) -> Iterator[Path]:
        """A folder with the tables that an update wrote, under their names: its own, or a temporary one."""
        span = self._span_of(number)
        if span is None:
            yield self.folder(number)
            return
        with tempfile.TemporaryDirectory(prefix="score-update-") as folder:
            _extract(span.path, number, Path(folder))
            yield Path(folder)

    def compact(self, first: int, count: int) -> bool:
        """Put the tables of consecutive updates into one folder; a kill at any moment loses nothing.

        Returns:
            Whether it was done: not where one of them is missing, or their tables are of two kinds.
        """
        places = [self.folder(number) for number in range(first, first + count)]
        if any(self._span_of(number) is not None for number in range(first, first + count)):
            return False
        if not all((place / "traces.parquet").exists() or (place / "sft.parquet").exists() for place in places):
            return False
        kinds = {name: _kinds([place / name for place in places], table) for name, table in TABLES.items()}
        if any(len(found) > 1 for found in kinds.values()):
            return False
        with replacing_folder(self.root / f"{first:04d}-{first + count - 1:04d}") as out:
            for name, found in kinds.items():
                for table in found:
                    _join(name, table, {int(place.name): place / name for place in places}, out / name)
        self.tidy()
        return True

    def expand_from(self, number: int) -> None:
        """Give back a folder of its own to each update of a hundred that holds this update or later ones.

        They are to be done again: a run goes on from an older checkpoint than its newest.
        """
        for span in self._spans():
            if span.last <= number:
                continue
            for each in range(span.first, span.last):
                with replacing_folder(self.folder(each)) as folder:
                    _extract(span.path, each, folder)
            _drop(span.path)

    def tidy(self) -> None:
        """Remove what a killed process left of updates that stand in a folder of many."""
        for left in self.root.glob(".*.dropped"):
            shutil.rmtree(left)
        for span in self._spans():
            for number in range(span.first, span.last):
                for name in TABLES:
                    (self.folder(number) / name).unlink(missing_ok=True)
                with suppress(OSError):  # not there, or it holds a file that is not ours
                    self.folder(number).rmdir()

    def _spans(self) -> list[_Span]:
        found = []
        for path in self.root.glob("[0-9]*-[0-9]*"):
            if match := re.fullmatch(r"(\d+)-(\d+)", path.name):
                found.append(_Span(path, int(match[1]), int(match[2]) + 1))
        return sorted(found, key=lambda span: span.first)

    def _span_of(self, number: int) -> _Span | None:
        return next((span for span in self._spans() if number in span), None)


@contextmanager
def opened_beside(path: Path) -> Iterator[Path]:
    """A table of an update by the path that it had before its folder was joined with others; else the path itself."""
    updates = Updates(path.parent.parent)
    if path.exists() or not _is_number(path.parent) or not updates.has(int(path.parent.name)):
        yield path
        return
    with updates.opened(int(path.parent.name)) as folder:
        yield folder / path.name


def _is_number(path: Path) -> bool:
    return re.fullmatch(r"\d+", path.name) is not None


def _drop(folder: Path) -> None:
    """Remove a folder in one step: it vanishes under its name first."""
    dropped = folder.with_name(f".{folder.name}.dropped")
    folder.rename(dropped)
    shutil.rmtree(dropped)


def _kinds(paths: Sequence[Path], table: Table) -> list[Table]:
    """The kinds of table that some files are: none where no file is there."""
    return list(dict.fromkeys(_kind(path, table) for path in paths if path.exists()))


def _kind(path: Path, table: Table) -> Table:
    """The kind of a table that may have more columns than others of its name."""
    if table is EXAMPLES and has_column(path, EXAMPLES, "learned"):
        return EXAMPLES_OF_DIALOGUES
    return traces_table(path) if table is TRACES else table


def _join(name: str, table: Table, sources: Mapping[int, Path], out: Path) -> None:
    entries = []
    here = {number: path for number, path in sources.items() if path.exists()}
    for number, path in here.items():
        footer = read_footer(path, table)
        if footer is None:
            raise UserError(f"{path} was not made by score, so it cannot be kept with others: move it away")
        entry = {"update": number, "row_groups": count_row_groups(path, table), "sha256": file_sha256(path)}
        entries.append(entry | {"footer": asdict(footer)})
    with writing_table(out, table, Footer(table=table.name, stage=STAGE, config={"updates": entries})) as writer:
        for path in here.values():
            writer.copy_row_groups(path, table)


def _extract(joined: Path, number: int, out: Path) -> None:
    """Write the tables of one update again, as they were byte for byte.

    Another version of pyarrow may write other bytes. Then the tables made from a table name its new sha256 in place of
    the one that it had.
    """
    renamed: dict[str, str] = {}
    for name, kind in TABLES.items():
        source = joined / name
        if not source.exists():
            continue
        table = _kind(source, kind)
        found = _entry(source, table, number)
        if found is None:
            continue
        groups, entry = found
        footer = Footer(**entry["footer"])
        footer = replace(footer, inputs={role: renamed.get(sha, sha) for role, sha in footer.inputs.items()})
        with writing_table(out / name, table, footer) as writer:
            writer.copy_row_groups(source, table, groups)
        renamed[entry["sha256"]] = file_sha256(out / name)


def _entry(source: Path, table: Table, number: int) -> tuple[range, dict[str, Any]] | None:
    """Which row groups are an update's, and what else is known of its table."""
    footer = read_footer(source, table)
    if footer is None or footer.stage != STAGE:
        raise UserError(f"{source} does not say which rows are whose: restore it")
    start = 0
    for entry in footer.config["updates"]:
        if entry["update"] == number:
            return range(start, start + entry["row_groups"]), entry
        start += entry["row_groups"]
    return None
