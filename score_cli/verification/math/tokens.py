r"""Cut the text of a mathematical answer into tokens: LaTeX, plain ASCII mathematics, unicode signs and prose.

Nothing is expanded or executed. What is not in the vocabulary raises `NotUnderstoodError`, so that no later
step has to guess what `\csname`, a null byte or a stray brace was meant to be.
"""

import re
import unicodedata
from typing import NamedTuple

MAX_ANSWER_CHARS = 4096
MAX_TOKENS = 1500


class NotUnderstoodError(Exception):
    """The text is outside the grammar; nothing is known of its value."""


class Token(NamedTuple):
    """One token: `kind` is num, sym, letter (a letter in text mode), word, fn, cmd, rel, sep or op."""

    kind: str
    value: str
    spaced: bool = False


def word_list(text: str) -> list[str]:
    """The words of a text, in order."""
    return text.split()


def word_set(text: str) -> frozenset[str]:
    """The words of a text, as a vocabulary."""
    return frozenset(text.split())


FUNCTIONS = word_set("sin cos tan cot sec csc arcsin arccos arctan sinh cosh tanh log ln lg exp gcd lcm min max sqrt")
_FUNCTION_SPELLINGS = {"arctg": "arctan", "tg": "tan", "ctg": "cot", "cosec": "csc", "asin": "arcsin"}
_FUNCTION_SPELLINGS |= {"acos": "arccos", "atan": "arctan", **{name: name for name in FUNCTIONS}}
_GREEK = word_set(
    "alpha beta gamma delta epsilon varepsilon zeta eta theta vartheta iota kappa lambda mu nu xi rho sigma tau "
    "upsilon phi varphi chi psi omega Gamma Delta Theta Lambda Xi Sigma Phi Psi Omega ell triangle angle"
)
_RELATIONS = {"le": "<=", "leq": "<=", "leqslant": "<=", "ge": ">=", "geq": ">=", "geqslant": ">=", "lt": "<"}
_RELATIONS |= {"gt": ">", "ne": "!=", "neq": "!=", "in": "in", "approx": "approx", "simeq": "approx"}
_OPERATORS = {"cdot": "*", "times": "*", "ast": "*", "div": "/", "pm": "+-", "mp": "-+", "mid": "|", "vert": "|"}
_OPERATORS |= {"lvert": "|", "rvert": "|", "colon": ":", "cup": "cup", "setminus": "setminus", "lbrace": "\\{"}
_OPERATORS |= {"rbrace": "\\}", "langle": "<(", "rangle": ")>", "degree": "deg", "backslash": "setminus"}
_OPERATORS |= {"lfloor": "lfloor", "rfloor": "rfloor", "lceil": "lceil", "rceil": "rceil", "prime": "'"}
_OPERATORS |= {"lbrack": "[", "rbrack": "]", "land": ",", "wedge": ",", "lor": ",", "vee": ",", "bigcup": "cup"}
_OPERATORS |= {"to": "to", "rightarrow": "to"}
_COMMANDS = word_set(
    "frac binom sqrt overline bar dot overrightarrow vec hat begin end boxed circ sum prod int lim det"
)
_CONSTANTS = {"infty": "oo", "pi": "pi", "emptyset": "empty", "varnothing": "empty", "imath": "i", "Pi": "Pi"}
_CONSTANTS |= dict.fromkeys(("dots", "ldots", "cdots", "dotsc", "dotsb"), "dots")
_STYLES = word_set(
    "text mbox hbox textbf textit textrm textsf textnormal emph mathrm mathbf mathit mathsf mathtt mathbb mathcal "
    "operatorname boldsymbol bm boxed fbox mathop underline textup mathnormal pmb"
)
_TRANSPARENT = word_set("displaystyle textstyle limits nolimits quad qquad rm bf it dfrac tfrac cfrac")
# Letter runs outside \text that are words or units, not products of variables.
_SHORT_WORDS = word_set(
    "cm mm km ft mi kg mg lb lbs oz mph kmh hr hrs min sec sq yd ml deg rad in is am pm yes no not nan day men "
    "the are if th st nd rd now one two six ten all any for odd mod but dne gcf kph may"
)
_NUMBER_SETS = {"R": "reals", "Z": "integers", "N": "naturals", "Q": "rationals", "C": "complexes"}

