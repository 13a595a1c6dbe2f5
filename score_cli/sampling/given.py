"""Conversations built from earlier traces: a critic's own, on a given solve, and the solve after its critique.

    answers     P Y1                  the generator's, sampled as ever
    critiques   C(P, Y1) Z            the critic's: its prompt holds the problem and the solve as text
    revisions   P Y1 B(Z) Y2          the generator's again: the critique is text in the user's words

Each is an ordinary job of one policy. A further round takes the newest solve of `revisions` as its Y1: the generator is
told the problem, that solve and its critique, and nothing of the rounds before.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from score_cli.config import SampleConfig
from score_cli.errors import UserError
from score_cli.sampling.offline import give_attempt
from score_cli.sampling.renderer import MOST_TOKENS, Renderer
from score_cli.sampling.rollout import Bridge, Rollout, Solves
from score_cli.sampling.seeds import sample_digest
from score_cli.tables.provenance import SOLVES
from score_cli.tables.records import CRITIQUE, SOLVE, Problem, Trace
from score_cli.tables.schemas import STOP
from score_cli.tasks.script import QUESTION, Script

Part = Literal["critique", "revise"]
CRITIQUE_PART: Part = "critique"
REVISE_PART: Part = "revise"
PARTS = (CRITIQUE_PART, REVISE_PART)
# Of a critique among a user's words: all of it.
_WHOLE = 2**31


@dataclass(frozen=True)
class Start:
    """What one conversation is built from.

    Attributes:
        solve: the trace whose newest turn is criticised, or revised; all its turns are solves.
        index: `sample_index` of the trace that the conversation answers: of `solve`, or of the critique.
        critique: the text that the revision is told; None for a critique.
    """

    problem: Problem
    solve: Trace
    index: int
    critique: str | None = None


@dataclass(frozen=True)
class Given:
    """All conversations of one pass.

    Attributes:
        part: which pass it is; round: of critiques and revisions, from 1 on. Both choose the random numbers.
        script: the words; see `tasks.script`.
        inputs: sha256 of the tables that it was read from, for the footer.
    """

    part: Part
    script: Script
    starts: Sequence[Start]
    round: int = 1
    inputs: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.script.needs_solves:
            raise UserError(
                "conversations are built from given solves by a [script] that begins with critique: give one, or leave "
                "the solves out"
            )

    @property
    def attempts(self) -> int:
        """Turns of each trace: the critique alone, or the given solve and the new one."""
        return 1 if self.part == CRITIQUE_PART else 2

    @property
    def problems(self) -> list[Problem]:
        """The problem of each conversation."""
        return [start.problem for start in self.starts]

    def of(self, rows: range) -> "Given":
        """Some of the conversations."""
        return replace(self, starts=[self.starts[row] for row in rows])

    def prompt(self, renderer: Renderer, start: Start) -> list[int]:
        """The tokens that a conversation begins with."""
        if self.part == REVISE_PART:
            return renderer.prompt(start.problem)
        texts = {QUESTION: start.problem.question, SOLVE: start.solve.attempts[-1]}
        return renderer.task(start.problem.task).prompt_with(self.script.words(CRITIQUE)[0], texts)

    def room(self, renderer: Renderer, prompts: Sequence[Sequence[int]]) -> int:
        """Tokens that each turn may have within the model's context; errors as `Renderer.room`."""
        if self.part == CRITIQUE_PART:
            return renderer.room(prompts, 1)
        if renderer.context is None:
            return MOST_TOKENS
        fixed = [
            len(prompt) + sum(map(len, self._bridge(renderer, start)))
            for prompt, start in zip(prompts, self.starts, strict=True)
        ]
        room = (renderer.context - max(fixed)) // 2
        if room < 1:
            raise UserError(
                f"a problem with its critique has {max(fixed)} tokens, which leaves no room for two solves in the "
                f"model's context of {renderer.context}: leave long problems out, or let critiques be shorter"
            )
        return min(room, MOST_TOKENS)

    def rollout(
        self, renderer: Renderer, row: int, prompt: Sequence[int], number: int, config: SampleConfig
    ) -> Rollout:
        """The `number`-th trace of a conversation, as far as it is given.

        Raises:
            UserError: the solve to revise is not one that this policy could have written.
        """
        assert config.max_tokens is not None and config.iteration is not None
        start = self.starts[row]
        task = renderer.task(start.problem.task)
        problem, index = start.problem.problem_id, start.index * config.samples + number

        def digest(turn: int) -> bytes:
            # Solve, critique, revision, critique, revision ...: every turn has random numbers of its own.
            assert config.iteration is not None
            return sample_digest(config.seed, config.iteration, problem, index, turn)

        first = 2 * self.round
        bridge = task.bridge if self.part == CRITIQUE_PART else self._bridge(renderer, start)
        rollout = Rollout(
            problem_id=problem,
            sample_index=index,
            prompt=prompt,
            bridge=bridge,
            stop_ids=task.stop_ids,
            seeds=[digest(first)] if self.part == CRITIQUE_PART else [digest(first), digest(first + 1)],
            max_tokens=config.max_tokens,
            dialogue=_Critique() if self.part == CRITIQUE_PART else Solves(bridge, 2),
            given_index=start.index,
        )
        if self.part == REVISE_PART:
            name = f"problem {problem}, sample {start.solve.sample_index} of the solves to revise"
            give_attempt(rollout, start.solve, len(start.solve.attempts), name)
        return rollout

    def _bridge(self, renderer: Renderer, start: Start) -> Bridge:
        """What stands between the given solve and its revision: the critique, as text."""
        assert start.critique is not None
        texts = {CRITIQUE: start.critique, SOLVE: start.solve.attempts[-1], QUESTION: start.problem.question}
        return renderer.task(start.problem.task).bridge_with(self.script.words(SOLVE)[0], texts, _WHOLE)


