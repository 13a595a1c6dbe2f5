"""Reading and writing tables as Parquet: checked on the way in, whole or absent on the way out."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from score_cli.errors import UserError
from score_cli.tables import schemas
from score_cli.tables.atomic import replacing_file
from score_cli.tables.provenance import FOOTER_KEY, Footer

ROWS_PER_BATCH = 1024


@dataclass(frozen=True)
class Table:
    """A kind of table: its name, its columns, and the command that makes one.

    `needed` names the columns that a file made by hand must have, where they are fewer than all; their kinds are then
    the reader's to check.
    """

    name: str
    schema: pa.Schema
    made_by: str
    needed: tuple[str, ...] | None = None


PROBLEMS = Table("problems", schemas.PROBLEMS, "score data", needed=("problem_id", "question"))
TRACES = Table("traces", schemas.TRACES, "score sample")
TRACE_COLUMNS = (schemas.ROLES_COLUMN, schemas.GIVEN_COLUMN)
REWARDS = Table("rewards", schemas.REWARDS, "score verify")
SIGNALS = Table("signals", schemas.SIGNALS, "score signal")
EXAMPLES = Table("examples", schemas.EXAMPLES, "score train-sft")
EXAMPLES_OF_DIALOGUES = Table("examples", schemas.EXAMPLES_OF_DIALOGUES, "score train-sft")
METRICS = Table("metrics", schemas.METRICS, "score eval")
TRAIN_METRICS = Table("train_metrics", schemas.TRAIN_METRICS, "score run")
STUDY = Table("study", schemas.STUDY, "score run")
TUNING = Table("tuning", schemas.TUNING, "score run")


def traces_with(*names: str) -> Table:
    """The traces table with some of the columns that it has only where they are needed."""
    schema = schemas.TRACES
    for column in TRACE_COLUMNS:
        schema = schema.append(column) if column.name in names else schema
    return Table(TRACES.name, schema, TRACES.made_by)


def _open(path: Path, table: Table) -> pq.ParquetFile:
    if not path.exists():
        raise UserError(f"{path} does not exist: `{table.made_by}` makes it")
    if path.is_dir():
        places = (f"{folder}*{table.name}.parquet" for folder in ("", "eval/", "iterations/*/"))
        found = next((file for place in places for file in path.glob(place)), None)
        such = "" if found is None else f", such as {found}"
        raise UserError(f"{path} is a folder, expected a {table.name} table: name the Parquet file in it{such}")
    if table is PROBLEMS and path.suffix in (".csv", ".json", ".jsonl"):
        raise UserError(f"{path} is no problems table: `score data custom --from {path}` makes one of it")
    try:
        # Read ahead, all column chunks of the file would be held until the last piece has been taken.
        file = pq.ParquetFile(path, pre_buffer=False)
    except (pa.ArrowInvalid, OSError) as error:
        reason = str(error).split("\n")[0].rstrip(".")
        raise UserError(
            f"{path} is not a whole Parquet file ({reason}): make it again with `{table.made_by}`"
        ) from None
    needed = table.needed or table.schema.names
    missing = [name for name in needed if name not in file.schema_arrow.names]
    if missing:
        raise _another_table(
            path, table, file.schema_arrow, f"lacks {', '.join(missing)} (expected {', '.join(needed)})"
        )
    if table.needed is None:
        schemas.check_kinds(file.schema_arrow, table.schema, path)
    if file.metadata.num_rows == 0:
        raise UserError(f"{path} has no rows, expected at least one {table.name[:-1]}: run `{table.made_by}` again")
    return file


def _another_table(path: Path, table: Table, schema: pa.Schema, lacks: str) -> UserError:
    own, advice = _named_table(schema, path), f"name one that `{table.made_by}` made"
    if own not in (None, table.name):
        return UserError(f"{path} is a {own} table, expected a {table.name} table: {advice}")
    if table is PROBLEMS:
        advice = f"`score data custom --from {path}` makes one of it"
    return UserError(f"{path} is not a {table.name} table: it {lacks}: {advice}")


def _damaged(path: Path, table: Table, error: Exception) -> UserError:
    return UserError(f"{path} is damaged ({error}): make it again with `{table.made_by}`")


def count_rows(path: Path, table: Table) -> int:
    """Number of rows of a table, from its footer alone."""
    return int(_open(path, table).metadata.num_rows)


def count_row_groups(path: Path, table: Table) -> int:
    """Number of row groups of a table, from its footer alone."""
    return int(_open(path, table).metadata.num_row_groups)


def has_column(path: Path, table: Table, name: str) -> bool:
    """Whether a file has a column that a table need not have; errors as `iterate_batches`."""
    return name in _open(path, table).schema_arrow.names


def iterate_batches(path: Path, table: Table, *, rows: int = ROWS_PER_BATCH) -> Iterator[pa.Table]:
    """Yield a table in pieces of at most `rows` rows, each with exactly the table's columns.

    Raises:
        UserError: the file is missing, damaged, empty, or not this kind of table.
    """
    file = _open(path, table)
    try:
        for batch in file.iter_batches(batch_size=rows, columns=table.schema.names):
            yield schemas.conform(pa.Table.from_batches([batch]), table.schema, path)
    except (pa.ArrowInvalid, OSError) as error:
        raise _damaged(path, table, error) from None


def read_table(path: Path, table: Table) -> pa.Table:
    """The whole table, with exactly its columns; errors as in `iterate_batches`."""
    return pa.concat_tables(iterate_batches(path, table, rows=65536))


def read_all_columns(path: Path, table: Table) -> pa.Table:
    """The whole table as it stands, with columns that are not the table's too; errors as in `iterate_batches`."""
    try:
        return _open(path, table).read()
    except (pa.ArrowInvalid, OSError) as error:
        raise _damaged(path, table, error) from None


