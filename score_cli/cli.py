"""The command line: one subcommand a stage, thin over the stage functions.

Heavy libraries are imported inside the commands that need them, so that `score --help` is instant.
"""

import errno
import json
import sys
import traceback
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from score_cli import __version__
from score_cli.config import (
    BaseConfig,
    DataConfig,
    EvalConfig,
    ReportConfig,
    RunConfig,
    SampleConfig,
    SftConfig,
    SignalConfig,
    Stage1Config,
    Stage2Config,
    VerifyConfig,
)
from score_cli.errors import EXIT_BAD_INPUT, EXIT_INTERRUPTED, EXIT_JOB_FAILED, JobError, UserError
from score_cli.interrupts import interrupt_on_signals
from score_cli.options import (
    AllowForeign,
    Model,
    NewPhase,
    Overwrite,
    Problems,
    Reference,
    Rewards,
    Signals,
    Traces,
    with_settings,
)
from score_cli.recipe import Recipe

app = typer.Typer(
    name="score",
    help="Teach a language model to correct itself: SCoRe as staged batch jobs over Parquet files.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

# typer brings its own copy of click in some versions; this is the base of all usage errors in either.
_USAGE_ERROR: Any = next(kind for kind in typer.BadParameter.__mro__ if kind.__name__ == "ClickException")


@app.command()
@with_settings(DataConfig, table="data")
def data(
    settings: DataConfig,
    dataset: Annotated[
        str,
        typer.Argument(
            help="division (built in), math, math500, gsm8k, mbpp, mbpp-sanitized, humaneval, humanevalplus, mbppplus, "
            "reasoning-gym (its data set by --from), or custom for your own JSON, CSV or Parquet."
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
    from score_cli.console import make_progress
    from score_cli.stages.data import write_problems

    count = write_problems(dataset, settings, source=source, out=out, overwrite=overwrite, progress=make_progress())
    typer.echo(f"{out}: {count} problems", err=True)


@app.command(short_help="Train the built-in task's base policy.")
@with_settings(BaseConfig, table="base")
def base(
    settings: BaseConfig,
    out: Annotated[Path, typer.Option(help="Checkpoint to write.")] = Path("ckpt"),
    overwrite: Overwrite = False,
) -> None:
    """Train the built-in task's base policy from scratch, imperfect on purpose; minutes on a CPU."""
    from score_cli.console import make_progress
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
    out: Annotated[Path, typer.Option(help="Traces table to write.")] = Path("traces.parquet"),
    overwrite: Overwrite = False,
) -> None:
    """Sample traces of several attempts from a policy; an interrupted run goes on where it stopped."""
    from score_cli.console import make_progress
    from score_cli.sampling.engine import policy_device
    from score_cli.stages import sample as stage
    from score_cli.tables.atomic import check_output
    from score_cli.tables.checkpoints import load_policy
    from score_cli.tables.device import setup_device

    check_output(out, overwrite=overwrite)
    policy = load_policy(model, device=policy_device(settings, setup_device(settings)))
    stage.sample(
        settings,
        policy=policy,
        problems=problems,
        first_attempts=first_attempts,
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
    typer.echo(f"{out}: {count} shards", err=True)


@app.command()
@with_settings(VerifyConfig, table="verify")
def verify(
    settings: VerifyConfig,
    traces: Traces = Path("traces.parquet"),
    problems: Problems = Path("problems.parquet"),
    out: Annotated[Path, typer.Option(help="Rewards table to write.")] = Path("rewards.parquet"),
    overwrite: Overwrite = False,
) -> None:
    """Grade every attempt of every trace."""
    from score_cli.console import make_progress
    from score_cli.stages import verify as stage

    counts = stage.verify(
        settings, traces=traces, problems=problems, out=out, overwrite=overwrite, progress=make_progress()
    )
    typer.echo(f"{out}: {counts}", err=True)


@app.command("signal", short_help="Let a frozen policy say what solves are worth.")
@with_settings(SignalConfig, table="signal")
def make_signal(
    settings: SignalConfig,
    traces: Traces = Path("traces.parquet"),
    problems: Problems = Path("problems.parquet"),
    out: Annotated[Path, typer.Option(help="Signals table to write.")] = Path("signals.parquet"),
    overwrite: Overwrite = False,
) -> None:
    """Write what a frozen policy says of traces, beside their exact rewards; training alone reads it."""
    from score_cli.console import make_progress
    from score_cli.stages import signal as stage

    said = stage.signal(
        settings, traces=traces, problems=problems, out=out, overwrite=overwrite, progress=make_progress()
    )
    typer.echo(f"{out}: {said}", err=True)


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
        typer.echo(f"{out}: {summary}", err=True)


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


@app.command("train-sft", short_help="One round of a supervised baseline.")
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
    from score_cli.stages import train as stage

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


@app.command("merge-adapter", short_help="Write a policy trained with LoRA as a whole model.")
def merge_adapter(
    model: Annotated[Path, typer.Argument(help="Checkpoint that holds an adapter.")],
    out: Annotated[Path, typer.Option(help="Checkpoint to write.")] = Path("ckpt-merged"),
    overwrite: Overwrite = False,
) -> None:
    """Write a policy that was trained with LoRA as a whole model, which starts a chain of its own."""
    from score_cli.stages.merge_adapter import merge_adapter

    summary = merge_adapter(model, out=out, overwrite=overwrite)
    typer.echo(f"{out}: {summary}", err=True)


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
    from score_cli.console import make_progress
    from score_cli.stages.evaluate import evaluate_checkpoints, evaluate_tables
    from score_cli.tables.atomic import check_output

    if traces and grader:
        raise UserError("--grader grades what is sampled, and --traces measures rewards that exist: leave one out")
    if traces and model:
        raise UserError("--traces measures tables that exist, --model makes new ones: give one of the two")
    if traces and first_attempts:
        raise UserError("--first-attempts is for policies that sample, and --traces measures tables: leave one out")
    if rewards and not traces:
        raise UserError("--rewards belongs to --traces: name the traces that they grade")
    check_output(out, overwrite=overwrite)
    if traces:
        rows = evaluate_tables(
            settings,
            traces=traces,
            rewards=rewards or [],
            problems=problems,
            out=out,
            samples_jsonl=samples_jsonl,
            overwrite=overwrite,
        )
    else:
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


@app.command(short_help="Run a whole recipe in one process, or go on with it.")
def run(
    recipe: Annotated[Path, typer.Argument(help="Recipe (TOML), such as pipelines/quickstart.toml.")],
    out: Annotated[Path | None, typer.Option(help="Run folder; runs/NAME-OF-THE-RECIPE if left out.")] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of every stage; beats the recipe's.")] = None,
    model: Annotated[
        Path | None, typer.Option(help="Policy to start from; left out, the built-in task's base is trained.")
    ] = None,
    problems: Annotated[
        Path | None, typer.Option(help="Problems to train on, made by `score data`; left out, the built-in task's.")
    ] = None,
    eval_problems: Annotated[
        Path | None, typer.Option(help="Problems to evaluate on; left out, the built-in task's held-out ones.")
    ] = None,
    validation_problems: Annotated[
        Path | None,
        typer.Option(help="Problems to choose the best policy by (run.best_every), neither trained on nor reported."),
    ] = None,
    limit: Annotated[
        int | None, typer.Option(help="Use only the first N problems of each file, to try a recipe out.")
    ] = None,
    try_out: Annotated[
        bool,
        typer.Option(
            "--try-out",
            help="See that all parts fit together: two updates a stage, eight problems, attempts of 64 tokens. "
            "--limit and --set beat it.",
        ),
    ] = False,
    fork: Annotated[
        Path | None,
        typer.Option(help="New run folder that takes what --out has done and goes on from it under other settings."),
    ] = None,
    changes: Annotated[
        list[str] | None,
        typer.Option(
            "--set", metavar="TABLE.KEY=VALUE", help="Change a key of the recipe, such as sample.max_tokens=64."
        ),
    ] = None,
) -> None:
    """Run a whole recipe in one process; goes on where an earlier run of it stopped."""
    from score_cli.recipe import TRY_OUT_PROBLEMS, read_recipe

    plan = read_recipe(recipe)
    if try_out:
        if plan.study is not None:
            raise UserError("--try-out is for the recipe of one run, and this is a study's: try it out with --limit 12")
        plan.try_out()
        limit = TRY_OUT_PROBLEMS if limit is None else limit
        out = out or Path("runs") / f"{recipe.stem}-try-out"
    plan.change(changes or [])
    if plan.study is not None:
        if any(given is not None for given in (seed, model, problems, eval_problems, validation_problems, fork)):
            raise UserError(
                "a study names its seeds itself and is on the built-in task: leave out --seed, --fork and files"
            )
        _run_study(recipe, plan, out or Path("runs") / recipe.stem, limit)
        return
    if seed is not None:
        plan.seed = seed
    if (problems is None) != (eval_problems is None) or (problems is not None and model is None):
        raise UserError("--problems, --eval-problems and --model go together: give all three, or none for division")
    from score_cli.console import make_progress
    from score_cli.evaluation.evaluate import MINUS
    from score_cli.evaluation.layout import attempts_of, dialogue_table, paper_table
    from score_cli.run import Run, RunInputs
    from score_cli.run_folder import RunFolder
    from score_cli.show import print_table

    folder = out or Path("runs") / recipe.stem
    if fork is not None:
        RunFolder(folder).fork(fork)
        folder = fork
    inputs = RunInputs(
        model=model,
        problems=problems,
        eval_problems=eval_problems,
        validation_problems=validation_problems,
        limit=limit,
    )
    rows = Run(plan, folder, inputs, make_progress()).execute()
    typer.echo(f"{folder / 'metrics.parquet'}: held-out problems, percent, ± standard error clustered by problem")
    policies = [row for row in rows if MINUS not in row["policy"]]
    print_table(paper_table(policies, attempts_of(policies)))
    if (dialogues := dialogue_table(policies)).lines:
        print_table(dialogues)


def _run_study(path: Path, recipe: Recipe, folder: Path, limit: int | None) -> None:
    from score_cli.console import make_progress
    from score_cli.show import print_table
    from score_cli.study.work import run_study

    printed = run_study(path, recipe, folder, limit=limit, progress=make_progress())
    for table in printed.tables:
        print_table(table)
    typer.echo("")
    for claim in printed.claims:
        typer.echo(str(claim))
    typer.echo(f"\n{folder / 'study.md'} holds these tables, {folder / 'study.parquet'} the figures seed by seed")


@app.command()
def status(
    run: Annotated[Path, typer.Argument(help="Run folder, finished or under way.")],
) -> None:
    """Say where a run stands: update, seconds by part, overhead, verdicts, and when it will end."""
    from score_cli.status import status_lines

    for line in status_lines(run):
        typer.echo(line)


@app.command(short_help="Take an update of a run again, and prove its policy.")
def replay(
    run: Annotated[Path, typer.Argument(help="Run folder.")],
    iteration: Annotated[int, typer.Option(help="Number of the update, as its folder under iterations/ has it.")],
    token: Annotated[
        tuple[str, int] | None,
        typer.Option(
            metavar="PROBLEM SAMPLE",
            help="Show each sampled token of this trace: advantage, weight, and its logprob by sampler, trainer and "
            "reference.",
        ),
    ] = None,
    model: Annotated[
        Path | None, typer.Option(help="Policy that the run was started from, where it was given.")
    ] = None,
) -> None:
    """Take an update of a run again from its files, and prove that it gives the policy that the run went on with."""
    from score_cli.console import make_progress
    from score_cli.replay import TraceName, replay
    from score_cli.show import print_credits

    trace = None if token is None else TraceName(*token)
    found = replay(run, iteration, model=model, trace=trace, progress=make_progress())
    if found.credits:
        print_credits(found.credits, model or run / "base")
    proof = "which the run has not come to use yet" if found.proved_by is None else f"as {found.proved_by} has it"
    typer.echo(f"update {iteration} gives policy {found.policy[:12]}, {proof}")


@app.command(short_help="Write one self-contained page of a run or a study.")
@with_settings(ReportConfig, table="report")
def report(
    settings: ReportConfig,
    run: Annotated[
        Path,
        typer.Argument(
            help="Folder that holds metrics.parquet and eval/: of a run, of a study, or `.` after a bare `score eval`."
        ),
    ],
    out: Annotated[Path | None, typer.Option(help="Page to write; RUN/report.html if left out.")] = None,
    plots: Annotated[Path | None, typer.Option(help="Folder for each figure as SVG and PNG, for a paper.")] = None,
    figures: Annotated[
        Path | None,
        typer.Option(
            help="Folder for two figures of a run, as SVG for light and dark pages: the loop on one of its traces "
            "(loop.svg, loop-dark.svg), and accuracy over the updates (curve.svg, curve-dark.svg)."
        ),
    ] = None,
    overwrite: Overwrite = False,
) -> None:
    """Write one self-contained page of a run or a study: tables, curves, flows of answers, and traces to browse."""
    from score_cli.console import make_progress
    from score_cli.report import write_report

    page = out or run / "report.html"
    progress = make_progress()
    names = write_report(
        settings, run=run, out=page, plots=plots, figures=figures, overwrite=overwrite, progress=progress
    )
    typer.echo(f"{page}: {page.stat().st_size / 1e6:.1f} MB, {len(names)} figures", err=True)


@app.command()
def show(
    traces: Annotated[Path, typer.Argument(help="Traces table to read.")] = Path("traces.parquet"),
    rewards: Annotated[
        Path | None, typer.Option(help="Rewards of these traces; if left out, the file named alike beside them.")
    ] = None,
    problems: Annotated[Path | None, typer.Option(help="Problems; problems.parquet beside the traces.")] = None,
    problem: Annotated[str | None, typer.Option(help="Only traces of this problem_id.")] = None,
    only: Annotated[
        str | None, typer.Option(help="Only these verdicts, attempt by attempt: i-c, c-i, i-i, c-c, or any such chain.")
    ] = None,
    limit: Annotated[int, typer.Option(help="Most traces to print.")] = 10,
    tokens: Annotated[
        bool, typer.Option("--tokens", help="Show which tokens were sampled, with their logprobs.")
    ] = False,
    model: Annotated[Path | None, typer.Option(help="Checkpoint whose tokenizer spells the tokens out.")] = None,
) -> None:
    """Read traces in the terminal."""
    from score_cli.show import show_traces

    show_traces(
        traces,
        rewards=rewards,
        problems=problems,
        problem=problem,
        only=only,
        limit=limit,
        tokens=tokens,
        model=model,
    )


@app.command(short_help="Show what is installed; predict a recipe's memory and hours.")
def doctor(
    model: Annotated[
        Path | None,
        typer.Option(help="Predict what training this model takes: a folder with a config.json, or a hub id."),
    ] = None,
    recipe: Annotated[
        Path | None, typer.Option(help="Recipe (TOML) to predict; every default and --set if left out.")
    ] = None,
    changes: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="TABLE.KEY=VALUE", help="Change a key of the recipe, as for `score run`."),
    ] = None,
    gpu: Annotated[
        str | None,
        typer.Option(help="rtx4090, l40s, a100, h100, h200, or cpu; by --gpu-memory, or h100, if left out."),
    ] = None,
    gpu_memory: Annotated[float | None, typer.Option(help="Its memory in GiB, where it is not the usual one.")] = None,
    prompt_tokens: Annotated[int, typer.Option(help="Mean tokens of a problem as it is asked.")] = 150,
    attempt_share: Annotated[
        float, typer.Option(help="Mean length of an attempt, as a share of the longest it may have.")
    ] = 0.4,
    mfu: Annotated[float, typer.Option(help="Share of the GPU's rate that training reaches.")] = 0.35,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Show what is installed and what would run where; with --model, predict a recipe's memory, hours and disk.

    Nothing is loaded or downloaded but the model's configuration.
    """
    from score_cli.doctor import environment

    if model is None:
        if recipe is not None or changes or gpu is not None or gpu_memory is not None:
            raise UserError("a prediction is of a model: add --model, such as Qwen/Qwen2.5-1.5B-Instruct")
        typer.echo(environment.as_json() if as_json else environment.as_text())
        return
    from score_cli.doctor.cards import Assumptions, choose_card
    from score_cli.doctor.predict import make_job, predict
    from score_cli.doctor.show import as_text, as_values
    from score_cli.recipe import read_recipe

    plan = read_recipe(recipe) if recipe is not None else Recipe({})
    plan.change(changes or [])
    given = Assumptions(prompt_tokens=prompt_tokens, attempt_share=attempt_share, mfu=mfu)
    found = predict(make_job(model, plan, choose_card(gpu, gpu_memory), given), plan.settings("run", RunConfig))
    typer.echo(json.dumps(as_values(found), indent=2) if as_json else as_text(found))


@app.callback(invoke_without_command=True)
def top(version: Annotated[bool, typer.Option("--version", help="Show the version and exit.")] = False) -> None:
    """Teach a language model to correct itself: SCoRe as staged batch jobs over Parquet files."""
    if version:
        typer.echo(__version__)
        raise typer.Exit


def main() -> None:
    """Run the command line; every error a user can cause is one line on standard error."""
    interrupt_on_signals()
    sys.exit(run_command())


def run_command(arguments: list[str] | None = None) -> int:
    """Run one command and return its exit code: 0 done, 1 failed, 2 bad input, 130 interrupted."""
    try:
        # Outside standalone mode typer returns the exit code, or raises what it would have printed.
        code = typer.main.get_command(app)(args=arguments, prog_name="score", standalone_mode=False) or 0
        return _interrupted() if code == EXIT_INTERRUPTED else int(code)
    except UserError as error:
        return _fail(str(error), EXIT_BAD_INPUT)
    except JobError as error:
        return _fail(str(error), EXIT_JOB_FAILED)
    except _USAGE_ERROR as error:
        if type(error).__name__ == "NoArgsIsHelpError":
            print(error.format_message(), file=sys.stderr)
            return EXIT_BAD_INPUT
        command = error.ctx.command_path if getattr(error, "ctx", None) else "score"
        return _fail(f"{error.format_message()} (see `{command} --help`)", EXIT_BAD_INPUT)
    except KeyboardInterrupt:
        return _interrupted()
    except RuntimeError as error:
        if type(error).__name__ != "OutOfMemoryError":
            raise
        return _fail(_out_of_memory(error), EXIT_JOB_FAILED)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            return _fail(f"no space to write {error.filename or 'the output'}: free some and run the command again", 1)
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            return _fail(f"no permission for {error.filename or 'the output'}: name a place you may write to", 2)
        if error.errno in (errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ENAMETOOLONG):
            return _fail(f"{error.filename} cannot be used ({error.strerror}): name another place", EXIT_BAD_INPUT)
        raise


def _interrupted() -> int:
    return _fail("interrupted: nothing half-written is left; run the command again to go on", EXIT_INTERRUPTED)


def _out_of_memory(error: RuntimeError) -> str:
    """What to lower, by where in the package torch found no more memory on the GPU."""
    modules = [frame.f_globals.get("__name__", "") for frame, _ in traceback.walk_tb(error.__traceback__)]
    if any(module.startswith("score_cli.sampling") for module in modules):
        advice = "lower batch_size or max_tokens of sample and eval"
    else:
        advice = (
            "lower micro_batch_tokens or scoring_tokens of the training stage, or gpu_memory_utilization if vLLM runs "
            "beside it"
        )
    # torch says more, line after line; its first sentences tell how much was asked for and how much was free.
    reason = ". ".join(str(error).split(". ")[:2])
    return f"the GPU has no memory left ({reason}): {advice}"


def _fail(message: str, code: int) -> int:
    # One line, whatever a library put into its message.
    print("score: " + " ".join(message.split()), file=sys.stderr)
    return code
