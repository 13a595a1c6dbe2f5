"""What a run asks of its recipe, checked before anything is trained."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

from score_cli.config import DIALOGUE_METHODS, DeviceConfig, SampleConfig, SftConfig, Stage1Config, Stage2Config
from score_cli.errors import UserError
from score_cli.phases import Phase
from score_cli.recipe import Recipe
from score_cli.run_config import RunConfig
from score_cli.run_folder import table_of
from score_cli.run_phases import RunConfigs
from score_cli.sampling.sampler import Sampler
from score_cli.stages.evaluate import eval_samplings
from score_cli.tables.adapters import adapted_layers, lora_config
from score_cli.tables.checkpoints import Policy
from score_cli.tables.records import REVISION, Problem
from score_cli.training.optimizer import check_packages, check_schedule

Stage = TypeVar("Stage", Stage1Config, Stage2Config)


def resolved(recipe: Recipe, limit: int | None) -> RunConfigs:
    """The settings of a recipe, once it is seen that a run can take them.

    Raises:
        UserError: they ask for what a run does itself, or for what it cannot train on.
    """
    configs = RunConfigs.of(recipe)
    if limit is not None and limit < 1:
        raise UserError(f"--limit is {limit}, expected at least 1")
    if limit is not None and configs.sample.problems_per_iteration is not None:
        fewer = min(limit, configs.sample.problems_per_iteration)
        configs = replace(configs, sample=replace(configs.sample, problems_per_iteration=fewer))
    if recipe.has("data") or configs.sample.iteration is not None or configs.sample.temperature == 0:
        raise UserError(
            "a run takes its problems from --problems, counts its iterations itself and trains on samples: "
            "leave [data], sample.iteration and sample.temperature = 0 out of the recipe"
        )
    _check_sampling(configs.sample, reinforced=configs.run.stage1_iterations + configs.run.stage2_iterations > 0)
    _check_script(configs)
    _check_signal(configs, asked=recipe.has("signal"))
    _check_first_attempts(configs)
    for stage in (configs.stage1, configs.stage2, configs.sft):
        check_packages(stage)
    configs = replace(
        configs,
        stage1=_whole_schedule("train-stage1", configs.stage1, configs.run.stage1_iterations),
        stage2=_whole_schedule("train-stage2", configs.stage2, configs.run.stage2_iterations),
    )
    if configs.eval.correction is None:
        configs = replace(configs, eval=replace(configs.eval, correction=configs.sample.correction))
    return _in_one_precision(configs)


def training_device(recipe: Recipe) -> DeviceConfig:
    """Where a process of a run trains, and in how many threads at most."""
    configs = RunConfigs.of(recipe)
    run = configs.run
    stages = ((configs.stage1, run.stage1_iterations), (configs.stage2, run.stage2_iterations))
    supervised = [configs.sft] if run.start is not None or run.sft_rounds else []
    return max(
        [*supervised, *(stage for stage, updates in stages if updates)],
        key=lambda stage: stage.threads,
        default=configs.stage2,
    )


def _in_one_precision(configs: RunConfigs) -> RunConfigs:
    """The settings with `sample.precision` in every stage: sampler and trainer must agree.

    Raises:
        UserError: another stage asks for what sampling does not.
    """
    asked = configs.sample.precision
    for name in ("signal", "stage1", "stage2", "sft", "eval"):
        stage = getattr(configs, name)
        if stage.precision not in ("auto", asked):
            raise UserError(
                f"{table_of(name)}.precision is {stage.precision} and sample.precision {asked}: a run computes in one, "
                "so set sample.precision, which every stage of a run takes"
            )
        configs = replace(configs, **{name: replace(stage, precision=asked)})
    return configs


def _whole_schedule(table: str, config: Stage, iterations: int) -> Stage:
    """The settings of a stage whose schedule ends with its iterations, where they do not say when.

    Raises:
        UserError: they say that it ends earlier.
    """
    total = config.schedule_updates
    if total is not None and total < iterations:
        raise UserError(
            f"{table}.schedule_updates is {total}, and the stage has {iterations} iterations: raise it, or leave it out"
        )
    if config.schedule != "constant" and iterations and total is None:
        config = replace(config, schedule_updates=iterations)
    if iterations:
        check_schedule(config)
    return config


def _check_sampling(config: SampleConfig, *, reinforced: bool) -> None:
    """Refuse settings under which a run's traces could not be trained on, before anything is trained."""
    if config.shard is not None or config.offline_share is not None:
        raise UserError(
            "a run samples all of its traces itself: leave sample.shard and sample.offline_share out of the recipe"
        )
    if config.top_p < 1 or config.top_k > 0:
        raise UserError(
            "a run trains on samples of the whole distribution: leave sample.top_p and sample.top_k out of the recipe"
        )
    if reinforced and config.samples < 2 and not (config.script is not None and config.script.needs_solves):
        raise UserError(
            "sample.samples is 1, and the baseline is a mean over a problem's other traces: set it to 2 or more"
        )


