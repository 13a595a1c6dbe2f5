"""The forms of tests, and what counts as the same output."""

import json

import pytest

from score_cli.tables.io_pairs import Pair, io_pairs, pair_texts
from score_cli.verification.programs.problem_tests import python_tests, same_output

ONE = {"input": "1 2\n", "output": "3\n"}
BOTH = {"inputs": ["1 2\n", "4 5\n"], "outputs": ["3\n", "9\n"]}


@pytest.mark.parametrize(
    ("tests", "pairs"),
    [
        ([ONE], [("1 2\n", "3\n")]),
        ([ONE, ONE], [("1 2\n", "3\n")] * 2),
        ([[ONE, ONE]], [("1 2\n", "3\n")] * 2),
        ([BOTH], [("1 2\n", "3\n"), ("4 5\n", "9\n")]),
        ([{"input": ["1 2\n"], "output": ["3\n"]}], [("1 2\n", "3\n")]),
        ([{**ONE, "type": "stdin"}], [("1 2\n", "3\n")]),
        ([{"inputs": [["1", "2"]], "outputs": [["3"]]}], [("1\n2", "3")]),
    ],
    ids=["one", "two", "list", "lists", "code-contests", "with-more", "lines"],
)
def test_pairs_in_every_form(tests: list[object], pairs: list[tuple[str, str]]) -> None:
    assert io_pairs([json.dumps(test) for test in tests]) == [Pair(*pair) for pair in pairs]
    texts = [json.dumps({"input": given, "output": expected}) for given, expected in pairs]
    assert pair_texts([json.dumps(test) for test in tests]) == texts
    assert len(tests) > 1 or pair_texts(tests[0]) == pair_texts(json.dumps(tests[0])) == texts


@pytest.mark.parametrize(
    "test",
    [
        "assert add(1, 2) == 3",
        "[1, 2]",
        "{}",
        "[]",
        "{'input': '1', 'output': '2'}",
        '{"inputs": ["1"], "outputs": []}',
        '{"inputs": ["1"], "outputs": [1]}',
        '{"input": 1, "output": 2}',
        '{"question": "a"}',
        "[" * 100_000,
    ],
)
def test_what_holds_no_pairs(test: str) -> None:
    assert io_pairs([test]) is None
    assert pair_texts(test) is None
    assert io_pairs([json.dumps(ONE), test]) is None


@pytest.mark.parametrize(
    ("tests", "expected"),
    [
        (["assert f(1) == 2"], ["assert f(1) == 2"]),
        (["['assert f(1) == 2', 'assert f(2) == 3']"], ["assert f(1) == 2", "assert f(2) == 3"]),
        (['["assert f(1) == 2"]', "assert f(3) == 4"], ["assert f(1) == 2", "assert f(3) == 4"]),
        (["[f(1), f(2)]"], ["[f(1), f(2)]"]),
        (["[]"], ["[]"]),
        (["[x for x in f(3)]"], ["[x for x in f(3)]"]),
    ],
)
def test_a_list_written_in_a_string_is_taken_apart(tests: list[str], expected: list[str]) -> None:
    assert python_tests(tests) == expected


@pytest.mark.parametrize(
    ("printed", "expected"),
    [
        ("3\n", "3"),
        ("3", "3\n"),
        ("1 2  3 \n\n", "1 2 3"),
        ("1\n2\n3", "1 2 3"),
        ("3.0", "3"),
        ("0.3333333", "0.33333333333"),
        ("1000000.4", "1000000.0"),
        ("1e3", "1000"),
        ("YES", "YES"),
        ("", ""),
        ("12345678901234567890123", "12345678901234567890123.0"),
    ],
)
def test_the_same_output(printed: str, expected: str) -> None:
    assert same_output(printed, expected)


@pytest.mark.parametrize(
    ("printed", "expected"),
    [
        ("", "3"),
        ("4", "3"),
        ("3 3", "3"),
        ("3", "3 3"),
        ("yes", "YES"),
        ("0.333", "0.33333333333"),
        ("12345678901234567890124", "12345678901234567890123"),
        ("1000001", "1000000"),
        ("3.0000001", "3"),
        ("nan", "3.0"),
        ("1_000", "1000"),
        ("2 1", "1 2"),
        ("1e99999", "1.0"),
    ],
)
def test_another_output(printed: str, expected: str) -> None:
    assert not same_output(printed, expected)
