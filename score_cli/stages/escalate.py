"""Two traces tables and what one trusts of its answers, to accuracy against the share handed over."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from score_cli.errors import UserError
from score_cli.evaluation.escalation import Case, escalation_curve
from score_cli.evaluation.evaluate import Row
from score_cli.metrics import solves_of
from score_cli.tables.records import SOLVE, Trace, Verdict
from score_cli.tables.schemas import CORRECT, UNGRADED, UNSCORED
from score_cli.tables.signals import read_signals
from score_cli.tables.traces import read_pair

Judged = tuple[Trace, Verdict]


def escalation_rows(
    own: tuple[Path, Path],
    other: tuple[Path, Path],
    signals: Path | None,
    *,
    policy: str,
    to: str,
    decoding: str,
) -> list[Row]:
    """Rows of the metrics table: the first solves of one policy, with the last ones of another in place of some.

    Args:
        own, other: traces and their rewards, joined by problem and sample.
        signals: of `own`; the lowest score of a first solve goes first. Left out, the claim on it: one that it is
            incorrect, or that cannot be read, goes first.
    Raises:
        UserError: the tables do not belong together, or nothing says which answers are trusted.
    """
    rows = list(zip(*read_pair(*own), strict=True))
    trusts = _claimed(rows, own[0]) if signals is None else _scored(rows, signals, own[0])
    partners = {(pair[0].problem_id, pair[0].sample_index): pair for pair in zip(*read_pair(*other), strict=True)}
    cases = []
    for (trace, verdict), trust in zip(rows, trusts, strict=True):
        partner = partners.get((trace.problem_id, trace.sample_index))
        if partner is None:
            raise UserError(
                f"{other[0]} lacks sample {trace.sample_index} of problem {trace.problem_id}, which {own[0]} has: "
                "sample both from the same problems, with as many samples"
            )
        _check_first(trace, partner[0], own[0], other[0])
        first, last = solves_of(trace, verdict)[1].correct[0], solves_of(*partner)[1].correct[-1]
        if trust is not None and first is not None and last is not None:
            cases.append(Case(trace.problem_id, trust, first, last))
    if not cases:
        raise UserError(f"no trace of {own[0]} was scored there and in {other[0]}: nothing can be handed over")
    return [
        {"policy": policy, "decoding": decoding, "name": f"escalated@{to}[{name}]"} | asdict(found)
        for name, found in escalation_curve(cases).items()
    ]


def _scored(rows: Sequence[Judged], signals: Path, traces: Path) -> list[float | None]:
    """The score of each first solve; below all others where there is no answer."""
    found = read_signals(signals, [trace for trace, _ in rows], traces)
    firsts = [signal.scores[0] for signal in found]
    return [-1.0 if score is None else score for score in firsts]


def _claimed(rows: Sequence[Judged], traces: Path) -> list[float | None]:
    """1 where the first solve is claimed to be correct, else 0; None where nobody could tell what it is."""
    found: list[float | None] = []
    for trace, verdict in rows:
        roles = trace.turn_roles
        if len(roles) < 2 or roles[1] == SOLVE or verdict.verdicts[1] == UNGRADED:
            raise UserError(
                f"{traces} makes no claim on sample {trace.sample_index} of problem {trace.problem_id}: name --signals "
                "of its solves, which `score signal` makes"
            )
        right = verdict.correct[0]
        unknown = right is None or verdict.verdicts[1] == UNSCORED
        agrees = verdict.verdicts[1] == CORRECT
        found.append(None if unknown else float(verdict.answers[1] is not None and agrees == right))
    return found


def _check_first(trace: Trace, partner: Trace, traces: Path, partners: Path) -> None:
    """First attempts that a policy was given must be those that are handed over."""
    if partner.offline_attempts and partner.attempts[0] != trace.attempts[0]:
        raise UserError(
            f"{partners} goes on from another first attempt at problem {trace.problem_id}, sample "
            f"{trace.sample_index}, than {traces} has: sample it again with --first-attempts {traces}"
        )
