"""Read the rows of a data set: JSON, JSON lines, CSV or Parquet, from a file, a folder or the Hugging Face hub."""

import gzip
import importlib
import io
import json
import re
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from score_cli.errors import UserError
from score_cli.tables.problems import Question, gold_text, plain_text, read_question, text_list
from score_cli.tables.records import Problem

FILE_KINDS = (".jsonl", ".jsonl.gz", ".json", ".json.gz", ".csv", ".csv.gz", ".parquet")
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_SHARD = re.compile(r"(?P<part>.+?)-\d{5}-of-\d{5}")


class Row(NamedTuple):
    """One row as the source gives it.

    `part` is the name of its file or split (`train`), `place` its place from 0 in that part, all of its files,
    `where` how an error names it: by its line where it is a file's, else by its row, both counted from 1.
    """

    part: str
    place: int
    where: str
    fields: dict[str, Any]

    def value(self, name: str) -> Any:
        """What stands under a name, or None; `reward_model.ground_truth` is a field of a field."""
        value: Any = self.fields
        if name in self.fields:
            return self.fields[name]
        for part in name.split("."):
            value = value.get(part) if isinstance(value, dict) else None
        return value

    def has(self, name: str) -> bool:
        """Whether the row has a value, not null, under that name."""
        return self.value(name) is not None

    def is_empty(self, name: str) -> bool:
        """Whether the row has a place of that name, and null or blank text in it."""
        value = self.value(name)
        return name in self.fields if value is None else isinstance(value, str) and not value.strip()

    def require(self, names: Sequence[str], layout: str, hint: str = "") -> None:
        """Check that the row has a value under every name.

        Raises:
            UserError: one is missing; `layout` says what was expected, `hint` what to do.
        """
        missing = [name for name in names if not self.has(name)]
        empty = [name for name in missing if name in self.fields]
        if empty and empty == missing:
            raise self.nothing_in(*empty)
        if missing:
            raise UserError(
                f"{self.where} lacks {', '.join(missing)}: expected {layout}, which has {', '.join(names)}; "
                f"found {', '.join(self.fields) or 'no field'}{hint}"
            )

    def nothing_in(self, *names: str) -> UserError:
        """What to raise where places of these names are there, and are empty."""
        return UserError(f"{self.where} has nothing in {', '.join(names)}: fill it in, or leave the row out")

    def text(self, name: str) -> str:
        """A field's text with Unix line ends; a number is written out.

        Raises:
            UserError: the field is neither text nor a finite number.
        """
        return plain_text(self.value(name), f"{self.where}: {name}")

    def gold(self, name: str) -> str:
        """A gold answer as text: a number is written out, a list of one value is that value.

        Raises:
            UserError: the field is of another kind, or NaN.
        """
        return gold_text(self.value(name), f"{self.where}: {name}")

    def question(self, name: str) -> Question:
        """A question that is a text or a chat of messages.

        Raises:
            UserError: the field is neither.
        """
        return read_question(self.value(name), f"{self.where}: {name}")

    def texts(self, name: str) -> list[str]:
        """A field's list of texts with Unix line ends; one text counts as a list of one.

        Raises:
            UserError: the field is something else.
        """
        return text_list(self.value(name), f"{self.where}: {name}")

    def tests(self, name: str) -> list[str]:
        """A field's list of tests, which is not empty: without a test every program would be right.

        Raises:
            UserError: the field is not a list of texts, or holds none that tests something.
        """
        values = [value for value in self.texts(name) if value.strip()]
        if not values:
            raise UserError(f"{self.where}: {name} holds no test, expected at least one: leave the row out")
        return values


class Loaded(NamedTuple):
    """A problem as loaded; `gold_response` should be graded correct, and is None where the data set has no answer."""

    problem: Problem
    gold_response: str | None


