"""What critiques are worth, by the exact rewards of the revisions after them: `score signal --kind revision`.

In a run the frozen generator revises after every update's critiques.
"""

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from score_cli.config import SampleConfig
from score_cli.errors import UserError
from score_cli.progress import Progress
from score_cli.sampling.given import GivenSolves
from score_cli.sampling.sampler import SampleJob
from score_cli.sampling.samplers import make_sampler
from score_cli.stages.sample import sample, traces_footer, write_traces
from score_cli.stages.signal import write_signals
from score_cli.stages.verify import rewards_footer, verify, write_verdicts
from score_cli.tables.atomic import check_output
from score_cli.tables.checkpoints import Policy
from score_cli.tables.parquet import SIGNALS, TRACES, read_footer
from score_cli.tables.provenance import CRITIQUES, Footer, file_sha256, short_digest
from score_cli.tables.records import CRITIQUE, REVISION, Problem, Signal, Trace, Verdict
from score_cli.tables.traces import newest_verdicts, read_graded, read_traces, read_verdicts, rewards_beside
from score_cli.tasks.script import Script
from score_cli.verification.grader import Grader, check_unscored


class Reviser:
    """The frozen generator in a run: it writes the solves that are criticised, and revises them after each critique.

    See `loop.Signaller`.
    """

    def __init__(self, config: SampleConfig, generator: Policy, grader: Grader, *, temperature: float) -> None:
        """Args:
        config: as the critiques are sampled.
        grader: of the critiques too; it is told what the solves' verdicts are.
        temperature: of the revisions.
        """
        self.solves: GivenSolves | None = None
        self.sampler = make_sampler(replace(config, script=None, attempts=1), generator)
        self._config = replace(config, samples=1, temperature=temperature)
        self._grader = grader
        self._iteration: Callable[[], int] = lambda: 0
        self._made: tuple[SampleJob, list[Trace], list[Verdict]] | None = None

    def begin(self, solves: GivenSolves, iteration: Callable[[], int]) -> None:
        """Take the solves that are criticised from now on; `iteration` tells the number of the update under way."""
        self.solves, self._iteration = solves, iteration
        self._grader.given = solves.verdicts

    def draw_solves(
        self, script: Script, out: Path, *, problems: Path, samples: int, progress: Progress
    ) -> GivenSolves:
        """The solves of all problems with their rewards, from their tables or drawn into them."""
        rewards = rewards_beside(out)
        if not out.exists():
            config = replace(
                self.sampler.config, samples=samples, problems_per_iteration=None, iteration=0, temperature=1.0
            )
            policy = self.sampler.policy
            sample(config, policy=policy, problems=problems, out=out, sampler=self.sampler, progress=progress)
        if not rewards.exists():
            verify(self._grader.config, traces=out, problems=problems, out=rewards, grader=self._grader)
        verdicts = newest_verdicts(read_verdicts(rewards))
        return GivenSolves(script, read_traces(out), verdicts, file_sha256(out), file_sha256(rewards))

    def signals(self, traces: Sequence[Trace], problems: Mapping[str, Problem]) -> list[Signal]:
        """See `loop.Signaller`; `traces` are critiques."""
        assert self.solves is not None, "`begin` comes first"
        config = replace(self._config, iteration=self._iteration())
        job = self.sampler.plan_given(self.solves.revisions(problems, traces), config)
        revisions = self.sampler.run(job)
        verdicts = self._grader.grade(revisions, problems)
        check_unscored(verdicts, self._grader.config.unscored_limit, self._grader.reasons)
        self._made = job, revisions, verdicts
        return revision_signals(traces, revisions, verdicts)

    def write(self, folder: Path, signals: Sequence[Signal], *, problems: str, tasks: Collection[str]) -> None:
        """Write the revisions made last, their rewards and the signal, as the commands do.

        Args:
            folder: holds the critiques, as `traces.parquet`.
            problems: sha256 of the problems' table; tasks: those of all its problems.
        """
        assert self._made is not None and self.solves is not None
        job, revisions, verdicts = self._made
        critiques = file_sha256(folder / "traces.parquet")
        assert job.given is not None
        given = replace(job.given, inputs={**job.given.inputs, CRITIQUES: critiques})
        out = folder / "revisions.parquet"
        footer = traces_footer(replace(job, given=given), self.sampler, problems=problems)
        write_traces(out, job, revisions, footer)
        inputs = {"traces": file_sha256(out), "problems": problems}
        write_verdicts(
            rewards_beside(out), verdicts, rewards_footer(self._grader, tasks, inputs=inputs, policy=footer.policy)
        )
        origin = read_footer(folder / "traces.parquet", TRACES)
        own = revision_footer(
            traces=critiques,
            revisions=inputs["traces"],
            rewards=file_sha256(rewards_beside(out)),
            generator=footer.policy,
            policy=None if origin is None else origin.policy,
        )
        write_signals(folder / "signals.parquet", signals, own)


