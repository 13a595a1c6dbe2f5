"""Which part of a response is its program."""

import pytest

from score_cli.verification.programs.extraction import (
    MAXIMUM_CHARACTERS,
    MAXIMUM_RESPONSE,
    extract_program,
    prelude_of,
)

PROMPT = (
    'from typing import List\n\n\ndef helper(x):\n    return x\n\n\ndef add(a: int, b: int) -> int:\n    """Add."""\n'
)
GOOD = "def add(a, b):\n    return a + b\n"


def extract(response: str, *, prompt: str | None = None) -> str | None:
    return extract_program(response, wanted=frozenset({"add"}), prompt=prompt)


@pytest.mark.parametrize(
    "response",
    [
        f"```python\n{GOOD}```",
        f"```\n{GOOD}```",
        f"Here:\n\n```py\n{GOOD}```\nThat is all.",
        f"~~~python\n{GOOD}~~~",
        f"First try:\n```python\ndef add(a, b):\n    return a\n```\nBetter:\n```python\n{GOOD}```",
        f"```python\n{GOOD}```\nUse it so:\n```python\nprint(add(1, 2))\n```",
        f"```python\n{GOOD}```\nand in a shell\n```bash\npython add.py\n```",
        f"```python\n{GOOD}```\n```python\ndef broken(:\n```",
        f"```python\n{GOOD}",
        f"[BEGIN]\n{GOOD}[DONE]",
        f"{GOOD}[DONE]\nmore talk [BEGIN",
        f"[BEGIN]\n{GOOD}[DONE]\nAnd now the next.\n[BEGIN]\ndef add(a, b):\n    return 0\n[DONE]\n",
        f"[BEGIN]\n```python\n{GOOD}```\n[DONE]",
        GOOD,
        f"Sure, the function is\n\n{GOOD}\nIt adds.\n",
        GOOD.replace("\n", "\r\n"),
    ],
)
def test_the_program_is_found(response: str) -> None:
    found = extract(response)
    assert found is not None
    space: dict[str, object] = {}
    exec(found, space)
    assert space["add"](1, 2) == 3  # type: ignore[operator]


@pytest.mark.parametrize(
    "response",
    [
        "    return a + b\n",
        "\n    return a + b",
        "    total = a + b\n    return total\n\n\ndef other():\n    pass\n",
        "    return a + b\n\nI hope this helps!\n",
        "```python\n    return a + b\n```",
        GOOD,
        f"```python\n{GOOD}```",
    ],
)
def test_a_prompt_can_be_continued_or_answered_whole(response: str) -> None:
    found = extract(response, prompt=PROMPT)
    assert found is not None
    space: dict[str, object] = {}
    exec(found, space)
    assert space["add"](1, 2) == 3  # type: ignore[operator]


@pytest.mark.parametrize("response", ["", "   \n", "I do not know.", "Sorry", "42", "```\n```", "[BEGIN][DONE]"])
def test_a_response_without_code_has_no_program(response: str) -> None:
    assert extract(response) is None
    assert extract(response, prompt=PROMPT) is None


@pytest.mark.parametrize(
    "response",
    [
        "```python\ndef add(a, b) return\n```",
        f"```python\n{GOOD}\nassert add(1, 2) ==\n```",
        f"```python\n{GOOD}Here is how it works.\n```",
        f"```python\n{GOOD}",
        f"```python\n{GOOD}```\nBetter:\n```python\ndef add(a, b) return\n```",
        "def add(a, b) return",
    ],
    ids=["broken", "broken-tail", "prose-inside", "cut-off", "broken-correction", "broken-bare"],
)
def test_code_that_does_not_parse_as_it_stands_is_no_program(response: str) -> None:
    cut = response.endswith("return a + b\n")
    assert extract(response[:-3] if cut else response) is None


def test_a_program_longer_than_the_cap_is_not_judged_by_its_tail() -> None:
    padding = "x = 1\n" * (MAXIMUM_CHARACTERS // 6)
    for long in (f"{padding}{GOOD}", f"```python\n{padding}{GOOD}```", f"[BEGIN]\n{padding}{GOOD}[DONE]"):
        assert extract(long) is None
    assert extract(f"{'Let me think. ' * 10_000}\n```python\n{GOOD}```") == GOOD
    assert extract(f"{'.' * MAXIMUM_RESPONSE}\n```python\n{GOOD}```") is None


@pytest.mark.parametrize(
    "response", ["\0", "\ud800", "(" * 100_000, "```python\n" * 10_000, "-" * 100_000, "def f():\n" * 9_000]
)
def test_no_response_makes_the_extraction_fail(response: str) -> None:
    extract(response)
    extract(response, prompt=PROMPT)


def test_the_prelude_keeps_imports_and_helpers_and_drops_the_function_asked_for() -> None:
    prelude = prelude_of(PROMPT, "add")
    assert "import List" in prelude and "def helper" in prelude and "def add" not in prelude


def test_a_question_in_prose_has_no_prelude() -> None:
    assert prelude_of("Write a function that adds.", "add") == ""
    assert prelude_of("x = 1\n", "add") == ""