def _check_script(configs: RunConfigs) -> None:
    """Refuse phases that a script's traces cannot be trained in, before anything is trained."""
    script, run = configs.sample.script, configs.run
    if script is None or script.only_solves:
        return
    if script.needs_solves:
        _check_critic(configs)
    if run.stage1_iterations:
        raise UserError(
            "run.stage1_iterations is set, and Stage I is for solves alone: leave it out, or let the turns of [script] "
            "hold no other role"
        )
    if run.sft_rounds and configs.sft.method not in DIALOGUE_METHODS:
        raise UserError(
            f"run.sft_rounds is set, and train-sft.method {configs.sft.method} learns from two solves: with [script] "
            f"name one of {', '.join(DIALOGUE_METHODS)}"
        )


def _check_critic(configs: RunConfigs) -> None:
    """Refuse a critic that nobody pays for, or that is to be measured as a solver is, before anything is trained."""
    pay = configs.stage2.pay
    if pay is None or REVISION not in pay.signals:
        raise UserError(
            "[script] begins with critique, and a run pays critiques for revisions: give [pay] critique = "
            '{ "signal:revision" = 1.0 } and [signal] kind = "revision"'
        )
    if configs.run.sft_rounds or configs.run.start is not None:
        raise UserError(
            "run.start and run.sft_rounds learn from solves, and [script] begins with critique: leave them out"
        )
    if configs.run.best_every is not None:
        raise UserError("run.best_every measures solves, and [script] begins with critique: leave it out")
    if configs.eval.calibration:
        raise UserError("eval.calibration is of a policy's own solves, and [script] begins with critique: leave it out")
    if configs.run.offline_first_attempts:
        raise UserError("run.offline_first_attempts is for solves, and [script] begins with critique: leave it out")


def check_passes(configs: RunConfigs, base: Policy, train: Sequence[Problem], test: Sequence[Problem]) -> None:
    """Refuse what would outgrow the context: a solve, a critique and another solve, in a row."""
    for problems, config in ((train, configs.sample), (test, next(iter(eval_samplings(configs.eval).values())))):
        plain = replace(config, script=None, attempts=3, problems_per_iteration=None, iteration=0)
        if plain.max_tokens is None:
            raise UserError("a critic's turns share one length: set sample.max_tokens and eval.max_tokens")
        Sampler(plain, base).plan(problems, plain)


def check_adapters(phases: Sequence[Phase], base: Policy) -> None:
    """Refuse adapters that the policy has no place for, before anything is trained."""
    for phase in phases if not adapted_layers(base.model) else ():
        config = phase.config
        if config.lora_rank:
            lora_config(
                base.model,
                rank=config.lora_rank,
                alpha=config.lora_alpha,
                targets=config.lora_targets,
                layers=config.lora_layers,
            )


def check_best(
    run: RunConfig, phases: Sequence[Phase], *, problems: Path | None, validation_problems: Path | None
) -> None:
    """Refuse a best policy that nothing would choose, before anything is trained."""
    if validation_problems is not None and (run.best_every is None or problems is None):
        raise UserError(
            "--validation-problems choose the best of the policies trained on --problems: give those too, and set "
            "run.best_every"
        )
    if run.evaluate == "best" and run.best_every is None:
        raise UserError("run.evaluate is best, and no best policy is kept: set run.best_every, or evaluate the last")
    if run.best_every is not None and (not phases or isinstance(phases[-1].config, SftConfig)):
        raise UserError("run.best_every chooses among the policies of a last phase of Stage I or II: leave it out")


def _check_signal(configs: RunConfigs, *, asked: bool) -> None:
    """Refuse a signal that nothing is paid for, and pay for one that is not made, before anything is trained."""
    paid = [] if configs.stage2.pay is None else configs.stage2.pay.signals
    kind = configs.signal.kind
    if asked and not paid:
        raise UserError(
            f'[signal] makes {kind}, and [pay] pays nothing for it: give [pay] solve = {{ "signal:{kind}" = 1.0 }}, or '
            "leave [signal] out"
        )
    other = [name for name in paid if name != kind]
    if other:
        raise UserError(f'[pay] reads signal:{other[0]}, and a run makes {kind}: give [signal] kind = "{other[0]}"')


def _check_first_attempts(configs: RunConfigs) -> None:
    """Refuse first attempts that no stage could go on from, before anything is trained."""
    if not configs.run.offline_first_attempts:
        return
    if not configs.run.stage2_iterations or configs.sample.attempts < 2:
        raise UserError("run.offline_first_attempts is for a Stage II of two attempts or more: leave it out, or add it")
    if configs.sample.max_tokens is None:
        raise UserError("run.offline_first_attempts needs attempts of one length: set sample.max_tokens")
