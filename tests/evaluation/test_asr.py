"""The hearing suite on tones and a small random model: what is counted, what is compared, and what goes wrong."""

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from omni.audio import save_audio
from omni.characters import BLANK_ID, N_CHARACTERS, encode_characters
from omni.config import ModelConfig
from omni.data.datasets import slots_needed
from omni.errors import DataError
from omni.evaluation import asr
from omni.evaluation.asr import Clip, asr_suite, evaluate_asr, evaluate_set, rates, tune, voice_sets
from omni.evaluation.judge import WHISPER_TINY
from omni.evaluation.metrics import spread
from omni.inference.omni import Omni
from omni.omni_model import OmniModel
from omni.tokenizer import BPETokenizer, train_tokenizer
from omni.training.losses import ctc_nats

CONFIG = ModelConfig.model_validate(
    {
        "thinker": {"vocab_size": 300, "d_model": 16, "n_layers": 1, "n_heads": 2, "n_kv_heads": 1, "d_ff": 16, "context_length": 64},
        "audio_encoder": {"conv_channels": 2, "d_model": 16, "n_layers": 1, "n_heads": 2, "d_ff": 16},
    }
)
TEXTS = [
    "Hello there.",
    "One, two, three.",
    "A cat",
    "A cat",
    "A very long sentence for so short a tone, which no recognizer can spell in time.",
]


def make_omni(tokenizer: BPETokenizer | None, *components: str) -> Omni:
    torch.manual_seed(0)
    model = OmniModel(CONFIG, components)
    for p in model.parameters():
        if p.dim() > 1:
            p.data *= 6.0
    return Omni(model, tokenizer, Path("checkpoint"))


@pytest.fixture(scope="module")
def omni(tmp_path_factory) -> Omni:
    tokenizer = train_tokenizer(TEXTS * 5, 300, tmp_path_factory.mktemp("tokenizer") / "tokenizer.model")
    return make_omni(tokenizer, "audio_encoder", "thinker")


@pytest.fixture(scope="module")
def clips(tmp_path_factory) -> list[Clip]:
    """Tones of 0.3 to 1.1 s; the third and the fourth are takes of one sentence."""
    folder = tmp_path_factory.mktemp("clips")
    for i in range(len(TEXTS)):
        time_s = np.arange(int((1.1 - 0.2 * i) * 16_000)) / 16_000
        save_audio(folder / f"{i}.wav", np.sin(2 * np.pi * 300 * (i + 1) * time_s).astype(np.float32) * 0.3, 16_000)
    return [Clip(folder / f"{i}.wav", text, text) for i, text in enumerate(TEXTS)]


def test_the_suite_scores_what_transcribe_writes(omni, clips):
    result = evaluate_asr(omni, {"tones": clips})
    assert {k: v for k, v in result.items() if k != "metrics"} == {
        "suite": "asr",
        "checkpoint": "checkpoint",
        "items": 5,
        "baselines": {},
        "ceilings": {},
    }
    tones = json.loads(json.dumps(result))["metrics"]["tones"]
    for kind, decoder in (("greedy", "ctc"), ("beam", "ctc-beam")):
        expected = rates(clips, [omni.transcribe(clip.audio, decoder) for clip in clips])
        assert tones[kind] == json.loads(json.dumps(vars(expected)))
        low, high = tones[kind]["wer_95"]
        assert low <= tones[kind]["wer"] <= high
    assert (tones["items"], tones["words"], tones["infeasible"]) == (5, 25, 1)
    assert tones["hours"] == pytest.approx(3.5 / 3600, abs=1e-4)
    assert tones["times_real_time"] > 0 < tones["beam_times_real_time"]


def test_an_encoder_alone_is_scored_without_the_beam(clips):
    tones = evaluate_asr(make_omni(None, "audio_encoder"), {"tones": clips})["metrics"]["tones"]
    assert "greedy" in tones
    assert "beam" not in tones


def test_perfect_hearing_has_no_errors(clips):
    assert rates(clips, [clip.text.upper() for clip in clips]) == asr.Rates(0.0, (0.0, 0.0), 0.0, (0.0, 0.0))


@pytest.mark.parametrize("text", ["ab", "aab", "Hello", "aaaa", "a"])
def test_slots_are_enough_exactly_where_ctc_has_a_path(text):
    ids = encode_characters(text)
    needed = slots_needed(ids)
    for n in (needed - 1, needed):
        nats = ctc_nats(torch.zeros(1, n + 1, N_CHARACTERS), torch.tensor([n]), torch.tensor([ids]), torch.tensor([len(ids)]), BLANK_ID)
        assert (float(nats) > 0) == (n == needed)


