"""`score data`: write a problems table, after seeing that its own answers pass its own verifier."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from score_cli.config import DataConfig, VerifyConfig
from score_cli.errors import UserError
from score_cli.progress import SILENT, Progress
from score_cli.settings import read_counts
from score_cli.tables.atomic import check_output
from score_cli.tables.parquet import PROBLEMS
from score_cli.tables.problems import write_problems_table
from score_cli.tables.provenance import Footer, file_sha256
from score_cli.tables.records import Problem
from score_cli.tables.schemas import CORRECT
from score_cli.tasks import datasets_reasoning_gym, division, stories
from score_cli.tasks.loaders import DATASETS, Columns, load
from score_cli.tasks.readers import Loaded
from score_cli.verification.grader import has_grader, make_graders
from score_cli.verification.task_grader import Item

# Tasks that are made here: problems by split, the same for ever.
MADE = {"division": division.split_problems, stories.TASK: stories.split_problems}
REASONING_GYM = "reasoning-gym"
SPLITS = ("train", "validation", "test")
_CHECKED_AT_A_TIME = 64
_NAMED = 100
# Options that are recorded for one data set alone.
_OPTIONS_OF = {
    stories.TASK: ("levels",),
    "custom": ("layout", "hold_out", "level_column", "subject_column"),
    REASONING_GYM: ("size", "seed", "dataset_config"),
}


def write_problems(
    dataset: str,
    config: DataConfig,
    *,
    source: str | None = None,
    out: Path,
    overwrite: bool = False,
    progress: Progress = SILENT,
) -> int:
    """Write the problems of a data set; returns how many.

    Args:
        source: file, folder or hub id that the problems are read from; none for the built-in task.
    Raises:
        UserError: no such data set, split or source, or the output exists.
    """
    check_output(out, overwrite=overwrite)
    if dataset in MADE:
        problems = _made_problems(dataset, config, source)
    elif dataset == REASONING_GYM:
        problems = _procedural_problems(config, source, progress)
    else:
        problems = _loaded_problems(dataset, config, source, progress)
    is_read = source is not None and dataset != REASONING_GYM and Path(source).is_file()
    inputs = {"source": file_sha256(Path(str(source)))} if is_read else {}
    footer = Footer(table=PROBLEMS.name, stage="data", config=_recorded(dataset, config, source), inputs=inputs)
    write_problems_table(out, problems, footer)
    return len(problems)


def _recorded(dataset: str, config: DataConfig, source: str | None) -> dict[str, Any]:
    """What the footer says of how the problems were made: the options that the data set has."""
    foreign = {name for owner, names in _OPTIONS_OF.items() if owner != dataset for name in names}
    made = {"from": source, "version": datasets_reasoning_gym.version()} if dataset == REASONING_GYM else {}
    recorded = {name: value for name, value in asdict(config).items() if name not in foreign}
    return {"dataset": dataset} | recorded | made


def _made_problems(dataset: str, config: DataConfig, source: str | None) -> list[Problem]:
    if source is not None:
        raise UserError(f"{dataset} is built in, expected no --from: leave it out")
    split = config.split or SPLITS[0]
    if split not in SPLITS:
        raise UserError(f"{dataset} has no split {split}, expected one of {', '.join(SPLITS)}")
    if config.limit is not None and config.limit < 1:
        raise UserError(f"limit is {config.limit}, expected at least 1")
    problems, levels = MADE[dataset](split), read_counts(config.levels, "levels")
    if levels and (dataset != stories.TASK or not {*levels} <= {*stories.LEVELS}):
        known = f"{stories.LEVELS[0]} to {stories.LEVELS[-1]}"
        raise UserError(f"levels is {config.levels}, expected levels of {stories.TASK}, {known}, with commas between")
    return [problem for problem in problems if not levels or int(problem.level or 0) in levels][: config.limit]


def _procedural_problems(config: DataConfig, source: str | None, progress: Progress) -> list[Problem]:
    if source is None:
        raise UserError("reasoning-gym has many data sets: pass --from with the name of one, such as chain_sum")
    loaded = datasets_reasoning_gym.make_problems(
        source,
        split=config.split or SPLITS[0],
        size=min(config.size, config.limit or config.size),
        seed=config.seed,
        config=datasets_reasoning_gym.read_config(config.dataset_config),
        progress=progress,
    )
    if config.check:
        _check_golds(loaded, progress)
    return [problem for problem, _ in loaded]


def _loaded_problems(dataset: str, config: DataConfig, source: str | None, progress: Progress) -> list[Problem]:
    if source is None and dataset in DATASETS:
        raise UserError(f"{dataset} is not built in: pass --from with its files or a hub id (see data/README.md)")
    is_custom = dataset == "custom"
    loaded = load(
        dataset,
        source=source or "",  # `load` names the data sets there are before it looks at the source
        split=config.split,
        limit=config.limit,
        shots=config.shots,
        shown_tests=config.shown_tests,
        columns=_columns(config) if is_custom else None,
        task=config.task if is_custom else None,
        hold_out=config.hold_out,
    )
    if config.check:
        _check_golds(loaded, progress)
    return [problem for problem, _ in loaded]


def _columns(config: DataConfig) -> Columns:
    return Columns(
        problem_id=config.id_column,
        question=config.question_column,
        answer=config.answer_column,
        tests=config.tests_column,
        entry_point=config.entry_point_column,
        setup=config.setup_column,
        level=config.level_column,
        subject=config.subject_column,
        reference=config.reference_column,
        layout=config.layout,
    )


def _check_golds(golds: Sequence[Loaded], progress: Progress) -> None:
    """Grade each problem's own answer, and say which do not pass."""
    unserved = sorted({task for task in {gold.problem.task for gold in golds} if not has_grader(task)})
    if unserved:
        progress.line(f"no grader serves task {', '.join(unserved)}: its gold answers are not checked")
        golds = [gold for gold in golds if gold.problem.task not in unserved]
    if not golds:
        return
    failed = [f"{gold.problem.problem_id} (no answer)" for gold in golds if gold.gold_response is None]
    items = [Item(gold.problem, gold.gold_response) for gold in golds if gold.gold_response is not None]
    graders = make_graders({item.problem.task for item in items}, VerifyConfig())
    try:
        with progress.phase("checking gold answers", len(items)) as bar:
            for task, grader in graders.items():
                own = [item for item in items if item.problem.task == task]
                for start in range(0, len(own), _CHECKED_AT_A_TIME):
                    part = own[start : start + _CHECKED_AT_A_TIME]
                    for item, graded in zip(part, grader.grade(part), strict=True):
                        if graded.verdict != CORRECT:
                            failed.append(f"{item.problem.problem_id} ({graded.verdict})")
                    bar.advance(len(part))
    finally:
        for grader in graders.values():
            grader.close()
    if failed:
        more = f" and {len(failed) - _NAMED} more" if len(failed) > _NAMED else ""
        named = ", ".join(failed[:_NAMED]) + more
        progress.line(f"{len(failed)} of {len(golds)} gold answers do not pass their own verifier: {named}")
    else:
        progress.line(f"all {len(golds)} gold answers pass their own verifier")
