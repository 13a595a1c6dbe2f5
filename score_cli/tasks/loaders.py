"""Load the data sets of the paper, and the user's own, from a local copy or the Hugging Face hub.

| dataset | splits (the first is the default) | problems | task |
| --- | --- | --- | --- |
| math | train, test, official-train, official-test, all | 12,000, 500, 7,500, 5,000, 12,500 | math |
| math500 | test | 500 | math |
| gsm8k | train, test | 7,473, 1,319 | math |
| mbpp | train, test, validation, prompt, all | 374, 500, 90, 10, 974 | mbpp |
| mbpp-sanitized | the same | 120, 257, 43, 7, 427 | mbpp |
| humaneval | test | 164 | humaneval |
| humanevalplus | test | 164 | humaneval |
| mbppplus | test | 378 | mbpp |
| custom | the source's own files or splits | | of the user's choice, or by its columns: math, mbpp, humaneval, stdin |

division, stories and reasoning-gym are made, not loaded: see `division.py`, `stories.py` and
`datasets_reasoning_gym.py`.
"""

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from score_cli.errors import UserError, guess
from score_cli.tables.problems import question_key
from score_cli.tables.records import Problem
from score_cli.tasks.datasets_code import SHOT_IDS, humaneval_problem, mbpp_problems, mbppplus_problems
from score_cli.tasks.datasets_custom import Columns, custom_problems
from score_cli.tasks.datasets_math import ALL, OFFICIAL_TEST, OFFICIAL_TRAIN, TEST, TRAIN, gsm8k_problem, read_math
from score_cli.tasks.readers import Loaded, Row, read_rows


@dataclass(frozen=True, kw_only=True)
class DatasetSpec:
    """What a data set offers, and where its released files keep it.

    `files` are names to look for in a folder, `hub_config` is the configuration of the hub's copy, `shots` how many
    solved tasks its prompt shows by default.
    """

    splits: tuple[str, ...]
    files: tuple[str, ...] = ()
    hub_config: str | None = None
    shots: int = 0


HELD_OUT = (TRAIN, "validation", TEST)
_MBPP_SPLITS = ("train", "test", "validation", "prompt", ALL)
DATASETS: dict[str, DatasetSpec] = {
    "math": DatasetSpec(splits=(TRAIN, TEST, OFFICIAL_TRAIN, OFFICIAL_TEST, ALL)),
    "math500": DatasetSpec(splits=(TEST,)),
    "gsm8k": DatasetSpec(splits=(TRAIN, TEST), hub_config="main"),
    "mbpp": DatasetSpec(splits=_MBPP_SPLITS, files=("mbpp.jsonl*",), hub_config="full", shots=3),
    "mbpp-sanitized": DatasetSpec(
        splits=_MBPP_SPLITS, files=("sanitized-mbpp.json*",), hub_config="sanitized", shots=3
    ),
    "humaneval": DatasetSpec(splits=(TEST,), files=("HumanEval.jsonl*", "humaneval.jsonl*")),
    "humanevalplus": DatasetSpec(splits=(TEST,), files=("HumanEvalPlus*.jsonl*",)),
    # Zero shots: the tasks that MBPP shows are among those that MBPP+ asks.
    "mbppplus": DatasetSpec(splits=(TEST,), files=("MbppPlus*.jsonl*",)),
    "custom": DatasetSpec(splits=()),
}


