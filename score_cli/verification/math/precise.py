"""Decide with many digits what quick arithmetic leaves open. Only worker processes import this: mpmath may hang."""

from fractions import Fraction
from typing import Any, NamedTuple

import mpmath  # type: ignore[import-untyped]

from score_cli.verification.math.compare import QuickJudge
from score_cli.verification.math.parse import Node
from score_cli.verification.math.values import (
    Point,
    UndefinedError,
    UnknownValueError,
    evaluate,
    points_for,
    variable_value,
)

# A difference that is really zero shrinks with the digits; a small one stays.
_DIGITS = (180, 270)
_LOST_DIGITS = 20
_LARGEST_LOSS = mpmath.mpf(10) ** 60
_MAX_EXPONENT = 10**15
_MAX_COUNT = 10**6
_RATIO_AGREES = mpmath.mpf(10) ** -60


class _Precise:
    """The operations of `values.Arithmetic` on mpmath numbers; `scale` is the largest value met."""

    def __init__(self, point: Point) -> None:
        self.point = point
        self.branched = False
        self.scale = mpmath.mpf(0)

    def _seen(self, value: Any) -> Any:
        if not mpmath.isfinite(value):
            raise UnknownValueError("not finite")
        self.scale = max(self.scale, abs(value))
        return value

    def number(self, value: Fraction) -> Any:
        return self._seen(mpmath.mpf(value.numerator) / value.denominator)

    def variable(self, name: str) -> Any:
        return self.number(variable_value(name, self.point))

    def constant(self, name: str) -> Any:
        if name not in ("pi", "e", "i"):
            raise UnknownValueError(name)
        return {"pi": +mpmath.pi, "e": +mpmath.e, "i": mpmath.mpc(0, 1)}[name]

    def add(self, values: list[Any]) -> Any:
        largest = max(abs(value) for value in values)
        if any(value != 0 and abs(value) * _LARGEST_LOSS < largest for value in values):
            raise UnknownValueError("a term lost in the sum")  # 5 + 10**-400 is not 5
        return self._seen(sum(values, mpmath.mpf(0)))

    def mul(self, a: Any, b: Any) -> Any:
        return self._seen(a * b)

    def div(self, a: Any, b: Any) -> Any:
        if b == 0:
            raise UndefinedError("division by zero")
        if abs(b) * _LARGEST_LOSS < self.scale:
            raise UnknownValueError("a divisor close to zero")
        return self._seen(a / b)

    def power(self, a: Any, b: Any) -> Any:
        if a == 0:
            if mpmath.re(b) <= 0:
                raise UndefinedError("zero to a power that is not positive")
            return mpmath.mpf(0)
        if abs(b) > _MAX_EXPONENT:
            raise UnknownValueError("too large a power")
        if mpmath.im(b) != 0 or b != int(mpmath.re(b)):
            self.branched |= mpmath.im(a) != 0 or mpmath.re(a) < 0
        return self._seen(mpmath.power(a, b))

    def root(self, a: Any, n: Any) -> Any:
        if mpmath.im(n) == 0 and mpmath.re(n) % 2 == 1 and mpmath.im(a) == 0 and mpmath.re(a) < 0:
            return -self.root(-a, n)
        return self.power(a, self.div(mpmath.mpf(1), n))

    def function(self, name: str, values: list[Any]) -> Any:
        a = values[0]
        if name == "abs":
            return abs(a)
        if name in ("floor", "ceil"):
            nearest = mpmath.nint(a)
            if mpmath.im(a) != 0 or (a != nearest and abs(a - nearest) * _LARGEST_LOSS < 1 + self.scale):
                raise UnknownValueError(name)
            return getattr(mpmath, name)(a)
        if name == "log":
            if any(value == 0 for value in values):
                raise UndefinedError("logarithm of zero")
            self.branched |= any(mpmath.im(value) != 0 or mpmath.re(value) < 0 for value in values)
            return self._seen(mpmath.log(a)) if len(values) == 1 else self.div(mpmath.log(a), mpmath.log(values[1]))
        if name in ("fact", "binom"):
            return self._counting(name, values)
        if abs(a) > (_MAX_EXPONENT if name in ("exp", "sinh", "cosh", "tanh") else _LARGEST_LOSS):
            raise UnknownValueError("too large an argument")
        known = {"arcsin": "asin", "arccos": "acos", "arctan": "atan"}.get(name, name)
        return self._seen(getattr(mpmath, known)(a))

    def apply(self, name: str, argument: Any) -> Any:
        shift = self.number(variable_value(name, Point("positive", 0)))
        return mpmath.sin(argument * mpmath.mpf(7) / 10 + shift)

    def _counting(self, name: str, values: list[Any]) -> Any:
        if any(mpmath.im(value) != 0 or value != int(mpmath.re(value)) or mpmath.re(value) < 0 for value in values):
            raise UndefinedError(f"{name} of a number that is not whole")
        if any(value > _MAX_COUNT for value in values):
            raise UnknownValueError(name)
        return self._seen(mpmath.factorial(values[0]) if name == "fact" else mpmath.binomial(values[0], values[1]))


