"""From a model's configuration and a recipe to what an update takes: memory by phase, seconds by part, hours, disk."""

from dataclasses import dataclass
from pathlib import Path

from score_cli.config import (
    DialoguesConfig,
    EvalConfig,
    SampleConfig,
    SftConfig,
    Stage1Config,
    Stage2Config,
    VerifyConfig,
)
from score_cli.doctor.advice import Change, advise
from score_cli.doctor.cards import Assumptions, Card
from score_cli.doctor.duration import NO_ROUNDS, Hours, Part, Supervised, disk_bytes, iteration, recipe_hours
from score_cli.doctor.memory import Job, Peak, Term, budget, peak, phase_bytes, terms, vllm_share
from score_cli.doctor.shape import read_shape
from score_cli.phases import AUTHOR
from score_cli.recipe import Recipe
from score_cli.run_config import RunConfig
from score_cli.tasks.dialogues import read_dialogues


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """What `score doctor` says of a recipe on a card."""

    job: Job
    run: RunConfig
    terms: list[Term]
    phases: dict[str, float]
    peak: Peak
    budget: float
    changes: list[Change]
    parts: list[Part]
    hours: Hours
    disk: list[tuple[str, float]]

    @property
    def fits(self) -> bool:
        """Whether the hungriest phase is within what is the trainer's, and vLLM has room for a trace."""
        return self.peak.bytes <= self.budget and self.starts

    @property
    def starts(self) -> bool:
        """Whether vLLM, where it samples, has room for one of the longest traces: it does not start otherwise."""
        return not self.job.vllm or vllm_share(self.job).traces >= 1

    @property
    def helps(self) -> bool:
        """Whether it would fit with all the changes."""
        job = self.changes[-1].job if self.changes else self.job
        return peak(job).bytes <= budget(job)


def make_job(model: Path, recipe: Recipe, card: Card, assumptions: Assumptions) -> Job:
    """The settings of a recipe that matter here; of the two stages', those of the one with larger passes.

    Raises:
        UserError: the model's configuration cannot be read.
    """
    sample = recipe.settings("sample", SampleConfig)
    stages = [recipe.settings("train-stage1", Stage1Config), recipe.settings("train-stage2", Stage2Config)]
    return Job(
        shape=read_shape(model),
        card=card,
        sample=sample,
        train=max(stages, key=lambda stage: stage.micro_batch_tokens),
        evaluate=recipe.settings("eval", EvalConfig),
        vllm=sample.engine == "vllm" or (sample.engine == "auto" and card.is_gpu),
        workers=recipe.settings("verify", VerifyConfig).workers,
        assumptions=assumptions,
    )


def supervised_of(recipe: Recipe) -> Supervised:
    """What a recipe's supervised rounds learn from.

    Raises:
        UserError: the file of dialogues cannot be read.
    """
    start = recipe.settings("run", RunConfig).start
    dialogues = 0
    if start is not None:
        written = recipe.settings("dialogues", DialoguesConfig).size
        dialogues = written if start == AUTHOR else len(read_dialogues(Path(start)))
    return Supervised(dialogues, recipe.settings("train-sft", SftConfig).epochs)


def predict(job: Job, run: RunConfig, supervised: Supervised = NO_ROUNDS) -> Prediction:
    """Everything that is said of a job."""
    return Prediction(
        job=job,
        run=run,
        terms=terms(job),
        phases=phase_bytes(job),
        peak=peak(job),
        budget=budget(job),
        changes=advise(job),
        parts=iteration(job),
        hours=recipe_hours(job, run, supervised),
        disk=disk_bytes(job, run),
    )
