"""The conversations of every task in a problems file, from prompt tokens to finished rows."""

from collections.abc import Sequence
from typing import Any

from score_cli.config import Overrides, SampleConfig
from score_cli.errors import UserError
from score_cli.sampling.engines import context_limit
from score_cli.sampling.renderer import TaskRenderer
from score_cli.sampling.rollout import Rollout
from score_cli.sampling.seeds import sample_digest
from score_cli.tables.checkpoints import Policy
from score_cli.tables.records import Problem
from score_cli.tasks.prompts import override, prompts_of

MOST_TOKENS = 1024


class Renderer:
    """The conversations of every task in a problems file, as tokens of one policy."""

    def __init__(
        self,
        policy: Policy,
        tasks: set[str],
        correction: str | None = None,
        overrides: Overrides = (),
        max_model_len: int | None = None,
    ) -> None:
        self.context = context_limit(policy, max_model_len)
        self._prompts = {task: prompts_of(task) for task in tasks}
        for task, field, text in overrides:
            if task in self._prompts:
                self._prompts[task] = override(self._prompts[task], {field: text})
        if correction is not None:
            self._prompts = {task: own._replace(correction=correction) for task, own in self._prompts.items()}
        self._tokens = {
            task: TaskRenderer(policy.tokenizer, policy.model, prompts) for task, prompts in self._prompts.items()
        }

    def prompt(self, problem: Problem) -> list[int]:
        """Prompt tokens of a problem.

        Raises:
            UserError: the problem cannot be asked in this policy's tokens.
        """
        try:
            return self._tokens[problem.task].prompt(self._prompts[problem.task].first_turn(problem))
        except UserError as error:
            raise UserError(f"problem {problem.problem_id}: {error}") from None

    def stop_ids(self, problem: Problem) -> frozenset[int]:
        """The tokens that end an attempt at a problem."""
        return self._tokens[problem.task].stop_ids

    def room(self, prompts: Sequence[Sequence[int]], attempts: int) -> int:
        """Tokens that each attempt may have within the model's context, at most `MOST_TOKENS`.

        Raises:
            UserError: the longest prompt leaves no room.
        """
        if self.context is None:
            return MOST_TOKENS
        bridge = max(len(t.bridge.end_of_turn) + len(t.bridge.rest) for t in self._tokens.values())
        longest = max(map(len, prompts))
        room = (self.context - longest - (attempts - 1) * bridge) // attempts
        if room < 1:
            raise UserError(
                f"a prompt of {longest} tokens leaves no room for {attempts} attempts in the model's context of "
                f"{self.context}: leave long problems out, or lower --attempts"
            )
        return min(room, MOST_TOKENS)

    def rollout(self, problem: Problem, prompt: Sequence[int], index: int, config: SampleConfig) -> Rollout:
        """A trace of a problem, not yet begun."""
        assert config.max_tokens is not None and config.iteration is not None
        tokens = self._tokens[problem.task]
        return Rollout(
            problem_id=problem.problem_id,
            sample_index=index,
            prompt=prompt,
            bridge=tokens.bridge,
            stop_ids=tokens.stop_ids,
            seeds=[
                sample_digest(config.seed, config.iteration, problem.problem_id, index, attempt)
                for attempt in range(1, config.attempts + 1)
            ],
            max_tokens=config.max_tokens,
        )

    def row(self, rollout: Rollout, task: str) -> dict[str, Any]:
        """A finished trace as a row of the traces table."""
        attempts = range(1, len(rollout.finish_reasons) + 1)
        return {
            "problem_id": rollout.problem_id,
            "sample_index": rollout.sample_index,
            "attempts": [self._tokens[task].text(rollout.attempt_tokens(attempt)) for attempt in attempts],
            "finish_reasons": rollout.finish_reasons,
            "token_ids": rollout.token_ids,
            "attempt_ids": rollout.attempt_ids,
            "logprobs": rollout.logprobs,
            "offline_attempts": rollout.offline_attempts,
        }
