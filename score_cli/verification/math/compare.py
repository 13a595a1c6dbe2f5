"""Compare two answers of known shape: equal, different, or not decided (None).

The order of a bare list or of a set does not matter, that of a tuple does. A name before an equals sign may be left
out. `0 < x < 1` and `(0, 1)` are one answer. A percent or degree sign may be left out; other units may too,
but two known units must agree.
"""

from collections.abc import Iterable
from fractions import Fraction
from itertools import pairwise

from score_cli.verification.math.names import names_agree, reordered, unnamed
from score_cli.verification.math.parse import BINDERS, Node, free_symbols, number
from score_cli.verification.math.regions import is_region, same_region
from score_cli.verification.math.shapes import Difference, Matrix, Relation, Sequence, Shape, Union, Value, Words
from score_cli.verification.math.units import labels_agree
from score_cli.verification.math.values import (
    HIGH_BITS,
    LOW_BITS,
    Point,
    UndefinedError,
    UnknownValueError,
    Work,
    ball,
    exact,
    infinity_sign,
    points_for,
    real_number,
    values_at,
)

WORK_UNITS = 12_000
_EMPTY = Value(Node("sym", name="empty"))
_REALS = Node("sym", name="reals")
_UNORDERED = frozenset(("", "\\{}", "{}"))


class EqualityTest:
    """Decides whether expressions are equal; None is `not decided`. One account of work pays for all that it is asked.

    Args:
        units: the account, in units of about a microsecond.
    """

    def __init__(self, units: int = WORK_UNITS) -> None:
        self._work = Work(units)

    def same(self, a: Node, b: Node) -> bool | None:
        """Whether two expressions are equal: by form, as rational numbers, or at fixed points of their variables."""
        if a == b:
            return True
        if has_base(a) or has_base(b):
            return False
        if infinity_sign(a) or infinity_sign(b):
            return infinity_sign(a) == infinity_sign(b)
        if _EMPTY.node in (a, b):
            return False
        try:
            self._work.spend(1)
            left, right = exact(a, self._work), exact(b, self._work)
        except UndefinedError:
            return False
        except UnknownValueError:
            return None
        if left is not None and right is not None:
            return bool(left == right)
        return self._same_at_points(a, b)

    def _same_at_points(self, a: Node, b: Node) -> bool | None:
        points = points_for(a, b)
        plain: list[bool] = []
        branched: list[bool] = []
        for point in points:
            agree, has_branches = self._same_at(a, b, point)
            if agree is None:
                continue
            (branched if has_branches and len(points) > 1 else plain).append(agree)
            if plain and not plain[-1]:
                return False
        # Where a branch was chosen the values may differ although the expressions agree wherever both are real.
        decisive = plain or branched
        return all(decisive) if decisive else None

    def _same_at(self, a: Node, b: Node, point: Point) -> tuple[bool | None, bool]:
        """Whether two values agree at a point, and whether a branch was chosen on the way to one."""
        has_branches = False
        for bits in (LOW_BITS, HIGH_BITS):
            try:
                left, right = ball(a, point, bits, self._work), ball(b, point, bits, self._work)
            except UndefinedError:
                return None, False
            except UnknownValueError:
                continue
            has_branches = left.branched or right.branched
            if not left.value.overlaps(right.value):
                return False, has_branches
            if bits == HIGH_BITS and left.accurate() and right.accurate():
                return True, has_branches
        return None, has_branches

    def proportional(self, a: Node, b: Node, *, positive: bool) -> bool | None:
        """Whether one expression is a constant times the other, a positive constant if so asked."""
        if free_symbols(a) != free_symbols(b):
            return False
        surely = False
        for bits in (LOW_BITS, HIGH_BITS):
            pairs = [pair for pair in values_at((a, b), bits, self._work) if not pair[1].value.contains(0)]
            ratios = [above.value / below.value for above, below in pairs]
            if any(not ratio.overlaps(ratios[0]) for ratio in ratios):
                return False
            if ratios and (ratios[0].contains(0) or (positive and ratios[0].real < 0)):
                return False
            surely = len(ratios) > 1 and all(above.accurate() and below.accurate() for above, below in pairs)
        return True if surely and (not positive or ratios[0].real > 0) else None

    def real(self, node: Node) -> float | None:
        """A constant's real value, None where there is none or it is not known well."""
        return real_number(node, self._work)

    def is_small(self, node: Node) -> bool:
        """Whether a number is a fraction of one: 0.25 is 25%, not 0.25%."""
        try:
            value = exact(node, self._work)
        except (UndefinedError, UnknownValueError):
            return False
        return value is not None and abs(value) < 1


def compare(answer: Shape, gold: Shape, test: EqualityTest) -> bool | None:
    """Whether an answer says what the gold answer says; None where that is not decided."""
    if isinstance(answer, Words) or isinstance(gold, Words):
        return answer == gold
    if isinstance(answer, Relation) or isinstance(gold, Relation):
        return _relations(answer, gold, test)
    if isinstance(answer, Matrix) or isinstance(gold, Matrix):
        return _matrices(answer, gold, test)
    if isinstance(answer, Union | Difference) or isinstance(gold, Union | Difference):
        return False if _is_one_value(answer) or _is_one_value(gold) else same_region(answer, gold, test)
    if isinstance(answer, Sequence) and isinstance(gold, Sequence):
        return _sequences(answer, gold, test)
    if isinstance(answer, Sequence) or isinstance(gold, Sequence):
        return _sequence_and_value(answer, gold, test)
    return same_value(answer, gold, test)


