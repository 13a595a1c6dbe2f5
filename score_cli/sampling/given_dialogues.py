"""Given dialogues as traces: the tokens that sampling would have, had the policy said these texts.

A dialogue goes through the same rollout as a sampled trace, turn by turn. So the prompt and everything between two
turns are what a policy is asked with, and a dialogue that no script could produce is seen where it leaves the script.
"""

from collections.abc import Sequence
from dataclasses import replace

from score_cli.config import SampleConfig
from score_cli.errors import UserError
from score_cli.sampling.renderer import Renderer
from score_cli.sampling.rollout import Rollout
from score_cli.settings import check_config
from score_cli.tables.checkpoints import Policy
from score_cli.tables.records import Trace
from score_cli.tables.schemas import STOP
from score_cli.tasks.dialogues import GivenDialogue


def render_dialogues(dialogues: Sequence[GivenDialogue], policy: Policy, config: SampleConfig) -> list[Trace]:
    """Each dialogue as the trace of a policy that said it; all of its turns are given, and none has a logprob.

    A dialogue may be shorter than the script's: the turns that it lacks are not learned.

    Args:
        config: how the policy is sampled from: script, words, most tokens of a turn.
    Raises:
        UserError: a dialogue cannot be asked, or is none that sampling could come to; it is named by its row.
    """
    check_config(config)
    if config.script is not None and config.script.needs_solves:
        raise UserError(
            "[script] begins with critique, whose solves are given, and a dialogue begins with its own solve"
        )
    attempts = config.attempts if config.script is None else config.script.longest
    renderer = Renderer(policy, config)
    prompts = [_prompt(renderer, dialogue) for dialogue in dialogues]
    settled = replace(config, attempts=attempts, iteration=0)
    if config.max_tokens is None:
        settled = replace(settled, max_tokens=renderer.room(prompts, attempts))
    return [
        _trace(renderer, dialogue, prompt, number, settled)
        for number, (dialogue, prompt) in enumerate(zip(dialogues, prompts, strict=True))
    ]


def _prompt(renderer: Renderer, dialogue: GivenDialogue) -> list[int]:
    try:
        return renderer.prompt(dialogue.problem)
    except UserError as error:
        raise UserError(f"{dialogue.where}: {error}") from None


def _trace(
    renderer: Renderer, dialogue: GivenDialogue, prompt: Sequence[int], number: int, config: SampleConfig
) -> Trace:
    # Where words are drawn, each row draws its own, as each sample of a problem does.
    rollout = renderer.rollout(dialogue.problem, prompt, number, config)
    for turn in range(len(dialogue.turns)):
        _say(renderer, dialogue, turn, rollout, config)
    # What follows the last turn, to open the next, is no part of the example.
    length = max(index for index, owner in enumerate(rollout.attempt_ids) if owner == len(dialogue.turns)) + 1
    trace = rollout.so_far(renderer.task(dialogue.problem.task).text)
    return replace(
        trace,
        token_ids=trace.token_ids[:length],
        attempt_ids=trace.attempt_ids[:length],
        logprobs=trace.logprobs[:length],
    )


def _say(renderer: Renderer, dialogue: GivenDialogue, turn: int, rollout: Rollout, config: SampleConfig) -> None:
    """Give a rollout the dialogue's next turn."""
    where, said = f"{dialogue.where}, turn {turn + 1}", dialogue.turns[turn]
    if rollout.done:
        why = f"[script] ends the dialogue after turn {turn}" if config.script is not None else f"attempts is {turn}"
        raise UserError(f"{where} is a {said.role} turn, and {why}: cut the row there, or change the recipe")
    expected = rollout.roles[turn]
    if said.role != expected:
        if config.script is None:
            raise UserError(
                f"{where} is a {said.role} turn, and without a [script] every turn is a {expected}: name the recipe "
                "that has one with --config, or mend the row"
            )
        raise UserError(f"{where} is a {said.role} turn, and there the recipe has a {expected} turn: mend the row")
    try:
        tokens = renderer.task(dialogue.problem.task).attempt_tokens(said.text)
    except UserError as error:
        raise UserError(
            f"{where}: {error}: mend the row, leave it out, or name a model that can say it (of the built-in task, one "
            "made by `score base` with the same --config)"
        ) from None
    assert config.max_tokens is not None
    if len(tokens) > config.max_tokens:
        raise UserError(
            f"{where} has {len(tokens)} tokens, its end with them, and an attempt may have {config.max_tokens}: raise "
            "sample.max_tokens, or leave the row out"
        )
    rollout.give(tokens, [0.0] * len(tokens), STOP)
