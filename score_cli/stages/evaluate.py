"""`score eval`: sample, verify and measure policies side by side."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, fields, replace
from pathlib import Path

from score_cli.config import EvalConfig, SampleConfig, SamplingConfig, VerifyConfig
from score_cli.errors import UserError
from score_cli.evaluation.calibration import calibration_rows
from score_cli.evaluation.evaluate import (
    GREEDY,
    SAMPLED,
    Row,
    metric_rows,
)
from score_cli.evaluation.measured import count_ballots, measure_tables
from score_cli.evaluation.samples import write_samples
from score_cli.evaluation.votes import VOTES, vote_rows
from score_cli.progress import SILENT, Named, Once, Progress
from score_cli.sampling.engine import policy_device
from score_cli.sampling.sampler import Sampler
from score_cli.sampling.samplers import sampler_for
from score_cli.settings import read_counts
from score_cli.stages.evaluate_tables import EvalTables, check_names, check_votes, comparisons, records_of
from score_cli.stages.sample import sample
from score_cli.stages.verify import verify
from score_cli.tables.atomic import check_output
from score_cli.tables.checkpoints import Policy, check_checkpoint, load_policy
from score_cli.tables.device import setup_device
from score_cli.tables.parquet import METRICS, write_table
from score_cli.tables.problems import read_problems
from score_cli.tables.provenance import Footer, file_sha256
from score_cli.tables.records import Problem
from score_cli.tables.traces import iterate_graded
from score_cli.verification.grader import BUILT_IN_TASKS, Grader, check_gold, grader_for


def eval_decodings(config: EvalConfig) -> list[str]:
    """Sampled and greedy; greedy alone where the temperature is 0."""
    return [GREEDY] if config.temperature == 0 else [SAMPLED, GREEDY]


def eval_files(folder: Path, name: str, decoding: str) -> tuple[Path, Path]:
    """Where the traces and rewards of one policy and decoding (or of its votes) are kept."""
    return folder / f"{name}-{decoding}.traces.parquet", folder / f"{name}-{decoding}.rewards.parquet"


def eval_samplings(config: EvalConfig, *, given: bool = False) -> dict[str, SampleConfig]:
    """Each decoding, and the votes where asked for, with how its traces are sampled.

    Every policy is asked with the same random numbers (iteration 0), so that they share their luck.

    Args:
        given: first attempts are given. They differ between samples, so greedy corrections of them do too.
    """
    shared = {field.name: getattr(config, field.name) for field in fields(SamplingConfig)}
    sampled = SampleConfig(**shared, iteration=0)
    greedy = replace(sampled, samples=config.samples if given else 1, temperature=0.0, top_p=1.0, top_k=0)
    plan = {SAMPLED: sampled, GREEDY: greedy}
    plan = {decoding: plan[decoding] for decoding in eval_decodings(config)}
    corrected = read_counts(config.votes, "votes")
    if corrected:
        voters = replace(sampled, samples=2 * max(corrected), attempts=2, temperature=config.vote_temperature)
        plan[VOTES] = voters
    return plan


def check_eval_config(config: EvalConfig, problems: Sequence[Problem], grading: VerifyConfig) -> None:
    """Refuse what cannot be measured, before any work is done.

    Raises:
        UserError: pass@k of more samples than are drawn, or a vote on what cannot be counted.
    """
    drawn = 1 if config.temperature == 0 else config.samples
    most = max(read_counts(config.pass_at, "pass_at"), default=0)
    if most > drawn:
        raise UserError(f"pass@{most} needs {most} sampled traces a problem, there are {drawn}: raise --samples")
    if config.votes is not None:
        tasks = {problem.task for problem in problems}
        check_votes(tasks, grading.grader or min(tasks - BUILT_IN_TASKS, default=None))
        if config.script is not None:
            raise UserError(
                "votes compare first attempts with corrected ones, and [script] has other turns: leave one out"
            )


def evaluate_policy(
    config: EvalConfig,
    *,
    policy: Policy,
    name: str,
    problems: Path,
    folder: Path,
    first_attempts: Path | None = None,
    progress: Progress = SILENT,
    grading: VerifyConfig | None = None,
    sampler: Sampler | None = None,
    grader: Grader | None = None,
) -> list[Row]:
    """Metrics of one policy, sampled and greedy; the traces and rewards stay in `folder`.

    Args:
        first_attempts: traces whose first attempts the policy goes on from, in place of its own.
        sampler: a warm one that holds exactly this policy; made here if left out, as is the grader.
    """
    plan = eval_samplings(config, given=first_attempts is not None)
    rows = []
    grading = grading or VerifyConfig(script=config.script)
    with sampler_for(next(iter(plan.values())), policy, sampler) as held, grader_for(grading, grader) as judge:
        for decoding, settings in plan.items():
            traces, rewards = eval_files(folder, name, decoding)
            named = Named(progress, f"{name}, {decoding}")
            sample(
                settings,
                policy=policy,
                problems=problems,
                first_attempts=first_attempts,
                out=traces,
                overwrite=True,
                sampler=held,
                progress=named,
            )
            verify(
                grading,
                traces=traces,
                problems=problems,
                out=rewards,
                overwrite=True,
                grader=judge,
                progress=named,
            )
            if decoding == VOTES:
                corrected = read_counts(config.votes, "votes")
                rows += vote_rows(count_ballots(traces, rewards), policy=name, decoding=SAMPLED, corrected=corrected)
            else:
                pass_at = read_counts(config.pass_at, "pass_at") if decoding == SAMPLED else []
                known, measured = read_problems(problems), measure_tables(traces, rewards)
                rows += metric_rows(measured, policy=name, decoding=decoding, problems=known, pass_at=pass_at)
                if config.calibration:
                    pieces = (piece.records() for piece in iterate_graded(traces, rewards))
                    rows += calibration_rows(pieces, held.text_of_tokens, policy=name, decoding=decoding)
    return rows


def evaluate_policies(
    config: EvalConfig,
    *,
    policies: Iterable[tuple[str, Policy]],
    problems: Path,
    folder: Path,
    out: Path,
    first_attempts: Path | None = None,
    progress: Progress = SILENT,
    grading: VerifyConfig | None = None,
    sampler: Sampler | None = None,
    grader: Grader | None = None,
) -> list[Row]:
    """Metrics of policies side by side, with their paired differences, written to `out`.

    Args:
        policies: each with its name; one is asked for when the one before has been measured.
        sampler: a warm one for all of them; left out, each policy has its own.
    """
    rows: list[Row] = []
    names = []
    # Both decodings of a policy have the same to say of its context and of the problems.
    progress = Once(progress)
    for name, policy in policies:
        if sampler is not None:
            sampler.load(policy)
        rows += evaluate_policy(
            config,
            policy=policy,
            name=name,
            problems=problems,
            folder=folder,
            first_attempts=first_attempts,
            progress=progress,
            grading=grading,
            sampler=sampler,
            grader=grader,
        )
        names.append(name)
    if len(names) > 1:
        tables = _eval_tables(config, names, folder)
        rows += comparisons([(table, measure_tables(table.traces, table.rewards)) for table in tables])
    write_metrics(rows, config, problems=problems, folder=folder, names=names, out=out, first_attempts=first_attempts)
    return rows


def evaluate_checkpoints(
    config: EvalConfig,
    *,
    checkpoints: Sequence[Path],
    problems: Path,
    folder: Path,
    out: Path,
    first_attempts: Path | None = None,
    samples_jsonl: Path | None = None,
    overwrite: bool = False,
    progress: Progress = SILENT,
    grading: VerifyConfig | None = None,
) -> list[Row]:
    """Evaluate checkpoints side by side and write metrics.parquet, and records of every trace where asked for.

    A policy is named after its folder.

    Raises:
        UserError: two checkpoints share a name, or one cannot be loaded, or a setting does not fit.
    """
    names = [path.resolve().name if path.exists() else path.name for path in checkpoints]
    if len(set(names)) < len(names):
        raise UserError(f"policies are named after their folders, and {', '.join(names)} repeat: rename one folder")
    check_names(names)
    known = read_problems(problems)
    check_eval_config(config, known, grading or VerifyConfig())
    check_gold(known, problems, grading or VerifyConfig())
    if first_attempts is not None and config.votes is not None:
        raise UserError("--votes compares first attempts that a policy makes itself: leave out --first-attempts")
    if samples_jsonl is not None:
        check_output(samples_jsonl, overwrite=overwrite)
    for path, name in zip(checkpoints, names, strict=True):
        check_checkpoint(path)
        for decoding in eval_samplings(config):
            for file in eval_files(folder, name, decoding):
                check_output(file, overwrite=overwrite)
    device = policy_device(config, setup_device(config))
    rows = evaluate_policies(
        config,
        policies=zip(names, _loaded(checkpoints, device), strict=True),
        problems=problems,
        folder=folder,
        out=out,
        first_attempts=first_attempts,
        progress=progress,
        grading=grading,
    )
    if samples_jsonl is not None:
        write_samples(samples_jsonl, records_of(_eval_tables(config, names, folder), known))
    return rows


def _loaded(checkpoints: Sequence[Path], device: str) -> Iterator[Policy]:
    """Policies one after another. Nothing is trained here, so that adapters over one base can share it."""
    policy: Policy | None = None
    for path in checkpoints:
        policy = load_policy(path, device=device, beside=policy)
        yield policy


def write_metrics(
    rows: list[Row],
    config: EvalConfig,
    *,
    problems: Path,
    folder: Path,
    names: Sequence[str],
    out: Path,
    first_attempts: Path | None = None,
) -> None:
    """Write metrics.parquet; its footer ties it to the problems, and to the rewards, which are tied to their traces."""
    rewards = {
        f"{name}-{decoding}-rewards": file_sha256(eval_files(folder, name, decoding)[1])
        for name in names
        for decoding in eval_samplings(config)
    }
    given = {} if first_attempts is None else {"first_attempts": file_sha256(first_attempts)}
    apart = {"device", "ray", "ray_samplers", "ray_weights"}
    if not config.calibration:
        apart.add("calibration")
    if config.precision == "auto":
        apart.add("precision")
    if config.script is None or config.script.plain:
        apart.add("script")
    settings = {key: value for key, value in asdict(config).items() if key not in apart}
    footer = Footer(
        table=METRICS.name,
        stage="eval",
        config=settings,
        seed=config.seed,
        inputs={"problems": file_sha256(problems)} | given | rewards,
    )
    write_table(out, METRICS, rows, footer)


def _eval_tables(config: EvalConfig, names: Sequence[str], folder: Path) -> list[EvalTables]:
    return [
        EvalTables(name, decoding, *eval_files(folder, name, decoding))
        for name in names
        for decoding in eval_decodings(config)
    ]
