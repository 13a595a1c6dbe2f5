"""What the turns of a dialogue are paid for, by role and source. Nothing here reads files.

    [pay]
    solve = { right = 1.0, gain = 10.0 }
    verify = { right = 1.0 }
    values = { correct = 1.0, incorrect = 0.1 }     # of `right`, by verdict; left out, the reward itself

| source   | what a turn is paid, times its weight                                                       |
|----------|---------------------------------------------------------------------------------------------|
| right    | its own reward; of a turn that judges, 1 where its claim tells what the solve is            |
| gain     | a solve's reward minus that of the solve before; nothing for the first                      |
| stuck    | 1 for a wrong solve after a wrong one                                                       |
| final    | the last solve's reward, at the turn that ends the dialogue                                 |
| format   | 1 where an answer, or a claim, could be read                                                |
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

RIGHT, GAIN, STUCK, FINAL, FORMAT = SOURCES = ("right", "gain", "stuck", "final", "format")


@dataclass(frozen=True, kw_only=True)
class Pay:
    """Weights by role and source; `values` gives the worth of verdicts in place of rewards."""

    weights: Mapping[str, Mapping[str, float]]
    values: Mapping[str, float] = field(default_factory=dict)
