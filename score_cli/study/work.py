"""`score run` of a recipe with a `[study]` table: every row of the paper's tables, over seeds.

RUN/config.json                 what the study was started with; a resumed one must agree
RUN/recipes/ROW.toml              a row's whole recipe, with the settings chosen for it
RUN/seed-S/base/                  the run folder of row `base`; all other rows start from its policy
RUN/seed-S/ROW/                   the run folder of a row
RUN/seed-S/ROW/conditions/        the same policy measured otherwise: metrics tables of `score eval`
RUN/tuning/ROW/0/ ...             run folders of the settings tried, evaluated on validation problems; 0.toml beside
RUN/study.parquet, tuning.parquet, study.md

All the work is done by plain `score` commands, a process each, so a row is what `score run` makes of its recipe.
"""

import json
from collections.abc import Callable, Sequence
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
from score_cli.study.claims import Claim, judge_claims
from score_cli.study.jobs import Job, holding_folder, run_jobs
from score_cli.study.plan import Changes, Study, attempts_that_fit, choose, describe, expand_grid, read_study
from score_cli.study.results import (
    BASE_FIRST,
    MORE,
    VOTED,
    Results,
    Source,
    collect,
    study_markdown,
    study_tables,
    write_study,
)
from score_cli.tables.atomic import replacing_file
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
    with holding_folder(folder) as held:
        described = study.described()
        described["study"]["limit"] = limit
        pin_config(folder / "config.json", described)
        work = _Work(study, folder, limit)
        run_jobs(work.jobs(), workers=study.config.workers, inherited=[held], progress=progress)
        rows = collect(work.sources(), list(study.config.seeds))
        write_study(folder / "study.parquet", rows, described)
        tuning = work.tuning()
        if tuning:
            write_table(folder / "tuning.parquet", TUNING, tuning, Footer(table=TUNING.name, stage="study"))
        results = Results(rows)
        shown = StudyTables(list(study_tables(results, tuning, work.note()).values()), judge_claims(results))
        with replacing_file(folder / "study.md") as temporary:
            temporary.write_text(study_markdown(shown.tables, shown.claims))
    return shown


