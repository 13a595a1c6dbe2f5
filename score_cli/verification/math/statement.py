"""Reduce what a sentence says to the answer in it: markup, fillers before, reasons and remarks after go.

`**5**`, `then 5`, `that there are 5 apples, altogether`, `5, which is 10 halved` and `5 (five)` all say 5. What hedges
or takes back stays where it is, so that the comparison refuses it: `5 or maybe 6`, `not 5`, `about 5`, `5 (or 6)`.
"""

import bisect
import re

from score_cli.tasks.latex_boxes import outermost_boxes
from score_cli.verification.math.tokens import MAX_ANSWER_CHARS
from score_cli.verification.math.units import number_of_words, says_more

# No statement is read further than this; what is longer than an answer comes back too long.
REACH = 2 * MAX_ANSWER_CHARS
_HOPE = re.compile(r"\bI hope (?:it|this|that) is (?:correct|right)", re.IGNORECASE)
_CLOSERS = "[)\\]\"'”’*_]*"
_SENTENCE_END = re.compile(rf"[.;!]{_CLOSERS}(?:\s|$)|\n")
_MATH_SPAN = re.compile(r"(?<!\\)\$\$.*?(?<!\\)\$\$|(?<!\\)\$[^$\n]*(?<!\\)\$|\\\(.*?\\\)|\\\[.*?\\\]", re.DOTALL)
_PROSE_IN_SPAN = re.compile(r"\$\s*\d[^\\]*[a-z]{2,}\s+[a-z]{2,}")
_TAG = re.compile(
    r"</?(?:b|i|u|em|strong|p|br|span|div|code|mark|center|font|h[1-6])(?:\s[^<>\n]{0,200})?/?>", re.IGNORECASE
)
_ANSWER_TAG = re.compile(r"<(?:final_?)?answer>", re.IGNORECASE)
_ANSWER_TAG_END = re.compile(r"</(?:final_?)?answer>", re.IGNORECASE)
_HEADING = re.compile(
    r"^[ \t]{0,3}(?:>[ \t]{0,3}){1,4}|^[ \t]{0,3}#{1,6}[ \t]*(?=\W{0,8}(?:final[ \t]+)?answer\b)", re.I | re.M
)
_STARS = re.compile(r"(?<![\w)\]}*])\*{2,3}(?=\S)|(?<=[^\s*])\*{2,3}(?![\w(\[{\\*])")
_UNDERLINES = re.compile(r"(?<!\w)__(?=[A-Za-z])|(?<=[A-Za-z])__(?!\w)")
_STAR = re.compile(r"(?:(?<=\n)|^)[ \t]*\*(?=[A-Za-z])|(?<=[\w.!$)\]])\*(?=[.,;:!]?\s*$)", re.MULTILINE)
_DOUBLED_DELIMITER = re.compile(r"\\\\([\[(])((?:(?!\\begin)[^\n]|\n){0,200}?)\\\\([\])])")
_STYLED_PHRASE = re.compile(r"\\text(?:bf|it|rm|sf)?\s*\{\s*((?:The )?(?:final )?answer[^{}$]{0,40})\}", re.IGNORECASE)
_EMOJI = re.compile("[\U0001f300-\U0001faff\u2600-\u27bf\u2b50\ufe0f\u200d]+")
_QUOTES = "\"'`“”‘’« »"
_FILLER = (
    "then|simply|exactly|precisely|just|only|indeed|actually|therefore|thus|hence|so|now|clearly|obviously|again|"
    "still|also|namely|finally|of course|in fact|in total|always|surely|certainly|definitely|"
    "equal to|equals|given by|found to be|determined to be|to be|going to be|"
    "(?:that )?(?:there|it|he|she|they|we|you|this|that) (?:is|are|was|were|will be|has|have|had|can be|would be)|"
    "that(?= [\\d$\\\\-])|an?(?= \\$?\\d)|none other than|as follows|"
    "(?:that )?(?:a|the) (?:total|value|number|result|quantity|amount|integer|fraction|decimal|expression|"
    "ordered pair|point|set|interval|polynomial|letter)(?: (?:of|is|equals))?"
)
_LEAD = re.compile(rf"(?:(?:{_FILLER})(?![\w-])[ \t,:]*)+", re.IGNORECASE)
# A subject without mathematics, and what it is: `the number of apples is `.
_SUBJECT = re.compile(
    r"(?:that\s+)?(?:the|a|an|his|her|its|their|our|each|all|in|it|he|she|they|we|you|I|there|[A-Z][a-z]+(?:'s)?)\s"
    r"[A-Za-z ,'-]{0,100}?\b(?:is|are|was|were|equals|be|has|have|had|gets?|needs?|costs?|makes?|made|earns?|"
    r"earned|spends?|spent|pays?|paid|takes?|took|sold|sells?|bought|buys?|ate|eats?|left)\s+(?=[\d$\\(-])"
)
_HEDGE = re.compile(
    r"\b(?:not|never|neither|either|maybe|perhaps|than|least|most|about|approximately|roughly|around|nearly|almost|"
    r"if|unless|could|might|may|would|other|except|between|over|under)\b|n't\b",
    re.IGNORECASE,
)
# Words after which no more of the answer comes. `if`, `when` and `for` would make it another answer.
_REASON = re.compile(
    r"(?:,?\s+|,)(?:because|since|thus|hence|therefore|so(?=\s+\w)|which|found by|from which|as(?=\s+[\d$\\])|"
    r"(?<=,\s)as|when (?:simplified|rounded|reduced|expressed|written|evaluated|computed)|"
    r"after (?:rounding|simplif\w+|all)|"
    r"as (?:shown|required|desired|expected|needed|claimed|computed|calculated|found|stated|given|above|before|we|you|"
    r"it|this|that|can be|is|was|there)|"
    r"and (?:no|nothing) (?:more|less|else|other)|and (?:that|this)(?:'s| is| was)|and (?:we are|I am|I'm))\b|"
    r":\s+(?:the|which|because|since|as|this|that|it)\b|"
    r"\s+[—–-]\s+(?=[A-Za-z]{2,}\s+[A-Za-z]{2})",
    re.IGNORECASE,
)
_SPAN_REASON = re.compile(r",?\s+(?:because|since|as|so|which|therefore|where|when|hence|thus)\b")
_REMARK = re.compile(
    r",?\s+(?:altogether|in total|in all|overall|all together|all in all|total|respectively|exactly|only|precisely|"
    r"left over|remaining|"
    r"as (?:required|desired|expected|claimed|needed|a result)|and nothing else|at the end|for sure)\s*$",
    re.IGNORECASE,
)
# Words after an answer that leave it in doubt.
_DOUBT = re.compile(
    r"\b(?:maybe|perhaps|possibly|probably|might|may be|could|guess\w*|unsure|not sure|unclear|wrong|incorrect|"
    r"mistake)\b|\?",
    re.IGNORECASE,
)
_WRONG = r"(?:wrong|incorrect|a mistake|a slip|mistaken)"
_TAKEN_BACK = re.compile(
    r"[\s$),;:*–—-]{0,6}\b(?:which|but\s+(?:that|this|it)|and\s+(?:that|this))"
    r"(?:'s|\s+(?:is|was|turns? out to be|seems))"
    rf"\s+(?:(?:clearly|obviously|definitely|of course|also)\s+)?(?:{_WRONG}|not (?:correct|right|true)|false)\b|"
    r"[\s$),;:*–—-]{0,6}\b(?:which|but\s+(?:that|this|it))\s+(?:isn't|wasn't)\s+(?:correct|right|true)\b|"
    rf"(?<=[\d$)}}])[$)*]{{0,3}},?\s+(?:is|was)\s+{_WRONG}\b",
    re.IGNORECASE,
)
_ABOUT_AN_ANSWER = re.compile(
    r"(?:(?:also|still|indeed|therefore|thus|clearly|obviously|definitely|in fact|actually|probably|likely)\s+)*"
    r"(?:not\s+)?(?:correct|incorrect|wrong|right|mistaken|invalid|off|inconsistent|consistent|erroneous|flawed|"
    r"the same|as follows|as above|above|below)\b"
    r"(?=\W*$|\W+(?:because|since|as|due|but|and|so|for|when|if|with|to|by|in|after|here|there|anyway)\b)",
    re.IGNORECASE,
)
# A unit of one or two letters, which would be variables inside of a formula.
_LONE_UNIT = re.compile(
    r"(-?[\d.,/]+|\$[^$]+\$|\\\([^()]+\\\))\s*((?:[cmk]?m|[mk]?g|m?l|s|h|ft|in|yd|mi|min|hr?)(?:/(?:s|h|hr|min))?(?:\^?[23])?)"
)
_NOTE = re.compile(r"([^()]*[^\s()])\s*\(([A-Za-z][A-Za-z ,-]{0,80})\)([^()]*)")


