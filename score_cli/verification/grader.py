"""Traces to verdicts: one grader for each kind of task, started when its first problem comes and kept warm."""

import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

from score_cli.config import VerifyConfig
from score_cli.errors import JobError, UserError
from score_cli.tables.records import SOLVE, Problem, Trace, Verdict
from score_cli.tables.schemas import CORRECT, INCORRECT, LENGTH, NO_ANSWER, TRUNCATED, UNGRADED, UNSCORED
from score_cli.tasks.script import Script
from score_cli.verification.ahead import Ahead, key_of
from score_cli.verification.number import NumberGrader
from score_cli.verification.own_grader import Limits, OwnGrader, find_source, registered
from score_cli.verification.ray_grader import ray_graders
from score_cli.verification.task_grader import Graded, Item, TaskGrader

NUMBER_TASKS = {"division", "stories"}
MATH_TASKS = {"math"}
PROGRAM_TASKS = {"mbpp", "humaneval", "stdin"}
PACKAGE_TASKS = {"reasoning-gym"}
BUILT_IN_TASKS = {*NUMBER_TASKS, *MATH_TASKS, *PROGRAM_TASKS, *PACKAGE_TASKS}
_MOST_REASONS = 3


@dataclass(frozen=True)
class VerdictCounts:
    """How many attempts of a file got each verdict, and why some got none, where the grader could tell.

    Attributes:
        hard_coded: programs that pass and hold a test's answer, out of `programs` that pass.
    """

    counts: dict[str, int]
    reasons: Mapping[str, int] = field(default_factory=dict)
    hard_coded: int = 0
    programs: int = 0

    @property
    def unscored_share(self) -> float:
        """Share of attempts that the verifier could not grade."""
        return self.counts.get(UNSCORED, 0) / max(1, sum(self.counts.values()) - self.counts.get(UNGRADED, 0))

    def __str__(self) -> str:
        said = ", ".join(f"{count} {verdict}" for verdict, count in sorted(self.counts.items()))
        ordered = sorted(self.reasons.items(), key=lambda each: (-each[1], each[0]))
        named = [f"{count} {reason}" for reason, count in ordered[:_MOST_REASONS]]
        rest = sum(count for _, count in ordered[_MOST_REASONS:])
        why = "; ".join([*named, *([f"{rest} for other reasons"] if rest else [])])
        said = f"{said} ({UNSCORED}: {why})" if why else said
        if not self.hard_coded:
            return said
        share = self.hard_coded / self.programs
        return f"{said}; {self.hard_coded} of {self.programs} passing programs ({share:.1%}) hold a test's answer"