def read_footer(path: Path, table: Table) -> Footer | None:
    """The provenance footer, or None where the file was made by another tool; errors as `iterate_batches`."""
    metadata = _open(path, table).schema_arrow.metadata or {}
    raw = metadata.get(FOOTER_KEY)
    return None if raw is None else Footer.from_bytes(raw, path)


def names_table(path: Path) -> str | None:
    """Which table a file says that it holds; None where it says nothing, or cannot be read."""
    try:
        return _named_table(pq.read_schema(path), path)
    except (pa.ArrowInvalid, OSError):
        return None


def _named_table(schema: pa.Schema, path: Path) -> str | None:
    raw = (schema.metadata or {}).get(FOOTER_KEY)
    return None if raw is None else Footer.from_bytes(raw, path).table


class TableWriter:
    """Writes row groups of one table; made by `writing_table`."""

    def __init__(self, writer: pq.ParquetWriter, schema: pa.Schema) -> None:
        self._writer = writer
        self._schema = schema

    def write_rows(self, rows: list[dict[str, Any]]) -> None:
        """Write the rows as one row group."""
        self._writer.write_table(pa.Table.from_pylist(rows, schema=self._schema))

    def copy_row_groups(self, source: Path, table: Table, groups: Iterable[int] | None = None) -> None:
        """Write the row groups of another file of this table, or some of them; errors as `iterate_batches`."""
        file = _open(source, table)
        for index in range(file.num_row_groups) if groups is None else groups:
            try:
                group = file.read_row_group(index, columns=table.schema.names)
            except (pa.ArrowInvalid, OSError) as error:
                raise _damaged(source, table, error) from None
            # One chunk a column, however it was read: equal rows are then equal bytes.
            self._writer.write_table(schemas.conform(group.combine_chunks(), self._schema, source))


@contextmanager
def writing_table(path: Path, table: Table, footer: Footer) -> Iterator[TableWriter]:
    """Open a table for writing; it appears under `path` when the block succeeds, or not at all."""
    schema = table.schema.with_metadata({FOOTER_KEY: footer.to_bytes()})
    with replacing_file(path) as temporary, pq.ParquetWriter(temporary, schema, compression="zstd") as writer:
        yield TableWriter(writer, schema)


def write_table(path: Path, table: Table, rows: Iterable[dict[str, Any]], footer: Footer) -> None:
    """Write all rows of a table at once, as one row group."""
    with writing_table(path, table, footer) as writer:
        writer.write_rows(list(rows))


def join_tables(sources: Iterable[Path], path: Path, table: Table, footer: Footer) -> None:
    """Write the rows of several files of one table after one another, row group by row group.

    Raises:
        UserError: a source is missing, damaged, empty, or not this kind of table; nothing is written.
    """
    with writing_table(path, table, footer) as writer:
        for source in sources:
            writer.copy_row_groups(source, table)