_UNICODE = {
    "−": "-", "–": "-", "—": "-", "‐": "-", "×": "*", "·": "*", "⋅": "*", "∙": "*", "÷": "/", "⁄": "/", "∕": "/",
    "∞": "\\infty ", "π": "\\pi ", "≤": "\\le ", "≥": "\\ge ", "⩽": "\\le ", "⩾": "\\ge ", "≠": "\\ne ",
    "≈": "\\approx ", "∪": "\\cup ", "∈": "\\in ", "∅": "\\emptyset ", "±": "\\pm ", "∓": "\\mp ", "°": "^\\circ ",
    "½": "\\frac{1}{2}", "⅓": "\\frac{1}{3}", "⅔": "\\frac{2}{3}", "¼": "\\frac{1}{4}", "¾": "\\frac{3}{4}",
    "√": "\\sqrt ", "∛": "\\sqrt[3]", "∜": "\\sqrt[4]", "θ": "\\theta ", "α": "\\alpha ", "β": "\\beta ",
    "γ": "\\gamma ", "δ": "\\delta ", "λ": "\\lambda ", "μ": "\\mu ", "φ": "\\phi ", "ω": "\\omega ",
    "Δ": "\\Delta ", "σ": "\\sigma ", "ρ": "\\rho ", "’": "'", "‘": "'", "′": "'", "“": '"', "”": '"',
    "，": ",", "（": "(", "）": ")", "：": ":", "；": ";", "＝": "=", "％": "%", "。": ".", "⟨": "\\langle ",
    "⟩": "\\rangle ", "⌊": "\\lfloor ", "⌋": "\\rfloor ", "⌈": "\\lceil ", "⌉": "\\rceil ", "∖": "\\setminus ",
    "ℝ": "\\mathbb{R}", "ℤ": "\\mathbb{Z}", "ℕ": "\\mathbb{N}", "ℚ": "\\mathbb{Q}", "ⅈ": "i", "…": "\\ldots ",
    "€": "\\$", "£": "\\$", "¢": " cents ",
    "\u00a0": " ", "\u202f": " ", "\u2009": " ", "\u3000": " ",
    "\u200b": "", "\u200c": "", "\u200d": "", "\u2060": "", "\ufeff": "", "\u00ad": "",
}  # fmt: skip
_TRANSLATION = str.maketrans(_UNICODE)
_SUPERSCRIPTS = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻⁽⁾ⁿˣⁱ", "0123456789+-()nxi")
_SUPERSCRIPT_RUN = re.compile("[⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻⁽⁾ⁿˣⁱ]+")
_SUBSCRIPTS = str.maketrans("₀₁₂₃₄₅₆₇₈₉₊₋ₙₓ", "0123456789+-nx")
_SUBSCRIPT_RUN = re.compile("[₀₁₂₃₄₅₆₇₈₉₊₋ₙₓ]+")
# A root sign takes the number, letter or parenthesis after it.
_UNICODE_ROOT = re.compile(r"(?P<sign>√|∛|∜)\s*(?P<body>\d+(?:\.\d+)?|[A-Za-zπ]|\([^()]*\))")
_DOUBLED_COMMAND = re.compile(r"\\\\(?=[a-zA-Z])")
_QUAD_BEFORE_LETTER = re.compile(r"\\q?quad(?=[a-zA-Z])")
_THOUSANDS = re.compile(r"(?<![\d.])(\d{1,3})((?:(?:\{,\}|,\s?\\!|\\,|\\ |~|,?\\;)\s*\d{3})+)(?!\d)")
_NON_DIGITS = re.compile(r"\D+")
_SPACED_THOUSANDS = re.compile(r"[+-]?\d{1,3}(?: \d{3})+")
_CHOOSE = re.compile(r"\{?\s?(\w{1,9})\s?\\choose\s?(\w{1,9})\s?\}?")
_BRACKETED_BASE = re.compile(r"\((\d+)\)\s?_")
_HALF_DAY = re.compile(r"(?<![A-Za-z])([aApP])\.\s?([mM])(?![A-Za-z])\.?")
_WORD_BASE = re.compile(r"_\s*\{?\s*\\(?:text|mathrm)\s*\{\s*([a-z]+)\s*\}\s*\}?")
_BASES = {"two": 2, "three": 3, "four": 4, "five": 5, "six": 6, "seven": 7, "eight": 8, "nine": 9, "ten": 10}
_BASES |= {"twelve": 12, "sixteen": 16}

