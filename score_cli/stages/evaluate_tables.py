"""`score eval --traces`: measure tables that exist. No model is in it, and no torch."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from score_cli.config import EvalConfig
from score_cli.errors import UserError
from score_cli.evaluation.evaluate import GREEDY, MINUS, SAMPLED, Row, comparison_rows, metric_rows
from score_cli.evaluation.measured import Measured, count_ballots, measure_tables
from score_cli.evaluation.samples import sample_records, write_samples
from score_cli.evaluation.votes import vote_rows
from score_cli.metrics import sums_of
from score_cli.settings import read_counts
from score_cli.stages.escalate import escalation_rows
from score_cli.tables.atomic import check_output
from score_cli.tables.parquet import METRICS, REWARDS, SIGNALS, TRACES, names_table, read_footer, write_table
from score_cli.tables.problems import read_problems
from score_cli.tables.provenance import Footer, file_sha256, short_digest
from score_cli.tables.records import Problem
from score_cli.tables.traces import iterate_graded, rewards_beside
from score_cli.verification.grader import PROGRAM_TASKS


@dataclass(frozen=True)
class EvalTables:
    """The tables that hold what one policy did under one decoding."""

    policy: str
    decoding: str
    traces: Path
    rewards: Path


def evaluate_tables(
    config: EvalConfig,
    *,
    traces: Sequence[Path],
    rewards: Sequence[Path],
    out: Path,
    problems: Path | None = None,
    samples_jsonl: Path | None = None,
    escalate: Path | None = None,
    signals: Path | None = None,
    overwrite: bool = False,
) -> list[Row]:
    """Measure traces and rewards that exist, without a model, and write metrics.parquet.

    A policy is named after its traces file: `base-sampled.traces.parquet` holds `base`. Tables whose footer says
    that they were sampled at temperature 0 are `greedy`, all others `sampled`. Of the settings, `pass_at` and
    `votes` apply.

    Args:
        rewards: one for each traces table; left out, the files named alike (`traces` made `rewards`).
        problems: with them, figures by level and by subject, and whole records in `samples_jsonl`.
        escalate: traces that the answers of the one table may be handed over to, with rewards beside them; signals:
            of the one table, by which they are (see `escalation_rows`).
    Raises:
        UserError: tables that do not belong together, or two of one policy and decoding.
    """
    for path in [out] if samples_jsonl is None else [out, samples_jsonl]:
        check_output(path, overwrite=overwrite)
    if escalate is not None and len(traces) > 1:
        raise UserError(f"--escalate hands the answers of one table over, and --traces names {len(traces)}: name one")
    if config.calibration:
        raise UserError("--calibration spells tokens out, and tables alone have no tokenizer: name the policy, --model")
    digest = cache(file_sha256)  # traces may be gigabytes
    tables = [_named(*pair, digest) for pair in _pairs(traces, rewards)]
    check_names([table.policy for table in tables])
    known = read_problems(problems) if problems is not None else []
    measured = [(table, measure_tables(table.traces, table.rewards)) for table in tables]
    rows = [row for table, sums in measured for row in _table_rows(config, table, sums, known, problems)]
    for k in read_counts(config.pass_at, "pass_at"):
        if not any(row["name"] == f"pass@{k}@t1" for row in rows):
            raise UserError(
                f"pass@{k} needs {k} graded traces of a problem, sampled above temperature 0; no table has so many: "
                "lower --pass-at"
            )
    if config.votes is not None and all(table.decoding == GREEDY for table in tables):
        raise UserError("votes need samples, and every table was decoded at temperature 0: leave --votes out")
    rows += comparisons(measured)
    if samples_jsonl is not None:
        write_samples(samples_jsonl, records_of(tables, known))
    handed = {}
    if escalate is not None:
        (own,) = tables
        to = _named(escalate, _existing_rewards(escalate), digest)
        check_names([to.policy])
        rows += _escalation(own, to, signals)
        handed = {"escalate-traces": to.traces, "escalate-rewards": to.rewards}
        handed |= {} if signals is None else {"signals": signals}
    _write(rows, config, tables, {} if problems is None else {"problems": problems}, handed, out, digest)
    return rows


def _write(
    rows: list[Row],
    config: EvalConfig,
    tables: Sequence[EvalTables],
    problems: Mapping[str, Path],
    handed: Mapping[str, Path],
    out: Path,
    digest: Callable[[Path], str],
) -> None:
    """Write the metrics with the digests of every file that they are made of."""
    inputs = dict(problems)
    for table in tables:
        inputs[f"{table.policy}-{table.decoding}-traces"] = table.traces
        inputs[f"{table.policy}-{table.decoding}-rewards"] = table.rewards
    digests = {name: digest(path) for name, path in {**inputs, **handed}.items()}
    settings = {"pass_at": config.pass_at, "votes": config.votes}
    write_table(out, METRICS, rows, Footer(table=METRICS.name, stage="eval", config=settings, inputs=digests))


def _escalation(own: EvalTables, to: EvalTables, signals: Path | None) -> list[Row]:
    return escalation_rows(
        (own.traces, own.rewards),
        (to.traces, to.rewards),
        signals,
        policy=own.policy,
        to=to.policy,
        decoding=own.decoding,
    )


def _pairs(traces: Sequence[Path], rewards: Sequence[Path]) -> list[tuple[Path, Path]]:
    """Each traces table with its rewards, those beside it if none are given."""
    if not rewards:
        rewards = [_existing_rewards(path) for path in traces]
    if len(rewards) != len(traces):
        raise UserError(f"--rewards is given {len(rewards)} times, --traces {len(traces)}: give one for each, in order")
    for path in rewards:
        if path.exists() and names_table(path) == SIGNALS.name:
            raise UserError(
                f"{path} holds signals, what a policy says of solves, and only training may read them: give "
                "the rewards that `score verify` made"
            )
    return list(zip(traces, rewards, strict=True))


def _existing_rewards(traces: Path) -> Path:
    rewards = rewards_beside(traces)
    if not rewards.exists():
        raise UserError(f"{traces} has no rewards beside it (looked for {rewards}): pass --rewards")
    return rewards


def _named(traces: Path, rewards: Path, digest: Callable[[Path], str]) -> EvalTables:
    footer, judged = read_footer(traces, TRACES), read_footer(rewards, REWARDS)
    if judged is not None and judged.inputs.get("traces") not in (None, found := digest(traces)):
        raise UserError(
            f"{rewards} grades traces {short_digest(judged.inputs['traces'])}, {traces} is {short_digest(found)}: "
            "run `score verify` again on these traces"
        )
    decoding = GREEDY if footer is not None and footer.config.get("temperature") == 0 else SAMPLED
    name = traces.name.removesuffix(".parquet").removesuffix(".traces").removesuffix(f"-{decoding}")
    return EvalTables(name, decoding, traces, rewards)


def _table_rows(
    config: EvalConfig, table: EvalTables, measured: Measured, known: Sequence[Problem], problems: Path | None
) -> list[Row]:
    answered = next(iter(measured.values()), sums_of([]))["problem_id"]
    strangers = set(answered) - {problem.problem_id for problem in known}
    if known and strangers:
        raise UserError(
            f"{table.traces} answers problem {min(strangers)}, which {problems} lacks: "
            "name the problems the traces were sampled from"
        )
    pass_at = read_counts(config.pass_at, "pass_at") if table.decoding == SAMPLED else []
    rows = metric_rows(measured, policy=table.policy, decoding=table.decoding, problems=known, pass_at=pass_at)
    if config.votes is not None and table.decoding == SAMPLED:
        footer = read_footer(table.rewards, REWARDS)
        graders = footer.config.get("graders", {}) if footer else {}
        own = (how["grader"] for how in graders.values() if "grader" in how and "reasoning_gym" not in how)
        check_votes({problem.task for problem in known} | set(graders), next(own, None))
        corrected = read_counts(config.votes, "votes")
        ballots = count_ballots(table.traces, table.rewards)
        rows += vote_rows(ballots, policy=table.policy, decoding=table.decoding, corrected=corrected)
    return rows


def check_votes(tasks: set[str], own_grader: str | None) -> None:
    """Refuse a vote on answers that cannot be counted: programs, and those of which a user's grader tells the worth."""
    if own_grader is not None:
        raise UserError(
            f"a majority vote counts equal answers, and the grader {own_grader} says what a response is worth, not "
            "what it answers: leave --votes out; --pass-at measures many samples of any task"
        )
    programs = sorted(tasks & PROGRAM_TASKS)
    if programs:
        raise UserError(
            f"a majority vote counts equal answers, and the answers of {programs[0]} are programs, hardly ever "
            "equal: leave --votes out; --pass-at measures many samples of programs"
        )


