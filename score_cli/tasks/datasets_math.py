"""MATH and GSM8K: rows of their official layouts to problems with a gold answer."""

import hashlib
import re
from collections.abc import Iterator
from functools import cache
from importlib.resources import files
from pathlib import Path

from score_cli.errors import UserError
from score_cli.tables.records import Problem
from score_cli.tasks.latex_boxes import boxed_gold
from score_cli.tasks.prompts import final_answer
from score_cli.tasks.readers import Loaded, Row, read_file, read_rows

TRAIN, TEST, OFFICIAL_TRAIN, OFFICIAL_TEST, ALL = "train", "test", "official-train", "official-test", "all"
MATH_LAYOUT = "the layout of MATH"
GSM8K_LAYOUT = "the layout of GSM8K"

# The only two solutions of MATH whose box is empty; their answer is 0.
EMPTY_BOXES_MEANING_ZERO = frozenset({"train/number_theory/7115.json", "train/number_theory/7117.json"})


@cache
def math500_ids() -> frozenset[str]:
    """The original ids of the 500 held-out problems of MATH: `test/<subject>/<number>.json`.

    The split is the one of Lightman et al. 2023, "Let's Verify Step by Step"; the other 4,500 test problems join
    training.
    """
    return frozenset(files("score_cli.tasks").joinpath("math500.txt").read_text(encoding="utf-8").split())


def read_math(source: str, *, split: str) -> list[Loaded]:
    """The problems of one split of MATH, in an order that is the same for every copy.

    Splits: `train` is everything but MATH500 (the paper's 12,000), `test` is MATH500; `official-train` (7,500) and
    `official-test` (5,000) are the authors' own; `all` is the file as it is. The first two need the original ids:
    the official folder has them as paths, other copies as the column `unique_id`. Duplicates in MATH are kept: their
    ids differ, and the splits are defined by id.

    Raises:
        UserError: the source is not MATH, or has no ids to split it by.
    """
    found = []
    for row in _math_rows(source):
        original = _original_id(row)
        if _in_split(row, original, split):
            found.append(_math_problem(row, original))
    if found and not any(one.problem.answer for one in found):
        raise UserError(f"{source}: no solution has a \\boxed answer and no row an answer: is this {MATH_LAYOUT}?")
    # By hash: the official folder is sorted by subject, so that the first hundred would be algebra alone.
    return sorted(found, key=lambda one: hashlib.sha256(one.problem.problem_id.encode()).digest())


def _math_rows(source: str) -> Iterator[Row]:
    root = Path(source)
    if root.is_dir() and root.name in (TRAIN, TEST) and any(root.glob("*/*.json")):
        parts = [root]
    else:
        parts = [root / part for part in (TRAIN, TEST) if any((root / part).glob("*/*.json"))]
    if not parts:
        yield from read_rows(source)
        return
    for folder in parts:
        for index, file in enumerate(sorted(folder.glob("*/*.json"))):
            original = f"{folder.name}/{file.parent.name}/{file.name}"
            for row in read_file(file):
                yield Row(folder.name, index, row.where, {**row.fields, "unique_id": original})


def _original_id(row: Row) -> str | None:
    """`test/algebra/1072.json`, or None where a copy has dropped it."""
    return row.text("unique_id") if row.has("unique_id") else None


def _in_split(row: Row, original: str | None, split: str) -> bool:
    if split == ALL:
        return True
    if split in (OFFICIAL_TRAIN, OFFICIAL_TEST):
        half = original.split("/")[0] if original else row.part
        if half not in (TRAIN, TEST):
            raise UserError(
                f"{row.where}: neither a unique_id nor the file's name tells train from test: "
                f"name the file train or test, or take split {ALL}"
            )
        return half == split.removeprefix("official-")
    if original is None:
        raise UserError(
            f"{row.where} has no unique_id, so MATH500's problems cannot be told from the others: take the official "
            f"folder (train/<subject>/<number>.json), a copy with unique_id, or split {OFFICIAL_TRAIN} or {ALL}"
        )
    return (original in math500_ids()) == (split == TEST)


def _math_problem(row: Row, original: str | None) -> Loaded:
    row.require(("problem", "solution"), MATH_LAYOUT)
    name = original or f"{row.part}/{row.place}"
    answer = row.text("answer").strip() if row.has("answer") else ""
    gold = answer or boxed_gold(row.text("solution"))
    if gold == "":
        gold = "0" if original is None or original in EMPTY_BOXES_MEANING_ZERO else None
    problem = Problem(
        problem_id=f"math/{name.removesuffix('.json')}",
        task="math",
        question=row.text("problem"),
        answer=gold,
        level=_level(row),
        subject=next((row.text(key) for key in ("type", "subject") if row.has(key)), None),
        source=f"math {name}",
    )
    return Loaded(problem, final_answer(gold) if gold else None)


def _level(row: Row) -> str | None:
    """`5` for `Level 5` and for 5; None for `Level ?`, which two problems of MATH have."""
    if not row.has("level"):
        return None
    number = re.search(r"\d+", row.text("level"))
    return number.group() if number else None


def gsm8k_problem(row: Row, dataset: str) -> Loaded:
    """A GSM8K row; its gold answer stands after `####` and loses its thousands commas.

    Raises:
        UserError: the row has another layout.
    """
    row.require(("question", "answer"), GSM8K_LAYOUT)
    working, mark, gold = row.text("answer").rpartition("####")
    gold = gold.strip().replace(",", "")
    if not mark or not gold:
        raise UserError(f"{row.where}: no gold answer after ####: expected {GSM8K_LAYOUT}, or take dataset custom")
    problem = Problem(
        problem_id=f"{dataset}/{row.part}/{row.place}",
        task="math",
        question=row.text("question"),
        answer=gold,
        source=f"{dataset} {row.part} {row.place}",
    )
    return Loaded(problem, f"{working.strip()}\n{final_answer(gold)}")
