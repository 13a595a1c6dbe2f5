"""The value of an expression tree: exactly where it is rational, else in numbers that carry their own error.

Two expressions are compared at fixed points of their variables. `separate` can only show that they differ; that
two irrational values are equal is decided elsewhere, with more digits.
"""

import cmath
import math
import zlib
from fractions import Fraction
from typing import Any, NamedTuple

from score_cli.verification.math.parse import Node, free_symbols

_MAX_BITS = 6000
_MAX_FACTORIAL = 300
_UNIT = 4e-16
_SAFETY = 64.0
_TAKES_INTEGERS = frozenset(("fact", "binom"))


class UndefinedError(Exception):
    """There is no such value: a division by zero, the logarithm of zero, the factorial of a half."""


class UnknownValueError(Exception):
    """There may be a value, but not one that is cheap and safe to compute here."""


def infinity_sign(node: Node) -> int:
    """1 or -1 for an infinity standing alone, else 0."""
    if node == Node("const", name="oo"):
        return 1
    return -infinity_sign(node.args[0]) if node.op == "neg" else 0


def exact(node: Node) -> Fraction | None:
    """The rational value of a tree, None where it is irrational, symbolic or too large.

    Raises:
        UndefinedError: the tree divides by zero, so that it has no value at all.
    """
    if node.op == "num":
        return node.value
    if not node.args or node.op in ("apply",):
        return None
    values = [exact(argument) for argument in node.args]
    if any(value is None for value in values):
        return None
    known = [value for value in values if value is not None]
    result = _exact_operation(node.op, known)
    if result is not None and max(result.numerator.bit_length(), result.denominator.bit_length()) > _MAX_BITS:
        return None
    return result


def _exact_operation(op: str, values: list[Fraction]) -> Fraction | None:
    first, last = values[0], values[-1]
    if op == "add":
        return sum(values, Fraction(0))
    if op == "mul":
        return first * last
    if op == "div":
        if last == 0:
            raise UndefinedError("division by zero")
        return first / last
    if op == "neg":
        return -first
    if op == "abs":
        return abs(first)
    if op in ("floor", "ceil"):
        return Fraction(math.floor(first) if op == "floor" else math.ceil(first))
    if op == "pow":
        return _exact_power(first, last)
    if op == "root":
        return _exact_root(first, last)
    whole = all(value.denominator == 1 and 0 <= value <= _MAX_FACTORIAL for value in values)
    if op in _TAKES_INTEGERS and whole:
        return Fraction(math.factorial(int(first)) if op == "fact" else math.comb(int(first), int(last)))
    return None


def _exact_power(base: Fraction, power: Fraction) -> Fraction | None:
    if base == 0:
        if power <= 0:
            raise UndefinedError("zero to a power that is not positive")
        return Fraction(0)
    if power.denominator != 1:
        root = _exact_root(base, Fraction(power.denominator)) if base > 0 else None
        return None if root is None else _exact_power(root, Fraction(power.numerator))
    bits = max(base.numerator.bit_length(), base.denominator.bit_length())
    if abs(power) * bits > _MAX_BITS:
        return None
    return base ** int(power)


def _exact_root(radicand: Fraction, index: Fraction) -> Fraction | None:
    if index.denominator != 1 or not 1 <= index <= 64 or radicand < 0:
        return None
    above, below = _integer_root(radicand.numerator, int(index)), _integer_root(radicand.denominator, int(index))
    return None if above is None or below is None else Fraction(above, below)


def _integer_root(value: int, index: int) -> int | None:
    if index == 2:
        root = math.isqrt(value)
    elif value.bit_length() > 900:
        return None
    else:
        root = round(value ** (1 / index))
    return root if root**index == value else None


class Point(NamedTuple):
    """Where the variables are taken: `kind` is positive, mixed (signs) or whole; `number` counts within a kind."""

    kind: str
    number: int


POINTS = (
    Point("positive", 0),
    Point("positive", 1),
    Point("mixed", 0),
    Point("mixed", 1),
    Point("positive", 2),
    Point("whole", 0),
    Point("whole", 1),
    Point("whole", 2),
)


def variable_value(name: str, point: Point) -> Fraction:
    """A fixed value for a variable at a point, spread by the variable's name alone."""
    spread = zlib.crc32(f"{name} {point.kind} {point.number}".encode("utf-8", "surrogatepass"))
    if point.kind == "whole":
        return Fraction(2 + spread % 9)
    magnitude = Fraction(1 + spread % 9973, 9973) * (1, 3, 12)[point.number] + Fraction(1, 7)
    return -magnitude if point.kind == "mixed" and spread & 0x10000 else magnitude


