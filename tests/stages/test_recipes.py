"""The pocket recipe goes from nothing to a model that answers, and a second call continues instead of beginning again."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from omni import Omni
from omni.data.worlds import pocket
from omni.errors import ConfigError
from omni.stages import recipes

pytestmark = pytest.mark.slow


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """A few updates a stage on two dozen scenes."""
    training = {stage: {"steps": 3, "batch_size": 8, "micro_batch_size": 8, "learning_rate": 1e-3} for stage in recipes.POCKET_STAGES}
    monkeypatch.setitem(recipes.POCKET_TRAINING, "nano", training)
    monkeypatch.setitem(pocket.SIZES, "nano", pocket.SIZES["test"])


def test_from_nothing_to_a_model_that_answers(small: None, tmp_path: Path) -> None:
    rows = recipes.run_pocket("nano", tmp_path)
    assert [row.stage for row in rows] == list(recipes.POCKET_STAGES)
    omni = Omni.from_pretrained(tmp_path)
    picture = next((tmp_path / "data/images").glob("*.png"))
    clip = next((tmp_path / "data/speech").glob("*.flac"))
    reply = omni.ask("What is this?", image=picture, audio=clip)
    assert isinstance(reply.text, str)
    assert isinstance(omni.transcribe(clip), str)


def test_a_second_call_trains_nothing_again(small: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    original = recipes.train

    def interrupted(stage):  # type: ignore[no-untyped-def]
        calls.append(stage.name)
        if stage.name == "sft" and calls.count("sft") == 1:
            raise KeyboardInterrupt
        return original(stage)

    monkeypatch.setattr(recipes, "train", interrupted)
    with pytest.raises(KeyboardInterrupt):
        recipes.run_pocket("nano", tmp_path)
    recipes.run_pocket("nano", tmp_path)
    assert calls == ["text", "audio", "vision", "sft", "sft", "codec", "vocoder", "talker"]
    weights = (tmp_path / "model.safetensors").read_bytes()
    recipes.run_pocket("nano", tmp_path)
    assert len(calls) == 8
    assert (tmp_path / "model.safetensors").read_bytes() == weights


def test_the_talker_says_what_the_shipped_thinker_thinks(small: None, tmp_path: Path) -> None:
    """The Talker learned on the states of the very Thinker that the assembled model has."""
    recipes.run_pocket("nano", tmp_path)
    from omni.checkpoint import load_model

    shipped, tuned = load_model(tmp_path), load_model(tmp_path / "sft")
    for name, tensor in tuned.tensors.items():
        assert torch.equal(shipped.tensors[name], tensor)


def test_an_unknown_preset_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="nano"):
        recipes.run_pocket("huge", tmp_path)
