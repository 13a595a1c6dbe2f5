r"""The shape of an answer: a value, a list, a set, a tuple, intervals, a relation, a matrix, or words.

`(1, 2)` may be a point or an open interval and `1,234` one number or two; a shape keeps what was written,
and the comparison reads it in the light of the other answer.
"""

import re
from fractions import Fraction
from itertools import pairwise
from typing import NamedTuple

from score_cli.verification.math.parse import Node, number, parse_expression
from score_cli.verification.math.tokens import NotUnderstoodError, Token
from score_cli.verification.math.units import MONTHS, PROSE_BEFORE, Measure, measure_of, number_of_words, singular

_OPENING = {"(": ")", "[": "]", "{": "}", "\\{": "\\}", "<(": ")>", "lfloor": "rfloor", "lceil": "rceil"}
_CLOSERS = frozenset(_OPENING.values())
MAX_PIECES = 64
MAX_SHAPE_DEPTH = 8
MAX_DETERMINANT = 4
_MATRICES = frozenset(("matrix", "pmatrix", "bmatrix", "Bmatrix", "smallmatrix", "array", "vmatrix"))
_OF_ANGLES = frozenset(("sin", "cos", "tan", "cot", "sec", "csc"))
_UNIT_LETTERS = frozenset("mgshl")
_ORDINAL = re.compile(r"st|nd|rd|th")


class Value(NamedTuple):
    """One expression and what was written around it.

    `mark` is "%", "deg", "time" (minutes) or "" (nothing); `unit` is a known unit in one spelling, or "", and then
    `label` is what was counted.
    """

    node: Node
    mark: str = ""
    unit: str = ""
    label: frozenset[str] = frozenset()


class Sequence(NamedTuple):
    r"""Several answers: `brackets` is "" for a bare list, "()", "[]", "(]", "[)", "<>", "\\{}" for a set, or "{}"."""

    brackets: str
    items: tuple["Shape", ...]


class Union(NamedTuple):
    """Pieces joined by a union sign."""

    pieces: tuple["Shape", ...]


class Difference(NamedTuple):
    r"""`whole` without the points of `removed`: `\mathbb{R} \setminus \{2\}`."""

    whole: "Shape"
    removed: "Shape"


class Relation(NamedTuple):
    """A chain `sides[0] signs[0] sides[1] ...`."""

    sides: tuple["Shape", ...]
    signs: tuple[str, ...]


class Matrix(NamedTuple):
    """Rows of entries, scaled."""

    rows: tuple[tuple[Value, ...], ...]


class Words(NamedTuple):
    """Prose: lower-case words and numbers, without punctuation."""

    words: tuple[str, ...]


Shape = Value | Sequence | Union | Difference | Relation | Matrix | Words


def readings_of(tokens: list[Token]) -> list[Shape]:
    """The shapes that a whole answer may have: `1,234` is one number or two, `5 m` a product or a length.

    Raises:
        NotUnderstoodError: the tokens are none of the shapes.
    """
    tokens = _drop_prose_before(tokens)
    if not tokens or _is_deep(tokens):
        raise NotUnderstoodError("nothing, or nested too deep")
    joined = _thousands(tokens)
    shapes = [_shape(tokens)] if joined is None else [_shape(joined), _shape(tokens)]
    last = tokens[-1]
    if (
        len(tokens) > 1
        and tokens[-2].kind == "num"
        and last.kind == "sym"
        and last.spaced
        and last.value in _UNIT_LETTERS
    ):
        shapes.append(_shape([*tokens[:-1], Token("letter", last.value)]))
    return shapes


def parse_shape(tokens: list[Token]) -> Shape:
    """The first of `readings_of`."""
    return readings_of(tokens)[0]


def _shape(tokens: list[Token]) -> Shape:
    if any(token.kind == "word" and token.value in MONTHS for token in tokens):
        return words_of(tokens)
    if tokens[0].kind == "word":
        spelled = number_of_words([token.value for token in tokens if token.value != "-"])
        if spelled is not None:
            return Value(number(spelled))
    pieces = _split(tokens, "op,", "op;", "sep")
    if len(pieces) == 1:
        return _single(pieces[0])
    items = [_single(piece) for piece in pieces if piece]
    return items[0] if len(items) == 1 else Sequence("", tuple(_flatten(items)))


def _is_deep(tokens: list[Token]) -> bool:
    """Whether a list, a set or a relation stands inside more brackets than in any answer."""
    depth = 0
    for token in tokens:
        if token.kind == "op" and token.value in _OPENING:
            depth += 1
        elif token.kind == "op" and token.value in _CLOSERS:
            depth -= 1
        if depth > MAX_SHAPE_DEPTH and (token.kind in ("rel", "sep") or token.value in (",", ";", "\\{")):
            return True
    return False


