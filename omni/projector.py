"""Projectors: from an encoder's width to the Thinker's."""

from __future__ import annotations

from torch import Tensor, nn


class Projector(nn.Sequential):
    """(B,N,d_in) → (B,N,d_out): one linear map, or two with a GELU between (Liu et al. 2023, LLaVA-1.5, §3.3)."""

    def __init__(self, kind: str, d_in: int, d_out: int) -> None:
        if kind == "linear":
            super().__init__(nn.Linear(d_in, d_out))
        else:
            super().__init__(nn.Linear(d_in, d_out), nn.GELU(), nn.Linear(d_out, d_out))

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x)
