"""Critics side by side: all of them criticise the same solves of one frozen generator, which then revises them.

none      no critique: the generator is asked to correct its solve in the task's own words
NAME ...  critics, such as base and stage2
oracle    a critique made of the gold answer: the ceiling, and no policy's

EVAL/solves-sampled.parquet         the generator's first solves, shared by all arms
EVAL/base-sampled.critiques.parquet an arm's critiques; EVAL/base-sampled.traces.parquet the revisions after them
EVAL/base-sampled.round2...         the same of a further round, of the solves that were not called correct
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from score_cli.config import EvalConfig, SampleConfig
from score_cli.errors import JobError
from score_cli.evaluation.critics import Right, critique_values, round_values
from score_cli.evaluation.evaluate import SAMPLED, Row, comparison_rows, metric_rows
from score_cli.evaluation.measured import Measured, measure_traces
from score_cli.metrics import Values, sums_of
from score_cli.progress import SILENT, Progress
from score_cli.sampling.given import (
    CRITIQUE_PART,
    REVISE_PART,
    Given,
    starts_of_critiques,
    starts_of_revisions,
    still_judged,
)
from score_cli.sampling.offline import OfflineAttempts
from score_cli.sampling.sampler import SampleJob, Sampler
from score_cli.sampling.samplers import make_sampler
from score_cli.settings import read_counts
from score_cli.stages.evaluate import eval_decodings, eval_files, eval_samplings, write_metrics
from score_cli.stages.sample import traces_footer, write_traces
from score_cli.stages.verify import rewards_footer, write_verdicts
from score_cli.tables.checkpoints import Policy
from score_cli.tables.problems import read_problems
from score_cli.tables.provenance import CRITIQUES, SOLVES, file_sha256, short_digest
from score_cli.tables.records import CRITIQUE, Trace, Verdict
from score_cli.tables.traces import newest_verdicts, rewards_beside
from score_cli.tasks import division
from score_cli.tasks.script import Script
from score_cli.verification.grader import Grader

NONE, ORACLE = "none", "oracle"
# Lets somebody write the critiques of a job's conversations.
Critic = Callable[[Given, SampleConfig, Right], tuple[SampleJob, Sampler, list[Trace]]]


@dataclass(frozen=True)
class _Solves:
    """The generator's newest solves under one decoding, the table that holds them, and that of what they answer."""

    config: SampleConfig
    traces: list[Trace]
    verdicts: list[Verdict]
    sha256: str
    critiques_sha256: str | None = None

    @property
    def inputs(self) -> dict[str, str]:
        """What critiques of them are built from."""
        told = {} if self.critiques_sha256 is None else {CRITIQUES: self.critiques_sha256}
        return {SOLVES: self.sha256} | told

    def not_called_correct(self, script: Script, critiques: Sequence[Trace]) -> "_Solves":
        """Those that get another round."""
        left = still_judged(script, self.traces, critiques)
        names = {name_of(trace) for trace in left}
        verdicts = [verdict for verdict in self.verdicts if (verdict.problem_id, verdict.sample_index) in names]
        return replace(self, traces=left, verdicts=verdicts)


def evaluate_critics(
    config: EvalConfig,
    script: Script,
    *,
    generator: Policy,
    critics: Iterable[tuple[str, Policy]],
    rounds: int,
    problems: Path,
    folder: Path,
    out: Path,
    grader: Grader,
    progress: Progress = SILENT,
) -> list[Row]:
    """Metrics of a generator with each critic, sampled and greedy, written to `out`; the traces stay in `folder`.

    Args:
        critics: each with its name; one is asked for when the one before has been measured.
        grader: with the script.
    Raises:
        JobError: the generator is not what it was.
    """
    bench = _Bench(config, script, generator, rounds, problems, folder, grader)
    before = generator.fingerprint()
    measured: dict[str, dict[str, Measured]] = {decoding: {} for decoding in bench.solves}
    rows: list[Row] = []

    def measure(name: str, critic: Critic | None) -> None:
        with progress.phase(f"critic {name}", len(bench.solves)) as task:
            for decoding in bench.solves:
                own, values = bench.blind(decoding) if critic is None else bench.with_critic(name, decoding, critic)
                rows.extend(own)
                measured[decoding][name] = values
                task.advance(1)

    with bench.generator:
        measure(NONE, None)
        for name, policy in critics:
            with make_sampler(bench.any_config, policy) as sampler:
                measure(name, _policy_critic(sampler))
        measure(ORACLE, bench.oracle)
    if generator.fingerprint() != before or before != generator.state.fingerprint:
        raise JobError(f"the generator's weights are not those of policy {short_digest(before)}: it must stay frozen")
    for decoding, arms in measured.items():
        rows += comparison_rows(arms, decoding=decoding)
    names = list(next(iter(measured.values())))
    write_metrics(rows, config, problems=problems, folder=folder, names=names, out=out)
    return rows


