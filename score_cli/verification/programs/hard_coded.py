"""Whether a program that passes holds its tests' answers: a test's expected value in a branch on the test's input.

Seen: `if`, `elif`, a conditional expression, `match` or a dictionary that has a test's own input as a literal and leads
to the value that this test expects, as a literal too. Small base cases, such as `if n == 0: return 1`, do not count.

Not seen: inputs told apart by something else (a length, a sum, a hash), values that are computed or decoded, values
returned without a branch, and tests whose inputs or expected values are no literals. It reads text and runs nothing.
"""

import ast
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

from score_cli.tables.io_pairs import Pair

# A literal is compared by its type and parts; lists and tuples are one, as are numbers of equal value.
_Key = tuple[Any, ...]
_MOST_LITERAL = 10_000
_SMALL = 2


class Case(NamedTuple):
    """One test.

    Attributes:
        inputs: literals of which one is enough to tell this test's input from others.
        arguments: literals that tell it together.
        expected: the forms of the value that it expects.
    """

    inputs: frozenset[_Key]
    arguments: frozenset[_Key]
    expected: frozenset[_Key]


def python_cases(tests: ast.AST, functions: frozenset[str]) -> list[Case]:
    """The cases of tests that compare what a function returns for literals with a literal.

    Args:
        functions: names by which the tests call the program.
    """
    found = []
    for node in ast.walk(tests):
        for call, expected in _comparisons(node, functions):
            arguments = [_literal(argument) for argument in (*call.args, *(word.value for word in call.keywords))]
            if arguments and all(argument is not None for argument in arguments):
                keys = [argument for argument in arguments if argument is not None]
                single = [key for key in keys if len(keys) == 1 or _is_telling(key)]
                found.append(Case(frozenset([("seq", *keys), *single]), frozenset(keys), frozenset([expected])))
    return found


def _comparisons(node: ast.AST, functions: frozenset[str]) -> Iterator[tuple[ast.Call, _Key]]:
    """Calls of the program that a node compares with a literal, by `==`, by a function such as isclose, or by truth."""
    if isinstance(node, ast.Compare) and len(node.ops) == 1 and isinstance(node.ops[0], (ast.Eq, ast.Is)):
        yield from _paired([node.left, node.comparators[0]], functions)
    elif isinstance(node, ast.Call) and len(node.args) >= 2:
        yield from _paired(node.args[:2], functions)
    elif isinstance(node, ast.Assert):
        negated = isinstance(node.test, ast.UnaryOp) and isinstance(node.test.op, ast.Not)
        test = node.test.operand if isinstance(node.test, ast.UnaryOp) and negated else node.test
        call = _program_call(test, functions)
        if call is not None:
            yield call, _key(not negated)


def _paired(sides: Sequence[ast.expr], functions: frozenset[str]) -> Iterator[tuple[ast.Call, _Key]]:
    for one, other in (sides, sides[::-1]):
        call, value = _program_call(one, functions), _literal(_unwrapped(other))
        if call is not None and value is not None:
            yield call, value


def _unwrapped(node: ast.expr) -> ast.expr:
    """What a conversion such as `set(...)` is applied to."""
    while isinstance(node, ast.Call) and len(node.args) == 1 and not node.keywords:
        node = node.args[0]
    return node


def _program_call(node: ast.expr, functions: frozenset[str]) -> ast.Call | None:
    while isinstance(node, ast.Call):
        if isinstance(node.func, ast.Name) and node.func.id in functions:
            return node
        if len(node.args) != 1:
            return None
        node = node.args[0]
    return None


def script_cases(pairs: Iterable[Pair]) -> list[Case]:
    """The cases of pairs of input and output: whole texts, lines, and the numbers in them."""
    return [
        Case(forms := frozenset(_text_forms(pair.given)), forms, frozenset(_text_forms(pair.expected)))
        for pair in pairs
    ]


def _text_forms(text: str) -> Iterator[_Key]:
    text = text.strip()
    words = text.split()
    numbers = [int(word) if word.lstrip("-").isdecimal() else None for word in words[:_MOST_LITERAL]]
    yield _key(text)
    yield _key(f"{text}\n")
    yield _key(words)
    if len(words) == 1:
        yield _key(numbers[0]) if numbers[0] is not None else _key(text)
    if words and None not in numbers:
        yield _key(numbers)