_TOKEN = re.compile(
    r"""
      (?P<space>(?:\s|~|\\[,;:!>\s]|\\(?:left|right|middle|[bB]igg?[lrm]?)(?![a-zA-Z])\s*\.?)+)
    | (?P<num>\d+\.\d+|\d+\.(?![\d.])|\d+|\.\d+)
    | (?P<dots>\.\.\.)
    | (?P<cmd>\\[a-zA-Z]+)
    | (?P<newline>\\\\(?:\[[^\]]{0,20}\])?)
    | (?P<escaped>\\[{}%$&\#_|])
    | (?P<run>[A-Za-z]+)
    | (?P<rel><=|>=|!=|==|<|>|=)
    | (?P<op>\*\*|[-+*/^_()\[\]{},;:!|&%'.])
    """,
    re.VERBOSE,
)
_WORDS_FOLLOW = re.compile(r"(?: [a-z]{1,3})* (?:(?!sin|cos|tan|log|sqrt)[a-z]{4,}|day|hr|men|min)")
_DELIMITERS = (("$$", "$$"), ("$", "$"), ("\\(", "\\)"), ("\\[", "\\]"), ("**", "**"), ("`", "`"), ('"', '"'))
_TAGGED_DEGREES = re.compile(r"\^\s*(?:\{\s*(?:\\circ|\\degree|o)\s*\}|\\circ|\\degree)")


def strip_wrapping(text: str) -> str:
    r"""Take away what only surrounds an answer: math delimiters, markdown, quotes, final punctuation."""
    text = text.strip()
    for _ in range(8):
        before = text
        text = _without_final_punctuation(text)
        for start, end in _DELIMITERS:
            inner = text[len(start) : -len(end)]
            wraps = inner and text.startswith(start) and text.endswith(end)
            if wraps and end not in inner and not inner.endswith("\\"):
                text = inner.strip()
        if text == before:
            break
    return text


def _without_final_punctuation(text: str) -> str:
    r"""Drop full stops, commas, spaces and `\,` from the end."""
    while True:
        shorter = text.rstrip(" \t\r\n\f.,;:")
        removed = text[len(shorter) : len(shorter) + 1]
        if removed and removed not in ".:" and shorter.endswith("\\") and not shorter.endswith("\\\\"):
            shorter = shorter[:-1]  # it was a spacing command
        elif removed and shorter.endswith("\\"):
            return text
        if shorter == text:
            return text
        text = shorter


