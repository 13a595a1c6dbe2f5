"""Tests that are pairs of input and output, as competitions have them for programs that read standard input.

A test may hold one pair (`{"input": "1 2", "output": "3"}`), a list of such, or lists of both (`{"inputs": [...],
"outputs": [...]}`); `pair_texts` brings them all into the first form, one a test.
"""

import json
from collections.abc import Sequence
from typing import Any, NamedTuple


class Pair(NamedTuple):
    """What a program is given on its standard input, and what it must print."""

    given: str
    expected: str


def io_pairs(tests: Sequence[str]) -> list[Pair] | None:
    """The pairs that the column `tests` of a problem holds, or None where one of its tests is no pair."""
    pairs: list[Pair] = []
    for test in tests:
        found = pairs_in(test)
        if found is None:
            return None
        pairs += found
    return pairs or None


def pair_texts(value: Any) -> list[str] | None:
    """Pairs in any form, as the texts that stand in the column `tests`; None where the value holds something else."""
    pairs = io_pairs(value) if _is_texts(value) else pairs_in(value)
    if pairs is None:
        return None
    return [json.dumps({"input": pair.given, "output": pair.expected}, ensure_ascii=False) for pair in pairs]


def pairs_in(value: Any) -> list[Pair] | None:
    """The pairs of one value, which may be the text of JSON."""
    if isinstance(value, str):
        if not value.lstrip().startswith(("{", "[")):
            return None
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            return None
    if isinstance(value, list):
        each = [pairs_in(item) if isinstance(item, dict) else None for item in value]
        known = [pairs for pairs in each if pairs is not None]
        return [pair for pairs in known for pair in pairs] if each and len(known) == len(each) else None
    return _pairs_of(value) if isinstance(value, dict) else None


def _pairs_of(value: dict[str, Any]) -> list[Pair] | None:
    given = value["inputs"] if "inputs" in value else value.get("input")
    expected = value["outputs"] if "outputs" in value else value.get("output")
    if "inputs" not in value and isinstance(given, str) and isinstance(expected, str):
        return [Pair(given, expected)]
    if not isinstance(given, list) or not isinstance(expected, list) or len(given) != len(expected):
        return None
    texts = [(_text(left), _text(right)) for left, right in zip(given, expected, strict=True)]
    pairs = [Pair(left, right) for left, right in texts if left is not None and right is not None]
    return pairs if pairs and len(pairs) == len(texts) else None


def _text(value: Any) -> str | None:
    """One input or output as text; a list is its lines."""
    return "\n".join(value) if _is_texts(value) else value if isinstance(value, str) else None


def _is_texts(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(item, str) for item in value)
