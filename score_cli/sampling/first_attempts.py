"""First attempts taken from another table of traces, from which only the later attempts are sampled.

Drawn once from the base policy, they keep its mistakes in the prompts of the second turn (Kumar et
al. 2025, section 5). Their tokens condition what follows and are never trained on.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from score_cli.errors import UserError
from score_cli.sampling.rollout import Rollout
from score_cli.tables.parquet import TRACES, read_footer
from score_cli.tables.records import Trace
from score_cli.tables.schemas import STOP
from score_cli.tables.traces import iterate_traces

Key = tuple[str, int]  # problem_id, sample_index


class Expected(NamedTuple):
    """What a trace must begin with for its first attempt to be this policy's business."""

    prompt: list[int]
    stop_ids: frozenset[int]


class FirstAttempt(NamedTuple):
    """The first attempt of a trace: [T] token ids and [T] logprobs of the policy that sampled it."""

    token_ids: NDArray[np.int32]
    logprobs: NDArray[np.float32]
    finish_reason: str

    def give_to(self, rollout: Rollout) -> None:
        """Let a trace that has not begun go on from this attempt."""
        rollout.give(self.token_ids.tolist(), self.logprobs.tolist(), self.finish_reason)


def read_first_attempts(
    path: Path, wanted: Mapping[Key, Expected], *, renderer: str, max_tokens: int
) -> dict[Key, FirstAttempt]:
    """The first attempts of the wanted traces.

    Args:
        renderer: digest of this policy's tokenizer, template and stop tokens (`tables.checkpoints.renderer_digest`).
        max_tokens: most tokens of an attempt.
    Raises:
        UserError: a wanted trace is missing, or was asked with other tokens, or its attempt is too long.
    """
    footer = read_footer(path, TRACES)
    if footer is not None and footer.inputs.get("renderer", renderer) != renderer:
        raise UserError(
            f"{path} was sampled with another tokenizer, chat template or stop token than this policy has: "
            "give first attempts of the same family of policies"
        )
    found: dict[Key, FirstAttempt] = {}
    for traces in iterate_traces(path):
        for trace in traces:
            key = (trace.problem_id, trace.sample_index)
            if key in found:
                raise UserError(f"{path} holds two traces of {_name(key)}: keep one of them")
            if key in wanted:
                found[key] = _first_attempt(trace, wanted[key], max_tokens, path)
    missing = [key for key in wanted if key not in found]
    if missing and len(missing) == len(wanted):
        raise UserError(f"{path} holds first attempts of other problems: sample them from these problems")
    if missing:
        raise UserError(
            f"{path} lacks {len(missing)} of the {len(wanted)} first attempts needed, such as {_name(missing[0])}: "
            "sample these problems with as many --samples, or lower --samples or --offline-share"
        )
    return found


def _first_attempt(trace: Trace, expected: Expected, max_tokens: int, path: Path) -> FirstAttempt:
    """The first attempt of a trace, once it is seen to be one that this policy could have been given."""
    name = f"{path}, {_name((trace.problem_id, trace.sample_index))}"
    start = len(expected.prompt)
    own = np.flatnonzero(trace.attempt_ids == 1)
    if trace.token_ids[:start].tolist() != expected.prompt or not len(own) or own[0] != start:
        raise UserError(
            f"{name}: its prompt is not the one this policy would be given: "
            "ask both with the same problems, prompts and tokenizer"
        )
    tokens = trace.token_ids[own]
    stops = np.isin(tokens, list(expected.stop_ids))
    whole = own[-1] == start + len(own) - 1 and not stops[:-1].any()
    if not whole or stops[-1] != (trace.finish_reasons[0] == STOP):
        raise UserError(f"{name}: its first attempt does not end where this policy's would: sample it again")
    if len(tokens) > max_tokens:
        raise UserError(
            f"{name}: its first attempt has {len(tokens)} tokens, more than --max-tokens {max_tokens}: raise that"
        )
    # Copies, so that the rest of the file can be let go.
    return FirstAttempt(tokens.copy(), trace.logprobs[own].copy(), trace.finish_reasons[0])


def _name(key: Key) -> str:
    return f"problem {key[0]}, sample {key[1]}"
