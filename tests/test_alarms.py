"""Alarms on hand-made logs: each sounds at its limit and not a step before."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from score_cli.alarms import alarms_of
from score_cli.errors import UserError
from score_cli.recipe import read_recipe
from score_cli.run_config import AlarmsConfig

CONFIG = AlarmsConfig(kl_limit=5.0, unscored_limit=0.1, no_reward_updates=3, collapse_limit=0.05, collapse_updates=4)


def log(*updates: dict[str, float], phase: str = "stage1") -> list[dict[str, Any]]:
    return [{"update": number, "phase": phase, "metrics": metrics} for number, metrics in enumerate(updates)]


def names(entries: list[dict[str, Any]], config: AlarmsConfig = CONFIG) -> list[str]:
    return [alarm.name for alarm in alarms_of(entries, config)]


def test_kl_beyond_its_limit_at_any_attempt() -> None:
    assert names(log({"kl@t1": 5.0, "kl@t2": 4.0})) == []
    [alarm] = alarms_of(log({"kl@t1": 1.0, "kl@t2": 5.01, "k3@t2": 99.0}), CONFIG)
    assert (alarm.name, alarm.words, alarm.stops) == ("kl", "kl@t2 is 5.01 nats an attempt (limit 5)", False)


def test_too_much_unscored() -> None:
    assert names(log({"unscored": 0.1})) == []
    assert names(log({"unscored": 0.11})) == ["unscored"]


def test_no_right_attempt_for_as_many_updates() -> None:
    nothing, something = {"accuracy@t1": 0.0, "accuracy@t2": 0.0}, {"accuracy@t1": 0.0, "accuracy@t2": 0.01}
    assert names(log(nothing, nothing)) == []
    assert names(log(something, nothing, nothing)) == []
    assert names(log(something, nothing, nothing, nothing)) == ["no_reward"]
    # Another phase maximises something else: it begins anew.
    assert names(log(nothing, nothing) + log(nothing, phase="stage2")) == []


def revising(*shares: tuple[float, float]) -> list[dict[str, Any]]:
    return log(*({"accuracy@t1": first, "changed@t2": changed} for first, changed in shares))


def test_collapse_is_little_change_while_first_attempts_rise() -> None:
    assert names(revising((0.4, 0.04), (0.4, 0.04), (0.5, 0.04), (0.5, 0.04))) == ["collapse"]
    assert names(revising((0.4, 0.04), (0.4, 0.04), (0.4, 0.04), (0.4, 0.04))) == []  # no rise
    assert names(revising((0.4, 0.09), (0.4, 0.04), (0.5, 0.04), (0.5, 0.04))) == []  # 5.25 percent changed
    assert names(revising((0.4, 0.04), (0.5, 0.04), (0.5, 0.04))) == []  # three updates of four
    assert names(log(*[{"accuracy@t1": 0.1 * n} for n in range(1, 6)])) == []  # one attempt has nothing to change


def measured(*updates: tuple[float, float | None]) -> list[dict[str, Any]]:
    """Shaped rewards of a trace, half of them at each attempt, and the validation accuracy where it was measured."""
    entries = log(*({"reward@t1": reward / 2, "reward@t2": reward / 2} for reward, _ in updates))
    return [e if v is None else e | {"validation": v} for e, (_, v) in zip(entries, updates, strict=True)]


def test_what_is_paid_for_rises_while_held_out_accuracy_falls() -> None:
    rising = measured((1, None), (1, 0.6), (1, None), (2, 0.6), (2, None), (3, 0.5), (3, None), (3, 0.55), (3, None))
    [alarm] = alarms_of(rising, CONFIG)
    # Accuracy 0.6, 0.6 against 0.5, 0.55; rewards 1, 1.5 against 2.5, 3, each the mean of two updates.
    assert (alarm.name, alarm.words) == (
        "held_out",
        "validation accuracy fell from 60.0% to 52.5% over the last 4 measurements (limit 2.0%), while the shaped "
        "rewards of a trace rose from 1.25 to 2.75",
    )
    assert names(rising[:7]) == []  # three measurements of four
    assert names(rising, replace(CONFIG, held_out_limit=0.08)) == []
    assert names(measured((3, 0.6), (3, 0.6), (3, 0.5), (3, 0.5))) == []  # no more is paid
    assert names(measured((1, 0.5), (2, 0.5), (3, 0.6), (4, 0.6))) == []  # it is learned for good
    assert names(measured(*[(n, None) for n in range(9)])) == []  # nothing is held out
    # Of an odd number the middle one is between the halves.
    assert names(measured((1, 0.6), (9, 0.9), (2, 0.5)), replace(CONFIG, held_out_measurements=3)) == ["held_out"]


def test_what_an_alarm_does_is_the_recipes_to_say() -> None:
    wrong = log({"kl@t1": 9.0, "unscored": 0.5})
    assert [(a.name, a.stops) for a in alarms_of(wrong, replace(CONFIG, kl="stop"))] == [
        ("kl", True),
        ("unscored", False),
    ]
    assert names(wrong, replace(CONFIG, kl="off")) == ["unscored"]


def test_alarms_are_a_table_of_the_run(tmp_path: Path) -> None:
    path = tmp_path / "recipe.toml"
    path.write_text('[run]\nsave_every = 5\n[run.alarms]\nkl = "stop"\nkl_limit = 3\n')
    recipe = read_recipe(path)
    assert recipe.settings("run.alarms", AlarmsConfig) == AlarmsConfig(kl="stop", kl_limit=3.0)
    recipe.change(["run.alarms.kl_limit=4"])
    assert recipe.settings("run.alarms", AlarmsConfig).kl_limit == 4.0
    path.write_text("[run.alarms]\nklimit = 3\n")
    with pytest.raises(UserError, match=r"\[run.alarms\] has no key klimit: did you mean kl_limit\?"):
        read_recipe(path)
