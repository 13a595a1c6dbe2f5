"""Sets of real numbers: intervals, unions and inequalities, brought to sorted pieces and compared end by end."""

import math
from typing import NamedTuple, Protocol

from score_cli.verification.math.parse import Node
from score_cli.verification.math.shapes import Difference, Relation, Sequence, Shape, Union, Value
from score_cli.verification.math.values import infinity_sign

_INEQUALITIES = frozenset(("<", ">", "<=", ">=", "!="))
_INTERVALS = frozenset(("()", "[]", "(]", "[)"))
_OO = Node("const", name="oo")
_MINUS_OO = Node("neg", (_OO,))


class ValueTest(Protocol):
    """What is asked of the ends of pieces."""

    def same(self, a: Node, b: Node) -> bool | None:
        """Whether two expressions are equal, None where that is not decided."""

    def real(self, node: Node) -> float | None:
        """A constant's real value, None where it is not known."""


class Piece(NamedTuple):
    """From `low` to `high`; an end is open where it is not in the set."""

    low: Node
    low_open: bool
    high: Node
    high_open: bool


class _NotARegionError(Exception):
    pass


def is_region(shape: Shape) -> bool:
    """Whether a shape can only be a set of real numbers; `(1, 2)` may be a point, so it is not sure to be one."""
    if isinstance(shape, Union | Difference):
        return True
    if isinstance(shape, Relation):
        return bool(_INEQUALITIES.intersection(shape.signs))
    if not isinstance(shape, Sequence):
        return False
    if shape.brackets == "":
        return any(isinstance(item, Relation) and is_region(item) for item in shape.items)
    if shape.brackets not in _INTERVALS or len(shape.items) != 2:
        return False
    return shape.brackets != "()" or any(isinstance(item, Value) and infinity_sign(item.node) for item in shape.items)


def same_region(answer: Shape, gold: Shape, test: ValueTest) -> bool | None:
    """Whether two shapes are the same set of reals; None where one is not understood as such a set."""
    try:
        left, left_name = _pieces(answer, test)
        right, right_name = _pieces(gold, test)
    except _NotARegionError:
        return None
    if left_name and right_name and left_name != right_name:
        return False
    if len(left) != len(right):
        return False
    decided: bool | None = True
    for a, b in zip(left, right, strict=True):
        if a.low_open != b.low_open or a.high_open != b.high_open:
            return False
        for result in (test.same(a.low, b.low), test.same(a.high, b.high)):
            if result is False:
                return False
            decided = None if result is None else decided
    return decided


def _pieces(shape: Shape, test: ValueTest) -> tuple[list[Piece], str]:
    """Sorted, merged pieces and the variable's name ("" where there is none)."""
    if isinstance(shape, Relation):
        pieces, name = _of_absolute(shape, test) or _of_relation(shape)
    elif isinstance(shape, Union):
        pieces, name = _joined(shape.pieces, test)
    elif isinstance(shape, Difference):
        pieces, name = _pieces(shape.whole, test)
        for hole in _pieces(shape.removed, test)[0]:
            if hole.low != hole.high:
                raise _NotARegionError
            point = hole.low
            pieces = [part for piece in pieces for part in _without(piece, point, test)]
    elif isinstance(shape, Sequence) and shape.brackets == "":
        pieces, name = _joined(shape.items, test)
        pieces = _intersected(pieces, test) if all(isinstance(item, Relation) for item in shape.items) else pieces
    elif isinstance(shape, Sequence) and shape.brackets == "\\{}":
        pieces, name = [Piece(node, False, node, False) for node in map(_node, shape.items)], ""
    elif isinstance(shape, Sequence) and shape.brackets in _INTERVALS and len(shape.items) == 2:
        low, high = map(_node, shape.items)
        opens = [bracket in "()" for bracket in shape.brackets]
        pieces, name = [Piece(low, opens[0] or _endless(low), high, opens[1] or _endless(high))], ""
    elif isinstance(shape, Value) and shape.node == Node("sym", name="reals"):
        pieces, name = [Piece(_MINUS_OO, True, _OO, True)], ""
    else:
        raise _NotARegionError
    return _merged(pieces, test), name


def _node(shape: Shape) -> Node:
    if not isinstance(shape, Value):
        raise _NotARegionError
    return shape.node


def _endless(node: Node) -> bool:
    return infinity_sign(node) != 0


def _joined(shapes: tuple[Shape, ...], test: ValueTest) -> tuple[list[Piece], str]:
    pieces: list[Piece] = []
    names = set()
    for shape in shapes:
        found, name = _pieces(shape, test)
        pieces += found
        names.add(name)
    names.discard("")
    if len(names) > 1:
        raise _NotARegionError
    return pieces, names.pop() if names else ""


def _without(piece: Piece, point: Node, test: ValueTest) -> list[Piece]:
    """A piece with one point taken out."""
    low, at, high = (test.real(node) for node in (piece.low, point, piece.high))
    if low is None or at is None or high is None:
        raise _NotARegionError
    if not low <= at <= high:
        return [piece]
    return [Piece(piece.low, piece.low_open, point, True), Piece(point, True, piece.high, piece.high_open)]


