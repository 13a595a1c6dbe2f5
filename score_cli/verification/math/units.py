"""Words around a number: units that may be left out, and the words that make a statement of it."""

import re
from collections.abc import Iterable
from fractions import Fraction
from typing import NamedTuple

from score_cli.verification.math.tokens import Token, word_list, word_set

MONTHS = word_set(
    "january february march april may june july august september october november december "
    "monday tuesday wednesday thursday friday saturday sunday"
)
PROSE_BEFORE = word_set(
    "the answer answers solution solutions is are final value values result only set of equals to be thus so "
    "therefore hence we have get total number minimum maximum area length probability"
)
# After a number these do not name what is counted: they change or take back what was said.
_STATEMENTS = word_set(
    "not no nor neither never none maybe perhaps possibly probably either else if then unless but except than "
    "least most greater smaller over under between mod modulo about approximately roughly around almost "
    "nearly any all every other another where when true false or and plus minus divided by squared cubed "
    "undefined infinite infinity base lambda import globals eval unknown wrong incorrect unsure guess question "
    "think believe sure hopefully below negative reciprocal inverse twice double triple half"
)
_SPELLINGS = {
    "m": "meter metre meters metres", "cm": "centimeter centimeters centimetre centimetres", "km": "kilometer "
    "kilometers kilometre kilometres", "mm": "millimeter millimeters millimetre millimetres", "ft": "foot feet",
    "in": "inch inches", "yd": "yard yards yds", "mi": "mile miles", "s": "sec second seconds secs",
    "min": "minute minutes mins", "h": "hr hrs hour hours", "day": "days", "week": "weeks", "year": "years yr yrs",
    "g": "gram grams", "kg": "kilogram kilograms kgs", "lb": "lbs pound pounds", "oz": "ounce ounces",
    "dollar": "dollars usd bucks", "cent": "cents", "ton": "tons tonne tonnes", "mg": "milligram milligrams",
    "month": "months", "l": "liter liters litre litres", "ml": "milliliter milliliters", "gal": "gallon gallons",
    "mi/h": "mph", "km/h": "kph kmh", "am": "", "pm": "",
}  # fmt: skip
_UNITS = {word: unit for unit, words in _SPELLINGS.items() for word in [unit, *words.split()]}
_SQUARES = {"square": "^2", "sq": "^2", "squared": "^2", "cubic": "^3", "cu": "^3"}
_EACH = word_set("per a an each every")
_MAX_UNIT_WORDS = 8
# Words that name nothing of their own, whatever is counted.
_IDLE = word_set(
    "a an the of in on at by for this that these those its his her their our per each total unit units number value "
    "answer result whole overall altogether old left long tall high wide deep away apart different "
    "possible such problem case there here now only exactly all"
)
_PLURAL = re.compile(r"(?<=\w{2})(?<!s)s$")

_COUNTING = word_list(
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen "
    "eighteen nineteen"
)
_NUMBER_WORDS = {word: value for value, word in enumerate(_COUNTING)}
_TENS = word_list("twenty thirty forty fifty sixty seventy eighty ninety")
_NUMBER_WORDS |= {word: 10 * value for value, word in enumerate(_TENS, start=2)}
_SCALES = {"hundred": 100, "thousand": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12}
_ORDINALS = word_list("half third fourth fifth sixth seventh eighth ninth tenth eleventh twelfth")
_PARTS = {word: Fraction(1, at) for at, word in enumerate(_ORDINALS, start=2)}
_PARTS |= {"quarter": Fraction(1, 4), "hundredth": Fraction(1, 100), "thousandth": Fraction(1, 1000)}
_PARTS |= {"millionth": Fraction(1, 10**6), "halve": Fraction(1, 2)}
# What a word right after a number makes of it.
_FACTORS = {word: Fraction(scale) for word, scale in _SCALES.items()} | _PARTS
_FACTORS |= {"dozen": Fraction(12), "gross": Fraction(144), "lakh": Fraction(10**5), "crore": Fraction(10**7)}

_SHORT_SCALES = {"k": Fraction(1000), "K": Fraction(1000), "M": Fraction(10**6)}