def load(
    dataset: str,
    *,
    source: str,
    split: str | None = None,
    limit: int | None = None,
    shots: int | None = None,
    shown_tests: int | None = None,
    columns: Columns | None = None,
    task: str | None = None,
    hold_out: float | None = None,
) -> list[Loaded]:
    """The problems of one split of a data set, always in the same order, each with a right response.

    A verifier that does not grade one of the responses correct is wrong about the problem, or the data set is.

    Args:
        dataset: a key of DATASETS.
        source: a file or folder in the released layout, or a Hugging Face dataset id.
        split: one of the data set's splits; by default its first, for `custom` every row.
        limit: how many problems to keep, from the start; MATH is in an order without subjects.
        shots: how many solved tasks an MBPP prompt shows, 0 to 3; by default the data set's.
        shown_tests: for `mbpp` and `mbpp-sanitized`, how many of its tests a prompt shows; all by default.
        columns: for `custom`, the names of the columns.
        task: for `custom`, the task whose prompts and grader apply.
        hold_out: for `custom`, the share of its questions that splits validation and test are each made of, by hash.
    Raises:
        UserError: the data set, split or source is not there, or a row is not in the layout.
    """
    if limit is not None and limit < 1:
        raise UserError(f"limit is {limit}, expected at least 1 problem")
    if dataset not in DATASETS:
        known = ["division", "stories", *DATASETS, "reasoning-gym"]  # the outer ones are made, not loaded
        raise UserError(f"no data set is named {dataset}: {guess(dataset, known)}known are {', '.join(known)}")
    spec = DATASETS[dataset]
    if split is not None and spec.splits and split not in spec.splits:
        raise UserError(f"{dataset} has no split {split}: expected {', '.join(spec.splits)}")
    if dataset != "custom" and (columns is not None or task is not None):
        raise UserError(f"columns and task are for data set custom: {dataset} has a layout and a task of its own")
    if hold_out is not None:
        if dataset != "custom":
            raise UserError(f"hold-out is for data set custom: {dataset} has splits of its own")
        if split not in (None, *HELD_OUT):
            raise UserError(f"with hold-out there is no split {split}: expected {', '.join(HELD_OUT)}")
    if shown_tests is not None and dataset not in ("mbpp", "mbpp-sanitized"):
        raise UserError(f"shown-tests is for mbpp and mbpp-sanitized, whose prompts show what is graded: not {dataset}")
    count = spec.shots if shots is None else shots
    if not 0 <= count <= len(SHOT_IDS):
        raise UserError(f"shots is {count}, expected 0 to {len(SHOT_IDS)}")
    if dataset in ("math", "math500"):
        found = read_math(source, split=split or spec.splits[0])
    elif dataset in ("mbpp", "mbpp-sanitized"):
        rows = read_rows(source, patterns=spec.files, hub_config=spec.hub_config)
        found = mbpp_problems(rows, dataset, split=split or spec.splits[0], shots=count, shown_tests=shown_tests)
    else:
        named = split if hold_out is None else None
        found = _read_rows_of(dataset, spec, source, named, shots=count, columns=columns or Columns(), task=task)
    if hold_out is not None:
        found = [one for one in found if split_of(one.problem.question, hold_out) == (split or TRAIN)]
    if not found:
        raise UserError(
            f"{source} has no problem of split {split or [*spec.splits, TRAIN][0]} of {dataset}: take another split"
        )
    _check_ids(found, source)
    return found[:limit]


def split_of(question: str, hold_out: float) -> str:
    """Which split a question of a user's own belongs to; it stays there, whatever other questions there are."""
    digest = hashlib.sha256(question_key(question).encode()).digest()
    place = int.from_bytes(digest[:8], "big") / 2**64
    return "test" if place < hold_out else "validation" if place < 2 * hold_out else TRAIN


def load_problems(
    dataset: str,
    *,
    source: str,
    split: str | None = None,
    limit: int | None = None,
    shots: int | None = None,
    shown_tests: int | None = None,
    columns: Columns | None = None,
    task: str | None = None,
) -> list[Problem]:
    """The problems of one split of a data set; arguments and errors as `load`."""
    loaded = load(
        dataset,
        source=source,
        split=split,
        limit=limit,
        shots=shots,
        shown_tests=shown_tests,
        columns=columns,
        task=task,
    )
    return [problem for problem, _ in loaded]


def gold_responses(
    dataset: str,
    *,
    source: str,
    split: str | None = None,
    columns: Columns | None = None,
    task: str | None = None,
) -> list[Loaded]:
    """As `load`, with MBPP asked without shots."""
    return load(dataset, source=source, split=split, shots=0, columns=columns, task=task)


def _read_rows_of(
    dataset: str, spec: DatasetSpec, source: str, split: str | None, *, shots: int, columns: Columns, task: str | None
) -> list[Loaded]:
    rows = read_rows(source, patterns=spec.files, hub_config=spec.hub_config)
    if dataset == "mbppplus":
        return mbppplus_problems(rows, dataset, shots=shots)
    if dataset in ("humaneval", "humanevalplus"):
        return [humaneval_problem(row, dataset) for row in rows]
    rows = _rows_of_part(rows, source, split, default=spec.splits[0] if spec.splits else None)
    if dataset == "gsm8k":
        return [gsm8k_problem(row, dataset) for row in rows]
    return custom_problems(rows, columns, task=task)


def _rows_of_part(rows: Sequence[Row], source: str, split: str | None, *, default: str | None) -> list[Row]:
    """The rows whose file or hub split has the split's name; one file, with no split asked for, is taken whole."""
    parts = list(dict.fromkeys(row.part for row in rows))
    wanted = split or (default if len(parts) > 1 else None)
    if wanted is None:
        return list(rows)
    if wanted not in parts:
        raise UserError(f"{source} has no split {wanted}: its files or splits are {', '.join(parts)}")
    return [row for row in rows if row.part == wanted]


def _check_ids(loaded: Sequence[Loaded], source: str) -> None:
    counts = Counter(one.problem.problem_id for one in loaded)
    twice = [name for name, count in counts.items() if count > 1]
    if twice:
        more = f" and {len(twice) - 1} more ids" if len(twice) > 1 else ""
        raise UserError(
            f"{source} gives problem {twice[0]}{more} more than once, expected each problem once: give one copy of the "
            "data set"
        )


__all__ = ["DATASETS", "Columns", "DatasetSpec", "Loaded", "gold_responses", "load", "load_problems"]
