"""Keys and values of the positions already seen. Owned by the caller (the engine), handed to the model as an argument.

B batch  K key/value heads  S stored positions  D head width"""

from __future__ import annotations

import torch
from torch import Tensor


class KVCache:
    """Room for `max_length` positions in every layer. Rows may hold different numbers of positions, and may join and leave.

    keys, values: (layers, at least B, K, max_length, D). `lengths[b]` positions of row b are valid; later ones are overwritten.
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
        rows = slice(0, len(self.lengths))
        if len(set(self.lengths)) == 1:
            self.keys[layer, rows, :, end - new : end] = keys
            self.values[layer, rows, :, end - new : end] = values
        else:
            row = torch.arange(len(self.lengths), device=keys.device)[:, None]  # (B, 1)
            at = torch.tensor(self.lengths, device=keys.device)[:, None] + torch.arange(new, device=keys.device)  # (B, T)
            self.keys[layer][row, :, at] = keys.transpose(1, 2)
            self.values[layer][row, :, at] = values.transpose(1, 2)
        return self.keys[layer, rows, :, :end], self.values[layer, rows, :, :end]

    def advance(self, valid: list[int]) -> None:
        """Mark `valid[b]` new positions of row b as seen."""
        self.lengths = [length + new for length, new in zip(self.lengths, valid, strict=True)]

    def join(self, other: KVCache) -> None:
        """The rows of `other`, which is used up, come behind ours. Every row then has the room of the roomier one."""
        if not self.lengths:
            self.keys, self.values, self.lengths = other.keys, other.values, other.lengths
            return
        here, rows, seen = len(self.lengths), len(self.lengths) + len(other.lengths), max(other.lengths)
        if rows > self.keys.shape[1] or other.max_length > self.max_length:
            capacity = self.keys.shape[1] if rows <= self.keys.shape[1] else max(rows, 2 * here)
            self.keys, self.values = (self._grown(t, capacity, max(self.max_length, other.max_length)) for t in (self.keys, self.values))
        self.keys[:, here:rows, :, :seen] = other.keys[:, : rows - here, :, :seen]
        self.values[:, here:rows, :, :seen] = other.values[:, : rows - here, :, :seen]
        self.lengths += other.lengths

    def leave(self, row: int) -> None:
        """A finished row leaves, and the last one takes its place."""
        last = self.lengths.pop()
        if row < len(self.lengths):
            self.keys[:, row, :, :last] = self.keys[:, len(self.lengths), :, :last]
            self.values[:, row, :, :last] = self.values[:, len(self.lengths), :, :last]
            self.lengths[row] = last

    def _grown(self, stored: Tensor, capacity: int, max_length: int) -> Tensor:
        rows, seen = len(self.lengths), max(self.lengths)
        grown = stored.new_zeros(stored.shape[0], capacity, stored.shape[2], max_length, stored.shape[4])
        grown[:, :rows, :, :seen] = stored[:, :rows, :, :seen]
        return grown
