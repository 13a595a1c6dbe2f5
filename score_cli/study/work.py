"""`score run` of a recipe with a `[study]` table: every row of the paper's tables, or of others, over seeds.

RUN/config.json                 what the study was started with; a resumed one must agree
RUN/recipes/ROW.toml              a row's whole recipe, with the settings chosen for it
RUN/seed-S/ROW/                   the run folder of a row; of the rows with equal bases one trains the base of all
RUN/seed-S/ROW/conditions/        the same policy measured otherwise: metrics tables of `score eval`
RUN/tuning/ROW/0/ ...             run folders of the settings tried, evaluated on validation problems; 0.toml beside;
                                  seed-S/ in it for each seed where settings are chosen on several
RUN/study.parquet, tuning.parquet, study.md

All the work is done by plain `score` commands, a process each, so a row is what `score run` makes of its recipe.
"""

import itertools
import json
import math
import statistics
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from score_cli.config import BaseConfig
from score_cli.errors import UserError
from score_cli.evaluation.evaluate import SAMPLED
from score_cli.evaluation.layout import TextTable
from score_cli.phases import BASE
from score_cli.progress import SILENT, Progress
from score_cli.recipe import Recipe
from score_cli.run_folder import pin_config
from score_cli.study.claims import judge_claims
from score_cli.study.jobs import Job, run_jobs
from score_cli.study.own_tables import OWN_TABLES, own_tables, rows_of
from score_cli.study.plan import Changes, Study, attempts_that_fit, choose, describe, expand_grid, read_study
from score_cli.study.results import (
    BASE_FIRST,
    MORE,
    OWN,
    TRAINING,
    VOTED,
    Claim,
    Results,
    Source,
    collect,
    row_folder,
    study_markdown,
    study_tables,
    write_study,
)
from score_cli.tables.atomic import locked_folder, replacing_file
from score_cli.tables.parquet import METRICS, TUNING, read_table, write_table
from score_cli.tables.provenance import Footer
from score_cli.tables.traces import read_traces

CRITERION = "acc@t2"


class StudyTables(NamedTuple):
    """What a study shows."""

    tables: list[TextTable]
    claims: list[Claim]


def run_study(
    path: Path, recipe: Recipe, folder: Path, *, limit: int | None = None, progress: Progress = SILENT
) -> StudyTables:
    """Do what is not done yet of a study; returns its tables and claims.

    Args:
        path: of the study's recipe.
        folder: RUN.
        limit: use only so many problems of each part.
    Raises:
        UserError: the recipe does not describe a study, or the folder holds another.
        JobError: a row failed.
    """
    study = read_study(path, recipe)
    with locked_folder(folder) as held:
        described = study.described()
        described["study"]["limit"] = limit
        pin_config(folder / "config.json", described)
        work = Work(study, folder, limit)
        run_jobs(work.jobs(), workers=study.config.workers, inherited=[held], progress=progress)
        rows = collect(work.sources(), list(study.config.seeds))
        shown_as = {name: asdict(table) for name, table in study.config.tables.items()}
        write_study(folder / "study.parquet", rows, described | ({OWN_TABLES: shown_as} if shown_as else {}))
        tuning = work.tuning()
        if tuning:
            write_table(folder / "tuning.parquet", TUNING, tuning, Footer(table=TUNING.name, stage="study"))
        results = Results(rows)
        tables = study_tables(results, tuning, work.note(), apart=rows_of(shown_as))
        tables |= own_tables(results, shown_as)
        shown = StudyTables(list(tables.values()), judge_claims(results))
        with replacing_file(folder / "study.md") as temporary:
            temporary.write_text(study_markdown(shown.tables, shown.claims))
    return shown


