"""The value of an expression tree: exactly where it is rational, else as a ball that surely holds it.

The balls are Arb's (python-flint): each operation widens the radius by all that rounding may have done, so balls
that do not meet belong to different numbers. Balls that meet to 600 bits are taken for one number, unless something
was lost on the way that is too small to show (`lost`): `5 + 10^{-400}` is not 5.

Every step is paid for from a `Work` account, so that no expression holds the process.
"""

import math
import zlib
from collections.abc import Iterator
from fractions import Fraction
from typing import Any, NamedTuple

from flint import acb, arb, ctx, fmpq

from score_cli.verification.math.parse import Node, free_symbols

LOW_BITS, HIGH_BITS = 64, 2300
_AGREE_BITS = 600
_MAX_BITS = 6000
_MAX_FACTORIAL = 300
_MAX_COUNT = 10**6
_MAX_EXPONENT = 10**15
MAX_TERMS = 1000
# tanh is 1 - 2^-577 here; further out it cannot be told from 1.
_TANH_SATURATES = 200
_AGREES, _LARGE = arb(2) ** -_AGREE_BITS, arb(2) ** _AGREE_BITS
# What an operation costs in units of about a microsecond, at many digits where it is dear.
_COST = {"pow": 70, "root": 70, "log": 40, "fact": 100, "binom": 300, "apply": 40, "arcsin": 40, "arccos": 40}
_COST |= dict.fromkeys(("sin", "cos", "tan", "cot", "sec", "csc", "sinh", "cosh", "tanh", "exp", "arctan"), 30)


class UndefinedError(Exception):
    """There is no such value: a division by zero, the logarithm of zero, the factorial of a half."""


class UnknownValueError(Exception):
    """There may be a value, but not one that is cheap and safe to compute here."""


class Work:
    """How much may still be computed, in units of about a microsecond."""

    def __init__(self, units: int) -> None:
        self.left = units

    def spend(self, units: int) -> None:
        """Pay for a step.

        Raises:
            UnknownValueError: there is not enough left.
        """
        self.left -= units
        if self.left < 0:
            raise UnknownValueError("too much work")


def infinity_sign(node: Node) -> int:
    """1 or -1 for an infinity standing alone, else 0."""
    if node == Node("const", name="oo"):
        return 1
    return -infinity_sign(node.args[0]) if node.op == "neg" else 0


def terms(low: Any, high: Any) -> range:
    """The values that the index of a finite sum or product takes."""
    if low is None or high is None or low.q != 1 or high.q != 1 or high - low >= MAX_TERMS:
        raise UnknownValueError("not a short sum")
    return range(int(low.p), int(high.p) + 1)


def determinant(entries: list[Any]) -> Any:
    """The determinant of a small square matrix, its entries row by row."""
    size = math.isqrt(len(entries))
    if size == 1:
        return entries[0]
    total: Any = 0
    for column in range(size):
        minor = [entry for at, entry in enumerate(entries[size:]) if at % size != column]
        total = total + (-1) ** column * entries[column] * determinant(minor)
    return total


