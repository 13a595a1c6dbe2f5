"""Reference solutions pass and hostile programs do not; benchmarks/verify_programs.py runs the whole of each set."""

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "benchmarks"))

import verify_programs

from score_cli.tables.schemas import CORRECT
from score_cli.verification.programs.grader import ProgramGrader
from score_cli.verification.task_grader import Item

pytestmark = pytest.mark.skipif(
    not verify_programs.DATA.is_dir(), reason=f"real data is not at {verify_programs.DATA} (SCORE_SHARED_DATA)"
)
# Tasks that once needed care: a builtin's name, a passed type, a module of the solution, a class, trees in the setup.
CAREFUL = {"56", "126", "533", "596", "601", "367", "927", "HumanEval/32", "HumanEval/38", "HumanEval/50", "Mbpp/120"}


@pytest.fixture(scope="module")
def grader() -> Iterator[ProgramGrader]:
    found = ProgramGrader(workers=2, timeout_seconds=5.0)
    yield found
    found.close()


@pytest.mark.parametrize(
    ("load", "step"),
    [
        (verify_programs.humaneval, 2),
        (verify_programs.mbpp, 6),
        (verify_programs.sanitized_mbpp, 5),
        (verify_programs.humaneval_plus, 10),
        (verify_programs.mbpp_plus, 4),
    ],
    ids=["humaneval", "mbpp", "mbpp-sanitized", "humaneval-plus", "mbpp-plus"],
)
def test_reference_solutions_pass(grader: ProgramGrader, load: Callable[[], list[Item]], step: int) -> None:
    items = load()
    chosen = items[::step] + [item for item in items if item.problem.problem_id in CAREFUL]
    graded = grader.grade(chosen)
    assert [i.problem.problem_id for i, g in zip(chosen, graded, strict=True) if g.verdict != CORRECT] == []


def test_hostile_programs_do_not_pass_and_leave_nothing(grader: ProgramGrader) -> None:
    quick = ProgramGrader(workers=2, timeout_seconds=2.0)
    counts = verify_programs.hostile(quick)
    quick.close()
    assert counts["hostile"] > 0
    assert (counts["wrong_passes"], counts["legitimate_refused"], counts["side_effects"]) == (0, 0, 0)