def words_of(tokens: list[Token]) -> Words:
    """Tokens read as prose.

    Raises:
        NotUnderstoodError: there is mathematics among them.
    """
    words: list[str] = []
    for token in tokens:
        if token.kind in ("word", "num", "letter", "sym", "sep", "fn"):
            if not (_ORDINAL.fullmatch(token.value) and words and words[-1].isdigit()):
                words.append(token.value.lower())
        elif token.value not in (",", ".", "'", "-", "!", ":", ";"):
            raise NotUnderstoodError("prose with mathematics")
    if not words:
        raise NotUnderstoodError("no words")
    if MONTHS.intersection(words):
        words.sort()  # `5 March` and `March 5` are one day
    kept = [word for word in words if word not in ("the", "a", "an", "and")] or words
    return Words(tuple(singular(word) if len(word) > 3 else word for word in kept))


def _flatten(items: list[Shape]) -> list[Shape]:
    flat: list[Shape] = []
    for item in items:
        flat += item.items if isinstance(item, Sequence) and item.brackets == "" else (item,)
    return flat


def _drop_prose_before(tokens: list[Token]) -> list[Token]:
    """Without a leading `The answer is`, but never without a word that changes what is said."""
    count = 0
    while count < len(tokens) and tokens[count].kind == "word" and tokens[count].value in PROSE_BEFORE:
        count += 1
    if 0 < count < len(tokens):
        ends = tokens[count - 1].value in ("is", "are", "be", "equals", "only") or tokens[count].value == ":"
        if ends:
            return tokens[count + (tokens[count].value == ":") :]
    return tokens


def _thousands(tokens: list[Token]) -> list[Token] | None:
    """The tokens with `1,234,567` at their head joined, None where there is no such number."""
    start = 1 if tokens[0].value in "+-" else 0
    end = start + 1
    digits = tokens[start].value if start < len(tokens) and tokens[start].kind == "num" else ""
    if not digits.isdigit() or len(digits) > 3 or digits == "0":
        return None
    while end + 1 < len(tokens) and tokens[end].value == "," and _is_group(tokens[end + 1]):
        digits += tokens[end + 1].value
        end += 2
    if end == start + 1 or any(token.value == "," or token.kind == "sep" for token in tokens[end:]):
        return None
    return [*tokens[:start], Token("num", digits), *tokens[end:]]


def _is_group(token: Token) -> bool:
    return (
        token.kind == "num" and not token.spaced and len(token.value.partition(".")[0]) == 3 and token.value[0] != "."
    )


def _split(tokens: list[Token], *separators: str) -> list[list[Token]]:
    """Cut at separators outside all brackets; the brackets of half-open intervals may differ."""
    pieces: list[list[Token]] = [[]]
    depth = 0
    for token in tokens:
        if token.kind == "op" and token.value in _OPENING:
            depth += 1
        elif token.kind == "op" and token.value in _CLOSERS:
            depth -= 1
        elif token == Token("cmd", "begin", token.spaced):
            depth += 1
        elif token == Token("cmd", "end", token.spaced):
            depth -= 1
        if depth < 0:
            raise NotUnderstoodError("brackets do not match")
        key = token.kind if token.kind in ("sep", "rel") else token.kind + token.value
        if depth == 0 and key in separators:
            pieces.append([])
        else:
            pieces[-1].append(token)
    if depth:
        raise NotUnderstoodError("brackets do not match")
    if len(pieces) > MAX_PIECES:
        raise NotUnderstoodError("too many pieces")
    return pieces


def _single(tokens: list[Token]) -> Shape:
    """An answer without separators of its own."""
    if not tokens:
        raise NotUnderstoodError("nothing between separators")
    unions = _split(tokens, "opcup")
    if len(unions) > 1 and not any(token.kind == "rel" for piece in unions[:1] for token in piece):
        return Union(tuple(_single(piece) for piece in unions))
    if (removed := _removed_points(tokens)) is not None:
        return removed
    if any(token.kind == "rel" for token in tokens):
        sides = _split(tokens, "rel")
        if len(sides) > 1:
            return _relation(tokens, sides)
    if any(token.value == "begin" for token in tokens):
        return _matrix(tokens)
    if (labelled := _labelled(tokens)) is not None:
        return labelled
    a_set = tokens[0].value == "\\{" and tokens[-1].value == "\\}"
    if any(token.value in ("+-", "-+") for token in tokens) and not a_set:
        return _both_signs(tokens)
    return _bracketed(tokens) or _value(tokens)


