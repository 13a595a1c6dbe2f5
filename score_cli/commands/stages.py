"""One command a stage: Parquet files in, Parquet files and checkpoints out."""

from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from score_cli.commands.app import app
from score_cli.config import (
    BaseConfig,
    DataConfig,
    EvalConfig,
    SampleConfig,
    SignalConfig,
    Stage1Config,
    Stage2Config,
    Stored,
    VerifyConfig,
)
from score_cli.console import make_progress, say
from score_cli.errors import UserError
from score_cli.options import (
    AllowForeign,
    Critiques,
    GivenRewards,
    GivenSolves,
    Model,
    NewPhase,
    Overwrite,
    Problems,
    Reference,
    Revisions,
    Rewards,
    ScriptPart,
    Signals,
    Traces,
    with_settings,
)


@app.command()
@with_settings(DataConfig, table="data")
def data(
    settings: DataConfig,
    dataset: Annotated[
        str,
        typer.Argument(
            help="division or stories (built in), math, math500, gsm8k, mbpp, mbpp-sanitized, humaneval, "
            "humanevalplus, mbppplus, reasoning-gym (its data set by --from), or custom for your own JSON, CSV or "
            "Parquet."
        ),
    ],
    source: Annotated[
        str | None,
        typer.Option(
            "--from",
            help="File, folder or Hugging Face id that the problems are read from; a data set of reasoning-gym.",
        ),
    ] = None,
    out: Annotated[Path, typer.Option(help="Problems table to write.")] = Path("problems.parquet"),
    overwrite: Overwrite = False,
) -> None:
    """Write a problems table."""
    from score_cli.stages.data import write_problems

    count = write_problems(dataset, settings, source=source, out=out, overwrite=overwrite, progress=make_progress())
    say(f"{out}: {count} problems")


@app.command(short_help="Train the built-in task's base policy.")
@with_settings(BaseConfig, table="base")
def base(
    settings: BaseConfig,
    out: Annotated[Path, typer.Option(help="Checkpoint to write.")] = Path("ckpt"),
    overwrite: Overwrite = False,
) -> None:
    """Train the built-in task's base policy from scratch, imperfect on purpose; minutes on a CPU."""
    from score_cli.stages.base import build_base

    build_base(settings, out=out, overwrite=overwrite, progress=make_progress())


@app.command(short_help="Sample traces of several attempts from a policy.")
@with_settings(SampleConfig, table="sample")
def sample(
    settings: SampleConfig,
    model: Model = Path("ckpt"),
    problems: Problems = Path("problems.parquet"),
    first_attempts: Annotated[
        Path | None,
        typer.Option(help="Traces whose first attempts are taken as they are; only the later ones are sampled."),
    ] = None,
    part: ScriptPart = None,
    solves: GivenSolves = None,
    critiques: Critiques = None,
    out: Annotated[Path, typer.Option(help="Traces table to write.")] = Path("traces.parquet"),
    overwrite: Overwrite = False,
) -> None:
    """Sample traces of several attempts from a policy; an interrupted run goes on where it stopped."""
    from score_cli.sampling.engine import policy_device
    from score_cli.stages import sample as stage
    from score_cli.stages.given import choose_pass
    from score_cli.tables.atomic import check_output
    from score_cli.tables.checkpoints import load_policy
    from score_cli.tables.device import setup_device

    check_output(out, overwrite=overwrite)
    settings, sources = choose_pass(settings, part, solves, critiques)
    policy = load_policy(model, device=policy_device(settings, setup_device(settings)))
    stage.sample(
        settings,
        policy=policy,
        problems=problems,
        first_attempts=first_attempts,
        sources=sources,
        out=out,
        overwrite=overwrite,
        progress=make_progress(),
    )


@app.command(short_help="Join the traces of all shards of a sampling job.")
def merge(
    shards: Annotated[list[Path], typer.Argument(help="Traces of every shard of one sampling job, in any order.")],
    out: Annotated[Path, typer.Option(help="Traces table to write.")] = Path("traces.parquet"),
    overwrite: Overwrite = False,
) -> None:
    """Join the traces of all shards into the file that one unsharded run writes, byte for byte."""
    from score_cli.stages import sample as stage

    count = stage.merge(shards, out=out, overwrite=overwrite)
    say(f"{out}: {count} shards")


