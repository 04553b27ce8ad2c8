"""What stage E needs beside the pocket world, made on the spot: statements about look-alikes of NLVR's pictures, pictures without anything in
them, and sound without anybody speaking.

    statements.jsonl {"image", "sentence", "label"}    blank.jsonl {"image"}    silence.jsonl {"audio"}    statements/  blank/  silence/

Everything follows from the sizes in this file. A manifest is written last, so that a second call makes only what is missing."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import soundfile
from PIL import Image

from omni.data.worlds import nlvr
from omni.data.worlds.scenes import COLOURS, SIZE, Scene, render
from omni.data.worlds.speech import SAMPLE_RATE_HZ

Row = dict[str, Any]

SIZES = {"statements": 10_000, "blank": 1_000, "silence": 400}


def make_extras(folder: Path) -> dict[str, Path]:
    """The manifests by name, made in `folder` where they are not there."""
    makers: dict[str, Callable[[Path, Random], Row]] = {"statements": _statement, "blank": _blank, "silence": _silence}
    manifests = {name: folder / f"{name}.jsonl" for name in SIZES}
    for name, manifest in manifests.items():
        if not manifest.exists():
            (folder / name).mkdir(parents=True, exist_ok=True)
            part = manifest.with_suffix(".part")
            rows = _rows(makers[name], folder / name, SIZES[name])
            part.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
            part.replace(manifest)
    return manifests


def _rows(make: Callable[[Path, Random], Row], folder: Path, n: int) -> Iterator[Row]:
    for i in range(n):
        yield make(folder / f"{i:05d}", Random(f"{folder.name} {i}"))


def _statement(stem: Path, rng: Random) -> Row:
    boxes, sentence, label = nlvr.example(rng)
    return {"image": _picture(nlvr.render(boxes), stem), "sentence": sentence, "label": label}


def _blank(stem: Path, rng: Random) -> Row:
    """The ground of a scene with its clutter, or one colour."""
    if rng.random() < 0.7:
        return {"image": _picture(render(Scene((), rng.randrange(2**31))), stem)}
    paint = rng.choice([*COLOURS.values(), (rng.randrange(256),) * 3])
    return {"image": _picture(Image.new("RGB", (SIZE, rng.choice((SIZE, SIZE // 2))), paint), stem)}


def _picture(image: Image.Image, stem: Path) -> str:
    image.save(stem.with_suffix(".png"))
    return f"{stem.parent.name}/{stem.name}.png"


def _silence(stem: Path, rng: Random) -> Row:
    """Half a second to four of nothing at all, faint noise, or hum."""
    n = int(rng.uniform(0.5, 4.0) * SAMPLE_RATE_HZ)
    loudness = rng.choice((0.0, 10 ** rng.uniform(-4, -1.5)))
    noise = np.random.default_rng(rng.randrange(2**31)).standard_normal(n)
    hum = np.sin(2 * np.pi * rng.choice((50, 60)) * np.arange(n) / SAMPLE_RATE_HZ)
    wave = loudness * (noise if rng.random() < 0.7 else hum)
    soundfile.write(stem.with_suffix(".flac"), wave.clip(-1, 1), SAMPLE_RATE_HZ, subtype="PCM_16")
    return {"audio": f"{stem.parent.name}/{stem.name}.flac"}
