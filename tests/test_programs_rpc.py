"""Values that cross between judge and program: equal, of the same type, and plain."""

import array
import collections
import datetime
import decimal
import enum
import fractions
import json
import math
import os
import socket
from typing import Any

import pytest

from score_cli.verification.programs.rpc import Channel, ClosedError, WireError

HANDLE: Any = object()


def no_references(value: Any) -> Any:
    raise TypeError(f"{value!r} cannot be copied")


@pytest.fixture
def ends() -> Any:
    left, right = socket.socketpair()
    with left, right:
        yield (
            left,
            Channel(left.fileno(), refer=no_references, resolve={}),
            Channel(right.fileno(), refer=no_references, resolve={}),
        )


def cross(ends: Any, value: Any) -> Any:
    _, sender, receiver = ends
    sender.send("value", value)
    kind, found = receiver.receive()
    assert kind == "value"
    return found


VALUES = [
    *(None, True, False, 0, -1, 2**64, -(3**500), 0.1, -0.0, math.inf, -math.inf),
    *("", "a\0b", "\ud800", "\U0001f600", b"", b"\xff\0", bytearray(b"x"), 1 + 2j),
    *([], [1, [2, (3, {4})]], (), (1,), ((),), {}, {1: 2, (3, 4): [5], None: {}}, set(), {1, "a"}, frozenset({2})),
    *(
        {"tuple": [1]},
        [{"int": "5"}],
        range(3),
        range(5, 0, -2),
        slice(1, None),
        Ellipsis,
        NotImplemented,
        int,
        ValueError,
    ),
    *(collections.Counter("aab"), collections.OrderedDict(b=1, a=2), collections.defaultdict(list, {1: [2]})),
    *(
        collections.deque([1, 2], maxlen=3),
        decimal.Decimal("1.10"),
        fractions.Fraction(-1, 3),
        array.array("i", [1, 2]),
    ),
    *(datetime.date(2024, 2, 29), datetime.datetime(2024, 1, 1, 12, tzinfo=datetime.UTC), datetime.time(1, 2)),
    *(datetime.timedelta(days=-1, microseconds=3), max, len),
]


@pytest.mark.parametrize("value", VALUES, ids=range(len(VALUES)))  # a set is written in another order elsewhere
def test_a_value_arrives_as_it_was_sent(ends: Any, value: Any) -> None:
    found = cross(ends, value)
    assert type(found) is type(value)
    assert found == value
    assert repr(found) == repr(value) or isinstance(value, (set, frozenset))


def test_a_number_too_long_for_decimal_text_arrives(ends: Any) -> None:
    assert cross(ends, -(1 << 20_000)) == -(1 << 20_000)


def test_not_a_number_arrives(ends: Any) -> None:
    assert math.isnan(cross(ends, math.nan))


class Shout(str):
    def __str__(self) -> str:
        return "no"


class Level(enum.IntEnum):
    HIGH = 3


Point = collections.namedtuple("Point", "x y")


@pytest.mark.parametrize(
    ("value", "plain"),
    [
        (Shout("yes"), "yes"),
        (Level.HIGH, 3),
        (Point(1, 2), (1, 2)),
        (type("L", (list,), {})([1]), [1]),
        (type("D", (dict,), {})(a=1), {"a": 1}),
        (type("F", (float,), {})(1.5), 1.5),
    ],
)
def test_an_instance_of_a_subclass_arrives_plain(ends: Any, value: Any, plain: Any) -> None:
    found = cross(ends, value)
    assert type(found) is type(plain)
    assert found == plain


def test_views_of_a_dict_arrive_as_views(ends: Any) -> None:
    table = {1: 2, 3: 4}
    assert cross(ends, table.keys()) == table.keys()
    assert list(cross(ends, table.values())) == [2, 4]
    assert cross(ends, table.items()) == table.items()


@pytest.mark.parametrize(
    "text",
    [
        "",
        "1",
        "[]",
        "[1]",
        '{"tuple": [1]}',
        '["x", {}]',
        '["x", {"tuple": [1], "list": [2]}]',
        '["x", {"__import__": "os"}]',
        '["x", {"type": "exec"}]',
        '["x", {"set": [[1]]}]',
        '["x", {"dict": [[1]]}]',
        '["x", {"int": "zz"}]',
        '["x", {"Fraction": [1, 0]}]',
        '["x", {"constant": "os"}]',
        '["x", {"yours": 0}]',
        '["x", ' + "1" * 5000 + "]",
        "[" * 100_000,
        "\xff",
    ],
    ids=lambda text: text[:30],
)
def test_what_is_not_a_message_is_refused(ends: Any, text: str) -> None:
    raw, _, receiver = ends
    data = text.encode("latin-1")
    raw.sendall(len(data).to_bytes(4, "little") + data)
    with pytest.raises(WireError):
        receiver.receive()


def test_a_message_that_is_too_long_is_refused_unread(ends: Any) -> None:
    raw, _, receiver = ends
    raw.sendall(b"\xff\xff\xff\xff")
    with pytest.raises(WireError, match="at most"):
        receiver.receive()


def test_half_a_message_is_the_end_of_the_conversation(ends: Any) -> None:
    raw, _, receiver = ends
    raw.sendall((100).to_bytes(4, "little") + json.dumps(["x"]).encode())
    raw.shutdown(socket.SHUT_WR)
    with pytest.raises(ClosedError):
        receiver.receive()


def test_nobody_to_send_to_is_the_end_of_the_conversation() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    with pytest.raises(ClosedError):
        Channel(writer, refer=no_references, resolve={}).send("x")
    os.close(writer)