@app.command()
@with_settings(VerifyConfig, table="verify")
def verify(
    settings: VerifyConfig,
    traces: Traces = Path("traces.parquet"),
    problems: Problems = Path("problems.parquet"),
    given_rewards: GivenRewards = None,
    out: Annotated[Path, typer.Option(help="Rewards table to write.")] = Path("rewards.parquet"),
    overwrite: Overwrite = False,
) -> None:
    """Grade every attempt of every trace."""
    from score_cli.stages import verify as stage

    counts = stage.verify(
        settings,
        traces=traces,
        problems=problems,
        given_rewards=given_rewards,
        out=out,
        overwrite=overwrite,
        progress=make_progress(),
    )
    say(f"{out}: {counts}")


@app.command("signal", short_help="Let a frozen policy say what solves are worth.")
@with_settings(SignalConfig, table="signal")
def make_signal(
    settings: SignalConfig,
    traces: Traces = Path("traces.parquet"),
    problems: Problems = Path("problems.parquet"),
    revisions: Revisions = None,
    revision_rewards: Annotated[
        Path | None, typer.Option(help="Rewards of --revisions; if left out, the file named alike beside them.")
    ] = None,
    out: Annotated[Path, typer.Option(help="Signals table to write.")] = Path("signals.parquet"),
    overwrite: Overwrite = False,
) -> None:
    """Write what a frozen policy says of traces, beside their exact rewards; training alone reads it."""
    from score_cli.stages import revision, signal

    if settings.kind == "revision":
        said = revision.signal(traces, revisions, revision_rewards, out=out, overwrite=overwrite)
    elif revisions is not None or revision_rewards is not None:
        raise UserError(f"--revisions are for --kind revision, and the kind is {settings.kind}: leave them out")
    else:
        said = signal.signal(
            settings, traces=traces, problems=problems, out=out, overwrite=overwrite, progress=make_progress()
        )
    say(f"{out}: {said}")


def _add_training(kind: type, *, name: str, short_help: str, help_text: str) -> None:
    """Add one of the two training stages: they differ in their settings alone."""

    @app.command(name, short_help=short_help, help=help_text)
    @with_settings(kind, table=name)
    def command(
        settings: Any,
        model: Model = Path("ckpt"),
        reference: Reference = None,
        traces: Traces = Path("traces.parquet"),
        rewards: Rewards = Path("rewards.parquet"),
        signals: Signals = None,
        out: Annotated[Path, typer.Option(help="Checkpoint to write.")] = Path("ckpt-next"),
        overwrite: Overwrite = False,
        allow_foreign: AllowForeign = False,
        new_phase: NewPhase = False,
    ) -> None:
        from score_cli.stages.train import train
        from score_cli.tables.atomic import check_output

        check_output(out, overwrite=overwrite, folder=True)
        summary = train(
            settings,
            model=model,
            reference=reference,
            traces=traces,
            rewards=rewards,
            signals=signals,
            out=out,
            allow_foreign=allow_foreign,
            new_phase=new_phase,
        )
        say(f"{out}: {summary}")


_add_training(
    Stage1Config,
    name="train-stage1",
    short_help="One update of Stage I: the last attempt's reward.",
    help_text="One update of Stage I: raise the last attempt's reward, pin the attempts before it.",
)
_add_training(
    Stage2Config,
    name="train-stage2",
    short_help="One update of Stage II: every reward, and a bonus.",
    help_text="One update of Stage II: raise every attempt's reward, with a bonus for progress.",
)


@app.command("import-model", short_help="Make a checkpoint of a GGUF file.")
def import_model(
    file: Annotated[Path, typer.Argument(help="GGUF file.")],
    out: Annotated[Path, typer.Option(help="Checkpoint to write.")] = Path("ckpt"),
    dtype: Annotated[Stored, typer.Option(help="What the weights are stored in.")] = "float32",
    tokenizer: Annotated[
        str | None, typer.Option(help="Tokenizer in place of the file's: a folder, or a Hugging Face model id.")
    ] = None,
    overwrite: Overwrite = False,
) -> None:
    """Make a checkpoint of a GGUF file, quantised or not, of any architecture that transformers reads."""
    from score_cli.stages.import_model import import_model

    summary = import_model(
        file, out=out, dtype=dtype, tokenizer=tokenizer, overwrite=overwrite, progress=make_progress()
    )
    say(f"{out}: {summary}")


@app.command("merge-adapter", short_help="Write a policy trained with LoRA as a whole model.")
def merge_adapter(
    model: Annotated[Path, typer.Argument(help="Checkpoint that holds an adapter.")],
    out: Annotated[Path, typer.Option(help="Checkpoint to write.")] = Path("ckpt-merged"),
    dtype: Annotated[Stored, typer.Option(help="What the weights are stored in.")] = "float32",
    overwrite: Overwrite = False,
) -> None:
    """Write a policy that was trained with LoRA as a whole model, which starts a chain of its own."""
    from score_cli.stages.merge_adapter import merge_adapter

    summary = merge_adapter(model, out=out, dtype=dtype, overwrite=overwrite)
    say(f"{out}: {summary}")


