"""Offline first attempts: taken from traces that were drawn before, and only the later attempts are sampled.

Drawn once from the base policy, they keep its mistakes in the prompts of the second turn (Kumar et
al. 2025, section 5). Their tokens condition what follows and are never trained on.
"""

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from score_cli.errors import UserError
from score_cli.sampling.rollout import Rollout
from score_cli.tables.parquet import TRACES, read_footer
from score_cli.tables.provenance import file_sha256
from score_cli.tables.records import Problem, Trace
from score_cli.tables.schemas import STOP
from score_cli.tables.traces import iterate_traces

Key = tuple[str, int]  # problem_id, sample_index


@dataclass(frozen=True)
class OfflineAttempts:
    """First attempts to go on from: the traces that hold them, by problem and sample.

    Attributes:
        name: where they come from, for messages.
        renderer: digest of the tokenizer, template and stop tokens they were sampled with
            (`tables.checkpoints.renderer_digest`); None where nothing says so.
        sha256: of the file they were read from; None where there is none.
    """

    traces: dict[Key, Trace]
    name: str = "the first attempts given"
    renderer: str | None = None
    sha256: str | None = None

    def of(self, problems: Iterable[Problem]) -> "OfflineAttempts":
        """Those of some problems alone."""
        wanted = {problem.problem_id for problem in problems}
        return replace(self, traces={key: trace for key, trace in self.traces.items() if key[0] in wanted})

    def check_keys(self, wanted: Sequence[Key]) -> None:
        """See that every wanted trace is there.

        Raises:
            UserError: one is missing.
        """
        missing = [key for key in wanted if key not in self.traces]
        if missing and len(missing) == len(wanted):
            raise UserError(f"{self.name} holds first attempts of other problems: sample them from these problems")
        if missing:
            raise UserError(
                f"{self.name} lacks {len(missing)} of the {len(wanted)} first attempts needed, such as "
                f"{_say(missing[0])}: sample these problems with as many --samples, or lower --samples or "
                "--offline-share"
            )

    def give_to(self, rollout: Rollout) -> None:
        """Let a trace that has not begun go on from its first attempt here.

        Raises:
            UserError: it was asked with other tokens, or does not end as this policy's attempts do.
        """
        key = (rollout.problem_id, rollout.sample_index)
        give_attempt(rollout, self.traces[key], 1, f"{self.name}, {_say(key)}")


def give_attempt(rollout: Rollout, trace: Trace, attempt: int, name: str) -> None:
    """Let a trace that has not begun go on from an attempt of another one, as if it were its own first.

    Args:
        name: of the other trace, for messages.
    Raises:
        UserError: it was asked with other tokens, or does not end as this policy's attempts do.
    """
    said = f"its {'first attempt' if attempt == 1 else 'newest solve'}"
    start = len(rollout.prompt)
    own = np.flatnonzero(trace.attempt_ids == attempt)
    begins = len(own) > 0 and (own[0] == start if attempt == 1 else own[0] > start)
    if trace.token_ids[:start].tolist() != list(rollout.prompt) or not begins:
        raise UserError(
            f"{name}: its prompt is not the one this policy would be given: "
            "ask both with the same problems, prompts and tokenizer"
        )
    tokens = trace.token_ids[own]
    stops = np.isin(tokens, list(rollout.stop_ids))
    reason = trace.finish_reasons[attempt - 1]
    whole = own[-1] == own[0] + len(own) - 1 and not stops[:-1].any()
    if not whole or stops[-1] != (reason == STOP):
        raise UserError(f"{name}: {said} does not end where this policy's would: sample it again")
    if len(tokens) > rollout.max_tokens:
        raise UserError(
            f"{name}: {said} has {len(tokens)} tokens, more than --max-tokens {rollout.max_tokens}: raise that"
        )
    rollout.give(tokens.tolist(), trace.logprobs[own].tolist(), reason)


def read_offline(path: Path, problem_ids: Collection[str] | None = None) -> OfflineAttempts:
    """The first attempts of a traces table; those of some problems where these are named.

    Raises:
        UserError: as `tables.traces.iterate_traces`, or two traces are of one sample.
    """
    footer = read_footer(path, TRACES)
    traces: dict[Key, Trace] = {}
    for part in iterate_traces(path):
        for trace in part:
            if problem_ids is not None and trace.problem_id not in problem_ids:
                continue
            key = (trace.problem_id, trace.sample_index)
            if key in traces:
                raise UserError(f"{path} holds two traces of {_say(key)}: keep one of them")
            traces[key] = trace
    renderer = None if footer is None else footer.inputs.get("renderer")
    return OfflineAttempts(traces, str(path), renderer, file_sha256(path))


def _say(key: Key) -> str:
    return f"problem {key[0]}, sample {key[1]}"
