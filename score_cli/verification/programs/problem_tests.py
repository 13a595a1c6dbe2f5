"""What a problem's tests say: lists of tests written in a string, and whether an output is the one expected."""

import ast
import decimal
import re
from collections.abc import Sequence

_NUMBER = re.compile(r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d{1,4})?")
# How far a decimal may be from the one expected, absolutely or relatively: what statements of competitions ask for.
_TOLERANCE = 1e-6


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
