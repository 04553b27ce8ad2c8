"""Media of requests and answers: data URIs and base64 in, WAV, FLAC, MP3, Opus and PCM out. Nothing a request names is ever opened as a file."""

from __future__ import annotations

import base64
import binascii
import io
import re
import struct
from typing import Any, Literal

import numpy as np
import soundfile
import soxr
from PIL import Image
from torch import Tensor

from omni.audio import decode_audio
from omni.errors import DataError
from omni.image import decode_image, to_pixels
from omni.server.errors import ApiError
from omni.server.settings import Settings

PCM_RATE_HZ = 24_000  # OpenAI's raw PCM is 16-bit little-endian mono at this rate
AudioFormat = Literal["wav", "flac", "mp3", "opus", "pcm", "pcm16"]
MEDIA_TYPES = {
    "wav": "audio/wav",
    "flac": "audio/flac",
    "mp3": "audio/mpeg",
    "opus": "audio/ogg",
    "pcm": f"audio/pcm;rate={PCM_RATE_HZ}",
    "pcm16": f"audio/pcm;rate={PCM_RATE_HZ}",
}
_DATA_URI = re.compile(r"data:([\w.+-]+/[\w.+-]+)?((?:;[\w=.+-]+)*);base64,", re.ASCII)
MP3_TAGS, MP3_HEAD_BYTES, MP3_FRAME_SAMPLES = (b"Xing", b"Info"), 1 << 16, 1152  # where they are, the length is told and no estimate
UNKNOWN = 0xFFFFFFFF  # the length in the header of a WAV that is still being made


def from_base64(text: str, param: str) -> bytes:
    """The bytes. Raises ApiError for what is not base64."""
    try:
        return base64.b64decode(text.encode("ascii"), validate=True)
    except (UnicodeEncodeError, binascii.Error, ValueError):
        raise ApiError(400, f"{param}: not valid base64", param, "invalid_base64") from None


def to_base64(data: bytes) -> str:
    """As text."""
    return base64.b64encode(data).decode("ascii")


def picture(url: str, param: str, image_size: int, settings: Settings, fetched: bytes | None = None) -> Tensor:
    """Pixels (3, image_size, image_size) of a data URI or of what was `fetched` from a remote address."""
    if match := _DATA_URI.match(url):
        data = from_base64(url[match.end() :], param)
    elif url.startswith("data:"):
        raise ApiError(400, f"{param}: a data URI is written data:image/png;base64,…", param, "invalid_image_url")
    elif fetched is not None:
        data = fetched
    else:
        raise ApiError(
            400,
            f"{param}: this server fetches nothing; send the picture as a data URI (data:image/png;base64,…)",
            param,
            "remote_url_refused",
        )
    try:
        return to_pixels(decode_image(data, param, settings.max_pixels), image_size)
    except DataError as error:
        raise ApiError(400, str(error), param, "invalid_image") from None


def sound(data: bytes, param: str, sample_rate_hz: int, settings: Settings) -> np.ndarray:
    """The waveform (n,) of an audio file. Raises ApiError for one that is unreadable, too long, or shorter than its own head says."""
    if data[:4] == b"RIFF" and len(data) >= 8:
        size = struct.unpack("<I", data[4:8])[0]
        if len(data) < size + 8 and size < UNKNOWN - 0xFFF:  # writers to a pipe leave the largest number, or nearly
            raise ApiError(400, f"{param}: the WAV file is cut off: {len(data)} bytes of {size + 8}", param, "invalid_audio")
    try:
        wave = decode_audio(data, param, sample_rate_hz, settings.max_audio_s)
    except DataError as error:
        raise ApiError(400, str(error), param, "invalid_audio") from None
    if any(tag in data[:MP3_HEAD_BYTES] for tag in MP3_TAGS):
        info = soundfile.info(io.BytesIO(data))
        read_s = len(wave) / sample_rate_hz
        if info.format == "MP3" and info.duration - read_s > 2 * MP3_FRAME_SAMPLES / info.samplerate:  # encoders differ in what they count
            raise ApiError(400, f"{param}: the MP3 file is cut off: {read_s:.3g} s of {info.duration:.3g} s", param, "invalid_audio")
    return wave