def is_hard_coded(program: ast.AST, find_cases: Callable[[], Sequence[Case]]) -> bool:
    """Whether a branch of a program leads from the input of one of the cases to what this case expects.

    Args:
        find_cases: gives the cases; asked only where the program has a branch on a literal, which few have.
    """
    asking = [(asked, then) for literals, then in _branches(program) if (asked := frozenset(literals))]
    leading = [(asked, gives) for asked, then in asking if (gives := frozenset(_literals(*then)))]
    telling = [(asked, gives) for asked, gives in leading if any(map(_is_telling, asked | gives))]
    return bool(telling) and any(_leads(case, asked, gives) for case in find_cases() for asked, gives in telling)


def _leads(case: Case, asked: frozenset[_Key], then: frozenset[_Key]) -> bool:
    """Whether a branch leads from a case's input to what it expects, and is more than a base case of any solution."""
    given = case.inputs & asked or (case.arguments if case.arguments <= asked else frozenset())
    gives = case.expected & then
    return bool(given and gives) and any(map(_is_telling, given | gives))


def _branches(program: ast.AST) -> Iterator[tuple[Iterable[_Key], Sequence[ast.AST]]]:
    """The literals that are asked for, and what is done then, of every branch; a dictionary's entry is one."""
    for node in ast.walk(program):
        if isinstance(node, ast.If):
            yield _asked(node.test), node.body
            yield _asked(node.test, unequal=True), node.orelse
        elif isinstance(node, ast.IfExp):
            yield _asked(node.test), [node.body]
            yield _asked(node.test, unequal=True), [node.orelse]
        elif isinstance(node, ast.Dict):
            entries = zip(node.keys, node.values, strict=True)
            yield from ((_literals(key), [value]) for key, value in entries if key is not None)
        elif isinstance(node, ast.match_case):
            yield _literals(node.pattern), node.body


def _asked(condition: ast.expr, *, unequal: bool = False) -> Iterator[_Key]:
    """The literals that something must be equal to, or be one of, for a condition to hold; or must not be."""
    kinds = (ast.NotEq, ast.NotIn, ast.IsNot) if unequal else (ast.Eq, ast.In, ast.Is)
    for node in ast.walk(condition):
        if not isinstance(node, ast.Compare):
            continue
        sides = [node.left, *node.comparators]
        for place, operator in enumerate(node.ops):
            if isinstance(operator, kinds):
                for side in sides[place : place + 2]:
                    value = _literal(side)
                    if value is not None:
                        yield value
                        if isinstance(operator, (ast.In, ast.NotIn)) and value[0] == "seq":
                            yield from value[1:]


def _literals(*nodes: ast.AST) -> Iterator[_Key]:
    """Every literal below some nodes, and the parts of each."""
    for root in nodes:
        for node in ast.walk(root):
            if isinstance(node, (ast.Constant, ast.UnaryOp, ast.Tuple, ast.List, ast.Set, ast.Dict)):
                value = _literal(node)
                if value is not None:
                    yield value
            elif isinstance(node, ast.MatchSequence):
                parts = [_literal(each.value) for each in node.patterns if isinstance(each, ast.MatchValue)]
                if len(parts) == len(node.patterns) and None not in parts:
                    yield ("seq", *(part for part in parts if part is not None))


def _literal(node: ast.AST) -> _Key | None:
    try:
        return _key(ast.literal_eval(node))
    except (ValueError, TypeError, SyntaxError, RecursionError, MemoryError):
        return None


def _key(value: Any) -> _Key:
    if isinstance(value, (list, tuple)):
        return ("seq", *map(_key, value))
    if isinstance(value, (set, frozenset)):
        return ("set", frozenset(map(_key, value)))
    if isinstance(value, dict):
        return ("dict", frozenset((_key(key), _key(each)) for key, each in value.items()))
    if isinstance(value, (bool, type(None))):
        return ("single", repr(value))
    return ("number", value) if isinstance(value, (int, float, complex)) else ("text", value)


def _is_telling(key: _Key) -> bool:
    """Whether a literal is unlikely to stand in a solution for another reason: no small number or short text."""
    kind, *parts = key
    if kind == "number":
        return bool(abs(parts[0]) > _SMALL)
    if kind == "text":
        return len(parts[0]) > _SMALL or (parts[0].isdecimal() and int(parts[0]) > _SMALL)
    if kind == "seq":
        return len(parts) > _SMALL or any(map(_is_telling, parts))
    return kind in ("set", "dict") and len(parts[0]) > 1
