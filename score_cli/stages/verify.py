"""`score verify`: traces to rewards, a chunk of rows at a time, in input order."""

import os
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from score_cli.config import VerifyConfig
from score_cli.errors import JobError, UserError
from score_cli.progress import SILENT, Progress
from score_cli.tables.atomic import check_output
from score_cli.tables.parquet import REWARDS, TRACES, count_rows, read_footer, writing_table
from score_cli.tables.provenance import Footer, file_sha256, short_digest
from score_cli.tables.records import Problem, Trace
from score_cli.tables.schemas import CORRECT, LENGTH, TRUNCATED, UNSCORED
from score_cli.tables.traces import iterate_traces, read_problems
from score_cli.verification.answers import NumberGrader
from score_cli.verification.graders import Graded, Grader, Item

ROWS_PER_CHUNK = 1024
NUMBER_TASKS = {"division"}
MATH_TASKS = {"math"}
PROGRAM_TASKS = {"mbpp", "humaneval"}


@dataclass(frozen=True)
class VerdictCounts:
    """How many attempts of a file got each verdict."""

    counts: dict[str, int]

    @property
    def unscored_share(self) -> float:
        """Share of attempts that the verifier could not grade."""
        return self.counts.get(UNSCORED, 0) / max(1, sum(self.counts.values()))

    def __str__(self) -> str:
        return ", ".join(f"{count} {verdict}" for verdict, count in sorted(self.counts.items()))


def verify(
    config: VerifyConfig,
    *,
    traces: Path,
    problems: Path,
    out: Path,
    overwrite: bool = False,
    progress: Progress = SILENT,
) -> VerdictCounts:
    """Grade every attempt of every trace.

    Raises:
        UserError: an input does not fit, or the traces are of other problems; nothing is written.
        JobError: more than `config.unscored_limit` of the attempts could not be graded.
    """
    check_output(out, overwrite=overwrite)
    by_id = {problem.problem_id: problem for problem in read_problems(problems)}
    total = count_rows(traces, TRACES)
    graders = make_graders({problem.task for problem in by_id.values()}, config)
    counts: Counter[str] = Counter()
    try:
        footer = _footer(traces, problems, graders)
        with progress.phase("verifying", total) as task, writing_table(out, REWARDS, footer) as writer:
            for chunk in iterate_traces(traces, rows=ROWS_PER_CHUNK):
                rows = grade_traces(chunk, by_id, graders, traces, problems)
                writer.write_rows(rows)
                counts.update(verdict for row in rows for verdict in row["verdicts"])
                task.advance(len(rows), str(VerdictCounts(counts)))
            result = VerdictCounts(dict(counts))
            if result.unscored_share > config.unscored_limit:
                raise JobError(
                    f"{result.unscored_share:.1%} of the attempts could not be graded, the limit is "
                    f"{config.unscored_limit:.1%} ({result}): mend the problems, or raise --unscored-limit"
                )
    finally:
        for grader in set(graders.values()):
            grader.close()
    return result


def make_graders(tasks: Iterable[str], config: VerifyConfig) -> dict[str, Grader]:
    """One grader for each task.

    Raises:
        UserError: a task has no grader.
    """
    unknown = set(tasks) - {*NUMBER_TASKS, *MATH_TASKS, *PROGRAM_TASKS}
    if unknown:
        known = ", ".join(sorted(NUMBER_TASKS | MATH_TASKS | PROGRAM_TASKS))
        raise UserError(f"no grader for task {min(unknown)}, expected one of {known}: check the column `task`")
    workers = config.workers if config.workers is not None else len(os.sched_getaffinity(0))
    if workers < 1:
        raise UserError(f"workers is {workers}, expected at least 1")
    graders: dict[str, Grader] = {task: NumberGrader() for task in NUMBER_TASKS & set(tasks)}
    # Tasks of one kind share a grader, and with it the workers. Each kind loads its libraries when it is needed.
    if MATH_TASKS & set(tasks):
        from score_cli.verification.math_grader import MathGrader

        math = MathGrader(workers=workers, timeout_seconds=config.math_timeout_seconds)
        graders |= dict.fromkeys(MATH_TASKS & set(tasks), math)
    if PROGRAM_TASKS & set(tasks):
        from score_cli.verification.programs.grader import ProgramGrader

        programs = ProgramGrader(
            workers=workers,
            timeout_seconds=config.program_timeout_seconds,
            memory_mb=config.program_memory_mb,
            allow_unsandboxed=config.allow_unsandboxed,
        )
        graders |= dict.fromkeys(PROGRAM_TASKS & set(tasks), programs)
    return graders


def grade_traces(
    traces: Sequence[Trace],
    problems: dict[str, Problem],
    graders: dict[str, Grader],
    traces_path: Path,
    problems_path: Path,
) -> list[dict[str, Any]]:
    """Rows of the rewards table for some traces, in their order.

    A truncated attempt is `truncated`, whatever it says: its end was never seen.
    """
    pending: dict[str, list[tuple[int, int]]] = {}
    graded: list[list[Graded]] = []
    for row, trace in enumerate(traces):
        problem = problems.get(trace.problem_id)
        if problem is None:
            raise UserError(
                f"{traces_path} answers problem {trace.problem_id}, which {problems_path} lacks: "
                "verify against the problems the traces were sampled from"
            )
        graded.append([Graded(None, TRUNCATED)] * len(trace.finish_reasons))
        for attempt, reason in enumerate(trace.finish_reasons):
            if reason != LENGTH:
                pending.setdefault(problem.task, []).append((row, attempt))
    for task, places in pending.items():
        items = [Item(problems[traces[row].problem_id], traces[row].attempts[attempt]) for row, attempt in places]
        for (row, attempt), result in zip(places, graders[task].grade(items), strict=True):
            graded[row][attempt] = result
    return [_row(trace, results) for trace, results in zip(traces, graded, strict=True)]


def _row(trace: Trace, results: list[Graded]) -> dict[str, Any]:
    return {
        "problem_id": trace.problem_id,
        "sample_index": trace.sample_index,
        "answers": [result.answer for result in results],
        "verdicts": [result.verdict for result in results],
        "rewards": [None if r.verdict == UNSCORED else float(r.verdict == CORRECT) for r in results],
    }


def _footer(traces: Path, problems: Path, graders: dict[str, Grader]) -> Footer:
    """The rewards' provenance; traces sampled from other problems are refused."""
    origin = read_footer(traces, TRACES)
    problems_digest = file_sha256(problems)
    if origin is not None and origin.inputs.get("problems", problems_digest) != problems_digest:
        raise UserError(
            f"{traces} was sampled from problems {short_digest(origin.inputs['problems'])}, {problems} is "
            f"{short_digest(problems_digest)}: verify against the file the traces were sampled from"
        )
    return Footer(
        table=REWARDS.name,
        stage="verify",
        config={"graders": {task: graders[task].describe() for task in sorted(graders)}},
        inputs={"traces": file_sha256(traces), "problems": problems_digest},
        policy=origin.policy if origin else None,
    )