def _labelled(tokens: list[Token]) -> Relation | None:
    """`Minimum: 3` says what an equation says."""
    at = next((index for index, token in enumerate(tokens) if token.value == ":"), 0)
    if not 0 < at < len(tokens) - 1 or any(token.kind != "word" for token in tokens[:at]):
        return None
    return Relation((words_of(tokens[:at]), _single(tokens[at + 1 :])), ("=",))


def _removed_points(tokens: list[Token]) -> Difference | None:
    r"""A difference of sets, `A \setminus B` or `A - \{2\}`, None where there is none."""
    parts = _split(tokens, "opsetminus")
    if len(parts) == 1 and tokens[-1].value == "\\}":
        minus = [at for at in range(1, len(tokens) - 1) if tokens[at].value == "-" and tokens[at + 1].value == "\\{"]
        parts = [tokens[: minus[-1]], tokens[minus[-1] + 1 :]] if minus else parts
    if len(parts) != 2 or not parts[0] or not parts[1] or any(token.kind == "rel" for token in tokens[:2]):
        return None
    return Difference(_single(parts[0]), _single(parts[1]))


def _relation(tokens: list[Token], sides: list[list[Token]]) -> Shape:
    signs, position = [], 0
    for side in sides[:-1]:
        position += len(side)
        signs.append(tokens[position].value)
        position += 1
    if signs[-1] == "approx" and all(sides):
        # The exact side is the answer, the decimal after it an illustration.
        kept = tokens[: -len(sides[-1]) - 1]
        return _single(kept)
    if (signs[0] == "in" and sides[0]) or (signs[0] in ("=", "approx") and not sides[0]):
        return parse_shape(sides[1]) if len(sides) == 2 else _single(tokens[len(sides[0]) + 1 :])
    if "approx" in signs or "in" in signs:
        raise NotUnderstoodError("a relation of several kinds")
    return Relation(tuple(_side(side) for side in sides), tuple(signs))


def _side(tokens: list[Token]) -> Shape:
    r"""One side of a relation; `\max` alone is a name."""
    if len(tokens) == 1 and tokens[0].kind == "fn":
        return Words((tokens[0].value,))
    return _single(tokens)


def _both_signs(tokens: list[Token]) -> Shape:
    r"""`1 \pm \sqrt2` is two answers, the upper signs and the lower signs."""
    upper = [token._replace(value={"+-": "+", "-+": "-"}.get(token.value, token.value)) for token in tokens]
    lower = [token._replace(value={"+-": "-", "-+": "+"}.get(token.value, token.value)) for token in tokens]
    if upper[0].value == "+" and upper[0].kind == "op":
        upper = upper[1:]
    return Sequence("", tuple(_flatten([_single(upper), _single(lower)])))


def _bracketed(tokens: list[Token]) -> Shape | None:
    """A tuple, interval, list or set that spans all tokens, None where there is none."""
    first, last = tokens[0], tokens[-1]
    if first.kind != "op" or last.kind != "op" or first.value not in _OPENING or last.value not in _CLOSERS:
        return None
    inner = tokens[1:-1]
    pair = {"\\{": "\\{", "<(": "<"}.get(first.value, first.value) + {"\\}": "}", ")>": ">"}.get(last.value, last.value)
    if pair not in ("()", "[]", "(]", "[)", "<>", "\\{}", "{}"):
        return None
    try:
        pieces = _split(inner, "op,", "op;", "sep")
    except NotUnderstoodError:
        return None  # `(1, 2), (3, 4)` and `(a+b)(c+d)` begin and end with brackets too
    if pair == "\\{}":
        if not inner or pieces == [[Token("op", ".")]]:
            return Sequence(pair, ())
        condition = _split(inner, "op|", "op:")
        if len(condition) == 2 and any(token.kind == "rel" for token in condition[1]):
            return parse_shape(condition[1])
        return Sequence(pair, tuple(_flatten([_single(piece) for piece in pieces])))
    if len(pieces) > 1:
        return Sequence(pair, tuple(_single(piece) for piece in pieces))
    if pair in ("()", "{}") and inner and any(token.kind == "rel" for token in inner):
        return _single(inner)
    return _single(inner) if pair in ("()", "{}") and len(inner) == 1 and inner[0].kind in ("word", "letter") else None


