"""Keys and values of the positions already seen. Owned by the caller (the engine), handed to the model as an argument.

B batch  K key/value heads  S stored positions  D head width"""

from __future__ import annotations

import torch
from torch import Tensor


class KVCache:
    """Room for `max_length` positions in every layer. Rows may hold different numbers of positions (right-padded prompts).

    keys, values: (layers, B, K, max_length, D). `lengths[b]` positions of row b are valid; later ones are overwritten.
    """

    def __init__(
        self, n_layers: int, batch_size: int, n_kv_heads: int, max_length: int, head_dim: int, *, dtype: torch.dtype, device: torch.device
    ) -> None:
        shape = (n_layers, batch_size, n_kv_heads, max_length, head_dim)
        self.keys = torch.zeros(shape, dtype=dtype, device=device)
        self.values = torch.zeros(shape, dtype=dtype, device=device)
        self.lengths = [0] * batch_size

    @property
    def max_length(self) -> int:
        """Positions there is room for in each row."""
        return self.keys.shape[3]

    def append(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Store (B,K,T,D) behind each row's valid positions; returns everything up to the longest row, (B,K,S,D).

        The caller advances `lengths` once, after the last layer, by the number of valid new positions (`advance`).
        """
        new = keys.shape[2]
        end = max(self.lengths) + new
        assert end <= self.max_length, f"cache of {self.max_length} positions cannot hold {end}"
        if len(set(self.lengths)) == 1:
            start = self.lengths[0]
            self.keys[layer, :, :, start:end] = keys
            self.values[layer, :, :, start:end] = values
        else:
            for row, start in enumerate(self.lengths):
                self.keys[layer, row, :, start : start + new] = keys[row]
                self.values[layer, row, :, start : start + new] = values[row]
        return self.keys[layer, :, :, :end], self.values[layer, :, :, :end]

    def advance(self, valid: list[int]) -> None:
        """Mark `valid[b]` new positions of row b as seen."""
        self.lengths = [length + new for length, new in zip(self.lengths, valid, strict=True)]

    def select(self, rows: list[int]) -> None:
        """Keep only `rows`, in that order (a finished row leaves the batch)."""
        index = torch.tensor(rows, dtype=torch.long, device=self.keys.device)
        self.keys, self.values = self.keys.index_select(1, index), self.values.index_select(1, index)
        self.lengths = [self.lengths[row] for row in rows]
