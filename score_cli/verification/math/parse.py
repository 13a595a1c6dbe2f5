r"""Parse the tokens of one expression (no lists, relations or sets) into a tree.

The grammar is that of answers: `\frac12`, `3\sqrt{13}`, `1\frac13` as a mixed number, `\sin^2 x`, `\log_2 3`,
`|x-2|`, `n!`, `204_6`, `0.\overline{3}`, `\gcd(12, 18)`, `\sum_{k=1}^{10} k^2`. Division and implicit products
associate to the left.
"""

from fractions import Fraction
from typing import NamedTuple

from score_cli.verification.math.tokens import NotUnderstoodError, Token

MAX_DEPTH = 60
_MAX_DIGITS = 1000
_MAX_TREE_DEPTH = 120
_CLOSING = {"(": ")", "[": "]", "{": "}", "lfloor": "rfloor", "lceil": "rceil"}
# Operations that bind `name` in their first argument.
BINDERS = frozenset(("sum", "prod", "int", "lim"))
_OF_LISTS = frozenset(("gcd", "lcm", "min", "max"))
_MAX_LIST = 20
_SPECIAL_CONSTANTS = frozenset(("pi", "e", "i", "oo"))
_APPLIED = frozenset("fghFGH")


class Node(NamedTuple):
    """A tree node: op is num, sym, const, add, mul, div, neg, pow, root, fact, based, apply or a function's name.

    Binders hold their body first: `sum` and `prod` (body, low, high), `int` (body, low, high) or (body,),
    `lim` (body, at); `det` holds the entries of a square matrix row by row.
    """

    op: str
    args: tuple["Node", ...] = ()
    name: str = ""
    value: Fraction = Fraction(0)


def number(value: int | Fraction) -> Node:
    """A number's node."""
    return Node("num", value=Fraction(value))


def free_symbols(node: Node) -> frozenset[str]:
    """The variables and unknown functions in a tree."""
    own = frozenset((node.name,)) if node.op in ("sym", "apply") else frozenset()
    names = own.union(*(free_symbols(argument) for argument in node.args))
    return names - {node.name} if node.op in BINDERS else names


def parse_expression(tokens: list[Token]) -> Node:
    """The tree of a whole token list.

    Raises:
        NotUnderstoodError: the tokens are not one expression of the grammar.
    """
    parser = _Parser(tokens)
    node = parser.sum()
    if parser.position != len(parser.tokens):
        raise NotUnderstoodError(f"left over: {parser.peek().value}")
    if _is_deep(node):
        raise NotUnderstoodError("nested too deep")
    return node


def _is_deep(node: Node) -> bool:
    """Whether a tree is too deep to walk by recursion; `1*1*1*...` leans to the left without any bracket."""
    level, depth = [node], 0
    while level and depth <= _MAX_TREE_DEPTH:
        level = [argument for parent in level for argument in parent.args]
        depth += 1
    return bool(level)


_END = Token("end", "")
_DEGREE = Node("div", (Node("const", name="pi"), number(180)))


