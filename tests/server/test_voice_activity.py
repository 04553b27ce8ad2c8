"""Voice activity: turns are found where they are, whatever the pieces and the background."""

import numpy as np
import pytest

from omni.server.voice_activity import FRAME_S, VoiceActivity, VoiceEvent

RATE_HZ = 16_000


def sound(*parts: tuple[float, float], noise_db: float = -60.0, seed: int = 0) -> np.ndarray:
    """(seconds, dB) of noise each, over a background."""
    rng = np.random.default_rng(seed)
    pieces = [rng.standard_normal(round(s * RATE_HZ)) * 10 ** (db / 20) for s, db in parts]
    wave = np.concatenate(pieces)
    return (wave + rng.standard_normal(len(wave)) * 10 ** (noise_db / 20)).astype(np.float32)


def events(wave: np.ndarray, piece: int = 700, **settings: float) -> list[VoiceEvent]:
    detector = VoiceActivity(RATE_HZ, **settings)  # type: ignore[arg-type]
    return [event for start in range(0, len(wave), piece) for event in detector.push(wave[start : start + piece])]


@pytest.mark.parametrize("noise_db", [-120.0, -60.0, -45.0])
def test_a_turn_is_found_where_it_is(noise_db):
    found = events(sound((1.0, -120), (1.0, -20), (1.0, -120), noise_db=noise_db))
    assert [event.kind for event in found] == ["start", "stop"]
    assert found[0].at_s == pytest.approx(1.0, abs=0.05)
    assert found[1].at_s == pytest.approx(2.0, abs=0.05)


def test_the_pieces_do_not_matter():
    wave = sound((0.7, -120), (0.9, -20), (1.2, -120), (0.5, -25), (1.0, -120))
    assert events(wave, 1) == events(wave, 333) == events(wave, len(wave))
    assert [event.kind for event in events(wave)] == ["start", "stop", "start", "stop"]


def test_a_pause_within_a_turn_does_not_end_it_and_a_click_begins_none():
    assert [e.kind for e in events(sound((1.0, -120), (0.5, -20), (0.3, -120), (0.5, -20), (1.0, -120)))] == ["start", "stop"]
    assert events(sound((1.0, -120), (FRAME_S, -10), (1.0, -120))) == []


def test_the_onset_is_told_within_a_tenth_of_a_second():
    wave = sound((1.0, -120), (0.1, -20))
    assert [event.kind for event in events(wave)] == ["start"]


def test_silence_and_steady_noise_are_no_speech():
    assert events(np.zeros(5 * RATE_HZ, np.float32)) == []
    assert events(sound((6.0, -45))[RATE_HZ:]) == []
