r"""Find the final answer in a response to a mathematics problem: the last one that is stated.

Statements of an answer are `final answer is ...`, `Final Answer: ...` (a heading, too), `\boxed{...}`,
`<answer>...</answer>`, `the answer is ...`, `Answer: ...` and `#### ...`. The one that begins last counts, unless it
is about an earlier one ("the previous final answer is ...", "..., which is wrong"). Without any, a response that is
nothing but an answer is taken (`$5$`, `x = 3`). A number that merely stands last in prose is never taken.

What stands in a thinking block (`<think>...</think>`, closed or not) is no answer. Of a response longer than 65,536
characters the end is read, and an answer of more than 4,096 characters is none.
"""

import re
from collections.abc import Iterator
from typing import NamedTuple

from score_cli.tasks.latex_boxes import outermost_boxes
from score_cli.verification.math.statement import REACH, inside, is_taken_back, statement, without_markup
from score_cli.verification.math.tokens import MAX_ANSWER_CHARS

MAX_RESPONSE_CHARS = 65_536
# Each is tried where its word stands, which is found much faster than the patterns are.
_PHRASE = re.compile(r"final\s+answer\s+(?:is|would be|becomes|must be|equals)\s*:?\s*", re.IGNORECASE)
_HEADED = re.compile(r"final\s+answer\W{0,8}?(?::|=|→|⇒|[-–—](?=\s))\s*", re.IGNORECASE)
_HEADING = re.compile(r"\W{0,8}(?:final[ \t]+)?answer\W{0,4}\n\s*", re.IGNORECASE)
_HASHES = re.compile(r"####(?!#)[\s:]*")
_LABEL = re.compile(r"\bans(?:wer)?\.?\s*[:=][\s:]*", re.IGNORECASE)
_IS = re.compile(r"(?:answer|option|choice)\s+(?:is|are|would be|must be)\b[\s:]*", re.IGNORECASE)
_THE = re.compile(r"\b(?:the|my|our)\s+(?:(?:correct|right|best|corrected)\s+)?$", re.IGNORECASE)
_LETTER_IS = re.compile(
    r"(?:option|choice|answer)\s+\(?(?P<letter>(?-i:[A-J]))\)?\s+(?:is|must be)\s+(?:the\s+)?"
    r"(?:correct|right|best|answer)",
    re.IGNORECASE,
)
_IS_THE = re.compile(
    r"(?<![\w$\\])\(?(?P<letter>[A-J])\)?\s+is\s+(?:the\s+)?(?:(?:correct|right|best)\s+)?(?:answer|choice|option)\b"
    r"(?!\s+(?!because|since|as|so|here)[a-z])"
)
_LONGEST_LEAD = 40
_END_OF_TURN = re.compile(r"<\|[a-z_]{1,24}\|>|</s>|<eos>|<end_of_turn>|<pad>")
_NEXT_PROBLEM = re.compile(
    r"I hope (?:it|this) is correct\.?[ \t*]{0,9}\n\s{0,9}(?:\#{1,6} )?(?:\*\*)?(?:Problem|Question)\s*\d{0,5}\s*[:.*]",
    re.IGNORECASE,
)
_THOUGHT = re.compile(r"<(/?)(?:think|thinking|thought|thoughts|reasoning|scratchpad)>", re.IGNORECASE)
_DENIED = re.compile(
    r"\bnot\s+(?:the\s+case\s+)?(?:true\s+)?that\s+the\s*$|\bis\s+the\s*$|\b(?:if|whether|why|how)\s+the\s*$|"
    r"\b(?:previous|earlier|first|initial|original|old|prior|former|wrong|incorrect|mistaken|proposed|given|"
    r"last|above|your|other)\s*$",
    re.IGNORECASE,
)
_NOT_BOXED = re.compile(
    r"(?:\bnot|n't|\binstead of|\brather than|\bformerly|\bpreviously|\bwrong(?:ly)?)\s*[:,]?\s*\$*\s*$", re.IGNORECASE
)
_BARE_BOX = re.compile(r"\\boxed\s+(-?\d[\d.,/]*|[A-Za-z])(?![\w\\{])")
_BETWEEN_BOXES = re.compile(
    r"(?:[\s,;$]|\\[()\[\],;!]|\\q?quad|\\(?:text|mathrm)\s*\{\s*(?:and|or)\s*\}|\band\b|\bor\b)*"
)
_MATH_SPAN = re.compile(r"\$[^$\n]*\$|\\\(.*?\\\)", re.DOTALL)
# An answer, rather than words about one: what may follow `the answer is` after a box.
_VALUE = re.compile(r"[\s\"'(\[]*(?:[-+±]?[\d.\\$√π]|\(?[A-Z]\)?(?![\w']))")
# A unit, a name, a short list have few words; a sentence that ends in a number has more.
_MOST_ALONE = 512
_WORDS_ALONE = 3
_MATHEMATICS = re.compile(r"\d|\\[A-Za-z]")
_WORD = re.compile(r"(?<![\\A-Za-z])[A-Za-z]{2,}")
_LAST_IS = re.compile(r"\b(?:is|are|equals)\s*:?\s+")


