"""Sampling with transformers: rows join and leave the batch, each with its own seed and its own length.

A row that ends makes room at once, and the bridge to the next attempt is fed to the rows that need
it while the others keep their places, so attempts of different length cost no padding. A prompt is
fed once for all its samples: what the cache holds of it is copied to the rows that share it.
"""

import math
import statistics
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import PreTrainedModel

from score_cli.errors import JobError, UserError
from score_cli.sampling.engine import Decoding
from score_cli.sampling.grouped_attention import grouped_attention
from score_cli.sampling.rollout import Rollout, check_lengths
from score_cli.sampling.row_cache import RowCache
from score_cli.sampling.seeds import attempt_uniforms
from score_cli.tables.checkpoints import Policy, context_length
from score_cli.tables.device import compute_precision, computes_in_bfloat16


@dataclass
class _Row:
    """A rollout in the batch: how many of its tokens the cache holds, and its attempt's draws."""

    rollout: Rollout
    cached: int = 0
    attempt: int = 0
    uniforms: NDArray[np.float64] | None = None

    @property
    def waiting(self) -> int:
        """Tokens that the cache does not hold yet."""
        return len(self.rollout.token_ids) - self.cached

    def draw(self) -> float:
        """The uniform number that chooses this row's next token."""
        rollout = self.rollout
        if self.attempt != rollout.attempt or self.uniforms is None:
            self.attempt = rollout.attempt
            self.uniforms = attempt_uniforms(rollout.seeds[rollout.attempt - 1], rollout.max_tokens)
        return float(self.uniforms[rollout.sampled])


class _Batch:
    """The rows under way and those still to come, ordered so that the samples of a prompt follow each other.

    One slot of the cache, `spare`, is no row's: it keeps the newest prompt for its samples that are still to come.
    """

    def __init__(self, rollouts: Sequence[Rollout], batch_size: int) -> None:
        order: dict[tuple[int, ...], int] = {}
        for rollout in rollouts:
            order.setdefault(tuple(rollout.prompt), len(order))
        self.queue = deque(sorted(rollouts, key=lambda rollout: order[tuple(rollout.prompt)]))
        self.rows: list[_Row] = []
        self.spare = min(batch_size, len(rollouts))
        self.cache = RowCache(self.spare + 1)
        self.kept: tuple[int, ...] = ()

    def admit(self) -> dict[tuple[int, ...], list[int]]:
        """Give the free slots to rollouts that wait; returns the new rows by their prompts."""
        joined: dict[tuple[int, ...], list[int]] = {}
        while self.queue and len(self.rows) < self.spare:
            rollout = self.queue.popleft()
            joined.setdefault(tuple(rollout.prompt), []).append(len(self.rows))
            self.rows.append(_Row(rollout))
        return joined

    def drop_finished(self) -> None:
        """Remove finished rows and close the gaps with the last rows, so that the rest stay leading."""
        rows = self.rows
        remaining = sum(not row.rollout.done for row in rows)
        if remaining == len(rows):
            return
        gaps = [index for index in range(remaining) if rows[index].rollout.done]
        movers = [index for index in range(remaining, len(rows)) if not rows[index].rollout.done]
        if gaps:
            self.cache.move(movers, gaps)
        for gap, mover in zip(gaps, movers, strict=True):
            rows[gap] = rows[mover]
        del rows[remaining:]