def canonical_characters(text: str) -> str:
    """Replace unicode signs, digits and powers by their ASCII or LaTeX spelling, and join digit groups."""
    if not text.isascii():
        text = _UNICODE_ROOT.sub(lambda found: found["sign"] + "{" + found["body"] + "}", text)
        text = _SUPERSCRIPT_RUN.sub(lambda run: "^{" + run[0].translate(_SUPERSCRIPTS) + "}", text)
        text = _SUBSCRIPT_RUN.sub(lambda run: "_{" + run[0].translate(_SUBSCRIPTS) + "}", text)
        text = text.translate(_TRANSLATION)
        text = "".join(str(unicodedata.decimal(sign, sign)) if ord(sign) > 127 else sign for sign in text)
    if "\\\\" in text and "\\begin" not in text:
        text = _DOUBLED_COMMAND.sub(r"\\", text)
    if "quad" in text:
        text = _QUAD_BEFORE_LETTER.sub(" ", text)
    if "\\" in text or "{" in text or "~" in text:
        text = _THOUSANDS.sub(lambda found: found[1] + _NON_DIGITS.sub("", found[2]), text)
        text = _TAGGED_DEGREES.sub(r"\\degree ", text).replace("{:}", ":")
        text = _CHOOSE.sub(r"\\binom{\1}{\2}", text)
        text = _WORD_BASE.sub(lambda found: f"_{{{_BASES[found[1]]}}}" if found[1] in _BASES else found[0], text)
    if "." in text:
        text = _HALF_DAY.sub(r"\1\2", text)
    if ")_" in text or ") _" in text:
        text = _BRACKETED_BASE.sub(r"\1_", text)
    return text.replace(" ", "") if _SPACED_THOUSANDS.fullmatch(text) else text


def group_end(text: str, start: int) -> int:
    """Position after the brace that closes the group whose content begins at `start`."""
    depth, position = 1, start
    while position < len(text):
        sign = text[position]
        if sign == "\\":
            position += 1
        elif sign == "{":
            depth += 1
        elif sign == "}":
            depth -= 1
            if depth == 0:
                return position + 1
        position += 1
    raise NotUnderstoodError("unbalanced braces")


def tokenize(text: str) -> list[Token]:
    """All tokens of an answer.

    Raises:
        NotUnderstoodError: a character or command outside the vocabulary, unbalanced braces, or too long a text.
    """
    text = canonical_characters(strip_wrapping(text)) if len(text) <= MAX_ANSWER_CHARS else text
    if len(text) > MAX_ANSWER_CHARS:
        raise NotUnderstoodError("too long")
    return _scan(text, text_mode=False, depth=0)


def _scan(text: str, *, text_mode: bool, depth: int) -> list[Token]:
    if depth > 20:
        raise NotUnderstoodError("text groups nested too deep")
    tokens: list[Token] = []
    position, spaced = 0, False
    while position < len(text):
        if len(tokens) > MAX_TOKENS:
            raise NotUnderstoodError("too many tokens")
        if text.startswith('\\"', position):
            position, spaced = position + 2, True
            continue
        if text[position] in '$"`' or (text.startswith("**", position) and text_mode):
            position, spaced = position + 1, True
            continue
        found = _TOKEN.match(text, position)
        if found is None or found.lastgroup is None:
            raise NotUnderstoodError(f"character {ord(text[position])}")
        kind, value, position = found.lastgroup, found[0], found.end()
        if kind == "space":
            spaced = True
            continue
        if kind == "cmd" and value[1:] in _STYLES | {"textcolor"}:
            inner, position = _style(text, position, value[1:], depth)
            tokens += inner
        elif kind == "cmd":
            tokens += _command(value[1:], spaced)
        elif kind == "run":
            in_prose = text_mode or (spaced and _is_prose(text, found, tokens))
            tokens += _letters(value, spaced, text_mode=in_prose)
        elif kind == "num":
            tokens.append(Token("num", value.rstrip(".") if value[-1] == "." else value, spaced))
        elif kind == "escaped":
            tokens += [] if value == "\\$" else [Token("op", {"\\|": "|", "\\%": "%"}.get(value, value), spaced)]
        elif kind == "dots":
            tokens.append(Token("sym", "dots", spaced))
        elif kind == "rel":
            tokens.append(Token("rel", {"==": "="}.get(value, value), spaced))
        elif value != "." or not text_mode:
            if kind == "op" and value in ")]}" and tokens and tokens[-1].value == ".":
                tokens.pop()
            tokens.append(Token("op", "\\\\" if kind == "newline" else {"**": "^"}.get(value, value), spaced))
        spaced = False
    return tokens


