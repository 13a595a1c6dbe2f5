"""The words put to the model: the paper's own, MBPP's canonical prompt, and a user's overrides."""

from dataclasses import replace

import pytest

from score_cli.errors import UserError
from score_cli.tables.records import Message, Problem
from score_cli.tasks.prompts import Shot, mbpp_question, override, prompts_of


def problem(question: str, task: str) -> Problem:
    return Problem(problem_id="p", task=task, question=question, source="test")


def test_math_is_asked_in_the_words_of_the_paper() -> None:
    asked = prompts_of("math").first_turn(problem("What is $1+1$?", "math"))
    assert asked == (
        "You are a math expert. When you respond, respond only with the Solution of the final Problem, thinking step "
        "by step. At the end of the Solution, when you give your final answer, write it in the form "
        '"Final Answer: The final answer is $answer$. I hope it is correct."\n\nProblem: What is $1+1$?'
    )


def test_math_is_corrected_in_the_words_of_the_paper() -> None:
    assert prompts_of("math").correction == (
        "There might be an error in the solution above because of lack of understanding of the question. Please "
        "correct the error, if any, and rewrite the solution. Only output the final solution! At the end of the "
        "Solution, when you give your final answer, write it in the form "
        '"Final Answer: The final answer is $answer$. I hope it is correct."'
    )


@pytest.mark.parametrize("task", ["mbpp", "humaneval"])
def test_code_is_corrected_in_the_words_of_the_paper(task: str) -> None:
    assert prompts_of(task).correction == (
        "# There might be an error in the code above because of lack of understanding of the question. Please correct "
        "the error, if any, and rewrite the solution. Only output the final correct Python program!"
    )


@pytest.mark.parametrize("task", ["mbpp", "humaneval"])
def test_a_program_is_asked_for_by_its_question_alone(task: str) -> None:
    question = 'def f(x):\n    """{question} stays where it is."""\n'
    assert prompts_of(task).first_turn(problem(question, task)) == question


def test_mbpp_prompt_shows_solved_shots_and_ends_open() -> None:
    shot = Shot("Add one.", ["assert f(1) == 2", "assert f(2) == 3"], "def f(x):\n    return x + 1")
    assert mbpp_question(Shot("Halve it.", ["assert g(4) == 2"], ""), [shot]) == (
        "You are an expert Python programmer, and here is your task: Add one. Your code should pass these tests:\n\n"
        "assert f(1) == 2\nassert f(2) == 3\n[BEGIN]\ndef f(x):\n    return x + 1\n[DONE]\n\n"
        "You are an expert Python programmer, and here is your task: Halve it. Your code should pass these tests:\n\n"
        "assert g(4) == 2\n[BEGIN]\n"
    )


def test_a_chat_is_asked_as_it_stands_and_a_text_in_the_words_of_its_task() -> None:
    asked = problem("1+1?", "math")
    assert prompts_of("math").turns(asked) == (prompts_of("math").first_turn(asked), [])
    brief = Message(role="system", content="Be brief.")
    chat = replace(asked, messages=[brief, Message(role="user", content="1+1?")])
    assert prompts_of("math").turns(chat) == ("1+1?", [brief])


def test_override_replaces_only_the_named_fields() -> None:
    changed = override(prompts_of("math"), {"first": "Solve: {question}", "system": "Be brief."})
    assert changed.first_turn(problem("1+1?", "math")) == "Solve: 1+1?"
    assert changed.system == "Be brief."
    assert changed.correction == prompts_of("math").correction


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"corection": "Again."},
            "prompts have no field corection: did you mean correction?",
        ),
        ({"correction": 3}, "the prompts' field correction is 3, expected text in quotes"),
        (
            {"first": "Solve it."},
            "the prompts' field first lacks {question}, which the problem's text replaces: add it",
        ),
    ],
)
def test_a_wrong_override_is_one_line(changes: dict[str, object], message: str) -> None:
    with pytest.raises(UserError) as caught:
        override(prompts_of("math"), changes)
    assert str(caught.value) == message


def test_an_unknown_task_names_the_known_ones() -> None:
    with pytest.raises(UserError, match=r"no task is named maths: .* division, humaneval, math, mbpp"):
        prompts_of("maths")