@dataclass(frozen=True)
class GivenSolves:
    """A generator's solves of many problems, drawn once, on which a critic is trained.

    Attributes:
        script: begins with a critique.
        verdicts: of each solve, by problem_id and sample_index.
        sha256: of the table that holds the solves; `rewards_sha256` of the one that holds their verdicts.
    """

    script: Script
    traces: Sequence[Trace]
    verdicts: Mapping[tuple[str, int], str]
    sha256: str
    rewards_sha256: str

    def critiques(self, problems: Sequence[Problem]) -> Given:
        """The conversations of a critic on some problems' solves."""
        known = {problem.problem_id: problem for problem in problems}
        return Given(CRITIQUE_PART, self.script, starts_of_critiques(known, self.traces), 1, {SOLVES: self.sha256})

    def revisions(self, problems: Mapping[str, Problem], critiques: Sequence[Trace]) -> Given:
        """The conversations of the generator after critiques."""
        starts = starts_of_revisions(problems, self.traces, critiques)
        return Given(REVISE_PART, self.script, starts, 1, {SOLVES: self.sha256})


class _Critique:
    """A conversation of one turn; see `rollout.Dialogue`."""

    first = CRITIQUE
    names_roles = True

    def after(self, rollout: Rollout) -> None:
        """Nothing follows."""

    def most_context(self, max_tokens: int) -> int:
        """Nothing stands after the critique."""
        return 0


def starts_of_critiques(problems: Mapping[str, Problem], solves: Sequence[Trace]) -> list[Start]:
    """A conversation for each solve, in their order; those of other problems are left out."""
    return [
        Start(problems[trace.problem_id], trace, trace.sample_index) for trace in solves if trace.problem_id in problems
    ]


def starts_of_revisions(
    problems: Mapping[str, Problem], solves: Sequence[Trace], critiques: Sequence[Trace]
) -> list[Start]:
    """A conversation for each critique, in their order.

    Raises:
        UserError: a critique is of a solve, or of a problem, that is not there.
    """
    by_name = {(trace.problem_id, trace.sample_index): trace for trace in solves}
    found = []
    for critique in critiques:
        key = (critique.problem_id, -1 if critique.given_index is None else critique.given_index)
        if key not in by_name or critique.problem_id not in problems:
            raise UserError(
                f"a critique is of problem {key[0]}, sample {key[1]}, which is not among the solves given: name those "
                "that it was made from, and their problems"
            )
        found.append(Start(problems[key[0]], by_name[key], critique.sample_index, critique.attempts[-1]))
    return found


def still_judged(script: Script, solves: Sequence[Trace], critiques: Sequence[Trace]) -> list[Trace]:
    """The revisions whose critique did not call the solve before them correct: those of another round.

    Args:
        solves: revisions; critiques: what they answer.
    Raises:
        UserError: a revision answers a critique that is not there.
    """
    by_name = {(trace.problem_id, trace.sample_index): trace for trace in critiques}
    found = []
    for solve in solves:
        critique = by_name.get((solve.problem_id, -1 if solve.given_index is None else solve.given_index))
        if critique is None:
            raise UserError(
                f"problem {solve.problem_id}, sample {solve.sample_index} answers none of the critiques given: name "
                "those of the round before"
            )
        if not calls_correct(script, critique):
            found.append(solve)
    return found


def calls_correct(script: Script, critique: Trace) -> bool:
    """Whether a critique claims that its solve is correct; one that was cut off claims nothing."""
    if critique.finish_reasons[-1] != STOP:
        return False
    claim = script.read_claim(CRITIQUE, critique.attempts[-1])
    return claim is not None and script.claims_correct(CRITIQUE, claim)