def all_of(results: Iterable[bool | None]) -> bool | None:
    """True if all are, False if one is, else not decided."""
    undecided = False
    for result in results:
        if result is False:
            return False
        undecided |= result is None
    return None if undecided else True


def any_of(results: Iterable[bool | None]) -> bool | None:
    """True if one is, False if all are, else not decided."""
    undecided = False
    for result in results:
        if result:
            return True
        undecided |= result is None
    return None if undecided else False


def has_base(node: Node) -> bool:
    """Whether a numeral of another base stands in a tree."""
    return node.op == "based" or any(has_base(argument) for argument in node.args)


def same_value(answer: Value, gold: Value, test: EqualityTest) -> bool | None:
    """Compare two expressions with their marks and units."""
    if (answer.unit and gold.unit and answer.unit != gold.unit) or not labels_agree(answer.label, gold.label):
        return False
    if (answer.mark == "%" and gold.unit) or (answer.unit and gold.mark == "%"):
        return False
    if answer.mark == gold.mark:
        return test.same(answer.node, gold.node)
    if "time" in (answer.mark, gold.mark):
        return test.same(_minutes(answer.node, answer.mark), _minutes(gold.node, gold.mark))
    readings = []
    if {answer.mark, gold.mark} == {"%", "deg"}:
        return False
    if not (answer.mark == "%" and test.is_small(gold.node)):
        readings.append((answer.node, gold.node))
    factor = Node("div", (number(1), number(100)))
    if "deg" in (answer.mark, gold.mark):
        factor = Node("div", (Node("const", name="pi"), number(180)))
    if answer.mark:
        readings.append((Node("mul", (answer.node, factor)), gold.node))
    else:
        readings.append((answer.node, Node("mul", (gold.node, factor))))
    return any_of(test.same(left, right) for left, right in readings)


def _minutes(node: Node, mark: str) -> Node:
    """`3:45` read as a time, because the other answer is one."""
    if mark == "time" or node.op != "div":
        return node
    return Node("add", (Node("mul", (number(60), node.args[0])), node.args[1]))


def _sequences(answer: Sequence, gold: Sequence, test: EqualityTest) -> bool | None:
    pairs_only = len(answer.items) == len(gold.items) == 2
    if (
        pairs_only
        and is_region(answer) != is_region(gold)
        and {answer.brackets, gold.brackets} <= {"()", "[]", "(]", "[)"}
    ):
        return False
    if pairs_only and answer.brackets != gold.brackets and is_region(answer) and is_region(gold):
        return False
    if is_region(gold) and any(isinstance(item, Relation) for item in answer.items):
        return same_region(answer, gold, test)
    answers, golds = _labels(answer, gold)
    if answer.brackets in _UNORDERED and gold.brackets in _UNORDERED:
        forth = all_of(any_of(compare(item, other, test) for other in golds) for item in answers)
        back = all_of(any_of(compare(item, other, test) for item in answers) for other in golds)
        joined = all_of((forth, back))
        if joined is not True and any(is_region(item) for item in golds):
            return any_of((joined, same_region(answer, gold, test)))
        return joined
    if len(answers) != len(golds):
        return False
    return all_of(compare(item, other, test) for item, other in zip(answers, golds, strict=True))


def _labels(answer: Sequence, gold: Sequence) -> tuple[tuple[Shape, ...], tuple[Shape, ...]]:
    """Items to compare: `x = 1, y = 2` keeps its names only where the other answer has names too."""
    answer_named = all(isinstance(item, Relation) for item in answer.items)
    gold_named = all(isinstance(item, Relation) for item in gold.items)
    if answer_named and gold_named:
        return answer.items, gold.items
    return tuple(map(unnamed, answer.items)), tuple(map(unnamed, gold.items))


def _relations(answer: Shape, gold: Shape, test: EqualityTest) -> bool | None:
    if is_region(gold) or is_region(answer):
        return _inequalities(answer, gold, test)
    if isinstance(gold, Relation):
        plain = unnamed(gold)
        if plain is not gold:
            said = _value_said(answer, test)
            if isinstance(answer, Relation) and unnamed(answer) is not answer:
                said = reordered(answer.sides[0], answer.sides[-1], gold.sides[0])
                if said is answer.sides[-1] and not names_agree(answer.sides[0], gold.sides[0]):
                    return False
            return _equations(answer, gold, test) if said is None else compare(said, plain, test)
        if set(gold.signs) != {"="}:
            return None
        return _equations(answer, gold, test)
    said = _value_said(answer, test)
    return False if said is None else compare(said, gold, test)


