"""What turns are paid: sources by hand, ReflexiCoder's reward by its table, and tables [pay] that pay nobody."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from score_cli.config import Stage2Config
from score_cli.errors import UserError
from score_cli.recipe import read_recipe
from score_cli.tasks.pay import Pay, read_pay
from score_cli.training.pay import Paid, shaped_rewards
from score_cli.training.step import reward_matrix
from score_cli.training.trajectory import trajectory_reward
from tests.scripts import S2R_TOML, dialogue, script

RIGHT, WRONG, UNREAD = ("solve", "a", "correct"), ("solve", "b", "incorrect"), ("solve", "c", "no_answer")
FOUND, MISSED, DUMB = ("verify", "w", "correct"), ("verify", "r", "incorrect"), ("verify", "?", "no_answer")
LOST = ("solve", "d", "unscored")


def paid(weights: dict[str, dict[str, float]], *turns: tuple[str, str, str], **values: float) -> Any:
    """What the turns of one dialogue earn, beside a longer one."""
    pairs = [dialogue(*turns), dialogue(*[RIGHT, FOUND] * 3)]
    rewards = reward_matrix([verdict for _, verdict in pairs], ragged=True)
    roles, verdicts = [trace.turn_roles for trace, _ in pairs], [verdict.verdicts for _, verdict in pairs]
    found = shaped_rewards(Pay(weights=weights, values=values), Paid(rewards, roles, verdicts))
    assert not found[0, len(turns) :].any(), "an absent turn earns nothing"
    return pytest.approx(found[0, : len(turns)].tolist(), nan_ok=True)


def test_each_source_by_hand() -> None:
    turns = [WRONG, FOUND, WRONG, MISSED, RIGHT, DUMB]
    assert paid({"every": {"right": 1.0}}, *turns) == [0, 1, 0, 0, 1, 0]
    assert paid({"solve": {"gain": 2.0}}, *turns) == [0, 0, 0, 0, 2, 0]
    assert paid({"solve": {"stuck": -3.0}}, *turns) == [0, 0, -3, 0, 0, 0]
    assert paid({"every": {"final": 5.0}}, *turns) == [0, 0, 0, 0, 0, 5]
    assert paid({"solve": {"final": 5.0}}, *turns) == [0, 0, 0, 0, 0, 0], "no solve ends this dialogue"
    assert paid({"every": {"format": 1.0}}, *turns) == [1, 1, 1, 1, 1, 0]
    assert paid({"solve": {"right": 1.0}, "every": {"final": 0.5}}, *turns) == [0, 0, 0, 0, 1, 0.5]


def test_values_of_verdicts_take_the_place_of_rewards() -> None:
    worth = {"correct": 1.0, "incorrect": 0.1, "no_answer": 0.0}
    assert paid({"every": {"right": 1.0}}, WRONG, FOUND, RIGHT, DUMB, **worth) == [0.1, 1.0, 1.0, 0.0]
    assert [math.nan, 0.1] == paid({"every": {"right": 1.0}}, LOST, MISSED, **worth)


def test_what_hangs_on_an_unscored_solve_is_unknown_and_nothing_else_is() -> None:
    turns = [WRONG, FOUND, LOST, DUMB]
    assert [0, 1, math.nan, 0] == paid({"every": {"right": 1.0}}, *turns)
    assert [0, 0, math.nan, 0] == paid({"solve": {"gain": 1.0}}, *turns)
    assert [0, 0, 0, math.nan] == paid({"every": {"final": 1.0}}, *turns)
    stuck = {"solve": {"stuck": -3.0}}
    assert [0, math.nan] == paid(stuck, LOST, WRONG)
    assert [0, math.nan] == paid(stuck, WRONG, LOST)
    assert [0, math.nan] == paid(stuck, LOST, LOST)
    assert paid(stuck, LOST, RIGHT) == [0, 0], "a right answer is not stuck, whatever came before"
    assert paid(stuck, RIGHT, LOST) == [0, 0]


def test_what_weighs_nothing_hides_nothing() -> None:
    """Without a bonus, a second attempt's own reward counts after a first one that nobody could score."""
    assert [math.nan, 1] == paid({"solve": {"right": 1.0, "gain": 0.0, "stuck": -0.0}}, LOST, RIGHT)
    assert [math.nan, math.nan] == paid({"solve": {"right": 1.0, "gain": 0.1}}, LOST, RIGHT)


