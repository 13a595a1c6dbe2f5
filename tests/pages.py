"""A page of docs/ as a test runs it: its files written, its commands run, what it says they print looked for.

A block after a line that holds nothing but a file's name in back-ticks and a colon is that file. Other blocks of `sh`
are run line by line, blocks of `python` whole; a block of `text` after them is what they print, among other things.
"""

import contextlib
import io
import re
import shlex
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from score_cli.cli import run_command

_BLOCK = re.compile(r"(?:^`(?P<file>[\w./-]+)`:\n\n)?^```(?P<kind>\w+)\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL)


class Block(NamedTuple):
    """One fenced block; `file` is the name of the file that it is, if it is one."""

    kind: str
    text: str
    file: str | None


def blocks(page: Path) -> Iterator[Block]:
    for match in _BLOCK.finditer(page.read_text(encoding="utf-8")):
        yield Block(match["kind"], match["text"], match["file"])


def run_page(page: Path, change: Callable[[list[str]], list[str]] = list) -> None:
    """Run a page in the working folder; `change` makes commands smaller.

    Raises:
        AssertionError: a command fails, or something else is printed.
    """
    printed = ""
    for block in blocks(page):
        if block.file is not None:
            Path(block.file).write_text(block.text, encoding="utf-8")
        elif block.kind == "sh":
            printed = "".join(_run(change(shlex.split(line, comments=True))) for line in block.text.splitlines())
        elif block.kind == "python":
            with contextlib.redirect_stdout(io.StringIO()) as out:
                exec(compile(block.text, str(page), "exec"), {})
            printed = out.getvalue()
        else:
            assert block.kind == "text", f"{page} has a block of {block.kind}, which nobody runs"
            for line in block.text.splitlines():
                assert line in printed, f"{page} says `{line}`, but printed was\n{printed}"


def _run(command: list[str]) -> str:
    if not command:
        return ""
    assert command[0] == "score", f"cannot run {command[0]}"
    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.redirect_stderr(out):
        code = run_command(command[1:])
    assert code == 0, f"{shlex.join(command)} ended with {code}:\n{out.getvalue()}"
    return out.getvalue()
