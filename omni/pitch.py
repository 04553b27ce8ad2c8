"""The pitch of a voice: the lag at which the waveform repeats itself best (normalised cross-correlation, as in RAPT, Talkin 1995, without its
dynamic programming; a median takes the place of that).

T frames of one hop  n samples"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from omni.config import AudioConfig

LOWEST_HZ, HIGHEST_HZ = 60.0, 400.0
WINDOW_S = 0.032
VOICED = 0.6  # correlation above which a frame is a voice
NEARLY = 0.9  # of the best correlation: the shortest lag that reaches it is taken, since multiples of a period repeat as well
QUIETEST = 1e-3  # root mean square of a voice
MEDIAN_FRAMES = 5


def pitch_hz(waveform: Tensor, config: AudioConfig) -> Tensor:
    """waveform (n,) → (ceil(n/hop),) Hz of the frames centred on every hop, 0 where there is no voice."""
    hop, rate = config.hop_samples, config.sample_rate_hz
    window, longest, shortest = round(WINDOW_S * rate), int(rate / LOWEST_HZ), int(rate / HIGHEST_HZ)
    size = window + longest + 1
    n_frames = -(-len(waveform) // hop)
    frames = F.pad(waveform, (size // 2, size // 2 + hop)).unfold(0, size, hop)[:n_frames]  # (T, size)
    frames = frames - frames.mean(1, keepdim=True)
    n_fft = 1 << (size + window).bit_length()
    spectrum = torch.fft.rfft(frames, n_fft) * torch.fft.rfft(frames[:, :window], n_fft).conj()
    products = torch.fft.irfft(spectrum, n_fft)[:, : longest + 2]  # of the first window with that of each lag
    summed = F.pad(frames.square().cumsum(1), (1, 0))
    energy = summed[:, window:] - summed[:, : longest + 2]  # of the window at each lag
    quietest = window * QUIETEST**2
    correlation = products / (energy[:, :1] * energy).clamp(min=quietest**2).sqrt()
    inner = correlation[:, shortest : longest + 1]
    best = inner.amax(1)
    is_peak = (inner >= correlation[:, shortest - 1 : longest]) & (inner >= correlation[:, shortest + 1 :])
    good = is_peak & (inner >= NEARLY * best[:, None])
    lag = shortest + good.int().argmax(1)  # the first of them
    before, at, after = (correlation.gather(1, lag[:, None] + step)[:, 0] for step in (-1, 0, 1))
    offset = 0.5 * (before - after) / (before - 2 * at + after).clamp(max=-1e-6)  # of the parabola through the peak
    found = torch.where((best > VOICED) & good.any(1), rate / (lag + offset.clamp(-0.5, 0.5)), 0.0)
    half = MEDIAN_FRAMES // 2
    return F.pad(found[None], (half, half), mode="replicate")[0].unfold(0, MEDIAN_FRAMES, 1).median(1).values
