"""Cut a response into the parts that may be its program: what it thinks, marks and fences; nothing is parsed here."""

import html
import re
from collections.abc import Iterator
from typing import NamedTuple

_THOUGHT = r"(?:think|thinking|thought|reasoning)"
_THINKING = re.compile(
    rf"^[ \t]*(?:<{_THOUGHT}>.*?(?:</{_THOUGHT}>|\Z)|\[THINK\].*?(?:\[/THINK\]|\Z))", re.I | re.M | re.S
)
# The prompt may have opened it: then all that stands before its end was thought. Not where a string holds the tag.
_THINKING_ENDS = re.compile(
    rf"(?:</{_THOUGHT}>|\[/THINK\]|<\|end_of_thought\|>|<\|channel\|>final<\|message\|>)(?!['\"])", re.I
)

_STOP_TOKEN = r"(?:<\|[\w ./-]{1,40}\|>|<｜[^｜\n]{1,40}｜>|</s>|<eos>|<EOT>|<(?:end|start)_of_turn>|\[/?INST\])"
# A fence that the prompt opened leaves its language in front.
_LEADING_LANGUAGE = re.compile(r"\s*(?:python3?|py)[ \t]*\n", re.I)
_LEADING_TOKENS = re.compile(rf"\s*(?:(?:<s>|<bos>|{_STOP_TOKEN})(?:assistant|model)?\s*)+")
_STOPS = re.compile(rf"{_STOP_TOKEN}+")

_BEGIN = re.compile(r"^[ \t]*\[BEGIN\][ \t]*\n?", re.M)
_DONE = re.compile(r"^[ \t]*\[DONE\]|[ \t]*\[DONE\][ \t]*$", re.M)

# Words before a fence may be prose, a list's mark or a quote's; what follows it is the language.
_OPENING = re.compile(r"(?P<before>[^`\n]*?)(?P<fence>`{3,}|~{3,})(?P<info>[^`\n]*)")
_ONE_LINE = re.compile(r"[ \t]*(?P<fence>`{3,})(?:python3?|py)?(?P<code>[^`\n]+)(?P=fence)[ \t]*", re.I)
_LIST_MARK = re.compile(r"[ \t]*(?:[-*+]|\d{1,3}[.)])?[ \t]*")
_QUOTE_MARK = re.compile(r"[ \t]*>[ \t]?")
_LANGUAGE = re.compile(r"[\w+#-]+")
_PYTHON = ("", "python", "python2", "python3", "py", "py3", "ipython", "ipython3", "code", "tool_code")
_NESTING = ("", "markdown", "md")
_HTML_CODE = re.compile(r"<pre[^>]*>\s*(?:<code[^>]*>)?(.*?)(?:</code>\s*)?</pre>|<code[^>]*>(.*?)</code>", re.I | re.S)


class Block(NamedTuple):
    """Code that a response marks off, and the language it says it is in."""

    language: str
    code: str

    @property
    def may_be_python(self) -> bool:
        """Whether nothing says that it is something else."""
        return self.language in _PYTHON


def answered_part(response: str) -> str:
    """A response without what it thinks before it answers, and without what follows its end."""
    text = response.replace("\r\n", "\n").replace("\r", "\n")
    text = _THINKING.sub("", text)
    ends = [match.end() for match in _THINKING_ENDS.finditer(text)]
    text = text[ends[-1] :] if ends else text
    leading = _LEADING_TOKENS.match(text)
    text = text[leading.end() :] if leading else text
    language = _LEADING_LANGUAGE.match(text)
    text = text[language.end() :] if language else text
    stop = next((match.start() for match in _STOPS.finditer(text) if _stops(text, match)), len(text))
    return text[:stop]


def _stops(text: str, token: re.Match[str]) -> bool:
    """Whether a stop token ends the text rather than standing in a string of the program."""
    if token[0] == "</s>" and text.count("<s>", 0, token.start()) > text.count("</s>", 0, token.start()):
        return False
    line = text[text.rfind("\n", 0, token.start()) + 1 : token.start()]
    rest = text[token.end() :].partition("\n")[0]
    return not rest.strip() or (line.count('"') % 2 == 0 and line.count("'") % 2 == 0)