def pcm16(samples: np.ndarray) -> bytes:
    """Samples in [-1, 1] as 16-bit little-endian."""
    return (samples.clip(-1.0, 1.0) * 32767.0).round().astype("<i2").tobytes()


class SoundWriter:
    """Turns a waveform that comes in pieces into a file of one format, piece by piece; FLAC at the end, because its head tells what is in it. Raw
    PCM is at 24 kHz, the others at the rate of the sound."""

    def __init__(self, kind: AudioFormat, sample_rate_hz: int) -> None:
        self.kind, self.rate_hz = kind, sample_rate_hz
        self._file: soundfile.SoundFile | None = None
        self._taken = 0
        if kind in ("pcm", "pcm16"):
            self._resample = soxr.ResampleStream(sample_rate_hz, PCM_RATE_HZ, 1)
        elif kind != "wav":
            container, coding = {"flac": ("FLAC", "PCM_16"), "mp3": ("MP3", "MPEG_LAYER_III"), "opus": ("OGG", "OPUS")}[kind]
            self._bytes = io.BytesIO()
            steady = (
                {"compression_level": 0.6, "bitrate_mode": "CONSTANT"} if kind == "mp3" else {}
            )  # 64 kbit/s at 16 kHz; tells a stream's length
            self._file = soundfile.SoundFile(self._bytes, "w", sample_rate_hz, 1, format=container, subtype=coding, **steady)

    def write(self, samples: np.ndarray, *, last: bool = False) -> bytes:
        """The bytes that these samples (n,) complete."""
        if self.kind in ("pcm", "pcm16"):
            return pcm16(self._resample.resample_chunk(samples.astype(np.float32), last))
        if self._file is not None:
            self._file.write(samples)
            if last:
                self._file.close()
            return self._new_bytes() if last or self.kind != "flac" else b""
        header = b"" if self._taken else wav_header(self.rate_hz)
        self._taken += 1
        return header + pcm16(samples)

    def _new_bytes(self) -> bytes:
        """What was written behind what was taken before; a header that the encoder rewrites at the end stays as it was."""
        data = self._bytes.getbuffer()[self._taken :].tobytes()
        self._taken += len(data)
        return data


def wav_header(sample_rate_hz: int, n_bytes: int | None = None) -> bytes:
    """Of 16-bit mono WAV; without `n_bytes` of samples, of one whose length is not known."""
    form = struct.pack("<4sIHHIIHH", b"fmt ", 16, 1, 1, sample_rate_hz, 2 * sample_rate_hz, 2, 16)
    whole, samples = (UNKNOWN, UNKNOWN) if n_bytes is None else (n_bytes + 36, n_bytes)
    return b"RIFF" + struct.pack("<I", whole) + b"WAVE" + form + b"data" + struct.pack("<I", samples)


def encode_sound(samples: np.ndarray, sample_rate_hz: int, kind: AudioFormat) -> bytes:
    """A whole waveform as a file."""
    if kind == "wav":
        data = pcm16(samples)
        return wav_header(sample_rate_hz, len(data)) + data
    return SoundWriter(kind, sample_rate_hz).write(samples, last=True)


def spectrogram(mel: Tensor) -> str:
    """A scaled log-mel (T,mels) as a grey PNG, low tones at the bottom, in a data URI: what the model hears."""
    grey = ((mel.T.flip(0) + 3.0) / 6.0).clamp(0.0, 1.0) * 255.0
    return _png(Image.fromarray(grey.byte().numpy()))


def seen(pixels: Tensor) -> str:
    """Pixels (3,H,W) as a PNG in a data URI: what the model sees."""
    from omni.image import MEAN, STD

    rgb = ((pixels * STD + MEAN).clamp(0.0, 1.0) * 255.0).byte().permute(1, 2, 0)
    return _png(Image.fromarray(rgb.numpy()))


def _png(image: Any) -> str:
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    return f"data:image/png;base64,{to_base64(buffer.getvalue())}"
