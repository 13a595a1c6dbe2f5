r"""Find the final answer in a response to a mathematics problem.

In this order: the last `final answer is ...`, the last `\boxed`, the last line that begins `Final answer:`,
the last `the answer is ...` or `Answer: ...`, a response that is nothing but an answer (`$5$`, `x = 3`). A number
that merely stands last in prose is never taken. Of a response with
a finished `<think>` block only what follows the block counts, and nothing of a response that never leaves it.
"""

import bisect
import re

from score_cli.tasks.latex_boxes import outermost_boxes
from score_cli.verification.math.tokens import MAX_ANSWER_CHARS

MAX_RESPONSE_CHARS = 65_536
_REACH = 2 * MAX_ANSWER_CHARS
_PHRASE = re.compile(r"final\s+answer\s+is\s*:?\s*", re.IGNORECASE)
_HEADED = re.compile(r"final\s+answer\W{0,8}?:\s*(?:\*\*)?\s*", re.IGNORECASE)
_ANCHORED = re.compile(
    r"(?:^####|\b(?:the|my|our)\s+(?:correct\s+)?answer\s+(?:is|are)\b|\banswer\s*:)\s*:?\s*(?:\*\*)?\s*:?\s*",
    re.IGNORECASE | re.MULTILINE,
)
_HOPE = re.compile(r"\bI hope (?:it|this) is correct", re.IGNORECASE)
_END_OF_TURN = re.compile(r"<\|[a-z_]{1,24}\|>|</s>|<eos>|<end_of_turn>|<pad>")
_NEXT_PROBLEM = re.compile(
    r"I hope (?:it|this) is correct\.?[ \t]{0,9}\n\s{0,9}(?:\#{1,6} )?(?:Problem|Question)\s*:", re.IGNORECASE
)
_DENIED = re.compile(
    r"\bnot\s+(?:the\s+case\s+)?(?:true\s+)?that\s+the\s*$|\bis\s+the\s*$|\bif\s+the\s*$", re.IGNORECASE
)
_BOX = re.compile(r"\\(?:boxed|fbox)\s*\{")
_BARE_BOX = re.compile(r"\\boxed\s+(-?\d[\d.,/]*|[A-Za-z])(?![\w\\{])")
_BETWEEN_BOXES = re.compile(
    r"(?:[\s,;$]|\\[()\[\],;!]|\\q?quad|\\(?:text|mathrm)\s*\{\s*(?:and|or)\s*\}|\band\b|\bor\b)*"
)
_SENTENCE_END = re.compile(r"[.;!](?:\s|$)|\n")
_MATH_SPAN = re.compile(r"(?<!\\)\$\$.*?(?<!\\)\$\$|(?<!\\)\$[^$\n]*(?<!\\)\$|\\\(.*?\\\)|\\\[.*?\\\]", re.DOTALL)
_REASON = re.compile(r",?\s+(?:because|since|as|so|which|therefore|where|when|hence|thus)\b")
# A unit, a name, a short list have few words; a sentence that ends in a number has more.
_MOST_ALONE = 512
_WORDS_ALONE = 3
_MATHEMATICS = re.compile(r"\d|\\[A-Za-z]")
_WORD = re.compile(r"(?<![\\A-Za-z])[A-Za-z]{2,}")
_LAST_IS = re.compile(r"\b(?:is|are|equals)\s*:?\s+")


def extract_answer(response: str) -> str | None:
    """The final answer as written, None where the response gives none.

    An answer longer than 4,096 characters comes back cut after one more, so that it can be told to be too long.
    """
    text = _relevant(response)
    phrase = _last_phrase(text)
    if phrase is not None:
        return phrase[: MAX_ANSWER_CHARS + 1]
    found = last_boxes(text) or _anchored(text, _HEADED) or _anchored(text, _ANCHORED) or _whole(text)
    return found[: MAX_ANSWER_CHARS + 1] if found else None


