"""Find the program in a response: a fenced block, a [BEGIN]...[DONE] span, bare code, or a continued prompt.

Parsing text from outside can take long or fail in odd ways, so this runs in the judge's killable process.
"""

import ast
import re
import warnings

from score_cli.verification.programs.free_names import defines_any

# No solution is longer; the rest of a flood is not read.
MAXIMUM_CHARACTERS = 65_536
# Cutting prose off the end of code tries at most this many places.
_CUTS = 60

_FENCE = re.compile(
    r"^[ \t]*(?:```|~~~)[ \t]*([\w+.-]*)[^\n]*\n(.*?)(?:^[ \t]*(?:```|~~~)[ \t]*$|\Z)", re.DOTALL | re.MULTILINE
)
_PYTHON = ("", "python", "python3", "py", "py3")
_CODE_LINE = re.compile(r"^(?:def |class |import |from \w+(?:\.\w+)* import |async def |@\w)", re.MULTILINE)
_BEGIN, _DONE = "[BEGIN]", "[DONE]"


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

    Of several fenced blocks the last that parses and defines a wanted name is taken, then the last that parses,
    then the last: a response that shows a use of its function after it is still judged by the function.

    Args:
        wanted: names the tests take from the program.
        prompt: a function head that the response may continue, as HumanEval has it.
    """
    text = response.replace("\r\n", "\n")[-MAXIMUM_CHARACTERS:]
    if _BEGIN in text or _DONE in text:
        text = text.rpartition(_BEGIN)[2].partition(_DONE)[0]
    blocks = [body for language, body in _FENCE.findall(text) if language.lower() in _PYTHON]
    if blocks:
        return _best_block(blocks, wanted, prompt)
    return _bare_program(text, wanted, prompt)


def _best_block(blocks: list[str], wanted: frozenset[str], prompt: str | None) -> str | None:
    parsed = [(block, tree) for block in reversed(blocks) if (tree := parse(block)) is not None]
    for block, tree in parsed:
        if defines_any(tree, wanted):
            return block
    if prompt is not None:
        for block in reversed(blocks):
            if (continued := _continuation(block, wanted, prompt)) is not None:
                return continued
    for block, tree in parsed:
        if tree.body:
            return block
    return next((block for block in reversed(blocks) if block.strip()), None)


def _bare_program(text: str, wanted: frozenset[str], prompt: str | None) -> str | None:
    """Code without any mark around it."""
    tree = parse(text)
    if tree is not None and defines_any(tree, wanted):
        return text
    if prompt is not None and (continued := _continuation(text, wanted, prompt)) is not None:
        return continued
    # A word of prose parses as an expression; a statement does not come about by accident.
    if tree is not None and any(not isinstance(node, ast.Expr) for node in tree.body):
        return text
    start = _CODE_LINE.search(text)
    if start is None:
        return None
    code = text[start.start() :]
    return _without_tail(code)[0]


def _continuation(text: str, wanted: frozenset[str], prompt: str) -> str | None:
    """The prompt and the text as one program, where the text is the indented body that the prompt asks for."""
    # A body whose first indentation was taken for part of the prompt starts at the margin.
    indented = re.match(r"(?:[ \t]*\n)*[ \t]+\S", text) or (text.strip() and prompt.endswith((" ", "\t")))
    if not indented:
        return None
    joined = prompt + text if prompt.endswith(("\n", " ", "\t")) or text.startswith("\n") else f"{prompt}\n{text}"
    code, tree = _without_tail(joined, keep=len(prompt) + 1)
    return code if tree is not None and code[len(prompt) :].strip() and defines_any(tree, wanted) else None


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
