"""The forms in which data sets give tests: Python, a list of it written in a string, pairs of input and output.

Pairs are for programs that read standard input, as those of competitions do. A test may hold one pair
(`{"input": "1 2", "output": "3"}`), a list of such, or lists of both (`{"inputs": [...], "outputs": [...]}`).
"""

import ast
import decimal
import json
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

_NUMBER = re.compile(r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d{1,4})?")
# How far a decimal may be from the one expected, absolutely or relatively: what statements of competitions ask for.
_TOLERANCE = 1e-6


class Pair(NamedTuple):
    """What a program is given on its standard input, and what it must print."""

    given: str
    expected: str


def io_pairs(tests: Sequence[str]) -> list[Pair] | None:
    """The pairs that tests hold, or None where one of them is no pair."""
    pairs: list[Pair] = []
    for test in tests:
        if not test.lstrip().startswith(("{", "[")):
            return None
        try:
            found = _pairs_of(json.loads(test))
        except (ValueError, RecursionError):
            return None
        if found is None:
            return None
        pairs += found
    return pairs or None


def _pairs_of(value: Any) -> list[Pair] | None:
    if isinstance(value, list):
        each = [_pairs_of(item) for item in value if isinstance(item, dict)]
        if not each or len(each) != len(value):
            return None
        return [pair for pairs in each if pairs is not None for pair in pairs] if None not in each else None
    if not isinstance(value, dict):
        return None
    given = value["inputs"] if "inputs" in value else value.get("input")
    expected = value["outputs"] if "outputs" in value else value.get("output")
    if "inputs" not in value and isinstance(given, str) and isinstance(expected, str):
        return [Pair(given, expected)]
    if not isinstance(given, list) or not isinstance(expected, list) or len(given) != len(expected):
        return None
    texts = [(_text(left), _text(right)) for left, right in zip(given, expected, strict=True)]
    return [Pair(left, right) for left, right in texts if left is not None and right is not None] or None


def _text(value: Any) -> str | None:
    """One input or output as text; a list is its lines."""
    if isinstance(value, list) and all(isinstance(line, str) for line in value):
        return "\n".join(value)
    return value if isinstance(value, str) else None


def python_tests(tests: Sequence[str]) -> list[str]:
    """The tests with each that is the text of a list of texts replaced by what the list holds."""
    return [each for test in tests for each in (_texts_in(test) or [test])]


def _texts_in(test: str) -> list[str] | None:
    if not test.lstrip().startswith("["):
        return None
    try:
        value = ast.literal_eval(test.strip())
    except (ValueError, SyntaxError, RecursionError, MemoryError):
        return None
    return value if isinstance(value, list) and value and all(isinstance(item, str) for item in value) else None


def same_output(printed: str, expected: str) -> bool:
    """Whether a program has printed what was expected: the same words, however they are spaced.

    Numbers agree where they are equal, and decimals where they are closer than a millionth.
    """
    said, wanted = printed.split(), expected.split()
    return len(said) == len(wanted) and all(map(_same_word, said, wanted))


def _same_word(said: str, wanted: str) -> bool:
    if said == wanted:
        return True
    if not (_NUMBER.fullmatch(said) and _NUMBER.fullmatch(wanted)):
        return False
    if decimal.Decimal(said) == decimal.Decimal(wanted):
        return True
    if "." not in wanted:
        return False
    left, right = float(said), float(wanted)
    return abs(left - right) <= _TOLERANCE * max(1.0, abs(right))
