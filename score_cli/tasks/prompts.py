"""How a problem is asked and how a correction is asked for, one entry per task."""

from typing import NamedTuple

from score_cli.errors import UserError
from score_cli.tables.records import Problem
from score_cli.tasks import division


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
        return self.first.replace("{question}", problem.question)


PROMPTS: dict[str, Prompts] = {
    "division": Prompts(first="{question}", correction=division.CORRECTION),
}


def prompts_of(task: str) -> Prompts:
    """The prompts of a task.

    Raises:
        UserError: no task has that name.
    """
    if task not in PROMPTS:
        raise UserError(f"no task is named {task}: the problems' column `task` takes {', '.join(sorted(PROMPTS))}")
    return PROMPTS[task]
