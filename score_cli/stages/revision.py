"""`score signal --kind revision`: what critiques are worth, by the exact rewards of the revisions after them."""

import math
from collections.abc import Sequence
from pathlib import Path

from score_cli.errors import UserError
from score_cli.stages.given import CRITIQUES
from score_cli.stages.signal import write_signals
from score_cli.tables.atomic import check_output
from score_cli.tables.parquet import SIGNALS, TRACES, read_footer
from score_cli.tables.provenance import Footer, file_sha256, short_digest
from score_cli.tables.records import CRITIQUE, REVISION, Signal, Trace, Verdict
from score_cli.tables.traces import read_graded, read_traces, rewards_beside


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
