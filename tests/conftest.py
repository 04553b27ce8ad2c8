"""What tests of several folders share: one small pocket world, and runs of the nano stages on it."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from omni.config import RunConfig, parse
from omni.data.worlds.pocket import generate_pocket
from omni.training.trainer import train

torch.set_num_threads(1)  # two test processes share two cores
os.environ.setdefault("OMP_NUM_THREADS", "1")


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
