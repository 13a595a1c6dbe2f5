"""Find the program in a response: in fenced blocks, after [BEGIN], as bare code, or as the prompt continued.

A response is judged whole. What is cut, does not parse as it stands, or would parse only without some lines of a
fenced block is no program; around bare code, which nothing marks off, prose is left away.

Parsing text from outside can take long or fail in odd ways, so this runs in the judge's killable process.
"""

import ast
import re
import textwrap
import warnings
from typing import NamedTuple

from score_cli.verification.programs.code_blocks import Block, answered_part, code_blocks, marked_parts
from score_cli.verification.programs.free_names import defines_any, free_names, top_level_names

# No program is longer, and no response; longer ones have no program, rather than the one that their end makes.
MAXIMUM_CHARACTERS = 65_536
MAXIMUM_RESPONSE = 1_000_000
# Cutting prose off the end of code tries at most this many places.
_CUTS = 60
_BLOCKS_TRIED = 20

_CODE_LINE = re.compile(r"^(?:def |class |import |from \w+(?:\.\w+)* import |async def |@\w)", re.MULTILINE)


_READS_INPUT = re.compile(r"\binput\s*\(|\bstdin\b|\bopen\s*\(\s*0|\bfileinput\b|\bos\.read\s*\(\s*0")


class _Program(NamedTuple):
    """A program, and whether it defines what the tests take from it."""

    code: str
    answers: bool


def parse(source: str) -> ast.Module | None:
    """The syntax tree of source, or None where it is not Python."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return ast.parse(source)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None


def extract_program(response: str, *, wanted: frozenset[str], prompt: str | None) -> str | None:
    """The code of a response, or None where it holds none.

    Of several fenced blocks the last that defines a wanted name is taken, with the blocks that it needs names from;
    without one the last that parses. A response that shows a use of its function after it is so judged by the
    function.

    Args:
        wanted: names the tests take from the program; none where the program is run as a script.
        prompt: a function head that the response may continue, as HumanEval has it.
    """
    if len(response) > MAXIMUM_RESPONSE:
        return None
    text = answered_part(response)
    parts = marked_parts(text)
    if not any(_CODE_LINE.search(part) for part in parts) and prompt is None:
        # Prose that only speaks of the marks.
        parts = [text]
    found = [program for part in parts if (program := _of_part(part, wanted, prompt)) is not None]
    chosen = next((program for program in found if program.answers), found[0] if found else None)
    return chosen.code if chosen is not None and len(chosen.code) <= MAXIMUM_CHARACTERS else None


def _of_part(text: str, wanted: frozenset[str], prompt: str | None) -> _Program | None:
    before, blocks = code_blocks(text)
    if not blocks:
        # A fence that closes and never opened ends bare code.
        return _bare_program(before, wanted, prompt)
    program = _of_blocks(blocks, wanted, prompt)
    broken = program is None and any(_begins_to_define(block.code, wanted) for block in blocks)
    if broken or not wanted or (program is not None and program.answers):
        return program
    bare = _bare_program(before, wanted, prompt)
    return bare if bare is not None and bare.answers else program


def _of_blocks(blocks: list[Block], wanted: frozenset[str], prompt: str | None) -> _Program | None:
    trees = [_tree(block.code) for block in blocks]
    for index in reversed(range(len(blocks))):
        tree = trees[index]
        if tree is not None and defines_any(tree, wanted):
            return _Program(_with_needs(index, blocks, trees, wanted), True)
        if tree is None and _begins_to_define(blocks[index].code, wanted):
            # The last version of what was asked for is broken: an earlier one is not what the response says.
            return None
    if prompt is not None:
        for block in reversed(blocks):
            if (continued := _continuation(block.code, wanted, prompt, cut=False)) is not None:
                return _Program(continued, True)
    usable = [i for i, tree in enumerate(trees) if tree is not None and blocks[i].may_be_python and _acts(tree)]
    programs = [_with_needs(index, blocks, trees, wanted) for index in reversed(usable[-_BLOCKS_TRIED:])]
    # A script is known by its reading; a snippet that explains it may stand after it.
    reading = [program for program in programs if _READS_INPUT.search(program)] if not wanted else []
    return next((_Program(program, not wanted) for program in [*reading, *programs]), None)


def _tree(code: str) -> ast.Module | None:
    """The tree of a block; one that is indented as a whole is still itself."""
    if len(code) > MAXIMUM_CHARACTERS:
        return None
    return parse(code) or parse(textwrap.dedent(code))


def _begins_to_define(code: str, wanted: frozenset[str]) -> bool:
    return any(re.search(rf"^[ \t]*(?:async )?(?:def|class) {re.escape(name)}\b", code, re.M) for name in wanted)


def _acts(tree: ast.Module) -> bool:
    """Whether code is more than an example of input or output, such as a list of numbers."""
    return any(not isinstance(node, ast.Expr) for node in tree.body) or _calls_something(tree)


def _calls_something(tree: ast.Module) -> bool:
    return any(isinstance(node, ast.Call) for node in ast.walk(tree))


def _with_needs(index: int, blocks: list[Block], trees: list[ast.Module | None], wanted: frozenset[str]) -> str:
    """A block's code together with that of the blocks which define the names that it lacks."""
    chosen = {index}
    waiting = [index]
    while waiting:
        tree = trees[waiting.pop()]
        assert tree is not None
        has = frozenset().union(*(top_level_names(each) for i in chosen if (each := trees[i]) is not None))
        for name in sorted((free_names(tree) | wanted) - has):
            giver = _giver(name, index, trees)
            if giver is not None and giver not in chosen:
                chosen.add(giver)
                waiting.append(giver)
    return "\n".join(_as_parsed(blocks[i].code) for i in sorted(chosen))


