"""`score data`: write a problems table."""

from dataclasses import asdict
from pathlib import Path

from score_cli.config import DataConfig
from score_cli.errors import UserError
from score_cli.tables.atomic import check_output
from score_cli.tables.parquet import PROBLEMS, write_table
from score_cli.tables.provenance import Footer
from score_cli.tasks import division

SPLITS = ("train", "validation", "test")


def write_problems(dataset: str, config: DataConfig, *, out: Path, overwrite: bool = False) -> int:
    """Write the problems of a data set; returns how many.

    Raises:
        UserError: no such data set or split, or the output exists.
    """
    check_output(out, overwrite=overwrite)
    if dataset != "division":
        raise UserError(f"no data set is named {dataset}, expected division")
    if config.split not in SPLITS:
        raise UserError(f"division has no split {config.split}, expected one of {', '.join(SPLITS)}")
    if config.limit is not None and config.limit < 1:
        raise UserError(f"limit is {config.limit}, expected at least 1")
    problems = division.split_problems(config.split)[: config.limit]
    footer = Footer(table=PROBLEMS.name, stage="data", config={"dataset": dataset} | asdict(config))
    write_table(out, PROBLEMS, [asdict(problem) for problem in problems], footer)
    return len(problems)