def read_rows(source: str, *, patterns: Sequence[str] = (), hub_config: str | None = None) -> list[Row]:
    """Every row of a source, in the order of its files.

    Args:
        source: a file, a folder, or a Hugging Face dataset id (`owner/name`).
        patterns: file names to look for in a folder, the best first; the first that matches decides.
        hub_config: the configuration to read of a hub data set, where it has one of that name; else all.
    Raises:
        UserError: nothing can be read there.
    """
    path = Path(source)
    if path.is_dir():
        files = _files_of(path, patterns)
        rows = _numbered(row for file in files for row in read_file(file))
    elif path.exists():
        rows = list(read_file(path))
    elif is_hub_id(source):
        rows = list(_read_hub(source, hub_config))
    else:
        raise UserError(
            f"{source} does not exist: expected a file ({', '.join(FILE_KINDS)}), a folder, "
            "or a Hugging Face dataset id such as owner/name"
        )
    if not rows:
        raise UserError(f"{source} holds no rows: expected one problem per row")
    return rows


def _numbered(rows: Iterable[Row]) -> list[Row]:
    """Rows of several files with their places in their parts: the files of a part go on from each other."""
    counts: Counter[str] = Counter()
    numbered = []
    for row in rows:
        numbered.append(row._replace(place=counts[row.part]))
        counts[row.part] += 1
    return numbered


def is_hub_id(source: str) -> bool:
    """Whether a source that is no local path can be a hub id: `owner/name`, without a data file's ending."""
    return bool(_HUB_ID.fullmatch(source)) and not source.endswith(FILE_KINDS)


def _files_of(folder: Path, patterns: Sequence[str]) -> list[Path]:
    for pattern in (*patterns, *(f"*{kind}" for kind in FILE_KINDS)):
        files = sorted(file for file in folder.glob(pattern) if file.is_file() and file.name.endswith(FILE_KINDS))
        if files:
            return files
    inner = sorted(child.name for child in folder.iterdir() if child.is_dir())
    hint = f": name one of its folders ({', '.join(inner[:8])})" if inner else ""
    raise UserError(f"{folder} holds no data file, expected {', '.join(patterns or FILE_KINDS)}{hint}")


def part_name(file_name: str) -> str:
    """The part that a file holds, from its name: `train` for train.jsonl.gz and train-00000-of-00002.parquet."""
    stem = file_name
    for kind in sorted(FILE_KINDS, key=len, reverse=True):
        if stem.endswith(kind):
            stem = stem.removesuffix(kind)
            break
    shard = _SHARD.fullmatch(stem)
    return shard["part"] if shard else stem


def read_file(path: Path) -> Iterator[Row]:
    """The rows of one file, by the kind its name ends with.

    Raises:
        UserError: the file is of another kind, or is not what its name says.
    """
    if not path.name.endswith(FILE_KINDS):
        raise UserError(f"{path} is of no known kind: expected a name ending in {', '.join(FILE_KINDS)}")
    reader = _read_json
    if path.name.endswith(".parquet"):
        reader = _read_parquet
    elif path.name.endswith((".csv", ".csv.gz")):
        reader = _read_csv
    part = part_name(path.name)
    for index, (where, fields) in enumerate(reader(path)):
        if not isinstance(fields, dict):
            raise UserError(f"{where} holds {type(fields).__name__}, expected an object with one problem's fields")
        yield Row(part, index, where, fields)


def _read_parquet(path: Path) -> Iterator[tuple[str, Any]]:
    try:
        rows = pq.read_table(path).to_pylist()
    except (pa.ArrowInvalid, OSError) as error:
        raise UserError(f"{path} is not a readable Parquet file: {_first_line(error)}") from error
    for index, fields in enumerate(rows):
        yield f"{path} row {index + 1}", fields