class TransformersEngine:
    """Samples from a transformers model in this process, on the device the model is on."""

    name = "transformers"

    def __init__(self, model: PreTrainedModel, *, batch_size: int) -> None:
        """Args:
        model: the policy, in evaluation mode; it is used as it is at each call, so an update in
            place is seen at once.
        batch_size: traces decoded at the same time.
        """
        self.model = model
        self.batch_size = batch_size

    @torch.no_grad()
    def generate(self, rollouts: Sequence[Rollout], decoding: Decoding) -> None:
        """Sample every rollout to its end, in place.

        Raises:
            UserError: a trace could outgrow the model's context.
        """
        check_lengths(rollouts, context_length(self.model))
        batch = _Batch(rollouts, self.batch_size)
        # Held around all passes, so that a GPU casts the weights once and not at each token.
        with compute_precision(self.model), grouped_attention(self.model):
            while batch.queue or batch.rows:
                self._prefill(batch, batch.admit())
                # Bridges go first, by themselves; then every row is one token from its next.
                feeding = [index for index, row in enumerate(batch.rows) if row.waiting > 1]
                if feeding:
                    self._advance(batch, feeding, decoding)
                ready = [index for index, row in enumerate(batch.rows) if row.waiting == 1 and not row.rollout.done]
                if ready:
                    self._advance(batch, ready, decoding)
                batch.drop_finished()

    @torch.no_grad()
    def token_logprobs(self, sequences: Sequence[Sequence[int]], temperature: float) -> list[list[float]]:
        """See `Engine.token_logprobs`; goes through the same cache and masks that sampling uses."""
        parts = [
            [list(sequence) for sequence in sequences[start : start + self.batch_size]]
            for start in range(0, len(sequences), self.batch_size)
        ]
        with compute_precision(self.model), grouped_attention(self.model):
            return [scores for part in parts for scores in self._score(part, temperature)]

    @torch.no_grad()
    def check(self) -> None:
        """See that a batch of rows of different length is scored as each row is by itself.

        Raises:
            UserError: this model keeps its past, or counts positions, in a way this engine does not know; or its
                weights are not numbers.
        """
        sequences = [[index % 7 + 1 for index in range(length)] for length in (3, 5, 9)]
        device = self.model.device
        with compute_precision(self.model):
            alone = [self.model(input_ids=torch.tensor([tokens], device=device)).logits[0] for tokens in sequences]
        for tokens, logits, together in zip(sequences, alone, self.token_logprobs(sequences, 1.0), strict=True):
            targets = torch.tensor(tokens[1:], device=device)[:, None]
            expected = logits[:-1].float().log_softmax(-1).gather(-1, targets)[:, 0].tolist()
            # The mean: two bfloat16 passes may round one token's logit a whole step apart.
            gap = statistics.fmean(abs(a - b) for a, b in zip(expected, together[1:], strict=True))
            if not math.isfinite(gap):
                raise UserError(_not_finite(self.model))
            if not gap <= (0.2 if computes_in_bfloat16(self.model) else 1e-3):
                raise UserError(
                    f"the transformers engine gives other logprobs than {type(self.model).__name__} itself ({gap:.2g} "
                    "nats): its kind of attention is not supported; use a model with full or sliding attention"
                )

    def refresh(self, policy: Policy) -> None:
        """See `Engine.refresh`; there is no copy of the weights that could grow stale."""
        self.model = policy.model

    def close(self) -> None:
        """See `Engine.close`; the model belongs to the caller."""

    def _score(self, sequences: list[list[int]], temperature: float) -> list[list[float]]:
        """`token_logprobs` of one batch."""
        results: list[list[float]] = []
        count = len(sequences)
        # The last token is fed too: its own prediction is not used, but every row keeps its length.
        logits = self._forward(RowCache(count), list(range(count)), sequences, [0] * count, keep_all=True)
        for row, tokens in enumerate(sequences):
            scores = logits[row, -len(tokens) :].float() / temperature
            targets = torch.tensor(tokens[1:], device=scores.device)
            logprobs = scores[:-1].log_softmax(-1).gather(-1, targets[:, None])[:, 0]
            results.append([0.0, *logprobs.tolist()])
        return results

    def _prefill(self, batch: _Batch, joined: dict[tuple[int, ...], list[int]]) -> None:
        """Feed each prompt that no row holds yet once, but for its last token, and copy it to all rows that share it.

        The last token is each row's own to feed, so that every sample of a prompt takes its first token from the same
        kind of pass, whichever of them came first.
        """
        # One token by itself would be rounded otherwise (see `_advance`), and is not worth sharing.
        joined = {prompt: indices for prompt, indices in joined.items() if len(prompt) > 2}
        sources = {prompt: batch.spare if prompt == batch.kept else indices[0] for prompt, indices in joined.items()}
        fresh = [prompt for prompt, source in sources.items() if source != batch.spare]
        if fresh:
            self._forward(
                batch.cache,
                [sources[prompt] for prompt in fresh],
                [list(prompt[:-1]) for prompt in fresh],
                [0] * len(fresh),
            )
        for prompt, indices in joined.items():
            others = [index for index in indices if index != sources[prompt]]
            if batch.queue and prompt == tuple(batch.queue[0].prompt) and prompt != batch.kept:
                others.append(batch.spare)
                batch.kept = prompt
            if others:
                batch.cache.copy_start(sources[prompt], others, len(prompt) - 1)
            for index in indices:
                batch.rows[index].cached = len(prompt) - 1

    def _advance(self, batch: _Batch, chosen: list[int], decoding: Decoding) -> None:
        """Feed what the chosen rows have waiting, and sample one token for each."""
        rows = batch.rows
        feeds = [rows[index].rollout.token_ids[rows[index].cached :] for index in chosen]
        starts = [rows[index].cached for index in chosen]
        # A row by itself would go through kernels for vectors, which round otherwise by up to 2e-5 in a logprob.
        copies = 2 if len(chosen) == 1 else 1
        logits = self._forward(batch.cache, chosen * copies, feeds * copies, starts * copies)[: len(chosen), -1].float()
        for index, feed in zip(chosen, feeds, strict=True):
            rows[index].cached += len(feed)
        if decoding.greedy:
            tokens = logits.argmax(-1)
            logprobs = logits.log_softmax(-1)
        else:
            logprobs = (logits / decoding.temperature).log_softmax(-1)
            logprobs = truncate(logprobs, top_k=decoding.top_k, top_p=decoding.top_p)
            tokens = choose_tokens(logprobs, [rows[index].draw() for index in chosen])
        kept = logprobs.gather(-1, tokens[:, None])[:, 0]
        if not kept.isfinite().all():
            raise JobError(
                "the policy gives logprobs that are not finite: go back a checkpoint, or raise --temperature"
            )
        for index, token, logprob in zip(chosen, tokens.tolist(), kept.tolist(), strict=True):
            rows[index].rollout.append(token, logprob)

    def _forward(
        self,
        cache: RowCache,
        slots: list[int],
        feeds: list[list[int]],
        starts: list[int],
        *,
        keep_all: bool = False,
    ) -> Tensor:
        """Logits [n, 1, V] after each feed, or [n, S, V] at every fed token; feeds stand to the right."""
        device = self.model.device
        width = max(map(len, feeds))
        length = max(start + len(feed) for start, feed in zip(starts, feeds, strict=True))
        padding = torch.tensor([width - len(feed) for feed in feeds], device=device)[:, None]
        offsets = torch.arange(width, device=device)[None] - padding
        positions = torch.tensor(starts, device=device)[:, None] + offsets  # [n, S]
        padded = offsets < 0
        cache.select(slots, positions.masked_fill(padded, length), length)
        positions = positions.masked_fill(padded, 0)
        mask = torch.arange(length, device=device) <= positions[:, None, :, None]  # [n, 1, S, L]
        tokens = torch.tensor([[0] * (width - len(feed)) + feed for feed in feeds], device=device)
        with compute_precision(self.model):
            output = self.model(
                input_ids=tokens,
                attention_mask=attention_masks(self.model, mask, positions),
                position_ids=positions,
                past_key_values=cache,
                use_cache=True,
                logits_to_keep=0 if keep_all else 1,
            )
        logits: Tensor = output.logits
        return logits


