"""Variation of speech on the log-mel: each kind does what its name says, silence stays silence, and lengths follow the speed."""

from __future__ import annotations

import pytest
import torch

from omni.audio import SILENCE, LogMel
from omni.config import AudioConfig
from omni.training.augmentation import add_noise, add_room, mask_mel, vary, warp

CONFIG = AudioConfig()


def tone(hz: float, seconds: float = 1.0) -> torch.Tensor:
    """Scaled log-mel (1,T,M) of a sine."""
    time = torch.arange(int(seconds * 16_000)) / 16_000
    return LogMel(CONFIG)(0.3 * torch.sin(2 * torch.pi * hz * time))[None]


def one(value: float = 1.0, batch: int = 1) -> torch.Tensor:
    return torch.full((batch, 1, 1), value)


def test_warping_by_one_changes_nothing():
    mel = torch.randn(2, 50, 128)
    warped, lengths = warp(mel, torch.tensor([50, 30]), one(batch=2), one(batch=2), CONFIG)
    assert torch.allclose(warped, mel, atol=1e-4) and lengths.tolist() == [50, 30]


@pytest.mark.parametrize("hz", [440.0, 2500.0])
def test_a_longer_tract_is_a_lower_voice(hz):
    warped, _ = warp(tone(hz), torch.tensor([100]), one(), one(0.9), CONFIG)
    assert abs(int(warped[0, 50].argmax()) - int(tone(0.9 * hz)[0, 50].argmax())) <= 1


def test_faster_speech_is_shorter():
    mel = torch.arange(100.0)[None, :, None].expand(1, 100, 128)
    warped, lengths = warp(mel, torch.tensor([100]), one(1.25), one(), CONFIG)
    assert lengths.tolist() == [80] and warped.shape[1] == 80
    assert torch.allclose(warped[0, 40, 0], torch.tensor(50.0), atol=1e-3)


def test_a_room_rings_and_decays_by_60_db():
    power = torch.zeros(1, 60, 4)
    power[0, 5] = 1.0
    ringing = add_room(power, one(0.4), one(0.5), 100.0)
    assert torch.equal(ringing[0, :5], torch.zeros(5, 4)) and ringing[0, 5, 0] == 1.0
    assert torch.allclose(ringing[0, 45] / ringing[0, 5 + 1], torch.tensor(10 ** (-6 * 39 / 40)).expand(4), rtol=1e-3)
    assert torch.allclose(ringing[0, 6:].sum(0), torch.tensor(0.5).expand(4), rtol=0.02)


def test_noise_has_the_energy_that_was_asked_for():
    torch.manual_seed(0)
    power = torch.rand(8, 200, 128)
    noisy = add_noise(power, torch.ones(8, 200, 1), one(10.0, 8))
    ratio = power.mean((1, 2)) / (noisy - power).mean((1, 2))
    assert torch.allclose(10 * ratio.log10(), torch.tensor(10.0), atol=0.3)


def test_vary_keeps_what_is_behind_a_clip_silent_and_is_drawn_anew():
    torch.manual_seed(0)
    mel = torch.cat((tone(440.0), tone(900.0)))
    mel[1, 60:] = SILENCE
    lengths = torch.tensor([100, 60])
    (a, a_lengths), (b, _) = vary(mel, lengths, CONFIG), vary(mel, lengths, CONFIG)
    for row, n in enumerate(a_lengths.tolist()):
        assert torch.equal(a[row, n:], torch.full_like(a[row, n:], SILENCE))
        assert lengths[row] / 1.1 - 1 <= n <= lengths[row] / 0.9 + 1
    assert a.shape != b.shape or not torch.equal(a, b)
    assert torch.isfinite(a).all() and a.min() >= SILENCE - 1e-4


def test_masks_hide_bands_and_no_more():
    torch.manual_seed(0)
    mel = torch.randn(4, 100, 128)
    masked = mask_mel(mel, torch.full((4,), 100), 2)
    share = (masked != mel).float().mean()
    assert 0 < share < 0.6
