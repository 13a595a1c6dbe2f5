"""The last judge: SymPy, for integrals, limits and endless sums. It may hang, so only killable processes call it."""

from typing import Any

import sympy  # noqa: TID253 - only killable processes import this module

from score_cli.verification.math.answers import holds_binder, pair_readings
from score_cli.verification.math.compare import EqualityTest, any_of, compare
from score_cli.verification.math.parse import Node

_FUNCTIONS = {
    "abs": sympy.Abs, "floor": sympy.floor, "ceil": sympy.ceiling, "fact": sympy.factorial, "binom": sympy.binomial,
    "max": sympy.Max, "min": sympy.Min, "gcd": sympy.gcd_list, "lcm": sympy.lcm_list, "log": sympy.log,
    "arcsin": sympy.asin, "arccos": sympy.acos, "arctan": sympy.atan,
}  # fmt: skip
_FUNCTIONS |= {
    name: getattr(sympy, name) for name in ("sin", "cos", "tan", "cot", "sec", "csc", "sinh", "cosh", "tanh", "exp")
}
_SOME_OTHER_ANSWER = r"\frac{123456789}{7}"
_CONSTANTS = {"pi": sympy.pi, "e": sympy.E, "i": sympy.I, "oo": sympy.oo}


def same_by_algebra(answer: str, gold: str) -> bool:
    """Whether an answer says what the gold answer says, as far as SymPy can tell."""
    test = _AlgebraTest()
    return any_of(compare(left, right, test) for left, right in pair_readings(answer, gold)) is True


def try_gold(gold: str) -> bool:
    """Do with a gold answer alone what comparing it would take: who hangs here is not the response."""
    return same_by_algebra(_SOME_OTHER_ANSWER, gold) or True


def warm_up() -> None:
    """Make SymPy load what it loads late, before any clock runs."""
    for answer in (r"\int_0^1 x\,dx", r"\sum_{n=1}^{\infty} \frac{1}{n^2}", r"\lim_{x\to 0} x"):
        same_by_algebra(answer, "2")


class _AlgebraTest(EqualityTest):
    """As its parent; expressions that hold an integral, a limit or an endless sum are computed by SymPy first."""

    def same(self, a: Node, b: Node) -> bool | None:
        if not (holds_binder(a) or holds_binder(b)):
            return super().same(a, b)
        try:
            left, right = _computed(a), _computed(b)
        except NotImplementedError:
            return None
        difference = sympy.simplify(left - right)
        return bool(difference == 0) or difference.equals(0)


def _computed(node: Node) -> Any:
    value = expression(node).doit()
    if value.has(sympy.Integral, sympy.Limit, sympy.Sum, sympy.Product, sympy.nan, sympy.zoo):
        raise NotImplementedError("left as it stands")
    return value


def expression(node: Node) -> Any:
    """A tree as SymPy has it, nothing computed that SymPy does not compute on its own.

    Raises:
        NotImplementedError: there is no such expression.
    """
    match node.op:
        case "num":
            return sympy.Rational(node.value.numerator, node.value.denominator)
        case "sym":
            return sympy.Symbol(node.name, real=True)
        case "const":
            return _CONSTANTS[node.name]
        case "sum" | "prod" | "int" | "lim":
            return _bound(node)
    values = [expression(argument) for argument in node.args]
    match node.op:
        case "add":
            return sympy.Add(*values)
        case "neg":
            return -values[0]
        case "mul":
            return sympy.Mul(*values)
        case "div":
            return values[0] / values[1]
        case "pow":
            return values[0] ** values[1]
        case "root":
            return values[0] ** (1 / values[1])
        case "apply":
            return sympy.Function(node.name)(*values)
        case "gcd" | "lcm":
            return _FUNCTIONS[node.op](values)
    if node.op not in _FUNCTIONS:
        raise NotImplementedError(node.op)
    return _FUNCTIONS[node.op](*values)


def _bound(node: Node) -> Any:
    body, *ends = (expression(argument) for argument in node.args)
    variable = sympy.Symbol(node.name, real=True)
    match node.op:
        case "lim":
            return sympy.Limit(body, variable, ends[0], "-" if ends[0] == sympy.oo else "+-")
        case "int":
            return sympy.Integral(body, (variable, *ends)) if ends else sympy.Integral(body, variable)
    return (sympy.Sum if node.op == "sum" else sympy.Product)(body, (variable, *ends))
