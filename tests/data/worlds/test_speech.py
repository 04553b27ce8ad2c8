"""The synthesizer's voices."""

import sys

import numpy as np
import pytest

from omni.data.worlds import speech
from omni.data.worlds.pocket import HELD_OUT_VOICES, TALKER_VOICES, TRAINING_VOICES
from omni.data.worlds.speech import SAMPLE_RATE_HZ, Voice, speak
from omni.errors import DataError

SENTENCE = "The red circle is left of the square."
VOICES = [Voice(name) for name in (*TRAINING_VOICES, *HELD_OUT_VOICES)] + list(TALKER_VOICES.values())


def test_a_sentence_sounds_the_same_whatever_was_said_before() -> None:
    before = {voice: speak(SENTENCE, voice) for voice in VOICES}
    for voice in reversed(VOICES):
        speak("Hello! How can I help you?", Voice("en-us+f2", 120, 80))
        assert np.array_equal(speak(SENTENCE, voice), before[voice]), voice


def test_every_voice_differs_from_every_other() -> None:
    waves = [speak(SENTENCE, Voice(voice.espeak)).tobytes() for voice in VOICES]
    assert len(set(waves)) == len(VOICES)


def test_speech_is_loud_finite_trimmed_and_of_a_likely_length() -> None:
    for voice in VOICES:
        wave = speak(SENTENCE, voice)
        assert 1.2 * SAMPLE_RATE_HZ < len(wave) < 3.5 * SAMPLE_RATE_HZ
        assert np.isfinite(wave).all() and np.abs(wave).max() <= 1.0 and wave.std() > 0.03
        loud = np.flatnonzero(np.abs(wave) > speech.SILENCE_AMPLITUDE)
        assert loud[0] <= 0.05 * SAMPLE_RATE_HZ and len(wave) - loud[-1] <= 0.1 * SAMPLE_RATE_HZ


def test_a_higher_rate_is_shorter_and_a_higher_pitch_has_a_higher_fundamental() -> None:
    assert len(speak(SENTENCE, Voice("en-us", 195))) < 0.9 * len(speak(SENTENCE, Voice("en-us", 145)))

    def fundamental_hz(wave: np.ndarray) -> float:
        middle = wave[3200:9600] - wave[3200:9600].mean()
        similarity = np.correlate(middle, middle, "full")[len(middle) :]
        return SAMPLE_RATE_HZ / (np.argmax(similarity[40:320]) + 41)

    low, high = (fundamental_hz(speak("Aaaaaaaaaa", Voice("en-us", 145, pitch))) for pitch in (20, 80))
    assert high > 1.2 * low


def test_what_cannot_be_said_is_a_clear_error(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DataError, match="no voice 'martian'"):
        speak("Hello.", Voice("martian"))
    with pytest.raises(DataError, match=r"said nothing for '\.\.\.'"):
        speak("...", Voice("en-us"))
    speech._synthesizer.cache_clear()
    monkeypatch.setitem(sys.modules, "espeakng_loader", None)
    with pytest.raises(DataError, match=r"pip install -c constraints.txt -e .\[train\]"):
        speak("Hello.", Voice("en-us"))
    speech._synthesizer.cache_clear()
