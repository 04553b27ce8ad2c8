"""Vocoders: lengths and fidelity of both; Griffin-Lim's two domains; what the neural one streams and how far it looks ahead."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from omni.audio import SILENCE, LogMel, unscale_mel
from omni.config import AudioConfig, VocoderConfig
from omni.pitch import pitch_hz
from omni.vocoder import GriffinLim, NeuralVocoder, mel_to_bins

AUDIO = AudioConfig()
LOG_MEL, VOCODER = LogMel(AUDIO), GriffinLim(AUDIO, VocoderConfig())
HOP = AUDIO.hop_samples


def make_neural(look_ahead_frames: int = 4) -> NeuralVocoder:
    """Random, with weights large enough that every input matters."""
    torch.manual_seed(0)
    vocoder = NeuralVocoder(AUDIO, VocoderConfig(d_model=16, n_blocks=3, d_ff=24, look_ahead_frames=look_ahead_frames)).eval()
    for p in vocoder.parameters():
        p.data += 0.1 * torch.randn_like(p)
    return vocoder


NEURAL = make_neural()


def some_mel(frames: int, batch: int = 1) -> torch.Tensor:
    return torch.randn(batch, frames, AUDIO.n_mels, generator=torch.Generator().manual_seed(frames))


@pytest.fixture(scope="module")
def clip() -> torch.Tensor:
    """One second of gliding harmonics with pauses."""
    t = torch.arange(16_000) / 16_000
    phase = 2 * torch.pi * torch.cumsum(120 + 60 * t, 0) / 16_000
    voice = torch.stack([torch.sin(k * phase) / k for k in range(1, 12)]).sum(0)
    return 0.2 * voice * (torch.sin(2 * torch.pi * 3 * t) > -0.5)


@pytest.mark.parametrize("frames", [1, 2, 8, 100])
def test_n_mel_frames_give_n_hops_of_samples(frames: int) -> None:
    for vocoder in (VOCODER, NEURAL):
        assert vocoder(torch.zeros(2, frames, 128)).shape == (2, 160 * frames)


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
    for vocoder in (VOCODER, NEURAL):
        for value in (1e4, -1e4):
            wave = vocoder(torch.full((1, 10, 128), value))
            assert torch.isfinite(wave).all()
            assert wave.abs().max() <= 1.0


def test_batched_equals_single(clip: torch.Tensor) -> None:
    mel = LOG_MEL(clip)[None]
    for vocoder in (VOCODER, NEURAL):
        torch.testing.assert_close(vocoder(torch.cat((mel, mel.flip(1))))[0], vocoder(mel)[0], atol=1e-4, rtol=1e-3)


# --- the neural vocoder


def streamed(vocoder: NeuralVocoder, mel: torch.Tensor, sizes: list[int]) -> torch.Tensor:
    stream = vocoder.stream()
    chunks = mel.split([*sizes, mel.shape[1] - sum(sizes)], dim=1)
    return torch.cat([*(stream.push(chunk) for chunk in chunks), stream.finish()], dim=1)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(st.lists(st.integers(0, 13), max_size=8), st.integers(0, 20), st.sampled_from([0, 4, 6]))
def test_pieces_of_any_size_join_to_the_whole(sizes: list[int], rest: int, look_ahead_frames: int) -> None:
    vocoder, mel = make_neural(look_ahead_frames), some_mel(sum(sizes) + rest)
    torch.testing.assert_close(streamed(vocoder, mel, sizes), vocoder(mel), atol=1e-5, rtol=0)


def test_a_stream_is_as_far_behind_as_its_delay() -> None:
    stream = NEURAL.stream()
    given_out = [stream.push(some_mel(1)).shape[1] for _ in range(15)]
    assert given_out == [0] * NEURAL.delay_frames + [HOP] * 2
    assert NEURAL.delay_ms == 130.0


def test_a_stream_of_nothing_is_nothing() -> None:
    assert NEURAL.stream().finish().shape == (1, 0)


@pytest.mark.parametrize("look_ahead_frames", [0, 4, 6])
def test_a_frame_is_heard_look_ahead_frames_before_it_and_not_earlier(look_ahead_frames: int) -> None:
    vocoder, mel = make_neural(look_ahead_frames), some_mel(60)
    changed = mel.clone()
    changed[:, 40] += 1.0
    difference = (vocoder(changed) - vocoder(mel))[0].abs()
    first = (40 - vocoder.delay_frames) * HOP
    assert (difference[:first] == 0).all()
    assert difference[first : first + HOP].max() > 0


def test_behind_a_clip_is_silence() -> None:
    mel = some_mel(30)
    followed = torch.cat((mel, torch.full((1, 10, AUDIO.n_mels), SILENCE)), dim=1)
    torch.testing.assert_close(NEURAL(followed)[:, : 30 * HOP], NEURAL(mel), atol=1e-6, rtol=0)


def test_what_trains_is_what_runs(clip: torch.Tensor) -> None:
    """A piece from the beginning of a clip, with its look-ahead, gives the samples that the whole clip has there."""
    mel = LOG_MEL(clip)[None]
    piece, logits = NEURAL.generate(mel[:, : 20 + NEURAL.delay_frames])
    assert piece.requires_grad
    torch.testing.assert_close(piece.detach().clamp(-1, 1), NEURAL(mel)[:, : 20 * HOP], atol=1e-5, rtol=0)
    assert logits.shape == (1, 20, 257)


@pytest.mark.parametrize("wanted_hz", [80.0, 100.0])
def test_a_steady_log_mel_is_sung_at_the_pitch_that_is_given(wanted_hz: float) -> None:
    """An untrained vocoder whose input tells nothing of the pitch, and does not change from frame to frame. (Of a high pitch, mel filters tell.)"""
    vocoder = NeuralVocoder(AUDIO, VocoderConfig(d_model=16, n_blocks=1, d_ff=16))
    mel = torch.linspace(1.0, -1.0, 128).expand(1, 100 + vocoder.delay_frames, -1)
    with torch.no_grad():
        vocoder.head.bias[:321] = 6.0  # all voice
        sung, _ = vocoder.generate(mel, vocoder.pitch_ids(torch.full((1, 100), wanted_hz)))
    heard = pitch_hz(sung[0], AUDIO)[10:90]
    assert (heard / wanted_hz - 1).abs().median() < 0.01


def test_pitches_are_near_what_they_stand_for() -> None:
    hz = torch.linspace(60, 400, 500)
    ids = NEURAL.pitch_ids(hz)
    assert (NEURAL.pitches_hz[ids] / hz - 1).abs().max() < 0.004
    assert NEURAL.pitch_ids(torch.tensor([0.0, 20.0, 60.0, 400.0, 999.0])).tolist() == [0, 1, 1, 256, 256]


def test_an_untrained_vocoder_has_the_magnitudes_of_the_mel(clip: torch.Tensor) -> None:
    mel = LOG_MEL(clip)[None]
    again = LOG_MEL(NeuralVocoder(AUDIO, VocoderConfig(d_model=16, n_blocks=1, d_ff=16))(mel))
    assert (again - mel).abs().mean() < 0.4 * (mel - mel.mean()).abs().mean()


def test_bins_between_two_filters_take_from_both() -> None:
    to_bins = mel_to_bins(AUDIO, 321)
    torch.testing.assert_close(to_bins.sum(0), torch.ones(321))
    assert ((to_bins > 0).sum(0) <= 2).all() and ((to_bins > 0).sum(0) == 2).any()


def test_a_look_ahead_longer_than_the_first_convolution_is_refused() -> None:
    with pytest.raises(ValidationError, match="less than or equal to 6"):
        VocoderConfig(look_ahead_frames=7)