class _Bench:
    """What all arms share: the generator, its solves, the grader."""

    def __init__(
        self,
        config: EvalConfig,
        script: Script,
        generator: Policy,
        rounds: int,
        problems: Path,
        folder: Path,
        grader: Grader,
    ) -> None:
        self._config = config
        self._script = script
        self._rounds = rounds
        self._problems = {problem.problem_id: problem for problem in read_problems(problems)}
        self._problems_sha256 = file_sha256(problems)
        self._folder = folder
        self._grader = grader
        plans = {decoding: replace(plan, script=None, attempts=1) for decoding, plan in eval_samplings(config).items()}
        self.any_config = next(iter(plans.values()))
        self.generator = make_sampler(self.any_config, generator)
        folder.mkdir(parents=True, exist_ok=True)
        self.solves = {decoding: self._first_solves(decoding, plans[decoding]) for decoding in eval_decodings(config)}

    def blind(self, decoding: str) -> tuple[list[Row], Measured]:
        """The generator asked to correct its solves, without a critique."""
        solves = self.solves[decoding]
        given = OfflineAttempts({name_of(trace): trace for trace in solves.traces}, sha256=solves.sha256)
        job = self.generator.plan(list(self._problems.values()), replace(solves.config, attempts=2), given)
        revisions = self.generator.run(job)
        verdicts = self._grade(revisions)
        self._keep(eval_files(self._folder, NONE, decoding)[0], job, self.generator, revisions, verdicts)
        return self._rows(NONE, decoding, revisions, verdicts)

    def with_critic(self, name: str, decoding: str, critic: Critic) -> tuple[list[Row], Measured]:
        """Rounds of critiques and revisions; a solve that was called correct gets no further round."""
        newest = self.solves[decoding]
        history = [_right(newest.verdicts)]
        rows: list[Row] = []
        measured: Measured = {}
        extra: dict[str, Values] = {}
        for number in range(1, self._rounds + 1):
            if not newest.traces:
                history.append(history[-1])
                continue
            files = _files(self._folder, name, decoding, number)
            critiques, judged, revised = self._round(files, number, newest, critic)
            if number == 1:
                rows, measured = self._rows(name, decoding, revised.traces, revised.verdicts)
                extra = self._judgements(critiques, judged, history[0])
            history.append({**history[-1], **_right(revised.verdicts)})
            newest = revised.not_called_correct(self._script, critiques)
        further = {measure: sums_of(values) for measure, values in (extra | round_values(history)).items()}
        return [*rows, *metric_rows(further, policy=name, decoding=decoding)], measured | further

    def _round(
        self, files: tuple[Path, Path], number: int, newest: _Solves, critic: Critic
    ) -> tuple[list[Trace], list[Verdict], _Solves]:
        """Critiques of the newest solves with the verdicts of their claims, and what the generator makes of them."""
        config, inputs = replace(newest.config, samples=1), newest.inputs
        starts = starts_of_critiques(self._problems, newest.traces)
        given = Given(CRITIQUE_PART, self._script, starts, number, inputs)
        job, sampler, critiques = critic(given, config, _right(newest.verdicts))
        self._grader.given = newest_verdicts(newest.verdicts)
        judged = self._grade(critiques)
        inputs = {SOLVES: newest.sha256, CRITIQUES: self._keep(files[0], job, sampler, critiques, judged)}
        starts = starts_of_revisions(self._problems, newest.traces, critiques)
        job = self.generator.plan_given(Given(REVISE_PART, self._script, starts, number, inputs), config)
        revisions = self.generator.run(job)
        verdicts = self._grade(revisions)
        digest = self._keep(files[1], job, self.generator, revisions, verdicts)
        return critiques, judged, _Solves(config, revisions, verdicts, digest, inputs[CRITIQUES])

    def oracle(self, given: Given, config: SampleConfig, right: Right) -> tuple[SampleJob, Sampler, list[Trace]]:
        """Critiques of somebody who knows the answer, in the generator's tokens."""
        job = self.generator.plan_given(given, config)
        traces = []
        for row, start in enumerate(given.starts):
            claim = self._script.claims[CRITIQUE][0 if right[start.problem.problem_id, start.index] else 1]
            text = division.advice(start.problem, start.solve.attempts[-1]) + claim
            rollout = job.rollout(row, 0)
            task = job.renderer.task(start.problem.task)
            for token in [*task.plain_tokens(text), min(task.stop_ids)]:
                if not rollout.done:
                    rollout.append(token, 0.0)
            traces.append(job.renderer.trace(rollout, start.problem))
        return job, self.generator, traces

    def _first_solves(self, decoding: str, config: SampleConfig) -> _Solves:
        job = self.generator.plan(list(self._problems.values()), config)
        traces = self.generator.run(job)
        verdicts = self._grade(traces)
        path = self._folder / f"solves-{decoding}.parquet"
        return _Solves(job.config, traces, verdicts, self._keep(path, job, self.generator, traces, verdicts))

    def _grade(self, traces: Sequence[Trace]) -> list[Verdict]:
        return self._grader.grade(traces, self._problems)

    def _judgements(self, critiques: Sequence[Trace], judged: Sequence[Verdict], right: Right) -> dict[str, Values]:
        answers = {name: problem.answer for name, problem in self._problems.items()}
        correct = self._script.claims[CRITIQUE][0]
        return critique_values(critiques, judged, right, lambda claim: claim == correct, answers)

    def _rows(
        self, name: str, decoding: str, revisions: Sequence[Trace], verdicts: Sequence[Verdict]
    ) -> tuple[list[Row], Measured]:
        """Metrics of first solves and the revisions after them."""
        pass_at = read_counts(self._config.pass_at, "pass_at") if decoding == SAMPLED else []
        known = list(self._problems.values())
        measured = measure_traces(revisions, verdicts)
        rows = metric_rows(measured, policy=name, decoding=decoding, problems=known, pass_at=pass_at)
        return rows, measured

    def _keep(
        self,
        path: Path,
        job: SampleJob,
        sampler: Sampler,
        traces: Sequence[Trace],
        verdicts: Sequence[Verdict],
    ) -> str:
        """Write traces and their rewards; returns the sha256 of the traces."""
        footer = traces_footer(job, sampler, problems=self._problems_sha256)
        if path.name.startswith(f"{ORACLE}-") and job.names_roles:
            footer = replace(footer, policy=None, config=footer.config | {"critic": ORACLE})
        write_traces(path, job, traces, footer)
        digest = file_sha256(path)
        inputs = {"traces": digest, "problems": self._problems_sha256}
        tasks = {problem.task for problem in self._problems.values()}
        graded = rewards_footer(self._grader, tasks, inputs=inputs, policy=footer.policy)
        write_verdicts(rewards_beside(path), verdicts, graded)
        return digest


def _policy_critic(sampler: Sampler) -> Critic:
    def critic(given: Given, config: SampleConfig, right: Right) -> tuple[SampleJob, Sampler, list[Trace]]:
        job = sampler.plan_given(given, config)
        return job, sampler, sampler.run(job)

    return critic


def _files(folder: Path, name: str, decoding: str, number: int) -> tuple[Path, Path]:
    """Where the critiques and the revisions of a round are kept."""
    if number == 1:
        return folder / f"{name}-{decoding}.critiques.parquet", eval_files(folder, name, decoding)[0]
    stem = f"{name}-{decoding}.round{number}"
    return folder / f"{stem}.critiques.parquet", folder / f"{stem}.revisions.parquet"


def name_of(trace: Trace) -> tuple[str, int]:
    """What tells a trace from others of its table."""
    return trace.problem_id, trace.sample_index


def _right(verdicts: Sequence[Verdict]) -> dict[tuple[str, int], bool | None]:
    """Whether the newest solve of each trace is correct."""
    return {(verdict.problem_id, verdict.sample_index): verdict.correct[-1] for verdict in verdicts}
