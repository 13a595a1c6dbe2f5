"""Whether an answer stands in the question: what was asked for is no answer to it."""

import re
from collections.abc import Iterator
from functools import lru_cache

from score_cli.verification.math.answers import gold_choice, pair_readings, readings
from score_cli.verification.math.finish import is_unfinished
from score_cli.verification.math.names import unnamed
from score_cli.verification.math.parse import Node
from score_cli.verification.math.shapes import Relation, Shape, Value

MAX_QUESTION_CHARS = 16_384
_PERCENT = re.compile(r"\bpercent", re.IGNORECASE)
_WORDS = re.compile(r"[^\W\d_]{2}")
_SPAN = re.compile(r"(?<!\\)\$\$(.+?)(?<!\\)\$\$|(?<!\\)\$([^$]+)(?<!\\)\$|\\\((.+?)\\\)|\\\[(.+?)\\\]", re.DOTALL)
# A calculation or a number in plain words: `9 + 7`, `3/20`, `15%`.
_PLAIN = re.compile(r"(?<![\w.])[-(]*\d[\d\s.,+*/×÷^()!%–−-]{0,60}")


@lru_cache(maxsize=50_000)
def keeps_rules(answer: str, gold: str, question: str, *, restatements: bool, unfinished: bool) -> bool:
    """Whether an answer that equals the gold answer is one.

    Args:
        restatements: let one pass that stands in the question.
        unfinished: let one pass that leaves more to compute than the gold answer.

    A problem without words asks for a value and nothing else.
    """
    pairs = pair_readings(answer, gold)
    if not pairs or gold_choice(answer, gold) or not _WORDS.search(question):
        return True
    said, meant = pairs[0]
    if not restatements and restates(said, meant, question):
        return False
    return unfinished or not is_unfinished(said, meant, question)


def restates(answer: Shape, gold: Shape, question: str) -> bool:
    """Whether an answer that is not written as the gold answer is stands in the question, whole or as a part."""
    said, meant = _core(answer), _core(gold)
    if said == meant:
        # 20% of the question is no 20, unless percents are asked for.
        bare = _is_percentage(answer) and not _is_percentage(gold) and not _PERCENT.search(question)
        return bare and (said, "%") in expressions_of(question)
    return said in expressions_of(question)


def _is_percentage(shape: Shape) -> bool:
    return isinstance(shape, Value) and shape.mark == "%"


def _core(shape: Shape) -> Shape | Node:
    """A shape without its name, its marks and units."""
    shape = unnamed(shape)
    return shape.node if isinstance(shape, Value) else shape


@lru_cache(maxsize=2_000)
def expressions_of(question: str) -> frozenset[Shape | Node | tuple[Node, str]]:
    """All expressions of a question and all parts of them; a percentage also with its sign."""
    found: set[Shape | Node | tuple[Node, str]] = set()
    for text in texts_of(question):
        for shape in readings(text):
            found.add(_core(shape))
            found.update(_trees(shape))
            if isinstance(shape, Value) and shape.mark == "%":
                found.add((shape.node, "%"))
    return frozenset(found)


def texts_of(question: str) -> Iterator[str]:
    """The formulas of a question and the calculations in its prose, as written."""
    question = question[:MAX_QUESTION_CHARS]
    for span in _SPAN.finditer(question):
        yield next(part for part in span.groups() if part).strip()
    for plain in _PLAIN.finditer(_SPAN.sub(" ; ", question)):
        text = plain[0].strip().rstrip(".,+*/×÷^(–−-").strip()
        yield text
        yield from (part for part in re.split(r",\s|\s{1,9}(?=\d)", text) if part and part != text)


def _trees(part: object) -> Iterator[Node]:
    """Every tree below a shape, and every tree below those."""
    if isinstance(part, Node):
        yield part
        for argument in part.args:
            yield from _trees(argument)
    elif isinstance(part, Relation):
        for side in part.sides:
            yield from _trees(side)
    elif isinstance(part, tuple):
        for inner in part:
            yield from _trees(inner)
