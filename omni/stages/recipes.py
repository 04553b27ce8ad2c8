"""Recipes: stages chained with settings that fit each other, from nothing to one model folder.

`pocket` makes its own data. Its order is A text, B audio, C vision, E instruction tuning, D codec and Talker: the Talker is trained last,
on the states of the Thinker that will ship, so it needs no second adaptation.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from omni.checkpoint import find_checkpoint, load_model, save_model, write_json
from omni.config import RunConfig, parse
from omni.data.worlds.pocket import SIZES, generate_pocket
from omni.errors import ConfigError
from omni.omni_model import COMPONENTS, OmniModel, with_section
from omni.stages.processes import train_on_all

log = logging.getLogger(__name__)
Row = dict[str, Any]

# What each stage of `pocket` reads and starts from. Sizes are in POCKET_TRAINING.
POCKET_STAGES: dict[str, dict[str, Any]] = {
    "text": {"train": ["text", "text_chat"], "init_from": []},
    "audio": {"train": ["speech"], "init_from": [], "mel_masks": 2},
    "vision": {"train": ["captions"], "init_from": ["text"]},
    "sft": {"train": ["conversations"], "init_from": ["text", "audio", "vision"], "freeze": ["audio_encoder"], "side_by_side": 8},
    "codec": {"train": ["voice"], "init_from": []},
    "vocoder": {"train": ["voice"], "init_from": ["codec"], "codec_share": 0.5},
    "talker": {"train": ["voice"], "init_from": ["sft", "codec"]},
}

# A preset leaves out what it does without: nano speaks through Griffin-Lim.
POCKET_TRAINING: dict[str, dict[str, dict[str, Any]]] = {
    "nano": {
        "text": {"steps": 300, "batch_size": 16, "micro_batch_size": 16, "learning_rate": 4e-3},
        "audio": {"steps": 900, "learning_rate": 4e-3},
        "vision": {"steps": 100, "batch_size": 64, "micro_batch_size": 64, "learning_rate": 4e-3},
        "sft": {"steps": 800, "learning_rate": 3e-3},
        "codec": {"steps": 600, "learning_rate": 4e-3},
        "talker": {"steps": 700, "learning_rate": 4e-3},
    },
    # Sized for 90 minutes on two cores with bfloat16 products (about 400 GFLOP/s together).
    "tiny": {
        "text": {"steps": 150, "batch_size": 16, "micro_batch_size": 16, "learning_rate": 2e-3, "optimizer": "muon"},
        "audio": {"steps": 850, "learning_rate": 2e-3, "optimizer": "muon"},
        "vision": {"steps": 5000, "learning_rate": 4e-3, "optimizer": "muon", "vision_losses": ["words"]},
        "sft": {"steps": 3500, "batch_size": 16, "micro_batch_size": 8, "learning_rate": 2e-3, "optimizer": "muon"},
        "codec": {"steps": 800, "learning_rate": 2e-3},
        "vocoder": {"steps": 400, "batch_size": 16, "micro_batch_size": 16, "learning_rate": 2e-3, "adversarial_after": 350},
        "talker": {"steps": 1800, "learning_rate": 2e-3},
    },
}

# What of a preset the recipe changes: the documents' sizes see too little of a picture to count in it, and say too little of a word to be understood.
POCKET_MODELS: dict[str, Row] = {
    "nano": {},
    "tiny": {"vision_encoder": {"image_size": 112, "image_tokens": "grid"}, "codec": {"n_codebooks": 6, "codebook_size": 512}},
}


@dataclass(frozen=True)
class StageSummary:
    """One row of the table that a recipe prints at its end: `data`, then the stages. `seconds` are those of the call that finished it, with
    loading and scoring, or if that was interrupted before, at least those of its updates."""

    stage: str
    seconds: float
    steps: int
    metrics: dict[str, float]


def pocket_runs(preset: str, out_dir: Path, data_dir: Path, seed: int = 0) -> list[RunConfig]:
    """The runs of the pocket recipe in order, each with its own folder under `out_dir`."""
    if preset not in POCKET_TRAINING:
        raise ConfigError(f"recipe pocket has no settings for preset {preset!r}; it has: {', '.join(POCKET_TRAINING)}")
    runs = []
    for stage, training in POCKET_TRAINING[preset].items():
        wiring = POCKET_STAGES[stage]
        options: Row = {name: wiring[name] for name in ("mel_masks", "side_by_side", "codec_share") if name in wiring}
        raw = {
            "stage": stage,
            "preset": preset,
            "model": {"talker": {"voices": SIZES[preset].talker_voices}, **POCKET_MODELS[preset]},
            "init_from": [str(out_dir / name) for name in wiring["init_from"]],
            "data": {
                "train": [str(data_dir / f"{name}.jsonl") for name in wiring["train"]],
                "validation": [str(data_dir / f"{name}.heldout.jsonl") for name in wiring["train"]],
                **options,
            },
            "train": training
            | {"freeze": wiring.get("freeze", [])}
            | {"seed": seed, "warmup_steps": training["steps"] // 20, "evaluate_every": training["steps"], "checkpoint_every": 100},
            "out_dir": str(out_dir / stage),
        }
        runs.append(parse(RunConfig, raw, f"recipe pocket, stage {stage}"))
    return runs


def run_pocket(preset: str, out_dir: Path, *, seed: int = 0, on_event: Callable[[str], None] = log.info) -> list[StageSummary]:
    """Make the pocket world, train every stage and assemble the model in `out_dir`. A second call continues where the first stopped."""
    data_dir, summary_file = out_dir / "data", out_dir / "recipe.json"
    summaries = {row["stage"]: StageSummary(**row) for row in json.loads(summary_file.read_text())} if summary_file.exists() else {}

    def note(row: StageSummary) -> None:
        summaries[row.stage] = row
        write_json(summary_file, [vars(summary) for summary in summaries.values()])

    start = time.monotonic()
    generate_pocket(data_dir, preset, seed=seed, on_progress=on_event)
    if "data" not in summaries:
        note(StageSummary("data", time.monotonic() - start, 0, {}))
    on_event(f"data: {data_dir} ({summaries['data'].seconds:.0f} s)")
    runs = pocket_runs(preset, out_dir, data_dir, seed)
    for run in runs:
        if run.stage in summaries:
            continue
        on_event(f"stage {run.stage}: {run.train.steps} steps")
        start = time.monotonic()
        result = train_on_all(run)
        note(StageSummary(run.stage, max(time.monotonic() - start, result.seconds), result.steps, result.metrics))
    assemble([out_dir / run.stage for run in runs], out_dir)
    return list(summaries.values())


def assemble(
    sources: list[Path],
    out_dir: Path,
    components: Sequence[str] = COMPONENTS,
    *,
    dtype: torch.dtype | None = None,
    extra: Row | None = None,
) -> OmniModel:
    """One self-contained model in `out_dir` from those of `components` that `sources` have; where several have one, the last wins. Raises
    CheckpointError for a folder without a model, ConfigError if no source has a Thinker."""
    saved = [load_model(find_checkpoint(folder)) for folder in sources]
    owner = {name: source for source in saved for name in source.components if name in components}
    if "thinker" not in owner:
        raise ConfigError(f"{', '.join(map(str, sources))}: no Thinker among them")
    config = saved[0].config
    for name, source in owner.items():
        config = with_section(config, name, source.config)
    model = OmniModel(config, tuple(owner))
    for name, source in owner.items():
        model.load_components(source, only=[name])
    tokenizer = owner["thinker"].tokenizer
    assert tokenizer is not None, "a Thinker is always saved with its tokenizer"
    save_model(out_dir, model.tensors(), config, model.components, tokenizer.read_bytes(), dtype=dtype, extra=extra)
    return model
