"""`score dialogues`: write dialogues for a supervised start, for the tasks that have an author of them."""

from pathlib import Path

from score_cli.config import DialoguesConfig
from score_cli.settings import check_config
from score_cli.tables.atomic import check_output
from score_cli.tables.problems import read_problems
from score_cli.tasks.authors import author_dialogues
from score_cli.tasks.dialogues import write_dialogues


def make_dialogues(config: DialoguesConfig, *, problems: Path, out: Path, overwrite: bool = False) -> int:
    """Write dialogues on the problems of a table; returns how many.

    Raises:
        UserError: the output exists, or the problems are of a task that nobody writes dialogues of.
    """
    check_config(config)
    check_output(out, overwrite=overwrite)
    write_dialogues(out, author_dialogues(read_problems(problems), config))
    return config.size
