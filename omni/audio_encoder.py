"""The audio encoder: strided convolutions over the mel, then a bidirectional transformer; CTC with several slots a frame.

A frame of 80 ms may hold several characters, so the CTC head emits `ctc_slots` of them per frame: 4 slots at 12.5 Hz are 50 Hz, enough
for English at about 15 characters a second (one slot would make most clips infeasible; Graves et al. 2006 for CTC itself).

B batch  T mel frames  F encoder frames  S slots  d model width"""

from __future__ import annotations

from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from omni.alignment import ctc_alignment
from omni.characters import N_CHARACTERS
from omni.config import AudioEncoderConfig
from omni.nn.transformer import Transformer, TransformerShape


class Subsampling(nn.ModuleList):
    """`n` convolutions of stride 2 in time and frequency: (B,1,T,mels) → (B, channels, ceil(T/2ⁿ), ceil(mels/2ⁿ))."""

    def __init__(self, n: int, channels: int) -> None:
        super().__init__(nn.Conv2d(channels if i else 1, channels, 3, stride=2, padding=1) for i in range(n))

    def forward(self, x: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Behind `lengths` (B,), in frames, x is zeroed before every convolution, so that a clip gives the same alone and in a batch."""
        for convolution in self:
            if lengths is not None:
                keep = torch.arange(x.shape[2], device=x.device) < lengths[:, None]
                x, lengths = x * keep[:, None, :, None].to(x.dtype), (lengths + 1) // 2
            x = F.gelu(convolution(x.contiguous(memory_format=torch.channels_last)))  # half again as fast on a CPU
        return x


class AudioEncoderTiny(nn.Module):
    """Scaled log-mel (B,T,mels) → states (B, ceil(T/downsample), d)."""

    def __init__(self, config: AudioEncoderConfig, n_mels: int = 128) -> None:
        super().__init__()
        self.config = config
        channels = config.conv_channels
        self.down = Subsampling(config.downsample.bit_length() - 1, channels)
        self.proj = nn.Linear(channels * -(-n_mels // config.downsample), config.d_model)
        shape = TransformerShape(
            d_model=config.d_model,
            n_layers=config.n_layers,
            n_heads=config.n_heads,
            n_kv_heads=config.n_heads,
            d_ff=config.d_ff,
            causal=False,
            feed_forward="gelu",
            dropout=config.dropout,
        )
        self.transformer = Transformer(shape)
        self.ctc_transformer = Transformer(replace(shape, n_layers=config.ctc_layers)) if config.ctc_layers else None
        self.ctc_head = nn.Linear(config.d_model, config.ctc_slots * N_CHARACTERS)

    @property
    def blocks(self) -> nn.ModuleList:
        """The transformer blocks."""
        return self.transformer.blocks

    def forward(self, mel: Tensor, lengths: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """mel (B,T,mels), right-padded, with `lengths` (B,) in frames → states (B,F,d) and their lengths (B,)."""
        if lengths is None:
            lengths = torch.full((len(mel),), mel.shape[1], device=mel.device)
        x = self.down(mel[:, None], lengths)  # (B, channels, F, mels/downsample)
        lengths = (lengths + self.config.downsample - 1) // self.config.downsample
        x = self.proj(x.transpose(1, 2).flatten(2))  # (B, F, channels · mels/downsample) → (B, F, d)
        return self.transformer(x, lengths=lengths), lengths

    def ctc_logits(self, states: Tensor, lengths: Tensor | None = None) -> Tensor:
        """states (B,F,d) of clips of `lengths` (B,) frames, None if they are all as long → (B, F·S, characters)."""
        if self.ctc_transformer is not None:
            states = self.ctc_transformer(states, lengths=lengths)
        return self.ctc_head(states).unflatten(2, (self.config.ctc_slots, N_CHARACTERS)).flatten(1, 2)

    @torch.no_grad()
    def named_at(self, mel: Tensor, characters: list[int]) -> tuple[list[int] | None, int]:
        """mel (T,mels) and the C characters said in it → the slot that names each (`ctc_alignment`), and how many slots there are."""
        states, _ = self(mel[None])
        log_probabilities = self.ctc_logits(states)[0].float().log_softmax(-1)
        return ctc_alignment(log_probabilities, characters), len(log_probabilities)
