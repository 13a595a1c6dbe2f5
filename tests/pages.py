"""A page of documentation as a test reads and runs it: its blocks, headings, links and paragraphs.

A block after a line that holds nothing but a file's name in back-ticks and a colon is that file. Other blocks of `sh`
are run line by line, blocks of `python` whole; a block of `text` right after them is what they print, among other
things. A block that says `sh no-run` is for people alone.
"""

import contextlib
import io
import re
import shlex
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from score_cli.cli import run_command

_BLOCK = re.compile(r"^```(?P<info>[^\n]*)\n(?P<text>.*?)^```$\n?", re.MULTILINE | re.DOTALL)
_FILE_NAME = re.compile(r"^`([\w./-]+)`:\s*\Z", re.MULTILINE)
_HEADING = re.compile(r"^#{1,6} (.+)$", re.MULTILINE)
_LINK = re.compile(r"\[(?:[^\[\]]|\[[^\]]*\])*\]\(([^()\s]+)\)|(?:src|srcset|href)=\"([^\"]+)\"")
_CODE = re.compile(r"`[^`\n]*`")
_NOT_PROSE = re.compile(r"^(?:\||#|<)")
_ITEM = re.compile(r"^(?:[-*]|\d+\.) ")


class Block(NamedTuple):
    """One fenced block.

    Attributes:
        kind: the first word after the fence; `flags` are the others.
        file: the name of the file that it is, if it is one.
        says: whether nothing stands between it and a block that was run before it.
        line: of its fence, from 1.
    """

    kind: str
    flags: tuple[str, ...]
    text: str
    file: str | None
    says: bool
    line: int

    @property
    def runs(self) -> bool:
        """Whether a test runs it."""
        return self.file is None and self.kind in ("sh", "python") and "no-run" not in self.flags

    def commands(self) -> list[str]:
        """The commands of a block of `sh`: continued lines are one, comments are none."""
        lines = self.text.replace("\\\n", " ").splitlines()
        return [line.strip() for line in lines if line.strip() and not line.lstrip().startswith("#")]


def blocks(text: str) -> list[Block]:
    """The fenced blocks of a page, in order."""
    found: list[Block] = []
    end = 0
    for match in _BLOCK.finditer(text):
        before = text[end : match.start()]
        name = _FILE_NAME.search(before)
        kind, *flags = match["info"].split() or [""]
        says = bool(found) and found[-1].runs and not before.strip()
        line = text.count("\n", 0, match.start()) + 1
        found.append(Block(kind, tuple(flags), match["text"], name[1] if name else None, says, line))
        end = match.end()
    return found


def anchors(text: str) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    seen: Counter[str] = Counter()
    found = set()
    for title in _HEADING.findall(_BLOCK.sub("", text)):
        plain = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", title).replace("`", "").lower()
        slug = re.sub(r"[^\w\- ]", "", plain).strip().replace(" ", "-")
        found.add(f"{slug}-{seen[slug]}" if seen[slug] else slug)
        seen[slug] += 1
    return found


def links(text: str) -> list[str]:
    """Where a page's links and pictures point."""
    # What stands in back-ticks may look like a link; a link's own words may stand in them.
    plain = _CODE.sub("code", _BLOCK.sub("", text))
    return [link or picture for link, picture in _LINK.findall(plain)]


def paragraphs(text: str) -> Iterator[str]:
    """The paragraphs and list items of a page's prose: no blocks, tables, headings or HTML."""
    for part in re.split(r"\n\s*\n", _BLOCK.sub("\n\n", text)):
        lines: list[str] = []
        for line in part.strip().splitlines():
            if _ITEM.match(line) and lines:
                yield "\n".join(lines)
                lines = []
            if not _NOT_PROSE.match(line):
                lines.append(line)
        if lines:
            yield "\n".join(lines)


def run_page(
    page: Path,
    change: Callable[[list[str]], list[str]] = list,
    shell: Callable[[str], str] | None = None,
) -> None:
    """Run a page in the working folder.

    Args:
        change: makes commands of `score` smaller.
        shell: runs any other command and returns what it printed; none may stand on the page if left out.
    Raises:
        AssertionError: a command fails, or something else is printed.
    """
    printed = ""
    for block in blocks(page.read_text(encoding="utf-8")):
        place = f"{page}, line {block.line}"
        if block.file is not None:
            Path(block.file).write_text(block.text, encoding="utf-8")
        elif block.runs and block.kind == "python":
            with contextlib.redirect_stdout(io.StringIO()) as out:
                exec(compile(block.text, place, "exec"), {"__name__": "__main__"})
            printed = out.getvalue()
        elif block.runs:
            printed = "".join(_run(line, place, change, shell) for line in block.commands())
        elif block.says:
            assert block.kind == "text", f"{place} is a block of {block.kind}, which nobody runs"
            for line in block.text.splitlines():
                assert line in printed, f"{place} says `{line}`, but printed was\n{printed}"


def _run(line: str, place: str, change: Callable[[list[str]], list[str]], shell: Callable[[str], str] | None) -> str:
    command = shlex.split(line, comments=True)
    if command[0] != "score":
        assert shell is not None, f"{place}: cannot run {command[0]}"
        return shell(line)
    command = change(command)
    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.redirect_stderr(out):
        code = run_command(command[1:])
    assert code == 0, f"{place}: {shlex.join(command)} ended with {code}:\n{out.getvalue()}"
    return out.getvalue()
