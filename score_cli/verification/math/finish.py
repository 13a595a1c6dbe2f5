r"""Whether an answer is as finished as the gold answer, and whether it only restates the question.

A tree has a set of faults: kinds of things that are still to be computed in it, such as a sum of two numbers, a
fraction that can be reduced or `\binom{7}{3}`. An answer may have the faults that the gold answer has, and no other:
`2^{10}` answers `2^{10}` but not `1024`. Forms that are final as they stand are no faults: a mixed number, a decimal
for a fraction, scientific notation, `\frac{1}{\sqrt2}` (one root in its lowest terms, which tables list as often as
`\frac{\sqrt2}{2}`), factored or expanded polynomials. Where the question asks for a form by name (factor, expand,
as a decimal, as a power, rationalize, complete the square) the answer must have it if the gold answer has.
"""

import math
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from fractions import Fraction
from functools import lru_cache

from flint import fmpz

from score_cli.verification.math.names import is_name, unnamed
from score_cli.verification.math.parse import BINDERS, Node, free_symbols
from score_cli.verification.math.shapes import Difference, Matrix, Relation, Sequence, Shape, Union, Value, Words
from score_cli.verification.math.tokens import word_set

_TO_COMPUTE = frozenset(("floor", "ceil", "abs", "fact", "binom", "gcd", "lcm", "max", "min", "det"))
_TRIGONOMETRY = word_set("sin cos tan cot sec csc arcsin arccos arctan sinh cosh tanh")
# Ways of counting that stand for one another: 10!/(3! 7!) is as far as a binomial.
_COUNTING = frozenset(("fact", "binom"))
_MAX_FACTORED = 1 << 40
# No fault where the question does not speak of it.
_ROOT_BELOW = "root below the line"
_I = Node("const", name="i")
_ONE = Node("num", value=Fraction(1))


def is_unfinished(answer: Shape, gold: Shape, question: str) -> bool:
    """Whether an equal answer leaves something to be computed that the gold answer does not."""
    if answer == gold or _is_time(answer) or _is_time(gold) or _is_equation(gold):
        return False
    allowed = frozenset((_ROOT_BELOW,)).union(*(faults(node) for node in _nodes(gold)))
    if any(not alternative <= allowed for alternative in _fault_sets(answer)):
        return True
    return _lacks_form(answer, gold, question)


def _is_time(shape: Shape) -> bool:
    return isinstance(shape, Value) and shape.mark == "time"


def _is_equation(shape: Shape) -> bool:
    return isinstance(shape, Relation) and set(shape.signs) == {"="} and unnamed(shape) is shape


def _fault_sets(shape: Shape) -> Iterator[frozenset[str]]:
    """The faults of each value that an answer states; of `9 + 7 = 16` those of its most finished side."""
    if isinstance(shape, Relation) and set(shape.signs) == {"="}:
        sides = [side for side in shape.sides if not is_name(side)]
        stated = [frozenset().union(*_fault_sets(side)) for side in sides]
        if all(not free_symbols(node) for side in sides for node in _nodes(side)) and stated:
            yield min(stated, key=len)
        elif is_name(shape.sides[0]):
            yield stated[-1]
        return  # of an equation in variables there are many finished forms
    if isinstance(shape, Value):
        yield faults(shape.node)
    for part in _parts(shape):
        yield from _fault_sets(part)


def _parts(shape: Shape) -> Iterable[Shape]:
    match shape:
        case Value() | Words():
            return ()
        case Sequence():
            return shape.items
        case Union():
            return shape.pieces
        case Difference():
            return (shape.whole, shape.removed)
        case Relation():
            return shape.sides
        case Matrix():
            return tuple(entry for row in shape.rows for entry in row)


def _nodes(shape: Shape) -> Iterator[Node]:
    if isinstance(shape, Value):
        yield shape.node
    for part in _parts(shape):
        yield from _nodes(part)


@lru_cache(maxsize=10_000)
def faults(node: Node) -> frozenset[str]:
    """The kinds of what is still to be computed in a tree."""
    if node.op in ("mul", "div", "neg"):
        factors = _factors(node)
        if _is_scientific(factors):
            return frozenset()
        return frozenset(_product_faults(factors)).union(*(faults(factor) for factor, _ in factors))
    inner = () if node.op in BINDERS else node.args
    return frozenset(_own_faults(node)).union(*(faults(part) for part in inner))


def _own_faults(node: Node) -> Iterator[str]:
    """The faults of a tree's topmost operation, other than a product."""
    match node.op:
        case "add":
            keys = Counter(_term(term)[1] for term in _terms(node))
            if any(count > 1 for count in keys.values()):
                yield "sum"
        case "pow":
            yield from _power_faults(*node.args)
        case "root":
            yield from _root_faults(*node.args)
        case "sum" | "prod" | "int" | "lim":
            yield node.op
        case "log" if not free_symbols(node):
            yield "logarithm"
            if _is_whole_logarithm(node):
                yield "value of a logarithm"
        case op if not free_symbols(node):
            if op in _TO_COMPUTE:
                yield "counting" if op in _COUNTING else op
            elif op in _TRIGONOMETRY:
                yield "trigonometry"