class _Place(NamedTuple):
    """Where a statement begins: `start` orders them, `end` is where its words begin, `box` what a box holds."""

    start: int
    end: int
    kind: str
    box: str = ""


def extract_answer(response: str) -> str | None:
    """The final answer as written, None where the response gives none.

    An answer longer than 4,096 characters comes back cut after one more, so that it can be told to be too long.
    """
    text = _relevant(response)
    places = sorted(_places(text), reverse=True)
    firm = [place.start for place in places if place.kind != "weak"]
    for at, place in enumerate(places):
        end = places[at - 1].start if at and places[at - 1].kind == place.kind else len(text)
        answer = _answer_at(text, place, end)
        if place.kind == "weak" and answer and firm and firm[-1] < place.start and not _VALUE.match(text, place.end):
            continue
        if answer:
            return answer[: MAX_ANSWER_CHARS + 1]
    found = _bare_box(text) or _whole(text)
    return found[: MAX_ANSWER_CHARS + 1] if found else None


def _places(text: str) -> Iterator[_Place]:
    boxes = joined_boxes(text)
    framed = [(start, end) for start, end, _ in boxes]
    lower = text.lower()
    # A few letters have another length in lower case, and would shift all that follows.
    words = _worded(text, lower) if len(lower) == len(text) else _worded(text, text)
    for place in words:
        before = max(0, place.start - 60)
        if not inside(framed, place.start) and not _DENIED.search(text, before, place.start):
            yield place
    for start, end, content in boxes:
        if not _NOT_BOXED.search(text, max(0, start - 40), start) and not is_taken_back(text, end):
            yield _Place(start, end, "box", content)


def _worded(text: str, lower: str) -> Iterator[_Place]:
    """Where words announce an answer."""
    headed: list[tuple[int, int]] = []
    for at in _occurrences(lower, "final"):
        if found := _PHRASE.match(text, at):
            yield _Place(at, found.end(), "phrase")
        elif found := _HEADED.match(text, at):
            headed.append(found.span())
            yield _Place(at, found.end(), "headed")
    for at in _occurrences(lower, "answer"):
        line = text.rfind("\n", 0, at) + 1
        if at - line < _LONGEST_LEAD and (found := _HEADING.match(text, line)):
            headed.append((line, found.end()))
            yield _Place(line, found.end(), "headed")
    headed.sort()
    for at in _occurrences(lower, "####"):
        if (at == 0 or text[at - 1] == "\n") and (found := _HASHES.match(text, at)):
            yield _Place(at, found.end(), "weak")
    for at in _occurrences(lower, "ans"):
        if (found := _LABEL.match(text, at)) and not inside(headed, at):
            yield _Place(at, found.end(), "weak")
    for word in ("answer", "option", "choice"):
        for at in _occurrences(lower, word):
            yield from _about(text, at)


