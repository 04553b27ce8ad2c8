"""Voices of the pocket world: espeak-ng (GPL-3, run as a library), shipped by the PyPI package espeakng-loader. Over 100x real time."""

from __future__ import annotations

import ctypes
import os
import shutil
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import soxr

from omni.errors import DataError

SAMPLE_RATE_HZ = 16_000
# Constants of espeak-ng's speak_lib.h
SYNCHRONOUS, CHARS_UTF8, DO_NOT_EXIT = 2, 1, 0x8000
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
    """espeak-ng, loaded afresh for every sentence (a millisecond or two).

    The library keeps state from sentence to sentence that nothing resets (pitch flutter, the phase of the wave), and seeds
    its breath noise by the clock: only in a fresh copy with a fixed seed does a sentence sound the same whatever was said before.
    The file is a copy too: what another package has loaded and keeps (piper, Kokoro's phonemes) would not be loaded afresh.
    """

    def __init__(self) -> None:
        try:
            import espeakng_loader
        except ImportError:
            raise DataError(
                "the pocket world's voices need espeak-ng; install it with: pip install -c constraints.txt -e .[train]"
            ) from None
        self._data = espeakng_loader.get_data_path()
        self._folder = tempfile.TemporaryDirectory()
        self._path = shutil.copy(espeakng_loader.get_library_path(), self._folder.name)
        self._lock = threading.Lock()
        self._chunks: list[bytes] = []
        kind = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_int, ctypes.c_void_p)
        self._callback: Callable[..., Any] = kind(self._collect)  # kept: the library holds only its address

    def _collect(self, samples: int | None, count: int, events: int | None) -> int:
        if samples and count:
            self._chunks.append(ctypes.string_at(samples, 2 * count))
        return 0

    @contextmanager
    def _fresh(self) -> Iterator[tuple[ctypes.CDLL, int]]:
        """The library and its sample rate in hertz."""
        try:
            library = ctypes.CDLL(self._path)
        except OSError as error:
            raise DataError(f"espeak-ng cannot be loaded ({error}); reinstall the package espeakng-loader") from None
        try:
            rate_hz = library.espeak_Initialize(SYNCHRONOUS, 0, self._data.encode(), DO_NOT_EXIT)
            if rate_hz <= 0:
                raise DataError(f"espeak-ng did not start with the data in {self._data}; reinstall the package espeakng-loader")
            library.espeak_SetSynthCallback(self._callback)
            library.espeak_ng_SetRandSeed(ctypes.c_long(1))
            yield library, rate_hz
            library.espeak_Terminate()
        finally:
            if os.name == "posix":
                ctypes.CDLL(None).dlclose(ctypes.c_void_p(library._handle))

    def speak(self, text: str, voice: Voice) -> np.ndarray:
        data = text.encode()
        with self._lock, self._fresh() as (library, rate_hz):
            if library.espeak_SetVoiceByName(voice.espeak.encode()) != 0:
                raise DataError(f"espeak-ng has no voice {voice.espeak!r}")
            library.espeak_SetParameter(PARAMETER_RATE, voice.rate, 0)
            library.espeak_SetParameter(PARAMETER_PITCH, voice.pitch, 0)
            self._chunks.clear()
            library.espeak_Synth(data, len(data) + 1, 0, 0, 0, CHARS_UTF8, None, None)
            samples = np.frombuffer(b"".join(self._chunks), dtype=np.int16).astype(np.float32) / 32768.0
        return soxr.resample(samples, rate_hz, SAMPLE_RATE_HZ)


@cache
def _synthesizer() -> _Synthesizer:
    return _Synthesizer()


def speak(text: str, voice: Voice) -> np.ndarray:
    """The waveform (n,) at 16 kHz, trimmed. Raises DataError when the synthesizer is missing, lacks the voice, or says nothing."""
    wave = _synthesizer().speak(text, voice)
    loud = np.flatnonzero(np.abs(wave) > SILENCE_AMPLITUDE)
    if not len(loud):
        raise DataError(f"espeak-ng said nothing for {text!r}")
    start = max(0, loud[0] - int(LEAD_S * SAMPLE_RATE_HZ))
    return wave[start : loud[-1] + int(TAIL_S * SAMPLE_RATE_HZ)]