def _read_csv(path: Path) -> Iterator[tuple[str, Any]]:
    """Rows of a CSV file with a line of names: every value is text, an empty one is no value, a blank line no row."""
    import polars as pl

    try:
        text = read_text(path)
        rows = pl.read_csv(io.BytesIO(text.encode()), infer_schema=False)
    except pl.exceptions.PolarsError as error:
        raise UserError(
            f"{path} is not a readable CSV file ({_first_line(error)}): expected a line of names, and as many values "
            "in each row; a value with a comma in it stands in quotes"
        ) from error
    if len(rows.columns) == 1 and (other := next((sign for sign in ";\t|" if sign in rows.columns[0]), None)):
        raise UserError(f"{path} has {other!r} between its names, expected commas: save it with commas")
    above = text[: len(text) - len(text.lstrip("\r\n"))]
    line = 1 + _lines_in([above]) + 1 + _lines_in(rows.columns)
    for fields in rows.iter_rows(named=True):
        if any(fields.values()):
            yield f"{path} line {line}", {name: value or None for name, value in fields.items()}
        line += 1 + _lines_in(fields.values())


def _lines_in(values: Iterable[str | None]) -> int:
    """How many line ends stand inside values."""
    return sum(value.count("\n") for value in values if value is not None)


def _read_json(path: Path) -> Iterator[tuple[str, Any]]:
    """Rows of a JSON file: one list, one object, or one object per line."""
    text = read_text(path)
    if text.lstrip().startswith("["):
        try:
            items = json.loads(text)
        except ValueError as error:
            raise UserError(f"{path} is not a JSON list: {error}") from error
        yield from ((f"{path} row {index + 1}", item) for index, item in enumerate(items))
        return
    if path.name.endswith((".json", ".json.gz")):
        try:
            item = json.loads(text)
        except ValueError:
            # Hub copies often give JSON lines the ending .json.
            pass
        else:
            yield str(path), item
            return
    # split, not splitlines: a JSON string may hold U+2028, which splitlines takes for a line's end.
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            yield f"{path} line {number}", json.loads(line)
        except ValueError as error:
            why = f"{error.msg} at column {error.colno}" if isinstance(error, json.JSONDecodeError) else str(error)
            raise UserError(f"{path} line {number} is not JSON ({why}): expected one object per line") from error


def read_text(path: Path) -> str:
    """The text of a file, unpacked where its name ends in .gz.

    Raises:
        UserError: it cannot be read, is cut off, or is not UTF-8.
    """
    try:
        packed = path.read_bytes()
        return (gzip.decompress(packed) if path.name.endswith(".gz") else packed).decode("utf-8-sig")
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{path} cannot be read: {_first_line(error)}: fetch the file again") from error
    except UnicodeDecodeError as error:
        raise UserError(
            f"{path} is not UTF-8 text (byte {error.start}): expected UTF-8: save it again as such"
        ) from error


def _first_line(error: BaseException) -> str:
    return (str(error) or type(error).__name__).strip().splitlines()[0]


def _read_hub(name: str, config: str | None) -> Iterator[Row]:
    try:
        # Not `import datasets`: it is an optional extra that the type checker need not have either.
        datasets: Any = importlib.import_module("datasets")
    except ImportError as error:
        raise UserError(
            f"{name} is no file or folder here, and to read it from the Hugging Face hub needs the package datasets: "
            "pip install 'score-cli[hub]', or give the path of a downloaded copy"
        ) from error
    try:
        configs = datasets.get_dataset_config_names(name)
        chosen: list[str] = [config] if config is not None and config in configs else list(configs)
        loaded = [(each, datasets.load_dataset(name, each)) for each in chosen]
    except (OSError, ValueError, RuntimeError) as error:
        raise UserError(
            f"the Hugging Face data set {name} cannot be loaded ({_first_line(error)}): "
            "check the id and the network, or give the path of a downloaded copy"
        ) from error
    for each, splits in loaded:
        for split, rows in splits.items():
            yield from _hub_rows(name, each, split, rows, alone=len(loaded) == 1)


def _hub_rows(name: str, config: str, split: str, rows: Iterable[Any], *, alone: bool) -> Iterator[Row]:
    where = f"{name} {split}" if alone else f"{name} {config} {split}"
    for index, fields in enumerate(rows):
        yield Row(str(split), index, f"{where} row {index + 1}", dict(fields))
