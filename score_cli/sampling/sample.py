"""`score sample`: problems to traces.

Work is cut into chunks of problems. A chunk's traces depend on the policy, the settings and the
problems in it alone, and fill one row group of the output.
"""

from collections.abc import Sequence
from contextlib import closing
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from score_cli.config import Overrides, SampleConfig, check_settings
from score_cli.errors import UserError
from score_cli.progress import SILENT, Progress
from score_cli.sampling.conversation import ConversationTokens
from score_cli.sampling.engine import Decoding, Engine
from score_cli.sampling.engines import context_limit, make_engine
from score_cli.sampling.rollout import Rollout, check_lengths
from score_cli.sampling.seeds import draw_problems, sample_digest
from score_cli.sampling.transformers_engine import in_chunks
from score_cli.tables.atomic import check_output
from score_cli.tables.checkpoints import Policy, asking_digest
from score_cli.tables.parquet import TRACES, writing_table
from score_cli.tables.provenance import Footer, file_sha256
from score_cli.tables.records import Problem
from score_cli.tables.traces import read_problems
from score_cli.tasks.prompts import override, prompts_of

MOST_TOKENS = 1024


def sample(
    config: SampleConfig,
    *,
    policy: Policy,
    problems: Path,
    out: Path,
    overwrite: bool = False,
    engine: Engine | None = None,
    progress: Progress = SILENT,
) -> None:
    """Sample `config.samples` traces of each problem (or of this iteration's problems) from a policy.

    Args:
        policy: the policy to sample from; its fingerprint goes into the footer.
        engine: an engine that holds exactly this policy; made here if left out.
    Raises:
        UserError: a setting or an input does not fit; nothing is written.
    """
    check_output(out, overwrite=overwrite)
    check_settings(config)
    if engine is None:
        with closing(make_engine(config, policy)) as own:
            sample(
                config, policy=policy, problems=problems, out=out, overwrite=overwrite, engine=own, progress=progress
            )
        return
    chosen = read_problems(problems)
    if config.iteration is None:
        config = replace(config, iteration=policy.state.iteration)
    if config.problems_per_iteration is not None:
        names = [problem.problem_id for problem in chosen]
        if config.problems_per_iteration > len(names):
            raise UserError(
                f"problems_per_iteration is {config.problems_per_iteration}, but {problems} has {len(names)} problems: "
                "lower it, or make more problems"
            )
        rows = draw_problems(config.seed, config.iteration or 0, names, config.problems_per_iteration)
        chosen = [chosen[row] for row in rows]
    dialogues = Dialogues(
        policy, {problem.task for problem in chosen}, config.correction, config.prompts, config.max_model_len
    )
    prompts = [dialogues.prompt(problem) for problem in chosen]
    for problem, prompt in zip(chosen, prompts, strict=True):
        if not prompt:
            raise UserError(f"{problems}: problem {problem.problem_id} gives an empty prompt: give it a question")
    if config.max_tokens is None:
        config = replace(config, max_tokens=dialogues.room(prompts, config.attempts))
    # All of them, before an engine takes its time to start.
    drafts = (dialogues.rollout(problem, prompt, 0, config) for problem, prompt in zip(chosen, prompts, strict=True))
    check_lengths(drafts, dialogues.context)
    footer = Footer(
        table=TRACES.name,
        stage="sample",
        config=_recorded(config, engine),
        seed=config.seed,
        inputs={"problems": file_sha256(problems), "asking": asking_digest(policy)},
        policy=policy.state.fingerprint,
    )
    total = len(chosen) * config.samples
    with progress.phase("sampling", total) as task, writing_table(out, TRACES, footer) as writer:
        for chunk in in_chunks(len(chosen), config.chunk_problems):
            rollouts = [
                dialogues.rollout(chosen[row], prompts[row], index, config)
                for row in chunk
                for index in range(config.samples)
            ]
            engine.generate(rollouts, Decoding(config.temperature))
            writer.write_rows(
                [
                    dialogues.row(rollout, chosen[row].task)
                    for rollout, row in zip(
                        rollouts, [row for row in chunk for _ in range(config.samples)], strict=True
                    )
                ]
            )
            task.advance(len(rollouts))


class Dialogues:
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
            task: ConversationTokens(policy.tokenizer, policy.model, prompts) for task, prompts in self._prompts.items()
        }

    def prompt(self, problem: Problem) -> list[int]:
        """Prompt tokens of a problem."""
        return self._tokens[problem.task].prompt(self._prompts[problem.task].first_turn(problem))

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
            "offline_attempts": 0,
        }


def _recorded(config: SampleConfig, engine: Engine) -> dict[str, Any]:
    """What the footer says of the settings: the engine that ran instead of `auto`, and no device or memory."""
    settings = asdict(config) | {"engine": engine.name}
    del settings["device"], settings["gpu_memory_utilization"]
    return settings