@pytest.mark.parametrize(
    ("rewards", "value"),
    [
        # One reflection: the table.
        ((0, 0), 0.75),
        ((0, 1), 3.75),
        ((1, 0), -0.25),
        ((1, 1), 2.5125),
        # Two: w = 0.450166, 0.549834.
        ((0, 0, 0), 0.75),
        ((0, 0, 1), 1 + 0.5 * (1 + 0.5 * (-0.450166 + 0.549834)) + (1 / 2 + 1)),
        ((0, 1, 1), 1 + 0.5 * (1 + 0.5 * (0.450166 + 0.05 * 0.549834)) + (1 / 2 + 1)),
        ((0, 1, 0), 1 + 0.5 * (0 + 0.5 * (0.450166 - 0.549834)) + 0),
        ((1, 0, 0), 1 + 0.5 * (0 - 0.5) + (0 - 1)),
        ((1, 1, 1), 1 + 0.5 * (1 + 0.5 * 0.05) + (1 / 2 + 0)),
        # Three: w = 0.269307, 0.328932, 0.401760; the last answer counts a third, progress half.
        ((0, 1, 0, 1), 1 + 0.5 * (1 + 0.5 * (0.269307 - 0.328932 + 0.401760)) + (1 / 3 + 1 / 2)),
        ((0, 0, 0, 1), 1 + 0.5 * (1 + 0.5 * (-0.269307 - 0.328932 + 0.401760)) + (1 / 3 + 1 / 2)),
        ((1, 0, 0, 0), 1 + 0.5 * (0 - 0.5) + (0 - 1 / 2)),
        # No reflection is malformed.
        ((1,), 0.0),
    ],
)
def test_the_trajectory_reward_by_its_table_and_by_hand(rewards: Sequence[float], value: float) -> None:
    assert trajectory_reward(rewards) == pytest.approx(value, abs=2e-6)
    assert trajectory_reward(rewards, well_formed=False) == 0.0


def test_one_reflection_is_stage_two_with_other_numbers() -> None:
    for r1, r2 in ((0, 0), (0, 1), (1, 0), (1, 1)):
        stage2 = r1 + r2 + 2.64 * (r2 - r1) - 0.33 * (r1 == r2 == 0)
        assert trajectory_reward((r1, r2)) == pytest.approx(0.756 * stage2 + 1, abs=0.0115)


def test_the_trajectory_is_paid_at_its_end_and_a_malformed_one_nothing() -> None:
    pay = {"every": {"reflexicoder": 1.0}}
    assert paid(pay, WRONG, FOUND, RIGHT, FOUND) == [0, 0, 0, 3.75]
    assert paid(pay, RIGHT, RIGHT) == [0, 2.5125]
    assert paid(pay, UNREAD, RIGHT) == [0, 0], "its answers cannot all be read"
    assert paid(pay, RIGHT, FOUND) == [0, 0], "it has no second answer"
    assert [0, math.nan] == paid(pay, LOST, RIGHT)
    with pytest.raises(ValueError, match="6 reflections"):
        trajectory_reward([0.0] * 7)


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"verifier": {"right": 1.0}}, "no role verifier: did you mean verify"),
        ({"verify": {"rights": 1.0}}, "verify has no source rights: did you mean right"),
        ({"verify": {"right": "much"}}, "verify.right is 'much', expected a number"),
        ({"verify": {"right": True}}, "expected a number"),
        ({"verify": {"gain": 1.0}}, "pays verify turns for gain, which only solve turns can earn"),
        ({"reflect": {"right": 1.0}}, "pays reflect turns for right, which only solve and verify and critique turns"),
        ({"verify": 1.0}, "verify is 1.0, expected weights by source"),
        ({"critique": {"right": 1.0}}, "pays critique turns, and the dialogues have none"),
        ({"solve": {"right": 0.0}}, "pays no turn anything"),
        ({"values": {"correct": 1.0}}, "pays no turn anything"),
    ],
)
def test_a_pay_that_could_not_be_meant_is_one_line(table: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message) as error:
        read_pay(table, script())
    assert "\n" not in str(error.value)


def test_without_a_script_all_turns_are_solves() -> None:
    with pytest.raises(UserError, match="pays verify turns, and the dialogues have none"):
        read_pay({"verify": {"right": 1.0}}, None)


def test_too_many_solves_for_the_trajectory_reward() -> None:
    with pytest.raises(
        UserError, match="at most 5 reflections, and .script. has up to 7 solves: lower most_solves to 6"
    ):
        read_pay({"every": {"reflexicoder": 1.0}}, script(most_solves=7))


def test_recipes_hand_pay_down_and_stage_two_takes_it(tmp_path: Path) -> None:
    (tmp_path / "process.toml").write_text(
        S2R_TOML + "[pay]\nsolve = { right = 1 }\nverify = { right = 1.0 }\n[train-stage2]\nalpha = 10.0\n"
    )
    (tmp_path / "outcome.toml").write_text(
        'extends = "process.toml"\n[pay]\nsolve = { right = 0.0, final = 1.0 }\nvalues = { correct = 2.0 }\n'
    )
    recipe = read_recipe(tmp_path / "outcome.toml")
    expected = Pay(weights={"solve": {"final": 1.0}, "verify": {"right": 1.0}}, values={"correct": 2.0})
    assert recipe.settings("train-stage2", Stage2Config).pay == expected
    (tmp_path / "whole.toml").write_text(recipe.as_toml())
    assert read_recipe(tmp_path / "whole.toml").settings("train-stage2", Stage2Config).pay == expected
    recipe.change(["pay.verify.right=0.5"])
    changed = recipe.settings("train-stage2", Stage2Config).pay
    assert changed is not None and changed.weights["verify"] == {"right": 0.5}


def test_a_weight_of_nothing_switches_a_source_off() -> None:
    """0 times what is unknown is unknown, so the source must not be there."""
    pay = read_pay({"solve": {"right": 0.0}, "verify": {"right": 1.0}}, script())
    assert paid(dict(pay.weights), LOST, FOUND) == [0, 1]
