"""A key-value cache whose rows are at different lengths, for batches that traces join and leave.

One tensor per layer, [slots, heads, capacity, head size]; row r holds its tokens from position 0.
Each forward pass names the slots it works on and the position each fed token takes, so rows of
different length cost no padding in the cache and a prompt can be fed while others decode.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin


class RowCache(Cache):  # type: ignore[misc]
    """The cache of all layers; `select` before each forward pass.

    Shapes: n rows fed, S tokens fed a row, L longest row after the pass.
    """

    def __init__(self, slots: int) -> None:
        self.slots = slots
        self.rows = torch.empty(0, dtype=torch.long)  # [n]
        self.positions = torch.empty(0, 0, dtype=torch.long)  # [n, S]
        self.length = 0
        self.leading = False
        super().__init__(layer_class_to_replicate=_layer_factory(self))

    def select(self, slots: list[int], positions: Tensor, length: int) -> None:
        """Say where the next forward pass writes: token s of row i at `positions[i, s]` of `slots[i]`.

        A padding token is given position `length`: a scratch column that no query ever sees.
        """
        self.rows = torch.tensor(slots, device=positions.device)
        self.positions, self.length = positions, length
        self.leading = slots == list(range(len(slots)))

    def move(self, sources: list[int], targets: list[int]) -> None:
        """Copy whole rows, so that the rows still in use stay the leading ones."""
        for layer in self.layers:
            layer.keys[targets] = layer.keys[sources]
            layer.values[targets] = layer.values[sources]

    def copy_start(self, source: int, targets: list[int], length: int) -> None:
        """Copy the first `length` tokens of one row into others."""
        for layer in self.layers:
            layer.keys[targets, :, :length] = layer.keys[source, :, :length]
            layer.values[targets, :, :length] = layer.values[source, :, :length]


def _layer_factory(cache: RowCache) -> Callable[[], CacheLayerMixin]:
    return lambda: _RowLayer(cache)


class _RowLayer(CacheLayerMixin):  # type: ignore[misc]
    """One layer's keys and values; grows by doubling."""

    def __init__(self, cache: RowCache) -> None:
        super().__init__()
        self._cache = cache

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Allocate nothing yet: `update` grows from zero capacity.

        Under autocast rotary keys come in float32 where values are bfloat16; attention computes in the latter.
        """
        self.keys = self._empty(key_states, 0).to(value_states.dtype)
        self.values = self._empty(value_states, 0)
        self.is_initialized = True

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Write the fed tokens ([n, heads, S, size]) and return what the fed rows hold ([n, heads, L, size])."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        cache = self._cache
        if self.keys.shape[2] <= cache.length:
            self._grow(max(2 * self.keys.shape[2], cache.length + 1, 64))
        slots = cache.rows[:, None]
        self.keys[slots, :, cache.positions] = key_states.transpose(1, 2).to(self.keys.dtype)
        self.values[slots, :, cache.positions] = value_states.transpose(1, 2)
        # Leading rows are a view; any other choice of rows has to be gathered.
        chosen: slice | Tensor = slice(len(cache.rows)) if cache.leading else cache.rows
        return self.keys[chosen][:, :, : cache.length], self.values[chosen][:, :, : cache.length]

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Keys a query may see, and the offset of the first; our masks are ready-made."""
        return self._cache.length, 0

    def get_seq_length(self) -> int:
        """Rows differ in length; positions are always passed, so this is never asked for real."""
        return 0

    def get_max_length(self) -> int:
        """No limit."""
        return -1

    def _empty(self, like: Tensor, capacity: int) -> Tensor:
        return like.new_zeros(self._cache.slots, like.shape[1], capacity, like.shape[3])

    def _grow(self, capacity: int) -> None:
        for name in ("keys", "values"):
            old = getattr(self, name)
            new = self._empty(old, capacity)
            new[:, :, : old.shape[2]] = old
            setattr(self, name, new)