def truncate(logprobs: Tensor, *, top_k: int, top_p: float) -> Tensor:
    """Keep the `top_k` likeliest tokens, then of these the fewest whose share reaches `top_p`.

    Args:
        logprobs: [n, V]; top_k: 0 keeps all; top_p: in (0, 1], 1 keeps all.
    Returns:
        [n, V] logprobs of the kept tokens' own distribution, -inf elsewhere. Of equal tokens the one
        with the smaller id counts as likelier, so no more than `top_k` are kept.
    """
    if top_k == 0 and top_p == 1.0:
        return logprobs
    ordered, tokens = logprobs.sort(dim=-1, descending=True, stable=True)
    if top_k:
        ordered[:, top_k:] = -torch.inf
    if top_p < 1.0:
        shares = ordered.double().softmax(-1)
        ordered = ordered.masked_fill(shares.cumsum(-1) - shares >= top_p, -torch.inf)
    return torch.full_like(logprobs, -torch.inf).scatter(-1, tokens, ordered).log_softmax(-1)


def choose_tokens(logprobs: Tensor, uniforms: Sequence[float]) -> Tensor:
    """The token at which each row's cumulated probability first exceeds its uniform number.

    Args:
        logprobs: [n, V]; uniforms: [n] in [0, 1).
    Returns:
        [n] token ids. Sums are float64: float32 would misplace the last of 150,000 tokens.
    """
    cumulated = logprobs.double().exp().cumsum(-1)
    targets = torch.tensor(uniforms, dtype=torch.float64, device=logprobs.device)[:, None] * cumulated[:, -1:]
    return torch.searchsorted(cumulated, targets, right=True)[:, 0].clamp(max=logprobs.shape[-1] - 1)


def attention_masks(model: PreTrainedModel, mask: Tensor, positions: Tensor) -> Tensor | dict[str, Tensor]:
    """The mask in the form a model takes it: one for all layers, or one for each kind of layer.

    Raises:
        UserError: the model has layers that are not attention over keys and values.
    """
    config = model.config.get_text_config()
    kinds = set(getattr(config, "layer_types", None) or ["full_attention"])
    # GPT-Neo's own way to say it.
    kinds |= {f"{kind} attention" for kind in getattr(config, "attention_layers", None) or [] if kind != "global"}
    unknown = kinds - {"full_attention", "sliding_attention"}
    if unknown:
        raise UserError(
            f"the transformers engine cannot sample from layers of kind {', '.join(sorted(unknown))}: "
            "expected full or sliding attention; use a model of that kind"
        )
    window = getattr(config, "sliding_window", None)
    if getattr(config, "use_sliding_window", True) is False:
        window = None
    if window is None:
        sliding = mask
    else:
        sliding = mask & (torch.arange(mask.shape[-1], device=mask.device) > positions[:, None, :, None] - window)
    if config._attn_implementation == "eager":
        mask, sliding = (torch.zeros_like(m, dtype=model.dtype).masked_fill(~m, -1e9) for m in (mask, sliding))
    if "sliding_attention" not in kinds:
        # Mistral-like configurations slide in every layer without listing layer types.
        return mask if getattr(config, "layer_types", None) else sliding
    return {"full_attention": mask, "sliding_attention": sliding}


def _not_finite(model: PreTrainedModel) -> str:
    """What to say of a model whose logprobs are not finite."""
    broken = [name for name, weight in model.named_parameters() if not weight.isfinite().all()]
    where = f"{broken[0]}, {len(broken)} tensors in all" if broken else "none in the weights, so they overflow"
    return f"the policy's logprobs are not finite (NaN or infinite: {where}): use another checkpoint, or an earlier one"
