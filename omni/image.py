"""Pictures in: decoding with limits, and the one way to square them for the vision encoder."""

from __future__ import annotations

import io
import struct
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from omni.errors import DataError

MAX_PIXELS = 64_000_000  # more are refused before decoding
FORMATS = ("PNG", "JPEG", "GIF", "WEBP", "BMP", "TIFF", "PPM")  # the others are rare, and one runs a PostScript interpreter
MEAN, STD = 0.5, 0.25


def load_image(path: str | Path) -> Image.Image:
    """The upright RGB picture in a file. Raises DataError for a missing, unreadable, truncated or oversized one."""
    path = Path(path)
    try:
        if not path.is_file():
            raise DataError(f"{path}: no such picture")
        data = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from None
    return decode_image(data, str(path))


def decode_image(data: bytes, name: str, max_pixels: int | None = None) -> Image.Image:
    """Like `load_image`, from the bytes of a file; `name` is used in errors."""
    most = MAX_PIXELS if max_pixels is None else max_pixels
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as picture:
            if picture.width * picture.height > most:
                raise DataError(f"{name}: {picture.width}x{picture.height} pixels exceed the limit of {most:,}; make it smaller")
            return to_rgb(ImageOps.exif_transpose(picture))
    except Image.DecompressionBombError:
        raise DataError(f"{name}: more pixels than the limit of {most:,}; make it smaller") from None
    except (
        UnidentifiedImageError,
        OSError,
        SyntaxError,
        ValueError,
        TypeError,
        LookupError,
        ArithmeticError,
        EOFError,
        struct.error,
    ) as error:
        reason = "of no known format" if isinstance(error, UnidentifiedImageError) else error  # without the address of our buffer
        raise DataError(f"{name}: not a readable picture ({reason}); use PNG, JPEG, GIF or WebP") from None


def to_rgb(picture: Image.Image) -> Image.Image:
    """8-bit RGB; transparency becomes white; 16-bit grey keeps its range."""
    if picture.mode.startswith("I") or picture.mode == "F":
        values = np.asarray(picture, dtype=np.float64)
        scale = 255.0 / 65535.0 if values.max(initial=0) > 255 else 1.0
        return Image.fromarray((values * scale).clip(0, 255).astype(np.uint8)).convert("RGB")
    if "A" in picture.getbands() or "transparency" in picture.info:
        layer = picture.convert("RGBA")
        paper = Image.new("RGBA", layer.size, "white")
        return Image.alpha_composite(paper, layer).convert("RGB")
    return picture.convert("RGB")


def to_pixels(picture: Image.Image, image_size: int) -> Tensor:
    """(3, image_size, image_size), about zero mean and unit variance. The whole picture is kept, its aspect too; the rest is grey."""
    scale = image_size / max(picture.size)
    size = max(1, round(picture.width * scale)), max(1, round(picture.height * scale))
    canvas = Image.new("RGB", (image_size, image_size), (128, 128, 128))
    canvas.paste(picture.resize(size, Image.Resampling.BILINEAR), ((image_size - size[0]) // 2, (image_size - size[1]) // 2))
    pixels = torch.from_numpy(np.asarray(canvas, dtype=np.float32) / 255.0).permute(2, 0, 1)
    return (pixels - MEAN) / STD


def video_frames(path: str | Path, frames_per_s: float = 1.0) -> list[Image.Image]:
    """RGB frames of a video, `frames_per_s` of them a second, the first always. Raises DataError (also when PyAV is not installed)."""
    path = Path(path)
    if not path.is_file():
        raise DataError(f"{path}: no such video")
    try:
        import av
    except ImportError:
        raise DataError(f"{path}: reading video needs PyAV; install it with: pip install -c constraints.txt -e .[video]") from None
    frames: list[Image.Image] = []
    try:
        with av.open(str(path)) as container:
            if not container.streams.video:
                raise DataError(f"{path}: holds no video stream")
            for frame in container.decode(video=0):
                if frame.time is None or frame.time * frames_per_s >= len(frames):
                    frames.append(frame.to_image())
    except av.FFmpegError as error:
        raise DataError(f"{path}: not a readable video ({error})") from None
    if not frames:
        raise DataError(f"{path}: no frame could be decoded")
    return frames
