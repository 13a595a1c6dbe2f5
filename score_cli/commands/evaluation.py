"""`score eval`."""

from pathlib import Path
from typing import Annotated, Any

import typer

from score_cli.commands.arguments import Overwrite
from score_cli.config import EvalConfig
from score_cli.errors import UserError
from score_cli.options import with_settings


@with_settings(EvalConfig, table="eval")
def evaluate(
    settings: EvalConfig,
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
        )
    _print_metrics(rows)


def _print_metrics(rows: list[dict[str, Any]]) -> None:
    from score_cli.evaluation.printing import attempts_of, further_tables, paper_table
    from score_cli.show import print_table

    attempts = attempts_of(rows)
    print_table(*paper_table(rows, attempts))
    for caption, titles, lines in further_tables(rows, attempts):
        typer.echo(f"\n{caption}")
        print_table(titles, lines)
