"""From log-mel to a waveform with no trained weights: mel pseudo-inverse and fast Griffin-Lim.

B batch  T mel frames  n = T·hop samples"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from omni.audio import LogMel, unscale_mel
from omni.config import AudioConfig, VocoderConfig

LOUDEST = 6.0  # scaled log-mel; no waveform within [-1, 1] reaches it, and its exponential is still finite


class GriffinLim(nn.Module):
    """Scaled log-mel (B,T,mels) → waveform (B, T·hop), by fast Griffin-Lim (Perraudin et al. 2013, eq. 11) from zero phase.

    The phase is found by going back and forth between the wanted magnitudes and the nearest real waveform, with momentum.
    """

    inverse: Tensor

    def __init__(self, audio: AudioConfig, config: VocoderConfig) -> None:
        super().__init__()
        self.config = config
        self.front_end = LogMel(audio)
        self.register_buffer("inverse", torch.linalg.pinv(self.front_end.filters.double()).float(), persistent=False)

    @torch.no_grad()
    def forward(self, mel: Tensor) -> Tensor:
        """The waveform; scaled down only where its peak would exceed 1."""
        with torch.autocast(mel.device.type, enabled=False):
            return self._synthesize(unscale_mel(mel.float().clamp(max=LOUDEST)))

    def mel_to_audio(self, mel: np.ndarray, domain: str = "auto") -> np.ndarray:
        """mel (T,mels) → (T·hop,). `domain`: "log" (scaled log-mel), "magnitude", or "auto": a mel with any negative value is a log."""
        x = torch.as_tensor(mel, dtype=torch.float32)[None]
        is_log = domain == "log" or (domain == "auto" and bool((x < 0).any()))
        return (self(x) if is_log else self._synthesize(x))[0].numpy()

    def _synthesize(self, mel: Tensor) -> Tensor:
        """Magnitude mel (B,T,mels) → (B, T·hop)."""
        magnitude = (mel @ self.inverse).clamp(min=0.0)  # (B, T, bins)
        spectrum = magnitude.to(torch.complex64)
        previous = torch.zeros_like(spectrum)
        for _ in range(self.config.griffin_lim_rounds):
            rebuilt = self.front_end.stft(self._waveform(spectrum))[:, : magnitude.shape[1]]
            ahead = rebuilt + self.config.momentum * (rebuilt - previous)
            spectrum = magnitude * ahead / ahead.abs().clamp(min=1e-8)
            previous = rebuilt
        wave = self._waveform(spectrum)
        return wave / wave.abs().amax(dim=-1, keepdim=True).clamp(min=1.0)

    def _waveform(self, spectrum: Tensor) -> Tensor:
        """(B,T,bins) → (B, T·hop). The last frame is repeated: the inverse STFT needs the one centred on the end."""
        c = self.front_end.config
        length = spectrum.shape[1] * c.hop_samples
        spectrum = F.pad(torch.view_as_real(spectrum).flatten(2).transpose(1, 2), (0, 1), mode="replicate").transpose(1, 2)
        spectrum = torch.view_as_complex(spectrum.unflatten(2, (-1, 2)).contiguous())
        return torch.istft(
            spectrum.transpose(1, 2), c.n_fft, c.hop_samples, c.window_samples, self.front_end.window, center=True, length=length
        )
