"""`score sample`: problems to traces.

Work is cut into chunks of problems. A chunk's traces depend on the policy, the settings and the
problems in it alone, and fill one row group of the output. Shards are slices of the chunks; every
finished chunk is kept beside the output until the output is whole (see `tables.parts`).
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from score_cli.config import SampleConfig, check_settings
from score_cli.errors import UserError
from score_cli.progress import SILENT, Progress
from score_cli.sampling.dialogues import Dialogues
from score_cli.sampling.engine import Decoding, Engine
from score_cli.sampling.seeds import draw_problems
from score_cli.sampling.shards import Shard
from score_cli.sampling.transformers_engine import TransformersEngine, in_chunks
from score_cli.tables.atomic import check_output
from score_cli.tables.checkpoints import Policy, asking_digest
from score_cli.tables.machine import arithmetic_of
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
    overwrite: bool = False,
    engine: Engine | None = None,
    progress: Progress = SILENT,
) -> None:
    """Sample `config.samples` traces of each problem (or of this iteration's problems) from a policy.

    What an interrupted run with the same settings and inputs has finished is not sampled again.

    Args:
        policy: the policy to sample from; its fingerprint goes into the footer.
        engine: an engine that holds exactly this policy; made here if left out.
    Raises:
        UserError: a setting or an input does not fit; nothing is written.
    """
    check_output(out, overwrite=overwrite)
    check_settings(config)
    work = _plan(config, policy, problems)
    chunks = work.chunks()
    engine = engine or make_engine(work.config, policy)
    footer = Footer(
        table=TRACES.name,
        stage="sample",
        config=_recorded(work.config, engine),
        seed=config.seed,
        inputs={"problems": file_sha256(problems), "asking": asking_digest(policy)},
        policy=policy.state.fingerprint,
    )
    with open_parts(out, TRACES, footer, machine=arithmetic_of(policy.model.device)) as parts:
        missing = [number for number in range(len(chunks)) if not parts.has(number)]
        if len(missing) < len(chunks):
            progress.line(f"{out}: {len(chunks) - len(missing)} of {len(chunks)} chunks are there from before")
        with progress.phase("sampling", config.samples * sum(len(chunks[number]) for number in missing)) as task:
            for number in missing:
                parts.write(number, work.sample_chunk(chunks[number], engine))
                task.advance(len(chunks[number]) * config.samples)
        parts.join(out, len(chunks))


@dataclass(frozen=True)
class _Work:
    """What is to be sampled: settings with nothing left open, the problems drawn, and their prompts."""

    config: SampleConfig
    problems: Sequence[Problem]
    prompts: Sequence[Sequence[int]]
    dialogues: Dialogues

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
        engine.generate(rollouts, Decoding(self.config.temperature))
        return [
            self.dialogues.row(rollout, self.problems[row].task) for rollout, row in zip(rollouts, rows, strict=True)
        ]


def _plan(config: SampleConfig, policy: Policy, path: Path) -> _Work:
    """Draw the iteration's problems, write their prompts, and settle what the settings leave open.

    Nothing here depends on the shard, so that all shards sample alike.
    """
    if config.iteration is None:
        config = replace(config, iteration=policy.state.iteration)
    if config.shard is not None:
        config = replace(config, shard=str(Shard.parse(config.shard)))
    problems = _drawn(config, path)
    dialogues = Dialogues(policy, {problem.task for problem in problems}, config.correction, config.prompts)
    prompts = [dialogues.prompt(problem) for problem in problems]
    for problem, prompt in zip(problems, prompts, strict=True):
        if not prompt:
            raise UserError(f"{path}: problem {problem.problem_id} gives an empty prompt: give it a question")
    if config.max_tokens is None:
        config = replace(config, max_tokens=dialogues.room(prompts, config.attempts))
    return _Work(config, problems, prompts, dialogues)


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


def make_engine(config: SampleConfig, policy: Policy) -> Engine:
    """The engine that `config.engine` asks for, holding this policy.

    Raises:
        UserError: the engine cannot sample from this kind of model.
    """
    engine = TransformersEngine(policy.model, batch_size=config.batch_size)
    engine.check()
    return engine


def _recorded(config: SampleConfig, engine: Engine) -> dict[str, Any]:
    """What the footer says of the settings: the engine that ran instead of `auto`, and no device."""
    settings = asdict(config) | {"engine": engine.name}
    del settings["device"]
    return settings