def _factors(node: Node, *, below: bool = False) -> list[tuple[Node, bool]]:
    """The factors of a product, each with whether it stands below the line; signs go."""
    match node.op:
        case "mul":
            return [factor for argument in node.args for factor in _factors(argument, below=below)]
        case "div":
            return _factors(node.args[0], below=below) + _factors(node.args[1], below=not below)
        case "neg":
            return _factors(node.args[0], below=below)
    return [(node, below)]


def _product_faults(factors: list[tuple[Node, bool]]) -> Iterator[str]:
    above = [node.value for node, below in factors if node.op == "num" and not below and node.value != 1]
    below_line = [node.value for node, below in factors if node.op == "num" and below]
    others = [(node, below) for node, below in factors if node.op != "num"]
    powers = [node for node, _ in others if _is_numeric_power(node)]
    ones = 0 if below_line else sum(node == _ONE for node, _ in factors)
    is_of_fractions = bool(above and below_line and not others and len(factors) > 2)  # 3 * 1/2
    if is_of_fractions or len(above) + len(powers) + ones > 1 or len(below_line) > 1:
        yield "product"
    if below_line:
        top, bottom = math.prod(above, start=Fraction(1)), math.prod(below_line, start=Fraction(1))
        common = math.gcd(_content(node for node, below in others if not below) * top.numerator, bottom.numerator)
        if top.denominator != 1 or bottom.denominator != 1 or abs(bottom) == 1 or common > 1:
            yield "quotient"
    roots = [node for node, _ in others if node.op == "root" and node.args[0].op == "num"]
    if len(roots) > 1:
        yield "product of roots"
    yield from _quotient_faults(others)


def _quotient_faults(others: list[tuple[Node, bool]]) -> Iterator[str]:
    for node, below in others:
        if below and _holds_i(node):
            yield "complex denominator"
        if below and free_symbols(node):
            yield "variable denominator"
        if below and node.op == "root":
            yield _ROOT_BELOW
        if below and (node, False) in others:
            yield "quotient"
        if node.op == "sym" and not below and others.count((node, False)) > 1:
            yield "product"


def _is_scientific(factors: list[tuple[Node, bool]]) -> bool:
    r"""`1.5 \times 10^3`: one digit before the point, times a power of ten."""
    if len(factors) != 2 or any(below for _, below in factors):
        return False
    digits, power = factors[0][0], factors[1][0]
    of_ten = _is_numeric_power(power) and power.args[0] == Node("num", value=Fraction(10))
    return of_ten and digits.op == "num" and 1 <= digits.value < 10


def _is_numeric_power(node: Node) -> bool:
    """Whether this is a number to a whole number, and so a number to be computed."""
    if node.op != "pow" or _number(node.args[0]) is None:
        return False
    power = _number(node.args[1])
    return power is not None and power.denominator == 1


def _number(node: Node) -> Fraction | None:
    """The value of a numeral, a signed one, or a fraction of two."""
    match node.op:
        case "num":
            return node.value
        case "neg":
            value = _number(node.args[0])
            return None if value is None else -value
        case "div":
            above, below = _number(node.args[0]), _number(node.args[1])
            return above / below if above is not None and below else None
    return None


def _power_faults(base: Node, exponent: Node) -> Iterator[str]:
    value, power = _number(base), _number(exponent)
    if power is None:
        return
    if value is not None:
        whole_root = power.denominator > 1 and not _is_free_of_powers(value, power.denominator)
        if power.denominator == 1 or whole_root:
            yield "power"
    elif power in (0, 1) or base.op in ("root", "pow") or base == _I or _is_sum_of_numbers(base):
        yield "power"
    if power < 0 and free_symbols(base):
        yield "variable denominator"
    if power < 0 and _holds_i(base):
        yield "complex denominator"


def _is_sum_of_numbers(node: Node) -> bool:
    return node.op == "add" and not free_symbols(node)


def _root_faults(radicand: Node, index: Node) -> Iterator[str]:
    value, degree = _number(radicand), _number(index)
    if value is None or degree is None or degree.denominator != 1:
        return
    if not _is_free_of_powers(value, int(degree)) or value.denominator > 1:
        yield "radical"


def _is_free_of_powers(value: Fraction, degree: int) -> bool:
    """Whether no whole number above one goes into a value so many times; taken for true of very large ones."""
    if value <= 1 and value.denominator == 1:
        return False
    for part in (value.numerator, value.denominator):
        if 1 < part < _MAX_FACTORED and any(count >= degree for _, count in fmpz(part).factor()):
            return False
    return True


