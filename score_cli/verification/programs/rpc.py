"""The conversation between the judge and the program: tagged JSON over a socket, and objects lent by number.

JSON's own values stand for themselves; every other value is an object with one key, its tag. Decoding builds only
plain builtins and a few standard library values: what arrives as an int is an int, whatever class it had before.

What cannot be copied (a class, a function, an open iterator) is lent: it stays with its owner and crosses as a
number. The borrower holds a `Remote`, whose operations are requests to the owner. While one end waits for an answer
it serves the other's requests, so a test may pass a function and the program may call it.
"""

import array
import builtins
import collections
import datetime
import decimal
import fractions
import itertools
import json
import operator
import os
import types
from collections.abc import Callable, Iterable, Iterator
from typing import Any

# A result this large is no answer to any test, and reading it would cost the judge its memory.
MAXIMUM_BYTES = 32 * 1024 * 1024
# Beyond this size Python refuses decimal conversion; hexadecimal has no such limit.
_PLAIN_INTEGER = 1 << 64
_HEADER_BYTES = 4

Hook = Callable[[Any], Any]


class WireError(Exception):
    """The other side sent something that is not a message."""


class ClosedError(Exception):
    """The other side is gone."""


def _rows(pairs: Iterable[tuple[Any, Any]], encode: Hook) -> list[list[Any]]:
    return [[encode(key), encode(value)] for key, value in pairs]


_NAMED_TYPES: dict[str, Any] = {
    name: value
    for name, value in vars(builtins).items()
    if not name.startswith("_")
    and (isinstance(value, type) or name in ("abs", "len", "max", "min", "sum", "ord", "chr"))
}
_NAMED_TYPES |= {name: getattr(collections, name) for name in ("Counter", "OrderedDict", "defaultdict", "deque")}
_NAMED_TYPES["NoneType"] = type(None)
_TYPE_NAMES = {id(value): name for name, value in _NAMED_TYPES.items()}


def _named_type(name: str) -> Any:
    found = _NAMED_TYPES.get(name)
    if found is None:
        raise WireError(f"unknown type {name!r}")
    return found


class Encoder:
    """Turns values into tagged JSON; `refer` gives a tagged reference for what cannot be copied."""

    def __init__(self, refer: Hook) -> None:
        """`refer` may raise TypeError where nothing but copies may cross."""
        self._refer = refer
        encode = self.encode
        self._by_type: dict[type, Hook] = {
            type(None): lambda value: value,
            bool: lambda value: value,
            str: lambda value: value,
            float: lambda value: value,
            int: lambda value: value if -_PLAIN_INTEGER < value < _PLAIN_INTEGER else {"int": hex(value)},
            list: lambda value: [encode(item) for item in value],
            tuple: lambda value: {"tuple": [encode(item) for item in value]},
            dict: lambda value: {"dict": _rows(value.items(), encode)},
            set: lambda value: {"set": [encode(item) for item in value]},
            frozenset: lambda value: {"frozenset": [encode(item) for item in value]},
            bytes: lambda value: {"bytes": value.hex()},
            bytearray: lambda value: {"bytearray": value.hex()},
            complex: lambda value: {"complex": [value.real, value.imag]},
            range: lambda value: {"range": [encode(value.start), encode(value.stop), encode(value.step)]},
            slice: lambda value: {"slice": [encode(value.start), encode(value.stop), encode(value.step)]},
            type(Ellipsis): lambda value: {"constant": "Ellipsis"},
            type(NotImplemented): lambda value: {"constant": "NotImplemented"},
            type({}.keys()): lambda value: {"keys": [encode(item) for item in value]},
            type({}.values()): lambda value: {"values": [encode(item) for item in value]},
            type({}.items()): lambda value: {"items": _rows(value, encode)},
            collections.Counter: lambda value: {"Counter": _rows(value.items(), encode)},
            collections.OrderedDict: lambda value: {"OrderedDict": _rows(value.items(), encode)},
            collections.defaultdict: self._default_dict,
            collections.deque: lambda value: {"deque": [[encode(item) for item in value], value.maxlen]},
            decimal.Decimal: lambda value: {"Decimal": str(value)},
            fractions.Fraction: lambda value: {"Fraction": [encode(value.numerator), encode(value.denominator)]},
            datetime.date: lambda value: {"date": value.isoformat()},
            datetime.time: lambda value: {"time": value.isoformat()} if value.tzinfo is None else refer(value),
            datetime.datetime: lambda value: {"datetime": value.isoformat()},
            datetime.timedelta: lambda value: {"timedelta": [value.days, value.seconds, value.microseconds]},
            array.array: lambda value: {"array": [value.typecode, value.tolist()]},
        }
        # Most derived first, so that a Counter is not taken for a dict nor True for an int.
        self._by_base: tuple[type, ...] = (
            *(collections.Counter, collections.OrderedDict, collections.defaultdict, collections.deque),
            *(datetime.datetime, datetime.date, datetime.time, datetime.timedelta),
            *(int, float, complex, str, bytes, bytearray, list, tuple, dict, set, frozenset),
            *(decimal.Decimal, fractions.Fraction),
        )

    def encode(self, value: Any) -> Any:
        """The JSON form of a value."""
        encode = self._by_type.get(type(value))
        if encode is not None:
            return encode(value)
        if isinstance(value, type) or id(value) in _TYPE_NAMES:
            name = _TYPE_NAMES.get(id(value))
            return self._refer(value) if name is None else {"type": name}
        for base in self._by_base:
            if isinstance(value, base):
                return self._by_type[base](_plain(base, value))
        return self._refer(value)

    def _default_dict(self, value: Any) -> Any:
        factory = _TYPE_NAMES.get(id(value.default_factory))
        return {"defaultdict": [factory, _rows(value.items(), self.encode)]}


