"""Scripts of turns: who speaks after whom, in which words, and when a dialogue ends. Nothing here reads files.

    [script]
    turns = ["solve", "verify"]        # said in this order, again and again
    most_solves = 2
    ends_when = "verdict correct"      # as the model itself said in its last turn; the gold answer is never looked at

    [script.verify]
    ask = "<verify>"                   # the user's words before the turn; `{solve}` stands for the newest solve's text
    claim = "right|wrong"              # the words for correct and for incorrect; the last of them in a turn counts

The first turn is asked with the problem; a later solve is asked with the task's correction, unless [script.solve] has
words of its own. Where `ask` is a list, each turn draws from it. `attempts = N` is short for N solve turns.

A script that begins with a critique is a conversation of that one turn, built from a solve that is given:

    [script]
    turns = ["critique"]
    most_turns = 1

    [script.critique]
    ask = "{question}{solve}<judge>"   # the whole prompt: the problem's first words and the given solve's text
    claim = "right|wrong"

    [script.solve]
    ask = "{critique}"                 # what whoever made the solve is told before it solves again
"""

import functools
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from score_cli.errors import UserError, did_you_mean
from score_cli.tables.records import CRITIQUE, JUDGES, ROLES, SOLVE, VERIFY

NEVER, VERDICT_CORRECT = ENDS = ("never", "verdict correct")
MOST_TURNS = 127
# Stands for the gold answer, in the words for a judge that no policy is shown.
ANSWER = "answer"
# Stands for the problem's first words, in the prompt of a conversation that is built from a solve.
QUESTION = "question"
_PLACES = re.compile("{(" + "|".join((*ROLES, ANSWER, QUESTION)) + ")}")


@dataclass(frozen=True, kw_only=True)
class Script:
    """A checked script.

    Attributes:
        turns: roles, repeated in this order.
        most_solves: the dialogue ends before a solve beyond so many; most_turns: before a turn beyond so many.
        ends_when: `verdict correct` ends it after a turn that claims the newest solve to be correct, and after one
            whose claim cannot be read: nothing could follow from it.
        asks: role -> the user's words before its turns; of several, each turn draws its own.
        claims: role -> the words that claim a solve to be correct and to be incorrect.
    """

    turns: Sequence[str]
    most_solves: int | None = None
    most_turns: int | None = None
    ends_when: str = NEVER
    asks: Mapping[str, str | Sequence[str]] = field(default_factory=dict)
    claims: Mapping[str, Sequence[str]] = field(default_factory=dict)

    @property
    def only_solves(self) -> bool:
        """Whether every turn is a solve, so that no table needs to name roles."""
        return set(self.turns) == {SOLVE}

    @property
    def plain(self) -> bool:
        """Whether this is `attempts = N` in other words."""
        return self.only_solves and not self.asks and not self.claims

    @property
    def needs_solves(self) -> bool:
        """Whether its conversations are built from solves that are given: it begins with a critique of one."""
        return self.turns[0] == CRITIQUE

    @functools.cached_property
    def longest(self) -> int:
        """The most turns of a dialogue."""
        count = solves = 0
        while self.most_turns is None or count < self.most_turns:
            solves += self._role(count) == SOLVE
            if self.most_solves is not None and solves > self.most_solves:
                break
            count += 1
        return count

    @property
    def roles(self) -> list[str]:
        """The roles of the longest dialogue."""
        return [self._role(turn) for turn in range(self.longest)]

    def next_role(self, roles: Sequence[str], said: Callable[[], str | None]) -> str | None:
        """Who speaks after the turns so far; None where the dialogue is over.

        Args:
            said: the newest turn's text; None where it was cut off, which leaves its claim unread.
        """
        if len(roles) >= self.longest:
            return None
        if self.ends_when == VERDICT_CORRECT and roles[-1] in self.claims:
            text = said()
            claim = None if text is None else self.read_claim(roles[-1], text)
            if claim != self.claims[roles[-1]][1]:
                return None
        return self._role(len(roles))

    def words(self, role: str) -> list[str]:
        """The words that may come before a turn of a role; none where those of the task do."""
        ask = self.asks.get(role, [])
        return [ask] if isinstance(ask, str) else list(ask)

    def read_claim(self, role: str, text: str) -> str | None:
        """What a turn claims of the newest solve: one of the role's two words, as the script spells it.

        The last of them that stands in the text as a word of its own counts, in letters of either size. None where
        neither does, or where the role claims nothing.
        """
        if role not in self.claims:
            return None
        words = sorted(self.claims[role], key=len, reverse=True)
        found = re.findall(rf"(?<!\w)(?:{'|'.join(map(re.escape, words))})(?!\w)", text, re.IGNORECASE)
        return next((word for word in words if found and word.casefold() == found[-1].casefold()), None)

    def claims_correct(self, role: str, claim: str) -> bool:
        """Whether a claim that was read says that the solve is correct."""
        return claim == self.claims[role][0]

    def _role(self, turn: int) -> str:
        return self.turns[turn % len(self.turns)]


