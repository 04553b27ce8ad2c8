"""Sound in and out: files, resampling, and the one log-mel front end that audio encoder, codec and vocoder share.

B batch  n samples  T mel frames of 10 ms"""

from __future__ import annotations

import io
import os
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import soundfile
import soxr
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from omni.config import AudioConfig
from omni.errors import ConfigError, DataError

LOG_FLOOR = 1e-5
BLOCK = 1 << 20  # samples that are decoded at once
LOSSLESS, LOSSY = ("WAV", "FLAC"), ("OGG", "MP3")  # formats that are written
UNKNOWN_LENGTH = 1 << 62  # a stream whose header was written before its end was known claims more
MAX_CHANNELS, MAX_RATE_HZ = 8, 192_000  # of a sound whose length is limited
# Mean and standard deviation of ln(mel) over read speech (natural and synthetic): one fixed scaling, so that loudness is kept.
LOG_MEAN, LOG_STD = -5.7, 2.1


def load_audio(path: str | Path, sample_rate_hz: int = 16_000) -> np.ndarray:
    """The mono float32 waveform (n,) of an audio file, always at `sample_rate_hz`. Raises DataError for a missing, unreadable, empty or
    non-finite file."""
    path = Path(path)
    try:
        if not path.is_file():
            raise DataError(f"{path}: no such audio file")
        data = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from None
    return decode_audio(data, str(path), sample_rate_hz)


def as_waveform(samples: Any) -> Tensor:
    """An array or tensor (n,) or (1,n) of samples as float32 (n,) on the CPU; signed integers are scaled by their range, as in a WAV. Raises DataError
    if it is none, empty or not finite."""
    try:
        wave = torch.as_tensor(np.ascontiguousarray(samples) if isinstance(samples, np.ndarray) else samples).cpu()
    except (TypeError, ValueError, RuntimeError):
        raise DataError(f"a waveform is an array of samples, found {samples!r:.80}") from None
    wave = wave[0] if wave.dim() == 2 and len(wave) == 1 else wave
    if wave.dim() != 1 or not len(wave) or not wave.is_signed() or wave.is_complex():
        raise DataError(f"a waveform is one row of samples, found {wave.dtype} of shape {tuple(wave.shape)}")
    wave = wave.float() if wave.is_floating_point() else wave.float() / -torch.iinfo(wave.dtype).min
    if not wave.isfinite().all():
        raise DataError("the waveform has samples that are not finite numbers")
    return wave


def resampled(waveform: np.ndarray, rate_hz: int, to_hz: int) -> np.ndarray:
    """(n,) → float32 (m,) of the same sound at `to_hz`."""
    return waveform if rate_hz == to_hz else soxr.resample(waveform, rate_hz, to_hz).astype(np.float32)


def decode_audio(data: bytes, name: str, sample_rate_hz: int = 16_000, max_s: float | None = None) -> np.ndarray:
    """Like `load_audio`, from the bytes of a file; `name` is used in errors. A sound of more than `max_s` seconds raises DataError before it
    is decoded; whatever its header says, no more than that is."""
    blocks: list[np.ndarray] = []
    try:
        with soundfile.SoundFile(io.BytesIO(data)) as file:
            rate, n = file.samplerate, 0
            most = float("inf") if max_s is None else max_s * rate
            refused = max_s is not None and (most < file.frames < UNKNOWN_LENGTH or rate > MAX_RATE_HZ or file.channels > MAX_CHANNELS)
            while not refused and len(block := file.read(BLOCK, dtype="float32", always_2d=True)):
                blocks.append(block.mean(axis=1))
                n += len(block)
                refused = n > most
            if refused:
                limit = f"{max_s:g} s, {MAX_CHANNELS} channels and {MAX_RATE_HZ} Hz"
                raise DataError(
                    f"{name}: {max(file.frames, n) / rate:.3g} s of {file.channels} channels at {rate} Hz exceed the limit of {limit}"
                )
    except (soundfile.SoundFileError, TypeError) as error:
        reason = getattr(error, "error_string", error)  # without the address of our buffer
        raise DataError(f"{name}: not a readable audio file ({reason}); use WAV, FLAC, Ogg or MP3") from None
    wave = np.concatenate(blocks or [np.zeros(0, np.float32)])
    if not len(wave):
        raise DataError(f"{name}: the audio is empty (0 samples)")
    if not np.isfinite(wave).all():
        raise DataError(f"{name}: the audio has samples that are not finite numbers")
    return resampled(wave, rate, sample_rate_hz)


def check_target(path: Path) -> None:
    """Raises DataError if no sound can be written there, which is better known before it is made."""
    if not path.name or path.is_dir():
        raise DataError(f"{path}: is a folder; name a file")
    if path.suffix[1:].upper() not in (*LOSSLESS, *LOSSY):
        raise DataError(f"{path}: cannot write audio as {path.suffix!r}; use .wav or .flac")
    if not path.parent.is_dir():
        raise DataError(f"{path}: the folder {path.parent} does not exist")


