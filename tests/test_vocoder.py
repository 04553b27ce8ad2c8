"""Griffin-Lim: lengths, fidelity, and the two domains."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from omni.audio import LogMel, unscale_mel
from omni.config import AudioConfig, VocoderConfig
from omni.vocoder import GriffinLim

AUDIO = AudioConfig()
LOG_MEL, VOCODER = LogMel(AUDIO), GriffinLim(AUDIO, VocoderConfig())


@pytest.fixture(scope="module")
def clip() -> torch.Tensor:
    """One second of gliding harmonics with pauses."""
    t = torch.arange(16_000) / 16_000
    phase = 2 * torch.pi * torch.cumsum(120 + 60 * t, 0) / 16_000
    voice = torch.stack([torch.sin(k * phase) / k for k in range(1, 12)]).sum(0)
    return 0.2 * voice * (torch.sin(2 * torch.pi * 3 * t) > -0.5)


@pytest.mark.parametrize("frames", [1, 2, 8, 100])
def test_n_mel_frames_give_n_hops_of_samples(frames: int) -> None:
    wave = VOCODER(torch.zeros(2, frames, 128))
    assert wave.shape == (2, 160 * frames)


def test_what_comes_out_has_the_mel_that_went_in(clip: torch.Tensor) -> None:
    mel = LOG_MEL(clip)[None]
    again = LOG_MEL(VOCODER(mel))
    assert (again - mel).abs().mean() < 0.25 * (mel - mel.mean()).abs().mean()


def test_log_and_magnitude_are_told_apart(clip: torch.Tensor) -> None:
    mel = LOG_MEL(clip)
    from_log = VOCODER.mel_to_audio(mel.numpy())
    from_magnitude = VOCODER.mel_to_audio(unscale_mel(mel).numpy())
    np.testing.assert_allclose(from_log, from_magnitude, atol=1e-3)


def test_extreme_mels_stay_finite_and_within_range() -> None:
    wave = VOCODER(torch.full((1, 10, 128), 1e4))
    assert torch.isfinite(wave).all()
    assert wave.abs().max() <= 1.0


def test_batched_equals_single(clip: torch.Tensor) -> None:
    mel = LOG_MEL(clip)[None]
    torch.testing.assert_close(VOCODER(torch.cat((mel, mel.flip(1))))[0], VOCODER(mel)[0], atol=1e-4, rtol=1e-3)