def _is_whole_logarithm(node: Node) -> bool:
    """Whether a logarithm is a whole number: of 8 to base 2, of 100 to base 10, of e^2."""
    value = node.args[0]
    if len(node.args) == 1:
        return value == Node("const", name="e") or (value.op == "pow" and value.args[0] == Node("const", name="e"))
    of, base = _number(value), _number(node.args[1])
    if of is None or base is None or of <= 0 or base <= 1 or of.numerator.bit_length() > 1000:
        return _is_numeric_power(value)
    exponent = round(math.log(of.numerator) / math.log(base)) if of.denominator == 1 else 0
    return 0 <= exponent < 1000 and base**exponent == of


def _holds_i(node: Node) -> bool:
    return node == _I or any(_holds_i(argument) for argument in node.args)


def _terms(node: Node) -> Iterator[Node]:
    if node.op == "add":
        for argument in node.args:
            yield from _terms(argument)
    elif node.op == "neg":
        yield from _terms(node.args[0])
    else:
        yield node


def _term(node: Node) -> tuple[Fraction, tuple[tuple[str, bool], ...]]:
    """The number before a term, and what it multiplies: terms of one kind can be added."""
    coefficient = Fraction(1)
    rest = []
    for factor, below in _factors(node):
        if factor.op == "num" and factor.value != 0:
            coefficient = coefficient / factor.value if below else coefficient * factor.value
        elif factor.op != "num":
            rest.append((repr(factor), below))
    return coefficient, tuple(sorted(rest))


def _content(factors: Iterable[Node]) -> int:
    """What divides every term of some factors, such as 2 for `4x + 2`."""
    content = 1
    for node in factors:
        if node.op == "add":
            numbers = [_term(term)[0] for term in _terms(node)]
            if all(number.denominator == 1 for number in numbers):
                content *= math.gcd(*(number.numerator for number in numbers)) or 1
    return content


_FACTOR = re.compile(r"\bfactor(?:i[sz]e|i[sz]ed|ed|ing|i[sz]ation|ization)?\b(?!s\b|\s+of\s+\$?\d)", re.IGNORECASE)
_EXPAND = re.compile(r"\bexpand|\bmultiply out\b|\bstandard form\b|\bremove the parenthes", re.IGNORECASE)
_SQUARE = re.compile(r"\bcomplet\w+ the square|\bin (?:the |vertex )?form\b", re.IGNORECASE)
_DECIMAL = re.compile(r"\bdecimal\b", re.IGNORECASE)
_POWER = re.compile(r"\bpowers?\b|\bexponent", re.IGNORECASE)
_RATIONALIZE = re.compile(r"\brationali[sz]", re.IGNORECASE)


def _lacks_form(answer: Shape, gold: Shape, question: str) -> bool:
    """Whether the question asks for a form by name that the gold answer has and this one lacks."""
    node, target = _value_of(answer), _value_of(gold)
    if node is None or target is None:
        return False
    if _FACTOR.search(question) and _lacks_factors(node, target):
        return True
    if _EXPAND.search(question) and _holds_bracket(node) and not _holds_bracket(target):
        return True
    if _SQUARE.search(question) and target.op == "add" and _holds_square(target) and not _holds_square(node):
        return True
    if _DECIMAL.search(question) and _is_decimal(target) and _number(node) is not None and not _is_numeral(node):
        return True
    if _POWER.search(question) and target.op == "pow" and node.op == "num":
        return True
    return bool(_RATIONALIZE.search(question)) and _ROOT_BELOW in faults(node) - faults(target)


def _value_of(shape: Shape) -> Node | None:
    if isinstance(shape, Relation) and set(shape.signs) == {"="}:
        shape = shape.sides[-1]
    return shape.node if isinstance(shape, Value) else None


def _lacks_factors(node: Node, target: Node) -> bool:
    wanted, given = _variable_factors(target), _variable_factors(node)
    if len(wanted) < 2 and _content(wanted) == _content([target]):
        return False
    return len(given) < len(wanted) or (_content(given) > 1 and _content(wanted) == 1)


def _variable_factors(node: Node) -> list[Node]:
    """The factors that hold variables, a power as often as it counts."""
    found: list[Node] = []
    for factor, below in _factors(node):
        if below or not free_symbols(factor):
            continue
        power = _number(factor.args[1]) if factor.op == "pow" else None
        if power is not None and power.denominator == 1 and 0 < power < 100:
            found += [factor.args[0]] * int(power)
        else:
            found.append(factor)
    return found


def _holds_bracket(node: Node) -> bool:
    """Whether a product or a power with a sum in it is to be multiplied out."""
    if node.op == "mul" and any(factor.op == "add" for factor, below in _factors(node) if not below):
        return True
    return _holds_square(node) or any(_holds_bracket(argument) for argument in node.args)


def _holds_square(node: Node) -> bool:
    if node.op == "pow" and node.args[0].op == "add":
        return True
    return any(_holds_square(argument) for argument in node.args)


def _is_decimal(node: Node) -> bool:
    return _is_numeral(node) and (_number(node) or Fraction(0)).denominator > 1


def _is_numeral(node: Node) -> bool:
    return node.op == "num" or (node.op == "neg" and node.args[0].op == "num")