class Approximate(NamedTuple):
    """A value and a bound on how far rounding may have carried it."""

    value: complex
    error: float


class Arithmetic:
    """Operations on `Approximate`, to first order in the errors; `branched` notes a step that has several branches."""

    def __init__(self, point: Point) -> None:
        self.point = point
        self.branched = False

    def number(self, value: Fraction) -> Approximate:
        """A rational number."""
        rounded = complex(float(value))
        return Approximate(rounded, abs(rounded) * _UNIT)

    def variable(self, name: str) -> Approximate:
        """A variable's value at the point."""
        return self.number(variable_value(name, self.point))

    def constant(self, name: str) -> Approximate:
        """pi, e or i."""
        value = {"pi": complex(math.pi), "e": complex(math.e), "i": 1j}.get(name)
        if value is None:
            raise UnknownValueError(name)
        return Approximate(value, abs(value) * _UNIT)

    def add(self, values: list[Approximate]) -> Approximate:
        """A sum."""
        total = sum(item.value for item in values)
        return Approximate(total, sum(item.error for item in values) + _UNIT * sum(abs(item.value) for item in values))

    def mul(self, a: Approximate, b: Approximate) -> Approximate:
        """A product."""
        value = a.value * b.value
        return Approximate(value, abs(a.value) * b.error + abs(b.value) * a.error + abs(value) * _UNIT)

    def div(self, a: Approximate, b: Approximate) -> Approximate:
        """A quotient; unknown where the divisor may be zero."""
        if b.value == 0 and b.error == 0:
            raise UndefinedError("division by zero")
        if abs(b.value) <= 1e3 * b.error:
            raise UnknownValueError("a divisor close to zero")
        value = a.value / b.value
        return Approximate(value, (a.error + abs(value) * b.error) / abs(b.value) + abs(value) * _UNIT)

    def power(self, a: Approximate, b: Approximate) -> Approximate:
        """A power, on the principal branch."""
        whole = b.value.imag == 0 and b.value.real == int(b.value.real)
        if not whole and (a.value.imag != 0 or a.value.real < 0):
            self.branched = True
        if a.value == 0:
            if b.value.real <= 0:
                raise UndefinedError("zero to a power that is not positive")
            return Approximate(0j, 0.0) if a.error == 0 else self._unknown()
        value = a.value**b.value
        relative = abs(b.value) * a.error / abs(a.value) + abs(cmath.log(a.value)) * b.error
        return Approximate(value, abs(value) * (relative + 8 * _UNIT))

    def root(self, a: Approximate, n: Approximate) -> Approximate:
        """A root; odd roots of negative numbers are negative."""
        odd = n.value.imag == 0 and n.value.real % 2 == 1
        if odd and a.value.imag == 0 and a.value.real < 0:
            inner = self.root(Approximate(-a.value, a.error), n)
            return Approximate(-inner.value, inner.error)
        return self.power(a, self.div(Approximate(1 + 0j, 0.0), n))

    def function(self, name: str, values: list[Approximate]) -> Approximate:
        """A named function of one or two values."""
        a = values[0]
        if name == "abs":
            return Approximate(complex(abs(a.value)), a.error + abs(a.value) * _UNIT)
        if name in ("floor", "ceil"):
            return self._step(name, a)
        if name == "log":
            result = self._log(a)
            return result if len(values) == 1 else self.div(result, self._log(values[1]))
        if name in ("fact", "binom"):
            return self._counting(name, values)
        if name in ("sin", "cos", "sinh", "cosh", "exp", "tan", "tanh"):
            function = getattr(cmath, name)
            value = function(a.value)
            slope = abs(value) + 1 + abs(value) ** 2
            return Approximate(value, slope * (a.error + abs(a.value) * _UNIT) + abs(value) * 8 * _UNIT)
        if name in ("cot", "sec", "csc"):
            below = {"cot": "tan", "sec": "cos", "csc": "sin"}[name]
            return self.div(Approximate(1 + 0j, 0.0), self.function(below, [a]))
        if name in ("arcsin", "arccos", "arctan"):
            if (name != "arctan" and abs(a.value) > 0.999) or a.value.imag != 0:
                raise UnknownValueError("close to a branch point")
            value = getattr(cmath, name.replace("arc", "a"))(a.value)
            return Approximate(value, 50 * (a.error + _UNIT))
        raise UnknownValueError(name)

    def apply(self, name: str, argument: Approximate) -> Approximate:
        """A function nobody defined: some smooth function, the same for every use of its name."""
        shift = self.number(variable_value(name, Point("positive", 0)))
        return self.function("sin", [self.add([self.mul(argument, self.number(Fraction(7, 10))), shift])])

    def _unknown(self) -> Approximate:
        raise UnknownValueError("close to zero")

    def _log(self, a: Approximate) -> Approximate:
        if a.value == 0:
            raise UndefinedError("logarithm of zero")
        if a.value.imag != 0 or a.value.real < 0:
            self.branched = True
        return Approximate(cmath.log(a.value), a.error / abs(a.value) + 4 * _UNIT * (1 + abs(cmath.log(a.value))))

    def _step(self, name: str, a: Approximate) -> Approximate:
        if a.value.imag != 0 or abs(a.value.real - round(a.value.real)) <= 1e3 * a.error + 1e-9:
            raise UnknownValueError("a step")
        return Approximate(complex(getattr(math, name)(a.value.real)), 0.0)

    def _counting(self, name: str, values: list[Approximate]) -> Approximate:
        numbers = [item.value.real for item in values]
        if any(item.value.imag or item.value.real != int(item.value.real) for item in values):
            raise UndefinedError(f"{name} of a number that is not whole")
        if any(not 0 <= value <= 170 for value in numbers):
            raise UnknownValueError(name)
        whole = [int(value) for value in numbers]
        value = math.factorial(whole[0]) if name == "fact" else math.comb(whole[0], whole[1])
        return self.number(Fraction(value))


