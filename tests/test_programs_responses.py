"""The shapes that real responses come in: each kind is one table, of responses whose program is known."""

import pytest

from score_cli.verification.programs.extraction import extract_program

GOOD = "def add(a, b):\n    return a + b\n"
WRONG = "def add(a, b):\n    return a - b\n"
PROMPT = 'def add(a: int, b: int) -> int:\n    """Add."""\n'
BODY = "    return a + b\n"
FENCED = f"```python\n{GOOD}```"
STOPS = [
    "<|endoftext|>",
    "</s>",
    "<|im_end|>",
    "<|eot_id|>",
    "<eos>",
    "<end_of_turn>",
    "<｜end▁of▁sentence｜>",
    "<|EOT|>",
]


def extract(response: str, prompt: str | None = None) -> str | None:
    return extract_program(response, wanted=frozenset({"add"}), prompt=prompt)


def adds(response: str, prompt: str | None = None) -> bool:
    program = extract(response, prompt)
    assert program is not None, "no program was found"
    space: dict[str, object] = {}
    exec(program, space)
    return space["add"](1, 2) == 3  # type: ignore[operator]


@pytest.mark.parametrize("stop", STOPS)
@pytest.mark.parametrize(
    "shape",
    [
        f"{GOOD.rstrip()}@",
        f"{GOOD}@",
        f"{GOOD}@@\n",
        f"{FENCED}@",
        f"{FENCED}\n@",
        f"{GOOD}@\nuser\nAnd now subtract.\n@assistant\n{WRONG}",
        f"{FENCED}\n@{WRONG}",
        f"@\n{GOOD}@",
    ],
)
def test_a_stop_token_left_in_the_text_ends_it(shape: str, stop: str) -> None:
    assert adds(shape.replace("@", stop))
    assert adds(BODY + shape.replace("@", stop).partition(GOOD.strip())[2].partition("```")[0], PROMPT)


@pytest.mark.parametrize(
    "code",
    [
        'def add(a, b):\n    end = "<|endoftext|>"\n    return a + b\n',
        "def add(a, b):\n    text = 'x</s>'\n    return a + b\n",
        'def add(a, b):\n    """Strip <s>\n    and </s>\n    tags."""\n    return a + b\n',
        "def add(a, b):\n    parts = ['<think>', '</think>']\n    return a + b\n",
    ],
)
def test_a_stop_token_in_a_string_of_the_program_stays(code: str) -> None:
    assert extract(code) == code
    assert extract(f"```python\n{code}```") == code


@pytest.mark.parametrize(
    "response",
    [
        f"{GOOD}```",
        f"{GOOD}```\n\nThis adds two numbers.",
        f"{GOOD}```\nUse it so:\n```python\nprint(add(1, 2))\n```",
        f"Sure:\n\n{GOOD}```\n",
        f"```python\n{GOOD.rstrip()}```",
        f"```python\n{GOOD.rstrip()}```\nThat is all.",
        f"~~~python\n{GOOD}~~~",
        f"````python\n{GOOD}````",
        f"````\n{GOOD}````\n",
        f"````markdown\n{FENCED}\n````",
        f"```markdown\n{FENCED}\n```",
        f"``````py\n{GOOD}``````",
        f"Here is the code: ```python\n{GOOD}```",
        "```python def add(a, b): return a + b```",
        "```def add(a, b): return a + b```",
        f"```python title=solution.py\n{GOOD}```",
        f"```Python 3\n{GOOD}```",
        f"```{{.python}}\n{GOOD}```",
        f"```ipython\n{GOOD}```",
        f"```code\n{GOOD}```",
        f"``` python\n{GOOD}``` \n",
        f"```python\r\n{GOOD}```",
        f"```python\n{GOOD}``` This function adds.",
        f'<pre><code class="language-python">\n{GOOD}</code></pre>',
        f"<pre>\n{GOOD}</pre>",
        f"<answer>\n{FENCED}\n</answer>",
        f"<answer>\n{GOOD}</answer>",
        f"python\n{GOOD}```",
        f"\nPython\n{GOOD}```\nThat is all.",
        f"```Python\n{GOOD}```",
        f"```python\n\n\n{GOOD}\n\n```",
        f"Answer:\n{GOOD}",
        f"### Solution\n{GOOD}\n### Explanation\nIt adds.",
    ],
)
def test_fences_of_every_kind(response: str) -> None:
    assert adds(response)


