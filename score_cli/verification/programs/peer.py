"""One end of the conversation between the judge and the program: each can act on what the other has lent it.

An object that cannot be copied is lent: it stays with its owner and crosses as a number. The borrower holds a
`Remote`, whose operations are requests to the owner. While one end waits for an answer it serves the other's requests,
so a test may pass a function and the program may call it.
"""

import builtins
import itertools
import operator
import types
from collections.abc import Callable, Iterator
from typing import Any

from score_cli.verification.programs.wire import Channel

CALLABLE, ITERATOR, OBJECT = "callable", "iterator", "object"

# An iterator that a test passes is read out in advance, up to this many items.
_PASSED_ITEMS = 100_000


class ProgramExit(BaseException):
    """The other side raised something that ends a program, such as SystemExit."""


class Remote:
    """An object of the other side. Equal only to itself: the other side has no say in comparisons.

    For the same reason `in` walks through it and compares here, and its methods can be called only where
    the peer reads attributes: `result.startswith(...)` must not be answered by whoever made the result.
    """

    def __init__(self, peer: "Peer", number: int, truth: bool) -> None:
        object.__setattr__(self, "_remote", (peer, number, truth))

    def _do(self, operation: str, *arguments: Any, **keywords: Any) -> Any:
        peer, number, _ = self._remote
        return peer.ask(number, operation, arguments, keywords)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or not self._remote[0].reads_attributes:
            raise AttributeError(name)
        return self._do("getattr", name)

    def __setattr__(self, name: str, value: Any) -> None:
        self._do("setattr", name, value)

    def __bool__(self) -> bool:
        return bool(self._remote[2])

    def __len__(self) -> Any:
        return self._do("len")

    def __iter__(self) -> Any:
        return self._do("iter")

    def __getitem__(self, key: Any) -> Any:
        return self._do("getitem", key)

    def __setitem__(self, key: Any, value: Any) -> None:
        self._do("setitem", key, value)

    def __str__(self) -> str:
        return str(self._do("str"))


class RemoteCallable(Remote):
    """A function or class of the other side."""

    def __call__(self, /, *arguments: Any, **keywords: Any) -> Any:
        """Call it there."""
        return self._do("call", *arguments, **keywords)


class RemoteIterator(Remote):
    """A generator or another iterator of the other side, read one item at a time: it may have no end."""

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        return self._do("next")


_REMOTES: dict[str, type[Remote]] = {CALLABLE: RemoteCallable, ITERATOR: RemoteIterator, OBJECT: Remote}

ALL_OPERATIONS: dict[str, Callable[..., Any]] = {
    "call": lambda target, *arguments, **keywords: target(*arguments, **keywords),
    "getattr": getattr,
    "setattr": setattr,
    "len": len,
    "iter": iter,
    "next": next,
    "getitem": operator.getitem,
    "setitem": operator.setitem,
    "str": str,
}


class Peer:
    """One end of the conversation.

    Args:
        descriptor: the socket to the other end.
        operations: what the other end may do with objects lent to it.
        lends: whether any object may be lent, or functions alone.
    """

    # Whether attributes of borrowed objects can be read, methods among them.
    reads_attributes = True

    def __init__(self, descriptor: int, *, operations: dict[str, Callable[..., Any]], lends: bool) -> None:
        self._lent: list[Any] = []
        self._numbers: dict[int, int] = {}
        self._borrowed: dict[int, Remote] = {}
        self._operations = operations
        self._lends = lends
        resolve: dict[str, Callable[[Any], Any]] = {"mine": self._borrow, "yours": self._find, "iterator": iter}
        self._channel = Channel(descriptor, refer=self._refer, resolve=resolve)

    def lend(self, value: Any) -> int:
        """The number by which the other end may refer to an object; the same object keeps its number."""
        number = self._numbers.get(id(value))
        if number is None:
            number = self._numbers[id(value)] = len(self._lent)
            self._lent.append(value)
        return number

    def ask(self, number: int, operation: str, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> Any:
        """Have the other end do something with an object of its own, and serve it until it answers.

        Raises:
            Exception: whatever the operation raised there, by the name of the nearest builtin exception.
            ProgramExit: it raised SystemExit or the like.
            ClosedError, WireError: there is no other end any more, or it does not speak the language.
        """
        self._channel.send("do", number, operation, list(arguments), keywords)
        while True:
            kind, *parts = self._channel.receive()
            if kind == "return":
                return parts[0] if parts else None
            if kind == "raise":
                error = _rebuild(*parts)
                if isinstance(error, StopIteration) and operation != "next":
                    # It would silently end a loop of the tests that makes this call, as a generator's return does.
                    error = RuntimeError("the program raised StopIteration")
                raise error
            self._answer(kind, parts)

    def serve(self) -> None:
        """Answer requests until the other end is gone (ClosedError)."""
        while True:
            kind, *parts = self._channel.receive()
            self._answer(kind, parts)

    def _answer(self, kind: str, parts: list[Any]) -> None:
        try:
            if kind != "do":
                raise ValueError(f"unknown request {kind!r}")
            number, operation, arguments, keywords = parts
            self._channel.send("return", self._operations[operation](self._find(number), *arguments, **keywords))
        # The worker's boundary: whatever the program raises is told, not suffered.
        except BaseException as error:
            self._channel.send("raise", *_describe(error))

    def _find(self, number: int) -> Any:
        if type(number) is not int or not 0 <= number < len(self._lent):
            raise ValueError("no such object was lent")
        return self._lent[number]

    def _refer(self, value: Any) -> Any:
        if isinstance(value, Remote):
            return {"yours": value._remote[1]}
        iterator = isinstance(value, Iterator)
        if iterator and not self._lends:
            encode = self._channel.encode
            return {"iterator": [encode(item) for item in itertools.islice(value, _PASSED_ITEMS)]}
        function = callable(value) and not isinstance(value, types.ModuleType)
        if not (function or self._lends):
            raise TypeError(f"{type(value).__name__} cannot be passed to the program")
        kind = ITERATOR if iterator else CALLABLE if function else OBJECT
        try:
            truth = bool(value)
        except Exception:  # the program's own code, and an object is true unless it says otherwise
            truth = True
        return {"mine": [self.lend(value), kind, truth]}

    def _borrow(self, reference: list[Any]) -> Remote:
        number, kind, truth = reference
        if type(number) is not int:
            raise ValueError("an object is lent by its number")
        remote = self._borrowed.get(number)
        if remote is None:
            remote = self._borrowed[number] = _REMOTES[kind](self, number, bool(truth))
        return remote


def _describe(error: BaseException) -> tuple[str, list[Any]]:
    """The nearest builtin class of an exception, and those of its arguments that are plain."""
    for base in type(error).__mro__:
        if getattr(builtins, base.__name__, None) is base:
            plain = [value for value in error.args if type(value) in (str, int, float, bool, type(None))]
            return base.__name__, plain
    return "Exception", []


def _rebuild(name: str, arguments: list[Any]) -> BaseException:
    kind = getattr(builtins, name, None)
    if not (isinstance(kind, type) and issubclass(kind, BaseException)):
        return RuntimeError("the program raised something unknown")
    if not issubclass(kind, Exception):
        return ProgramExit(name)
    try:
        return kind(*arguments)
    except TypeError:
        return RuntimeError(f"the program raised {name}")
