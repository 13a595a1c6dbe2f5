"""Attention on the CPU where several heads of queries share one of keys, without a copy of the keys for each.

transformers repeats keys and values for every query head as soon as there is a mask: in decoding, most of the time went
into these copies. torch's kernel for the CPU shares them by itself, to the same bits.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

NAME = "score_grouped"
SDPA = "sdpa"


@contextmanager
def grouped_attention(model: PreTrainedModel) -> Iterator[None]:
    """Within the block a model on the CPU shares keys between heads; elsewhere, and for other kinds, all stays."""
    config = model.config.get_text_config()
    if model.device.type != "cpu" or config._attn_implementation != SDPA:
        yield
        return
    config._attn_implementation = NAME
    try:
        yield
    finally:
        config._attn_implementation = SDPA


def _attend(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    **settings: Any,
) -> tuple[Tensor, None]:
    """[n, S, heads, size] from queries [n, heads, S, size] and keys and values [n, fewer heads, L, size]."""
    if attention_mask is None or query.shape[1] == key.shape[1] or settings.get("position_bias") is not None:
        attended: tuple[Tensor, None] = sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **settings
        )
        return attended
    output = torch.nn.functional.scaled_dot_product_attention(
        query, key, value, attn_mask=attention_mask, dropout_p=dropout, scale=scaling, enable_gqa=True
    )
    return output.transpose(1, 2).contiguous(), None


AttentionInterface.register(NAME, _attend)
AttentionMaskInterface.register(NAME, sdpa_mask)
