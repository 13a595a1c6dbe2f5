r"""Arithmetic told in English, in four levels, with an author of imperfect attempts: a task for a pretrained model.

    Mia has 48 apples. She gives 15 away. Then she buys 7 more. How many apples does Mia have now?

    48 - 15 = 33
    33 + 7 = 40
    \boxed{40}

A problem is a chain of steps on one number; its id spells the chain out, as in `stories-2-48-15+7`. Which split a chain
belongs to is a hash of it alone, whoever it is told of: so no chain is in two splits.
"""

import hashlib
import itertools
import random
import re
from collections.abc import Iterator
from typing import NamedTuple

from score_cli.tables.records import Problem

TASK = "stories"
LEVELS = (1, 2, 3, 4)
SIZES = {"train": 3000, "validation": 200, "test": 400}
# Of a hundred places that a hash may fall on: train has the rest.
_TEST, _VALIDATION = range(15), range(15, 25)
_LARGEST = 200

_PEOPLE = [
    ("Mia", "she", "her"),
    ("Tom", "he", "him"),
    ("Ana", "she", "her"),
    ("Leo", "he", "him"),
    ("Eva", "she", "her"),
]
_THINGS = ["apples", "shells", "coins", "stamps", "marbles", "cards", "books", "pencils"]
# How a step is told; the first and later ones begin alike, and "Then" may come before.
_TOLD = {
    "+": ["{She} buys {n} more.", "{She} finds {n} more.", "A friend gives {her} {n} more."],
    "-": ["{She} gives {n} away.", "{She} loses {n}.", "{She} sells {n}."],
    "*": ["{She} trades each one for {n} new ones.", "Soon {she} has {n} times as many."],
    "/": [
        "{She} packs all into {n} equal boxes and keeps one box.",
        "{She} shares all equally among {n} people, {she} among them.",
    ],
}
_OPERATIONS = {1: ["+", "-"], 2: ["++", "+-", "-+", "--"], 3: ["+*", "-*", "*+", "*-", "/+", "/-"]}
_ID = re.compile(rf"{TASK}-(\d)-(\d+)((?:[-+*/]\d+)+)")


class Step(NamedTuple):
    """One step of a chain: what is done with a number."""

    operation: str
    number: int

    def on(self, value: int) -> int:
        """The value after the step; a division leaves no remainder in a problem, and drops it elsewhere."""
        match self.operation:
            case "+":
                return value + self.number
            case "-":
                return value - self.number
            case "*":
                return value * self.number
            case _:
                return value // self.number


class Chain(NamedTuple):
    """A start and what is done with it."""

    start: int
    steps: tuple[Step, ...]

    @property
    def values(self) -> list[int]:
        """The value after each step."""
        return list(itertools.accumulate(self.steps, lambda value, step: step.on(value), initial=self.start))[1:]

    def __str__(self) -> str:
        return f"{self.start}" + "".join(f"{step.operation}{step.number}" for step in self.steps)

    @property
    def split(self) -> str:
        """Where the chain belongs."""
        place = int.from_bytes(hashlib.sha256(f"{TASK} {self}".encode()).digest()) % 100
        return "test" if place in _TEST else "validation" if place in _VALIDATION else "train"


def split_problems(split: str) -> list[Problem]:
    """The problems of one split, level after level in turn; the splits share no chain and never change.

    Args:
        split: `train` (3,000), `validation` (200) or `test` (400).
    """
    rng = random.Random(f"{TASK} {split}")
    seen: set[Chain] = set()
    found: list[Problem] = []
    for level in itertools.cycle(LEVELS):
        if len(found) == SIZES[split]:
            break
        chain = next(chain for chain in _chains(level, rng) if chain.split == split and chain not in seen)
        seen.add(chain)
        found.append(_problem(level, chain, rng))
    return found


def chain_of(problem: Problem) -> Chain:
    """The chain of a problem, read from its id."""
    found = _ID.fullmatch(problem.problem_id)
    assert found is not None, problem.problem_id
    steps = re.findall(r"([-+*/])(\d+)", found[3])
    return Chain(int(found[2]), tuple(Step(operation, int(number)) for operation, number in steps))


def _chains(level: int, rng: random.Random) -> Iterator[Chain]:
    """Chains of a level, without end; every value on the way is a whole number from 1 to 200."""
    while True:
        # The fourth level is a chain of the third with a step of the first behind it.
        kinds = _OPERATIONS[min(level, 3)]
        operations = rng.choice(kinds) + (rng.choice(_OPERATIONS[1]) if level == 4 else "")
        chain = Chain(rng.randint(4, 60), tuple(Step(sign, _number(sign, rng)) for sign in operations))
        values = [chain.start, *chain.values]
        exact = all(
            step.operation != "/" or before % step.number == 0
            for before, step in zip(values, chain.steps, strict=False)
        )
        if exact and all(1 <= value <= _LARGEST for value in values):
            yield chain


