"""Pitch: found where there is a voice, at its frequency, and not elsewhere."""

from __future__ import annotations

import pytest
import torch

from omni.config import AudioConfig
from omni.pitch import pitch_hz

AUDIO = AudioConfig()
TIME_S = torch.arange(16_000) / 16_000


def voice(hz: float | torch.Tensor) -> torch.Tensor:
    """One second of harmonics."""
    cycles = torch.cumsum(torch.as_tensor(hz) * torch.ones(16_000), 0) / 16_000
    return 0.1 * sum((torch.sin(2 * torch.pi * k * cycles) / k for k in range(1, 10)), torch.zeros(16_000))


@pytest.mark.parametrize("hz", [62.0, 100.0, 123.4, 220.0, 390.0])
def test_a_steady_voice_has_its_pitch(hz: float) -> None:
    found = pitch_hz(voice(hz), AUDIO)
    assert found.shape == (100,)
    assert (found[5:95] / hz - 1).abs().max() < 0.005


def test_a_gliding_voice_is_followed() -> None:
    found = pitch_hz(voice(150 + 50 * TIME_S), AUDIO)[5:95]
    wanted = 150 + 50 * torch.arange(100)[5:95] / 100
    assert (found / wanted - 1).abs().max() < 0.02


@pytest.mark.parametrize("wave", [torch.zeros(16_000), 0.1 * torch.randn(16_000, generator=torch.Generator().manual_seed(0))])
def test_silence_and_noise_have_none(wave: torch.Tensor) -> None:
    assert (pitch_hz(wave, AUDIO) > 0).float().mean() < 0.05


@pytest.mark.parametrize("n_samples", [1, 160, 161, 999])
def test_there_is_one_value_for_every_mel_frame(n_samples: int) -> None:
    assert len(pitch_hz(torch.zeros(n_samples), AUDIO)) == -(-n_samples // AUDIO.hop_samples)


def test_loudness_does_not_matter() -> None:
    torch.testing.assert_close(pitch_hz(voice(150.0), AUDIO), pitch_hz(0.1 * voice(150.0), AUDIO), atol=0.1, rtol=0)
