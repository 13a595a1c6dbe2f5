"""Words around a number: units that may be left out, and the words that make a statement of it."""

from score_cli.verification.math.tokens import Token, word_set

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
    "not no nor neither never none maybe perhaps possibly probably either else if then unless but except than more "
    "less fewer least most greater smaller over under between mod modulo about approximately roughly around almost "
    "nearly any all every other another where when true false or and plus minus times divided by squared cubed "
    "undefined infinite infinity base lambda import globals eval unknown wrong incorrect unsure guess question "
    "to"
)
_SPELLINGS = {
    "m": "meter metre meters metres", "cm": "centimeter centimeters centimetre centimetres", "km": "kilometer "
    "kilometers kilometre kilometres", "mm": "millimeter millimeters millimetre millimetres", "ft": "foot feet",
    "in": "inch inches", "yd": "yard yards", "mi": "mile miles", "s": "sec second seconds secs",
    "min": "minute minutes mins", "h": "hr hrs hour hours", "day": "days", "week": "weeks", "year": "years yr yrs",
    "g": "gram grams", "kg": "kilogram kilograms", "lb": "lbs pound pounds", "dollar": "dollars", "cent": "cents",
    "month": "months", "l": "liter liters litre litres", "ml": "milliliter milliliters", "gal": "gallon gallons",
    "am": "", "pm": "",
}  # fmt: skip
_UNITS = {word: unit for unit, words in _SPELLINGS.items() for word in [unit, *words.split()]}
_SQUARES = {"square": "^2", "sq": "^2", "cubic": "^3", "cu": "^3"}
_MAX_UNIT_WORDS = 6


def unit_of(tokens: list[Token]) -> tuple[list[Token], str] | None:
    """Split trailing words off a number: the tokens before them and their unit, "" where it is not a known one.

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
    if not words or len(words) > _MAX_UNIT_WORDS or _STATEMENTS.intersection(words) or words[0][0] in "^/*":
        return None
    return tokens[:start], canonical_unit(words)


def canonical_unit(words: list[str]) -> str:
    """One spelling per unit: `square inches` and `inches^2` are `in^2`; words that are no known unit give ""."""
    if words in (["a", "m"], ["p", "m"]):
        return "".join(words)
    power = "".join(_SQUARES.get(word, "") for word in words)
    parts = [_UNITS.get(word, word if word[0] in "^/*" else None) for word in words if word not in _SQUARES]
    if any(part is None for part in parts):
        return ""
    return "".join(part or "" for part in parts) + power