@pytest.mark.parametrize(
    "response",
    [
        f"{BODY}```",
        f"{BODY}```\n\nThis adds.",
        f"{BODY.rstrip()}```",
        f"```python\n{BODY}```",
        f"```\n{BODY}```",
        "return a + b",
        "total = a + b\n    return total",
        "return a + b\n```\n",
        f"{BODY}\n\ndef other(x):\n    return (x",
        f"{BODY}\n\nif __name__ == '__main__':\n    print(add(1,",
        f"{BODY}\n# Test\nassert add(1, 2) == 3\n",
    ],
)
def test_a_prompt_continued_in_every_way(response: str) -> None:
    assert adds(response, PROMPT)


@pytest.mark.parametrize("fence", ["```", "```python", "~~~"])
@pytest.mark.parametrize("quotes", ['"""', "'''"])
def test_a_fence_in_a_docstring_closes_nothing(fence: str, quotes: str) -> None:
    inner = f"    {fence}\n    add(1, 2)\n    {fence[:3]}\n"
    code = f"def add(a, b):\n    {quotes}Add.\n\n{inner}    {quotes}\n    return a + b\n"
    assert extract(f"```python\n{code}```\nSo it is.") == code
    assert extract(f"```python\n{code}```\nUse:\n```python\nadd(1, 2)\n```") == code


def indented(text: str, by: str) -> str:
    return "".join(f"{by}{line}" for line in text.splitlines(keepends=True))


@pytest.mark.parametrize(
    "response",
    [
        f"1. Write it:\n\n{indented(FENCED, '   ')}\n\n2. Done.",
        f"- {FENCED.replace(chr(10), chr(10) + '  ')}\n",
        f"10) {FENCED.replace(chr(10), chr(10) + '    ')}\n",
        f"* The code\n\t```python\n{indented(GOOD, chr(9))}\t```\n",
        f"> {FENCED.replace(chr(10), chr(10) + '> ')}\n",
        f"```python\n{indented(GOOD, '    ')}```",
    ],
)
def test_code_in_a_list_or_a_quotation(response: str) -> None:
    assert adds(response)


HELPED = "def add(a, b):\n    return helper(a, b)\n"
HELPER = "def helper(a, b):\n    return sum_of([a, b])\n"
IMPORT = "from math import fsum as sum_of\n"


@pytest.mark.parametrize(
    "blocks",
    [
        [IMPORT + HELPER, HELPED],
        [IMPORT, HELPER, HELPED],
        [IMPORT, HELPED, HELPER],
        [IMPORT, HELPER, HELPED, "print(add(1, 2))\n"],
        ["def helper(a, b):\n    return 0\n", IMPORT, HELPER, HELPED],
        ["sum_of = sum\n", HELPER, HELPED],
    ],
)
def test_what_a_block_needs_is_taken_from_other_blocks(blocks: list[str]) -> None:
    assert adds("\nand\n".join(f"```python\n{block}```" for block in blocks))


def test_a_block_that_nobody_needs_is_left_out() -> None:
    blocks = ["import no_such_module\n", WRONG, "print(undefined)\n", GOOD]
    assert extract("\n".join(f"```python\n{block}```" for block in blocks)) == GOOD


NEXT = "You are an expert Python programmer, and here is your task: Subtract.\n\nassert sub(2, 1) == 1\n[BEGIN]\n"


