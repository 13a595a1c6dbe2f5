"""Which names tests take from the program, and which the judge provides itself."""

import ast
import builtins
import sys
from typing import NamedTuple

_BUILTINS = frozenset(name for name in vars(builtins) if not name.startswith("_"))
# Importing these shows a joke or opens a browser.
_NEVER_IMPORTED = frozenset({"antigravity", "this"})
STANDARD_MODULES = frozenset(sys.stdlib_module_names) - _NEVER_IMPORTED


class Names(NamedTuple):
    """What tests refer to without defining it."""

    program: frozenset[str]
    modules: frozenset[str]


def _bound(node: ast.AST) -> list[str]:
    """The names a node defines."""
    if isinstance(node, ast.Name) and not isinstance(node.ctx, ast.Load):
        return [node.id]
    if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
        return [node.name]
    if isinstance(node, ast.arg):
        return [node.arg]
    if isinstance(node, (ast.Import, ast.ImportFrom)):
        return [(alias.asname or alias.name).split(".")[0] for alias in node.names]
    if isinstance(node, ast.ExceptHandler) and node.name:
        return [node.name]
    return []


def defines_any(tree: ast.Module, wanted: frozenset[str]) -> bool:
    """Whether code defines one of the names, in any scope."""
    # Nearly always a function at the margin; the whole tree is walked only where it is not.
    if any(getattr(node, "name", None) in wanted for node in tree.body):
        return True
    return any(name in wanted for node in ast.walk(tree) for name in _bound(node))


def top_level_names(tree: ast.Module) -> frozenset[str]:
    """What a module defines for others to use."""
    # A statement such as `if` or `for` binds in its own body too; a function or a class does not.
    found: set[str] = set()
    waiting: list[ast.AST] = list(tree.body)
    while waiting:
        node = waiting.pop()
        found.update(_bound(node))
        if not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Lambda)):
            waiting += ast.iter_child_nodes(node)
    return frozenset(found)


def free_names(tree: ast.AST) -> frozenset[str]:
    """The names that code uses and defines nowhere, builtins aside."""
    used: set[str] = set()
    bound: set[str] = set()
    for node in ast.walk(tree):
        bound.update(_bound(node))
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load):
            used.add(node.id)
    return frozenset(used - bound - _BUILTINS)


def names_of_tests(tests: ast.AST, entry_point: str | None) -> Names:
    """Sort the free names of tests into the program's and the standard library's.

    A builtin is never taken from the program: it could make `abs` or `sorted` say what the tests want to hear.
    The exception is a program whose task is to define one (`assert sum(10, 15) == 6`): its tests name nothing else.
    A module the tests use without importing it (`math.isclose(...)`) is the judge's own for the same reason.
    """
    bound: set[str] = set()
    used: set[str] = set()
    called: set[str] = set()
    through: set[str] = set()
    for node in ast.walk(tests):
        bound.update(_bound(node))
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load):
            used.add(node.id)
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            called.add(node.func.id)
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            through.add(node.value.id)
    free = used - bound
    modules = (free & through & STANDARD_MODULES) - called
    program = free - _BUILTINS - modules
    if entry_point:
        program |= {entry_point}
    elif not program:
        program = called & _BUILTINS - bound
    return Names(frozenset(program), frozenset(modules))