class _Value(NamedTuple):
    value: Any
    scale: Any
    branched: bool


def _at(node: Node, point: Point, digits: int) -> _Value:
    """A tree's value at a point, the largest value on the way there, and whether a branch was chosen."""
    with mpmath.workdps(digits):
        arithmetic = _Precise(point)
        try:
            value = evaluate(node, arithmetic)
        except (ArithmeticError, ValueError, TypeError, AttributeError) as error:
            raise UnknownValueError(type(error).__name__) from error
        if arithmetic.scale > _LARGEST_LOSS * (1 + abs(value)):
            raise UnknownValueError("too many digits cancel")
        return _Value(value, arithmetic.scale, arithmetic.branched)


def _agree(a: Node, b: Node, point: Point) -> tuple[bool, bool]:
    """Whether two trees have one value at a point, and whether a branch was chosen on the way.

    Raises:
        UndefinedError, UnknownValueError: one has none there.
    """
    residues = []
    branched = False
    for digits in _DIGITS:
        left, right = _at(a, point, digits), _at(b, point, digits)
        with mpmath.workdps(digits):
            residue = abs(left.value - right.value)
            branched = left.branched or right.branched
            if residue > (left.scale + right.scale) * mpmath.mpf(10) ** (_LOST_DIGITS - digits):
                return False, branched
            residues.append(residue)
    return 0 in residues or residues[1] < residues[0] * mpmath.mpf(10) ** -40, branched


class PreciseJudge(QuickJudge):
    """As `QuickJudge`, then many digits: a difference that vanishes at every point, to all of them, is equality."""

    def same(self, a: Node, b: Node) -> bool | None:
        """Equal or different; None where neither can be evaluated."""
        quick = super().same(a, b)
        if quick is not None:
            return quick
        points = points_for(a, b)
        plain: list[bool] = []
        branched: list[bool] = []
        for point in points:
            try:
                agree, has_branches = _agree(a, b, point)
            except (UndefinedError, UnknownValueError):
                continue
            (branched if has_branches and len(points) > 1 else plain).append(agree)
            if plain and not plain[-1]:
                return False
        # Where a branch was chosen the values may differ although the expressions agree wherever both are real.
        decisive = plain or branched
        return all(decisive) if decisive else None

    def proportional(self, a: Node, b: Node, *, positive: bool) -> bool | None:
        """Whether the ratio is one constant at every point."""
        quick = super().proportional(a, b, positive=positive)
        if quick is not None:
            return quick
        ratios = []
        for point in points_for(a, b):
            try:
                above, below = _at(a, point, _DIGITS[0]), _at(b, point, _DIGITS[0])
            except (UndefinedError, UnknownValueError):
                continue
            with mpmath.workdps(_DIGITS[0]):
                if abs(below.value) * 10**20 > 1:
                    ratios.append(above.value / below.value)
        if len(ratios) < 2:
            return None
        with mpmath.workdps(_DIGITS[0]):
            if any(abs(ratio - ratios[0]) > _RATIO_AGREES * (1 + abs(ratio)) for ratio in ratios):
                return False
            return bool(abs(ratios[0]) > _RATIO_AGREES and (not positive or mpmath.re(ratios[0]) > 0))