def save_audio(target: str | Path | BinaryIO, waveform: np.ndarray | Tensor, sample_rate_hz: int, *, format: str | None = None) -> None:
    """Write a waveform (n,), as 16-bit audio where the format is lossless; a path is replaced whole or not at all, in the format of its ending,
    a stream is written in `format`."""
    samples = np.asarray(waveform, dtype=np.float32)
    if not isinstance(target, (str, Path)):
        soundfile.write(target, samples, sample_rate_hz, format=format or "WAV", subtype="PCM_16")
        return
    path = Path(target)
    check_target(path)
    kind = path.suffix[1:].upper()
    part = path.with_name(f".{path.name}.tmp-{os.getpid()}")
    try:
        soundfile.write(part, samples, sample_rate_hz, format=kind, subtype="PCM_16" if kind in LOSSLESS else None)
        os.replace(part, path)
    except (OSError, soundfile.SoundFileError) as error:
        raise DataError(f"{path}: cannot be written: {error}") from None
    finally:
        with suppress(OSError):
            part.unlink()


def hz_to_mel(hz: np.ndarray, scale: str) -> np.ndarray:
    """Slaney (Auditory Toolbox 1998: linear below 1 kHz, logarithmic above) or HTK (2595 · log10(1 + f/700))."""
    if scale == "htk":
        return 2595.0 * np.log10(1.0 + hz / 700.0)
    return np.where(hz < 1000.0, hz * 3.0 / 200.0, 15.0 + 27.0 * np.log(np.maximum(hz, 1000.0) / 1000.0) / np.log(6.4))


def mel_to_hz(mel: np.ndarray, scale: str) -> np.ndarray:
    """The inverse of `hz_to_mel`."""
    if scale == "htk":
        return 700.0 * (10.0 ** (mel / 2595.0) - 1.0)
    return np.where(mel < 15.0, mel * 200.0 / 3.0, 1000.0 * np.exp((np.maximum(mel, 15.0) - 15.0) * np.log(6.4) / 27.0))


def mel_filters(config: AudioConfig) -> Tensor:
    """Triangular filters of unit area, (n_fft/2+1, n_mels). Raises ConfigError if one is so narrow that no FFT bin falls into it."""
    low, high = hz_to_mel(np.array([config.f_min_hz, config.f_max_hz]), config.filter_bank)
    edges = mel_to_hz(np.linspace(low, high, config.n_mels + 2), config.filter_bank)
    bins = np.linspace(0.0, config.sample_rate_hz / 2, config.n_fft // 2 + 1)[:, None]
    rising = (bins - edges[:-2]) / (edges[1:-1] - edges[:-2])
    falling = (edges[2:] - bins) / (edges[2:] - edges[1:-1])
    filters = np.clip(np.minimum(rising, falling), 0.0, None) * (2.0 / (edges[2:] - edges[:-2]))
    empty = int((filters.sum(0) == 0).sum())
    if empty:
        raise ConfigError(
            f"audio: {empty} of {config.n_mels} mel filters hold no bin of an FFT of {config.n_fft}; use a longer n_fft or fewer n_mels"
        )
    return torch.from_numpy(filters).float()


class LogMel(nn.Module):
    """Waveforms (B,n) → scaled log-mel (B, ceil(n/hop), n_mels): (ln(max(mel, 1e-5)) + 5.7) / 2.1.

    Frame t is centred on sample t·hop; what lies outside the clip is silence. Always float32.
    """

    window: Tensor
    filters: Tensor

    def __init__(self, config: AudioConfig) -> None:
        super().__init__()
        self.config = config
        self.register_buffer("window", torch.hann_window(config.window_samples), persistent=False)
        self.register_buffer("filters", mel_filters(config), persistent=False)

    def n_frames(self, n_samples: int) -> int:
        """Mel frames of a clip."""
        return -(-n_samples // self.config.hop_samples)

    @torch.no_grad()
    def forward(self, waveform: Tensor) -> Tensor:
        """(n,) or (B,n) → (T,mels) or (B,T,mels)."""
        frames = self.n_frames(waveform.shape[-1])
        with torch.autocast(waveform.device.type, enabled=False):
            return scale_mel(self.stft(waveform.float())[..., :frames, :].abs() @ self.filters)

    def stft(self, waveform: Tensor) -> Tensor:
        """(…,n) → complex (…, frames, n_fft/2+1), at least ceil(n/hop) frames."""
        c = self.config
        pad = (-waveform.shape[-1]) % c.hop_samples
        waveform = F.pad(waveform, (0, pad))
        spectrum = torch.stft(
            waveform, c.n_fft, c.hop_samples, c.window_samples, self.window, center=True, pad_mode="constant", return_complex=True
        )
        return spectrum.transpose(-1, -2)


def scale_mel(mel: Tensor) -> Tensor:
    """Magnitude mel → the fixed log scaling."""
    return (mel.clamp(min=LOG_FLOOR).log() - LOG_MEAN) / LOG_STD


def unscale_mel(scaled: Tensor) -> Tensor:
    """The fixed log scaling → magnitude mel."""
    return (scaled * LOG_STD + LOG_MEAN).exp()


SILENCE = (float(np.log(LOG_FLOOR)) - LOG_MEAN) / LOG_STD  # the scaled log-mel of digital silence