def exact(node: Node, work: Work, bound: dict[str, Any] | None = None) -> Any | None:
    """The rational value of a tree (an `fmpq`), None where it is irrational, symbolic or too large.

    Raises:
        UndefinedError: the tree divides by zero, so that it has no value at all.
        UnknownValueError: it is too much work.
    """
    if node.op == "num":
        return fmpq(node.value.numerator, node.value.denominator)
    if node.op == "sym":
        return bound.get(node.name) if bound else None
    if not node.args or node.op in ("apply", "int", "lim"):
        return None
    if node.op in ("sum", "prod"):
        return _exact_series(node, work, bound or {})
    values = [exact(argument, work, bound) for argument in node.args]
    if any(value is None for value in values):
        return None
    result = _exact_operation(node.op, values)
    if result is None:
        return None
    bits = _bits(result)
    work.spend(1 + bits // 200)
    return None if bits > _MAX_BITS else result


def _bits(value: Any) -> int:
    return max(int(value.p.bit_length()), int(value.q.bit_length()))


def _exact_series(node: Node, work: Work, bound: dict[str, Any]) -> Any | None:
    body, low, high = node.args
    try:
        indices = terms(exact(low, work, bound), exact(high, work, bound))
    except UnknownValueError:
        return None
    total = fmpq(0 if node.op == "sum" else 1)
    for index in indices:
        value = exact(body, work, {**bound, node.name: fmpq(index)})
        if value is None:
            return None
        total = total + value if node.op == "sum" else total * value
        work.spend(2 + _bits(total) // 200)
        if _bits(total) > _MAX_BITS:
            return None
    return total


def _exact_operation(op: str, values: list[Any]) -> Any | None:
    first, last = values[0], values[-1]
    whole = all(value.q == 1 for value in values)
    match op:
        case "add":
            return _exact_sum(values)
        case "mul":
            return first * last
        case "div":
            if last == 0:
                raise UndefinedError("division by zero")
            return first / last
        case "neg":
            return -first
        case "abs":
            return abs(first)
        case "floor" | "ceil":
            return fmpq(first.floor() if op == "floor" else first.ceil())
        case "pow":
            return _exact_power(first, last)
        case "root":
            return _exact_root(first, last)
        case "max" | "min":
            return max(values) if op == "max" else min(values)
        case "det":
            return determinant(values)
        case "gcd" | "lcm" if whole:
            return fmpq(getattr(math, op)(*(int(value.p) for value in values)))
        case "fact" | "binom" if whole and all(0 <= value <= _MAX_FACTORIAL for value in values):
            return fmpq(math.factorial(int(first.p)) if op == "fact" else math.comb(int(first.p), int(last.p)))
    return None


def _exact_sum(values: list[Any]) -> Any | None:
    total = fmpq(0)
    for value in values:
        total += value
        if _bits(total) > _MAX_BITS:
            return None
    return total


def _exact_power(base: Any, power: Any) -> Any | None:
    if base == 0:
        if power <= 0:
            raise UndefinedError("zero to a power that is not positive")
        return fmpq(0)
    if power.q != 1:
        root = _exact_root(base, fmpq(power.q)) if base > 0 else None
        return None if root is None else _exact_power(root, fmpq(power.p))
    if abs(power) * _bits(base) > _MAX_BITS:
        return None
    return base ** int(power.p)


def _exact_root(radicand: Any, index: Any) -> Any | None:
    if index.q != 1 or not 1 <= index <= 64 or radicand < 0:
        return None
    roots = [part.root(int(index.p)) for part in (radicand.p, radicand.q)]
    return fmpq(*roots) if roots[0] ** int(index.p) == radicand.p and roots[1] ** int(index.p) == radicand.q else None


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


def points_for(*nodes: Node) -> tuple[Point, ...]:
    """One point where there are no variables, else all of them."""
    return POINTS if any(free_symbols(node) for node in nodes) else POINTS[:1]


def variable_value(name: str, point: Point) -> Fraction:
    """A fixed value for a variable at a point, spread by the variable's name alone."""
    spread = zlib.crc32(f"{name} {point.kind} {point.number}".encode("utf-8", "surrogatepass"))
    if point.kind == "whole":
        return Fraction(2 + spread % 9)
    magnitude = Fraction(1 + spread % 9973, 9973) * (1, 3, 12)[point.number] + Fraction(1, 7)
    return -magnitude if point.kind == "mixed" and spread & 0x10000 else magnitude


class Ball(NamedTuple):
    """A value at a point; `branched`: a branch was chosen on the way; `lost`: something vanished beside the rest."""

    value: Any
    branched: bool
    lost: bool

    def accurate(self) -> bool:
        """Whether the value is known well enough to be called equal to another."""
        radius = arb(self.value.real.rad()) + arb(self.value.imag.rad())
        return not self.lost and bool(radius < _AGREES * (1 + self.value.abs_lower()))


def ball(node: Node, point: Point, bits: int, work: Work) -> Ball:
    """A tree's value at a point, to so many bits.

    Raises:
        UndefinedError: it has no value there.
        UnknownValueError: it is not computed there.
    """
    with ctx.workprec(bits):
        arithmetic = _Balls(point, bits, work)
        return Ball(arithmetic.evaluate(node), arithmetic.branched, arithmetic.lost)


class _Balls:
    """Evaluates trees at a point; what has no value raises `UndefinedError`, what is not computed the other one."""

    def __init__(self, point: Point, bits: int, work: Work) -> None:
        self.point = point
        self.high = bits > LOW_BITS
        self.work = work
        self.branched = False
        self.lost = False
        self.bound: dict[str, Any] = {}

    def evaluate(self, node: Node) -> Any:
        self.work.spend(1 + _COST.get(node.op, 1) if self.high else 2)
        match node.op:
            case "num":
                return self.number(node.value)
            case "sym":
                return self.variable(node.name)
            case "const":
                return self.constant(node.name)
            case "based" | "int" | "lim":
                raise UnknownValueError(node.op)
            case "sum" | "prod":
                return self.series(node)
        value = self.operation(node, [self.evaluate(argument) for argument in node.args])
        if not value.is_finite():
            raise UnknownValueError("not finite")
        if self.high and not value.contains(0) and value.abs_upper() < _AGREES:
            self.lost = True
        return value

    def operation(self, node: Node, values: list[Any]) -> Any:
        match node.op:
            case "add":
                return self.add(values)
            case "neg":
                return -values[0]
            case "mul":
                return values[0] * values[1]
            case "div":
                return self.div(values[0], values[1])
            case "pow":
                return self.power(values[0], values[1])
            case "root":
                return self.root(values[0], values[1])
            case "apply":  # a function nobody defined: some smooth function, the same for every use of its name
                shift = self.number(variable_value(node.name, Point("positive", 0)))
                return (values[0] * 7 / 10 + shift).sin()
            case "det":
                return determinant(values)
            case "fact" | "binom" | "gcd" | "lcm":
                return self.counting(node.op, [self.whole(value) for value in values])
            case "max" | "min":
                return acb(self.extreme(node.op, [self.real(value) for value in values]))
        return self.function(node.op, values)

    def number(self, value: Fraction) -> Any:
        if self.high and max(value.numerator.bit_length(), value.denominator.bit_length()) > _AGREE_BITS:
            self.lost = True
        return acb(arb(fmpq(value.numerator, value.denominator)))

    def variable(self, name: str) -> Any:
        if name in self.bound:
            return acb(arb(self.bound[name]))
        return self.number(variable_value(name, self.point))

    def constant(self, name: str) -> Any:
        match name:
            case "pi":
                return acb(arb.pi())
            case "e":
                return acb(arb(1).exp())
            case "i":
                return acb(0, 1)
        raise UnknownValueError(name)

    def series(self, node: Node) -> Any:
        body, low, high = node.args
        total = acb(0 if node.op == "sum" else 1)
        outer = self.bound
        for index in terms(exact(low, self.work, outer), exact(high, self.work, outer)):
            self.bound = {**outer, node.name: fmpq(index)}
            value = self.evaluate(body)
            total = total + value if node.op == "sum" else total * value
        self.bound = outer
        return total

    def add(self, values: list[Any]) -> Any:
        total = sum(values, acb(0))
        if self.high:
            sizes = [value.abs_upper() for value in values]
            largest = max(sizes, key=float) if all(size < _LARGE for size in sizes) else _LARGE
            faint = largest * _AGREES
            self.lost |= any(size < faint and not value.contains(0) for size, value in zip(sizes, values, strict=True))
            self.lost |= largest is _LARGE
        return total

    def div(self, a: Any, b: Any) -> Any:
        if b.is_zero():
            raise UndefinedError("division by zero")
        if b.contains(0):
            raise UnknownValueError("a divisor close to zero")
        return a / b

    def power(self, a: Any, b: Any) -> Any:
        if a.is_zero():
            if b.real > 0:
                return acb(0)
            raise UndefinedError("zero to a power that is not positive")
        whole = b.is_exact() and b.imag.is_zero() and b.real.is_integer()
        if a.contains(0) and not (whole and 0 < b.real < 1000):
            raise UnknownValueError("a base close to zero")
        if not b.abs_upper() < _MAX_EXPONENT:
            raise UnknownValueError("too large a power")
        self.branched |= not whole and not (a.imag.is_zero() and a.real > 0)
        return a**b

    def root(self, a: Any, n: Any) -> Any:
        if n == 2:
            self.branched |= not (a.imag.is_zero() and a.real >= 0)
            return a.sqrt()
        odd = n.is_exact() and n.imag.is_zero() and ((n.real - 1) / 2).is_integer()
        if odd and a.imag.is_zero() and a.real < 0:
            return -self.root(-a, n)
        return self.power(a, self.div(acb(1), n))

    def real(self, a: Any) -> Any:
        if not a.imag.is_zero():
            raise UnknownValueError("not real")
        return a.real

    def extreme(self, name: str, values: list[Any]) -> Any:
        best = values[0]
        for value in values[1:]:
            best = getattr(best, name)(value)
        return best

    def whole(self, a: Any) -> int:
        """The whole number that a value is, as far as its digits go."""
        nearest = a.real.unique_fmpz() if a.abs_upper() < _LARGE else None
        if nearest is None or not a.imag.contains(0):
            if a.abs_upper() < _LARGE and a.real.floor().is_exact():
                raise UndefinedError("counting with a number that is not whole")
            raise UnknownValueError("perhaps a whole number")
        if self.high and not Ball(a, False, self.lost).accurate():
            raise UnknownValueError("perhaps a whole number")
        return int(nearest)

    def counting(self, name: str, values: list[int]) -> Any:
        if name in ("gcd", "lcm"):
            return acb(getattr(math, name)(*values))
        if any(value < 0 for value in values):
            raise UndefinedError(f"{name} of a negative number")
        if any(value > _MAX_COUNT for value in values):
            raise UnknownValueError(name)
        return acb(arb.fac_ui(values[0]) if name == "fact" else arb.bin_uiui(*values))

    def function(self, name: str, values: list[Any]) -> Any:
        a = values[0]
        match name:
            case "abs":
                return acb(abs(a))
            case "floor" | "ceil":
                if not a.abs_upper() < _LARGE:
                    raise UnknownValueError(name)
                return acb(getattr(self.real(a), name)())
            case "log":
                return self.log(a) if len(values) == 1 else self.div(self.log(a), self.log(values[1]))
            case "cot" | "sec" | "csc":
                return self.div(acb(1), getattr(a, {"cot": "tan", "sec": "cos", "csc": "sin"}[name])())
            case "sinh" | "cosh" | "tanh" | "exp":
                if not a.abs_upper() < _MAX_EXPONENT:
                    raise UnknownValueError("too large an argument")
                self.lost |= name == "tanh" and not a.abs_upper() < _TANH_SATURATES
                return getattr(a, name)()
            case "sin" | "cos" | "tan":
                return getattr(a, name)()
            case "arcsin" | "arccos" | "arctan":
                self.lost |= not a.abs_upper() < _LARGE
                return getattr(a, name.replace("arc", "a"))()
        raise UnknownValueError(name)

    def log(self, a: Any) -> Any:
        if a.is_zero():
            raise UndefinedError("logarithm of zero")
        if a.contains(0):
            raise UnknownValueError("close to zero")
        self.branched |= not (a.imag.is_zero() and a.real > 0)
        return a.log()


def real_number(node: Node, work: Work) -> float | None:
    """A constant's real value, None where there is none or it is not known well."""
    if free_symbols(node):
        return None
    if sign := infinity_sign(node):
        return sign * math.inf
    try:
        value = ball(node, POINTS[0], LOW_BITS, work).value
    except (UndefinedError, UnknownValueError):
        return None
    if not value.imag.contains(0) or not arb(value.real.rad()) < arb(1e-12) * (1 + value.abs_lower()):
        return None
    return float(value.real.mid())


def values_at(nodes: tuple[Node, Node], bits: int, work: Work) -> Iterator[tuple[Ball, Ball]]:
    """Both values at every point where both have one."""
    for point in points_for(*nodes):
        try:
            yield ball(nodes[0], point, bits, work), ball(nodes[1], point, bits, work)
        except (UndefinedError, UnknownValueError):
            continue
