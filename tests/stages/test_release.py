"""The recipe release: its manifests hold the training side alone, and what it has trained is published as one model."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import soundfile
import torch
from PIL import Image

from omni.checkpoint import load_model
from omni.config import ModelConfig, preset
from omni.data import release as data_release
from omni.data.split import normalised
from omni.data.worlds.pocket import World
from omni.errors import ConfigError, DataError
from omni.stages import release


@pytest.fixture
def data(release_data, write_rows) -> Path:
    """With sound and drawings."""
    for reader in data_release.READERS:
        for i in range(9):
            path = release_data / f"speech/{reader}/{i}.flac"
            path.parent.mkdir(exist_ok=True)
            soundfile.write(path, torch.rand(16_000).numpy() - 0.5, 16_000)
    drawings = []
    for i in range(12):
        drawings.append({"image": f"emoji/{i}.png", "caption": f"Thing {i}.", "name": f"thing {i}", "set": "google"})
        path = release_data / f"images/emoji/{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8), (20 * i, 0, 0)).save(path)
    write_rows(release_data / "images/emoji.jsonl", drawings)
    write_rows(release_data / "images/clipart.jsonl", [])
    write_rows(release_data / "images/nlvr.dev.jsonl.gz", [])
    return release_data


@pytest.fixture
def work(tmp_path, world, data, monkeypatch) -> Path:
    """Everything at nano size, with the small pocket world, and two synthetic readers who also say a held-out sentence."""
    small = {name: stage for name, stage in release.STAGES.items()}
    for name, stage in small.items():
        settings = {**stage.train, "steps": 2, "batch_size": 4, "micro_batch_size": 2, "warmup_steps": 0}
        small[name] = release.ReleaseStage(stage.stage, stage.rows, settings, stage.init_from, stage.world, stage.data)
    monkeypatch.setattr(release, "STAGES", small)
    monkeypatch.setattr(release, "PRESET", "nano")
    monkeypatch.setattr(release, "generate_pocket", lambda folder, size: World(world, "test", 0))
    folder = tmp_path / "work"
    for engine in ("espeak", "flite", "piper", "teacher", "cast"):
        path = folder / f"voices/{engine}.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        texts = ["A table for two, please.", "Only the dev file says this sentence."] * 4
        path.write_text("".join(json.dumps({"audio": f"{engine}.flac", "text": t, "speaker": engine}) + "\n" for t in texts))
        soundfile.write(path.with_suffix(".flac"), torch.rand(24_000).numpy() - 0.5, 16_000)
    return folder


def rows_of(run) -> list[dict]:
    return [json.loads(line) for name in (*run.data.train, *run.data.validation) for line in Path(name).read_text().splitlines()]


@pytest.mark.parametrize("step", ["audio", "audio-natural", "audio-more", "codec", "speech-lm"])
def test_no_held_out_sentence_reaches_training_in_any_voice(data, work, step):
    said = {normalised(row["text"]) for row in rows_of(release.release_run(step, data, work))}
    assert normalised("A table for two, please.") in said and normalised("Only the dev file says this sentence.") not in said
    assert not any(data_release.sentence_held_out(data, text) for text in said)


def test_natural_voices_weigh_more_in_the_second_step(data, work):
    def share(step: str) -> float:
        rows = rows_of(release.release_run(step, data, work))
        return sum(row["speaker"] in ("kathleen", "heart", "teacher") for row in rows) / len(rows)

    assert share("audio-natural") > share("audio")


def test_long_dialogues_are_cut_into_windows_that_begin_with_the_user(data, work, write_rows):
    turns = [{"role": ("user", "assistant")[i % 2], "content": f"Turn {i}."} for i in range(30)]
    write_rows(data / "text/dialogues.train.jsonl.gz", [{"messages": turns}])
    windows = [row["messages"] for row in rows_of(release.release_run("chat", data, work)) if row.get("source") == "dialogues"]
    assert all(w[0]["role"] == "user" and len(w) <= release.TURNS for w in windows)
    assert {m["content"] for w in windows for m in w} == {m["content"] for m in turns}


def test_manifests_are_left_alone_when_nothing_changed(data, work):
    first = release.release_run("text", data, work).data.train[0]
    before = Path(first).stat().st_mtime_ns
    release.release_run("text", data, work)
    assert Path(first).stat().st_mtime_ns == before


def test_unknown_steps_and_missing_data_are_said(data, work, tmp_path):
    with pytest.raises(ConfigError, match="no stage 'hearing'; it has: text"):
        release.release_run("hearing", data, work)
    with pytest.raises(DataError, match=r"dialogues.train.*muomni data get"):
        release.release_run("text", tmp_path / "empty", work)
    with pytest.raises(ConfigError, match="train its stage first: muomni train release --stage text"):
        release.publish(work, tmp_path / "out")
    with pytest.raises(ConfigError, match="train its stage first: muomni train release --stage speech-lm"):
        release.publish_speech_lm(work, tmp_path / "out")


@pytest.mark.slow
def test_what_is_trained_is_published_as_one_model_in_bfloat16(data, work, tmp_path, monkeypatch):
    monkeypatch.setattr(release, "VALIDATION", 0.5)  # enough of so little text for a context
    for step in ("text", "chat", "audio", "audio-natural", "audio-more", "vision", "vision-more"):
        row = release.train_step(step, data, work)
        assert row["steps"] == 2 and row["data"]["rows"] > 0
        assert ("hours" in row["data"]) == step.startswith("audio")
    release.publish(work, tmp_path / "out")
    saved = load_model(tmp_path / "out")
    assert saved.components == ("thinker", "vision_encoder", "audio_encoder", "image_projector", "contrastive")
    assert {t.dtype for t in saved.tensors.values() if t.is_floating_point()} == {torch.bfloat16}
    assert [row["step"] for row in saved.extra["training"]] == [
        "text",
        "audio",
        "audio-natural",
        "vision",
        "chat",
        "audio-more",
        "vision-more",
    ]
    assert isinstance(saved.config, ModelConfig) and saved.config.audio_encoder == preset("nano").audio_encoder


@pytest.mark.slow
def test_the_speech_lm_is_trained_and_published_by_itself(data, work, tmp_path, monkeypatch):
    from omni.checkpoint import save_model
    from omni.omni_model import OmniModel
    from omni.speech_lm import SpeechLM

    monkeypatch.setattr(release, "VALIDATION", 0.5)
    torch.manual_seed(0)
    for step, component in (("audio-more", "audio_encoder"), ("codec", "codec"), ("vocoder", "vocoder")):
        part = OmniModel(preset("nano"), [component])
        save_model(work / step, part.tensors(), part.config, part.components, None)
    row = release.train_step("speech-lm", data, work)
    assert row["steps"] == 2 and row["data"]["hours"] > 0
    release.publish_speech_lm(work, tmp_path / "out")
    saved = load_model(tmp_path / "out")
    assert saved.components == ("speech_lm", "codec", "vocoder")
    assert {t.dtype for t in saved.tensors.values() if t.is_floating_point()} == {torch.bfloat16}
    assert [row["step"] for row in saved.extra["training"]] == ["speech-lm"]
    assert SpeechLM.from_pretrained(tmp_path / "out", "cpu").say("A table.").duration_s > 0
