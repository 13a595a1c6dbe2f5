"""What a run that goes wrong is known by, update after update. Nothing here reads files or a clock.

A batch that is not on policy and a gradient that is not finite stop a run in any case: the trainer refuses them.
"""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from score_cli.run_config import AlarmsConfig

Entry = Mapping[str, Any]  # of a run's log; `phase`, `metrics` and `validation` are looked at


@dataclass(frozen=True)
class Alarm:
    """One thing that goes wrong.

    Attributes:
        name: the key of `[run.alarms]` that it belongs to.
        words: what was measured, and the limit.
        stops: whether the run shall stop.
    """

    name: str
    words: str
    stops: bool


def alarms_of(entries: Sequence[Entry], config: AlarmsConfig) -> list[Alarm]:
    """What is wrong after the latest update.

    Args:
        entries: a run's log so far, in order of updates; the latest phase alone counts.
    """
    phase = [entry for entry in entries if entry["phase"] == entries[-1]["phase"]]
    found = {
        "kl": _kl(phase, config.kl_limit),
        "unscored": _unscored(phase, config.unscored_limit),
        "no_reward": _no_reward(phase, config.no_reward_updates),
        "collapse": _collapse(phase, config.collapse_limit, config.collapse_updates),
        "held_out": _held_out(phase, config.held_out_limit, config.held_out_measurements),
    }
    actions = {name: getattr(config, name) for name in found}
    return [
        Alarm(name, words, actions[name] == "stop")
        for name, words in found.items()
        if words is not None and actions[name] != "off"
    ]


def _kl(phase: Sequence[Entry], limit: float) -> str | None:
    measured = {name: value for name, value in phase[-1]["metrics"].items() if name.startswith("kl@")}
    name, largest = max(measured.items(), key=lambda item: item[1], default=("", 0.0))
    return f"{name} is {largest:.3g} nats an attempt (limit {limit:g})" if largest > limit else None


def _unscored(phase: Sequence[Entry], limit: float) -> str | None:
    share = phase[-1]["metrics"].get("unscored", 0.0)
    return f"{share:.1%} of attempts are unscored (limit {limit:.1%})" if share > limit else None


def _no_reward(phase: Sequence[Entry], updates: int) -> str | None:
    latest = phase[-updates:]
    accuracies = [value for entry in latest for value in _by_attempt(entry, "accuracy").values()]
    if len(latest) < updates or not accuracies or any(accuracies):
        return None
    return f"no attempt was right in the last {updates} updates"


def _collapse(phase: Sequence[Entry], limit: float, updates: int) -> str | None:
    """The policy stops revising while its first attempts get better: what Stage I is there to prevent."""
    latest = phase[-updates:]
    changed = [value for entry in latest for value in _by_attempt(entry, "changed").values()]
    if len(latest) < updates or not changed:
        return None
    first = [_by_attempt(entry, "accuracy").get(1, 0.0) for entry in latest]
    half = updates // 2
    before, after = _mean(first[:half]), _mean(first[-half:])
    if _mean(changed) >= limit or after <= before:
        return None
    return (
        f"{_mean(changed):.1%} of answers changed in the last {updates} updates (limit {limit:.1%}), while first "
        f"attempts rose from {before:.1%} to {after:.1%}"
    )


def _held_out(phase: Sequence[Entry], limit: float, measurements: int) -> str | None:
    """The policy learns what is paid for and not what is meant: a hole in the grader, or the training problems.

    A measurement is set beside the rewards of the updates since the one before it.
    """
    measured = [number for number, entry in enumerate(phase) if "validation" in entry]
    if len(measured) < measurements:
        return None
    accuracies = [phase[number]["validation"] for number in measured[-measurements:]]
    paid = [
        _mean([sum(_by_attempt(entry, "reward").values()) for entry in phase[before + 1 : number + 1]])
        for before, number in itertools.pairwise([-1, *measured][-measurements - 1 :])
    ]
    half = measurements // 2
    before, after = _mean(accuracies[:half]), _mean(accuracies[-half:])
    paid_before, paid_after = _mean(paid[:half]), _mean(paid[-half:])
    if before - after < limit or paid_after <= paid_before:
        return None
    return (
        f"validation accuracy fell from {before:.1%} to {after:.1%} over the last {measurements} measurements (limit "
        f"{limit:.1%}), while the shaped rewards of a trace rose from {paid_before:.3g} to {paid_after:.3g}"
    )


def _by_attempt(entry: Entry, name: str) -> dict[int, float]:
    found = [(*metric.partition("@t"), value) for metric, value in entry["metrics"].items()]
    return {int(attempt): value for metric, _, attempt, value in found if metric == name and attempt}


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
