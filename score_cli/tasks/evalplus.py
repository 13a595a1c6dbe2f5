"""Tests for EvalPlus data sets, which give inputs but no expected outputs: compare with the reference program.

The block of a problem defines `check(candidate)` as HumanEval's do, and needs the standard library alone. It runs the
reference on every input first, in a namespace of its own, then the candidate on copies, with EvalPlus's tolerances.
What JSON cannot say (tuples, sets, complex numbers) and the tasks with more than one right output are restated from
EvalPlus 0.3 (Liu et al. 2023, Apache-2.0). Not covered: its time limit per input, since a verifier's
limit is per program; in its place seven slow tasks keep their first 20 or 5 inputs.
"""

import json
from collections.abc import Sequence
from typing import Any

# Placeholders between @ signs, since the block is full of braces. Everything stands inside `check`: another name of the
# block would replace a function of the program that has the same one, and Mbpp/252 asks for a function `convert`.
_BLOCK = """\
def check(candidate):
    import copy
    import json
    import math

    def convert(arguments):
        return @convert@

    def accepts(arguments, out, expected):
        return @accepts@

    def is_floats(value):
        if isinstance(value, (list, tuple)):
            return bool(value) and all(isinstance(item, float) for item in value)
        return isinstance(value, float)

    def is_close(out, expected, tolerance):
        if isinstance(expected, (list, tuple)):
            same_length = isinstance(out, (list, tuple)) and len(out) == len(expected)
            return same_length and all(is_close(a, b, tolerance) for a, b in zip(out, expected))
        if isinstance(out, (int, float)) and isinstance(expected, (int, float)):
            return out == expected or abs(out - expected) <= tolerance + 1e-7 * abs(expected)
        return out == expected

    def is_right(arguments, out, expected):
        if @only_special@:
            return accepts(arguments, out, expected)
        if out == expected or accepts(arguments, out, expected):
            return True
        tolerance = @tolerance@ or (1e-6 if is_floats(expected) else 0)
        return bool(tolerance) and type(out) is type(expected) and is_close(out, expected, tolerance)

    namespace = {}
    exec(@reference@, namespace)
    cases = [convert(arguments) for arguments in json.loads(@inputs@)]
    answers = [namespace[@entry_point@](*copy.deepcopy(case)) for case in cases]
    for case, expected in zip(cases, answers):
        out = candidate(*copy.deepcopy(case))
        assert is_right(case, out, expected), "another output than the reference"
"""
_AS_GIVEN = "arguments"
_TUPLES = "[tuple(value) for value in arguments]"
_LISTS_OF_TUPLES = "[[tuple(item) for item in value] for value in arguments]"
_FIRST_LIST_OF_TUPLES = "[[tuple(item) for item in arguments[0]], *arguments[1:]]"
_FIRST_TUPLE = "[tuple(arguments[0]), *arguments[1:]]"
_SECOND_TUPLE = "[arguments[0], tuple(arguments[1])]"
_TUPLES_OF_TUPLES = "[tuple(tuple(item) for item in value) for value in arguments]"

_CONVERSIONS: dict[str, Sequence[int]] = {
    _TUPLES: (
        *(2, 116, 132, 143, 222, 261, 273, 394, 399, 421, 424),
        *(429, 470, 560, 579, 596, 616, 630, 726, 740, 744, 809),
    ),
    _LISTS_OF_TUPLES: (63, 64, 70, 94, 120, 237, 272, 299, 400, 409, 417, 438, 473, 614, 780),
    _FIRST_LIST_OF_TUPLES: (75, 413, 444, 753),
    _FIRST_TUPLE: (250, 307, 405, 446, 617, 720, 763, 808),
    _SECOND_TUPLE: (106, 750),
    _TUPLES_OF_TUPLES: (259, 401, 445),
    "[[set(item) if isinstance(item, list) and item else {} for item in arguments[0]]]": (115,),
    "[float(arguments[0]), complex(arguments[1])]": (124,),
    "[complex(arguments[0])]": (252,),
    "[tuple(tuple(item) if isinstance(item, list) else item for item in arguments[0])]": (278,),
    "[{key: tuple(value) for key, value in arguments[0].items()}, *arguments[1:]]": (722,),
    # Lists to tuples at every depth, written without a name for the recursion's sake.
    "(lambda f, value: f(f, value))(lambda f, value: "
    "tuple(f(f, item) for item in value) if isinstance(value, list) else value, arguments)": (580, 615, 791),
}
_CONVERSION_OF = {f"Mbpp/{number}": code for code, numbers in _CONVERSIONS.items() for number in numbers}