def _whole(text: str) -> str | None:
    """The response itself, where it is one line without prose: what little it says is its answer."""
    line = text.strip()
    if not line or "\n" in line or "\\boxed" in line or len(line) > _MOST_ALONE:
        return None
    words = len(_WORD.findall(line))
    # Two words say something only beside mathematics: `no idea` is no answer, `5 square meters` is one.
    return line if words <= 1 or (words <= _WORDS_ALONE and _MATHEMATICS.search(line)) else None


def _relevant(response: str) -> str:
    """The end of the response, without thoughts, end-of-turn marks and problems invented after the answer."""
    text = response[-MAX_RESPONSE_CHARS:]
    thought, closing, after = text.rpartition("</think>")
    text = after if closing else (thought or after).partition("<think>")[0]
    if runaway := _NEXT_PROBLEM.search(text):
        text = text[: runaway.end()]
        text = text[: text.rindex("\n")]
    # A long filler after the answer must not push it out of view.
    if len(response) > MAX_RESPONSE_CHARS and not (_PHRASE.search(text) or _BOX.search(text)):
        start = max(response.rfind("\\boxed"), response.rfind("final answer is"))
        text = response[start : start + MAX_RESPONSE_CHARS] if start >= 0 else text
    return _END_OF_TURN.sub("\n", text)


def _last_phrase(text: str) -> str | None:
    matches = list(_PHRASE.finditer(text))
    for index in range(len(matches) - 1, -1, -1):
        found = matches[index]
        if _DENIED.search(text, max(0, found.start() - 60), found.start()):
            continue
        end = matches[index + 1].start() if index + 1 < len(matches) else len(text)
        if answer := _statement(text[found.end() : min(end, found.end() + _REACH)]):
            return answer
    return None


def _statement(tail: str) -> str:
    """What a sentence that begins here says, to its end: a full stop, a line's end, or the hope that it is correct."""
    tail = tail[:_REACH]
    if hope := _HOPE.search(tail):
        return _unboxed(tail[: hope.start()].rstrip(" \t\n."))
    spans = [found.span() for found in _MATH_SPAN.finditer(tail)]
    ends = (found.start() for found in _SENTENCE_END.finditer(tail) if not _inside(spans, found.start()))
    statement = tail[: next(ends, len(tail))].strip()
    for start, end in spans[:1]:
        # `$5$ because ...` says 5; `$5$ or $6$` and `$5$ if ...` must stay whole.
        if start == 0 and _REASON.match(statement, end):
            statement = statement[:end]
    return _unboxed(statement)


def _inside(spans: list[tuple[int, int]], position: int) -> bool:
    at = bisect.bisect_right(spans, (position, len(spans) + _REACH)) - 1
    return at >= 0 and spans[at][0] <= position < spans[at][1]


def _unboxed(answer: str) -> str:
    return (last_boxes(answer) or "") if _BOX.search(answer) else answer


def last_boxes(text: str) -> str | None:
    r"""The content of the last non-empty `\boxed`, joined with those before it that stand in one list with it.

    `\boxed{2} and \boxed{3}` is the answer `2 , 3`: whoever lists candidates has not answered with the last one.
    """
    boxes = outermost_boxes(text)
    if not boxes:
        bare = list(_BARE_BOX.finditer(text))
        return bare[-1][1] if bare else None
    contents = [boxes[-1].content]
    for before, after in zip(boxes[-2::-1], boxes[:0:-1], strict=False):
        if not _BETWEEN_BOXES.fullmatch(text, before.end, after.start):
            break
        if before.content not in contents:
            contents.append(before.content)
    return " , ".join(reversed(contents))


def _anchored(text: str, anchor: re.Pattern[str]) -> str | None:
    matches = list(anchor.finditer(text))
    if not matches:
        return None
    statement = _statement(text[matches[-1].end() :])
    if anchor is _HEADED:
        spans = [found.span() for found in _MATH_SPAN.finditer(statement)]
        inner = [found for found in _LAST_IS.finditer(statement) if not _inside(spans, found.start())]
        statement = statement[inner[-1].end() :] if inner else statement
    return statement.strip("* \t") or None