def _value(tokens: list[Token]) -> Shape:
    r"""One expression with its percent sign, degree sign or units; or prose."""
    if any(token.kind == "word" for token in tokens[:1]):
        return words_of(tokens)
    mark, measure = "", Measure()
    of_angle = any(token.kind == "fn" and token.value in _OF_ANGLES for token in tokens)
    while len(tokens) > 1:
        last = tokens[-1]
        if of_angle and last.value == "deg":
            break
        if last.value == "%" or (last.kind == "word" and last.value in ("percent", "percentage", "pct")):
            mark, tokens = "%", tokens[:-1]
        elif last.value == "deg" or (last.kind == "word" and last.value in ("degree", "degrees")):
            mark, tokens = "deg", tokens[:-1]
        else:
            found = measure_of(tokens)
            if found is None:
                break
            tokens, measure = found
    if any(token.kind == "word" for token in tokens):
        return words_of(tokens)
    if any(token.value == "deg" for token in tokens) and not of_angle:
        tokens = [token for token in tokens if token.value != "deg"]
        mark = "deg"
    node = parse_expression(tokens)
    if measure.factorial:
        node = Node("fact", (node,))
    if measure.factor != 1:
        is_number = node.op == "num"
        node = number(node.value * measure.factor) if is_number else Node("mul", (node, number(measure.factor)))
    if measure.unit in ("am", "pm") and node.op == "div" and all(part.op == "num" for part in node.args):
        # A time of day is minutes, not a ratio: 3:45 is not 1:15.
        node = Node("add", (Node("mul", (number(60), node.args[0])), node.args[1]))
        mark = "time"
    return Value(node, mark, measure.unit, measure.label)


def _matrix(tokens: list[Token]) -> Matrix | Value:
    start = next(index for index, token in enumerate(tokens) if token.value == "begin")
    end = len(tokens) - 1 - next(index for index, token in enumerate(reversed(tokens)) if token.value == "end")
    before, content, after = tokens[:start], tokens[start + 1 : end], tokens[end + 1 :]
    is_determinant = "".join(token.value for token in content[:3]) == "{vmatrix}"
    content, _ = _environment(content)
    _, rest = _environment(after, closing=True)
    if before and rest and before[-1].value in ("(", "[") and rest[0].value in (")", "]"):
        before, rest = before[:-1], rest[1:]
    if rest or any(token.value in ("begin", "end") for token in content):
        raise NotUnderstoodError("more than one matrix")
    if before and before[-1] == Token("cmd", "det", before[-1].spaced):
        is_determinant, before = True, before[:-1]
    scale = None
    if before:
        scale = parse_expression(before[:-1] if before[-1].value == "*" else before)
        if before[-1].value in "+-":
            raise NotUnderstoodError("a sum of matrices")
    rows = []
    for line in _split(content, "op\\\\"):
        if line:
            entries = [parse_expression(entry) for entry in _split(line, "op&")]
            scaled = entries if scale is None or is_determinant else [_times(scale, entry) for entry in entries]
            rows.append(tuple(Value(entry) for entry in scaled))
    if not rows or any(len(above) != len(below) for above, below in pairwise(rows)):
        raise NotUnderstoodError("rows of unequal length")
    if is_determinant:
        return _determinant(rows, scale)
    return Matrix(tuple(rows))


def _times(scale: Node, entry: Node) -> Node:
    """An entry of a scaled matrix; numbers are multiplied, so that a scale leaves nothing to compute."""
    factors = [_fraction(node) for node in (scale, entry)]
    if factors[0] is None or factors[1] is None:
        return Node("mul", (scale, entry))
    return number(factors[0] * factors[1])


def _fraction(node: Node) -> Fraction | None:
    if node.op == "neg":
        value = _fraction(node.args[0])
        return None if value is None else -value
    if node.op == "div" and node.args[0].op == node.args[1].op == "num" and node.args[1].value != 0:
        return node.args[0].value / node.args[1].value
    return node.value if node.op == "num" else None


def _determinant(rows: list[tuple[Value, ...]], scale: Node | None) -> Value:
    if len(rows) != len(rows[0]) or len(rows) > MAX_DETERMINANT:
        raise NotUnderstoodError("not a small square")
    determinant = Node("det", tuple(entry.node for row in rows for entry in row))
    return Value(determinant if scale is None else Node("mul", (scale, determinant)))


def _environment(tokens: list[Token], *, closing: bool = False) -> tuple[list[Token], list[Token]]:
    """Take `{pmatrix}`, and an array's column letters, off the head; what is left, twice."""
    close = next((index for index, token in enumerate(tokens) if token.value == "}"), -1)
    name = "".join(token.value for token in tokens[1:close])
    if close < 0 or tokens[0].value != "{" or name not in _MATRICES:
        raise NotUnderstoodError("not a matrix")
    rest = tokens[close + 1 :]
    if name == "array" and not closing:
        if not rest or rest[0].value != "{":
            raise NotUnderstoodError("an array without columns")
        rest = rest[next(index for index, token in enumerate(rest) if token.value == "}") + 1 :]
    return rest, rest
