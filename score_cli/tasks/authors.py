"""Imperfect authors of dialogues to learn from, for the tasks whose problems this package makes itself.

An author gets first attempts right and wrong, revises well and badly, and judges truly for the most part. What a policy
learns from him is a form to answer in, and skills for reinforcement learning to sharpen.
"""

import random
from collections.abc import Callable, Iterator, Sequence

from score_cli.config import DialoguesConfig
from score_cli.errors import UserError
from score_cli.tables.records import SOLVE, Problem
from score_cli.tasks import division, stories
from score_cli.tasks.dialogues import GivenDialogue, Said

Author = Callable[[Problem, random.Random, DialoguesConfig], list[Said]]


def _division(problem: Problem, rng: random.Random, config: DialoguesConfig) -> list[Said]:
    corpus = division.Corpus(latent_share=config.skilled, claims_truly=config.true_claims)
    if config.script is None:
        attempts = division.draw_transcript(problem, rng, corpus, config.attempts).attempts
        return [Said(SOLVE, text) for text in attempts]
    attempts = division.draw_dialogue(problem, rng, corpus, config.script).attempts
    return [Said(role, text) for role, text in zip(config.script.roles, attempts, strict=False)]


def _stories(problem: Problem, rng: random.Random, config: DialoguesConfig) -> list[Said]:
    author, script = stories.Author(problem, rng, skilled=config.skilled), config.script
    said = [Said(SOLVE, author.guess())]
    while len(said) < config.attempts if script is None else True:
        role = SOLVE if script is None else script.next_role([turn.role for turn in said], lambda: said[-1].text)
        if role is None:
            break
        if role == SOLVE:
            said.append(Said(SOLVE, author.revise()))
        elif script is not None and role in script.claims:
            said.append(Said(role, script.claims[role][0 if author.claims_correct(config.true_claims) else 1]))
        else:
            raise UserError(
                f"[script] has {role} turns without a claim, which the author of {stories.TASK} does not write: leave "
                "them out, or give dialogues of your own"
            )
    return said


AUTHORS: dict[str, Author] = {"division": _division, stories.TASK: _stories}


def author_dialogues(problems: Sequence[Problem], config: DialoguesConfig) -> Iterator[GivenDialogue]:
    """Dialogues on problems, which come again and again in an order that the seed draws.

    A dialogue depends on its number, its problem and the settings alone.

    Raises:
        UserError: a problem is of a task without an author, or the author does not write turns of a role.
    """
    foreign = sorted({problem.task for problem in problems} - set(AUTHORS))
    if foreign:
        raise UserError(
            f"nobody here writes dialogues of task {foreign[0]}, only of {', '.join(sorted(AUTHORS))}: give dialogues "
            "of your own"
        )
    order = list(problems)
    random.Random(config.seed).shuffle(order)
    for number in range(config.size):
        problem = order[number % len(order)]
        rng = random.Random(f"{config.seed}/{number}/{problem.problem_id}")
        yield GivenDialogue(problem, AUTHORS[problem.task](problem, rng, config), f"dialogue {number}")
