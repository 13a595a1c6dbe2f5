"""The settings of a run: how much of each stage, what it keeps and measures, and its alarms."""

from dataclasses import dataclass
from typing import Literal

from score_cli.settings import option

SftAfter = Literal["base", "stage1", "stage2"]
Overlap = Literal["refuse", "drop", "keep"]
Evaluated = Literal["last", "best"]
OnAlarm = Literal["off", "warn", "stop"]


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """`score run`: how many iterations of each stage, and rounds of supervised training."""

    stage1_iterations: int = option(0, "Iterations of Stage I.", least=0)
    stage1_by_attempt: bool = option(
        False,
        "Split Stage I into a phase for each attempt from the second on, each of stage1_iterations: a phase raises "
        "its attempt's reward and pins the attempts before to the policy of the phase before (the base at first).",
    )
    stage2_iterations: int = option(0, "Iterations of Stage II.", least=0)
    offline_first_attempts: float = option(
        0.0,
        "Share of each problem's samples that go on, in Stage II, from first attempts drawn once from the base.",
        least=0,
        most=1,
    )
    given_solves: int = option(
        2, "With a [script] that begins with critique: solves of each training problem, drawn once.", least=1
    )
    critique_rounds: int = option(
        3, "With such a script: rounds of critique and revision in the evaluation.", least=1, most=60
    )
    start: str | None = option(
        None,
        "Dialogues to learn from before all else, and to measure KL from after that: a file, or `author` for those of "
        "[dialogues].",
    )
    start_rounds: int = option(
        1, "Rounds of that start, each of train-sft.epochs with fresh moments; a killed run loses one.", least=1
    )
    sft_rounds: int = option(0, "Rounds of supervised training: collect, verify, train on the examples.", least=0)
    sft_after: SftAfter = option("base", "Which policy the supervised rounds start from; later stages go on from them.")
    sft_problems: int | None = option(
        None, "Most problems that a supervised round collects from; all if left out.", least=1
    )
    overlap: Overlap = option(
        "refuse",
        "What becomes of problems whose question the evaluation asks too: refuse the run, drop them from training, "
        "or keep them.",
    )
    save_every: int = option(10, "Keep a checkpoint every N iterations; a killed run goes on from the last.", least=1)
    keep_checkpoints: int = option(1, "How many of those stay, the newest; ends of phases always do.", least=1)
    compact_every: int = option(
        100,
        "Keep the tables of so many consecutive updates in one folder, once as many newer updates are there; 0 leaves "
        "each update its own.",
        least=0,
    )
    best_every: int | None = option(
        None,
        "Of the last phase's policies after every N updates, keep the best too, in RUN/best: by the validation "
        "problems, or where there are none by the traces trained on. None is kept if left out.",
        least=1,
    )
    evaluate: Evaluated = option(
        "last", "Which policy of the last phase is measured in the end: its last, or its best."
    )
    log_to: str = option(
        "",
        "Who draws the figures of each update, besides RUN/log.jsonl: tensorboard, wandb (offline, unless WANDB_MODE "
        "says otherwise) and trackio, with commas between.",
    )


@dataclass(frozen=True, kw_only=True)
class AlarmsConfig:
    """`[run.alarms]`: what a run that goes wrong is known by, and what happens then.

    A run that is stopped keeps its policy; the same command goes on, where its limits allow it.
    """

    kl: OnAlarm = option("warn", "Where the sampled KL of some attempt exceeds kl_limit.")
    kl_limit: float = option(50.0, "Nats an attempt, from the reference.", above=0)
    unscored: OnAlarm = option("warn", "Where more attempts than unscored_limit could not be graded.")
    unscored_limit: float = option(0.01, "Share of an update's attempts.", least=0, most=1)
    no_reward: OnAlarm = option("warn", "Where no attempt was right for no_reward_updates.")
    no_reward_updates: int = option(10, "Updates without a right attempt.", least=1)
    collapse: OnAlarm = option(
        "warn",
        "Where fewer answers than collapse_limit change from attempt to attempt while first attempts get better.",
    )
    collapse_limit: float = option(0.01, "Share of answers that differ from the attempt before.", least=0, most=1)
    collapse_updates: int = option(
        20, "Updates that both are measured over; first attempts half against half.", least=2
    )
    held_out: OnAlarm = option(
        "warn",
        "Where the shaped rewards rise while the accuracy on validation problems falls by held_out_limit or more; "
        "run.best_every measures it.",
    )
    held_out_limit: float = option(0.02, "Fall of that accuracy, from the older half to the newer.", above=0, most=1)
    held_out_measurements: int = option(4, "Measurements that are looked at, half against half.", least=2)
