"""Scripts shared by tests, and small policies that know their words."""

from pathlib import Path

import numpy as np
import torch

from score_cli.config import BaseConfig
from score_cli.tables.checkpoints import Policy, TrainerState, fingerprint, save_policy
from score_cli.tables.records import Trace, Verdict
from score_cli.tasks.script import Script, read_script
from score_cli.training.base_policy import untrained_policy

S2R = {
    "turns": ["solve", "verify"],
    "most_solves": 2,
    "ends_when": "verdict correct",
    "verify": {"ask": "<verify>", "claim": "right|wrong"},
}
S2R_TOML = """
[script]
turns = ["solve", "verify"]
most_solves = 2
ends_when = "verdict correct"

[script.verify]
ask = "<verify>"
claim = "right|wrong"
"""


def script(**changes: object) -> Script:
    """S2R's script, with some keys changed."""
    return read_script(S2R | changes)


def scripted_policy(follows: Script, *, seed: int = 0, scale: float = 3.0) -> Policy:
    """An untrained model with the words and the context that a script asks for, its distributions not flat."""
    policy = untrained_policy(BaseConfig(width=32, seed=seed, script=follows))
    with torch.no_grad():
        for parameter in policy.model.parameters():
            if parameter.dim() > 1:
                parameter *= scale
    return Policy(policy.model, policy.tokenizer, TrainerState(fingerprint=fingerprint(policy.model)), "scripted")


def write_scripted(path: Path, follows: Script, *, seed: int = 0) -> Path:
    made = scripted_policy(follows, seed=seed)
    path.mkdir()
    save_policy(path, made.model, made.tokenizer, made.state)
    return path


def dialogue(
    *turns: tuple[str, str, str], problem: str = "p", index: int = 0, finish: dict[int, str] | None = None
) -> tuple[Trace, Verdict]:
    """A trace by hand: (role, text, verdict) of each turn; a claim's text is its answer."""
    roles, attempts, verdicts = (list(part) for part in zip(*turns, strict=True))
    numbers = np.arange(len(turns) + 1)
    unread = ("no_answer", "truncated", "ungraded")
    return (
        Trace(
            problem,
            index,
            attempts,
            [(finish or {}).get(turn, "stop") for turn in range(len(turns))],
            numbers.astype(np.int32),
            numbers.astype(np.int8),
            -numbers.astype(np.float32),
            0,
            roles,
        ),
        Verdict(
            problem,
            index,
            [None if verdict in unread else text for text, verdict in zip(attempts, verdicts, strict=True)],
            verdicts,
            [None if v in ("unscored", "ungraded") else float(v == "correct") for v in verdicts],
        ),
    )
