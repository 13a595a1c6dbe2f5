"""What the turns of a dialogue are paid for, by role and source. Nothing here reads files.

    [pay]
    solve = { right = 1.0, gain = 10.0 }
    verify = { right = 1.0 }
    every = { final = 1.0 }                         # turns of every role
    values = { correct = 1.0, incorrect = 0.1 }     # of `right`, by verdict; left out, the reward itself

| source | what a turn is paid, times its weight                                         |
|--------|-------------------------------------------------------------------------------|
| right  | its own reward; of a turn that judges, 1 where its claim tells what the solve is |
| gain   | a solve's reward minus that of the solve before; nothing for the first        |
| stuck  | 1 for a wrong solve after a wrong one                                         |
| final  | the last solve's reward, at the turn that ends the dialogue                   |
| format | 1 where an answer, or a claim, could be read                                  |
| reflexicoder | that method's reward of the whole trajectory of solves, at the turn that ends it |
| signal:confidence, signal:judge | a solve's value in signals.parquet, which a frozen policy made |
| signal:revision | of a critique: the reward of what a frozen policy made of it, in signals.parquet |
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from score_cli.errors import UserError, did_you_mean
from score_cli.tables.records import CRITIQUE, JUDGES, REVISION, ROLES, SOLVE
from score_cli.tasks.script import Script

RIGHT, GAIN, STUCK, FINAL, FORMAT = "right", "gain", "stuck", "final", "format"
REFLEXICODER = "reflexicoder"
SIGNAL_KINDS = ("confidence", "judge", REVISION)
SIGNAL = "signal:"
SOURCES = (RIGHT, GAIN, STUCK, FINAL, FORMAT, REFLEXICODER, *(SIGNAL + kind for kind in SIGNAL_KINDS))
EVERY = "every"
VALUES = "values"
MOST_REFLECTIONS = 5


def signal_earner(kind: str) -> str:
    """The role of the turns that a signal is about, and that alone can earn it."""
    return CRITIQUE if kind == REVISION else SOLVE


# Sources that a role other than these could never earn.
_EARNERS = {RIGHT: (SOLVE, *JUDGES), FORMAT: (SOLVE, *JUDGES), GAIN: (SOLVE,), STUCK: (SOLVE,)}
_EARNERS |= {SIGNAL + kind: (signal_earner(kind),) for kind in SIGNAL_KINDS}


@dataclass(frozen=True, kw_only=True)
class Pay:
    """Weights by role, or `every`, and source; `values` gives the worth of verdicts in place of rewards."""

    weights: Mapping[str, Mapping[str, float]]
    values: Mapping[str, float] = field(default_factory=dict)

    @property
    def signals(self) -> list[str]:
        """The signals that are paid."""
        return sorted(source.removeprefix(SIGNAL) for source in self._sources if source.startswith(SIGNAL))

    @property
    def reads_rewards(self) -> bool:
        """Whether anything is paid that a verifier says: where not, gold answers have no part in training."""
        return any(not source.startswith(SIGNAL) for source in self._sources)

    @property
    def _sources(self) -> set[str]:
        return {source for sources in self.weights.values() for source in sources}


def check_pay(table: Mapping[str, Any], where: str = "") -> None:
    """Check the keys and kinds of a table [pay], which another recipe may complete.

    Raises:
        UserError: a role, a source or a weight is none that there is.
    """
    for role, weights in table.items():
        if role not in (*ROLES, EVERY, VALUES):
            raise UserError(f"{where}[pay] has no role {role}{did_you_mean(role, [*ROLES, EVERY, VALUES])}")
        if not isinstance(weights, dict):
            raise UserError(f"{where}[pay] {role} is {weights!r}, expected weights by source such as {{ right = 1.0 }}")
        for source, weight in weights.items():
            if isinstance(weight, bool) or not isinstance(weight, int | float) or not math.isfinite(weight):
                raise UserError(f"{where}[pay] {role}.{source} is {weight!r}, expected a number")
            if role != VALUES:
                _check_source(role, source, where)


def _check_source(role: str, source: str, where: str) -> None:
    if source not in SOURCES:
        raise UserError(f"{where}[pay] {role} has no source {source}{did_you_mean(source, SOURCES)}")
    earners = _EARNERS.get(source, ())
    if earners and role not in (*earners, EVERY):
        raise UserError(
            f"{where}[pay] pays {role} turns for {source}, which only {' and '.join(earners)} turns can earn"
        )


def read_pay(table: Mapping[str, Any], script: Script | None) -> Pay:
    """The pay of a recipe's table [pay].

    Args:
        script: whose turns are paid; where there is none, all are solves.
    Raises:
        UserError: it pays nothing, or turns that there are not.
    """
    check_pay(table)
    turns = [SOLVE] if script is None else list(dict.fromkeys(script.turns))
    # A weight of 0 switches off what another recipe set: even 0 times what nobody could score is unknown.
    weights = {
        role: {source: float(weight) for source, weight in sources.items() if weight}
        for role, sources in table.items()
        if role != VALUES
    }
    for role in weights:
        if role not in (*turns, EVERY):
            raise UserError(f"[pay] pays {role} turns, and the dialogues have none: add {role} to turns of [script]")
    if not any(weights.values()):
        raise UserError("[pay] pays no turn anything: give it weights such as solve = { right = 1.0 }")
    if script is not None and any(REFLEXICODER in sources for sources in weights.values()):
        solves = script.roles.count(SOLVE)
        if solves > MOST_REFLECTIONS + 1:
            raise UserError(
                f"[pay] {REFLEXICODER} is the reward of at most {MOST_REFLECTIONS} reflections, and [script] has up to "
                f"{solves} solves: lower most_solves to {MOST_REFLECTIONS + 1}"
            )
    return Pay(weights=weights, values={verdict: float(value) for verdict, value in table.get(VALUES, {}).items()})