class Grader:
    """Grades every attempt of traces against the problems that they answer.

    Use it as a context, or `close` it: graders hold processes.

    Attributes:
        reasons: why attempts of the last call of `grade` are unscored, where it is known, and how many for each reason.
        hard_coded: of the last call's programs that pass, how many hold the answer of a test.
        programs: how many programs of the last call pass.
        given: verdicts of the solves that critiques judge, which are given: by problem_id and `given_index`. Whoever
            grades critiques sets it.
    """

    def __init__(self, config: VerifyConfig) -> None:
        self.config = config
        self.reasons: Counter[str] = Counter()
        self.hard_coded = self.programs = 0
        self.given: Mapping[tuple[str, int], str] | None = None
        self._graders: dict[str, TaskGrader] = {}
        self._ahead = Ahead(lambda task, items: self._graders[task].grade(items))

    def begin(self, problem: Problem, response: str) -> None:
        """Take an attempt that has ended, though others are still sampled: `grade` then finds its grade there.

        Attempts whose grading is over in an instant are left to `grade`.

        Raises:
            UserError: the task has no grader.
        """
        self.start([problem.task])
        if self._graders[problem.task].in_processes:
            self._ahead.take(Item(problem, response))

    def grade(self, traces: Sequence[Trace], problems: Mapping[str, Problem]) -> list[Verdict]:
        """One verdict a trace, in their order.

        A truncated attempt is `truncated`, whatever it says: its end was never seen. A turn that judges is graded by
        its claim (see `judge`).

        Args:
            problems: by problem_id.
        Raises:
            UserError: a trace answers a problem that is not there, a task has no grader, or nothing says how turns that
                judge are read, or what the solve is that they judge.
        """
        pending: dict[str, list[tuple[int, int]]] = {}
        graded: list[list[Graded]] = []
        for row, trace in enumerate(traces):
            if trace.problem_id not in problems:
                raise UserError(
                    f"a trace answers problem {trace.problem_id}, which is not among the problems: "
                    "verify against the problems the traces were sampled from"
                )
            graded.append([Graded(None, TRUNCATED)] * len(trace.finish_reasons))
            for attempt, (role, reason) in enumerate(zip(trace.turn_roles, trace.finish_reasons, strict=True)):
                if role == SOLVE and reason != LENGTH:
                    pending.setdefault(problems[trace.problem_id].task, []).append((row, attempt))
        self.start(pending)
        known = self._ahead.results()
        self.reasons = Counter()
        self.hard_coded = self.programs = 0
        for task, places in pending.items():
            items = [Item(problems[traces[row].problem_id], traces[row].attempts[attempt]) for row, attempt in places]
            others = iter(self._graders[task].grade([item for item in items if key_of(item) not in known]))
            for (row, attempt), item in zip(places, items, strict=True):
                result = known.get(key_of(item)) or next(others)
                graded[row][attempt] = result
                self._count(task, result)
        for trace, results in zip(traces, graded, strict=True):
            if trace.roles is not None:
                results[:] = judge(trace, results, self.config.script, self.given)
        return [_verdict(trace, results) for trace, results in zip(traces, graded, strict=True)]

    def _count(self, task: str, result: Graded) -> None:
        if result.reason is not None:
            self.reasons[result.reason] += 1
        self.programs += task in PROGRAM_TASKS and result.verdict == CORRECT
        self.hard_coded += result.hard_coded

    def start(self, tasks: Iterable[str]) -> None:
        """Make the graders of some tasks.

        Raises:
            UserError: a task has no grader.
        """
        missing = set(tasks) - set(self._graders)
        if missing:
            self._graders |= make_graders(missing, self.config)

    def describe(self, tasks: Iterable[str]) -> dict[str, dict[str, str]]:
        """What the footer of the rewards records of how each task is graded; errors as `start`."""
        tasks = sorted(set(tasks))
        self.start(tasks)
        return {task: self._graders[task].describe() for task in tasks}

    def close(self) -> None:
        """Give back processes and files; the next trace starts other graders."""
        self._ahead.close()
        for grader in set(self._graders.values()):
            grader.close()
        self._graders = {}

    def __enter__(self) -> "Grader":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def judge(
    trace: Trace,
    solves: Sequence[Graded],
    script: Script | None,
    given: Mapping[tuple[str, int], str] | None = None,
) -> list[Graded]:
    """Grades of all turns of a trace whose solves are graded: a claim is correct where it tells what the solve is.

    It is of the newest solve. A claim that cannot be read is `no_answer`, a claim on a solve that is unscored is
    unscored itself. A turn whose role claims nothing is `ungraded`.

    Args:
        given: see `Grader`.
    Raises:
        UserError: there is no script to say what the turns' claims look like, or no verdict of a solve given.
    """
    if script is None:
        raise UserError(
            f"a trace of problem {trace.problem_id} has turns of {', '.join(sorted({*trace.turn_roles} - {SOLVE}))}, "
            "and nothing says how their claims are read: name the recipe whose [script] they follow with --config"
        )
    found = list(solves)
    solve = None if trace.given_index is None else Graded(None, _of_given(trace, trace.given_index, given))
    for turn, role in enumerate(trace.turn_roles):
        if role == SOLVE:
            solve = found[turn]
        elif role not in script.claims or solve is None:
            found[turn] = Graded(None, UNGRADED)
        elif trace.finish_reasons[turn] != LENGTH:
            found[turn] = _claim(script.read_claim(role, trace.attempts[turn]), role, solve, script)
    return found


def _of_given(trace: Trace, index: int, given: Mapping[tuple[str, int], str] | None) -> str:
    """The verdict of the solve that a trace was built from."""
    name = f"sample {index} of problem {trace.problem_id}"
    if given is None:
        raise UserError(
            f"a critique is of {name}, and nothing says whether that is correct: name the rewards of the solves with "
            "--given-rewards"
        )
    if (trace.problem_id, index) not in given:
        raise UserError(f"a critique is of {name}, which the given rewards lack: name those of its own solves")
    return given[trace.problem_id, index]


def _claim(claim: str | None, role: str, solve: Graded, script: Script) -> Graded:
    if solve.verdict == UNSCORED:
        return Graded(claim, UNSCORED)
    if claim is None:
        return Graded(None, NO_ANSWER)
    agrees = script.claims_correct(role, claim) == (solve.verdict == CORRECT)
    return Graded(claim, CORRECT if agrees else INCORRECT)


@contextmanager
def grader_for(config: VerifyConfig, grader: Grader | None = None) -> Iterator[Grader]:
    """The grader given, which its owner closes, or one of our own, closed at the end."""
    if grader is not None:
        yield grader
        return
    with Grader(config) as own:
        yield own


def count_verdicts(verdicts: Iterable[Verdict]) -> VerdictCounts:
    """How many attempts got each verdict."""
    return VerdictCounts(dict(Counter(name for verdict in verdicts for name in verdict.verdicts)))


def check_unscored(
    verdicts: Iterable[Verdict] | VerdictCounts, limit: float, reasons: Mapping[str, int] | None = None
) -> None:
    """Refuse rewards of which too many are missing.

    Args:
        reasons: why they are missing, as `Grader.reasons`.
    Raises:
        JobError: the unscored share is above the limit.
    """
    counts = verdicts if isinstance(verdicts, VerdictCounts) else count_verdicts(verdicts)
    counts = counts if reasons is None else replace(counts, reasons=reasons)
    if counts.unscored_share > limit:
        raise JobError(
            f"{counts.unscored_share:.1%} of the attempts could not be graded, the limit is {limit:.1%} ({counts}): "
            "mend the problems or the grader, or raise --unscored-limit"
        )


