"""`score sample`: problems to traces.

Work is cut into chunks of problems. A chunk's traces depend on the policy, the settings and the
problems in it alone, and fill one row group of the output. Shards are slices of the chunks; every
finished chunk is kept beside the output until the output is whole (see `tables.parts`).
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from score_cli.config import SampleConfig, check_config
from score_cli.errors import UserError
from score_cli.progress import SILENT, Progress
from score_cli.sampling.dialogues import MOST_TOKENS, Renderer
from score_cli.sampling.engine import Decoding, Engine
from score_cli.sampling.engines import holding
from score_cli.sampling.first_attempts import Expected, FirstAttempt, Key, read_first_attempts
from score_cli.sampling.rollout import check_lengths
from score_cli.sampling.seeds import draw_problems, offline_samples
from score_cli.sampling.shards import Shard
from score_cli.sampling.transformers_engine import in_chunks
from score_cli.tables.atomic import check_output
from score_cli.tables.checkpoints import Policy, renderer_digest
from score_cli.tables.device import numerics
from score_cli.tables.parquet import TRACES
from score_cli.tables.parts import open_parts
from score_cli.tables.provenance import Footer, file_sha256
from score_cli.tables.records import Problem
from score_cli.tables.traces import read_problems


def sample(
    config: SampleConfig,
    *,
    policy: Policy,
    problems: Path,
    out: Path,
    first_attempts: Path | None = None,
    overwrite: bool = False,
    engine: Engine | None = None,
    progress: Progress = SILENT,
) -> None:
    """Sample `config.samples` traces of each problem (or of this iteration's problems) from a policy.

    What an interrupted run with the same settings and inputs has finished is not sampled again.

    Args:
        policy: the policy to sample from; its fingerprint goes into the footer.
        first_attempts: traces, of any policy, whose first attempts `config.offline_share` of the samples go on from.
        engine: an engine that holds exactly this policy; made here if left out.
    Raises:
        UserError: a setting or an input does not fit; nothing is written.
    """
    check_output(out, overwrite=overwrite)
    check_config(config)
    work = _plan(config, policy, problems, first_attempts)
    if config.max_tokens is None and work.config.max_tokens != MOST_TOKENS:
        progress.line(
            f"{out}: an attempt may have {work.config.max_tokens} tokens, an equal share of the context of "
            f"{work.dialogues.context}; longer ones are cut off and score 0"
        )
    chunks = work.chunks()
    inputs = {"problems": file_sha256(problems), "renderer": renderer_digest(policy)}
    if first_attempts is not None:
        inputs["first_attempts"] = file_sha256(first_attempts)
    with holding(policy, work.config, engine) as held:
        footer = Footer(
            table=TRACES.name,
            stage="sample",
            config=_recorded(work.config, held),
            seed=config.seed,
            inputs=inputs,
            policy=policy.state.fingerprint,
        )
        with open_parts(out, TRACES, footer, machine=numerics(policy.model.device)) as parts:
            missing = [number for number in range(len(chunks)) if not parts.has(number)]
            if len(missing) < len(chunks):
                progress.line(f"{out}: {len(chunks) - len(missing)} of {len(chunks)} chunks are there from before")
            with progress.phase("sampling", config.samples * sum(len(chunks[number]) for number in missing)) as task:
                for number in missing:
                    parts.write(number, work.sample_chunk(chunks[number], held))
                    task.advance(len(chunks[number]) * config.samples)
            parts.join(out, len(chunks))


def check_room(config: SampleConfig, *, policy: Policy, problems: Path) -> None:
    """See that traces of every problem fit the model's context, long before the last of them is sampled.

    Raises:
        UserError: as `sample`.
    """
    _plan(replace(config, problems_per_iteration=None), policy, problems, None)


@dataclass(frozen=True)
class _Work:
    """What is to be sampled: settings with nothing left open, the problems drawn, their prompts, attempts given."""

    config: SampleConfig
    problems: Sequence[Problem]
    prompts: Sequence[list[int]]
    dialogues: Renderer
    given: Mapping[Key, FirstAttempt] = field(default_factory=dict)

    def chunks(self) -> list[range]:
        """The rows of `problems` that this process samples, cut into chunks."""
        chunks = list(in_chunks(len(self.problems), self.config.chunk_problems))
        return chunks if self.config.shard is None else Shard.parse(self.config.shard).slice(chunks)

    def sample_chunk(self, chunk: range, engine: Engine) -> list[dict[str, Any]]:
        """The finished rows of one chunk."""
        rows = [row for row in chunk for _ in range(self.config.samples)]
        rollouts = [
            self.dialogues.rollout(self.problems[row], self.prompts[row], index, self.config)
            for row in chunk
            for index in range(self.config.samples)
        ]
        for rollout in rollouts:
            if attempt := self.given.get((rollout.problem_id, rollout.sample_index)):
                attempt.give_to(rollout)
        engine.generate(rollouts, Decoding(self.config.temperature, self.config.top_p, self.config.top_k))
        return [
            self.dialogues.row(rollout, self.problems[row].task) for rollout, row in zip(rollouts, rows, strict=True)
        ]


def _plan(config: SampleConfig, policy: Policy, path: Path, first_attempts: Path | None) -> _Work:
    """Draw the iteration's problems, write their prompts, and settle what the settings leave open.

    Nothing here depends on the shard, so that all shards sample alike.
    """
    if config.iteration is None:
        config = replace(config, iteration=policy.state.iteration)
    if config.shard is not None:
        config = replace(config, shard=str(Shard.parse(config.shard)))
    problems = _drawn(config, path)
    tasks = {problem.task for problem in problems}
    dialogues = Renderer(policy, tasks, config.correction, config.prompts, config.max_model_len)
    prompts = [dialogues.prompt(problem) for problem in problems]
    for problem, prompt in zip(problems, prompts, strict=True):
        if not prompt:
            raise UserError(f"{path}: problem {problem.problem_id} gives an empty prompt: give it a question")
    if config.max_tokens is None:
        config = replace(config, max_tokens=dialogues.room(prompts, config.attempts))
    # All of them, before an engine takes its time to start.
    drafts = (dialogues.rollout(problem, prompt, 0, config) for problem, prompt in zip(problems, prompts, strict=True))
    check_lengths(drafts, dialogues.context)
    if first_attempts is not None:
        config = replace(config, offline_share=1.0 if config.offline_share is None else config.offline_share)
    elif config.offline_share is not None:
        raise UserError("offline_share is set, but no first attempts are given: pass --first-attempts, or leave it out")
    work = _Work(config, problems, prompts, dialogues)
    if first_attempts is None:
        return work
    return replace(work, given=_given(first_attempts, work, renderer_digest(policy)))


def _given(path: Path, work: _Work, renderer: str) -> dict[Key, FirstAttempt]:
    """The first attempts that this job's samples go on from."""
    config = work.config
    assert config.iteration is not None and config.offline_share is not None and config.max_tokens is not None
    if config.attempts < 2:
        raise UserError("first attempts are given and attempts is 1, so nothing is left to sample: raise --attempts")
    wanted = {}
    for problem, prompt in zip(work.problems, work.prompts, strict=True):
        expected = Expected(prompt, work.dialogues.stop_ids(problem))
        name = problem.problem_id
        for index in offline_samples(config.seed, config.iteration, name, config.samples, config.offline_share):
            wanted[name, index] = expected
    return read_first_attempts(path, wanted, renderer=renderer, max_tokens=config.max_tokens)


def _drawn(config: SampleConfig, path: Path) -> list[Problem]:
    """The problems of this iteration; all of them where the settings do not say how many."""
    problems = read_problems(path)
    if config.problems_per_iteration is None:
        return problems
    names = [problem.problem_id for problem in problems]
    if config.problems_per_iteration > len(names):
        raise UserError(
            f"problems_per_iteration is {config.problems_per_iteration}, but {path} has {len(names)} problems: "
            "lower it, or make more problems"
        )
    rows = draw_problems(config.seed, config.iteration or 0, names, config.problems_per_iteration)
    return [problems[row] for row in rows]


def _recorded(config: SampleConfig, engine: Engine) -> dict[str, Any]:
    """What the footer says of the settings: the engine that ran instead of `auto`, and no device or memory."""
    settings = asdict(config) | {"engine": engine.name}
    del settings["device"], settings["gpu_memory_utilization"]
    return settings
