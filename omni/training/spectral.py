"""How far two waveforms are apart to the ear: log-mels at several resolutions (as Yamamoto et al. 2020, §2.2, with mels for linear spectra)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from omni.audio import LogMel, scale_mel
from omni.config import AudioConfig

FFT_SIZES = (256, 512, 1024, 2048)
BINS_A_MEL = 8  # of the FFT, on average: no filter is empty
MOST_MELS = 128


class SpectralDistance(nn.Module):
    """Mean absolute difference of the scaled log-mels of two waveforms (B,n), at four resolutions, for each clip (B,)."""

    def __init__(self, audio: AudioConfig) -> None:
        super().__init__()
        sizes = ({"n_fft": n, "window_samples": n, "hop_samples": n // 4, "n_mels": min(n // BINS_A_MEL, MOST_MELS)} for n in FFT_SIZES)
        self.scales = nn.ModuleList(LogMel(audio.model_copy(update=size)) for size in sizes)

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        distances = []
        with torch.autocast(a.device.type, enabled=False):
            for scale in self.scales:
                assert isinstance(scale, LogMel)
                x, y = (scale_mel(scale.stft(wave.float()).abs() @ scale.filters) for wave in (a, b))
                distances.append((x - y).abs().mean((1, 2)))
        return torch.stack(distances).mean(0)