_SAME_SET = "set(out) == set(expected)"
_SAME_NONE = "(out if isinstance(out, bool) else out is not None) == (expected is not None)"
# What is right beside the reference's own output, by the function that the problem asks for.
_ACCEPTS: dict[str, str] = {
    "are_equivalent": "True",
    "sum_div": "out == 0",
    # The height may be taken for the apex's height over the base, where the reference takes the slant height.
    "surface_Area": "out == round(arguments[0] ** 2 + 2 * arguments[0] * math.hypot(arguments[0] / 2, arguments[1]))",
    # Digits may be aligned at the units, where the reference subtracts the numbers first.
    "digit_distance_nums": "out == sum(abs(int(a) - int(b)) for a, b in zip("
    "*(str(value).zfill(max(len(str(n)) for n in arguments)) for value in arguments)))",
    **dict.fromkeys(("check_str", "text_match_three", "text_starta_endb"), _SAME_NONE),
    **dict.fromkeys(("similar_elements", "find_char_long", "common_in_nested_lists", "extract_singly"), _SAME_SET),
    **dict.fromkeys(("larg_nnum", "intersection_array", "find_dissimilar", "Diff"), _SAME_SET),
}
# HumanEval/32: any root of the polynomial is right, and the reference's own is only one of them.
_ROOT = "abs(sum(factor * math.pow(out, power) for power, factor in enumerate(arguments[0]))) <= {tolerance!r}"


# How many inputs are kept where the reference needs seconds for all of them: a verifier's limit is seconds per program.
_KEPT_INPUTS = {**{f"Mbpp/{number}": 20 for number in (123, 255, 271, 392, 592, 603)}, "Mbpp/599": 5}


def check_block(*, task_id: str, entry_point: str, reference: str, inputs: Sequence[Any], tolerance: float) -> str:
    """Python source that defines `check(candidate)` by comparing with the reference program.

    Args:
        task_id: as EvalPlus writes it: `HumanEval/32`, `Mbpp/2`.
        reference: the whole reference program, which defines `entry_point`.
        inputs: for each test, its list of arguments, as JSON gives them.
        tolerance: absolute; 0 means exact, but for outputs that are floats (1e-6).
    """
    is_mbpp = task_id.startswith("Mbpp/")
    finds_root = task_id == "HumanEval/32"
    accepts = _ACCEPTS.get(entry_point, "False") if is_mbpp else "False"
    values = {
        "reference": repr(reference),
        # As JSON text: a literal nested 200 deep, which Mbpp/301 has, is too much for Python's parser.
        "inputs": repr(json.dumps(list(inputs[: _KEPT_INPUTS.get(task_id)]))),
        "convert": _CONVERSION_OF.get(task_id, _AS_GIVEN),
        "accepts": _ROOT.format(tolerance=tolerance) if finds_root else accepts,
        "only_special": repr(finds_root),
        "tolerance": repr(tolerance),
        "entry_point": repr(entry_point),
    }
    pieces = _BLOCK.split("@")
    # Odd pieces are the placeholders' names; one pass, so that nothing inside a value is replaced again.
    return "".join(values[piece] if index % 2 else piece for index, piece in enumerate(pieces))
