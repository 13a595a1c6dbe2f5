"""Paired tests between policies on the same problems, as rows of the metrics table.

A row's policy is `score - base`, its value the difference of the two policies' figures, its `stderr` paired and
clustered by problem, its `count` the number of problems compared.
"""

from collections.abc import Mapping
from dataclasses import asdict
from itertools import combinations

from score_cli.evaluation.evaluate import Row, Scored, by_problem
from score_cli.evaluation.metrics import paired_difference

MINUS = " - "


def comparison_rows(policies: Mapping[str, Mapping[str, Scored]], *, decoding: str) -> list[Row]:
    """Every policy against every policy before it.

    Args:
        policies: policy -> measure -> scored traces (see `evaluate.score_traces`), in the order of evaluation.
    """
    rows = []
    for (before, theirs), (policy, ours) in combinations(policies.items(), 2):
        for name in ours:
            if name not in theirs:
                continue
            found = paired_difference(by_problem(ours[name]), by_problem(theirs[name]))
            if found is not None:
                row = {"policy": f"{policy}{MINUS}{before}", "decoding": decoding, "name": name}
                rows.append(row | asdict(found))
    return rows