@app.command("eval", short_help="Measure policies side by side.")
@with_settings(EvalConfig, table="eval", beside={"grading": ("verify", VerifyConfig)})
def evaluate(
    settings: EvalConfig,
    grading: VerifyConfig,
    grader: Annotated[
        str | None, typer.Option(help="As for `score verify`; its other settings stand in [verify] of --config.")
    ] = None,
    model: Annotated[
        list[Path] | None,
        typer.Option(metavar="PATH", help="Policies to evaluate; give it once for each. ckpt if left out."),
    ] = None,
    problems: Annotated[
        Path | None,
        typer.Option(
            help="Problems table, made by `score data`; problems.parquet if left out. With --traces it is optional, "
            "for figures by level and subject."
        ),
    ] = None,
    out: Annotated[Path, typer.Option(help="Metrics table to write.")] = Path("metrics.parquet"),
    traces_folder: Annotated[
        Path, typer.Option(help="Folder for the traces and rewards that the metrics are made of.")
    ] = Path("eval"),
    first_attempts: Annotated[
        Path | None,
        typer.Option(
            help="Traces of one policy, such as the base: every policy evaluated makes its later attempts after these "
            "first ones, with --samples of them a problem in either decoding."
        ),
    ] = None,
    traces: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="PATH",
            help="Measure this traces table, named after its file, in place of sampling from a model; give it once for "
            "each. Of the settings, --pass-at and --votes apply.",
        ),
    ] = None,
    rewards: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="PATH",
            help="Rewards of --traces, one for each; if left out, x.rewards.parquet beside x.traces.parquet.",
        ),
    ] = None,
    escalate: Annotated[
        Path | None,
        typer.Option(
            help="Traces of another policy on the same problems, with rewards beside them: accuracy against the share "
            "of --traces' first solves that are handed over to its last ones, the least trusted first."
        ),
    ] = None,
    signals: Annotated[
        Path | None,
        typer.Option(
            help="What says which solves of --traces are trusted, made by `score signal`; their own claims if left out."
        ),
    ] = None,
    samples_jsonl: Annotated[
        Path | None,
        typer.Option(
            help="Also write one JSON object a trace, as lm-evaluation-harness logs samples: doc_id, doc, target, "
            "resps and filtered_resps (one entry an attempt), acc, acc@t1, acc@t2 (null where unscored), verdicts."
        ),
    ] = None,
    overwrite: Overwrite = False,
) -> None:
    """Measure policies side by side, sampled and greedy, and print the paper's table and paired differences."""
    from score_cli.tables.atomic import check_output

    if traces and grader:
        raise UserError("--grader grades what is sampled, and --traces measures rewards that exist: leave one out")
    if traces and model:
        raise UserError("--traces measures tables that exist, --model makes new ones: give one of the two")
    if traces and first_attempts:
        raise UserError("--first-attempts is for policies that sample, and --traces measures tables: leave one out")
    if rewards and not traces:
        raise UserError("--rewards belongs to --traces: name the traces that they grade")
    if escalate and not traces:
        raise UserError("--escalate hands answers of --traces over: name the traces of the policy that hands them over")
    if signals and not escalate:
        raise UserError("--signals says which answers to hand over, and no --escalate says to whom: name its traces")
    check_output(out, overwrite=overwrite)
    if traces:
        from score_cli.stages.evaluate_tables import evaluate_tables

        rows = evaluate_tables(
            settings,
            traces=traces,
            rewards=rewards or [],
            problems=problems,
            out=out,
            samples_jsonl=samples_jsonl,
            escalate=escalate,
            signals=signals,
            overwrite=overwrite,
        )
    else:
        from score_cli.stages.evaluate import evaluate_checkpoints

        rows = evaluate_checkpoints(
            settings,
            checkpoints=model or [Path("ckpt")],
            problems=problems or Path("problems.parquet"),
            folder=traces_folder,
            out=out,
            first_attempts=first_attempts,
            samples_jsonl=samples_jsonl,
            overwrite=overwrite,
            progress=make_progress(),
            grading=grading if grader is None else replace(grading, grader=grader),
        )
    _print_metrics(rows)


def _print_metrics(rows: list[dict[str, Any]]) -> None:
    from score_cli.evaluation.layout import attempts_of, metric_tables
    from score_cli.show import print_table

    for table in metric_tables(rows, attempts_of(rows)):
        print_table(table)
