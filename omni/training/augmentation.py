"""Speech made harder while it trains, on the log-mel itself: cheap enough to be drawn afresh for every clip of every epoch.

speed     0.9 to 1.1 times                                     (Ko et al. 2015)
vocal     tract length 0.9 to 1.12 times: frequencies are warped (Jaitly & Hinton 2013)
room      an exponential tail of the power in time, 0.2 to 0.8 s to -60 dB
noise     a random smooth spectrum, 5 to 40 dB below the speech
channel   a random smooth curve over frequency, and loudness
bands     of time and frequency hidden                          (SpecAugment, Park et al. 2019, §2)

B batch  T mel frames  M mel bins"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from omni.audio import SILENCE, hz_to_mel, mel_to_hz, scale_mel, unscale_mel
from omni.config import AudioConfig

SPEED = (0.9, 1.1)
TRACT = (0.9, 1.12)
ROOM_S, ROOM_SHARE, ROOM_FRAMES = (0.2, 0.8), 0.3, 48  # seconds to -60 dB; share of clips; length of the tail that is computed
ECHO_ENERGY = (0.05, 0.6)  # of the tail over that of the direct sound
NOISE_DB, NOISE_SHARE = (5.0, 40.0), 0.6
COLOUR_NATS, CHANNEL_NATS, LOUDNESS_NATS = 1.2, 0.35, 1.0  # deviations of the noise's spectrum, the channel and the loudness
CURVE_KNOTS = 8
MASK_FRAMES, MASK_BINS = 15, 20  # widest bands that are hidden: 150 ms, and about a sixth of the spectrum


def _uniform(batch: int, bounds: tuple[float, float], device: torch.device) -> Tensor:
    """(B,1,1)."""
    return torch.empty(batch, 1, 1, device=device).uniform_(*bounds)


def _curve(batch: int, bins: int, device: torch.device) -> Tensor:
    """Smooth random curves over frequency, (B,1,M), of about unit deviation."""
    return F.interpolate(torch.randn(batch, 1, CURVE_KNOTS, device=device), bins, mode="linear", align_corners=True)


def warp(mel: Tensor, lengths: Tensor, speed: Tensor, tract: Tensor, config: AudioConfig) -> tuple[Tensor, Tensor]:
    """mel (B,T,M) played `speed` (B,1,1) times as fast, with its frequencies `tract` (B,1,1) times as high; and the new lengths."""
    bins = mel.shape[2]
    low, high = hz_to_mel(np.array([config.f_min_hz, config.f_max_hz]), config.filter_bank)
    step = (high - low) / (bins + 1)
    centres = torch.from_numpy(mel_to_hz(low + step * np.arange(1, bins + 1), config.filter_bank))
    source_hz = (centres[None] / tract.reshape(-1, 1).cpu().double()).numpy()
    rows = torch.from_numpy((hz_to_mel(source_hz, config.filter_bank) - low) / step - 1).to(mel)  # (B,M) in bins
    new_lengths = (lengths / speed.flatten()).ceil().long().clamp(min=1)
    columns = torch.arange(int(new_lengths.max()), device=mel.device) * speed[:, 0]  # (B,T') in frames
    grid = torch.stack(
        torch.broadcast_tensors(2 * rows[:, None] / (bins - 1) - 1, 2 * columns[:, :, None] / max(mel.shape[1] - 1, 1) - 1), dim=-1
    )
    return F.grid_sample(mel[:, None], grid, padding_mode="border", align_corners=True)[:, 0], new_lengths


def add_room(power: Tensor, seconds: Tensor, energy: Tensor, frame_rate_hz: float) -> Tensor:
    """power (B,T,M) with an exponential tail that falls by 60 dB in `seconds` (B,1,1) and holds `energy` (B,1,1) times the direct power."""
    age = torch.arange(ROOM_FRAMES, 0, -1, device=power.device)[None]  # of the frames behind, oldest first
    tail = torch.exp(-np.log(1e6) * age / (frame_rate_hz * seconds[:, 0]))
    kernel = torch.cat((energy[:, 0] * tail / tail.sum(1, keepdim=True), torch.ones_like(tail[:, :1])), dim=1)  # (B, ROOM_FRAMES + 1)
    past = F.pad(power.permute(2, 0, 1), (ROOM_FRAMES, 0))  # (M,B,·)
    return F.conv1d(past, kernel[:, None], groups=len(power)).permute(1, 2, 0)


def add_noise(power: Tensor, mask: Tensor, db: Tensor) -> Tensor:
    """power (B,T,M) with noise of a random colour, `db` (B,1,1) below the mean power of the frames in `mask` (B,T,1)."""
    batch, frames, bins = power.shape
    speech = (power * mask).sum((1, 2), keepdim=True) / mask.sum((1, 2), keepdim=True) / bins
    colour = torch.exp(2 * COLOUR_NATS * _curve(batch, bins, power.device))
    noise = torch.empty(batch, frames, bins, device=power.device).exponential_() * colour / colour.mean(2, keepdim=True)
    return power + noise * speech * 10 ** (-db / 10)


def mask_mel(mel: Tensor, lengths: Tensor, n_masks: int) -> Tensor:
    """In every clip `n_masks` random bands of time and as many of frequency become its mean. mel (B,T,M), lengths (B,)."""
    batch, frames, bins = mel.shape

    def bands(size: Tensor, widest: int, n: int) -> Tensor:
        """(B,n), true inside the bands; `size` (B,) is where they may begin."""
        width = torch.randint(0, widest + 1, (batch, n_masks, 1), device=mel.device)
        start = (torch.rand(batch, n_masks, 1, device=mel.device) * size[:, None, None]).long()
        index = torch.arange(n, device=mel.device)
        return ((index >= start) & (index < start + width)).any(1)

    hidden = bands(lengths, MASK_FRAMES, frames)[:, :, None] | bands(torch.full_like(lengths, bins), MASK_BINS, bins)[:, None]
    return torch.where(hidden, mel.mean((1, 2), keepdim=True), mel)


def vary(mel: Tensor, lengths: Tensor, config: AudioConfig, speed: tuple[float, float] = SPEED) -> tuple[Tensor, Tensor]:
    """Scaled log-mel (B,T,M) with lengths (B,) → (B,T',M) and lengths, each clip with a speed, tract, room, noise and channel of its own."""
    batch, device = len(mel), mel.device
    mel, lengths = warp(mel, lengths, _uniform(batch, speed, device), _uniform(batch, TRACT, device), config)
    mask = (torch.arange(mel.shape[1], device=device) < lengths[:, None])[..., None]
    power = unscale_mel(mel).square() * mask
    in_room = torch.rand(batch, 1, 1, device=device) < ROOM_SHARE
    energy = torch.where(in_room, _uniform(batch, ECHO_ENERGY, device), 0.0)
    power = add_room(power, _uniform(batch, ROOM_S, device), energy, config.mel_rate_hz)
    noisy = torch.rand(batch, 1, 1, device=device) < NOISE_SHARE
    power = torch.where(noisy, add_noise(power, mask, _uniform(batch, NOISE_DB, device)), power)
    channel = CHANNEL_NATS * _curve(batch, mel.shape[2], device) + LOUDNESS_NATS * (2 * torch.rand(batch, 1, 1, device=device) - 1)
    varied = scale_mel(power.sqrt() * channel.exp())
    return torch.where(mask, varied, SILENCE), lengths