def without_gold(problems: Iterable[Problem]) -> str | None:
    """A task that is graded here by answers or tests, none of whose problems has any; None where there is no such."""
    graded: dict[str, bool] = {}
    for problem in problems:
        by = problem.tests if problem.task in PROGRAM_TASKS else (problem.answer or "").strip()
        if problem.task in NUMBER_TASKS | MATH_TASKS | PROGRAM_TASKS:
            graded[problem.task] = graded.get(problem.task, False) or bool(by)
    return min((task for task, some in graded.items() if not some), default=None)


def check_gold(problems: Iterable[Problem], path: Path, config: VerifyConfig) -> None:
    """Refuse problems that could not be graded, before anything is sampled.

    Raises:
        UserError: none of a task has what its grader needs, and there is no grader of the user's own.
    """
    task = without_gold(problems) if config.grader is None else None
    if task is not None:
        column = "tests" if task in PROGRAM_TASKS else "answer"
        raise UserError(
            f"{path}: no problem of task {task} has anything in column {column}, by which it is graded: fill it in, or "
            "grade with a function of your own (--grader, or [verify] grader)"
        )


def has_grader(task: str) -> bool:
    """Whether a task is graded without `--grader`: by this package, or by one that registers a grader of its name."""
    return task in BUILT_IN_TASKS or registered(task) is not None


def make_graders(tasks: Iterable[str], config: VerifyConfig) -> dict[str, TaskGrader]:
    """One grader for each task; tasks of one kind share it, and with it the workers.

    Raises:
        UserError: a task has no grader, the user's own cannot be loaded, or there is no Ray cluster.
    """
    tasks = set(tasks)
    _check_known(tasks, config)
    if config.ray is not None:
        # The grading of numbers is over before an actor has heard of it; a function of the user's own may take long.
        sent = tasks if config.grader is not None else tasks - NUMBER_TASKS
        return make_graders(tasks - sent, replace(config, ray=None)) | ray_graders(sent, config, make_graders)
    if config.grader is not None:
        return dict.fromkeys(tasks, _own_grader(config.grader, config)) if tasks else {}
    graders: dict[str, TaskGrader] = {task: NumberGrader() for task in NUMBER_TASKS & tasks}
    # Each kind loads its libraries when it is needed.
    if MATH_TASKS & tasks:
        from score_cli.verification.math.grader import MathGrader

        math = MathGrader(
            workers=_workers(config),
            timeout_seconds=config.math_timeout_seconds,
            refuse_restatements=config.refuse_restatements,
            require_finished=config.require_finished,
        )
        graders |= dict.fromkeys(MATH_TASKS & tasks, math)
    if PROGRAM_TASKS & tasks:
        from score_cli.verification.programs.grader import ProgramGrader

        programs = ProgramGrader(
            workers=_workers(config),
            timeout_seconds=config.program_timeout_seconds,
            memory_mb=config.program_memory_mb,
            allow_unsandboxed=config.allow_unsandboxed,
        )
        graders |= dict.fromkeys(PROGRAM_TASKS & tasks, programs)
    if PACKAGE_TASKS & tasks:
        from score_cli.verification.reasoning_gym import ReasoningGymGrader

        graders |= dict.fromkeys(PACKAGE_TASKS & tasks, ReasoningGymGrader(**_limits(config)))
    for task in sorted(tasks - graders.keys()):
        graders[task] = _own_grader(task, config)
    return graders


def _check_known(tasks: Iterable[str], config: VerifyConfig) -> None:
    unknown = {task for task in tasks if config.grader is None and not has_grader(task)}
    if unknown:
        raise UserError(
            f"no grader for task {min(unknown)}, expected one of {', '.join(sorted(BUILT_IN_TASKS))}: check the column "
            "`task`, or give a grader of your own with --grader FILE.py:FUNCTION"
        )


def _own_grader(name: str, config: VerifyConfig) -> TaskGrader:
    return OwnGrader(find_source(name), **_limits(config))


def _limits(config: VerifyConfig) -> Limits:
    return Limits(
        workers=_workers(config),
        timeout_seconds=config.grader_timeout_seconds,
        memory_mb=config.grader_memory_mb,
        correct_at=config.correct_at,
    )


def _workers(config: VerifyConfig) -> int:
    return config.workers if config.workers is not None else len(os.sched_getaffinity(0))


def _verdict(trace: Trace, results: Sequence[Graded]) -> Verdict:
    return Verdict(
        problem_id=trace.problem_id,
        sample_index=trace.sample_index,
        answers=[result.answer for result in results],
        verdicts=[result.verdict for result in results],
        rewards=[_reward(result) for result in results],
    )


def _reward(result: Graded) -> float | None:
    if result.verdict in (UNSCORED, UNGRADED):
        return None
    return float(result.verdict == CORRECT) if result.reward is None else result.reward