def check_names(names: Sequence[str]) -> None:
    """`a - b` is how the metrics table names the difference of two policies."""
    for name in names:
        if MINUS in name:
            raise UserError(f"the name of policy {name!r} holds {MINUS!r}, which stands for a difference: rename it")


def comparisons(tables: Sequence[tuple[EvalTables, Measured]]) -> list[Row]:
    """Paired differences between the policies of each decoding."""
    by_decoding: dict[str, dict[str, Measured]] = {}
    for table, measured in tables:
        own = by_decoding.setdefault(table.decoding, {})
        if table.policy in own:
            raise UserError(
                f"{table.traces} is the second {table.decoding} table of policy {table.policy}: policies are named "
                "after their files, so give one of them another name"
            )
        own[table.policy] = measured
    return [row for decoding, own in by_decoding.items() for row in comparison_rows(own, decoding=decoding)]


def records_of(tables: Sequence[EvalTables], problems: Sequence[Problem]) -> Iterator[dict[str, Any]]:
    """What lm-evaluation-harness logs of each trace, see `sample_records`."""
    for table in tables:
        pieces = iterate_graded(table.traces, table.rewards)
        rows = (row for piece in pieces for row in piece.records())
        yield from sample_records(rows, policy=table.policy, decoding=table.decoding, problems=problems)