def _as_parsed(code: str) -> str:
    return code if parse(code) is not None else textwrap.dedent(code)


def _giver(name: str, index: int, trees: list[ast.Module | None]) -> int | None:
    """The nearest block that defines a name, those before `index` first."""
    order = [*reversed(range(index)), *range(index + 1, len(trees))]
    return next((i for i in order if (tree := trees[i]) is not None and name in top_level_names(tree)), None)


def _bare_program(text: str, wanted: frozenset[str], prompt: str | None) -> _Program | None:
    """Code without any mark around it."""
    if len(text) > MAXIMUM_CHARACTERS:
        return None
    tree = parse(text)
    if tree is not None and defines_any(tree, wanted):
        return _Program(text, True)
    if prompt is not None and (continued := _continuation(text, wanted, prompt, cut=True)) is not None:
        return _Program(continued, True)
    # A word of prose parses as an expression; a statement does not come about by accident.
    if tree is not None and (
        any(not isinstance(node, ast.Expr) for node in tree.body) or (not wanted and _calls_something(tree))
    ):
        return _Program(text, not wanted)
    start = _CODE_LINE.search(text)
    if start is None:
        return None
    code, tree = _without_tail(text[_statements_before(text, start.start()) :])
    return None if tree is None else _Program(code, not wanted or defines_any(tree, wanted))


def _statements_before(text: str, start: int) -> int:
    """Where code begins whose first line with a keyword is at `start`: assignments and comments may stand before."""
    while start:
        line = text.rfind("\n", 0, start - 1) + 1
        tree = parse(text[line:start])
        assigns = tree is not None and any(isinstance(node, (ast.Assign, ast.AnnAssign)) for node in tree.body)
        if not assigns and not text[line:start].startswith("#"):
            break
        start = line
    return start


def _continuation(text: str, wanted: frozenset[str], prompt: str, *, cut: bool) -> str | None:
    """The prompt and the text as one program, where the text is the indented body that the prompt asks for."""
    if not text.strip():
        return None
    indented = re.match(r"(?:[ \t]*\n)*[ \t]+\S", text) is not None
    joined = prompt + text if prompt.endswith(("\n", " ", "\t")) or text.startswith("\n") else f"{prompt}\n{text}"
    if not indented and not prompt.endswith((" ", "\t")):
        # A body that lost the indentation of its first line, as text that was stripped has.
        joined = f"{prompt.rstrip()}\n{_indentation(prompt)}{text.lstrip()}"
    code, tree = _without_tail(joined, keep=len(prompt) + 1) if cut else (joined, parse(joined))
    if tree is None or not code[len(prompt) :].strip() or not defines_any(tree, wanted):
        return None
    return code if indented or prompt.endswith((" ", "\t")) or _adds_statements(tree, prompt) else None


def _indentation(prompt: str) -> str:
    """The indentation of the body that a prompt begins."""
    last = prompt.rstrip().rpartition("\n")[2]
    indentation = last[: len(last) - len(last.lstrip())]
    return indentation + "    " if last.rstrip().endswith(":") or not indentation else indentation


def _adds_statements(tree: ast.Module, prompt: str) -> bool:
    """Whether code after a prompt's last line is more than a word of prose, which parses as an expression."""
    lines = prompt.rstrip().count("\n") + 1
    added = [node for node in ast.walk(tree) if isinstance(node, ast.stmt) and node.lineno > lines]
    return any(not isinstance(node, ast.Expr) for node in added)


def _without_tail(code: str, keep: int = 0) -> tuple[str, ast.Module | None]:
    """The longest beginning of code, cut where a line stands at the margin, that parses, and its tree."""
    tree = parse(code)
    if tree is not None:
        return code, tree
    cuts = [match.start() for match in re.finditer(r"^(?=\S)", code, re.MULTILINE) if match.start() > keep]
    for cut in reversed(cuts[:_CUTS]):
        tree = parse(code[:cut])
        if tree is not None:
            return code[:cut], tree
    return code, None


def prelude_of(prompt: str, entry_point: str) -> str:
    """The imports and helper functions of a prompt, without the function it asks for; empty if it is not code.

    The judge takes helpers from here and not from the program, which could change what they say.
    """
    tree = parse(prompt)
    asked = [node for node in tree.body if getattr(node, "name", None) == entry_point] if tree else []
    lines = prompt.splitlines(keepends=True)
    for node in reversed(asked):
        assert isinstance(node, ast.stmt) and node.end_lineno is not None
        first = min([node.lineno, *(decorator.lineno for decorator in getattr(node, "decorator_list", []))])
        del lines[first - 1 : node.end_lineno]
    return "".join(lines) if asked else ""
