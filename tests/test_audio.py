"""The mel front end and audio files: rates, lengths, resampling, and what is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from omni.audio import SILENCE, LogMel, load_audio, mel_filters, save_audio, scale_mel, unscale_mel
from omni.config import AudioConfig, ModelConfig
from omni.errors import ConfigError, DataError

LOG_MEL = LogMel(AudioConfig())


def tone(seconds: float, rate: int, hz: float = 440.0) -> np.ndarray:
    return (0.5 * np.sin(2 * np.pi * hz * np.arange(int(seconds * rate)) / rate)).astype(np.float32)


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 20_000))
def test_n_samples_give_ceil_n_over_hop_frames(n: int) -> None:
    assert LOG_MEL(torch.zeros(n)).shape == (-(-n // 160), 128)


def test_rates_derive_from_the_front_end() -> None:
    config = ModelConfig()
    assert (config.audio.mel_rate_hz, config.encoder_rate_hz, config.code_rate_hz) == (100.0, 12.5, 12.5)


@pytest.mark.parametrize("bank", ["slaney", "htk"])
def test_no_filter_is_empty_and_areas_are_one(bank: str) -> None:
    filters = mel_filters(AudioConfig(filter_bank=bank))
    assert filters.shape == (513, 128)
    assert (filters.sum(0) > 0).all()


def test_a_front_end_with_empty_filters_is_refused() -> None:
    with pytest.raises(ConfigError, match="hold no bin of an FFT of 256"):
        mel_filters(AudioConfig(n_fft=256, window_samples=256))


def test_a_clip_gives_the_same_frames_alone_and_padded_in_a_batch() -> None:
    clip = torch.from_numpy(tone(0.5, 16_000))
    batch = torch.nn.functional.pad(clip, (0, 3_000))[None]
    torch.testing.assert_close(LOG_MEL(batch)[0, : LOG_MEL.n_frames(len(clip))], LOG_MEL(clip))


def test_silence_is_the_floor_and_scaling_is_invertible() -> None:
    assert torch.allclose(LOG_MEL(torch.zeros(1600)), torch.tensor(SILENCE))
    mel = torch.rand(4, 128) + 0.01
    torch.testing.assert_close(unscale_mel(scale_mel(mel)), mel)


@pytest.mark.parametrize("rate", [8_000, 11_025, 22_050, 24_000, 44_100, 48_000])
def test_a_tone_keeps_its_pitch_and_length_whatever_the_rate_of_its_file(rate: int, tmp_path: Path) -> None:
    soundfile.write(tmp_path / "tone.wav", np.stack([tone(1.0, rate)] * 2, axis=1), rate)
    wave = load_audio(tmp_path / "tone.wav")
    assert wave.dtype == np.float32
    assert abs(len(wave) - 16_000) <= 2
    assert abs(np.abs(np.fft.rfft(wave)).argmax() * 16_000 / len(wave) - 440) < 2


def test_saving_and_loading_is_the_identity_to_16_bits(tmp_path: Path) -> None:
    wave = tone(0.2, 16_000)
    save_audio(tmp_path / "tone.flac", wave, 16_000)
    assert np.abs(load_audio(tmp_path / "tone.flac") - wave).max() < 1e-4
    assert [p.name for p in tmp_path.iterdir()] == ["tone.flac"]


def test_a_clip_that_is_not_finite_is_refused(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "nan.wav", np.full(100, np.nan, np.float32), 16_000, subtype="FLOAT")
    with pytest.raises(DataError, match=r"nan\.wav: .* not finite"):
        load_audio(tmp_path / "nan.wav")


def test_an_unknown_ending_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"\.xyz"):
        save_audio(tmp_path / "tone.xyz", tone(0.1, 16_000), 16_000)
    assert not list(tmp_path.iterdir())