def _is_prose(text: str, run: re.Match[str], tokens: list[Token]) -> bool:
    """Whether letters after a space are a word for the words beside them: `5 red marbles`, `40 dollars a week`."""
    letters = run[0]
    if not letters.islower() or (len(letters) == 1 and letters != "a") or len(letters) > 3:
        return False
    return bool(tokens and tokens[-1].kind in ("word", "letter")) or _WORDS_FOLLOW.match(text, run.end()) is not None


def _style(text: str, position: int, name: str, depth: int) -> tuple[list[Token], int]:
    r"""The tokens of `\text{...}` and its like, and where the group ends."""
    while position < len(text) and text[position] in " *":
        position += 1
    if position >= len(text) or text[position] != "{":
        if name.startswith("math") and position < len(text) and text[position].isalpha():  # \mathbf R
            return _scan(text[position], text_mode=True, depth=depth + 1), position + 1
        raise NotUnderstoodError(f"{name} without a group")
    end = group_end(text, position + 1)
    content = text[position + 1 : end - 1]
    if name == "mathbb" and content.strip() in _NUMBER_SETS:
        return [Token("sym", _NUMBER_SETS[content.strip()])], end
    in_text = name not in ("boxed", "fbox", "boldsymbol", "bm", "mathbf", "mathit", "mathnormal", "underline", "pmb")
    inner = _scan(content, text_mode=in_text, depth=depth + 1)
    return (inner if name != "underline" or inner else []), end


def _command(name: str, spaced: bool) -> list[Token]:
    if name in ("dfrac", "tfrac", "cfrac"):
        return [Token("cmd", "frac", spaced)]
    if name in ("dbinom", "tbinom"):
        return [Token("cmd", "binom", spaced)]
    if name in _TRANSPARENT:
        return []
    if name in _FUNCTION_SPELLINGS and name != "sqrt":
        return [Token("fn", _FUNCTION_SPELLINGS[name], spaced)]
    for kind, table in (("rel", _RELATIONS), ("op", _OPERATORS), ("sym", _CONSTANTS)):
        if name in table:
            return [Token(kind, table[name], spaced)]
    if name in _GREEK:
        return [Token("sym", name, spaced)]
    if name in _COMMANDS:
        return [Token("cmd", name, spaced)]
    raise NotUnderstoodError(f"command {name}")


def _is_consecutive(run: str) -> bool:
    return run.islower() and ord(run[-1]) - ord(run[0]) == len(run) - 1


def _letters(run: str, spaced: bool, *, text_mode: bool) -> list[Token]:
    """A run of letters: a function, a separator, a word, or variables side by side."""
    lower = run.lower()
    if lower in ("and", "or"):
        return [Token("sep", lower, spaced)]
    if run in _FUNCTION_SPELLINGS:
        name = _FUNCTION_SPELLINGS[run]
        return [Token("cmd" if name == "sqrt" else "fn", name, spaced)]
    if run in ("pi", "infinity", "oo", "inf", "Infinity"):
        return [Token("sym", "pi" if run == "pi" else "oo", spaced)]
    if text_mode:
        return [Token("letter" if len(run) == 1 else "word", run if len(run) == 1 else lower, spaced)]
    if len(run) == 1:
        return [Token("sym", run, spaced)]
    # Variables side by side, `abcd`, or points, `ABDE`; `forty` has ascending letters too.
    alphabetical = len(run) <= 5 and list(run) == sorted(set(run)) and (run.isupper() or _is_consecutive(run))
    if lower not in _SHORT_WORDS and (len(run) <= 3 or alphabetical):
        return [Token("sym", letter, spaced and not index) for index, letter in enumerate(run)]
    return [Token("word", lower, spaced)]
