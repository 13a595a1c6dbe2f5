"""`score signal`: traces to what a frozen policy says of their solves. Training alone reads it; no evaluation does.

confidence  the probability that the policy gives the tokens of an answer; gold answers are never read
judge       whether the policy, asked after a solve, calls it right; it sees gold answers where its words hold them
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from score_cli.config import SampleConfig, SignalConfig
from score_cli.errors import UserError
from score_cli.progress import SILENT, Progress
from score_cli.sampling.renderer import Renderer, TaskRenderer
from score_cli.settings import check_config
from score_cli.stages.train import check_tokens
from score_cli.tables.atomic import check_output
from score_cli.tables.checkpoints import Policy, context_length, load_policy, renderer_digest
from score_cli.tables.device import setup_device
from score_cli.tables.parquet import SIGNALS, TRACES, read_footer, write_table
from score_cli.tables.problems import read_problems
from score_cli.tables.provenance import Footer, file_sha256, short_digest
from score_cli.tables.records import REVISION, SOLVE, Problem, Signal, Trace
from score_cli.tables.schemas import LENGTH
from score_cli.tables.traces import read_traces
from score_cli.tasks.confidence import confidences
from score_cli.tasks.latex_boxes import last_boxed
from score_cli.tasks.script import ANSWER, claim_words, places
from score_cli.training.logprobs import trace_logprobs
from score_cli.verification.grader import PROGRAM_TASKS

JUDGE = "judge"
# Tokens of a gold answer among the words for a judge: all of them.
_ANY = 2**31


class Signaller:
    """Makes the signal of traces with one policy, whose weights stay as they are."""

    def __init__(self, config: SignalConfig, policy: Policy) -> None:
        """Raises:
        UserError: a setting is out of bounds, or the policy's tokenizer lacks a judge's words.
        """
        check_config(config)
        assert config.kind != REVISION, "see `stages.revision`"
        self.config = config
        self.policy = policy
        self._judge = _Judge(config, policy) if config.kind == JUDGE else None

    def signals(self, traces: Sequence[Trace], problems: Mapping[str, Problem]) -> list[Signal]:
        """One signal a trace, in their order.

        Args:
            problems: by problem_id; a confidence looks at none.
        Raises:
            UserError: a problem is not there, or lacks what a judge is to be told.
        """
        setup_device(self.config)
        return self._confidences(traces) if self._judge is None else self._judge.signals(traces, problems)

    def footer(self, *, traces: str, policy: str | None) -> Footer:
        """The provenance of signals: what was asked of which frozen policy.

        Args:
            traces: sha256 of their file; policy: fingerprint of who sampled them.
        """
        of_kind = ("over",) if self._judge is None else ("ask", "claim", "accept_at", "accepted", "rejected", "boxed")
        settings: dict[str, Any] = {name: asdict(self.config)[name] for name in ("kind", *of_kind)}
        settings["by"] = self.policy.state.fingerprint
        return Footer(table=SIGNALS.name, stage="signal", config=settings, inputs={"traces": traces}, policy=policy)

    def _confidences(self, traces: Sequence[Trace]) -> list[Signal]:
        tokenizer = self.policy.tokenizer
        model, budget = self.policy.model, self.config.scoring_tokens
        found = []
        for trace, logprobs in zip(traces, trace_logprobs(model, traces, 1.0, budget).tolist(), strict=True):
            scores = confidences(trace, logprobs, self.config.over, lambda tokens: _decode(tokenizer, tokens))
            accepted: list[bool | None] = [None] * len(scores)
            found.append(Signal(trace.problem_id, trace.sample_index, self.config.kind, scores, accepted, scores))
        return found


class _Judge:
    """Asks a policy of each solve, in the policy's own tokens, whether it is right: problem, solve, words, claim."""

    def __init__(self, config: SignalConfig, policy: Policy) -> None:
        self._config = config
        self._policy = policy
        self._renderer = Renderer(policy, SampleConfig(prompts=config.prompts))
        self._words = claim_words(config.claim, "[signal]")
        self._sees_answer = ANSWER in places(config.ask)
        strange = [place for place in places(config.ask) if place != ANSWER]
        if strange:
            raise UserError(
                f"[signal] ask speaks of {{{strange[0]}}}, expected no place but {{{ANSWER}}}: leave it out"
            )
        for word in self._words:
            self._check_words(word, "claim")
        self._check_words(config.ask.replace(f"{{{ANSWER}}}", ""), "words to ask with")

    def signals(self, traces: Sequence[Trace], problems: Mapping[str, Problem]) -> list[Signal]:
        """See `Signaller.signals`."""
        asked = [
            (row, turn)
            for row, trace in enumerate(traces)
            for turn, role in enumerate(trace.turn_roles)
            if role == SOLVE and self._answered(trace, turn)
        ]
        claims = [
            claim
            for row, turn in asked
            for claim in self._conversations(_known(problems, traces[row]), traces[row].attempts[turn])
        ]
        budget = self._config.scoring_tokens
        found = trace_logprobs(self._policy.model, claims, 1.0, budget).tolist() if claims else []
        sums = [math.fsum(logprobs) for logprobs in found]
        # Of the two claims alone: whatever else the judge might have said is left out.
        scores = {place: _share(*sums[2 * number : 2 * number + 2]) for number, place in enumerate(asked)}
        return [self._signal(trace, row, scores) for row, trace in enumerate(traces)]

    def _answered(self, trace: Trace, turn: int) -> bool:
        if trace.finish_reasons[turn] == LENGTH:
            return False
        return not self._config.boxed or last_boxed(trace.attempts[turn]) is not None

    def _conversations(self, problem: Problem, solve: str) -> list[Trace]:
        """The conversation that ends in the claim of a correct solve, and that of an incorrect one."""
        task, context = self._renderer.task(problem.task), context_length(self._policy.model)
        before = [*self._renderer.prompt(problem), *task.plain_tokens(solve), *self._asked(task, problem)]
        found = []
        for word in self._words:
            claim = task.plain_tokens(word)
            if context is not None and len(before) + len(claim) > context:
                raise UserError(
                    f"the judge {self._policy.name} would read {len(before) + len(claim)} tokens of problem "
                    f"{problem.problem_id}, its context is {context}: take another, or sample shorter solves"
                )
            owners = [0] * len(before) + [1] * len(claim)
            found.append(_as_trace([*before, *claim], owners))
        return found

    def _asked(self, task: TaskRenderer, problem: Problem) -> list[int]:
        """What stands between a solve and the claim."""
        words = self._config.ask
        if not self._sees_answer:
            return task.bridge_of(words).after(LENGTH)
        if problem.answer is None:
            raise UserError(
                f"problem {problem.problem_id} has no answer, and the judge is to see it: leave {{{ANSWER}}} out of ask"
            )
        return task.bridge_with(words, {ANSWER: problem.answer}, _ANY).after(LENGTH)

    def _check_words(self, words: str, what: str) -> None:
        """Refuse words that the judge's tokenizer cannot write."""
        unknown = self._policy.tokenizer.unk_token_id
        tokens = self._policy.tokenizer.encode(words, add_special_tokens=False)
        if not tokens or (unknown is not None and unknown in tokens):
            raise UserError(
                f"the judge {self._policy.name} has no tokens for its {what} {words!r}: give [signal] others that its "
                "tokenizer can write, or another judge"
            )

    def _signal(self, trace: Trace, row: int, scores: Mapping[tuple[int, int], float]) -> Signal:
        config = self._config
        own = [scores.get((row, turn)) for turn in range(len(trace.attempts))]
        solves = [role == SOLVE for role in trace.turn_roles]
        accepted = [
            (score is not None and score >= config.accept_at) if solve else None
            for score, solve in zip(own, solves, strict=True)
        ]
        values = [
            None if yes is None else 0.0 if score is None else config.accepted if yes else config.rejected
            for score, yes in zip(own, accepted, strict=True)
        ]
        return Signal(trace.problem_id, trace.sample_index, config.kind, own, accepted, values)