class _Parser:
    def __init__(self, tokens: list[Token]) -> None:
        self.tokens = list(tokens)
        self.position = 0
        self.bars = 0
        self.depth = 0
        self.indices: list[str] = []  # of the sums around this place: `i` is a number only where it counts nothing

    def peek(self, ahead: int = 0) -> Token:
        index = self.position + ahead
        return self.tokens[index] if index < len(self.tokens) else _END

    def take(self) -> Token:
        token = self.peek()
        self.position += 1
        return token

    def at(self, *values: str) -> bool:
        token = self.peek()
        return token.kind == "op" and token.value in values

    def expect(self, value: str) -> None:
        if not self.at(value):
            raise NotUnderstoodError(f"expected {value}")
        self.position += 1

    def sum(self) -> Node:
        terms = []
        negative = self.signs()
        while True:
            term = self.product()
            terms.append(Node("neg", (term,)) if negative else term)
            if not self.at("+", "-"):
                break
            negative = self.signs()
        return terms[0] if len(terms) == 1 else Node("add", tuple(terms))

    def signs(self) -> bool:
        """Whether the signs here are one minus; two signs in a row are no answer."""
        if not self.at("+", "-"):
            return False
        negative = self.take().value == "-"
        if self.at("+", "-"):
            raise NotUnderstoodError("two signs in a row")
        return negative

    def product(self) -> Node:
        node = self.power()
        while True:
            if self.at("*"):
                self.take()
                node = Node("mul", (node, self.signed_power()))
            elif self.at("/", ":"):
                self.take()
                node = Node("div", (node, self.signed_power()))
            elif self.starts_factor():
                node = Node("mul", (node, self.power()))
            else:
                return node

    def signed_power(self) -> Node:
        if self.at("-"):
            self.take()
            return Node("neg", (self.power(),))
        return self.power()

    def starts_factor(self) -> bool:
        token = self.peek()
        if token.kind in ("sym", "letter", "fn", "cmd"):
            return token.value not in ("begin", "end", "circ")
        if token.kind == "num":
            before = self.tokens[self.position - 1]
            if before.kind == "num" or (before.kind in ("sym", "letter") and not token.spaced):
                raise NotUnderstoodError("a number after a number or a letter")
            return True
        return self.at("(", "[", "{", "lfloor", "lceil") or (self.at("|") and not self.bars)

    def power(self) -> Node:
        return self.postfix(self.primary())

    def postfix(self, node: Node) -> Node:
        while True:
            if self.at("^"):
                self.take()
                if self.peek() == Token("cmd", "prime"):
                    raise NotUnderstoodError("a derivative")
                node = Node("pow", (node, self.script()))
            elif self.at("!"):
                self.take()
                if self.at("!"):
                    raise NotUnderstoodError("a double factorial")
                node = Node("fact", (node,))
            elif self.at("deg"):
                self.take()
                node = Node("mul", (node, _DEGREE))
            else:
                return node

    def script(self) -> Node:
        """An exponent or subscript: a group, or one token with its sign."""
        negative = self.at("-")
        if negative:
            self.take()
        node = self.primary()
        if self.at("^"):
            node = self.postfix(node)
        return Node("neg", (node,)) if negative else node

    def digit_or_group(self) -> Node:
        r"""An argument as TeX reads it: `\frac13` is a third."""
        token = self.peek()
        if token.kind == "num" and len(token.value) > 1 and token.value.isdigit():
            self.tokens[self.position] = Token("num", token.value[1:])
            return number(int(token.value[0]))
        return self.primary()

    def primary(self) -> Node:
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise NotUnderstoodError("nested too deep")
        node = self.bare_primary()
        self.depth -= 1
        return node

    def bare_primary(self) -> Node:
        token = self.take()
        if token.kind == "num":
            return self.numeral(token.value)
        if token.kind in ("sym", "letter"):
            return self.symbol(token.value)
        if token.kind == "fn":
            return self.function(token.value)
        if token.kind == "cmd":
            return self.command(token.value)
        if token.kind == "op" and token.value in _CLOSING:
            node = self.sum()
            self.expect(_CLOSING[token.value])
            if token.value in ("lfloor", "lceil"):
                return Node(token.value[1:], (node,))
            return node
        if token.kind == "op" and token.value == "|":
            self.bars += 1
            node = self.sum()
            self.expect("|")
            self.bars -= 1
            return Node("abs", (node,))
        raise NotUnderstoodError(f"unexpected {token.value or 'end'}")

    def numeral(self, digits: str) -> Node:
        if len(digits) > _MAX_DIGITS:
            raise NotUnderstoodError("too many digits")
        if self.peek().kind == "cmd" and self.peek().value in ("overline", "bar", "dot"):
            return self.repeating(digits)
        if self.at("_"):
            return self.in_base(digits)
        exponent = self.exponent_letter()
        if exponent is not None:
            return number(Fraction(digits) * Fraction(10) ** exponent)
        whole = Fraction(digits)
        return self.mixed(whole) if digits.isdigit() else number(whole)

    def exponent_letter(self) -> int | None:
        """The exponent of `1.5e8`, written without spaces."""
        letter, sign = self.peek(), self.peek(1)
        signed = sign.kind == "op" and sign.value in "+-"
        power = self.peek(2 if signed else 1)
        if letter.kind != "sym" or letter.value not in "eE" or letter.spaced or power.kind != "num" or power.spaced:
            return None
        if not power.value.isdigit() or len(power.value) > 3:
            return None
        self.position += 3 if signed else 2
        return -int(power.value) if signed and sign.value == "-" else int(power.value)

    def mixed(self, whole: Fraction) -> Node:
        r"""A whole number, with the proper fraction after it if there is one: `1\frac13`, `1 1/3`."""
        start = self.position
        if self.peek() in (Token("cmd", "frac"), Token("cmd", "frac", True)):
            self.take()
            above, below = self.digit_or_group(), self.digit_or_group()
        elif self.peek().kind == "num" and self.peek(1) == Token("op", "/") and self.peek(2).kind == "num":
            above, below = number(Fraction(self.take().value)), number(Fraction(self.tokens[self.position + 1].value))
            self.position += 2
        else:
            return number(whole)
        numeric = above.op == below.op == "num" and above.value.denominator == below.value.denominator == 1
        if numeric and 0 <= above.value < below.value:
            return number(whole + above.value / below.value)
        self.position = start
        return number(whole)

    def repeating(self, digits: str) -> Node:
        self.take()
        self.expect("{")
        block = self.take()
        self.expect("}")
        if block.kind != "num" or not block.value.isdigit() or not (digits == "0" or "." in digits or digits.isdigit()):
            raise NotUnderstoodError("a bar over something else than digits")
        places = len(digits.partition(".")[2])
        return number(Fraction(digits) + Fraction(int(block.value), (10 ** len(block.value) - 1) * 10**places))

    def in_base(self, digits: str) -> Node:
        self.take()
        braced = self.at("{")
        if braced:
            self.take()
        token = self.take()
        if braced:
            self.expect("}")
        base = int(token.value) if token.value.isdigit() and len(token.value) < 3 else 0
        if not 2 <= base <= 36 or not digits.isdigit():
            raise NotUnderstoodError("not a base")
        return Node("based", name=f"{digits.lstrip('0') or '0'}_{base}")

    def symbol(self, name: str) -> Node:
        if name in _SPECIAL_CONSTANTS and name not in self.indices and not self.at("_"):
            return Node("const", name=name)
        while self.at("_", "'"):
            if self.take().value == "'":
                name += "'"
            else:
                start = self.position
                self.script()
                name += "_" + "".join(t.value for t in self.tokens[start : self.position] if t.value not in "{}")
        if name in _APPLIED and self.at("("):
            return Node("apply", (self.primary(),), name=name)
        return Node("sym", name=name)

    def command(self, name: str) -> Node:
        if name == "frac":
            return Node("div", (self.digit_or_group(), self.digit_or_group()))
        if name == "binom":
            return Node("binom", (self.digit_or_group(), self.digit_or_group()))
        if name == "sqrt":
            index = number(2)
            if self.at("["):
                self.take()
                index = self.sum()
                self.expect("]")
            return Node("root", (self.primary(), index))
        if name in ("overline", "overrightarrow", "vec", "hat", "bar"):
            start = self.position
            self.primary()
            letters = "".join(token.value for token in self.tokens[start : self.position] if token.value not in "{}")
            return Node("sym", name=f"{name} {letters}")
        if name in BINDERS:
            return self.binder(name)
        raise NotUnderstoodError(f"command {name}")

    def function(self, name: str) -> Node:
        base, exponent, inverse = None, None, False
        while self.at("_", "^"):
            if self.take().value == "_":
                base = self.digit_or_group()
            else:
                exponent = self.script()
                inverse = exponent == Node("neg", (number(1),)) and name in ("sin", "cos", "tan")
        if name in _OF_LISTS:
            return self.of_list(name)
        argument = self.function_argument()
        if name == "lg":
            base = number(10)
        name = {"ln": "log", "lg": "log"}.get(name, name)
        node = Node(f"arc{name}" if inverse else name, (argument,) if base is None else (argument, base))
        return node if exponent is None or inverse else Node("pow", (node, exponent))

    def function_argument(self) -> Node:
        if self.at("(", "[", "{", "|") or self.peek().kind == "fn":
            return self.primary()
        node = self.power()
        while self.starts_factor() and self.peek().kind != "fn" and not self.at("(", "["):
            node = Node("mul", (node, self.power()))
        return node

    def of_list(self, name: str) -> Node:
        r"""`\gcd(12, 18)` and its like, also with a set's braces."""
        closing = {"(": ")", "[": "]", "\\{": "\\}"}.get(self.take().value)
        if closing is None:
            raise NotUnderstoodError(f"{name} of no list")
        items = [self.sum()]
        while self.at(","):
            self.take()
            items.append(self.sum())
        self.expect(closing)
        if not 2 <= len(items) <= _MAX_LIST:
            raise NotUnderstoodError(f"{name} of so many")
        return Node(name, tuple(items))

    def binder(self, name: str) -> Node:
        r"""`\sum_{k=1}^{n} ...`, `\prod`, `\int_a^b ... \,dx`, `\lim_{x \to a} ...`; the body is one product."""
        variable, low, high = "", None, None
        while self.at("_", "^"):
            if self.take().value == "^":
                high = self.end()
            elif name == "int":
                low = self.end()
            else:
                variable, low = self.index(name)
        if name == "int":
            body, variable = self.integrand()
            if low is None and high is None:
                return Node("int", (body,), name=variable)
        else:
            self.indices.append(variable)
            body = self.product()
            self.indices.pop()
        ends = (low,) if name == "lim" else (low, high)
        known = tuple(end for end in ends if end is not None)
        if not variable or len(known) != len(ends):
            raise NotUnderstoodError(f"{name} without its ends")
        return Node(name, (body, *known), name=variable)

    def end(self) -> Node:
        """One end of an integral or sum: a group, or one token with its sign; a power there would be the other end."""
        if self.at("-"):
            self.take()
            return Node("neg", (self.primary(),))
        return self.primary()

    def index(self, name: str) -> tuple[str, Node]:
        r"""`{k=1}` under a sum, `{x \to 0}` under a limit."""
        self.expect("{")
        variable, between = self.take(), self.take()
        if variable.kind not in ("sym", "letter") or between.value != ("to" if name == "lim" else "="):
            raise NotUnderstoodError(f"{name} over no variable")
        start = self.sum()
        self.expect("}")
        return variable.value, start

    def integrand(self) -> tuple[Node, str]:
        """The body of an integral up to its `dx`, and the variable."""
        depth = 0
        for at in range(self.position, len(self.tokens) - 1):
            token, after = self.tokens[at], self.tokens[at + 1]
            depth += (token.value in _CLOSING) - (token.value in _CLOSING.values())
            if depth == 0 and token.value == "d" and token.kind in ("sym", "letter") and after.kind == "sym":
                body = parse_expression(self.tokens[self.position : at]) if at > self.position else number(1)
                self.position = at + 2
                return body, after.value
        raise NotUnderstoodError("an integral over nothing")