def _of_absolute(shape: Relation, test: ValueTest) -> tuple[list[Piece], str] | None:
    """`1 <= |x| <= 2` is two pieces, `|x| < 2` one; None where no absolute value of a variable stands there."""
    nodes = [_node(side) for side in shape.sides]
    around = [at for at, node in enumerate(nodes) if node.op == "abs" and node.args[0].op == "sym"]
    if len(around) != 1:
        return None
    sides = [Value(node.args[0]) if at == around[0] else Value(node) for at, node in enumerate(nodes)]
    pieces, name = _of_relation(Relation(tuple(sides), shape.signs))
    mirrored = []
    for low, low_open, high, high_open in pieces:
        bottom, top = test.real(low), test.real(high)
        if bottom is None or top is None or top < 0:
            raise _NotARegionError
        minus_high = Node("neg", (high,))
        if bottom < 0:
            mirrored.append(Piece(minus_high, high_open, high, high_open))
        else:
            mirrored += [
                Piece(minus_high, high_open, Node("neg", (low,)), low_open),
                Piece(low, low_open, high, high_open),
            ]
    return mirrored, name


def _of_relation(shape: Relation) -> tuple[list[Piece], str]:
    """`a < x <= b`, `x > a`, `x = a`, `x != a`, with the variable alone on its side."""
    nodes = [_node(side) for side in shape.sides]
    named = [index for index, node in enumerate(nodes) if node.op in ("sym", "apply")]
    if len(named) != 1 or len(nodes) > 3:
        raise _NotARegionError
    at = named[0]
    if len(nodes) == 2:
        sign, end = shape.signs[0], nodes[1 - at]
        if at == 1:
            sign = {"<": ">", ">": "<", "<=": ">=", ">=": "<="}.get(sign, sign)
        return _half_line(sign, end), nodes[at].name
    if at != 1 or {sign[0] for sign in shape.signs} not in ({"<"}, {">"}):
        raise _NotARegionError
    low, high, opens = nodes[0], nodes[2], [len(sign) == 1 for sign in shape.signs]
    if shape.signs[0][0] == ">":
        low, high = high, low
        opens.reverse()
    return [Piece(low, opens[0] or _endless(low), high, opens[1] or _endless(high))], nodes[1].name


def _half_line(sign: str, end: Node) -> list[Piece]:
    if sign == "=":
        return [Piece(end, False, end, False)]
    if sign == "!=":
        return [Piece(_MINUS_OO, True, end, True), Piece(end, True, _OO, True)]
    if sign[0] == "<":
        return [Piece(_MINUS_OO, True, end, sign == "<")]
    if sign[0] == ">":
        return [Piece(end, sign == ">", _OO, True)]
    raise _NotARegionError


def _intersected(pieces: list[Piece], test: ValueTest) -> list[Piece]:
    """`x > 1, x < 3` means both where both can hold; `x < 1, x > 3` means either."""
    if len(pieces) != 2:
        return pieces
    lower = [piece for piece in pieces if _endless(piece.high) and not _endless(piece.low)]
    upper = [piece for piece in pieces if _endless(piece.low) and not _endless(piece.high)]
    if len(lower) != 1 or len(upper) != 1:
        return pieces
    low, high = test.real(lower[0].low), test.real(upper[0].high)
    if low is None or high is None or low >= high:
        return pieces
    return [Piece(lower[0].low, lower[0].low_open, upper[0].high, upper[0].high_open)]


def _merged(pieces: list[Piece], test: ValueTest) -> list[Piece]:
    """Pieces in ascending order, touching ones joined; as they stand where an end is symbolic."""
    ends = [(test.real(piece.low), test.real(piece.high)) for piece in pieces]
    known: list[tuple[float, float, Piece]] = []
    for (low, high), piece in zip(ends, pieces, strict=True):
        if low is None or high is None:
            return pieces
        known.append((low, high, piece))
    known.sort(key=lambda item: (item[0], item[2].low_open, item[1]))
    merged: list[tuple[float, float, Piece]] = []
    for low, high, piece in known:
        if merged and _touches(merged[-1], low, piece):
            before_low, before_high, before = merged[-1]
            if math.isclose(high, before_high):
                joined = before._replace(high_open=before.high_open and piece.high_open)
                merged[-1] = (before_low, before_high, joined)
            elif high > before_high:
                merged[-1] = (before_low, high, before._replace(high=piece.high, high_open=piece.high_open))
        else:
            merged.append((low, high, piece))
    return [piece for _, _, piece in merged]


def _touches(before: tuple[float, float, Piece], low: float, piece: Piece) -> bool:
    _, high, earlier = before
    if math.isclose(low, high, rel_tol=1e-12, abs_tol=1e-12):
        return not (earlier.high_open and piece.low_open)
    return low < high