def evaluate(node: Node, arithmetic: Any) -> Any:
    """The value of a tree in an arithmetic (`Arithmetic` or one with the same operations).

    Raises:
        UndefinedError: it has no value there.
        UnknownValueError: it is not computed there.
    """
    match node.op:
        case "num":
            return arithmetic.number(node.value)
        case "sym":
            return arithmetic.variable(node.name)
        case "const":
            return arithmetic.constant(node.name)
        case "based":
            raise UnknownValueError("a numeral in another base")
    values = [evaluate(argument, arithmetic) for argument in node.args]
    match node.op:
        case "add":
            return arithmetic.add(values)
        case "neg":
            return arithmetic.mul(arithmetic.number(Fraction(-1)), values[0])
        case "mul":
            return arithmetic.mul(values[0], values[1])
        case "div":
            return arithmetic.div(values[0], values[1])
        case "pow":
            return arithmetic.power(values[0], values[1])
        case "root":
            return arithmetic.root(values[0], values[1])
        case "apply":
            return arithmetic.apply(node.name, values[0])
    return arithmetic.function(node.op, values)


def approximate(node: Node, point: Point) -> tuple[Approximate, bool]:
    """A tree's value at a point, and whether a choice of branch went into it.

    Raises:
        UndefinedError, UnknownValueError: as `evaluate`; overflow is unknown.
    """
    arithmetic = Arithmetic(point)
    try:
        value: Approximate = evaluate(node, arithmetic)
    except (OverflowError, ValueError, ZeroDivisionError) as error:
        raise UnknownValueError(str(error)) from error
    if not (cmath.isfinite(value.value) and math.isfinite(value.error)):
        raise UnknownValueError("not finite")
    return value, arithmetic.branched


def points_for(*nodes: Node) -> tuple[Point, ...]:
    """One point where there are no variables, else all of them."""
    return POINTS if any(free_symbols(node) for node in nodes) else POINTS[:1]


def real_number(node: Node) -> float | None:
    """A constant's real value, None where there is none or it is not known well."""
    if free_symbols(node):
        return None
    if sign := infinity_sign(node):
        return sign * math.inf
    try:
        found, _ = approximate(node, POINTS[0])
    except (UndefinedError, UnknownValueError):
        return None
    if abs(found.value.imag) > 1e-12 or found.error > 1e-6 * (1 + abs(found.value)):
        return None
    return found.value.real


def separate(a: Node, b: Node) -> bool:
    """Whether two expressions surely differ: at some point, beyond every rounding error, branches left aside."""
    with_branches = False
    compared = 0
    for point in points_for(a, b):
        try:
            left, left_branched = approximate(a, point)
            right, right_branched = approximate(b, point)
        except (UndefinedError, UnknownValueError):
            continue
        if (left_branched or right_branched) and len(points_for(a, b)) > 1:
            with_branches |= abs(left.value - right.value) > _SAFETY * (left.error + right.error) + 1e-300
            continue
        compared += 1
        if abs(left.value - right.value) > _SAFETY * (left.error + right.error) + 1e-300:
            return True
    return with_branches and compared == 0
