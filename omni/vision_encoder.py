"""The vision encoder: a small ViT (Dosovitskiy et al. 2020). Pixels → one CLS vector and a grid of patch vectors.

B batch  P patches  d model width"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from omni.config import VisionEncoderConfig
from omni.nn.transformer import Transformer, TransformerShape

# Of CLS and positions at first: about that of an embedded patch. A CLS much smaller than that (0.02) has a gradient that much larger behind its
# first norm, and ends training at high rates.
INITIAL_STD = 0.4


class ViTTiny(nn.Module):
    """(B,3,H,W) normalised pixels → CLS (B,1,d) and grid (B,P,d), row by row."""

    def __init__(self, config: VisionEncoderConfig) -> None:
        super().__init__()
        self.config = config
        self.proj = nn.Conv2d(3, config.d_model, kernel_size=config.patch_size, stride=config.patch_size)
        self.cls = nn.Parameter(torch.zeros(1, 1, config.d_model))
        self.pos = nn.Parameter(torch.zeros(1, 1 + config.grid_size**2, config.d_model))
        self.transformer = Transformer(
            TransformerShape(
                d_model=config.d_model,
                n_layers=config.n_layers,
                n_heads=config.n_heads,
                n_kv_heads=config.n_heads,
                d_ff=config.d_ff,
                causal=False,
                feed_forward="gelu",
                rope_theta=None,
                dropout=config.dropout,
            )
        )
        nn.init.normal_(self.cls, std=INITIAL_STD)
        nn.init.normal_(self.pos, std=INITIAL_STD)

    @property
    def blocks(self) -> nn.ModuleList:
        """The transformer blocks."""
        return self.transformer.blocks

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """CLS (B,1,d) and grid (B,P,d)."""
        x = self.proj(pixels).flatten(2).transpose(1, 2)  # (B, P, d)
        x = torch.cat((self.cls.expand(len(x), -1, -1).to(x.dtype), x), dim=1) + self.pos
        x = self.transformer(x)
        return x[:, :1], x[:, 1:]

    def image_tokens(self, pixels: Tensor) -> Tensor:
        """What the Thinker sees of each picture, (B, n_image_tokens, d), as the configuration says."""
        return self.tokens(*self(pixels))

    def tokens(self, cls: Tensor, grid: Tensor) -> Tensor:
        """The same from what `forward` returned."""
        if self.config.image_tokens == "cls":
            return cls
        if self.config.image_tokens == "grid":
            return grid
        side = self.config.grid_size
        square = grid.transpose(1, 2).unflatten(2, (side, side))  # (B, d, side, side)
        return F.avg_pool2d(square, side // self.config.pooled_size).flatten(2).transpose(1, 2)
