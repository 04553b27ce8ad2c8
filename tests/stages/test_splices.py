"""Spliced speech: words are cut where they are said, and joined with their text."""

from __future__ import annotations

from random import Random

import numpy as np
import pytest

from omni.stages.splices import FADE_S, Spelled, join, quietest, splice

RATE_HZ = 16_000


def clip(words: list[str], first: int) -> Spelled:
    """Every word is a tenth of a second of its own level."""
    waveform = np.concatenate([np.full(1600, first + i, np.float32) for i in range(len(words))])
    return Spelled(waveform, words, [1600 * i for i in range(len(words) + 1)])


def test_a_new_sentence_sounds_as_it_reads() -> None:
    clips = [clip(["The", "old", "house,", "I", "said."], 1), clip(["Two", "more", '"words"', "here"], 11)]
    level = {"the": 1, "old": 2, "house": 3, "i": 4, "said": 5, "two": 11, "more": 12, "words": 13, "here": 14}
    fade = int(FADE_S * RATE_HZ)
    for seed in range(50):
        waveform, text = splice(clips, Random(seed), RATE_HZ)
        words = text.rstrip(".").lower().split()
        assert text[0].isupper() and text.endswith(".") and 5 <= len(words) <= 12
        levels = [waveform[int(at)] for at in (np.arange(len(words)) + 0.5) * len(waveform) / len(words)]
        assert levels == [level[word] for word in words]
        assert 1600 * len(words) - fade * len(words) < len(waveform) <= 1600 * len(words)


def test_stretches_fade_into_each_other() -> None:
    joined = join([np.ones(100, np.float32), np.zeros(50, np.float32)], 10)
    assert len(joined) == 140 and (joined[:90] == 1).all() and (joined[100:] == 0).all()
    assert (np.diff(joined[89:101]) <= 0).all()
    np.testing.assert_allclose(join([np.ones(4, np.float32)] * 3, 10), 1.0)


@pytest.mark.parametrize("hole", [1200, 2000, 2700])
def test_cuts_are_where_it_is_quiet(hole: int) -> None:
    waveform = np.ones(4000, np.float32)
    waveform[hole - 100 : hole + 100] = 0
    assert abs(quietest(waveform, 1000, 3000, RATE_HZ) - hole) <= 80
