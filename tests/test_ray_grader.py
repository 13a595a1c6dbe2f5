"""What graders on a Ray cluster agree on before they grade, and how work is cut up for them; no cluster is needed."""

from collections.abc import Sequence
from pathlib import Path

import pytest

from score_cli.config import VerifyConfig
from score_cli.errors import JobError, UserError
from score_cli.tables.records import Problem
from score_cli.verification.grader import Grader
from score_cli.verification.ray_grader import GradingActor, agreed, chunks_of
from score_cli.verification.task_grader import Graded, Item, TaskGrader

CONFIG = VerifyConfig(ray="local", workers=3)
ITEM = Item(Problem(problem_id="p", task="own", question="?", answer=None, source="me"), "yes")


class Says:
    """A grader that says how it grades, and grades everything alike."""

    in_processes = True

    def __init__(self, **described: str) -> None:
        self.described = described
        self.closed = 0

    def grade(self, items: Sequence[Item]) -> list[Graded]:
        return [Graded(item.response, "correct") for item in items]

    def describe(self) -> dict[str, str]:
        return self.described

    def close(self) -> None:
        self.closed += 1


def actor(made: Says, config: VerifyConfig = CONFIG, beside: int = 1) -> GradingActor:
    tasks: dict[str, TaskGrader] = {"own": made, "other": made}
    return GradingActor(["own", "other"], config, lambda names, given: tasks, beside)


def test_an_actor_grades_as_it_said_and_refuses_to_grade_otherwise() -> None:
    made = Says(isolation="namespaces", python="3.12")
    found = actor(made)
    described = found.describe()["own"]
    assert described == {"isolation": "namespaces", "python": "3.12"}
    assert found.grade(described, [ITEM, ITEM]) == [Graded("yes", "correct")] * 2
    for other in ({"isolation": "none", "python": "3.12"}, {"python": "3.12"}, {**described, "sha256": "0"}):
        with pytest.raises(JobError, match="would grade own otherwise than the others"):
            found.grade(other, [ITEM])
    found.close()
    assert made.closed == 1


def test_machines_that_would_not_grade_alike_are_refused() -> None:
    ours, theirs = ({"math": {"sympy": version}, "own": {"sha256": "a"}} for version in ("1.13", "1.14"))
    assert agreed([ours, ours], {}) == ours
    with pytest.raises(UserError, match=r"would not grade math alike \(sympy 1.13 and 1.14\)"):
        agreed([ours, theirs], {})
    # All of them have another file than the command.
    with pytest.raises(UserError, match=r"would not grade own alike \(sha256 b and a\)"):
        agreed([ours, ours], {"own": {"sha256": "b"}})


def test_a_machine_that_cannot_grade_is_named() -> None:
    def refuse(tasks: object, config: VerifyConfig) -> dict[str, TaskGrader]:
        raise UserError("no sandbox is available here")

    with pytest.raises(UserError, match=r"^a Ray grader on \S+: no sandbox is available here$"):
        GradingActor(["mbpp"], CONFIG, refuse, 1).describe()


def test_actors_of_one_machine_share_its_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda process: set(range(8)))
    shared = [actor(Says(), VerifyConfig(ray="local"), beside).workers() for beside in (1, 2, 3, 20)]
    assert shared == [8, 4, 2, 1]
    assert actor(Says(), CONFIG, 2).workers() == 3


@pytest.mark.parametrize(
    ("count", "actors", "workers", "sizes"),
    [
        (0, 2, 1, []),
        (5, 2, 1, [5]),
        (100, 2, 1, [16, 16, 16, 16, 16, 16, 4]),
        (400, 2, 1, [50] * 8),
        (400, 2, 64, [64] * 6 + [16]),
        (5000, 2, 1, [256] * 19 + [136]),
    ],
)
def test_chunks_hold_every_item_once_and_in_order(count: int, actors: int, workers: int, sizes: list[int]) -> None:
    items = [ITEM._replace(response=str(number)) for number in range(count)]
    chunks = chunks_of(items, actors=actors, workers=workers)
    assert [len(chunk) for chunk in chunks] == sizes
    assert [item for chunk in chunks for item in chunk] == items


def test_numbers_are_graded_without_a_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("score_cli.tables.cluster.connect", lambda address: pytest.fail("Ray is started"))
    problem = Problem(problem_id="d", task="division", question="", answer="3", source="me")
    with Grader(CONFIG) as grader:
        grader.start(["division"])
        [one] = grader._graders["division"].grade([Item(problem, "\\boxed{3}")])
        assert one.verdict == "correct"


def test_a_grader_that_is_not_there_is_refused_before_a_cluster_is_joined(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("score_cli.tables.cluster.connect", lambda address: pytest.fail("Ray is started"))
    given = VerifyConfig(ray="local", grader=f"{tmp_path}/none.py:grade")
    with Grader(given) as grader, pytest.raises(UserError, match="there is no file"):
        grader.start(["own"])
