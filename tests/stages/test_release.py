"""The recipe release: its manifests hold the training side alone, and what it has trained is published as one model."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import soundfile
import torch
from PIL import Image

from omni.chat import parts_of
from omni.checkpoint import find_checkpoint, load_model
from omni.config import PRESETS, ModelConfig, preset
from omni.data import release as data_release
from omni.data.split import normalised
from omni.data.worlds import extras
from omni.data.worlds.pocket import World
from omni.errors import ConfigError, DataError
from omni.omni_model import COMPONENTS
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
    statements = [{"image": f"emoji/{i}.png", "sentence": f"There is box {i}", "label": i % 2 == 0, "identifier": str(i)} for i in range(4)]
    write_rows(release_data / "images/nlvr.dev.jsonl.gz", statements)
    write_rows(release_data / "images/nlvr.hidden.jsonl.gz", [statements[0] | {"sentence": "there is box 3."}])
    return release_data


@pytest.fixture
def work(tmp_path, world, data, monkeypatch) -> Path:
    """Everything at nano size, with the small pocket world, and two synthetic readers who also say a held-out sentence."""
    small = {name: stage for name, stage in release.STAGES.items()}
    for name, stage in small.items():
        settings = {**stage.train, "steps": 2, "batch_size": 4, "micro_batch_size": 2, "warmup_steps": 0}
        small[name] = replace(stage, train=settings)
    monkeypatch.setattr(release, "STAGES", small)
    monkeypatch.setattr(release, "PRESET", "nano")
    monkeypatch.setattr(release, "SPLICES", 4)
    monkeypatch.setattr(release, "TOLD", 4)
    monkeypatch.setattr(release, "LONG_PASSAGE_CHARACTERS", 100)
    monkeypatch.setattr(release, "generate_pocket", lambda folder, size: World(world, "test", 0))
    monkeypatch.setattr(release, "MIX", dict.fromkeys(release.MIX, 24))
    monkeypatch.setattr(extras, "SIZES", dict.fromkeys(extras.SIZES, 4))
    folder = tmp_path / "work"
    questions = [row["text"] for row in data_release.read_jsonl(world / "speech.jsonl") if row["audio"].startswith("speech/question-")]
    asking = [reader for reader in release.ALOUD if reader.startswith("questions/")]
    for engine in ("espeak", "flite", "piper", "teacher", "cast", "told", *asking):
        path = folder / f"voices/{engine}.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        texts = ["A table for two, please.", "I want a table for a people.", "Only the dev file says this sentence."] * 3
        if engine in asking:
            texts, engine = questions, Path(engine).name
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


def media_of(row: dict) -> list[tuple[str, str]]:
    return [(kind, value) for message in row.get("messages", []) for kind, value in parts_of(message) if kind != "text"]


def test_every_kind_of_conversation_is_there_and_all_their_media_are_files(data, work):
    rows = rows_of(release.release_run("sft", data, work))
    kinds = {row["kind"] for row in rows}
    assert kinds == {
        "image_qa",
        "image_qa_spoken",
        "caption",
        "statement",
        "transcribe",
        "chat",
        "chat_spoken",
        "prose",
        "follow_up",
        "refusal",
    }
    files = {value for row in rows for _, value in media_of(row)}
    assert files and all(Path(file).is_absolute() and Path(file).is_file() for file in files)
    assert sum(row["kind"] == "image_qa" for row in rows) == 24


def test_clips_that_are_longer_than_a_step_takes_are_left_out(data, work):
    def files() -> set[str]:
        return {Path(row["audio"]).name for row in rows_of(release.release_run("codec", data, work))}

    assert "teacher.flac" in files()
    soundfile.write(work / "voices/teacher.flac", torch.zeros(13 * 16_000).numpy(), 16_000)
    found = files()
    assert found and "teacher.flac" not in found


def test_harder_questions_are_asked_more_often(data, work, world, monkeypatch):
    monkeypatch.setattr(release, "HARDER", {"count": 3})
    known = [row for row in data_release.read_jsonl(world / "conversations.jsonl") if row["kind"] == "image_qa"]
    share = sum(row["question_type"] == "count" for row in known) / len(known)
    monkeypatch.setitem(release.MIX, "image_qa", round(len(known) * (1 + 2 * share)))
    asked = [row for row in rows_of(release.release_run("sft", data, work)) if row["kind"] == "image_qa"]
    counts = sum(row["messages"][0]["content"][1]["text"].startswith("How many") for row in asked)
    assert counts / len(asked) == pytest.approx(3 * share / (1 + 2 * share))


def test_a_conversation_is_about_the_picture_and_the_sound_that_it_holds(data, work, world):
    """Each answer is the one that the world gives to this question about this picture, and each transcript what the clip says."""
    pairs = {
        (str((world / row["messages"][0]["content"][0]["image"]).resolve()), row["messages"][0]["content"][1]["text"]): row["messages"][1][
            "content"
        ]
        for row in data_release.read_jsonl(world / "conversations.jsonl")
        if row["kind"] == "image_qa"
    }
    said: dict[str, set[str]] = {}
    for name in {*release.ALOUD, *release.TRANSCRIBED}:
        for row in release._reader(name, release.Folders(data, work)):
            said.setdefault(row["audio"], set()).add(row["text"])
    checked = 0
    for row in rows_of(release.release_run("sft", data, work)):
        if "text" in row:
            continue
        user, reply = row["messages"][0], row["messages"][1]["content"] if len(row["messages"]) > 1 else ""
        given = dict(parts_of(user))
        if row["kind"] in ("image_qa", "image_qa_spoken"):
            asked = {given["text"]} if "text" in given else said[given["audio"]]
            assert reply in {pairs.get((given["image"], question)) for question in asked}
            checked += 1
        elif row["kind"] == "transcribe":
            assert reply in said[given["audio"]]
            checked += 1
    assert checked > 48


def test_no_conversation_holds_a_held_out_sentence_and_pictures_that_validate_do_not_train(data, work, monkeypatch):
    monkeypatch.setattr(release, "VALIDATION", 0.3)
    run = release.release_run("sft", data, work)
    rows = rows_of(run)
    assert not any("Only the dev file says" in json.dumps(row) for row in rows)
    statements = {text for row in rows if row["kind"] == "statement" for text in row["about"]}
    assert {f"There is box {i}" for i in range(3)} <= statements and "There is box 3" not in statements
    sides = [
        {
            value
            for line in Path(name[0]).read_text().splitlines()
            for kind, value in media_of(json.loads(line))
            if kind == "image" and "/images/train-" in value
        }
        for name in (run.data.train, run.data.validation)
    ]
    trained, validating = sides
    assert trained and validating
    only_validating = {
        json.loads(line)["messages"][0]["content"][0]["image"]
        for line in Path(run.data.validation[0]).read_text().splitlines()
        if json.loads(line)["kind"] == "image_qa"
    }
    assert not only_validating & trained


def test_without_anybody_who_reads_the_questions_it_is_said_how_to_get_them(data, work):
    (work / "voices/questions/flite.jsonl").unlink()
    with pytest.raises(DataError, match=r"questions/flite.jsonl"):
        release.release_run("sft", data, work)


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
    plain = [f"{who} went {where} at once." for who in ("She", "He", "Nobody") for where in ("home", "away", "down", "there")]
    with (data / "text/novels/Doyle_Lost_1912.txt").open("a") as novel:
        novel.write("\n\n" + "\n\n".join(plain))
    talker = PRESETS["nano"].talker.model_copy(update={"voices": preset("release").talker.voices})
    monkeypatch.setitem(PRESETS, "nano", PRESETS["nano"].model_copy(update={"talker": talker}))
    for step in ("text", "chat", "audio", "audio-natural", "audio-more", "audio-spliced", "vision", "vision-more"):
        row = release.train_step(step, data, work)
        assert row["steps"] == 2 and row["data"]["rows"] > 0
        assert ("hours" in row["data"]) == step.startswith("audio")
    release.publish(work, tmp_path / "out")
    saved = load_model(tmp_path / "out")
    assert saved.components == ("thinker", "vision_encoder", "audio_encoder", "image_projector", "contrastive")
    assert {t.dtype for t in saved.tensors.values() if t.is_floating_point()} == {torch.bfloat16}
    assert [row["step"] for row in saved.extra["training"]] == [
        "text",
        "chat",
        "audio",
        "audio-natural",
        "audio-more",
        "audio-spliced",
        "vision",
        "vision-more",
    ]
    assert isinstance(saved.config, ModelConfig) and saved.config.audio_encoder == preset("nano").audio_encoder
    assert saved.extra["unrecorded"] == []

    (work / "voices/told.jsonl").unlink()  # to be said by the Talker
    for step in (
        "codec",
        "vocoder",
        "talker",
        "audio-told",
        "sft-cls",
        "sft",
        "sft-seeing",
        "sft-hearing",
        "sft-remembering",
        "vision-heads",
        "talker-tuned",
    ):
        row = release.train_step(step, data, work)
    seen, other = load_model(work / "vision-more").config.vision_encoder, load_model(work / "sft-cls").config.vision_encoder
    assert seen.image_tokens == "grid" and other == seen.model_copy(update={"image_tokens": "cls"})
    assert row["step"] == "talker-tuned"
    told = list(data_release.read_jsonl(work / "voices/told.jsonl"))
    assert [row["speaker"] for row in told] == [*release.TOLD_BY] and all((work / "voices" / row["audio"]).exists() for row in told)
    encoder, tuned = (load_model(work / step).tensors for step in ("audio-told", "sft-remembering"))
    assert all(torch.equal(tuned[name], tensor) for name, tensor in encoder.items())  # frozen: CTC is what it was
    start, hearing, chat = (
        load_model(work / step).tensors["thinker.tok_emb.weight"].float() for step in ("data/sft-remembering.start", "sft-hearing", "chat")
    )
    assert not torch.equal(hearing, chat)
    assert release.STAGES["sft-remembering"].remembers == ("chat", 0.15)
    torch.testing.assert_close(start, 0.85 * hearing + 0.15 * chat, rtol=0.01, atol=1e-4)
    heads = load_model(work / "vision-heads").tensors
    assert all(torch.equal(heads[name], tensor) for name, tensor in tuned.items() if name in heads)  # for what there is, as it is
    release.publish(work, tmp_path / "whole")
    whole = load_model(tmp_path / "whole")
    assert set(whole.components) == {*COMPONENTS, "contrastive"}
    for step, name in (("sft-remembering", "thinker"), ("talker-tuned", "talker"), ("vocoder", "vocoder"), ("vision-heads", "contrastive")):
        source = load_model(work / step).tensors
        assert all(torch.equal(whole.tensors[key], source[key].bfloat16()) for key in source if key.startswith(f"{name}."))
    result = work / "talker-tuned" / "result.json"
    result.rename(result.with_suffix(".aside"))
    with pytest.raises(ConfigError, match="muomni train release --stage talker-tuned"):  # a Talker that does not know the tuned Thinker
        release.publish(work, tmp_path / "whole")
    result.with_suffix(".aside").rename(result)
    (work / "sft-seeing" / "result.json").unlink()
    release.publish(work, tmp_path / "whole")
    assert whole.extra["unrecorded"] == [] and load_model(tmp_path / "whole").extra["unrecorded"] == ["sft-seeing"]
    with monkeypatch.context() as patch:
        patch.setattr(release, "MOST_BYTES", 1000)
        with pytest.raises(ConfigError, match="larger than a release may be"):
            release.publish(work, tmp_path / "whole")
    (weights,) = find_checkpoint(work / "sft-remembering").glob("*.safetensors")
    weights.write_bytes(weights.read_bytes()[:-1] + b"\0")  # the Thinker is another one now
    with pytest.raises(ConfigError, match="vision-heads: was trained behind other weights of sft-remembering; remove the folder"):
        release.publish(work, tmp_path / "whole")
    with pytest.raises(ConfigError, match="talker-tuned: was begun from other weights of sft-remembering; remove the folder"):
        release.train_step("talker-tuned", data, work)


@pytest.mark.slow
def test_the_speech_lm_is_trained_and_published_by_itself(data, work, tmp_path, monkeypatch):
    from omni.checkpoint import save_model
    from omni.omni_model import OmniModel
    from omni.speech_lm import SpeechLM

    monkeypatch.setattr(release, "VALIDATION", 0.5)
    torch.manual_seed(0)
    for step, component in (("audio-spliced", "audio_encoder"), ("codec", "codec"), ("vocoder", "vocoder")):
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
