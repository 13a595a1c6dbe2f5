"""Commands over whole runs: run, status, replay, report, show, doctor."""

import json
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from score_cli.commands.app import app
from score_cli.config import ReportConfig
from score_cli.console import make_progress, say
from score_cli.errors import UserError
from score_cli.options import Overwrite, keys_help, with_settings
from score_cli.recipe import Recipe
from score_cli.run_config import AlarmsConfig, RunConfig

if TYPE_CHECKING:
    from score_cli.run import RunInputs


@app.command(
    short_help="Run a whole recipe in one process, or go on with it.",
    epilog=keys_help("run", RunConfig) + "\n\n" + keys_help("run.alarms", AlarmsConfig),
)
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
    ray: Annotated[
        str | None,
        typer.Option(
            metavar="local|auto|ADDRESS",
            help="Sample and grade in actors of a Ray cluster: --set sample.ray, eval.ray and verify.ray at once.",
        ),
    ] = None,
    trainers: Annotated[
        int, typer.Option(help="Processes that train, in shards of the weights: this one, and actors of --ray.", min=1)
    ] = 1,
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
    if trainers > 1 and ray is None:
        raise UserError("--trainers are actors of a Ray cluster: say which with --ray, or start them with torchrun")
    plan.change([*_on_ray(ray), *(changes or [])])
    folder = out or Path("runs") / recipe.stem
    if plan.study is not None:
        if any(given is not None for given in (seed, model, problems, eval_problems, validation_problems, fork, ray)):
            raise UserError(
                "a study names its seeds itself and is on the built-in task: leave out --seed, --fork, --ray and files"
            )
        _run_study(recipe, plan, folder, limit)
        return
    if seed is not None:
        plan.seed = seed
    if (problems is None) != (eval_problems is None) or (problems is not None and model is None):
        raise UserError("--problems, --eval-problems and --model go together: give all three, or none for division")
    from score_cli.run import RunInputs

    inputs = RunInputs(
        model=model,
        problems=problems,
        eval_problems=eval_problems,
        validation_problems=validation_problems,
        limit=limit,
    )
    if fork is not None:
        from score_cli.run_folder import RunFolder

        RunFolder(folder).fork(fork)
        folder = fork
    _run_recipe(plan, folder, inputs, ray=ray, trainers=trainers)


def _run_recipe(plan: Recipe, folder: Path, inputs: "RunInputs", *, ray: str | None, trainers: int) -> None:
    from score_cli.evaluation.evaluate import MINUS
    from score_cli.evaluation.layout import attempts_of, critic_table, dialogue_table, paper_table
    from score_cli.run import Run
    from score_cli.run_checks import training_device
    from score_cli.show import print_table
    from score_cli.tables.trainers import trainers_on

    with nullcontext() if trainers == 1 else trainers_on(str(ray), trainers, training_device(plan)):
        work = Run(plan, folder, inputs, make_progress())
        rows = work.execute()
    typer.echo(f"{folder / 'metrics.parquet'}: held-out problems, percent, ± standard error clustered by problem")
    policies = [row for row in rows if MINUS not in row["policy"]]
    print_table(paper_table(policies, attempts_of(policies)))
    for table in (dialogue_table(policies), critic_table(policies)):
        if table.lines:
            print_table(table)
    typer.echo(
        f"\n{work.result}: the policy, a checkpoint as any other; `score report {folder}` draws how it came about"
    )


def _on_ray(address: str | None) -> list[str]:
    """What of a recipe lets a run sample and grade on a Ray cluster."""
    return [] if address is None else [f"{table}.ray={json.dumps(address)}" for table in ("sample", "eval", "verify")]


def _run_study(path: Path, recipe: Recipe, folder: Path, limit: int | None) -> None:
    from score_cli.show import print_table
    from score_cli.study.work import run_study

    printed = run_study(path, recipe, folder, limit=limit, progress=make_progress())
    for table in printed.tables:
        print_table(table)
    typer.echo("")
    for claim in printed.claims:
        typer.echo(str(claim))
    typer.echo(f"\n{folder / 'study.md'} holds these tables, {folder / 'study.parquet'} the figures seed by seed")


@app.command(short_help="Say where a run stands, and when it will end.")
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
    from score_cli.report import write_report

    page = out or run / "report.html"
    progress = make_progress()
    names = write_report(
        settings, run=run, out=page, plots=plots, figures=figures, overwrite=overwrite, progress=progress
    )
    say(f"{page}: {page.stat().st_size / 1e6:.1f} MB, {len(names)} figures")


@app.command()
def show(
    traces: Annotated[Path, typer.Argument(help="Traces table to read.")] = Path("traces.parquet"),
    rewards: Annotated[
        Path | None, typer.Option(help="Rewards of these traces; if left out, the file named alike beside them.")
    ] = None,
    problems: Annotated[
        Path | None,
        typer.Option(help="Their problems; if left out, a run's own, or problems.parquet beside the traces."),
    ] = None,
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
    from score_cli.doctor.predict import make_job, predict, supervised_of
    from score_cli.doctor.show import as_text, as_values
    from score_cli.recipe import read_recipe

    plan = read_recipe(recipe) if recipe is not None else Recipe({})
    plan.change(changes or [])
    given = Assumptions(prompt_tokens=prompt_tokens, attempt_share=attempt_share, mfu=mfu)
    job = make_job(model, plan, choose_card(gpu, gpu_memory), given)
    found = predict(job, plan.settings("run", RunConfig), supervised_of(plan))
    typer.echo(json.dumps(as_values(found), indent=2) if as_json else as_text(found))
