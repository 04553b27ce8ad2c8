"""Pictures and video of every kind become upright RGB, or a clear error."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from omni import image as pictures
from omni.errors import DataError
from omni.image import load_image, to_pixels, video_frames


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I;16"])
def test_every_mode_becomes_rgb(mode: str, tmp_path: Path) -> None:
    path = tmp_path / ("picture.tif" if mode == "CMYK" else "picture.png")
    Image.new(mode, (20, 10)).save(path)
    picture = load_image(path)
    assert (picture.mode, picture.size) == ("RGB", (20, 10))


def test_what_is_transparent_is_white(tmp_path: Path) -> None:
    Image.new("RGBA", (4, 4), (255, 0, 0, 0)).save(tmp_path / "clear.png")
    assert load_image(tmp_path / "clear.png").getpixel((0, 0)) == (255, 255, 255)


def test_a_turned_photograph_is_upright(tmp_path: Path) -> None:
    picture = Image.new("RGB", (20, 10))
    exif = picture.getexif()
    exif[0x0112] = 6  # turned by a quarter
    picture.save(tmp_path / "turned.jpg", exif=exif)
    assert load_image(tmp_path / "turned.jpg").size == (10, 20)


def test_a_truncated_picture_and_one_of_too_many_pixels_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)).save(data, format="PNG")
    (tmp_path / "half.png").write_bytes(data.getvalue()[:2000])
    with pytest.raises(DataError, match=r"half\.png: not a readable picture"):
        load_image(tmp_path / "half.png")
    (tmp_path / "whole.png").write_bytes(data.getvalue())
    monkeypatch.setattr(pictures, "MAX_PIXELS", 1000)
    with pytest.raises(DataError, match=r"whole\.png: 64x64 pixels exceed"):
        load_image(tmp_path / "whole.png")


@pytest.mark.parametrize("size", [(224, 224), (400, 100), (1, 300)])
def test_pixels_are_square_and_keep_the_whole_picture(size: tuple[int, int]) -> None:
    pixels = to_pixels(Image.new("RGB", size, "white"), 112)
    assert pixels.shape == (3, 112, 112)
    white = int((pixels[0] > 1.9).sum())
    assert white == max(1, round(112 * size[0] / max(size))) * max(1, round(112 * size[1] / max(size)))
    assert torch.isfinite(pixels).all()


def test_a_video_gives_one_frame_a_second(tmp_path: Path) -> None:
    av = pytest.importorskip("av")
    with av.open(str(tmp_path / "film.mp4"), "w") as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.width = stream.height = 32
        for i in range(35):
            frame = av.VideoFrame.from_ndarray(np.full((32, 32, 3), 7 * i, np.uint8), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    frames = video_frames(tmp_path / "film.mp4")
    assert [round(np.asarray(f).mean() / 70) for f in frames] == [0, 1, 2, 3]
