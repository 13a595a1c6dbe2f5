"""A problem together with the right response that its data set gives for it."""

from typing import NamedTuple

from score_cli.tables.records import Problem


class Loaded(NamedTuple):
    """A problem as loaded; `gold_response` should be graded correct, and is None where the data set has no answer."""

    problem: Problem
    gold_response: str | None
