"""A table written part by part, so that a killed job loses only the part in flight.

    traces.parquet                      appears when all parts are there
    .traces.parquet.parts/00003.parquet a finished part; its footer says what it belongs to

A part is used again only if its footer is the one that the job would write now, so parts of other
settings, another policy, other inputs or another machine are written anew.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from score_cli.errors import UserError
from score_cli.tables.atomic import resumable_folder
from score_cli.tables.parquet import Table, join_tables, read_footer, write_table
from score_cli.tables.provenance import Footer


class Parts:
    """The parts of one table; made by `open_parts`."""

    def __init__(self, folder: Path, table: Table, footer: Footer, machine: str) -> None:
        self._folder = folder
        self._table = table
        self._footer = footer
        self._own = replace(footer, stage=f"{footer.stage}-part", inputs=footer.inputs | {"machine": machine})

    def has(self, number: int) -> bool:
        """Whether that part is there, whole, and of this very job."""
        try:
            found = read_footer(self._path(number), self._table)
        except UserError:
            return False
        return found is not None and found.to_bytes() == self._own.to_bytes()

    def write(self, number: int, rows: list[dict[str, Any]]) -> None:
        """Write one part, as one row group."""
        write_table(self._path(number), self._table, rows, self._own)

    def join(self, out: Path, count: int) -> None:
        """Write the table from its first `count` parts, in order."""
        join_tables([self._path(number) for number in range(count)], out, self._table, self._footer)

    def _path(self, number: int) -> Path:
        return self._folder / f"{number:05d}.parquet"


@contextmanager
def open_parts(out: Path, table: Table, footer: Footer, *, machine: str) -> Iterator[Parts]:
    """The parts of `out`: those that an interrupted run of this job left, and room for the others.

    Args:
        footer: of the finished table.
        machine: what may change the last bits of a part and stands in no footer.
    Raises:
        UserError: another process is writing `out`.
    """
    with resumable_folder(out) as folder:
        yield Parts(folder, table, footer, machine)
