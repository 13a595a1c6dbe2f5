"""Read what a study's folder holds for its report.

Nothing but study.parquet is required: a row whose folder is not there is left out of what needs its files.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from score_cli.evaluation.report_run import Source, check_rewards, evaluated_sources, read_curve, read_settings
from score_cli.study.claims import Claim, judge_claims
from score_cli.study.report_results import Results
from score_cli.study.results import OWN, Figures
from score_cli.tables.parquet import STUDY, TUNING, read_table
from score_cli.tables.problems import read_problems
from score_cli.tables.records import Problem

STUDY_FILE = "study.parquet"
SEED_PREFIX = "seed-"


@dataclass(frozen=True)
class StudyFolder:
    """A study's measurements and settings, and where its rows keep the rest."""

    path: Path
    settings: dict[str, Any]
    results: Results
    claims: list[Claim]
    tuning: list[dict[str, Any]]  # rows of tuning.parquet
    runs: list[str]  # the rows' run folders, relative to the study's

    def curves(self, row: str) -> dict[int, list[dict[str, Any]]]:
        """What the updates of a row logged, by seed; seeds without any are left out."""
        found = {seed: read_curve(self._run(row, seed)) for seed in self.results.seeds}
        return {seed: curve for seed, curve in found.items() if curve}

    def sources(self, row: str, seed: int) -> list[Source]:
        """The traces of a row's own evaluation, named after the row."""
        policy = self.results.policies.get((row, seed, OWN))
        if policy is None:
            return []
        run = self._run(row, seed)
        found = [source for source in evaluated_sources(run / "eval", []) if source.policy == policy]
        if found and (run / "metrics.parquet").exists():
            check_rewards(run / "metrics.parquet", found)
        return [
            replace(source, key=f"{row}-{source.decoding}", title=f"{row}, {source.decoding}", policy=row)
            for source in found
        ]

    def problems(self, seed: int) -> dict[str, Problem]:
        """The problems that a seed's rows were evaluated on, by id."""
        paths = [self._run(row, seed) / "test.parquet" for row in self.results.rows]
        return {problem.problem_id: problem for path in paths if path.exists() for problem in read_problems(path)}

    def _run(self, row: str, seed: int) -> Path:
        return self.path / f"{SEED_PREFIX}{seed}" / row


def read_study(path: Path) -> StudyFolder:
    """Read the measurements and settings.

    Raises:
        UserError: a table or config.json is damaged or something else.
    """
    rows = read_table(path / STUDY_FILE, STUDY).to_pylist()
    results, tuning = Results(rows), path / "tuning.parquet"
    runs = [f"{SEED_PREFIX}{seed}/{row}" for row in results.rows for seed in results.seeds]
    return StudyFolder(
        path=path,
        settings=read_settings(path / "config.json"),
        results=results,
        claims=judge_claims(Figures(rows)),
        tuning=read_table(tuning, TUNING).to_pylist() if tuning.exists() else [],
        runs=[run for run in runs if (path / run / "metrics.parquet").exists()],
    )
