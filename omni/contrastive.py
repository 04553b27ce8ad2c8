"""Heads that put pictures and texts into one space (CLIP, Radford et al. 2021): a component of vision checkpoints, not of the system.

The picture's side is the CLS vector of the vision encoder. The text's side is a small bidirectional transformer over the Thinker's states:
the last state of a language model says what comes next, not all that was said.

B batch  T positions  d encoder or Thinker width  E embedding size"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from omni.nn.transformer import Transformer, TransformerShape

EMBEDDING_SIZE = 128
TEXT_LAYERS, TEXT_HEADS = 2, 2
INITIAL_TEMPERATURE = 0.07


class ContrastiveHeads(nn.Module):
    """Unit vectors (B,E) of pictures and texts, and the temperature."""

    def __init__(self, vision_width: int, thinker_width: int) -> None:
        super().__init__()
        self.image_head = nn.Linear(vision_width, EMBEDDING_SIZE, bias=False)
        self.text_in = nn.Linear(thinker_width, EMBEDDING_SIZE, bias=False)
        self.text_transformer = Transformer(
            TransformerShape(
                d_model=EMBEDDING_SIZE,
                n_layers=TEXT_LAYERS,
                n_heads=TEXT_HEADS,
                n_kv_heads=TEXT_HEADS,
                d_ff=4 * EMBEDDING_SIZE,
                causal=False,
                feed_forward="gelu",
            )
        )
        self.text_head = nn.Linear(EMBEDDING_SIZE, EMBEDDING_SIZE, bias=False)
        self.log_scale = nn.Parameter(-torch.tensor(INITIAL_TEMPERATURE).log())

    def image(self, cls: Tensor) -> Tensor:
        """CLS vectors (B,1,d) → (B,E)."""
        return F.normalize(self.image_head(cls[:, 0]).float(), dim=-1)

    def text(self, states: Tensor, lengths: Tensor) -> Tensor:
        """The Thinker's states (B,T,d) of texts of `lengths` (B,) → (B,E)."""
        x = self.text_transformer(self.text_in(states), lengths=lengths)
        mask = (torch.arange(x.shape[1], device=x.device) < lengths[:, None])[..., None].to(x.dtype)
        return F.normalize(self.text_head((x * mask).sum(1) / lengths[:, None]).float(), dim=-1)
