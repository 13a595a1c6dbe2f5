"""Where the final answer of a response stands."""

import time

import pytest

from score_cli.tasks.latex_boxes import last_boxed
from score_cli.verification.math.extract import extract_answer
from score_cli.verification.math.tokens import MAX_ANSWER_CHARS

FOUND = [
    ("Final Answer: The final answer is $4$. I hope it is correct.", "$4$"),
    ("The final answer is 3.5.", "3.5"),
    ("The final answer is: \\[\n\\boxed{5}\n\\]", "5"),
    ("The final answer is $5$ because $x=6$.", "$5$"),
    ("The final answer is either $3$ or $5$. I hope it is correct.", "either $3$ or $5$"),
    ("\\boxed{5}\n\nFinal Answer: The final answer is $7$. I hope it is correct.", "$7$"),
    ("The final answer is $4$. Wait. The final answer is $5$.", "$5$"),
    ("Is the final answer $5$? No, the final answer is $6$.", "$6$"),
    ("First \\boxed{3}, which fails. So \\boxed{5}.", "5"),
    ("\\boxed{\\frac{1}{\\sqrt{2}}}", r"\frac{1}{\sqrt{2}}"),
    ("\\boxed{\\{1,2\\}}", r"\{1,2\}"),
    ("\\boxed{5} as asked for in \\boxed{}.", "5"),
    ("Put it in \\boxed{ like this: \\boxed{5}", "5"),
    ("\\boxed{2} and \\boxed{3}", "2 , 3"),
    ("\\boxed{5} $\\boxed{5}$", "5"),
    ("\\boxed{\\boxed{3}}", "3"),
    ("Final Answer: The volume of $ABC$ is 120. I hope it is correct.", "120"),
    ("So the answer is: 5", "5"),
    ("Therefore, the answer is **5**.", "5"),
    ("Answer: 5", "5"),
    ("#### 42", "42"),
    ("<think>maybe \\boxed{3}</think> The answer is \\boxed{5}.", "5"),
    ("The final answer is $5$. I hope it is correct.<|im_end|>", "$5$"),
    ("The final answer is $5$. I hope it is correct.\n\nProblem:\nAnother?\n\nThe final answer is $4$.", "$5$"),
]
NOT_FOUND = [
    "",
    "I do not know.",
    "We get 5 and then 6.",
    "The value 5 was computed, so we go on",
    "It is not the case that the final answer is $5$.",
    "<think>it is \\boxed{5}",
    "\\boxed{}",
    "\\boxed{" * 1000,
]


@pytest.mark.parametrize(("response", "answer"), FOUND)
def test_the_final_answer_is_found(response, answer):
    assert extract_answer(response) == answer


@pytest.mark.parametrize("response", NOT_FOUND)
def test_no_answer_is_made_up(response):
    assert extract_answer(response) is None


def test_a_long_filler_does_not_hide_the_answer():
    assert extract_answer("a " * 50_000 + "\\boxed{5}") == "5"
    assert extract_answer("\\boxed{5}" + " a" * 50_000) == "5"


def test_an_endless_answer_comes_back_too_long_rather_than_cut_to_an_answer():
    answer = extract_answer("The final answer is $" + "1" * 100_000 + "$. I hope it is correct.")
    assert answer is None or len(answer) > MAX_ANSWER_CHARS


@pytest.mark.parametrize(
    "response",
    [
        "\\boxed{" * 9000 + "}" * 9000,
        "final answer is " * 4000,
        "I hope it is correct." + "\n" * 60_000,
        "the final answer is " + " " * 60_000 + "x",
        "the final answer is " + "\\(" * 30_000,
        "the final answer is " + ". $" * 20_000,
        "\\boxed{5} " * 6000,
        "\\\\( " * 15_000,
        "**" * 30_000,
        "** a" * 15_000,
        "the final answer is " + "so " * 20_000,
        "the final answer is " + "5, which is " * 5_000,
        "the final answer is " + "5 (as seen) " * 5_000,
        "the final answer is the " + "a " * 30_000,
        "answer: " * 8_000,
        "Final Answer:\n" * 4_000,
        "<think>" * 8_000,
        "<b>" * 20_000,
        "<answer>" * 8_000,
        "> " * 30_000,
        "# " * 30_000,
    ],
)
def test_no_response_takes_long_to_read(response):
    begin = time.process_time()
    extract_answer(response)
    last_boxed(response)
    assert time.process_time() - begin < 1


@pytest.mark.parametrize(
    ("response", "answer"),
    [
        ("5", "5"),
        (" $5$\n", "$5$"),
        (r"\frac{1}{2}", r"\frac{1}{2}"),
        ("x = 3", "x = 3"),
        ("5 square meters", "5 square meters"),
        ("Evelyn", "Evelyn"),
        ("The value 5 was found, so we go on with 7", None),
        ("We get\n5", None),
        ("5 " * 300, None),
    ],
)
def test_a_response_that_is_nothing_but_an_answer_is_taken_whole(response, answer):
    assert extract_answer(response) == answer
