r"""Find `\boxed{...}` in LaTeX: the one way to read the final answer of a solution."""

import re
from typing import NamedTuple

_BOX = re.compile(r"\\(?:boxed|fbox)(?![a-zA-Z])[ \t]*")


class Box(NamedTuple):
    r"""One box of a text; `braced` is false for `\boxed 2$`, which TeX accepts too."""

    content: str
    braced: bool


def _braced_content(text: str, start: int) -> str | None:
    """The text from `start` up to the brace that closes it, or None where none does."""
    depth, position = 1, start
    while position < len(text):
        character = text[position]
        if character == "\\":
            # An escaped brace is a set's brace, not a group's.
            position += 2
            continue
        depth += {"{": 1, "}": -1}.get(character, 0)
        if depth == 0:
            return text[start:position].strip()
        position += 1
    return None


def boxes(text: str) -> list[Box]:
    """Every box in order of its start, empty ones included; a box that is never closed is left out."""
    found = []
    for match in _BOX.finditer(text):
        if text[match.end() : match.end() + 1] == "{":
            content = _braced_content(text, match.end() + 1)
            if content is not None:
                found.append(Box(content, braced=True))
        else:
            bare = re.match(r"[^$\n]*", text[match.end() :])
            assert bare is not None
            found.append(Box(bare.group().strip(), braced=False))
    return found


def last_boxed(text: str) -> str | None:
    r"""The content of the last non-empty `\boxed{...}` with balanced braces, or None."""
    braced = [box.content for box in boxes(text) if box.braced and box.content]
    return braced[-1] if braced else None


def boxed_gold(solution: str) -> str | None:
    """The last filled box of a reference solution, braced or bare; None without a box, "" where all are empty."""
    found = [box.content for box in boxes(solution)]
    filled = [content for content in found if content]
    if filled:
        return filled[-1]
    return "" if found else None