def _about(text: str, at: int) -> Iterator[_Place]:
    """What is said of the answer, option or choice that is named at a position."""
    before = max(0, at - _LONGEST_LEAD)
    if (found := _IS.match(text, at)) and (the := _THE.search(text, before, at)):
        yield _Place(the.start(), found.end(), "weak")
    for letter in (_LETTER_IS.match(text, at), _IS_THE.search(text, before, at + _LONGEST_LEAD)):
        if letter:
            yield _Place(letter.start(), letter.end(), "chosen", letter["letter"])


def _occurrences(text: str, word: str) -> Iterator[int]:
    at = text.find(word)
    while at >= 0:
        yield at
        at = text.find(word, at + len(word))


def _answer_at(text: str, place: _Place, end: int) -> str:
    if place.kind in ("box", "chosen"):
        return place.box
    said = statement(text[place.end : min(end, place.end + REACH)])
    if place.kind == "headed":
        spans = [found.span() for found in _MATH_SPAN.finditer(said)]
        inner = [found for found in _LAST_IS.finditer(said) if not inside(spans, found.start())]
        said = said[inner[-1].end() :] if inner else said
    return said.strip("* \t")


def _relevant(response: str) -> str:
    """The end of the response, without thoughts, end-of-turn marks and problems invented after the answer."""
    text = _without_thoughts(response[-MAX_RESPONSE_CHARS:])
    if "hope" in text and (runaway := _NEXT_PROBLEM.search(text)):
        text = text[: runaway.end()]
        text = text[: text.rindex("\n")]
    # A long filler after the answer must not push it out of view.
    if len(response) > MAX_RESPONSE_CHARS and not (_PHRASE.search(text) or "\\boxed" in text):
        start = max(response.rfind("\\boxed"), response.rfind("final answer is"))
        text = response[start : start + MAX_RESPONSE_CHARS] if start >= 0 else text
    return without_markup(_END_OF_TURN.sub("\n", text) if "<" in text else text)


def _without_thoughts(text: str) -> str:
    """The text outside of thinking blocks; one that was opened by the prompt is only closed here."""
    if "<" not in text:
        return text
    kept: list[str] = []
    position, depth = 0, 0
    for mark in _THOUGHT.finditer(text):
        if mark[1]:
            if depth == 0:
                kept = []
            depth = 0
        elif depth == 0:
            kept.append(text[position : mark.start()])
            depth = 1
        position = mark.end()
    return "".join(kept) + (text[position:] if depth == 0 else "")


def last_boxes(text: str) -> str | None:
    r"""The content of the last non-empty `\boxed`, joined with those before it that stand in one list with it."""
    found = joined_boxes(text)
    return found[-1][2] if found else _bare_box(text)


def _bare_box(text: str) -> str | None:
    bare = list(_BARE_BOX.finditer(text))
    return bare[-1][1] if bare else None


def joined_boxes(text: str) -> list[tuple[int, int, str]]:
    r"""Start, end and content of each list of boxes.

    `\boxed{2} and \boxed{3}` is the answer `2 , 3`: whoever lists candidates has not answered with the last one.
    """
    lists: list[tuple[int, int, list[str]]] = []
    for box in outermost_boxes(text):
        if lists and _BETWEEN_BOXES.fullmatch(text, lists[-1][1], box.start):
            start, _, contents = lists.pop()
            lists.append((start, box.end, contents if box.content in contents else [*contents, box.content]))
        else:
            lists.append((box.start, box.end, [box.content]))
    return [(start, end, " , ".join(contents)) for start, end, contents in lists]


def _whole(text: str) -> str | None:
    """The response itself, where it is one line without prose: what little it says is its answer."""
    line = text.strip()
    if not line or "\n" in line or "\\boxed" in line or len(line) > _MOST_ALONE:
        return None
    words = len(_WORD.findall(line))
    # Two words say something only beside mathematics: `no idea` is no answer, `5 square meters` is one.
    return line if words <= 1 or (words <= _WORDS_ALONE and _MATHEMATICS.search(line)) else None
