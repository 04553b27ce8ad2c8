"""Voices of the pocket world: espeak-ng (GPL-3, run as a library), which the PyPI package espeakng-loader ships. About 100 times real time."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import soxr

from omni.errors import DataError

SAMPLE_RATE_HZ = 16_000
RETRIEVE_AUDIO, CHARS_UTF8 = 1, 1
PARAMETER_RATE, PARAMETER_PITCH = 1, 3
SILENCE_AMPLITUDE = 0.01
LEAD_S, TAIL_S = 0.05, 0.1  # kept of the silence around the words


@dataclass(frozen=True)
class Voice:
    """An espeak-ng voice with its rate in words a minute and pitch (0 to 99)."""

    espeak: str
    rate: int = 170
    pitch: int = 50


class _Synthesizer:
    """The library keeps one global state, so there is one of these in a process."""

    def __init__(self) -> None:
        try:
            import espeakng_loader
        except ImportError:
            raise DataError("the pocket world's voices need espeak-ng; install it with: pip install 'muomni[train]'") from None
        self._library = ctypes.CDLL(espeakng_loader.get_library_path())
        self._rate_hz = self._library.espeak_Initialize(RETRIEVE_AUDIO, 0, espeakng_loader.get_data_path().encode(), 0)
        if self._rate_hz <= 0:
            raise DataError("espeak-ng did not start; reinstall the package espeakng-loader")
        self._chunks: list[bytes] = []
        self._voice = ""
        kind = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_int, ctypes.c_void_p)
        self._callback: Callable[..., Any] = kind(self._collect)  # kept: the library holds only its address
        self._library.espeak_SetSynthCallback(self._callback)

    def _collect(self, samples: int | None, count: int, events: int | None) -> int:
        if samples and count:
            self._chunks.append(ctypes.string_at(samples, 2 * count))
        return 0

    def speak(self, text: str, voice: Voice) -> np.ndarray:
        if voice.espeak != self._voice:  # loading one takes longer than a sentence
            if self._library.espeak_SetVoiceByName(voice.espeak.encode()) != 0:
                raise DataError(f"espeak-ng has no voice {voice.espeak!r}")
            self._voice = voice.espeak
        self._library.espeak_SetParameter(PARAMETER_RATE, voice.rate, 0)
        self._library.espeak_SetParameter(PARAMETER_PITCH, voice.pitch, 0)
        self._chunks.clear()
        data = text.encode()
        self._library.espeak_Synth(data, len(data) + 1, 0, 0, 0, CHARS_UTF8, None, None)
        self._library.espeak_Synchronize()
        samples = np.frombuffer(b"".join(self._chunks), dtype=np.int16).astype(np.float32) / 32768.0
        return soxr.resample(samples, self._rate_hz, SAMPLE_RATE_HZ)


@cache
def _synthesizer() -> _Synthesizer:
    return _Synthesizer()


def speak(text: str, voice: Voice) -> np.ndarray:
    """The waveform (n,) at 16 kHz, trimmed. Raises DataError when the synthesizer is missing or says nothing."""
    wave = _synthesizer().speak(text, voice)
    loud = np.flatnonzero(np.abs(wave) > SILENCE_AMPLITUDE)
    if not len(loud):
        raise DataError(f"espeak-ng said nothing for {text!r}")
    start = max(0, loud[0] - int(LEAD_S * SAMPLE_RATE_HZ))
    return wave[start : loud[-1] + int(TAIL_S * SAMPLE_RATE_HZ)]