def _plain(base: type, value: Any) -> Any:
    """An instance of a subclass as the base class alone sees it."""
    if base is str:
        return str.__str__(value)
    if base is int:
        return int.__index__(value)
    if base is float:
        return float.__float__(value)
    return value


def _pairs(rows: list[list[Any]]) -> list[tuple[Any, Any]]:
    return [(key, value) for key, value in rows]


def _default_dict(parts: list[Any]) -> Any:
    factory, rows = parts
    return collections.defaultdict(None if factory is None else _named_type(factory), _pairs(rows))


_DECODERS: dict[str, Hook] = {
    "int": lambda value: int(value, 16),
    "tuple": tuple,
    "dict": lambda value: dict(_pairs(value)),
    "set": set,
    "frozenset": frozenset,
    "bytes": bytes.fromhex,
    "bytearray": bytearray.fromhex,
    "complex": lambda value: complex(*value),
    "range": lambda value: range(*value),
    "slice": lambda value: slice(*value),
    "constant": lambda value: {"Ellipsis": Ellipsis, "NotImplemented": NotImplemented}[value],
    "keys": lambda value: dict.fromkeys(value).keys(),
    "values": lambda value: dict(enumerate(value)).values(),
    "items": lambda value: dict(_pairs(value)).items(),
    "Counter": lambda value: collections.Counter(dict(_pairs(value))),
    "OrderedDict": lambda value: collections.OrderedDict(_pairs(value)),
    "defaultdict": _default_dict,
    "deque": lambda value: collections.deque(value[0], value[1]),
    "Decimal": decimal.Decimal,
    "Fraction": lambda value: fractions.Fraction(*value),
    "date": datetime.date.fromisoformat,
    "time": datetime.time.fromisoformat,
    "datetime": datetime.datetime.fromisoformat,
    "timedelta": lambda value: datetime.timedelta(*value),
    "array": lambda value: array.array(value[0], value[1]),
    "type": _named_type,
}


class Channel:
    """Messages over one socket: a length, then a JSON list.

    Args:
        descriptor: the socket, read and written with plain read and write.
        refer: makes a reference of a value that cannot be copied.
        resolve: finds what a reference of the other side stands for, by its tag.
    """

    def __init__(self, descriptor: int, *, refer: Hook, resolve: dict[str, Hook]) -> None:
        self._descriptor = descriptor
        self.encode = Encoder(refer).encode
        self._decoders = _DECODERS | resolve
        # Bound now: the program may replace json's parts later, and would only confuse itself.
        self._dump = json.JSONEncoder(separators=(",", ":"), check_circular=False).encode
        self._load = json.JSONDecoder(object_hook=self._untag).decode

    def _untag(self, tagged: dict[str, Any]) -> Any:
        if len(tagged) != 1:
            raise WireError("an object must have one tag")
        [(tag, value)] = tagged.items()
        decoder = self._decoders.get(tag)
        if decoder is None:
            raise WireError(f"unknown tag {tag!r}")
        return decoder(value)

    def send(self, kind: str, *parts: Any) -> None:
        """Send a message of a kind with its parts.

        Raises:
            ClosedError: nobody reads.
        """
        encode = self.encode
        data = self._dump([kind, *(encode(part) for part in parts)]).encode()
        # One buffer: two writes would wake the reader twice.
        view = memoryview(len(data).to_bytes(_HEADER_BYTES, "little") + data)
        while view:
            try:
                view = view[os.write(self._descriptor, view) :]
            except OSError as error:
                raise ClosedError from error

    def receive(self) -> list[Any]:
        """The next message: its kind, then its parts.

        Raises:
            ClosedError: the other side has ended.
            WireError: what came is not a message.
        """
        size = int.from_bytes(self._read(_HEADER_BYTES), "little")
        if size > MAXIMUM_BYTES:
            raise WireError(f"a message of {size} bytes, at most {MAXIMUM_BYTES} are read")
        data = self._read(size)
        try:
            message = self._load(data.decode())
        except MemoryError:
            raise
        except (ValueError, TypeError, ArithmeticError, LookupError, AttributeError, RecursionError) as error:
            raise WireError(f"not a message: {type(error).__name__}") from error
        if not (isinstance(message, list) and message and isinstance(message[0], str)):
            raise WireError("a message must be a list that starts with its kind")
        return message

    def _read(self, size: int) -> bytes:
        data = b""
        parts = []
        while size:
            try:
                data = os.read(self._descriptor, min(size, 1 << 20))
            except OSError as error:
                raise ClosedError from error
            if not data:
                raise ClosedError
            parts.append(data)
            size -= len(data)
        return data if len(parts) == 1 else b"".join(parts)


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
