"""`score verify`: traces to rewards, a chunk of rows at a time, in input order."""

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from itertools import chain
from pathlib import Path

from score_cli.config import VerifyConfig
from score_cli.errors import UserError
from score_cli.progress import SILENT, Progress
from score_cli.tables.atomic import check_output
from score_cli.tables.parquet import REWARDS, TRACES, count_rows, read_footer, writing_table
from score_cli.tables.problems import read_problems
from score_cli.tables.provenance import SOLVES, Footer, file_sha256, short_digest
from score_cli.tables.records import Problem, Trace, Verdict
from score_cli.tables.traces import iterate_traces, iterate_verdicts, newest_verdicts, verdict_row
from score_cli.tasks.script import Script
from score_cli.verification.grader import Grader, VerdictCounts, check_unscored, grader_for

ROWS_PER_GROUP = 1024


def verify(
    config: VerifyConfig,
    *,
    traces: Path,
    problems: Path,
    out: Path,
    given_rewards: Path | None = None,
    overwrite: bool = False,
    grader: Grader | None = None,
    progress: Progress = SILENT,
) -> VerdictCounts:
    """Grade every attempt of every trace.

    Args:
        given_rewards: of the solves that the traces are critiques of, where these are given.
        grader: a warm one of the same settings; made here if left out.
    Raises:
        UserError: an input does not fit, or the traces are of other problems; nothing is written.
        JobError: more than `config.unscored_limit` of the attempts could not be graded.
    """
    check_output(out, overwrite=overwrite)
    by_id = {problem.problem_id: problem for problem in read_problems(problems)}
    total = count_rows(traces, TRACES)
    config = replace(config, script=_script(traces, config))
    counts: Counter[str] = Counter()
    reasons: Counter[str] = Counter()
    hard_coded = programs = 0
    with grader_for(config, grader) as held:
        footer = _footer(traces, problems, held, {problem.task for problem in by_id.values()})
        if given_rewards is not None:
            held.given = _given(traces, given_rewards)
            footer.inputs["given_rewards"] = file_sha256(given_rewards)
        with progress.phase("verifying", total) as task, writing_table(out, REWARDS, footer) as writer:
            for chunk in iterate_traces(traces, rows=ROWS_PER_GROUP):
                _check_known(chunk, by_id, traces, problems)
                verdicts = held.grade(chunk, by_id)
                writer.write_rows([verdict_row(verdict) for verdict in verdicts])
                counts.update(name for verdict in verdicts for name in verdict.verdicts)
                reasons.update(held.reasons)
                hard_coded, programs = hard_coded + held.hard_coded, programs + held.programs
                task.advance(len(verdicts), str(VerdictCounts(counts, reasons)))
            result = VerdictCounts(dict(counts), dict(reasons), hard_coded, programs)
            check_unscored(result, config.unscored_limit)
    return result


def write_verdicts(path: Path, verdicts: Sequence[Verdict], footer: Footer) -> None:
    """Write the verdicts of a whole traces table, in place of any that were there."""
    with writing_table(path, REWARDS, footer) as writer:
        for start in range(0, len(verdicts), ROWS_PER_GROUP):
            writer.write_rows([verdict_row(verdict) for verdict in verdicts[start : start + ROWS_PER_GROUP]])


def rewards_footer(grader: Grader, tasks: Collection[str], *, inputs: dict[str, str], policy: str | None) -> Footer:
    """The provenance of rewards: how each task of the problems is graded.

    Args:
        inputs: sha256 of `traces` and `problems`.
    """
    graders = {"graders": grader.describe(tasks)}
    return Footer(table=REWARDS.name, stage="verify", config=graders, inputs=inputs, policy=policy)


def _check_known(traces: Sequence[Trace], known: Mapping[str, Problem], path: Path, problems: Path) -> None:
    strangers = [trace.problem_id for trace in traces if trace.problem_id not in known]
    if strangers:
        raise UserError(
            f"{path} answers problem {strangers[0]}, which {problems} lacks: "
            "verify against the problems the traces were sampled from"
        )


def _given(traces: Path, rewards: Path) -> Mapping[tuple[str, int], str]:
    """The verdicts of the solves that traces are critiques of.

    Raises:
        UserError: the rewards are of other solves.
    """
    origin, judged = read_footer(traces, TRACES), read_footer(rewards, REWARDS)
    if origin is not None and judged is not None and origin.inputs.get(SOLVES) != judged.inputs.get("traces"):
        raise UserError(f"{rewards} grades other solves than {traces} is built from: verify those, and name that table")
    return newest_verdicts(chain.from_iterable(iterate_verdicts(rewards)))


def _script(traces: Path, config: VerifyConfig) -> Script | None:
    """The script that traces follow: as their footer says, or else the recipe.

    Raises:
        UserError: the two differ.
    """
    footer = read_footer(traces, TRACES)
    followed = None if footer is None else footer.config.get("script")
    if followed is None:
        return config.script
    script = Script(**followed)
    if config.script is not None and config.script != script:
        raise UserError(f"{traces} follows another [script] than the recipe has: leave --config out, or sample again")
    return script


def _footer(traces: Path, problems: Path, grader: Grader, tasks: Collection[str]) -> Footer:
    """The rewards' provenance; traces sampled from other problems are refused."""
    origin = read_footer(traces, TRACES)
    problems_digest = file_sha256(problems)
    if origin is not None and origin.inputs.get("problems", problems_digest) != problems_digest:
        raise UserError(
            f"{traces} was sampled from problems {short_digest(origin.inputs['problems'])}, {problems} is "
            f"{short_digest(problems_digest)}: verify against the file the traces were sampled from"
        )
    inputs = {"traces": file_sha256(traces), "problems": problems_digest}
    return rewards_footer(grader, tasks, inputs=inputs, policy=origin.policy if origin else None)
