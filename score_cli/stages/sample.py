"""`score sample`: problems to traces; `score merge`: the traces of all shards to those of the whole.

Every chunk of problems fills one row group of the output. Shards are slices of the chunks; every
finished chunk is kept beside the output until the output is whole (see `tables.parts`).
"""

import re
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from score_cli.config import SampleConfig
from score_cli.errors import UserError
from score_cli.progress import SILENT, Progress
from score_cli.sampling.given import CRITIQUE_PART
from score_cli.sampling.offline import read_offline
from score_cli.sampling.renderer import MOST_TOKENS
from score_cli.sampling.sampler import SampleJob, Sampler, problems_of_iteration
from score_cli.sampling.samplers import sampler_for
from score_cli.stages.given import PASS, ROUND, Sources, read_given
from score_cli.tables.atomic import check_output
from score_cli.tables.checkpoints import Policy, renderer_digest
from score_cli.tables.device import numerics
from score_cli.tables.parquet import TRACES, Table, join_tables, read_footer, traces_with, writing_table
from score_cli.tables.parts import open_parts
from score_cli.tables.problems import read_problems
from score_cli.tables.provenance import Footer, file_sha256, library_versions
from score_cli.tables.records import Trace
from score_cli.tables.traces import trace_row, traces_table
from score_cli.verification.grader import without_gold

Chunk = TypeVar("Chunk")


