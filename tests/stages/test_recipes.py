"""The pocket recipe goes from nothing to a model that answers, and a second call continues instead of beginning again."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from omni import Omni
from omni.cli.app import main
from omni.config import RunConfig
from omni.data.manifests import open_rows
from omni.data.worlds import pocket
from omni.errors import ConfigError, DataError
from omni.evaluation.pocket import evaluate_world
from omni.stages import recipes
from omni.training.trainer import TrainResult

pytestmark = pytest.mark.slow


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """A few updates a stage on two dozen scenes."""
    training = {stage: {"steps": 3, "batch_size": 8, "micro_batch_size": 8, "learning_rate": 1e-3} for stage in recipes.POCKET_STAGES}
    monkeypatch.setitem(recipes.POCKET_TRAINING, "nano", training)
    monkeypatch.setitem(pocket.SIZES, "nano", pocket.SIZES["test"])


def test_from_nothing_to_a_model_that_answers(small: None, tmp_path: Path) -> None:
    rows = recipes.run_pocket("nano", tmp_path)
    assert [row.stage for row in rows] == ["data", *recipes.POCKET_STAGES]
    assert all(row.seconds > 0 for row in rows)
    omni = Omni.from_pretrained(tmp_path)
    picture = next((tmp_path / "data/images").glob("*.png"))
    clip = next((tmp_path / "data/speech").glob("*.flac"))
    reply = omni.ask("What is this?", image=picture, audio=clip)
    assert isinstance(reply.text, str)
    assert isinstance(omni.transcribe(clip), str)


def test_a_second_call_trains_nothing_again(small: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    original = recipes.train_on_all

    def interrupted(run: RunConfig) -> TrainResult:
        calls.append(run.stage)
        if run.stage == "sft" and calls.count("sft") == 1:
            raise KeyboardInterrupt
        return original(run)

    monkeypatch.setattr(recipes, "train_on_all", interrupted)
    with pytest.raises(KeyboardInterrupt):
        recipes.run_pocket("nano", tmp_path)
    recipes.run_pocket("nano", tmp_path)
    assert calls == ["text", "audio", "vision", "sft", "sft", "codec", "vocoder", "talker"]
    weights = (tmp_path / "model.safetensors").read_bytes()
    before = (tmp_path / "recipe.json").read_text()
    recipes.run_pocket("nano", tmp_path)
    assert len(calls) == 8 and (tmp_path / "recipe.json").read_text() == before
    assert (tmp_path / "model.safetensors").read_bytes() == weights


def test_the_talker_says_what_the_shipped_thinker_thinks(small: None, tmp_path: Path) -> None:
    """The Talker learned on the states of the very Thinker that the assembled model has."""
    recipes.run_pocket("nano", tmp_path)
    from omni.checkpoint import load_model

    shipped, tuned = load_model(tmp_path), load_model(tmp_path / "sft")
    for name, tensor in tuned.tensors.items():
        assert torch.equal(shipped.tensors[name], tensor)


def test_what_a_recipe_made_is_measured_and_shown(small: None, tmp_path: Path) -> None:
    recipes.run_pocket("nano", tmp_path)
    found = evaluate_world(Omni.from_pretrained(tmp_path), tmp_path / "data", None, scenes=4, clips=4)
    assert found.scenes["typed"]["items"] == found.scenes["spoken"]["items"] == 4
    assert found.hearing["wer"] > 0.5 and found.speech is None  # three updates teach nothing
    said = [row["text"] for row in open_rows(str(tmp_path / "data/voice.heldout.jsonl"), ("text",))]
    judge = SimpleNamespace(hear=lambda sounds: sorted(set(said))[: len(sounds)])
    found = evaluate_world(Omni.from_pretrained(tmp_path), tmp_path / "data", judge, scenes=1, clips=1, sentences=100)  # type: ignore[arg-type]
    assert found.speech is not None and found.speech["wer"] == 0.0


def test_the_command_shows_minutes_of_everything_and_measures_again_without_training(
    small: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def nobody(name: str, environment: Path | None = None) -> None:
        raise DataError(f"{name} is not in {environment}")

    monkeypatch.setattr("omni.evaluation.judge.find_judge", nobody)
    monkeypatch.setattr("omni.evaluation.pocket.evaluate_world", partial(evaluate_world, scenes=4, clips=4, sentences=2))
    command = ["train", "pocket", "--preset", "nano", "--out", str(tmp_path / "pocket"), "--judge", "elsewhere"]
    assert main([*command, "--json"]) == 0
    out, err = capsys.readouterr()
    found = json.loads(out)
    assert [row["stage"] for row in found["stages"]] == ["data", *recipes.POCKET_STAGES, "measuring"]
    assert found["minutes"] == pytest.approx(sum(row["seconds"] for row in found["stages"]) / 60, abs=0.1)
    assert found["measured"]["scenes"]["typed"]["items"] == 4 and found["measured"]["speech"] is None
    assert "its speech will go unjudged: whisper-base is not in elsewhere" in err
    monkeypatch.setattr(recipes, "train_on_all", lambda run: pytest.fail("trained again"))
    assert main(command) == 0
    shown = capsys.readouterr().out
    assert all(name in shown for name in ("measuring", "all", "unseen scenes", "commonest answer", "word errors of CTC"))


def test_an_unknown_preset_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="nano"):
        recipes.run_pocket("huge", tmp_path)
