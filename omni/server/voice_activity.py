"""When somebody speaks: the energy of frames of 20 ms against the quietest that was heard lately.

Speech begins with three loud frames in a row (60 ms: a click has fewer) and ends with a time of silence."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import Literal

import numpy as np

FRAME_S = 0.02
ONSET_FRAMES = 3
FLOOR_FRAMES = 150  # three seconds, in which everybody breathes
QUIETEST_DB, LOUDEST_FLOOR_DB = -60.0, -35.0  # of full scale: below one nothing is speech, above the other no floor is believed


@dataclass(frozen=True)
class VoiceEvent:
    """Speech began or ended at `at_s`, seconds of sound from the beginning; an end is told `silence_s` later."""

    kind: Literal["start", "stop"]
    at_s: float


class VoiceActivity:
    """Fed with sound as it comes. `threshold` 0 to 1: how far above the background speech must be, 6 to 18 dB."""

    def __init__(self, sample_rate_hz: int, *, threshold: float = 0.5, silence_s: float = 0.5) -> None:
        self.frame_samples = round(sample_rate_hz * FRAME_S)
        self.above_db, self.silence_frames = 6.0 + 12.0 * threshold, max(1, round(silence_s / FRAME_S))
        self.speaking = False
        self._rest = np.zeros(0, np.float32)
        self._n_frames = 0
        self._run = 0  # loud frames in a row before speech, quiet ones within it
        self._levels: deque[float] = deque(maxlen=FLOOR_FRAMES)

    def push(self, samples: np.ndarray) -> list[VoiceEvent]:
        """More sound (n,) float32; what happened in it."""
        samples = np.concatenate((self._rest, samples))
        n = len(samples) // self.frame_samples
        frames = samples[: n * self.frame_samples].reshape(n, self.frame_samples)
        self._rest = samples[n * self.frame_samples :]
        power = np.square(frames - frames.mean(axis=1, keepdims=True)).mean(axis=1)
        return [event for level in 10.0 * np.log10(power + 1e-10) if (event := self._frame(float(level))) is not None]

    def _frame(self, level_db: float) -> VoiceEvent | None:
        self._levels.append(level_db)
        self._n_frames += 1
        floor = min(max(min(self._levels), QUIETEST_DB - self.above_db), LOUDEST_FLOOR_DB)
        loud = level_db > max(floor + self.above_db, QUIETEST_DB)
        self._run = self._run + 1 if loud != self.speaking else 0
        if not self.speaking and self._run == ONSET_FRAMES:
            self.speaking, self._run = True, 0
            return VoiceEvent("start", (self._n_frames - ONSET_FRAMES) * FRAME_S)
        if self.speaking and self._run == self.silence_frames:
            self.speaking, self._run = False, 0
            return VoiceEvent("stop", (self._n_frames - self.silence_frames) * FRAME_S)
        return None
