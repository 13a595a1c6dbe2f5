"""`score base`: train the built-in task's base policy, then see whether it has the latent skill."""

import tempfile
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from score_cli.config import BaseConfig, DataConfig, SampleConfig, VerifyConfig
from score_cli.evaluation.evaluate import SAMPLED, metric_rows
from score_cli.evaluation.measured import measure_tables
from score_cli.progress import SILENT, Progress
from score_cli.stages.data import write_problems
from score_cli.stages.sample import sample
from score_cli.stages.verify import verify
from score_cli.tables.checkpoints import Policy
from score_cli.tasks.division import CORRECTION, LATENT_CORRECTION
from score_cli.training.base_policy import train_base

# Bases whose latent revision loses more than this were seen to collapse to copying.
SKILL_FLOOR = -0.05


class Probe(NamedTuple):
    """Change in accuracy from attempt 1 to 2 on validation problems, under each instruction."""

    asked: float
    latent: float

    @property
    def has_skill(self) -> bool:
        """Whether reinforcement learning has a skill to call up."""
        return self.latent > SKILL_FLOOR

    def __str__(self) -> str:
        return (
            f"validation delta at T = 1: {100 * self.asked:+.1f} points when asked with {CORRECTION}, "
            f"{100 * self.latent:+.1f} with {LATENT_CORRECTION}, its latent skill (careful revision, which training is "
            f"to call up under {CORRECTION})"
        )


def build_base(config: BaseConfig, *, out: Path, overwrite: bool = False, progress: Progress = SILENT) -> Probe:
    """Train the base policy and probe it; says aloud when the latent skill is missing."""
    policy = train_base(config, out=out, overwrite=overwrite, progress=progress)
    probe = probe_latent_skill(policy)
    progress.line(f"{out}: {probe}")
    if not probe.has_skill:
        progress.line(
            f"warning: {out} has no latent skill (it loses more than {-100 * SKILL_FLOOR:.0f} points under "
            f"{LATENT_CORRECTION}): expect training to collapse to copying; raise --steps or --latent-share"
        )
    return probe


def probe_latent_skill(policy: Policy, *, samples: int = 8) -> Probe:
    """Ask for corrections in the pipeline's words and in those of the skill that it never uses."""
    settings = SampleConfig(samples=samples, iteration=0, batch_size=256)
    deltas = []
    with tempfile.TemporaryDirectory() as name:
        problems, traces, rewards = (Path(name) / f"{part}.parquet" for part in ("problems", "traces", "rewards"))
        write_problems("division", DataConfig(split="validation"), out=problems)
        for words in (CORRECTION, LATENT_CORRECTION):
            chosen = replace(settings, correction=words)
            sample(chosen, policy=policy, problems=problems, out=traces, overwrite=True)
            verify(VerifyConfig(), traces=traces, problems=problems, out=rewards, overwrite=True)
            rows = metric_rows(measure_tables(traces, rewards), policy=words, decoding=SAMPLED)
            deltas.append(next(row["value"] for row in rows if row["name"] == "delta@t2"))
    return Probe(*deltas)