def without_markup(text: str) -> str:
    """A response without markdown, HTML and emoji around its words; `<answer>` becomes the words `Final Answer:`."""
    if "<" in text:
        text = _ANSWER_TAG.sub("\nFinal Answer: ", text)
        text = _ANSWER_TAG_END.sub("\n", text)
        text = _TAG.sub(" ", text)
    if "#" in text or ">" in text:
        text = _HEADING.sub("", text)
    if "*" in text:
        text = _STAR.sub("", _STARS.sub("", text))
    if "__" in text:
        text = _UNDERLINES.sub("", text)
    if "\\text" in text:
        text = _STYLED_PHRASE.sub(r"\1", text)
    if "\\\\" in text:
        text = _DOUBLED_DELIMITER.sub(r"\\\1\2\\\3", text)
    return text if text.isascii() else _EMOJI.sub(" ", text)


def statement(tail: str, *, boxes: bool = True) -> str:
    """What a sentence that begins here says of the answer; "" where it only speaks about one.

    It ends with a full stop, a line's end or the hope that it is correct.
    """
    tail = tail[:REACH].replace('\\"', '"')
    hope = _HOPE.search(tail)
    spans = [found.span() for found in _MATH_SPAN.finditer(tail) if not _PROSE_IN_SPAN.match(found[0])]
    if hope:
        said = tail[: hope.start()].rstrip(" \t\n.")
    else:
        ends = (found.start() for found in _SENTENCE_END.finditer(tail) if not inside(spans, found.start()))
        said = tail[: next(ends, len(tail))].strip()
    if boxes and (framed := outermost_boxes(said)):
        return framed[-1].content
    if _ABOUT_AN_ANSWER.match(said) or is_taken_back(tail, len(said)) or _TAKEN_BACK.search(said):
        return ""
    return _bare(_without_reason(said, spans))


