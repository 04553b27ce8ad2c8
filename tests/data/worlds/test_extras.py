"""What stage E needs beside the world: statements that are true as often as false, pictures of nothing, sound of nobody."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile
from PIL import Image

from omni.data.worlds import extras
from omni.data.worlds.extras import make_extras


def rows(manifest: Path) -> list[dict]:
    return [json.loads(line) for line in manifest.read_text().splitlines()]


@pytest.fixture
def made(tmp_path, monkeypatch) -> dict[str, Path]:
    monkeypatch.setattr(extras, "SIZES", {"statements": 30, "blank": 12, "silence": 12})
    return make_extras(tmp_path / "extras")


def test_statements_are_true_and_false_of_pictures_like_those_of_nlvr(made):
    found = rows(made["statements"])
    assert {row["label"] for row in found} == {True, False} and len({row["sentence"] for row in found}) > 20
    assert all(Image.open(made["statements"].parent / row["image"]).size == (400, 100) for row in found)


def test_blank_pictures_show_no_colour_of_a_thing_on_their_ground(made):
    for row in rows(made["blank"]):
        pixels = np.asarray(Image.open(made["blank"].parent / row["image"]).convert("RGB")).reshape(-1, 3).astype(int)
        colourful = (pixels.max(1) - pixels.min(1) > 100).mean()
        assert colourful in (0.0, 1.0)  # nothing stands out: clutter is grey, and a single colour is everywhere


def test_nobody_speaks_in_silence(made):
    for row in rows(made["silence"]):
        wave, rate = soundfile.read(made["silence"].parent / row["audio"])
        assert rate == 16_000 and 0.5 <= len(wave) / rate <= 4.0 and np.sqrt((wave**2).mean()) < 0.05


def test_a_second_call_makes_nothing_and_a_fresh_one_the_same(made, tmp_path):
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "extras").rglob("*")}
    make_extras(tmp_path / "extras")
    assert before == {path: path.stat().st_mtime_ns for path in (tmp_path / "extras").rglob("*")}
    again = make_extras(tmp_path / "again")
    assert all(again[name].read_text() == made[name].read_text() for name in made)
    assert (tmp_path / "again/blank/00003.png").read_bytes() == (tmp_path / "extras/blank/00003.png").read_bytes()