def places(words: str) -> list[str]:
    """The roles whose newest text some words ask for."""
    return _PLACES.findall(words)


def literals(words: str) -> list[str]:
    """What some words say themselves, between the places in them."""
    return [part for number, part in enumerate(_PLACES.split(words)) if number % 2 == 0 and part]


def fill(words: str, texts: Mapping[str, str]) -> str:
    """Words with the newest texts in their places; text that looks like a place stays text."""
    return _PLACES.sub(lambda place: texts.get(place[1], ""), words)


def check_script(table: Mapping[str, Any], where: str = "") -> None:
    """Check the keys and kinds of a table [script], which another recipe may complete.

    Raises:
        UserError: a key or a value is none that a script has.
    """
    for key, value in table.items():
        if key in ROLES:
            _check_role(key, value, where)
        elif key == "turns":
            if not isinstance(value, list) or not value:
                raise UserError(f"{where}[script] turns is {value!r}, expected a list of {', '.join(ROLES)}")
            unknown = [str(turn) for turn in value if turn not in ROLES]
            if unknown:
                raise UserError(f"{where}[script] turns holds {unknown[0]}{did_you_mean(unknown[0], ROLES)}")
        elif key in ("most_solves", "most_turns"):
            if type(value) is not int or not 1 <= value <= MOST_TURNS:
                raise UserError(f"{where}[script] {key} is {value!r}, expected a whole number from 1 to {MOST_TURNS}")
        elif key == "ends_when":
            if value not in ENDS:
                raise UserError(f"{where}[script] ends_when is {value!r}, expected one of {', '.join(ENDS)}")
        else:
            known = ["turns", "most_solves", "most_turns", "ends_when", *ROLES]
            raise UserError(f"{where}[script] has no key {key}{did_you_mean(key, known)}")


def _check_role(role: str, table: Any, where: str) -> None:
    if not isinstance(table, dict):
        raise UserError(f"{where}[script] {role} is {table!r}, expected a table: write [script.{role}]")
    for key, value in table.items():
        if key not in ("ask", "claim"):
            raise UserError(f"{where}[script.{role}] has no key {key}: it takes ask and claim")
        several = key == "ask" and isinstance(value, list) and value and all(isinstance(each, str) for each in value)
        if not isinstance(value, str) and not several:
            more = ", or a list of texts to draw from" if key == "ask" else ""
            raise UserError(f"{where}[script.{role}] {key} is {value!r}, expected text in quotes{more}")
    if "claim" in table:
        if role not in JUDGES:
            raise UserError(f"{where}[script.{role}] has a claim, and only {' and '.join(JUDGES)} turns judge: drop it")
        claim_words(table["claim"], f"{where}[script.{role}]")


def claim_words(claim: str, where: str) -> list[str]:
    """The word for a correct solve and the word for an incorrect one.

    Raises:
        UserError: they cannot be told apart; `where` names the table that holds the claim.
    """
    words = [word.strip() for word in claim.split("|")]
    if len(words) != 2 or not all(words) or words[0].casefold() == words[1].casefold():
        raise UserError(
            f"{where} claim is {claim!r}, which could not be read: expected the word for a correct "
            'solve, a bar, and another word for an incorrect one, such as "right|wrong"'
        )
    return words


def read_script(table: Mapping[str, Any]) -> Script:
    """The script of a recipe's table [script], with its tables of roles.

    Raises:
        UserError: it is incomplete, or its dialogues could never end.
    """
    check_script(table)
    roles = {name: table[name] for name in ROLES if name in table}
    if "turns" not in table:
        raise UserError('[script] has no turns: give it some, such as turns = ["solve", "verify"]')
    script = Script(
        turns=list(table["turns"]),
        most_solves=table.get("most_solves"),
        most_turns=table.get("most_turns"),
        ends_when=table.get("ends_when", NEVER),
        asks={name: words["ask"] for name, words in roles.items() if "ask" in words},
        claims={
            name: claim_words(words["claim"], f"[script.{name}]") for name, words in roles.items() if "claim" in words
        },
    )
    _check_ends(script)
    if script.needs_solves:
        _check_critique(script, list(roles))
    else:
        _check_words(script, list(roles))
    return script


