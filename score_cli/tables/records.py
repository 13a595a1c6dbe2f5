"""The records that the whole program passes around; each is a row of a table too.

Problem --Sampler--> Trace --Grader--> Verdict        (Trace, Verdict) --Trainer--> the next policy

A Signal may stand beside a Verdict, for the Trainer alone.
"""

from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any, TypedDict

if TYPE_CHECKING:  # a problem alone, as the command line's surface knows it, needs no arrays
    import numpy as np
    from numpy.typing import NDArray


# What a turn of the model is in its dialogue.
SOLVE, VERIFY, CRITIQUE, REFLECT = ROLES = ("solve", "verify", "critique", "reflect")
# Roles whose turns may claim whether the newest solve is correct.
JUDGES = (VERIFY, CRITIQUE)
# The signal that is of critiques: the exact reward of what a frozen policy made of them.
REVISION = "revision"


class Message(TypedDict):
    """One turn of a chat."""

    role: str
    content: str


@dataclass(frozen=True, kw_only=True)
class Problem:
    """One row of problems.parquet.

    Attributes:
        messages: the whole chat that asks the problem, as it stands, in place of the words of its task; the last turn
            is the user's, and `question` is what it says.
        extra: the columns that this program does not know, kept for graders.
    """

    problem_id: str
    task: str
    question: str
    answer: str | None = None
    tests: list[str] | None = None
    entry_point: str | None = None
    setup: str | None = None
    level: str | None = None
    subject: str | None = None
    source: str
    messages: list[Message] | None = None
    extra: dict[str, Any] = field(default_factory=dict)

    def row(self) -> dict[str, Any]:
        """The problem as a plain dict of its row: every column of a problems table, then those it does not know."""
        columns = {column.name: getattr(self, column.name) for column in fields(self) if column.name not in _ON_DEMAND}
        chat = {} if self.messages is None else {"messages": self.messages}
        return columns | chat | self.extra


# Columns of no table but those that need them.
_ON_DEMAND = ("messages", "extra")


@dataclass(frozen=True)
class Trace:
    """One conversation of A turns of the model, its attempts, and T tokens: one row of traces.parquet.

    Example: prompt `P`, attempts `Y1` and `Y2`, bridge `B`:

        token_ids    P P P Y1 Y1 B Y2 Y2 Y2     [T]
        attempt_ids  0 0 0  1  1 0  2  2  2     [T]
        logprobs     0 0 0  l  l 0  l  l  l     [T], nats, the sampler's

    Attributes:
        roles: what each turn is, one of `ROLES`; None where all of them are solves.
        given_index: `sample_index` of the earlier trace of the problem that this one was built from: of the solve that
            it criticises, or of the critique that its last solve answers; None where it stands by itself.
    """

    problem_id: str
    sample_index: int
    attempts: list[str]
    finish_reasons: list[str]
    token_ids: "NDArray[np.int32]"
    attempt_ids: "NDArray[np.int8]"
    logprobs: "NDArray[np.float32]"
    offline_attempts: int
    roles: list[str] | None = None
    given_index: int | None = None

    @property
    def turn_roles(self) -> list[str]:
        """The role of each turn."""
        return [SOLVE] * len(self.attempts) if self.roles is None else self.roles


def turn_title(trace: Trace, turn: int) -> str:
    """What a turn, counted from 0, is called: `attempt 2` where all are attempts, else `verify 1`, `solve 2`."""
    if trace.roles is None:
        return f"attempt {turn + 1}"
    role = trace.roles[turn]
    return f"{role} {trace.roles[: turn + 1].count(role)}"


@dataclass(frozen=True)
class Verdict:
    """What a verifier says of each attempt of one trace: one row of rewards.parquet.

    Attributes:
        answers: what was found in each attempt and judged; None where nothing was found.
        verdicts: one of `schemas.VERDICTS` an attempt.
        rewards: from 0 to 1 an attempt; None where it is unscored, which is not the same as wrong.
    """

    problem_id: str
    sample_index: int
    answers: list[str | None]
    verdicts: list[str]
    rewards: list[float | None]

    @property
    def correct(self) -> list[bool | None]:
        """Whether each attempt was judged correct, which a reward below 1 may also be; None where it is unscored."""
        judged = zip(self.verdicts, self.rewards, strict=True)
        return [None if reward is None else verdict == "correct" for verdict, reward in judged]


@dataclass(frozen=True)
class Signal:
    """What a frozen policy makes of each turn of one trace: one row of signals.parquet. It is no verdict on the trace.

    Attributes:
        name: `confidence`, `judge` or `revision`.
        scores: the policy's probability, a turn; None for turns that are no solves, and where a judge saw no answer.
        accepted: whether a judge takes the solve for correct; None for other turns, and other signals.
        values: what the turn is worth; None for turns that the signal is not of (a revision's is of critiques).
    """

    problem_id: str
    sample_index: int
    name: str
    scores: list[float | None]
    accepted: list[bool | None]
    values: list[float | None]
