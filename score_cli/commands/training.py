"""`score train-stage1`, `train-stage2` and `train-sft`."""

from pathlib import Path
from typing import Annotated, Any

import typer

from score_cli.commands.arguments import AllowForeign, Model, NewPhase, Overwrite, Reference, Rewards, Traces
from score_cli.config import SftConfig, Stage1Config, Stage2Config
from score_cli.options import with_settings


@with_settings(Stage1Config, table="train-stage1")
def train_stage1(
    settings: Stage1Config,
    model: Model = Path("ckpt"),
    reference: Reference = None,
    traces: Traces = Path("traces.parquet"),
    rewards: Rewards = Path("rewards.parquet"),
    out: Annotated[Path, typer.Option(help="Checkpoint to write.")] = Path("ckpt-next"),
    overwrite: Overwrite = False,
    allow_foreign: AllowForeign = False,
    new_phase: NewPhase = False,
) -> None:
    """One update of Stage I: raise the last attempt's reward, pin the attempts before it."""
    _train(settings, model, reference, traces, rewards, out, overwrite, allow_foreign, new_phase)


@with_settings(Stage2Config, table="train-stage2")
def train_stage2(
    settings: Stage2Config,
    model: Model = Path("ckpt"),
    reference: Reference = None,
    traces: Traces = Path("traces.parquet"),
    rewards: Rewards = Path("rewards.parquet"),
    out: Annotated[Path, typer.Option(help="Checkpoint to write.")] = Path("ckpt-next"),
    overwrite: Overwrite = False,
    allow_foreign: AllowForeign = False,
    new_phase: NewPhase = False,
) -> None:
    """One update of Stage II: raise every attempt's reward, with a bonus for progress."""
    _train(settings, model, reference, traces, rewards, out, overwrite, allow_foreign, new_phase)


def _train(
    settings: Any,
    model: Path,
    reference: Path | None,
    traces: Path,
    rewards: Path,
    out: Path,
    overwrite: bool,
    allow_foreign: bool,
    new_phase: bool,
) -> None:
    from score_cli.tables.atomic import check_output
    from score_cli.training.trainer import train

    check_output(out, overwrite=overwrite, folder=True)
    summary = train(
        settings,
        model=model,
        reference=reference,
        traces=traces,
        rewards=rewards,
        out=out,
        allow_foreign=allow_foreign,
        new_phase=new_phase,
    )
    typer.echo(f"{out}: {summary}", err=True)


@with_settings(SftConfig, table="train-sft")
def train_sft(
    settings: SftConfig,
    model: Model = Path("ckpt"),
    traces: Traces = Path("traces.parquet"),
    rewards: Rewards = Path("rewards.parquet"),
    examples: Annotated[Path, typer.Option(help="Examples table to write: what is learned, row by row.")] = Path(
        "sft.parquet"
    ),
    out: Annotated[Path, typer.Option(help="Checkpoint to write.")] = Path("ckpt-next"),
    overwrite: Overwrite = False,
    allow_foreign: Annotated[
        bool, typer.Option("--allow-foreign", help="Learn from another policy's traces, or tables without a footer.")
    ] = False,
) -> None:
    """One round of a supervised baseline (STaR, Pair-SFT): examples from traces, then training on them."""
    from score_cli.console import make_progress
    from score_cli.training import sft as stage

    summary = stage.train_sft(
        settings,
        model=model,
        traces=traces,
        rewards=rewards,
        examples=examples,
        out=out,
        overwrite=overwrite,
        allow_foreign=allow_foreign,
        progress=make_progress(),
    )
    typer.echo(f"{out}: {summary}", err=True)