class Work:
    """The commands of one study, and where their results lie."""

    def __init__(self, study: Study, folder: Path, limit: int | None) -> None:
        self.study = study
        self.config = study.config
        self.folder = folder
        self.limit = [] if limit is None else ["--limit", limit]
        self.grids = {row: expand_grid(grid) for row, grid in self.config.grid.items()}
        # What is measured besides the ordinary evaluation.
        self.conditions = [(row, BASE_FIRST) for row in self.config.first_attempts_of_base]
        if self.config.further is not None:
            self.conditions += [(self.config.further, MORE), (self.config.further, VOTED)]

    def jobs(self) -> list[Job]:
        """Bases, settings tried, rows, and rows measured otherwise; what others wait for comes first."""
        bases = list(dict.fromkeys(self.study.base_row(row) for row in self.config.rows))
        jobs = [self._row(row, seed, []) for seed in self.config.seeds for row in bases]
        for row, grid in self.grids.items():
            for seed, number in itertools.product(self.study.tuning_seeds, range(len(grid))):
                base, output = (
                    [_name(self.study.base_row(row), seed)],
                    self._tried(row, number, seed) / "metrics.parquet",
                )
                arguments = partial(self._run_trial, row, number, seed)
                jobs.append(Job(self._trial(row, number, seed), output, base, arguments))
        for seed in self.config.seeds:
            for row in self.config.rows:
                tuned = [
                    (other, number, tuning_seed)
                    for other in self.study.tuned_by(row)
                    for number in range(len(self.grids[other]))
                    for tuning_seed in self.study.tuning_seeds
                ]
                if row not in bases:
                    base = [_name(self.study.base_row(row), seed)]
                    jobs.append(self._row(row, seed, [*base, *(self._trial(*trial) for trial in tuned)]))
            for row, condition in self.conditions:
                name, output = f"{_name(row, seed)}, {condition}", self._metrics(row, seed, condition)
                jobs.append(Job(name, output, [_name(row, seed)], partial(self._eval_row, row, seed, condition)))
        return jobs

    def sources(self) -> list[Source]:
        """Every metrics table of the study, in the order of rows, with what it stands for."""
        own = {row: table for table in self.config.tables.values() for row in table.rows}
        sources = []
        for seed in self.config.seeds:
            for row in self.config.rows:
                conditions = [condition for name, condition in self.conditions if name == row]
                conditions += [TRAINING] if row in own and own[row].training else []
                sources += [
                    Source(row, seed, condition, self._metrics(row, seed, condition), row in own)
                    for condition in (OWN, *conditions)
                ]
        return sources

    def tuning(self) -> list[dict[str, Any]]:
        """Rows of tuning.parquet."""
        rows = []
        for row, grid in self.grids.items():
            results = [self._validation(row, number) for number in range(len(grid))]
            best = choose([result["value"] for result in results])
            for number, (changes, result) in enumerate(zip(grid, results, strict=True)):
                measured = {key: result[key] for key in ("value", "stderr", "count")}
                named = {"row": row, "number": number, "settings": describe(changes), "chosen": number == best}
                rows.append(named | measured)
        return rows

    def note(self) -> str:
        """What to say of the measurement with more attempts."""
        if self.config.further is None:
            return ""
        count, context = self._attempts(self.config.further, self.config.seeds[0])
        seen = self.study.recipes[self.config.further].settings("base", BaseConfig).attempts
        return (
            f": {count} attempts of at most {self.config.attempt_tokens} tokens are what the base's context of "
            f"{context} tokens holds (asked: {self.config.most_attempts}); training had 2, the base's corpus {seen}"
        )

    def _row(self, row: str, seed: int, needs: list[str]) -> Job:
        return Job(_name(row, seed), self._metrics(row, seed), needs, partial(self._run_row, row, seed))

    def _run_row(self, row: str, seed: int) -> list[object]:
        changes: Changes = {}
        for tuned in self.study.tuned_by(row):
            values = [self._validation(tuned, number)["value"] for number in range(len(self.grids[tuned]))]
            changes |= self.grids[tuned][choose(values)]
        recipe = self._write_recipe(self._recipe(row), row, changes)
        start = [] if row == self.study.base_row(row) else ["--model", self._base(row, seed) / BASE]
        return ["run", recipe, "--seed", seed, "--out", row_folder(self.folder, row, seed), *self.limit, *start]

    def _run_trial(self, row: str, number: int, seed: int) -> list[object]:
        """Settings are tried on a tuning seed's base, with validation problems in place of the test's."""
        base, out = self._base(row, seed), self._tried(row, number, seed)
        recipe = self._write_recipe(self._settings(row, number).with_suffix(".toml"), row, self.grids[row][number])
        inputs = ["--model", base / BASE, "--problems", base / "train.parquet"]
        inputs += ["--eval-problems", base / "validation.parquet"]
        return ["run", recipe, "--seed", seed, "--out", out, *self.limit, *inputs]

    def _eval_row(self, row: str, seed: int, condition: str) -> list[object]:
        """Measure a row's policy otherwise than its run measures it."""
        base, out = self._base(row, seed), self._metrics(row, seed, condition)
        further: dict[str, list[object]] = {
            BASE_FIRST: ["--first-attempts", base / "eval" / "base-sampled.traces.parquet"],
            VOTED: ["--votes", self.config.votes],
        }
        if condition == MORE:
            further[MORE] = ["--attempts", self._attempts(row, seed)[0], "--max-tokens", self.config.attempt_tokens]
        command = ["eval", "--config", self._recipe(row), "--seed", seed, "--model", self._policy(row, seed)]
        command += ["--problems", base / "test.parquet", "--out", out, "--traces-folder", out.with_suffix("")]
        return [*command, *further[condition], "--overwrite"]

    def _write_recipe(self, path: Path, row: str, changes: Changes) -> Path:
        """A row's recipe with other settings as a file, unless it says so already."""
        text = self.study.recipe(row, changes).as_toml()
        if not path.exists() or path.read_text() != text:
            with replacing_file(path) as temporary:
                temporary.write_text(text)
        return path

    def _validation(self, row: str, number: int) -> dict[str, Any]:
        """What settings are chosen by: sampled accuracy at the second attempt, on validation, a mean of the seeds'.

        Its error is that of the mean, from the errors within each seed.
        """
        wanted = (self.study.policy_of(row), SAMPLED, CRITERION)
        found = []
        for seed in self.study.tuning_seeds:
            metrics = read_table(self._tried(row, number, seed) / "metrics.parquet", METRICS).to_pylist()
            found.append(next(line for line in metrics if (line["policy"], line["decoding"], line["name"]) == wanted))
        errors = [line["stderr"] for line in found]
        return {
            "value": statistics.fmean(line["value"] for line in found),
            "stderr": None if None in errors else math.hypot(*errors) / len(errors),
            "count": sum(line["count"] for line in found),
        }

    def _attempts(self, row: str, seed: int) -> tuple[int, int]:
        """How many attempts of one trace fit the context of a row's base, and that context in tokens."""
        base = self._base(row, seed)
        model = json.loads((base / BASE / "config.json").read_text())
        context = int(model["n_positions"] if "n_positions" in model else model["max_position_embeddings"])
        traces = read_traces(base / "eval" / "base-sampled.traces.parquet")
        prompt = max(int((trace.attempt_ids > 0).argmax()) for trace in traces)
        asked = max(int((trace.attempt_ids == 0).sum()) for trace in traces) - prompt
        attempt, most = self.config.attempt_tokens, self.config.most_attempts
        count = attempts_that_fit(context=context, prompt=prompt, bridge=asked, attempt=attempt, most=most)
        if count < 2:
            raise UserError(f"{base}: its context of {context} tokens holds {count} attempt: lower attempt_tokens")
        return count, context

    def _policy(self, row: str, seed: int) -> Path:
        """Checkpoint of a row's policy; rows that train nothing have the base's."""
        name = self.study.policy_of(row)
        return (self._base(row, seed) if name == BASE else row_folder(self.folder, row, seed)) / name

    def _base(self, row: str, seed: int) -> Path:
        """The run folder that holds a row's base, and the problems."""
        return row_folder(self.folder, self.study.base_row(row), seed)

    def _metrics(self, row: str, seed: int, condition: str = OWN) -> Path:
        run = row_folder(self.folder, row, seed)
        files = {OWN: run / "metrics.parquet", TRAINING: run / "train_metrics.parquet"}
        return files.get(condition, run / "conditions" / f"{condition}.parquet")

    def _recipe(self, row: str) -> Path:
        return self.folder / "recipes" / f"{row}.toml"

    def _settings(self, row: str, number: int) -> Path:
        return self.folder / "tuning" / row / str(number)

    def _tried(self, row: str, number: int, seed: int) -> Path:
        settings = self._settings(row, number)
        return settings / f"seed-{seed}" if len(self.study.tuning_seeds) > 1 else settings

    def _trial(self, row: str, number: int, seed: int) -> str:
        return f"{_name(row, seed)}, settings {number} ({describe(self.grids[row][number])})"


def _name(row: str, seed: int) -> str:
    return f"{row}, seed {seed}"