def signal(
    config: SignalConfig,
    *,
    traces: Path,
    problems: Path,
    out: Path,
    overwrite: bool = False,
    progress: Progress = SILENT,
) -> str:
    """Write the signal of a file of traces.

    Args:
        problems: what the traces answer; read by a judge alone.
    Returns:
        One line that sums it up.
    Raises:
        UserError: an input does not fit; nothing is written.
    """
    check_output(out, overwrite=overwrite)
    if config.by is None:
        raise UserError("nothing says which policy makes the signal: name a checkpoint with --by")
    signaller = Signaller(config, load_policy(config.by, device=setup_device(config)))
    rows, origin = read_traces(traces), read_footer(traces, TRACES)
    if config.kind != JUDGE:
        check_same_tokens(signaller.policy, None if origin is None else origin.inputs.get("renderer"), str(traces))
        check_tokens(rows, signaller.policy.model, traces)
    by_id = {problem.problem_id: problem for problem in read_problems(problems)} if config.kind == JUDGE else {}
    with progress.phase(config.kind, len(rows)) as task:
        found = signaller.signals(rows, by_id)
        task.advance(len(rows))
    policy = None if origin is None else origin.policy
    write_signals(out, found, signaller.footer(traces=file_sha256(traces), policy=policy))
    solves = [score for row in found for score, value in zip(row.scores, row.values, strict=True) if value is not None]
    known = [score for score in solves if score]
    by, mean = short_digest(signaller.policy.state.fingerprint), math.fsum(known) / max(1, len(known))
    return f"{config.kind} by {by}; {len(known)} of {len(solves)} solves have an answer, with mean {mean:.3f}"