class Shard(NamedTuple):
    """The `part`-th of `of` slices of the work, counted from 1."""

    part: int
    of: int

    @staticmethod
    def parse(text: str) -> "Shard":
        """Read `2/3`.

        Raises:
            UserError: it is not of that form.
        """
        if re.fullmatch("[0-9]{1,9}/[0-9]{1,9}", text):
            shard = Shard(*map(int, text.split("/")))
            if 1 <= shard.part <= shard.of:
                return shard
        raise UserError(f"shard is {text}, expected I/N with I from 1 to N, such as 1/3")

    def __str__(self) -> str:
        return f"{self.part}/{self.of}"

    def slice(self, chunks: Sequence[Chunk]) -> list[Chunk]:
        """This shard's consecutive chunks; the shards' slices after one another are all of them.

        Raises:
            UserError: there are fewer chunks than shards.
        """
        if len(chunks) < self.of:
            raise UserError(
                f"shard is {self}, but there are only {len(chunks)} chunks of problems: "
                f"use at most {len(chunks)} shards, or lower --chunk-problems"
            )
        start, end = ((self.part + step) * len(chunks) // self.of for step in (-1, 0))
        return list(chunks[start:end])


def sample(
    config: SampleConfig,
    *,
    policy: Policy,
    problems: Path,
    out: Path,
    first_attempts: Path | None = None,
    sources: Sources | None = None,
    overwrite: bool = False,
    sampler: Sampler | None = None,
    progress: Progress = SILENT,
) -> None:
    """Sample `config.samples` traces of each problem (or of this iteration's problems) from a policy.

    What an interrupted run with the same settings and inputs has finished is not sampled again.

    Args:
        policy: the policy to sample from; its fingerprint goes into the footer.
        first_attempts: traces, of any policy, whose first attempts `config.offline_share` of the samples go on from.
        sources: tables that the conversations are built from, `config.samples` of each.
        sampler: a warm one that holds exactly this policy; made here if left out.
    Raises:
        UserError: a setting or an input does not fit; nothing is written.
    """
    check_output(out, overwrite=overwrite)
    with sampler_for(config, policy, sampler) as held:
        if sources is None:
            job = _plan(config, held, problems, first_attempts)
        else:
            job = _plan_given(config, held, problems, sources)
        _sample(held, job, room=config.max_tokens is None, problems=problems, out=out, progress=progress)


def _sample(sampler: Sampler, job: SampleJob, *, room: bool, problems: Path, out: Path, progress: Progress) -> None:
    """Sample what is missing of a table, chunk by chunk, and join it.

    Args:
        room: attempts are as long as the context lets them be.
    """
    if room and job.config.max_tokens != MOST_TOKENS:
        progress.line(
            f"{sampler.policy.name}: an attempt may have {job.config.max_tokens} tokens, an equal share of the context "
            f"of {job.renderer.context}; longer ones are cut off and score 0"
        )
    bare = without_gold(job.problems)
    if bare is not None:
        progress.line(
            f"{problems}: no problem of task {bare} has anything to be graded by: only a grader of your own "
            "(`score verify --grader`) can tell what its traces are worth"
        )
    chunks = job.chunks if job.config.shard is None else Shard.parse(job.config.shard).slice(job.chunks)
    footer = traces_footer(job, sampler, problems=file_sha256(problems))
    table = _table(job)
    with open_parts(out, table, footer, machine=numerics(sampler.policy.model.device)) as parts:
        missing = [number for number in range(len(chunks)) if not parts.has(number)]
        if len(missing) < len(chunks):
            progress.line(f"{out}: {len(chunks) - len(missing)} of {len(chunks)} chunks are there from before")
        with progress.phase("sampling", job.config.samples * sum(len(chunks[number]) for number in missing)) as task:
            for number, traces in sampler.sample_chunks(job, [(number, chunks[number]) for number in missing]):
                parts.write(number, [trace_row(trace) for trace in traces])
                task.advance(len(traces))
        parts.join(out, len(chunks))


def _table(job: SampleJob) -> Table:
    return traces_with(*["roles"] * job.names_roles, *["given_index"] * (job.given is not None))


def write_traces(path: Path, job: SampleJob, traces: Sequence[Trace], footer: Footer) -> None:
    """Write the traces of a whole job, a row group a chunk, in place of any that were there."""
    start = 0
    with writing_table(path, _table(job), footer) as writer:
        for chunk in job.chunks:
            stop = start + len(chunk) * job.config.samples
            writer.write_rows([trace_row(trace) for trace in traces[start:stop]])
            start = stop


def traces_footer(job: SampleJob, sampler: Sampler, *, problems: str) -> Footer:
    """The provenance of a job's traces: the words that were said, the engine that ran instead of `auto`, the versions
    of the libraries; no device and no memory.

    Args:
        problems: sha256 of the file that the problems were drawn from.
    """
    settings: dict[str, Any] = asdict(job.config) | {"engine": sampler.engine_name}
    for key in ("device", "gpu_memory_utilization", "ray", "ray_samplers", "ray_weights"):
        del settings[key]
    if job.config.precision == "auto":
        del settings["precision"]
    if job.config.script is None or job.config.script.plain:  # `attempts` says it all
        del settings["script"]
    settings["versions"] = library_versions(*({"vllm"} & {sampler.engine_name}))
    inputs = {
        "problems": problems,
        "renderer": renderer_digest(sampler.policy),
        "prompts": job.renderer.prompts_digest({problem.task for problem in job.problems}),
    }
    if job.given is not None:
        settings |= {PASS: job.given.part, ROUND: job.given.round}
        inputs |= job.given.inputs
    if job.offline is not None and job.offline.sha256 is not None:
        inputs["first_attempts"] = job.offline.sha256
    return Footer(
        table=TRACES.name,
        stage="sample",
        config=settings,
        seed=job.config.seed,
        inputs=inputs,
        policy=sampler.policy.state.fingerprint,
    )


def _plan(config: SampleConfig, sampler: Sampler, path: Path, first_attempts: Path | None) -> SampleJob:
    """The job of a problems file. Nothing here depends on the shard, so that all shards sample alike."""
    iteration = sampler.policy.state.iteration if config.iteration is None else config.iteration
    if config.shard is not None:
        config = replace(config, shard=str(Shard.parse(config.shard)))
    problems = problems_of_iteration(read_problems(path), config, iteration)
    offline = None
    if first_attempts is not None:
        offline = read_offline(first_attempts, {problem.problem_id for problem in problems})
    return sampler.plan(problems, replace(config, iteration=iteration), offline)


def _plan_given(config: SampleConfig, sampler: Sampler, path: Path, sources: Sources) -> SampleJob:
    """The job of conversations that are built from tables; revisions take the iteration of their critiques."""
    if config.shard is not None:
        config = replace(config, shard=str(Shard.parse(config.shard)))
    problems = read_problems(path)
    if sources.part == CRITIQUE_PART:
        iteration = sampler.policy.state.iteration if config.iteration is None else config.iteration
        problems = problems_of_iteration(problems, config, iteration)
    given, iteration_of_critiques = read_given(sources, config.script, problems, sampler.policy)
    if config.iteration is None:
        config = replace(config, iteration=iteration_of_critiques)
    return sampler.plan_given(given, config)


def merge(shards: Sequence[Path], *, out: Path, overwrite: bool = False) -> int:
    """Join the traces of all shards of one sampling job into the file of the whole.

    Args:
        shards: one file a shard, in any order.
    Returns:
        How many shards there were.
    Raises:
        UserError: a file is no shard, is another job's, stands twice, or is missing; nothing is written.
    """
    check_output(out, overwrite=overwrite)
    found: dict[Shard, Path] = {}
    whole: Footer | None = None
    for path in shards:
        shard, footer = _shard_of(path)
        whole = whole or footer
        if footer != whole:
            raise UserError(
                f"{path} is not of the same job as {shards[0]} ({_difference(whole, footer)}): "
                "merge shards of one policy, one problems file and one set of settings"
            )
        if shard in found:
            raise UserError(f"{path} and {found[shard]} are both shard {shard}: give each shard once")
        found[shard] = path
    if whole is None:
        raise UserError("no shard was given, expected the traces of every shard: name their files")
    count = next(iter(found)).of
    others = [f"{path} is shard {shard}" for shard, path in found.items() if shard.of != count]
    if others:
        raise UserError(f"{shards[0]} is one of {count} shards, but {others[0]}: merge shards of one cutting")
    every = [Shard(part, count) for part in range(1, count + 1)]
    missing = [str(shard) for shard in every if shard not in found]
    if missing:
        raise UserError(
            f"shard {', '.join(missing)} is missing: sample it with --shard {missing[0]}, and give all {count} files"
        )
    join_tables([found[shard] for shard in every], out, traces_table(shards[0]), whole)
    return count


def _shard_of(path: Path) -> tuple[Shard, Footer]:
    """Which shard a file is, and the footer of the whole it belongs to."""
    footer = read_footer(path, TRACES)
    text = None if footer is None else footer.config.get("shard")
    if footer is None or text is None:
        raise UserError(f"{path} is not a shard: `score sample --shard I/N` makes them")
    return Shard.parse(text), replace(footer, config=footer.config | {"shard": None})


def _difference(one: Footer, other: Footer) -> str:
    """The first thing in which two footers differ."""
    for name in ("policy", "seed"):
        if getattr(one, name) != getattr(other, name):
            return f"another {name}"
    for role in sorted(one.inputs.keys() | other.inputs.keys()):
        if one.inputs.get(role) != other.inputs.get(role):
            return f"another input: {role}"
    for key in sorted(one.config.keys() | other.config.keys()):
        if one.config.get(key) != other.config.get(key):
            return f"{key} is {other.config.get(key)}, not {one.config.get(key)}"
    return "another footer"
