"""Learning from examples: dialogues to learn from, and a round of learning."""

from pathlib import Path
from typing import Annotated, Any

import typer

from score_cli.commands.app import app
from score_cli.config import DialoguesConfig, SampleConfig, SftConfig
from score_cli.console import make_progress, say
from score_cli.errors import UserError
from score_cli.options import Model, Overwrite, Problems, with_settings


@app.command("train-sft", short_help="One supervised round: on a policy's own traces, or on given dialogues.")
@with_settings(SftConfig, table="train-sft", beside={"sampling": ("sample", SampleConfig)})
def train_sft(
    settings: SftConfig,
    sampling: SampleConfig,
    model: Model = Path("ckpt"),
    examples: Annotated[
        Path | None,
        typer.Option(help="Given dialogues (.jsonl, .parquet) to learn from, in place of the policy's own traces."),
    ] = None,
    traces: Annotated[
        Path | None, typer.Option(help="Traces table, made by `score sample`; traces.parquet if left out.")
    ] = None,
    rewards: Annotated[
        Path | None, typer.Option(help="Rewards table, made by `score verify`; rewards.parquet if left out.")
    ] = None,
    learned: Annotated[Path, typer.Option(help="Table to write: what is learned, row by row.")] = Path("sft.parquet"),
    out: Annotated[Path, typer.Option(help="Checkpoint to write.")] = Path("ckpt-next"),
    overwrite: Overwrite = False,
    allow_foreign: Annotated[
        bool, typer.Option("--allow-foreign", help="Learn from another policy's traces, or tables without a footer.")
    ] = False,
) -> None:
    """One supervised round, on a policy's own traces or on given dialogues.

    The traces give examples (STaR, Pair-SFT, a script's dialogues). Given ones (--examples) are asked as [script],
    [sample] and [prompts] of --config say.
    """
    from score_cli.stages import train_sft as stage

    where: dict[str, Any] = {"model": model, "learned": learned, "out": out, "overwrite": overwrite}
    if examples is None:
        summary = stage.train_sft(
            settings,
            traces=traces or Path("traces.parquet"),
            rewards=rewards or Path("rewards.parquet"),
            allow_foreign=allow_foreign,
            progress=make_progress(),
            **where,
        )
    elif traces or rewards:
        raise UserError("--examples are dialogues to learn from in place of --traces and --rewards: leave those out")
    else:
        summary = stage.train_start(settings, sampling, examples=examples, progress=make_progress(), **where)
    say(f"{out}: {summary}")


@app.command(short_help="Write dialogues for a supervised start.")
@with_settings(DialoguesConfig, table="dialogues")
def dialogues(
    settings: DialoguesConfig,
    problems: Problems = Path("problems.parquet"),
    out: Annotated[Path, typer.Option(help="Dialogues (JSON lines) to write.")] = Path("dialogues.jsonl"),
    overwrite: Overwrite = False,
) -> None:
    """Write dialogues by an imperfect author, for `score train-sft --examples`; of tasks that are built in."""
    from score_cli.stages.dialogues import make_dialogues

    count = make_dialogues(settings, problems=problems, out=out, overwrite=overwrite)
    say(f"{out}: {count} dialogues")
