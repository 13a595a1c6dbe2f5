"""Two answers as texts: how each may be read, and whether they say the same."""

import re
from fractions import Fraction
from functools import lru_cache

from score_cli.verification.math.compare import EqualityTest, any_of, compare
from score_cli.verification.math.parse import BINDERS, Node
from score_cli.verification.math.shapes import Shape, readings_of
from score_cli.verification.math.tokens import MAX_ANSWER_CHARS, NotUnderstoodError, group_end, strip_wrapping, tokenize

_INTEGER = re.compile(r"[+-]?\d{1,300}")
_RATIONAL = re.compile(r"[+-]?(?:\d{1,300}(?:\.\d{1,300})?|\.\d{1,300}|\d{1,300}/0*[1-9]\d{0,300})")
_TEXT_ONLY = re.compile(
    r"(?:\\(?:text|textbf|textit|mbox|mathrm|mathbf)\s*\{)?\s*\(?\s*([A-Za-z][A-Za-z .'-]*?)\s*\)?\s*\.?\s*\}?"
)
# A letter that only a question with choices has: `(C)`, `\text{C}`, and what may stand for it.
_CHOICE = re.compile(r"\\(?:text|textbf|textrm|mathrm|mathbf|mbox)\s*\{\s*\(?([A-J])\)?\s*\}|\(([A-J])\)")
_LETTER = re.compile(r"[A-J]")
_CHOSEN = re.compile(
    r"(?:(?:the\s+)?(?:correct\s+)?(?:option|choice|answer|letter)(?:\s+is)?\s*:?\s*)?"
    r"(?:(?P<marked>\(\s*[A-Ja-j]\s*\)|[A-J](?=[).:]))[).:]?(?P<rest>.{0,200})|(?P<bare>[A-Ja-j]))\.?",
    re.IGNORECASE | re.DOTALL,
)
_OTHER_CHOICE = re.compile(
    r"\([A-J]\)|\b(?:or|and|not|nor)\s+(?:option\s+)?\(?[A-J]\)?(?!\w)|[,/&]\s*\(?[A-J]\)?(?!\w)|"
    r"\b(?:maybe|perhaps|probably|possibly|wrong|incorrect|not sure|unsure)\b|\?"
)
_STYLE = re.compile(r"\\(?:text|textbf|textrm|mathrm|mathbf|mbox|boxed|textit)\s*\{([^{}]*)\}")
_SPACING = re.compile(r"\\[ ,;:!]|\\q?quad\b|~|\$|\*\*")
# Spaces between two letters or digits may matter.
_SPACES = re.compile(r"(?<!\w)\s+|\s+(?!\w)")


@lru_cache(maxsize=20_000)
def readings(text: str) -> tuple[Shape, ...]:
    """The shapes of an answer, none where it is not understood."""
    try:
        return tuple(readings_of(tokenize(text)))
    except (NotUnderstoodError, RecursionError):
        return ()


@lru_cache(maxsize=20_000)
def is_broken_gold(gold: str) -> bool:
    """Whether a gold answer cannot be one: empty, too long, unbalanced, or with characters no answer has."""
    plain = strip_wrapping(gold)
    if not any(sign.isalnum() or sign == "\\" for sign in plain) or len(plain) > MAX_ANSWER_CHARS:
        return True
    if any((ord(sign) < 32 and sign not in "\n\t\r\f") or 0xD800 <= ord(sign) < 0xE000 for sign in plain):
        return True
    try:
        return group_end(plain + "}", 0) != len(plain) + 1
    except NotUnderstoodError:
        return True


def same_answer(answer: str, gold: str) -> bool | None:
    """Whether an answer says what the gold answer says, None where that is not decided here."""
    if answer == gold:
        return True
    if _INTEGER.fullmatch(answer) and _INTEGER.fullmatch(gold):
        return int(answer) == int(gold)
    if _RATIONAL.fullmatch(answer) and _RATIONAL.fullmatch(gold):
        return Fraction(answer) == Fraction(gold)
    if len(answer) > MAX_ANSWER_CHARS or not answer:
        return False
    if _same_text(answer, gold):
        return True
    pairs = pair_readings(answer, gold)
    test = EqualityTest()
    return any_of(compare(left, right, test) for left, right in pairs) if pairs else None


def pair_readings(answer: str, gold: str) -> list[tuple[Shape, Shape]]:
    """The readings to compare: number with number, list with list; none where one text is not understood."""
    answers, golds = readings(answer), readings(gold)
    if not answers or not golds:
        return []
    count = max(len(answers), len(golds))
    return [(answers[min(at, len(answers) - 1)], golds[min(at, len(golds) - 1)]) for at in range(count)]


def _same_text(answer: str, gold: str) -> bool:
    answer, gold = strip_wrapping(answer), strip_wrapping(gold)
    if _SPACES.sub("", answer) == _SPACES.sub("", gold) != "":
        return True
    if letter := gold_choice(answer, gold):
        return _chosen(answer) == letter
    left, right = _TEXT_ONLY.fullmatch(answer), _TEXT_ONLY.fullmatch(gold)
    if left is None or right is None or len(right[1]) < 2:
        return False
    return left[1].casefold() == right[1].casefold()


def needs_algebra(answer: str, gold: str) -> bool:
    """Whether a pair that is not decided holds an integral, a limit or an endless sum, which algebra may compute."""
    return any(holds_binder(left) or holds_binder(right) for left, right in pair_readings(answer, gold))


def holds_binder(part: object) -> bool:
    """Whether an integral, a limit, a sum or a product over an index stands in a shape or tree."""
    if isinstance(part, Node) and part.op in BINDERS:
        return True
    return isinstance(part, tuple) and any(holds_binder(inner) for inner in part)


def gold_choice(answer: str, gold: str) -> str | None:
    """The letter that a gold answer chooses; a bare letter is a choice only where the answer is none otherwise."""
    if choice := _CHOICE.fullmatch(gold):
        return str(choice[1] or choice[2])
    return gold if _LETTER.fullmatch(gold) and len(answer) > 1 else None


def _chosen(answer: str) -> str | None:
    """The one letter that an answer chooses, with or without the choice's text: `(C) 12`, `C.`, `Option C`."""
    plain = _SPACING.sub(" ", _STYLE.sub(r"\1 ", answer)).strip()
    found = _CHOSEN.fullmatch(plain)
    if found is None or _OTHER_CHOICE.search(found["rest"] or ""):
        return None
    return (found["marked"] or found["bare"]).strip("() ").upper()