def _number(operation: str, rng: random.Random) -> int:
    return rng.randint(2, 5) if operation in "*/" else rng.randint(2, 30)


def _problem(level: int, chain: Chain, rng: random.Random) -> Problem:
    name, she, her = rng.choice(_PEOPLE)
    things = rng.choice(_THINGS)
    told = [f"{name} has {chain.start} {things}."]
    for number, step in enumerate(chain.steps):
        sentence = rng.choice(_TOLD[step.operation])
        then = number > 0 and sentence.startswith("{She}") and rng.random() < 0.5
        if then:
            sentence = sentence.replace("{She}", "Then {she}", 1)
        told.append(sentence.format(She=she.capitalize(), she=she, her=her, n=step.number))
    return Problem(
        problem_id=f"{TASK}-{level}-{chain}",
        task=TASK,
        question=f"{' '.join(told)} How many {things} does {name} have now?",
        answer=str(chain.values[-1]),
        level=str(level),
        subject=TASK,
        source="built-in",
    )


class Habits(NamedTuple):
    """How the imperfect author behaves; every field is a probability.

    Attributes:
        slip, misread, skip: of a step: its result is off, it is done the wrong way round, it is left out.
        blind_changes, blind_right: a blind revision writes anew; what it writes anew is right.
        skilled_changes_wrong, skilled_changes_right: a revision with skill mends a wrong attempt, spoils a right one.
    """

    slip: float = 0.12
    misread: float = 0.08
    skip: float = 0.06
    blind_changes: float = 0.25
    blind_right: float = 0.4
    skilled_changes_wrong: float = 0.9
    skilled_changes_right: float = 0.03


_OPPOSITE = {"+": "-", "-": "+", "*": "+", "/": "-"}


class Author:
    """An imperfect author at work on one problem."""

    def __init__(self, problem: Problem, rng: random.Random, *, skilled: float) -> None:
        """Args:
        skilled: share of the revisions that are made with skill; the others are blind.
        """
        self.chain = chain_of(problem)
        self.text = ""
        self._answer = 0
        self._rng, self._skilled, self._habits = rng, skilled, Habits()

    @property
    def is_right(self) -> bool:
        """Whether the newest attempt has the right answer."""
        return self._answer == self.chain.values[-1]

    def guess(self) -> str:
        """The first attempt: each step may go wrong, and those after it go on from there."""
        return self._write(self._steps_with_mistakes())

    def revise(self) -> str:
        """The next attempt; often the same again."""
        habits, rng = self._habits, self._rng
        if rng.random() < self._skilled:
            changes = habits.skilled_changes_right if self.is_right else habits.skilled_changes_wrong
            right = not self.is_right
        else:
            changes, right = habits.blind_changes, rng.random() < habits.blind_right
        if rng.random() >= changes:
            return self.text
        return self._write([(step, 0) for step in self.chain.steps] if right else self._spoilt())

    def claims_correct(self, truly: float) -> bool:
        """Whether the author calls the newest attempt correct, which is true with probability `truly`."""
        return self.is_right == (self._rng.random() < truly)

    def _spoilt(self) -> list[tuple[Step, int]]:
        """Steps with at least one mistake."""
        while (steps := self._steps_with_mistakes()) == [(step, 0) for step in self.chain.steps]:
            pass
        return steps

    def _steps_with_mistakes(self) -> list[tuple[Step, int]]:
        """The steps as the author takes them, each with what its result is off by."""
        taken = []
        for step in self.chain.steps:
            kind = self._rng.random() - self._habits.skip
            if kind < 0 and len(self.chain.steps) > 1:
                continue
            misread = 0 <= kind < self._habits.misread
            slips = self._habits.misread <= kind < self._habits.misread + self._habits.slip
            done = Step(_OPPOSITE[step.operation], step.number) if misread else step
            taken.append((done, self._rng.choice([-10, -2, -1, 1, 2, 10]) if slips else 0))
        return taken or [(self.chain.steps[0], 0)]

    def _write(self, steps: list[tuple[Step, int]]) -> str:
        """The attempt's text: a line a step, then the answer in a box."""
        value, lines = self.chain.start, []
        for step, off in steps:
            result = max(0, step.on(value) + off)
            lines.append(f"{value} {step.operation} {step.number} = {result}")
            value = result
        self._answer = value
        self.text = "\n".join([*lines, f"\\boxed{{{value}}}"])
        return self.text
