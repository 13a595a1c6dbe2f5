r"""Find `\boxed{...}` in LaTeX, the mark of a final answer. Linear in the length of the text, however it is nested."""

import re
from typing import NamedTuple

_BOX = re.compile(r"\\(?:boxed|fbox)(?![a-zA-Z])(?:\s*(?=\{)|[ \t]*)")
_BRACE = re.compile(r"\\[\\{}]|[{}]")
_WIDEST_FRAME = 32
_REST_OF_FORMULA = re.compile(r"[^$\n]*")


class Box(NamedTuple):
    r"""One box of a text, from `start` to `end`; `braced` is false for `\boxed 2$`, which TeX accepts too."""

    start: int
    end: int
    content: str
    braced: bool


def boxes(text: str) -> list[Box]:
    """Every box in order of its start, empty ones included; a box that is never closed is left out."""
    starts = list(_BOX.finditer(text))
    closing = _closing_braces(text) if starts else {}
    found = []
    for match in starts:
        at = match.end()
        if not text.startswith("{", at):
            rest = _REST_OF_FORMULA.match(text, at)
            assert rest is not None
            found.append(Box(match.start(), rest.end(), rest[0].strip(), braced=False))
        elif at in closing:
            found.append(Box(match.start(), closing[at] + 1, text[at + 1 : closing[at]].strip(), braced=True))
    return found


def _closing_braces(text: str) -> dict[int, int]:
    """Where each brace is closed; an escaped brace is a set's, not a group's."""
    closing: dict[int, int] = {}
    opened: list[int] = []
    for found in _BRACE.finditer(text):
        if found[0] == "{":
            opened.append(found.start())
        elif found[0] == "}" and opened:
            closing[opened.pop()] = found.start()
    return closing


def outermost_boxes(text: str) -> list[Box]:
    """The filled, braced boxes that stand in no other; a box that holds nothing but a box gives way to it."""
    outermost: list[Box] = []
    frame = Box(0, 0, "", braced=True)
    for box in boxes(text):
        if not box.braced:
            continue
        if not outermost or box.start >= outermost[-1].end:
            outermost.append(box)
            frame = box
        elif _is_frame(text, frame, box):
            outermost[-1] = outermost[-1]._replace(content=box.content)
            frame = box
    return [box for box in outermost if box.content]


def _is_frame(text: str, outer: Box, inner: Box) -> bool:
    """Whether a box holds nothing but another, and spaces."""
    if max(inner.start - outer.start, outer.end - inner.end) > _WIDEST_FRAME:
        return False
    opening, closing = text[outer.start : inner.start], text[inner.end : outer.end]
    return opening.rstrip().endswith("{") and closing.strip() == "}"


def last_boxed(text: str) -> str | None:
    r"""The content of the last non-empty `\boxed{...}` with balanced braces, or None."""
    place = last_boxed_place(text)
    return None if place is None else text[place]


def last_boxed_place(text: str) -> slice | None:
    """Where that content stands, without the spaces around it."""
    starts = [match.end() for match in _BOX.finditer(text)]
    closing = _closing_braces(text) if starts else {}
    for at in reversed(starts):
        if at in closing and (content := text[at + 1 : closing[at]].strip()):
            start = text.index(content, at + 1)
            return slice(start, start + len(content))
    return None


def boxed_gold(solution: str) -> str | None:
    """The last filled box of a reference solution, braced or bare; None without a box, "" where all are empty."""
    contents = [box.content for box in boxes(solution)]
    filled = [content for content in contents if content]
    if filled:
        return filled[-1]
    return "" if contents else None
