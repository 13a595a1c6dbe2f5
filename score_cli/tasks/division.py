r"""The built-in task: integer division whose working is written down.

    Divide 264 by 5. \boxed{53}: product 265, remainder -01 <eos> <fix> \boxed{52}: product 260, remainder +04 <eos>

The quotient has to be guessed in one pass, which is hard for a small model; product and remainder
are then written out, so a second attempt can read the sign and the size of its own error.
This module holds the problems, the tokenizer and the transcripts the base policy learns from.
"""

import hashlib
import random
import re
from collections.abc import Sequence
from typing import NamedTuple

from score_cli.errors import UserError
from score_cli.tables.records import CRITIQUE, SOLVE, Problem
from score_cli.tasks.script import QUESTION, Script, fill

CORRECTION = "<fix>"
LATENT_CORRECTION = "<check>"
END_OF_TURN = "<eos>"
PAD = "<pad>"
UNKNOWN = "<unk>"

TEST_PROBLEMS = 400
VALIDATION_PROBLEMS = 200

# Every token that is not a digit, with the spaces it carries, so that decoding is concatenation.
WORDS = [
    "Divide ",
    " by ",
    ". ",
    "\\boxed{",
    "}: product ",
    ", remainder ",
    "+",
    "-",
    CORRECTION,
    LATENT_CORRECTION,
]

# What a critic says of a quotient, before its claim. Only a script that begins with a critique has these words.
HINTS = LOWER, RAISE, KEEP = ("lower ", "raise ", "keep ")
# Of the transcripts for such a script: those of a critic, and of the others those whose revision is told a critique.
CRITIC_SHARE, TOLD_SHARE = 0.3, 0.85

# A conversation is concatenation: the assistant's turns end with <eos>, the user's with nothing.
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ message['content'] }}"
    "{% if message['role'] == 'assistant' %}" + END_OF_TURN + "{% endif %}{% endfor %}"
)


# Where the quotient's digits stand among the tokens of an attempt.
QUOTIENT_TOKENS = slice(1, 3)


class Transcript(NamedTuple):
    """One conversation of the base policy's corpus, as text; an instruction before each attempt but the first."""

    question: str
    attempts: tuple[str, ...]
    instructions: tuple[str, ...]
    right_first: bool

    def turns(self) -> list[str]:
        """What the user says before each attempt."""
        return [self.question, *self.instructions]


class Corpus(NamedTuple):
    """How the imperfect author of the transcripts behaves; every field is a probability.

    The author believes that a large remainder rounds up. Without such a misconception a well-trained
    base guesses nearly every quotient right when it decodes greedily, and nothing is left to correct.
    """

    first_right: float = 0.65
    rounds_up: float = 0.60
    slip: float = 0.02
    fix_changes_wrong: float = 0.30
    fix_changes_right: float = 0.25
    fix_redraw_right: float = 0.45
    check_changes_wrong: float = 0.90
    check_changes_right: float = 0.03
    check_redraw_right: float = 0.90
    latent_share: float = 0.35
    claims_truly: float = 0.67
    heeds_critique: float = 0.9

    def careful(self) -> "Corpus":
        """The author of the lessons: never rounds up, and revises with skill more often, if at all."""
        latent_share = max(0.5, self.latent_share) if self.latent_share else 0.0
        return self._replace(rounds_up=0.0, latent_share=latent_share, claims_truly=0.95)


