"""How a problem is asked and how a correction is asked for, one entry per task.

The words of `math`, `mbpp` and `humaneval` are those of SCoRe (Kumar et al. 2025), App. C. The appendix leaves open how
the problem follows the instruction of MATH: here after a blank line, under the label that the instruction speaks of.
"""

import difflib
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from score_cli.errors import UserError, did_you_mean
from score_cli.tables.records import Message, Problem
from score_cli.tasks import division, stories

QUESTION = "{question}"


class Prompts(NamedTuple):
    """The user's words of a conversation.

    `first` holds `{question}`, which the problem's question replaces; `correction` is said after
    every attempt but the last and never reveals whether the attempt was right.
    """

    first: str
    correction: str
    system: str | None = None

    def first_turn(self, problem: Problem) -> str:
        """The first user message for a problem."""
        # replace, not format: questions and prompts are full of braces.
        return self.first.replace(QUESTION, problem.question)

    def turns(self, problem: Problem) -> tuple[str, list[Message]]:
        """The last user message of a problem's prompt, and the messages before it: a chat is asked as it stands."""
        if problem.messages is None:
            return self.first_turn(problem), []
        return problem.question, problem.messages[:-1]


_FINAL_ANSWER = (
    "At the end of the Solution, when you give your final answer, write it in the form "
    '"Final Answer: The final answer is $answer$. I hope it is correct."'
)
_MATH_FIRST = (
    "You are a math expert. When you respond, respond only with the Solution of the final Problem, "
    f"thinking step by step. {_FINAL_ANSWER}"
)
_MATH_CORRECTION = (
    "There might be an error in the solution above because of lack of understanding of the question. "
    f"Please correct the error, if any, and rewrite the solution. Only output the final solution! {_FINAL_ANSWER}"
)
_CODE_CORRECTION = (
    "# There might be an error in the code above because of lack of understanding of the question. "
    "Please correct the error, if any, and rewrite the solution. Only output the final correct Python program!"
)

_TAGS = "Give your final answer between <answer> and </answer>, and nothing else there."

PROMPTS: dict[str, Prompts] = {
    "division": Prompts(first=QUESTION, correction=division.CORRECTION),
    stories.TASK: Prompts(
        first=f"{QUESTION} Write one calculation a line, then the answer as \\boxed{{answer}}.",
        correction="There might be an error in the solution above. Correct it, if there is one, and write it again.",
    ),
    "math": Prompts(first=f"{_MATH_FIRST}\n\nProblem: {QUESTION}", correction=_MATH_CORRECTION),
    # The question of an MBPP problem is the whole prompt: its shots come from the user's file, see mbpp_question.
    "mbpp": Prompts(first=QUESTION, correction=_CODE_CORRECTION),
    "humaneval": Prompts(first=QUESTION, correction=_CODE_CORRECTION),
    "stdin": Prompts(
        first="You are an expert Python programmer. Write a Python program that solves the problem below. It reads its "
        f"input from standard input and prints the answer to standard output.\n\n{QUESTION}\n\nPut the whole program "
        "into one block of code.",
        correction=_CODE_CORRECTION,
    ),
    "reasoning-gym": Prompts(
        first=f"{QUESTION}\n\nThink step by step. {_TAGS} Where the question shows the form of an answer, keep to it.",
        correction="There might be an error in the solution above because of lack of understanding of the question. "
        f"Please correct the error, if any, and rewrite the solution. Only output the final solution! {_TAGS}",
    ),
}


class Shot(NamedTuple):
    """An MBPP task to be shown or asked.

    Attributes:
        tests: those that the prompt shows.
        code: its solution.
        heads: the first lines of what is to be defined, shown where no test is, which would say what it is called.
    """

    text: str
    tests: Sequence[str]
    code: str
    heads: Sequence[str] = ()


def _mbpp_ask(shot: Shot) -> str:
    asked = f"You are an expert Python programmer, and here is your task: {shot.text} "
    if shot.tests:
        shown = "\n".join(shot.tests)
        return f"{asked}Your code should pass these tests:\n\n{shown}\n[BEGIN]\n"
    heads = "\n".join(shot.heads)
    return f"{asked}Your code should define this:\n\n{heads}\n[BEGIN]\n"


def mbpp_question(asked: Shot, shots: Sequence[Shot] = ()) -> str:
    """The canonical prompt of MBPP: solved shots, then the task and its tests, open after `[BEGIN]`.

    Source: Austin et al. 2021, "Program Synthesis with Large Language Models".
    """
    solved = [f"{_mbpp_ask(shot)}{shot.code}\n[DONE]\n\n" for shot in shots]
    return "".join(solved) + _mbpp_ask(asked)


def final_answer(answer: str) -> str:
    """A response that gives `answer` in the form that the prompts of MATH ask for."""
    return f"Final Answer: The final answer is ${answer}$. I hope it is correct."


def prompts_of(task: str, changes: Mapping[str, object] | None = None) -> Prompts:
    """The prompts of a task, with the changes that a recipe makes in its table [prompts.TASK].

    A task that is not built in has the prompts that its table gives, both `first` and `correction`.

    Raises:
        UserError: no task has that name and its own prompts are not given, or a change is wrong.
    """
    changes = changes or {}
    if task in PROMPTS:
        return override(PROMPTS[task], changes)
    missing = [name for name in ("first", "correction") if name not in changes]
    if missing:
        raise UserError(
            f"no task is named {task}: the problems' column `task` takes {', '.join(sorted(PROMPTS))}, or a task of "
            f"your own whose prompts a recipe gives: [prompts.{task}] with first and correction"
        )
    return override(Prompts(first=QUESTION, correction=""), changes)


def check_prompts(task: str, changes: Mapping[str, object]) -> None:
    """Check the table [prompts.TASK] of a recipe, which another recipe may complete.

    Raises:
        UserError: a change is wrong, or the task's name looks like a slip for one that is built in.
    """
    if task not in PROMPTS and (near := difflib.get_close_matches(task, PROMPTS, n=1, cutoff=0.8)):
        raise UserError(
            f"no task is named {task}: did you mean {near[0]}? Give a task of your own a name that is less like it"
        )
    override(PROMPTS.get(task, Prompts(first=QUESTION, correction="")), changes)


def override(prompts: Prompts, changes: Mapping[str, object]) -> Prompts:
    """The prompts with some fields replaced by the user's own texts.

    Args:
        changes: field name to text, as a TOML table gives them.
    Raises:
        UserError: a field is unknown or not text, or `first` leaves out the question.
    """
    for name, text in changes.items():
        if name not in Prompts._fields:
            raise UserError(f"prompts have no field {name}{did_you_mean(name, Prompts._fields)}")
        if not isinstance(text, str):
            raise UserError(f"the prompts' field {name} is {text!r}, expected text in quotes")
    changed = prompts._replace(**{name: str(text) for name, text in changes.items()})
    if QUESTION not in changed.first:
        raise UserError(f"the prompts' field first lacks {QUESTION}, which the problem's text replaces: add it")
    return changed