class _Work:
    """The commands of one study, and where their results lie."""

    def __init__(self, study: Study, folder: Path, limit: int | None) -> None:
        self.study = study
        self.config = study.config
        self.folder = folder
        self.limit = [] if limit is None else ["--limit", str(limit)]
        self.grids = {row: expand_grid(grid) for row, grid in self.config.grid.items()}

    def jobs(self) -> list[Job]:
        """Bases, settings tried, rows, and rows measured otherwise; what others wait for comes first."""
        jobs = [self._base(seed) for seed in self.config.seeds]
        jobs += [self._trial(row, number) for row, grid in self.grids.items() for number in range(len(grid))]
        for seed in self.config.seeds:
            jobs += [self._row(row, seed) for row in self.config.rows if row != BASE]
            jobs += [self._measured(row, seed, condition) for row, condition in self._conditions()]
        return jobs

    def sources(self) -> list[Source]:
        """Every metrics table of the study, in the order of rows, with what it stands for."""
        found = []
        for seed in self.config.seeds:
            for row in self.config.rows:
                found.append(Source(row, seed, "own", self._run(row, seed) / "metrics.parquet"))
                own = [condition for name, condition in self._conditions() if name == row]
                found += [Source(row, seed, c, self._condition_file(row, seed, c)) for c in own]
        return found

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
        count, context = self._attempts(self.config.seeds[0])
        seen = self.study.recipes[BASE].settings("base", BaseConfig).attempts
        return (
            f": {count} attempts of at most {self.config.attempt_tokens} tokens are what the base's context of "
            f"{context} tokens holds (asked: {self.config.most_attempts}); training had 2, the base's corpus {seen}"
        )

    def _base(self, seed: int) -> Job:
        def arguments() -> list[str]:
            return self._run_command(BASE, seed, self._run(BASE, seed), self._write_recipe(BASE))

        return self._job(BASE, seed, self._run(BASE, seed) / "metrics.parquet", [], arguments)

    def _row(self, row: str, seed: int) -> Job:
        def arguments() -> list[str]:
            start = ["--model", str(self._policy(BASE, seed))]
            return self._run_command(row, seed, self._run(row, seed), self._write_recipe(row)) + start

        needs = [_name(BASE, seed)] + [
            self._trial_name(tuned, number)
            for tuned in self.study.tuned_by(row)
            for number in range(len(self.grids[tuned]))
        ]
        return self._job(row, seed, self._run(row, seed) / "metrics.parquet", needs, arguments)

    def _trial(self, row: str, number: int) -> Job:
        """One of the settings tried for a row: seed 0's base, and validation problems in place of the test's."""
        seed, out = self.config.seeds[0], self.folder / "tuning" / row / str(number)

        def arguments() -> list[str]:
            recipe = self.folder / "tuning" / row / f"{number}.toml"
            _write(recipe, self.study.recipe(row, self.grids[row][number]).as_toml())
            parts = self._run(BASE, seed)
            inputs = ["--model", self._policy(BASE, seed), "--problems", parts / "train.parquet"]
            inputs += ["--eval-problems", parts / "validation.parquet"]
            return self._run_command(row, seed, out, recipe) + [str(part) for part in inputs]

        return Job(
            name=self._trial_name(row, number),
            output=out / "metrics.parquet",
            needs=[_name(BASE, seed)],
            arguments=arguments,
        )

    def _measured(self, row: str, seed: int, condition: str) -> Job:
        """A row's policy measured otherwise than its run measures it."""
        out = self._condition_file(row, seed, condition)

        def arguments() -> list[str]:
            base = self._run(BASE, seed)
            parts = ["eval", "--config", self._recipe_file(row), "--seed", seed, "--model", self._policy(row, seed)]
            parts += ["--problems", base / "test.parquet", "--out", out, "--traces-folder", out.with_suffix("")]
            if condition == BASE_FIRST:
                parts += ["--first-attempts", base / "eval" / "base-sampled.traces.parquet"]
            elif condition == MORE:
                parts += ["--attempts", self._attempts(seed)[0], "--max-tokens", self.config.attempt_tokens]
            else:
                parts += ["--votes", self.config.votes]
            return [*(str(part) for part in parts), "--overwrite"]

        name = f"{_name(row, seed)}, {condition}"
        return Job(name=name, output=out, needs=[_name(row, seed)], arguments=arguments)

    def _job(self, row: str, seed: int, output: Path, needs: Sequence[str], arguments: Callable[[], list[str]]) -> Job:
        return Job(name=_name(row, seed), output=output, needs=needs, arguments=arguments)

    def _run_command(self, row: str, seed: int, out: Path, recipe: Path) -> list[str]:
        return ["run", str(recipe), "--seed", str(seed), "--out", str(out), *self.limit]

    def _conditions(self) -> list[tuple[str, str]]:
        """(row, condition) of everything that is measured besides the ordinary evaluation."""
        found = [(row, BASE_FIRST) for row in self.config.first_attempts_of_base]
        if self.config.further is not None:
            found += [(self.config.further, MORE), (self.config.further, VOTED)]
        return found

    def _write_recipe(self, row: str) -> Path:
        """The recipe of a row, with the settings chosen for it, as a file."""
        changes: Changes = {}
        for tuned in self.study.tuned_by(row):
            values = [self._validation(tuned, number)["value"] for number in range(len(self.grids[tuned]))]
            changes |= self.grids[tuned][choose(values)]
        _write(self._recipe_file(row), self.study.recipe(row, changes).as_toml())
        return self._recipe_file(row)

    def _validation(self, row: str, number: int) -> dict[str, Any]:
        """The metrics row that settings are chosen by: sampled accuracy at the second attempt, on validation."""
        metrics = read_table(self.folder / "tuning" / row / str(number) / "metrics.parquet", METRICS).to_pylist()
        wanted = (self.study.policy_of(row), SAMPLED, CRITERION)
        return next(line for line in metrics if (line["policy"], line["decoding"], line["name"]) == wanted)

    def _attempts(self, seed: int) -> tuple[int, int]:
        """How many attempts of one trace fit the base's context, and that context in tokens."""
        base = self._run(BASE, seed)
        model = json.loads((self._policy(BASE, seed) / "config.json").read_text())
        context = int(model["n_positions"] if "n_positions" in model else model["max_position_embeddings"])
        traces = read_traces(base / "eval" / "base-sampled.traces.parquet")
        prompt = max(int((trace.attempt_ids > 0).argmax()) for trace in traces)
        asked = max(int((trace.attempt_ids == 0).sum()) for trace in traces) - prompt
        count = attempts_that_fit(
            context=context,
            prompt=prompt,
            bridge=asked,
            attempt=self.config.attempt_tokens,
            most=self.config.most_attempts,
        )
        if count < 2:
            raise UserError(f"{base}: its context of {context} tokens holds {count} attempt: lower attempt_tokens")
        return count, context

    def _run(self, row: str, seed: int) -> Path:
        return self.folder / f"seed-{seed}" / row

    def _policy(self, row: str, seed: int) -> Path:
        """Checkpoint of a row's policy; rows that train nothing have the base's."""
        name = self.study.policy_of(row)
        return self._run(BASE, seed) / BASE if name == BASE else self._run(row, seed) / name

    def _condition_file(self, row: str, seed: int, condition: str) -> Path:
        return self._run(row, seed) / "conditions" / f"{condition}.parquet"

    def _recipe_file(self, row: str) -> Path:
        return self.folder / "recipes" / f"{row}.toml"

    def _trial_name(self, row: str, number: int) -> str:
        return f"{_name(row, self.config.seeds[0])}, settings {number} ({describe(self.grids[row][number])})"


def _name(row: str, seed: int) -> str:
    return f"{row}, seed {seed}"


def _write(path: Path, text: str) -> None:
    """Write a file, unless it says so already."""
    if not path.exists() or path.read_text() != text:
        with replacing_file(path) as temporary:
            temporary.write_text(text)