class Measure(NamedTuple):
    """What stands after a number: a known `unit` in one spelling or "", else the `label` of what is counted.

    `factor` is what words like `million` make of the number, `factorial` whether that word stands there.
    """

    unit: str = ""
    label: frozenset[str] = frozenset()
    factor: Fraction = Fraction(1)
    factorial: bool = False


def measure_of(tokens: list[Token]) -> tuple[list[Token], Measure] | None:
    """Split trailing words off a number: the tokens before them, and what they say of it.

    None where the tokens do not end in words, or the words say something rather than name a unit.
    """
    start = len(tokens)
    words: list[str] = []
    while start > 1:
        token, before = tokens[start - 1], tokens[start - 2]
        if token.kind in ("word", "letter"):
            words.append(token.value)
            start -= 1
        elif token.kind == "num" and before.value == "^" and start > 3 and tokens[start - 3].kind in ("word", "letter"):
            words.append("^" + token.value)
            start -= 2
        elif token.value in ("/", "*", ".") and words and before.kind in ("word", "letter"):
            words.append(token.value)
            start -= 1
        elif token.value == "}" and start > 5 and tokens[start - 4].value == "^" and before.kind == "num":
            words.append("^" + before.value)
            start -= 4
        else:
            break
    words.reverse()
    factor, factorial = Fraction(1), False
    if words and words[0] in _SHORT_SCALES and not tokens[start].spaced:
        factor, words = _SHORT_SCALES[words[0]], words[1:]
    while words and (singular(words[0]) in _FACTORS or words == ["score"] or words[0] == "factorial"):
        factorial |= words[0] == "factorial"
        factor *= 20 if words[0] == "score" else _FACTORS.get(singular(words[0]), Fraction(1))
        words = words[1:]
    if any(len(word) == 1 and word.isalpha() and word != "a" and word not in _UNITS for word in words):
        return None  # a variable, or a letter that stands for something else
    if start == len(tokens) or len(words) > _MAX_UNIT_WORDS or says_more(words) or (words and words[0][0] in "^/*"):
        return None
    unit = canonical_unit(words)
    label = frozenset() if unit else frozenset(singular(word) for word in words if word.isalpha() and word not in _IDLE)
    return tokens[:start], Measure(unit, label, factor, factorial)


def singular(word: str) -> str:
    """A word without its plural's s."""
    return _PLURAL.sub("", word)


def labels_agree(a: frozenset[str], b: frozenset[str]) -> bool:
    """Whether two names of what is counted may name one thing: one is missing, or they share a word."""
    return not a or not b or any(one.startswith(other) or other.startswith(one) for one in a for other in b)


def canonical_unit(words: list[str]) -> str:
    """One spelling per unit: `square inches` and `inches^2` are `in^2`; words that are no known unit give ""."""
    if words in (["a", "m"], ["p", "m"]):
        return "".join(words)
    power = "".join(_SQUARES.get(word, "") for word in words)
    spelled = ["/" if word in _EACH and at else word for at, word in enumerate(words) if word not in _SQUARES]
    parts = [_UNITS.get(word, word if word[0] in "^/*" else None) for word in spelled]
    if any(part is None for part in parts) or (parts and parts[-1] == "/"):
        return ""
    return "".join(part or "" for part in parts) + power


def says_more(words: Iterable[str]) -> bool:
    """Whether words change or take back the number they stand at, rather than name what is counted."""
    return not _STATEMENTS.isdisjoint(words)


def number_of_words(words: list[str]) -> int | None:
    """The number that English words spell, None where they spell none: `two hundred and five` is 205."""
    total, current, before = 0, 0, ""
    for word in words:
        if word in _SCALES and before:
            current *= _SCALES[word]
            if word != "hundred":
                total, current = total + current, 0
        elif word in _NUMBER_WORDS and _may_follow(_NUMBER_WORDS[word], current):
            current += _NUMBER_WORDS[word]
        elif word != "and" or before not in _SCALES:
            return None
        before = word
    return total + current if before and before != "and" else None


def _may_follow(value: int, current: int) -> bool:
    """Whether a word for a number below a hundred may stand after others: `twenty one`, not `one twenty`."""
    return current % 100 == 0 or (0 < value < 10 and current % 10 == 0 and current % 100 > 10)