def _value_said(shape: Shape, test: EqualityTest) -> Shape | None:
    """The value an equation states: of `x = 5` or `2 + 3 = 5` that is 5; None for what states no one value."""
    if not isinstance(shape, Relation):
        return shape
    if unnamed(shape) is not shape:
        return unnamed(shape)
    if set(shape.signs) != {"="}:
        return None
    sides = [side for side in shape.sides if isinstance(side, Value)]
    if len(sides) < len(shape.sides) or any(free_symbols(side.node) for side in sides):
        return None
    # `5 = 6` states nothing; a chain counts only if each step holds.
    holds = all_of(test.same(left.node, right.node) for left, right in pairwise(sides))
    return sides[-1] if holds else None


def _difference(left: Shape, right: Shape) -> Node | None:
    if isinstance(left, Value) and isinstance(right, Value):
        return Node("add", (left.node, Node("neg", (right.node,))))
    return None


def _equations(answer: Shape, gold: Relation, test: EqualityTest) -> bool | None:
    target = _difference(gold.sides[0], gold.sides[1])
    if target is None or len(gold.signs) > 1:
        return None
    if isinstance(answer, Relation):
        found = _difference(answer.sides[0], answer.sides[1])
        if found is None or set(answer.signs) != {"="} or len(answer.signs) > 1:
            return False if found is not None else None
        return test.proportional(found, target, positive=False)
    if not isinstance(answer, Value):
        return False
    missing = free_symbols(target) - free_symbols(answer.node)
    if len(missing) != 1 or not free_symbols(answer.node):
        return False
    # `2x + 1` answers `y - 1 = 2x` where y enters linearly.
    name = next(iter(missing))
    return all_of([test.same(_substitute(target, name, answer.node), number(0)), _linear_in(target, name, test)])


def _linear_in(node: Node, name: str, test: EqualityTest) -> bool | None:
    at = [_substitute(node, name, number(Fraction(value))) for value in (1, 2, 3)]
    return test.same(Node("add", (at[0], at[2])), Node("mul", (number(2), at[1])))


def _substitute(node: Node, name: str, value: Node) -> Node:
    if node.op == "sym" and node.name == name:
        return value
    if node.op in BINDERS and node.name == name:
        return node
    return node._replace(args=tuple(_substitute(argument, name, value) for argument in node.args))


def _inequalities(answer: Shape, gold: Shape, test: EqualityTest) -> bool | None:
    if isinstance(answer, Relation) and isinstance(gold, Relation):
        if len(answer.signs) == len(gold.signs) == 1:
            direct = _one_inequality(answer, gold, test)
            if direct is not False:
                return direct
        if set(answer.signs) == {"="} or set(gold.signs) == {"="}:
            return False
    if _is_one_value(answer) or _is_one_value(gold):
        return False
    return same_region(answer, gold, test)


def _is_one_value(shape: Shape) -> bool:
    return isinstance(shape, Value) and shape.node != _REALS


def _one_inequality(answer: Relation, gold: Relation, test: EqualityTest) -> bool | None:
    """Bring both to `difference < 0` and compare the differences up to a positive factor."""
    found, target = _difference(*answer.sides), _difference(*gold.sides)
    if found is None or target is None:
        return None
    sign, wanted = answer.signs[0], gold.signs[0]
    if (sign == "!=") != (wanted == "!=") or ("=" in sign) != ("=" in wanted):
        return False
    if sign in (">", ">="):
        found = Node("neg", (found,))
    if wanted in (">", ">="):
        target = Node("neg", (target,))
    return test.proportional(found, target, positive=sign != "!=")


def _matrices(answer: Shape, gold: Shape, test: EqualityTest) -> bool | None:
    def rows(shape: Shape) -> list[tuple[Shape, ...]] | None:
        if isinstance(shape, Matrix):
            return list(shape.rows)
        return [(item,) for item in shape.items] if isinstance(shape, Sequence) and shape.brackets else None

    def column(entries: list[tuple[Shape, ...]] | None) -> list[tuple[Shape, ...]] | None:
        flat = entries is not None and len(entries) == 1
        return [(entry,) for entry in entries[0]] if entries is not None and flat else entries

    left, right = rows(answer), rows(gold)
    if not (isinstance(answer, Matrix) and isinstance(gold, Matrix)):
        left, right = column(left), column(right)
    if left is None or right is None or [len(row) for row in left] != [len(row) for row in right]:
        return False
    pairs = [pair for above, below in zip(left, right, strict=True) for pair in zip(above, below, strict=True)]
    return all_of(compare(item, other, test) for item, other in pairs)


def _sequence_and_value(answer: Shape, gold: Shape, test: EqualityTest) -> bool | None:
    """One value against several: they agree only where the several are a set of one, or both are the empty set."""
    several, one = (answer, gold) if isinstance(answer, Sequence) else (gold, answer)
    if isinstance(one, Value) and one.node == _REALS:
        return same_region(answer, gold, test)
    if not isinstance(several, Sequence) or several.brackets != "\\{}":
        return False
    if not several.items or one == _EMPTY:
        return not several.items and one == _EMPTY
    if len(several.items) > 1:
        return False
    item = unnamed(several.items[0])
    return compare(item, gold, test) if several is answer else compare(answer, item, test)
