"""Rounds of a supervised baseline inside `score run`: collect with the newest policy, verify, train, again.

A round is one iteration of the run, with its traces, rewards, examples (`sft.parquet`) and metrics
in the iteration's folder. Every round loads its policy from the checkpoint before, as the commands do.
"""

import shutil
from dataclasses import replace
from pathlib import Path

from score_cli.config import SampleConfig, SftConfig, VerifyConfig
from score_cli.phases import Phase
from score_cli.progress import SILENT, Progress
from score_cli.stages.sample import sample
from score_cli.stages.verify import verify
from score_cli.tables.atomic import replacing_file
from score_cli.tables.checkpoints import METRICS_FILE, TRAINER, load_policy, stored_state
from score_cli.tables.device import setup_device
from score_cli.training.sft import train_sft


def run_sft_rounds(
    phase: Phase,
    *,
    sampling: SampleConfig,
    grading: VerifyConfig,
    problems: Path,
    start: Path,
    kept: Path | None,
    folder: Path,
    progress: Progress = SILENT,
) -> None:
    """Do the rounds that are not done yet; the last one's checkpoint is named after the phase.

    Args:
        sampling: with the number of problems that a round collects from.
        start: the policy of the first round.
        kept: the checkpoint of the newest finished round, if there is one.
        folder: the run's.
    """
    assert isinstance(phase.config, SftConfig)
    origin, finished = start, phase.first
    if kept is not None:
        keep_round_metrics(kept, folder)
        origin, finished = kept, int(kept.name)
    while finished < phase.last:
        round_folder = folder / "iterations" / f"{finished:04d}"
        traces, rewards = round_folder / "traces.parquet", round_folder / "rewards.parquet"
        policy = load_policy(origin, device=setup_device(sampling))
        chosen = replace(sampling, attempts=phase.attempts)
        # A file left by a killed run is made again: it would be the same, but nothing proves it.
        sample(chosen, policy=policy, problems=problems, out=traces, overwrite=True, progress=progress)
        verify(grading, traces=traces, problems=problems, out=rewards, overwrite=True, progress=progress)
        finished += 1
        out = folder / phase.name if finished == phase.last else folder / "latest" / f"{finished:04d}"
        summary = train_sft(
            phase.config,
            model=origin,
            traces=traces,
            rewards=rewards,
            examples=round_folder / "sft.parquet",
            out=out,
            overwrite=True,
            progress=progress,
        )
        progress.line(f"{phase.name}: {summary}")
        keep_round_metrics(out, folder)
        if origin != start:
            shutil.rmtree(origin)
        origin = out


def keep_round_metrics(checkpoint: Path, folder: Path) -> None:
    """Put the metrics of the round that made a checkpoint into its iteration's folder."""
    iteration = stored_state(checkpoint).iteration - 1
    with replacing_file(folder / "iterations" / f"{iteration:04d}" / METRICS_FILE) as temporary:
        shutil.copyfile(checkpoint / TRAINER / METRICS_FILE, temporary)