def test_the_best_weights_come_first(omni, clips):
    found = tune(omni, clips, alphas=(0.0, 1.0), betas=(-5.0, 5.0))
    assert [t.wer for t in found] == sorted(t.wer for t in found)
    search = asr.BeamSearch(asr.ThinkerWords(omni.model.thinker, omni.tokenizer), alpha=found[0].alpha, beta=found[0].beta)
    beam = evaluate_set(omni, clips, search).beam
    assert beam is not None
    assert beam.wer == pytest.approx(found[0].wer, abs=1e-4)


# --- sets


def test_a_limit_takes_clips_from_everywhere(clips):
    assert spread(clips, 2) == [clips[0], clips[2]]
    assert spread(clips, None) == spread(clips, 99) == clips


def write_voices(clips: list[Clip]) -> None:
    rows = [{"audio": c.audio.name, "text": c.text, "speaker": f"flute-{s}"} for c, s in zip(clips, "aabbb", strict=True)]
    (clips[0].audio.parent / "flute.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_every_voice_is_a_set(clips):
    write_voices(clips)
    assert voice_sets(clips[0].audio.parent) == {"voices": clips, "voice-flute-a": clips[:2], "voice-flute-b": clips[2:]}


def test_a_speaker_heard_early_is_no_unseen_voice(clips, monkeypatch):
    write_voices(clips)
    monkeypatch.setattr(asr, "HEARD_EARLY", ("flute-a",))
    assert voice_sets(clips[0].audio.parent) == {"voices": clips[2:], "voice-flute-a": clips[:2], "voice-flute-b": clips[2:]}


def test_sentences_that_the_language_model_has_read_stand_apart(omni, clips):
    whole = evaluate_set(omni, clips, omni.beam_search)
    assert whole.read == 0 and whole.beam_unread is None
    some = evaluate_set(omni, clips, omni.beam_search, {clips[0].text})
    n_read = sum(clip.text == clips[0].text for clip in clips)
    assert some.read == n_read and some.beam == whole.beam
    unread = [clip for clip in clips if clip.text != clips[0].text]
    assert some.beam_unread == evaluate_set(omni, unread, omni.beam_search).beam
    assert evaluate_set(omni, clips[:1], omni.beam_search, {clips[0].text}).beam_unread is None


def test_the_suite_hears_every_reader_and_every_voice(omni, clips, tmp_path, monkeypatch):
    def speech_rows(data, *, held_out, readers):
        assert held_out
        for clip in clips:
            yield {"audio": str(clip.audio), "text": clip.text, "sentence_id": f"{readers[0]} {clip.text}"}

    monkeypatch.setattr(asr, "speech_rows", speech_rows)
    monkeypatch.setattr(asr, "read_in_training", lambda text, data: text == clips[0].text)
    write_voices(clips)
    result = asr_suite(omni, tmp_path, limit=1, voices=clips[0].audio.parent)
    assert result["items"] == 6
    assert [result["metrics"][name]["read"] for name in ("kathleen", "voice-flute-b")] == [1, 0]
    assert list(result["metrics"]) == ["kathleen", "lj", "heart", "voices", "voice-flute-a", "voice-flute-b"]


def test_what_cannot_be_heard_is_one_clear_error(omni, clips, tmp_path):
    with pytest.raises(DataError, match=r"nowhere: no such data folder.*muomni data get"):
        asr_suite(omni, tmp_path / "nowhere")
    with pytest.raises(DataError, match="nothing to hear: no clip in lj"):
        evaluate_asr(omni, {"tones": clips, "lj": []})
    with pytest.raises(DataError, match="nothing to hear: no set"):
        evaluate_asr(omni, {})
    with pytest.raises(DataError, match=r"gone\.wav"):
        evaluate_asr(omni, {"tones": [*clips, Clip(tmp_path / "gone.wav", "a", "a")]})
    with pytest.raises(DataError, match=r"none: no manifest of voices there"):
        voice_sets(tmp_path / "none")


# --- the judge


def test_the_recognizer_hears_the_same_clips(omni, clips, tmp_path, monkeypatch):
    heard = {str(clip.audio): clip.text.lower() for clip in clips}
    judge = SimpleNamespace(name=WHISPER_TINY, hear=lambda sounds: [heard[str(sound)] for sound in sounds])
    result = evaluate_asr(omni, {"tones": clips[:2]}, judge=judge)
    assert result["ceilings"][WHISPER_TINY]["tones"]["wer"] == 0.0