def is_taken_back(text: str, end: int) -> bool:
    """Whether what stands before `end` is called wrong in the same breath."""
    return _TAKEN_BACK.match(text, end) is not None


def _without_reason(said: str, spans: list[tuple[int, int]]) -> str:
    said = said.strip(_QUOTES)
    for start, end in spans[:1]:
        # `$5$ because ...` says 5; `$5$ or $6$` and `$5$ if ...` must stay whole.
        if start == 0 and _SPAN_REASON.match(said, end):
            return said[:end]
    at = _after_lead(said)
    reasons = (match.start() for match in _REASON.finditer(said, at) if match.start() > at)
    end = next((start for start in reasons if not inside(spans, start)), len(said))
    return said[at:] if _DOUBT.search(said, end) else said[at:end]


def _after_lead(said: str) -> int:
    """Where the answer begins, after what only leads to it."""
    subject = _SUBJECT.match(said)
    if subject and not _HEDGE.search(subject[0]):
        return subject.end()
    lead = _LEAD.match(said)
    return lead.end() if lead and lead.end() < len(said) else 0


def _bare(said: str) -> str:
    """Without quotes, remarks and brackets that are not the answer's."""
    for _ in range(4):
        before = said
        said = said.strip(" \t\n").strip(_QUOTES) if said[:1] in _QUOTES or said[-1:] in _QUOTES else said.strip()
        said = _REMARK.sub("", said).rstrip("!").strip("* \t").removesuffix(" -")
        if said.endswith(")") and said.count(")") > said.count("("):
            said = said[:-1]
        if (note := _NOTE.fullmatch(said)) and _is_idle(note[1], note[2]):
            said = note[1] + note[3]
        if said == before:
            break
    unit = _LONE_UNIT.fullmatch(said)
    # `5 m` without dollars may be five times m.
    return f"{unit[1]}\\text{{ {unit[2]}}}" if unit and (len(unit[2]) > 1 or not unit[1][-1].isdigit()) else said


def _is_idle(head: str, note: str) -> bool:
    """Whether words in brackets after an answer say nothing else: `16 (sixteen)`, `5 (apples)`."""
    words = note.replace(",", " ").replace("-", " ").lower().split()
    value = number_of_words(words)
    if value is not None:
        return head.strip("$ ").replace(",", "") == str(value)
    after_number = head[-1].isdigit() or head[-1] in "$}%"
    return (len(words) > 1 or (after_number and len(words[0]) > 2)) and not says_more(words)


def inside(spans: list[tuple[int, int]], position: int) -> bool:
    """Whether a position lies in one of some spans, given in order."""
    at = bisect.bisect_right(spans, (position, 1 << 40)) - 1
    return at >= 0 and spans[at][0] <= position < spans[at][1]
