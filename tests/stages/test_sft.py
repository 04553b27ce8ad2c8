"""Instruction tuning: conversations side by side are what they are apart."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from omni.checkpoint import load_model
from omni.config import RunConfig
from omni.omni_model import OmniModel
from omni.stages import STAGES
from omni.training.trainer import train


def test_conversations_side_by_side_cost_what_they_cost_apart(nano_run: Callable[..., RunConfig], trained: Callable[[str], str]) -> None:
    run = nano_run("sft", "conversations", init_from=(trained("text"), trained("audio"), trained("vision")))
    scores, totals, sizes = [], [], []
    model: OmniModel | None = None
    for together in (1, 8):
        stage: Any = STAGES["sft"](run.model_copy(update={"data": run.data.model_copy(update={"side_by_side": together})}))
        splits = stage.build_data()
        model = model or stage.build_model().eval()
        examples = [splits.train[i] for i in range(len(splits.train))]
        batches = [splits.collate(examples[at : at + 8]) for at in range(0, len(examples), 8)]
        with torch.no_grad():
            terms = [stage.loss(model, batch, None)["loss"] for batch in batches]
            scores.append(stage.evaluate(model, batches))
        assert [term.count for term in terms] == [stage.counts(batch)["loss"] for batch in batches]
        totals.append((float(sum(term.sum for term in terms)), sum(term.count for term in terms)))
        sizes.append(len(examples))
    assert sizes[1] < sizes[0] == totals[0][1] == totals[1][1]
    assert totals[0][0] == pytest.approx(totals[1][0], rel=1e-4)
    assert scores[0] == pytest.approx(scores[1], rel=1e-4)


def test_clips_are_varied_in_training_alone(nano_run: Callable[..., RunConfig], trained: Callable[[str], str]) -> None:
    run = nano_run("sft", "conversations", init_from=(trained("text"), trained("audio"), trained("vision")))
    stage: Any = STAGES["sft"](run.model_copy(update={"data": run.data.model_copy(update={"vary_speech": True})}))
    splits, model = stage.build_data(), stage.build_model()
    examples = [splits.train[i] for i in range(len(splits.train))]
    heard = splits.collate([example for example in examples if example.clips][:8])
    silent = splits.collate([example for example in examples if not example.clips][:8])
    torch.manual_seed(0)

    def loss(batch: Any) -> float:
        with torch.no_grad():
            return float(stage.loss(model, batch, None)["loss"].sum)

    assert loss(heard) != loss(heard) and loss(silent) == loss(silent)
    model.eval()
    assert loss(heard) == loss(heard)


def test_eyes_that_learned_without_captions_get_their_projector_in_instruction_tuning(
    nano_run: Callable[..., RunConfig], trained: Callable[[str], str], tmp_path: Path
) -> None:
    run = nano_run("vision", "captions", init_from=(trained("text"),), out=str(tmp_path), vision_losses=["contrastive"])
    train(STAGES["vision"](run))
    assert "image_projector" not in load_model(tmp_path).components
    stage: Any = STAGES["sft"](nano_run("sft", "conversations", init_from=(trained("text"), trained("audio"), str(tmp_path))))
    assert "image_projector" in stage.trains and stage.build_model().image_projector is not None