def write_signals(path: Path, signals: Sequence[Signal], footer: Footer) -> None:
    """Write the signals of a whole traces table, in place of any that were there."""
    write_table(path, SIGNALS, [dict(vars(signal)) for signal in signals], footer)


def check_same_tokens(policy: Policy, renderer: str | None, traces: str) -> None:
    """Refuse a policy that would read other tokens than those that were sampled."""
    if renderer not in (None, renderer_digest(policy)):
        raise UserError(
            f"{policy.name} has another tokenizer, chat template or stop token than {traces} was sampled with: take "
            "the confidence of a policy of the same family"
        )


def check_problems(config: SignalConfig, problems: Sequence[Problem]) -> None:
    """Refuse problems that no signal could be made of, before anything is trained.

    Raises:
        UserError: their answers are programs, or a judge is to see answers that are not there.
    """
    if config.kind == REVISION:
        return
    programs = sorted({problem.task for problem in problems} & PROGRAM_TASKS)
    if programs and (config.kind != JUDGE or config.boxed):
        raise UserError(
            f"the answers of {programs[0]} are programs, and {config.kind} reads boxed answers: take a judge with "
            "signal.boxed = false"
        )
    bare = [problem.problem_id for problem in problems if problem.answer is None]
    if bare and config.kind == JUDGE and ANSWER in places(config.ask):
        raise UserError(f"problem {bare[0]} has no answer, and the judge is to see it: leave {{{ANSWER}}} out of ask")


def _known(problems: Mapping[str, Problem], trace: Trace) -> Problem:
    if trace.problem_id not in problems:
        raise UserError(
            f"a trace answers problem {trace.problem_id}, which is not among the problems: name those that it was "
            "sampled from"
        )
    return problems[trace.problem_id]


def _as_trace(tokens: Sequence[int], owners: Sequence[int]) -> Trace:
    arrays = np.array(tokens, dtype=np.int32), np.array(owners, dtype=np.int8), np.zeros(len(tokens), dtype=np.float32)
    return Trace("", 0, [""], [LENGTH], *arrays, 0)


def _share(right: float, wrong: float) -> float:
    """p / (p + q) of two probabilities by their logarithms."""
    return float(torch.sigmoid(torch.tensor(right - wrong, dtype=torch.float64)))


def _decode(tokenizer: Any, tokens: list[int]) -> str:
    return str(tokenizer.decode(tokens, skip_special_tokens=False, clean_up_tokenization_spaces=False))