def _check_ends(script: Script) -> None:
    said = ", ".join(script.turns)
    if script.most_turns is None and (script.most_solves is None or SOLVE not in script.turns):
        reason = (
            "nothing bounds them" if script.most_solves is None else "most_solves counts solves, and there are none"
        )
        raise UserError(f"[script] can never end: its turns ({said}) repeat, and {reason}: set most_turns")
    if script.ends_when == VERDICT_CORRECT and not set(script.turns) & set(script.claims):
        raise UserError(
            f"[script] ends_when is {VERDICT_CORRECT!r}, and none of its turns ({said}) makes a claim: give "
            '[script.verify] claim = "right|wrong"'
        )
    if script.turns[0] not in (SOLVE, CRITIQUE):
        raise UserError(
            f"[script] begins with {script.turns[0]}, and there is nothing yet to speak of: begin with solve, or with "
            "critique, whose solves are given"
        )
    if script.needs_solves and script.longest != 1:
        raise UserError(
            f"[script] begins with critique and can have {script.longest} turns, and a critique of a given solve is a "
            'conversation by itself: give turns = ["critique"] and most_turns = 1'
        )
    if script.longest > MOST_TURNS:
        raise UserError(f"[script] can have {script.longest} turns, expected at most {MOST_TURNS}: lower most_solves")


def _check_critique(script: Script, given: Sequence[str]) -> None:
    """See that a critique of a given solve can be asked for, read, and told to whoever solves again."""
    wanted = {CRITIQUE: SOLVE, SOLVE: CRITIQUE}
    for role, place in wanted.items():
        if len(script.words(role)) > 1:
            raise UserError(f"[script] begins with critique, and [script.{role}] ask is a list: give it one text")
        if place not in places("".join(script.words(role))):
            raise UserError(
                f"[script] begins with critique, and [script.{role}] ask holds no {{{place}}}: give it words with the "
                f"text of the {place} in them"
            )
    if CRITIQUE not in script.claims:
        raise UserError(
            "[script] begins with critique, and nothing says how its claim is read: give [script.critique] claim = "
            '"right|wrong"'
        )
    unused = [role for role in given if role not in wanted]
    if unused:
        raise UserError(f"[script.{unused[0]}] has words, and turns holds no {unused[0]}: add it, or drop them")
    for role, words in [(asked, script.words(asked)[0]) for asked in script.asks]:
        strange = [place for place in places(words) if place not in (QUESTION, SOLVE, *{wanted[role]})]
        if strange:
            raise UserError(
                f"[script.{role}] ask speaks of {{{strange[0]}}}, expected {{{QUESTION}}}, {{{SOLVE}}} and, for a "
                f"solve, {{{CRITIQUE}}}: drop it"
            )


def _check_words(script: Script, given: Sequence[str]) -> None:
    for role in dict.fromkeys(script.turns):
        if role != SOLVE and not all(words.strip() for words in script.words(role) or [""]):
            raise UserError(f"[script] has {role} turns and no words that ask for them: give [script.{role}] ask")
        if role == VERIFY and role not in script.claims:
            raise UserError(
                f"[script] has {role} turns, and nothing says how their claim is read: give [script.{role}] claim = "
                '"right|wrong"'
            )
    unused = [role for role in given if role not in script.turns]
    if unused:
        raise UserError(f"[script.{unused[0]}] has words, and turns holds no {unused[0]}: add it, or drop them")
    for role, words in [(asked, words) for asked in script.asks for words in script.words(asked)]:
        if ANSWER in places(words):
            raise UserError(f"[script.{role}] ask speaks of {{{ANSWER}}}, and no policy is shown gold answers: drop it")
        if QUESTION in places(words):
            raise UserError(
                f"[script.{role}] ask speaks of {{{QUESTION}}}, which the dialogue holds already: drop it, or begin "
                "with critique"
            )
        early = [place for place in places(words) if place not in script.turns]
        if early:
            raise UserError(f"[script.{role}] ask speaks of {{{early[0]}}}, and turns holds no {early[0]}: add it")
