"""Rows of the tables as Python records."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Problem:
    """One row of problems.parquet."""

    problem_id: str
    task: str
    question: str
    answer: str | None = None
    tests: list[str] | None = None
    entry_point: str | None = None
    setup: str | None = None
    level: str | None = None
    subject: str | None = None
    source: str
