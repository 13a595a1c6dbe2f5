"""The command line's app, to which the other modules of this folder add their commands."""

from typing import Annotated

import typer

from score_cli import __version__

app = typer.Typer(
    name="score",
    help="Teach a language model to correct itself: SCoRe as staged batch jobs over Parquet files.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


@app.callback(invoke_without_command=True)
def top(version: Annotated[bool, typer.Option("--version", help="Show the version and exit.")] = False) -> None:
    """Teach a language model to correct itself: SCoRe as staged batch jobs over Parquet files."""
    if version:
        typer.echo(__version__)
        raise typer.Exit