def marked_parts(text: str) -> list[str]:
    """What stands before the first [BEGIN] and after each, up to its [DONE], where MBPP's few-shot prompt is followed.

    A base model that has answered goes on with the next task: the first of the parts that answers is what was asked.
    """
    parts = [_DONE.split(part, maxsplit=1) for part in _BEGIN.split(text)]
    if len(parts) == 1 and len(parts[0]) == 1:
        return [text]
    found = []
    for beginning, *after in parts:
        found.append(beginning)
        if after and beginning.strip():
            break
    return [part for part in found if part.strip()]


def code_blocks(text: str) -> tuple[str, list[Block]]:
    """The text before the first fence, and the fenced blocks in their order; HTML's where there is no fence."""
    lines = text.split("\n")
    blocks: list[Block] = []
    before: str | None = None
    index = 0
    while index < len(lines):
        one_line = _ONE_LINE.fullmatch(lines[index])
        opening = _OPENING.fullmatch(lines[index])
        if one_line is None and (opening is None or not _opens(opening)):
            index += 1
            continue
        if before is None:
            # A fence may also end the last line of bare code.
            words = opening["before"] if opening is not None and one_line is None else ""
            before = "\n".join([*lines[:index], words])
        if one_line is not None:
            blocks.append(Block("python", one_line["code"].strip() + "\n"))
            index += 1
            continue
        assert opening is not None
        block, index = _fenced(lines, index, opening)
        if len(opening["fence"]) > 3 and block.language in _NESTING:
            blocks += code_blocks(block.code)[1] or [block]
        else:
            blocks.append(block)
    if before is None:
        return text, list(_html_blocks(text))
    return before, [block for block in blocks if block.code.strip()]


def _opens(line: re.Match[str]) -> bool:
    """Whether a line with a fence begins a block: a language may follow the fence, and no sentence."""
    words = line["info"].split()
    return len(words) <= 1 or "=" in line["info"] or _language(line["info"]) in _PYTHON


def _language(info: str) -> str:
    found = _LANGUAGE.search(info)
    return found[0].lower() if found else ""


def _fenced(lines: list[str], opened: int, opening: re.Match[str]) -> tuple[Block, int]:
    """The block that a line opens, and the line to go on with.

    A fence inside a docstring closes nothing: what stands before a closing fence must have even numbers of triple
    quotes, unless no fence does better.
    """
    fence, language = opening["fence"], _language(opening["info"])
    quote = _QUOTE_MARK.match(opening["before"])
    mark = _LIST_MARK.match(opening["before"])
    indent = mark.end() if mark is not None and mark.end() == len(opening["before"]) else 0
    code: list[str] = []
    doubles = singles = 0
    fallback: tuple[Block, int] | None = None
    for index in range(opened + 1, len(lines)):
        line = lines[index]
        if quote is not None and (inner := _QUOTE_MARK.match(line)):
            line = line[inner.end() :]
        head = len(line) - len(line.lstrip(" \t"))
        line = line[min(indent, head) :]
        closing = _closing(line, fence)
        if closing is not None:
            kept, reopens = closing
            last = [kept] if kept else []
            block = Block(language, "".join(f"{each}\n" for each in [*code, *last]))
            after = index if reopens else index + 1
            even = (doubles + kept.count('"""')) % 2 == 0 and (singles + kept.count("'''")) % 2 == 0
            if even:
                return block, after
            fallback = fallback or (block, after)
        code.append(line)
        doubles += line.count('"""')
        singles += line.count("'''")
    return fallback or (Block(language, "\n".join(code)), len(lines))


def _closing(line: str, fence: str) -> tuple[str, bool] | None:
    """What a line that closes a block adds to it, and whether the line opens another; None where it closes none."""
    mark = fence[0]
    stripped = line.strip()
    runs = re.findall(rf"{mark}{{{len(fence)},}}", stripped)
    if len(runs) != 1:
        return None
    before, _, after = stripped.partition(runs[0])
    if not before:
        # A language after the fence begins a block: the one before was never closed, or was closed by its opening.
        return "", len(after.split()) == 1 and _LANGUAGE.fullmatch(after.strip()) is not None
    if after or mark == "~":
        return None
    return line.rstrip()[: -len(runs[0])], False


def _html_blocks(text: str) -> Iterator[Block]:
    for match in _HTML_CODE.finditer(text):
        code = match[1] if match[1] is not None else match[2]
        if "\n" in code.strip() or match[1] is not None:
            yield Block("", html.unescape(code).strip("\n") + "\n")