def revision_signals(
    critiques: Sequence[Trace], revisions: Sequence[Trace], verdicts: Sequence[Verdict]
) -> list[Signal]:
    """One signal a critique, in their order: the mean reward of the revisions after it, of those that were graded.

    Args:
        verdicts: of the revisions, one for each.
    Raises:
        UserError: a critique has no revision, or a revision answers a critique that is not there.
    """
    found: dict[tuple[str, int], list[float]] = {(t.problem_id, t.sample_index): [] for t in critiques}
    answered = set()
    for revision, verdict in zip(revisions, verdicts, strict=True):
        key = (revision.problem_id, -1 if revision.given_index is None else revision.given_index)
        if key not in found:
            raise UserError(
                f"a revision answers critique {key[1]} of problem {key[0]}, which is not among these: name the "
                "critiques that it was made from"
            )
        answered.add(key)
        reward = verdict.rewards[-1]
        found[key] += [] if reward is None else [reward]
    missing = [key for key in found if key not in answered]
    if missing:
        raise UserError(
            f"critique {missing[0][1]} of problem {missing[0][0]} has no revision: sample them with `score sample "
            "--script revise` from all critiques"
        )
    return [_signal(trace, found[trace.problem_id, trace.sample_index]) for trace in critiques]


def _signal(critique: Trace, rewards: Sequence[float]) -> Signal:
    value = math.fsum(rewards) / len(rewards) if rewards else None
    return Signal(critique.problem_id, critique.sample_index, REVISION, [None], [None], [value])


def revision_footer(*, traces: str, revisions: str, rewards: str, generator: str | None, policy: str | None) -> Footer:
    """The provenance of revisions' rewards as a signal.

    Args:
        traces, revisions, rewards: sha256 of the critiques, of what answers them, and of its rewards.
        generator: fingerprint of who revised; policy: of the critic.
    """
    inputs = {"traces": traces, "revisions": revisions, "revision_rewards": rewards}
    config = {"kind": REVISION, "by": generator}
    return Footer(table=SIGNALS.name, stage="signal", config=config, inputs=inputs, policy=policy)


def signal(traces: Path, revisions: Path | None, rewards: Path | None, *, out: Path, overwrite: bool = False) -> str:
    """Write the signal of a file of critiques.

    Args:
        rewards: of the revisions; the file named alike beside them if left out.
    Returns:
        One line that sums it up.
    Raises:
        UserError: the tables do not belong together; nothing is written.
    """
    check_output(out, overwrite=overwrite)
    if revisions is None:
        raise UserError(
            "nothing says what became of the critiques: name the traces of --script revise with --revisions"
        )
    critiques, origin = read_traces(traces), read_footer(traces, TRACES)
    strange = sorted({role for trace in critiques for role in trace.turn_roles} - {CRITIQUE})
    if strange:
        raise UserError(f"{traces} holds {strange[0]} turns, and the signal is of critiques: name those with --traces")
    rewards = rewards_beside(revisions) if rewards is None else rewards
    graded = read_graded(revisions, rewards)
    digest = file_sha256(traces)
    if graded.footer is not None and graded.footer.inputs.get(CRITIQUES) != digest:
        raise UserError(f"{revisions} was made from other critiques than {traces}: revise these with `score sample`")
    found = revision_signals(critiques, graded.traces, graded.verdicts)
    generator = None if graded.footer is None else graded.footer.policy
    footer = revision_footer(
        traces=digest,
        revisions=file_sha256(revisions),
        rewards=file_sha256(rewards),
        generator=generator,
        policy=None if origin is None else origin.policy,
    )
    write_signals(out, found, footer)
    known = [value for row in found for value in row.values if value is not None]
    mean = math.fsum(known) / max(1, len(known))
    return f"revisions by {short_digest(generator)}; {len(known)} of {len(found)} are graded, {100 * mean:.1f}% right"