@pytest.mark.parametrize(
    "response",
    [
        f"[BEGIN]\n{GOOD}[DONE]",
        f"{GOOD}[DONE]",
        f"{GOOD.rstrip()} [DONE]",
        f"{GOOD}[DONE]\n\n{NEXT}def sub(a, b):\n    return a - b\n[DONE]\n",
        f"{GOOD}[DONE]\n\n{NEXT}{WRONG}[DONE]\n",
        f"{GOOD}[DONE]\n\n{NEXT}def sub(a, b",
        f"{GOOD}\n{NEXT}def sub(a, b):\n    return a - b\n",
        f"[BEGIN]\n{GOOD}[DONE]\n\n{NEXT}{WRONG}[DONE]",
        f"[BEGIN]\n{FENCED}\n[DONE]\n[BEGIN]\n{WRONG}[DONE]",
        f"```python\n[BEGIN]\n{GOOD}[DONE]\n```",
        f"{FENCED}\nThe code may stand after [BEGIN].",
        f"The code stands between [BEGIN] and [DONE]\n{FENCED}",
        f"I leave out [BEGIN] and [DONE].\n{GOOD}",
    ],
)
def test_marks_of_the_few_shot_prompt_and_a_base_model_that_runs_on(response: str) -> None:
    assert adds(response)


@pytest.mark.parametrize(
    "response",
    [
        f"<think>\n```python\n{WRONG}```\n</think>\n{GOOD}",
        f"<think>{WRONG}</think>{GOOD}",
        f"First I think.\n```python\n{WRONG}```\n</think>\n\n{FENCED}",
        f"{FENCED}\n<think>\n```python\n{WRONG}```",
        f"<thinking>\n{WRONG}</thinking>\n{FENCED}",
        f"<|begin_of_thought|>\n{WRONG}<|end_of_thought|>\n<|begin_of_solution|>\n{FENCED}\n<|end_of_solution|>",
        f"<|channel|>analysis<|message|>{WRONG}<|end|><|start|>assistant<|channel|>final<|message|>{FENCED}<|return|>",
    ],
)
def test_what_is_thought_is_not_answered(response: str) -> None:
    assert adds(response)


@pytest.mark.parametrize(
    "response",
    [
        f"<think>\n{FENCED}\n</think>\nI could not solve it.",
        f"<think>\n{FENCED}\n and so",
        f"{FENCED}\n</think>\nSorry.",
        f"<think>{GOOD}</think>",
    ],
)
def test_a_program_that_was_only_thought_is_none(response: str) -> None:
    assert extract(response) is None
    assert extract(response, PROMPT) is None


def script(response: str) -> str | None:
    return extract_program(response, wanted=frozenset(), prompt=None)


SCRIPT = "n = int(input())\nprint(n + 1)\n"


@pytest.mark.parametrize(
    "response",
    [
        f"```python\n{SCRIPT}```",
        SCRIPT,
        f"```python\n{SCRIPT}```\nFor input\n```\n3\n```\nit prints\n```\n4\n```",
        f"```python\n{SCRIPT}```\nNote that `print` ends the line:\n```python\nprint(1)\n```",
        f"```python\n{SCRIPT}```\nRun it:\n```bash\npython add.py < in.txt\n```",
        f"```python\nprint(input())\n```\nNo, better:\n```python\n{SCRIPT}```",
    ],
)
def test_a_script_is_the_last_block_that_reads_its_input(response: str) -> None:
    assert script(response) == SCRIPT


def test_a_script_is_put_together_from_its_blocks() -> None:
    blocks = ["import sys\n", "def solve():\n    print(int(sys.stdin.read()) + 1)\n", "solve()\n"]
    assert script("\n".join(f"```python\n{block}```" for block in blocks)) == "\n".join(blocks)


def test_a_script_of_one_expression_is_a_program_and_prose_is_none() -> None:
    assert script("print(sum(map(int, input().split())))") == "print(sum(map(int, input().split())))"
    assert script("I do not know.") is None
    assert script("```\n3\n```") is None