def problems() -> list[Problem]:
    """All 3,600 divisions of 100..999 by 2..9 whose quotient has two digits."""
    return [
        Problem(
            problem_id=f"division-{dividend}-{divisor}",
            task="division",
            question=f"Divide {dividend} by {divisor}. ",
            answer=str(dividend // divisor),
            level=str(divisor),
            subject="division",
            source="built-in",
        )
        for divisor in range(2, 10)
        for dividend in range(100, 1000)
        if 10 <= dividend // divisor <= 99
    ]


def split_problems(split: str) -> list[Problem]:
    """The problems of one split; the three splits share no problem and never change.

    Args:
        split: `train` (3,000), `validation` (200) or `test` (400).
    """

    # Ordered by a hash of the id: independent of every seed, and neighbours in value are apart.
    ordered = sorted(problems(), key=lambda p: hashlib.sha256(p.problem_id.encode()).digest())
    bounds = {
        "test": (0, TEST_PROBLEMS),
        "validation": (TEST_PROBLEMS, TEST_PROBLEMS + VALIDATION_PROBLEMS),
        "train": (TEST_PROBLEMS + VALIDATION_PROBLEMS, len(ordered)),
    }
    start, stop = bounds[split]
    return ordered[start:stop]


def operands(problem: Problem) -> tuple[int, int]:
    """Dividend and divisor, read from the problem's id."""
    _, dividend, divisor = problem.problem_id.split("-")
    return int(dividend), int(divisor)


def _draw_quotient(truth: int, right: float, rng: random.Random) -> int:
    """The true quotient with probability `right`, else one off by 1, 2, 3 or 10."""
    if rng.random() < right:
        return truth
    nearby = [truth + sign * size for size in (1, 2, 3, 10) for sign in (-1, 1)]
    return rng.choice([q for q in nearby if 10 <= q <= 99])


def _write_attempt(quotient: int, dividend: int, divisor: int, slip: float, rng: random.Random) -> str:
    """The attempt's text: quotient, product, signed remainder; each of the last two may slip."""
    product = quotient * divisor
    if rng.random() < slip:
        product += rng.choice([-1, 1]) * rng.choice([1, 2, 10])
    remainder = dividend - product
    if rng.random() < slip:
        remainder += rng.choice([-2, -1, 1, 2])
    remainder = max(-99, min(99, remainder))
    return f"\\boxed{{{quotient}}}: product {product:03d}, remainder {remainder:+03d}"


def draw_transcript(problem: Problem, rng: random.Random, corpus: Corpus, attempts: int = 2) -> Transcript:
    """Draw one conversation of `attempts` attempts by the imperfect author described by `corpus`."""
    author = _Author(problem, rng, corpus)
    texts, instructions = [author.guess()], []
    right_first = author.is_right
    while len(texts) < attempts:
        instruction, text = author.revise()
        instructions.append(instruction)
        texts.append(text)
    return Transcript(problem.question, tuple(texts), tuple(instructions), right_first)


def draw_dialogue(problem: Problem, rng: random.Random, corpus: Corpus, script: Script) -> Transcript:
    """Draw one conversation that follows a script: solves as in `draw_transcript`, and verdicts on them.

    Raises:
        UserError: the author does not write turns of a role.
    """
    author = _Author(problem, rng, corpus)
    texts, instructions, roles = [author.guess()], [], [SOLVE]
    right_first = author.is_right
    while (role := script.next_role(roles, lambda: texts[-1])) is not None:
        if role == SOLVE:
            instruction, text = author.revise()
        elif role in script.claims:
            instruction, text = (
                _one_of(script.words(role), rng),
                script.claims[role][0 if author.claims_correct() else 1],
            )
        else:
            raise UserError(
                f"[script] has {role} turns without a claim, which the built-in task's author does not write: leave "
                "them out, or start from a model of your own with --model"
            )
        own = script.words(SOLVE) if role == SOLVE else []
        instructions.append(_one_of(own, rng) if own else instruction)
        texts.append(text)
        roles.append(role)
    return Transcript(problem.question, tuple(texts), tuple(instructions), right_first)


def draw_critique(problem: Problem, rng: random.Random, corpus: Corpus, script: Script) -> Transcript:
    """Draw one conversation for a script that begins with a critique: of a critic on a solve, or of who is told one.

    A solve is revised after a critique, or blindly as in `draw_transcript`.
    """
    author = _Author(problem, rng, corpus)
    solve, right_first = author.guess(), author.is_right
    claims = script.claims[CRITIQUE]
    if rng.random() < CRITIC_SHARE:
        asked = fill(script.words(CRITIQUE)[0], {QUESTION: problem.question, SOLVE: solve})
        # All that is learned of it is the critique: no guess of a quotient.
        return Transcript(asked, (author.hint() + claims[author.says_wrong],), (), right_first=True)
    if rng.random() < TOLD_SHARE:
        hint = author.hint()
        texts = {QUESTION: problem.question, SOLVE: solve, CRITIQUE: hint + claims[author.says_wrong]}
        instruction, text = fill(script.words(SOLVE)[0], texts), author.revise_as_told(hint)
    else:
        instruction, text = author.revise()
    return Transcript(problem.question, (solve, text), (instruction,), right_first)


def true_hint(quotient: int, truth: int) -> str:
    """What a critic who knows the answer says of a quotient."""
    return KEEP if quotient == truth else LOWER if quotient > truth else RAISE


def advice(problem: Problem, solve: str) -> str:
    """What a critic who knows the answer says of a solve before its claim; nothing where it has no box."""
    found = re.match(r"\\boxed\{(\d+)\}", solve)
    if problem.task != "division" or problem.answer is None or found is None:
        return ""
    return true_hint(int(found[1]), int(problem.answer))


def _one_of(words: Sequence[str], rng: random.Random) -> str:
    """One of several words; where there is one, no random number is drawn."""
    return words[0] if len(words) == 1 else rng.choice(words)


class _Author:
    """The imperfect author at work on one problem."""

    def __init__(self, problem: Problem, rng: random.Random, corpus: Corpus) -> None:
        self.dividend, self.divisor = operands(problem)
        self.truth = self.dividend // self.divisor
        self.quotient, self.text = 0, ""
        self.says_wrong = False
        self._rng, self._corpus = rng, corpus

    @property
    def is_right(self) -> bool:
        """Whether the newest quotient is the true one."""
        return self.quotient == self.truth

    def guess(self) -> str:
        """The first attempt."""
        large_remainder = 3 * (self.dividend % self.divisor) >= 2 * self.divisor and self.truth < 99
        if large_remainder and self._rng.random() < self._corpus.rounds_up:
            self.quotient = self.truth + 1
        else:
            self.quotient = _draw_quotient(self.truth, self._corpus.first_right, self._rng)
        return self._write()

    def revise(self) -> tuple[str, str]:
        """The words that ask for the next attempt, and that attempt."""
        corpus = self._corpus
        competent = self._rng.random() < corpus.latent_share
        wrong, right, redraw = (
            (corpus.check_changes_wrong, corpus.check_changes_right, corpus.check_redraw_right)
            if competent
            else (corpus.fix_changes_wrong, corpus.fix_changes_right, corpus.fix_redraw_right)
        )
        if self._rng.random() < (right if self.is_right else wrong):
            # A competent author who changes a right answer makes it wrong; <fix> redraws blindly.
            chance = 0.0 if competent and self.is_right else redraw
            self.quotient = _draw_quotient(self.truth, chance, self._rng)
            self._write()
        return (LATENT_CORRECTION if competent else CORRECTION), self.text

    def claims_correct(self) -> bool:
        """Whether the author calls the newest attempt correct; it is not always what it is."""
        return self.is_right == (self._rng.random() < self._corpus.claims_truly)

    def hint(self) -> str:
        """What the author tells of the newest attempt, true as often as its claims are; `says_wrong` goes with it."""
        truth = true_hint(self.quotient, self.truth)
        if self._rng.random() < self._corpus.claims_truly:
            said = truth
        else:
            said = self._rng.choice([hint for hint in HINTS if hint != truth])
        self.says_wrong = said != KEEP
        return said

    def revise_as_told(self, hint: str) -> str:
        """The attempt after a critique: mostly what it says, else a blind redraw."""
        corpus = self._corpus
        if self._rng.random() >= corpus.heeds_critique:
            self.quotient = _draw_quotient(self.truth, corpus.fix_redraw_right, self._rng)
            return self._write()
        if hint == KEEP:
            return self.text
        if true_hint(self.quotient, self.truth) == hint and self._rng.random() < corpus.check_redraw_right:
            self.quotient = self.truth
            return self._write()
        sign = -1 if hint == LOWER else 1
        there = [near for size in (1, 2, 3, 10) if 10 <= (near := self.quotient + sign * size) <= 99]
        self.quotient = self._rng.choice(there or [self.quotient])
        return self._write()

    def _write(self) -> str:
        self.text = _write_attempt(self.quotient, self.dividend, self.divisor, self._corpus.slip, self._rng)
        return self.text
