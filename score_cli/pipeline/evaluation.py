"""`score eval`: sample, verify and measure any number of policies on the same problems."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from score_cli.config import EvalConfig, SampleConfig, VerifyConfig
from score_cli.errors import UserError
from score_cli.evaluation.evaluate import GREEDY, SAMPLED, evaluate
from score_cli.progress import SILENT, Progress
from score_cli.sampling.sample import sample
from score_cli.tables.atomic import check_output
from score_cli.tables.checkpoints import Policy, check_checkpoint, load_policy
from score_cli.tables.machine import use_machine
from score_cli.tables.parquet import METRICS, write_table
from score_cli.tables.provenance import Footer, file_sha256
from score_cli.tables.traces import read_problems
from score_cli.verification.verify import verify


def decodings(config: EvalConfig) -> list[str]:
    """Sampled and greedy; greedy alone where the temperature is 0."""
    return [GREEDY] if config.temperature == 0 else [SAMPLED, GREEDY]


def files_of(folder: Path, name: str, decoding: str) -> tuple[Path, Path]:
    """Where the traces and rewards of one policy and decoding are kept."""
    return folder / f"{name}-{decoding}.traces.parquet", folder / f"{name}-{decoding}.rewards.parquet"


def evaluate_policy(
    config: EvalConfig,
    *,
    policy: Policy,
    name: str,
    problems: Path,
    folder: Path,
    progress: Progress = SILENT,
    grading: VerifyConfig | None = None,
) -> list[dict[str, Any]]:
    """Metrics of one policy, sampled and greedy; the traces and rewards stay in `folder`.

    Every policy is asked with the same random numbers (iteration 0), so that they share their luck.
    """
    rows = []
    for decoding in decodings(config):
        traces, rewards = files_of(folder, name, decoding)
        settings = SampleConfig(
            samples=1 if decoding == GREEDY else config.samples,
            attempts=config.attempts,
            temperature=0.0 if decoding == GREEDY else config.temperature,
            top_p=1.0 if decoding == GREEDY else config.top_p,
            top_k=0 if decoding == GREEDY else config.top_k,
            max_tokens=config.max_tokens,
            correction=config.correction,
            prompts=config.prompts,
            iteration=0,
            seed=config.seed,
            engine=config.engine,
            batch_size=config.batch_size,
            device=config.device,
            threads=config.threads,
        )
        sample(settings, policy=policy, problems=problems, out=traces, overwrite=True, progress=progress)
        verify(
            grading or VerifyConfig(),
            traces=traces,
            problems=problems,
            out=rewards,
            overwrite=True,
            progress=progress,
        )
        rows += evaluate(traces, rewards, policy=name, decoding=decoding)
    return rows


def evaluate_checkpoints(
    config: EvalConfig,
    *,
    checkpoints: Sequence[Path],
    problems: Path,
    folder: Path,
    out: Path,
    overwrite: bool = False,
    progress: Progress = SILENT,
    grading: VerifyConfig | None = None,
) -> list[dict[str, Any]]:
    """Evaluate checkpoints side by side and write metrics.parquet.

    A policy is named after its folder.

    Raises:
        UserError: two checkpoints share a name, or one cannot be loaded.
    """
    names = [path.resolve().name if path.exists() else path.name for path in checkpoints]
    if len(set(names)) < len(names):
        raise UserError(f"policies are named after their folders, and {', '.join(names)} repeat: rename one folder")
    read_problems(problems)
    for path, name in zip(checkpoints, names, strict=True):
        check_checkpoint(path)
        for decoding in decodings(config):
            for file in files_of(folder, name, decoding):
                check_output(file, overwrite=overwrite)
    device = use_machine(config)
    rows = []
    for path, name in zip(checkpoints, names, strict=True):
        policy = load_policy(path, device=device)
        rows += evaluate_policy(
            config, policy=policy, name=name, problems=problems, folder=folder, progress=progress, grading=grading
        )
    write_metrics(rows, config, problems=problems, folder=folder, names=names, out=out)
    return rows


def write_metrics(
    rows: list[dict[str, Any]], config: EvalConfig, *, problems: Path, folder: Path, names: Sequence[str], out: Path
) -> None:
    """Write metrics.parquet; its footer ties it to the problems, and to the rewards, which are tied to their traces."""
    rewards = {
        f"{name}-{decoding}-rewards": file_sha256(files_of(folder, name, decoding)[1])
        for name in names
        for decoding in decodings(config)
    }
    settings = {key: value for key, value in asdict(config).items() if key != "device"}
    footer = Footer(
        table=METRICS.name,
        stage="eval",
        config=settings,
        seed=config.seed,
        inputs={"problems": file_sha256(problems)} | rewards,
    )
    write_table(out, METRICS, rows, footer)
