"""What tests of several folders share: one small pocket world, and runs of the nano stages on it."""

from __future__ import annotations

import gzip
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, settings

from omni.config import RunConfig, parse
from omni.data import release
from omni.data.worlds.pocket import generate_pocket
from omni.speech_tokens import ScaleLayout
from omni.training.trainer import train

torch.set_num_threads(1)  # two test processes share two cores
os.environ.setdefault("OMP_NUM_THREADS", "1")
# the same examples every time, however slow the machine is
settings.register_profile("tests", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("tests")


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pocket world of two dozen scenes and clips."""
    folder = tmp_path_factory.mktemp("world")
    generate_pocket(folder, "test", workers=1)
    return folder


@pytest.fixture(scope="session")
def nano_run(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., RunConfig]:
    """Makes the RunConfig of a nano stage on the world's manifests."""
    root = tmp_path_factory.mktemp("runs")

    def make(stage: str, *names: str, init_from: tuple[str, ...] = (), out: str | None = None, **settings: Any) -> RunConfig:
        raw = {
            "stage": stage,
            "preset": "nano",
            "model": {"talker": {"voices": ["ada"]}, **settings.pop("model", {})},
            "init_from": list(init_from),
            "data": {"train": [str(world / f"{n}.jsonl") for n in names], "validation": [str(world / f"{n}.heldout.jsonl") for n in names]},
            "train": {"steps": 20, "batch_size": 8, "micro_batch_size": 8, "warmup_steps": 2, "precision": "float32", **settings},
            "out_dir": out or str(root / stage),
        }
        return parse(RunConfig, raw, "test")

    return make


@pytest.fixture(scope="session")
def trained(nano_run: Callable[..., RunConfig]) -> Callable[[str], str]:
    """The folder of a stage trained for a moment, made when first asked for."""
    from omni.stages import STAGES

    done: dict[str, str] = {}
    wiring = {
        "text": (("text", "text_chat"), ()),
        "audio": (("speech",), ()),
        "vision": (("captions",), ("text",)),
        "codec": (("voice",), ()),
        "vocoder": (("voice",), ()),
        "sft": (("conversations",), ("text", "audio", "vision")),
        "talker": (("voice",), ("text", "codec")),
    }

    def folder(stage: str) -> str:
        if stage not in done:
            names, needs = wiring[stage]
            run = nano_run(stage, *names, init_from=tuple(folder(n) for n in needs), learning_rate=2e-3)
            train(STAGES[stage](run))
            done[stage] = run.out_dir
        return done[stage]

    return folder


def _write_rows(path: Path, rows: list[dict]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    if path.suffix == ".gz":
        with gzip.open(path, "wt") as file:
            file.write(lines)
    else:
        path.write_text(lines)


def _said(*turns: str) -> dict:
    return {"messages": [{"role": ("user", "assistant")[i % 2], "content": turn} for i, turn in enumerate(turns)]}


@pytest.fixture
def write_rows() -> Callable[[Path, list[dict]], None]:
    """Writes a JSONL file, gzipped if its name says so."""
    return _write_rows


@pytest.fixture
def release_data(tmp_path) -> Path:
    """A data folder of `muomni data get` in small: text and the rows of speech, without sound."""
    _write_rows(
        tmp_path / "text/dialogues.train.jsonl.gz", [_said(f"I want a table for {n} people.", "Which city is it?") for n in "abcdef"]
    )
    _write_rows(tmp_path / "text/dialogues.dev.jsonl.gz", [_said("Only the dev file says this sentence.", "Yes it does, indeed.")])
    _write_rows(
        tmp_path / "text/stories.jsonl", [{"title": f"T{i}", "text": f"Story number {i} is short.\nIt ends here. ##"} for i in range(80)]
    )
    for novel in ("Doyle_Lost_1912", release.HELD_OUT_NOVEL):
        path = tmp_path / f"text/novels/{novel}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("\n\n".join(f"A line of {novel} goes\nover two rows, part {i}." for i in range(300)))
    for reader in release.READERS:
        texts = [
            f"The {reader} reader says a sentence about {word}."
            for word in ["tea", "sea", "bees", "trees", "keys", "peas", "knees", "fleas"]
        ]
        texts += ["Only the dev file says this sentence."] if reader == "heart" else []
        rows = [
            {"audio": f"{reader}/{i}.flac", "text": t, "speaker": reader, "sentence_id": str(i), "duration_s": 1.0}
            for i, t in enumerate(texts)
        ]
        _write_rows(tmp_path / f"speech/{reader}.jsonl", rows * 2)  # two takes
    return tmp_path


SNACS: dict[str, dict[str, Any]] = {  # scales, rates and attention of the published models, little else
    "24khz": {"sampling_rate": 24_000, "vq_strides": [4, 2, 1], "attn_window_size": None, "encoder_dim": 4},
    "32khz": {"sampling_rate": 32_000, "vq_strides": [8, 4, 2, 1], "attn_window_size": 32, "encoder_dim": 16},
    "44khz": {"sampling_rate": 44_100, "vq_strides": [8, 4, 2, 1], "attn_window_size": 16, "encoder_dim": 16},  # heads are 64 wide
}


@pytest.fixture
def random_snac() -> Callable[[Path, str], Path]:
    """Makes a SNAC of random weights in a folder, as the hub has them."""
    snac = pytest.importorskip("snac")

    def make(folder: Path, kind: str) -> Path:
        sizes = {"encoder_rates": [2, 4], "decoder_dim": 64, "decoder_rates": [4, 2], "codebook_size": 48, "codebook_dim": 4}
        torch.manual_seed(0)
        (folder / "config.json").write_text(json.dumps(SNACS[kind] | sizes))
        torch.save(snac.SNAC(**SNACS[kind], **sizes).state_dict(), folder / "pytorch_model.bin")
        return folder

    return make


class Letters:
    """A text tokenizer of ten letters and the space."""

    vocab_size = 11

    def encode(self, text: str) -> list[int]:
        return ["abcdefghij ".index(letter) for letter in text.lower() if letter in "abcdefghij "]

    def decode(self, ids: list[int]) -> str:
        return "".join("abcdefghij "[i] for i in ids)


class Beeps:
    """An audio tokenizer: two codes for a frame of ten samples, of 0 to 5, which all have the value of the first."""

    layout, sample_rate_hz, samples_per_frame = ScaleLayout(6, (1, 1)), 100, 10

    def encode_audio(self, audio: Any) -> list[int]:
        values = [int(x) for x in np.asarray(audio)[::10]]
        return self.layout.to_ids([values, [5 - value for value in values]])

    def decode_audio(self, tokens: Any) -> np.ndarray:
        return np.repeat(np.array(self.layout.to_codes(tokens)[0], dtype=np.float32), 10)


@pytest.fixture
def letters() -> Letters:
    """A tokenizer of text whose ids can be told by hand."""
    return Letters()


@pytest.fixture
def beeps() -> Beeps:
    """A tokenizer of sound whose ids can be told by hand."""
    return Beeps()


@pytest.fixture
def beeped() -> Callable[[str], np.ndarray]:
    """A text as sound: every letter a frame, whose value is the letter's id modulo 6."""
    return lambda text: np.repeat(np.array([i % 6 for i in Letters().encode(text)], dtype=np.float32), 10)
