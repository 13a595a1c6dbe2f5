"""Which turns of a dialogue a supervised round learns, by role and place. Nothing here reads files.

    solve verify solve verify      loss_on = "verify,last-solve"      learns the turns 2, 3 and 4

| word | turns |
|---|---|
| `all` | every turn |
| `solve`, `verify`, `critique`, `reflect` | every turn of that role |
| `first-solve`, `last-solve`, `first-verify` ... | the first or the last turn of that role |
| `second`, `both` | of two solves: the second, or both |
"""

from collections.abc import Sequence

from score_cli.errors import UserError, did_you_mean
from score_cli.tables.records import ROLES, SOLVE

ALL, SECOND, BOTH = "all", "second", "both"
_PLACES = ("first-", "last-")
WORDS = (ALL, SECOND, BOTH, *ROLES, *(f"{place}{role}" for place in _PLACES for role in ROLES))


def read_loss_on(text: str) -> list[str]:
    """The words of a setting like `verify,last-solve`.

    Raises:
        UserError: one of them says nothing.
    """
    words = [word.strip() for word in text.split(",")]
    for word in words:
        if word not in WORDS:
            raise UserError(f"loss_on is {text!r}, and {word!r} names no turns{did_you_mean(word, WORDS)}")
    return words


def learned_turns(loss_on: str, roles: Sequence[str]) -> list[int]:
    """The turns of a dialogue that are learned, counted from 1, in order.

    Raises:
        UserError: `second` or `both` of what is not two solves.
    """
    found: set[int] = set()
    for word in read_loss_on(loss_on):
        found.update(_turns(word, roles))
    return sorted(found)


def _turns(word: str, roles: Sequence[str]) -> list[int]:
    every = list(range(1, len(roles) + 1))
    if word == ALL:
        return every
    if word in (SECOND, BOTH):
        if list(roles) != [SOLVE] * 2:
            raise UserError(
                f"loss_on {word} is for two solves, and a dialogue is {', '.join(roles)}: say which turns are learned, "
                f"such as {ALL}, last-solve, or verify,last-solve"
            )
        return [2] if word == SECOND else every
    place, _, role = word.rpartition("-")
    turns = [turn for turn in every if roles[turn - 1] == role]
    return turns[:1] if place == "first" else turns[-1:] if place == "last" else turns
