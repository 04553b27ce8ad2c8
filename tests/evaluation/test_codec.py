"""The suite `codec`: what is compared with what, and that nothing is shifted in time."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from omni.audio import load_audio
from omni.errors import CheckpointError, DataError
from omni.evaluation import codec
from omni.evaluation.asr import Clip
from omni.evaluation.codec import codec_suite, codes_of, evaluate_reader, fidelity, pesq, stoi, through_codec, through_mel, usage, vocoders

from .conftest import murmur

TEXTS = ["A cat sat.", "The old house.", "On the stairs."]


@pytest.fixture
def clips(sounds) -> list[Clip]:
    return [Clip(path, text, text) for path, text in zip(sounds, TEXTS, strict=True)]


def test_what_is_the_same_scores_full_marks(clips):
    waves = [load_audio(clip.audio) for clip in clips]
    same = fidelity(clips, waves, waves)
    assert same["stoi"] == pytest.approx(1.0, abs=1e-3)
    assert same["pesq"] == pytest.approx(4.64, abs=0.01)
    assert same["stoi_clips"] == same["pesq_clips"] == 3
    noisy = fidelity(clips, waves, [wave + murmur(2, seed=9)[: len(wave)] for wave in waves])
    assert noisy["stoi"] < 0.95 and noisy["pesq"] < 3


def test_silence_has_no_score():
    assert stoi(murmur(0.2), murmur(0.2)) is None
    assert pesq(murmur(0.05), murmur(0.05)) is None


def test_vocoders_and_codec_keep_time_and_length(speaker):
    wave = np.zeros(16_123, np.float32)
    wave[8_000:8_800] = murmur(0.05)[:800] * 5
    for name, vocoder in vocoders(speaker).items():
        made = through_mel(speaker, wave, vocoder)
        assert len(made) == len(wave)
        if name == "griffin_lim":  # the other is not trained
            energy = np.convolve(made**2, np.ones(160), "same")
            middle = float((energy * np.arange(len(energy))).sum() / energy.sum())
            assert middle == pytest.approx(float((wave**2 * np.arange(len(wave))).sum() / (wave**2).sum()), abs=80)
        codes = codes_of(speaker, wave)
        assert codes.shape == (1, -(-len(wave) // 1280), 2)
        assert len(through_codec(speaker, codes[..., :1], len(wave), vocoder)) == len(wave)


def test_usage_counts_codes_of_all_clips():
    found = usage([torch.tensor([[[0, 3], [1, 3]]]), torch.tensor([[[2, 3], [3, 3]]])], 8)
    assert found == {"used": [0.5, 0.125], "perplexity": [4.0, 1.0]}


def test_the_suite_measures_every_reader_apart(speaker, clips, tmp_path, monkeypatch, told_judge):
    monkeypatch.setattr(codec, "speech_sets", lambda data: {"kathleen": clips, "lj": clips[:2]})
    monkeypatch.setattr(codec, "find_judges", lambda environment: [told_judge(TEXTS)])
    result = json.loads(json.dumps(codec_suite(speaker, tmp_path)))
    assert result["items"] == 5
    assert result["metrics"]["bits_per_second"] == 2 * 4 * 12.5
    for reader, n in (("kathleen", 3), ("lj", 2)):
        metrics, ceilings = result["metrics"][reader], result["ceilings"][reader]
        assert metrics["items"] == n
        assert list(metrics["codebooks"]) == ["items", "1", "2"]
        assert set(ceilings) == {"recordings", "mel_griffin_lim", "mel_neural"}
        assert ceilings["recordings"]["whisper-base"]["wer"] == 0
        for row in (ceilings["mel_neural"], metrics["codec_griffin_lim"], metrics["codec_neural"]):
            low, high = row["stoi_95"]
            assert low <= row["stoi"] <= high
            assert row["whisper-base"]["wer"] == 0
        assert metrics["encode_real_time_factor"] > 0 < ceilings["mel_griffin_lim"]["real_time_factor"]
    assert codec_suite(speaker, tmp_path, limit=1)["items"] == 2


def test_a_checkpoint_without_neural_vocoder_is_measured_with_griffin_lim(make_speaker, clips, told_judge):
    metrics, ceilings = evaluate_reader(make_speaker("codec"), clips, [told_judge(TEXTS)])
    assert set(ceilings) == {"recordings", "mel_griffin_lim"}
    assert "codec_neural" not in metrics


def test_what_cannot_be_measured_is_one_clear_error(speaker, make_speaker, tmp_path, monkeypatch, told_judge):
    with pytest.raises(CheckpointError, match="this checkpoint has no codec"):
        codec_suite(make_speaker("thinker"), tmp_path)
    monkeypatch.setattr(codec, "find_judges", lambda environment: [told_judge(TEXTS)])
    with pytest.raises(DataError, match="no such data folder"):
        codec_suite(speaker, tmp_path / "nowhere")
    with pytest.raises(DataError, match="there is no held-out clip of the reader"):
        evaluate_reader(speaker, [], [told_judge(TEXTS)])

    def gone(name):
        raise ImportError(name)

    monkeypatch.setattr(codec, "import_module", gone)
    with pytest.raises(DataError, match=r"the package pystoi is not here; install the judges with"):
        codec_suite(speaker, tmp_path)
