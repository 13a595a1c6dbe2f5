"""The columns of every table, and the checks that a file has them.

A nullable column is one the design marks with `?`; every other column has a value in every row.
"""

from pathlib import Path

import pyarrow as pa

from score_cli.errors import UserError

SCHEMA_VERSION = 2

CORRECT = "correct"
INCORRECT = "incorrect"
UNFINISHED = "unfinished"
NO_ANSWER = "no_answer"
TIMEOUT = "timeout"
OUT_OF_MEMORY = "out_of_memory"
CRASHED = "crashed"
TRUNCATED = "truncated"
UNSCORED = "unscored"
# A turn that neither solves nor judges: there is nothing that it could have right.
UNGRADED = "ungraded"
VERDICTS = (CORRECT, INCORRECT, UNFINISHED, NO_ANSWER, TIMEOUT, OUT_OF_MEMORY, CRASHED, TRUNCATED, UNSCORED, UNGRADED)

STOP = "stop"
LENGTH = "length"


def _required(name: str, kind: pa.DataType) -> pa.Field:
    return pa.field(name, kind, nullable=False)


def _list(kind: pa.DataType, *, nullable: bool = False) -> pa.DataType:
    return pa.list_(pa.field("item", kind, nullable=nullable))


PROBLEMS = pa.schema(
    [
        _required("problem_id", pa.string()),
        _required("task", pa.string()),
        _required("question", pa.string()),
        pa.field("answer", pa.string()),
        pa.field("tests", _list(pa.string())),
        pa.field("entry_point", pa.string()),
        pa.field("setup", pa.string()),
        pa.field("level", pa.string()),
        pa.field("subject", pa.string()),
        _required("source", pa.string()),
    ]
)

TRACES = pa.schema(
    [
        _required("problem_id", pa.string()),
        _required("sample_index", pa.int32()),
        _required("attempts", _list(pa.string())),
        _required("finish_reasons", _list(pa.string())),
        _required("token_ids", _list(pa.int32())),
        _required("attempt_ids", _list(pa.int8())),
        _required("logprobs", _list(pa.float32())),
        _required("offline_attempts", pa.int8()),
    ]
)
# Columns that a table has only where its traces need them: of dialogues whose turns are not all solves, and of
# conversations built from earlier traces.
ROLES_COLUMN = _required("roles", _list(pa.string()))
GIVEN_COLUMN = pa.field("given_index", pa.int32())

REWARDS = pa.schema(
    [
        _required("problem_id", pa.string()),
        _required("sample_index", pa.int32()),
        _required("answers", _list(pa.string(), nullable=True)),
        _required("verdicts", _list(pa.string())),
        _required("rewards", _list(pa.float32(), nullable=True)),
    ]
)

# What a frozen policy says of each turn of a trace; training alone reads it.
SIGNALS = pa.schema(
    [
        _required("problem_id", pa.string()),
        _required("sample_index", pa.int32()),
        _required("name", pa.string()),
        _required("scores", _list(pa.float32(), nullable=True)),
        _required("accepted", _list(pa.bool_(), nullable=True)),
        _required("values", _list(pa.float32(), nullable=True)),
    ]
)

# One row per example of the supervised baselines: y1 of one trace, then a right response as y2.
EXAMPLES = pa.schema(
    [
        _required("problem_id", pa.string()),
        _required("method", pa.string()),
        _required("sample_index", pa.int32()),
        _required("target_sample_index", pa.int32()),
        _required("target_attempt", pa.int8()),
        _required("attempts", _list(pa.string())),
        _required("verdicts", _list(pa.string())),
        _required("token_ids", _list(pa.int32())),
        _required("attempt_ids", _list(pa.int8())),
    ]
)

# One row per dialogue of any turns that a supervised round learned from: what its turns are, and which are learned.
EXAMPLES_OF_DIALOGUES = EXAMPLES.append(_required("roles", _list(pa.string()))).append(
    _required("learned", _list(pa.int8()))
)

METRICS = pa.schema(
    [
        _required("policy", pa.string()),
        _required("decoding", pa.string()),
        _required("name", pa.string()),
        _required("value", pa.float64()),
        pa.field("stderr", pa.float64()),
        _required("count", pa.int64()),
    ]
)

# One row per metric of one policy of one row and seed of a study.
STUDY = pa.schema(
    [_required("row", pa.string()), _required("seed", pa.int64()), _required("condition", pa.string()), *METRICS]
)

# One row per setting tried for a row of a study, with what it gave on the validation problems.
TUNING = pa.schema(
    [
        _required("row", pa.string()),
        _required("number", pa.int32()),
        _required("settings", pa.string()),
        _required("value", pa.float64()),
        pa.field("stderr", pa.float64()),
        _required("count", pa.int64()),
        _required("chosen", pa.bool_()),
    ]
)

# One row per metric of one update; `attempt` is null where the metric is over all attempts.
TRAIN_METRICS = pa.schema(
    [
        _required("stage", pa.string()),
        _required("iteration", pa.int32()),
        _required("name", pa.string()),
        pa.field("attempt", pa.int8()),
        _required("value", pa.float64()),
    ]
)


def _family(kind: pa.DataType) -> str:
    """Types of one family convert into each other without changing meaning."""
    if pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        return f"list of {_family(kind.value_type)}"
    if pa.types.is_dictionary(kind):
        return _family(kind.value_type)
    if pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind):
        return "text"
    if pa.types.is_integer(kind):
        return "integer"
    if pa.types.is_floating(kind):
        return "number"
    if pa.types.is_null(kind):
        return "nothing"
    return str(kind)


def _fits(found: str, expected: str) -> bool:
    # A column of nulls alone has no type of its own; conform() refuses it where a value is required.
    untyped = found == "nothing" or (found == "list of nothing" and expected.startswith("list of"))
    return untyped or found == expected


def check_kinds(found: pa.Schema, expected: pa.Schema, path: Path) -> None:
    """Check the kinds of a table's columns.

    Raises:
        UserError: a column holds another kind of value.
    """
    for field in expected:
        have, want = _family(found.field(field.name).type), _family(field.type)
        if not _fits(have, want):
            raise UserError(f"{path}: column {field.name} holds {have}, expected {want}: write it as {field.type}")


def conform(batch: pa.Table, expected: pa.Schema, path: Path) -> pa.Table:
    """Cast checked columns to the exact types of the schema, refusing nulls where none may be.

    Raises:
        UserError: a required value is null, or a value does not fit its type.
    """
    columns = []
    for field in expected:
        column = batch.column(field.name)
        if not field.nullable and column.null_count:
            raise UserError(f"{path}: column {field.name} has {column.null_count} null values, expected none")
        try:
            columns.append(column.cast(field.type))
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
            raise UserError(f"{path}: column {field.name} does not fit {field.type}: {error}") from error
        if pa.types.is_list(field.type) and not field.type.value_field.nullable:
            for chunk in columns[-1].chunks:
                if chunk.flatten().null_count:
                    raise UserError(f"{path}: the lists of column {field.name} hold nulls, expected none")
    return pa.table(columns, schema=expected)
