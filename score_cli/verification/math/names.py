r"""Names of quantities: what may stand before an equals sign, and whether two answers name the same thing.

`x`, `S_n`, `f(x)`, `AB`, `\angle ABC`, `P(A)`, `|AB|`, `V_1:V_2`, `(x, y)`, `mean`.
"""

from typing import Any

from score_cli.verification.math.parse import Node, free_symbols
from score_cli.verification.math.shapes import Relation, Sequence, Shape, Value, Words
from score_cli.verification.math.tokens import word_set
from score_cli.verification.math.units import labels_agree

_MARKS = ("overline ", "bar ", "overrightarrow ", "vec ")
_ANYTHING = word_set("answer result value total solution it that thi this final")


def unnamed(shape: Shape) -> Shape:
    """The value of `name = value`; anything else as it is."""
    if isinstance(shape, Relation) and set(shape.signs) == {"="} and is_name(shape.sides[0]):
        return shape.sides[-1]
    return shape


def is_name(shape: Shape) -> bool:
    """Whether this names something."""
    if isinstance(shape, Sequence):
        return bool(shape.items) and all(is_name(item) for item in shape.items)
    if isinstance(shape, Words):
        return True
    if not isinstance(shape, Value) or shape.mark:
        return False
    return _names_something(shape.node)


def _names_something(node: Node) -> bool:
    if node.op in ("sym", "apply"):
        return node.name not in ("empty", "reals")
    if node.op == "div":  # V_1:V_2, dy/dx
        return all(_names_something(argument) or _is_differential(argument) for argument in node.args)
    if node.op == "abs":  # the length |AB|
        return node.args[0].op == "mul" and _names_something(node.args[0])
    if node.op == "mul":
        first = node.args[0]
        if first.op == "pow" and first.args[0].name in ("f", "g", "h") and _only_symbols(node.args[1]):
            return True  # f^{-1}(x)
        names = free_symbols(node)
        return _only_symbols(node) and ("angle" in names or all(name[0].isupper() for name in names))
    return False


def _is_differential(node: Node) -> bool:
    return node.op == "mul" and node.args[0] == Node("sym", name="d") and node.args[1].op == "sym"


def _only_symbols(node: Node) -> bool:
    return node.op == "sym" or (node.op == "mul" and all(_only_symbols(argument) for argument in node.args))


def names_agree(answer: Shape, gold: Shape) -> bool:
    """Whether two names may name one thing; where one is a word and the other a letter nothing tells them apart."""
    if isinstance(answer, Sequence) and isinstance(gold, Sequence):
        pairs = zip(answer.items, gold.items, strict=False)
        return len(answer.items) == len(gold.items) and all(names_agree(item, other) for item, other in pairs)
    if isinstance(answer, Words) and isinstance(gold, Words):
        left, right = frozenset(answer.words), frozenset(gold.words)
        return labels_agree(left, right) or bool((left | right) & _ANYTHING)
    if not (isinstance(answer, Value) and isinstance(gold, Value)):
        return True
    return _nodes_agree(answer.node, gold.node)


def _nodes_agree(a: Node, b: Node) -> bool:
    if a.op == b.op == "apply":
        arguments = (a.args[0], b.args[0])
        return a.name == b.name and (a == b or all(argument.op == "sym" for argument in arguments))
    if "apply" in (a.op, b.op):  # `y = x + 1` may answer `f(x) = x + 1`, but nothing of another kind
        function, other = (a, b) if a.op == "apply" else (b, a)
        return other.op != "sym" or function.args[0].op == "sym"
    return bool(_key(a) == _key(b))


def _key(node: Node) -> Any:
    """What tells names apart: the letters of points in any order, of an angle with its vertex, else the name."""
    if node.op == "abs":
        return _key(node.args[0])
    if node.op == "div":
        return tuple(_key(argument) for argument in node.args)
    letters = _letters(node)
    if node.op == "sym" and len(letters) == 1:
        return node.name.lower()
    if letters[0] == "angle" or letters[1:2] == ["angle"]:
        points = letters[letters.index("angle") + 1 :]
        if len(points) == 1:
            return points[0].lower()
        return (points[len(points) // 2], tuple(sorted(points))) if len(points) % 2 else tuple(points)
    return tuple(sorted(letters)) if all(letter[0].isupper() for letter in letters) else tuple(letters)


def _letters(node: Node) -> list[str]:
    if node.op == "sym":
        for mark in _MARKS:
            if node.name.startswith(mark):
                return list(node.name.removeprefix(mark))
        return [node.name]
    return [letter for argument in node.args for letter in _letters(argument)] or [node.op]


def reordered(names: Shape, values: Shape, gold_names: Shape) -> Shape:
    """The values of `(y, x) = (1, 2)` in the order of `(x, y)`; as they stand where that is not what is written."""
    if not all(isinstance(part, Sequence) for part in (names, values, gold_names)):
        return values
    assert isinstance(names, Sequence) and isinstance(values, Sequence) and isinstance(gold_names, Sequence)
    order = [names.items.index(name) for name in gold_names.items if name in names.items]
    if len({len(names.items), len(values.items), len(gold_names.items), len(set(order)), len(order)}) > 1:
        return values
    return values._replace(items=tuple(values.items[at] for at in order))
