"""One trace while it grows: which tokens are fed, which are sampled, when an attempt ends."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

import numpy as np

from score_cli.errors import UserError
from score_cli.tables.records import SOLVE, Trace
from score_cli.tables.schemas import LENGTH, STOP


class Bridge(NamedTuple):
    """What stands between an attempt and the next generation prompt.

    `end_of_turn` closes the attempt's turn; a model that stopped has sampled it, a truncated one
    has not. `rest` is the correction request and the opening of the next turn.
    """

    end_of_turn: list[int]
    rest: list[int]

    def after(self, finish_reason: str) -> list[int]:
        """The context tokens that follow an attempt, so that its turn ends exactly once."""
        return self.rest if finish_reason == STOP else self.end_of_turn + self.rest


class Dialogue(Protocol):
    """Who speaks after whom in a trace, and what stands between two turns.

    Attributes:
        first: the role of the first turn.
        names_roles: whether the trace says what its turns are; where all are solves it does not.
    """

    first: str
    names_roles: bool

    def after(self, rollout: "Rollout") -> tuple[str, list[int]] | None:
        """The next turn's role and the context tokens before it, once a turn has ended; None at the dialogue's end."""

    def most_context(self, max_tokens: int) -> int:
        """The most tokens that can stand between the turns, all of them together."""


@dataclass
class Solves:
    """A fixed number of attempts, a correction asked for between them: the dialogue of `attempts = N`."""

    bridge: Bridge
    attempts: int
    first: str = SOLVE
    names_roles: bool = False

    def after(self, rollout: "Rollout") -> tuple[str, list[int]] | None:
        """See `Dialogue.after`."""
        reasons = rollout.finish_reasons
        return None if len(reasons) == self.attempts else (SOLVE, self.bridge.after(reasons[-1]))

    def most_context(self, max_tokens: int) -> int:
        """See `Dialogue.most_context`."""
        return (self.attempts - 1) * (len(self.bridge.end_of_turn) + len(self.bridge.rest))


@dataclass
class Rollout:
    """A trace under way; engines only append to it.

    `seeds[i]` is the digest of attempt i + 1 (see `sampling.seeds`). The prompt `P`, attempts
    `Y1`, `Y2` and the bridge `B` grow as one sequence, and `attempt_ids` mark who wrote what:

        token_ids    P P P Y1 Y1 B Y2 Y2 Y2
        attempt_ids  0 0 0  1  1 0  2  2  2

    The first `offline_attempts` attempts were given: an engine finds them in `token_ids` and goes on. Left out,
    `dialogue` is one attempt a seed with `bridge` between them; `attempt` counts turns, whatever their roles. `ended`
    is told of each turn at its end, before the next is opened.
    """

    problem_id: str
    sample_index: int
    prompt: Sequence[int]
    bridge: Bridge
    stop_ids: frozenset[int]
    seeds: Sequence[bytes]
    max_tokens: int
    token_ids: list[int] = field(default_factory=list)
    attempt_ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    finish_reasons: list[str] = field(default_factory=list)
    attempt: int = 1
    sampled: int = 0
    offline_attempts: int = 0
    dialogue: Dialogue | None = None
    roles: list[str] = field(default_factory=list)
    given_index: int | None = None
    ended: Callable[["Rollout"], None] | None = None
    done: bool = False

    def __post_init__(self) -> None:
        self._dialogue = self.dialogue or Solves(self.bridge, len(self.seeds))
        self.roles.append(self._dialogue.first)
        self._add_context(self.prompt)

    @property
    def longest(self) -> int:
        """The most tokens this trace can come to hold."""
        between = self._dialogue.most_context(self.max_tokens)
        return len(self.prompt) + len(self.seeds) * self.max_tokens + between

    def append(self, token: int, logprob: float) -> None:
        """Take one sampled token; at an attempt's end, close it and open the next one."""
        self.token_ids.append(token)
        self.attempt_ids.append(self.attempt)
        self.logprobs.append(logprob)
        self.sampled += 1
        if token in self.stop_ids:
            self._end_attempt(STOP)
        elif self.sampled == self.max_tokens:
            self._end_attempt(LENGTH)

    def give(self, tokens: Sequence[int], logprobs: Sequence[float], finish_reason: str) -> None:
        """Take a whole attempt that another policy wrote, before anything is sampled."""
        assert self.offline_attempts == self.attempt - 1 and not self.sampled and not self.done
        self.token_ids.extend(tokens)
        self.attempt_ids.extend([self.attempt] * len(tokens))
        self.logprobs.extend(logprobs)
        self.offline_attempts = self.attempt
        self._end_attempt(finish_reason)

    def attempt_tokens(self, attempt: int) -> list[int]:
        """The tokens sampled in one attempt, its stop token included."""
        return [token for token, owner in zip(self.token_ids, self.attempt_ids, strict=True) if owner == attempt]

    def trace(self, text: Callable[[list[int]], str]) -> Trace:
        """The finished trace as a record; `text` spells the tokens of an attempt out."""
        assert self.done
        return self.so_far(text)

    def so_far(self, text: Callable[[list[int]], str]) -> Trace:
        """As `trace`, of the attempts that have come to their end, though others may follow."""
        count = len(self.finish_reasons)
        return Trace(
            problem_id=self.problem_id,
            sample_index=self.sample_index,
            attempts=[text(self.attempt_tokens(attempt)) for attempt in range(1, count + 1)],
            finish_reasons=self.finish_reasons,
            token_ids=np.array(self.token_ids, dtype=np.int32),
            attempt_ids=np.array(self.attempt_ids, dtype=np.int8),
            logprobs=np.array(self.logprobs, dtype=np.float32),
            offline_attempts=self.offline_attempts,
            roles=self.roles[:count] if self._dialogue.names_roles else None,
            given_index=self.given_index,
        )

    def _end_attempt(self, reason: str) -> None:
        self.finish_reasons.append(reason)
        if self.ended is not None:
            self.ended(self)
        following = self._dialogue.after(self)
        if following is None:
            self.done = True
            return
        role, context = following
        self.roles.append(role)
        self._add_context(context)
        self.attempt += 1
        self.sampled = 0

    def _add_context(self, tokens: Sequence[int]) -> None:
        self.token_ids.extend(tokens)
        self.attempt_ids.extend([0] * len(tokens))
        self.logprobs.extend([0.0] * len(tokens))


def check_lengths(rollouts: Iterable[Rollout], limit: int | None) -> None:
    """Refuse traces that could outgrow the context, before any of them is begun.

    Args:
        limit: longest trace in tokens; None where the model sets no limit.
    Raises:
        UserError: names the problems.
    """
    too_long = [rollout for rollout in rollouts if limit is not None and rollout.longest > limit]
    if too_long:
        names = sorted({rollout.problem_id for rollout in too_long})
        more = ", ..." if len(names) > 5 else ""
        raise UserError(
            f"traces of {len(names)} problems can reach {max(rollout.longest for rollout in too_long)} tokens, the "
            f"model's context is {limit} (problems {', '.join(names[:5])}{more}): lower --max-tokens, or leave these "
            "problems out"
        )
