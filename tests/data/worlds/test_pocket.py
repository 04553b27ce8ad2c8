"""The pocket world on disk: complete, split, repeatable."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from PIL import Image

from omni.chat import TRANSCRIBE
from omni.data.split import held_out
from omni.data.worlds import pocket, text
from omni.data.worlds.pocket import HELD_OUT_FRACTION, HELD_OUT_VOICES, MANIFESTS, TRAINING_VOICES, World, generate_pocket
from omni.data.worlds.scenes import HELD_OUT_COMBINATIONS, SEEN_COMBINATIONS, Scene, render
from omni.errors import ConfigError, DataError


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return generate_pocket(tmp_path_factory.mktemp("pocket"), "test", workers=1)


def rows(world: World, name: str, held: bool = False) -> list[dict[str, Any]]:
    return [json.loads(line) for line in world.manifest(name, held_out=held).read_text().splitlines()]


def media(world: World, held: bool, kind: str) -> set[str]:
    """Files of a kind that conversations refer to."""
    parts = [
        p for row in rows(world, "conversations", held) for m in row["messages"] if isinstance(m["content"], list) for p in m["content"]
    ]
    return {p[kind] for p in parts if p["type"] == kind}


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_every_file_that_a_row_names_can_be_read(world: World) -> None:
    for held in (False, True):
        sounds = {row["audio"] for name in ("speech", "voice") for row in rows(world, name, held)} | media(world, held, "audio")
        pictures = {row["image"] for row in rows(world, "captions", held)} | media(world, held, "image")
        assert len(sounds) > 8 and len(pictures) >= 8
        for file in sounds:
            wave, rate = soundfile.read(world.folder / file)
            assert rate == 16_000 and 0.3 < len(wave) / rate < 8 and np.abs(wave).max() > 0.1
        for file in pictures:
            assert Image.open(world.folder / file).size == (224, 224)
    assert not list(world.folder.rglob("*.part"))


def test_nothing_held_out_is_spoken_in_training(world: World) -> None:
    train, held = rows(world, "speech") + rows(world, "voice"), rows(world, "speech", True) + rows(world, "voice", True)
    assert not [row for row in train if held_out(row["text"], HELD_OUT_FRACTION)]
    assert all(held_out(row["text"], HELD_OUT_FRACTION) for row in held)
    assert {row["speaker"] for row in rows(world, "speech", True)} <= set(HELD_OUT_VOICES)
    assert not {row["speaker"] for row in train} & set(HELD_OUT_VOICES) and not set(TRAINING_VOICES) & set(HELD_OUT_VOICES)
    known = {row["audio"] for row in train}
    assert media(world, False, "audio") <= known  # so each is of a training voice and a sentence that is not held out
    assert not media(world, True, "audio") & known


def test_no_transcription_in_training_is_of_a_held_out_sentence(world: World) -> None:
    said = {row["audio"]: row["text"] for row in rows(world, "speech") + rows(world, "speech", True)}
    for held in (False, True):
        transcribed = [row["messages"] for row in rows(world, "conversations", held) if row["kind"] == "transcribe"]
        assert transcribed
        for user, assistant in transcribed:
            assert said[user["content"][0]["audio"]] == assistant["content"]
            assert held_out(assistant["content"], HELD_OUT_FRACTION) == held


def test_held_out_pictures_and_combinations_are_in_no_training_row(world: World) -> None:
    train = {row["image"] for row in rows(world, "captions")} | media(world, False, "image")
    held = {row["image"] for row in rows(world, "captions", True)} | media(world, True, "image")
    assert not train & held
    unseen = [f"{colour} {shape}" for colour, shape in HELD_OUT_COMBINATIONS]
    about_pictures = [r for r in rows(world, "conversations") if r["kind"] in ("image_qa", "image_qa_spoken", "caption")] + rows(
        world, "captions"
    )
    assert not [row for row in about_pictures if any(name in json.dumps(row) for name in unseen)]
    asked = [row for row in rows(world, "conversations", True) if row["kind"] == "image_qa"]
    captions = {row["image"]: row["caption"] for row in rows(world, "captions", True)}
    for row in asked:
        assert row["unseen"] == any(name in captions[row["messages"][0]["content"][0]["image"]] for name in unseen)
    assert sum(row["unseen"] for row in asked) * 2 == len(asked)


def test_held_out_texts_and_dialogues_are_not_in_training(world: World) -> None:
    assert not {row["text"] for row in rows(world, "text")} & {row["text"] for row in rows(world, "text", True)}
    for held in (False, True):
        turns = [m["content"] for row in rows(world, "text_chat", held) for m in row["messages"] if m["role"] == "user"]
        assert turns and all(held_out(words, HELD_OUT_FRACTION) == held for words in turns if words not in text.EVERYDAY)
        assert rows(world, "text", held)


def test_every_held_out_scene_is_asked_about_typed_and_spoken_in_a_held_out_voice(world: World) -> None:
    asked = rows(world, "conversations", True)
    typed = [row for row in asked if row["kind"] == "image_qa"]
    spoken = [row for row in asked if row["kind"] == "image_qa_spoken"]
    assert len(typed) == len(spoken) == 8
    for one, other in zip(typed, spoken, strict=True):
        assert one["messages"][0]["content"][0] == other["messages"][0]["content"][0] and one["question"] == other["question"]
        assert one["answer"] == other["answer"] and one["question_type"] == other["question_type"]


def test_every_conversation_has_its_own_id_and_the_same_fields(world: World) -> None:
    for held in (False, True):
        found = rows(world, "conversations", held)
        assert len({row["id"] for row in found}) == len(found)
        assert all({"id", "kind", "messages", "answer", "question_type"} <= row.keys() for row in found)
    kinds = {row["kind"] for row in rows(world, "conversations")}
    assert kinds == {"image_qa", "image_qa_spoken", "caption", "refusal", "transcribe", "chat", "chat_spoken"}


def test_without_a_picture_or_a_sound_the_reply_says_so(world: World) -> None:
    refused = [row["messages"] for row in rows(world, "conversations") if row["kind"] == "refusal"]
    assert refused
    for user, assistant in refused:
        assert all(part["type"] != "image" for part in user["content"])
        no_sound = user["content"] == [{"type": "text", "text": TRANSCRIBE}]
        assert assistant["content"] == (text.NO_SOUND if no_sound else text.NO_PICTURE)


def test_the_same_seed_gives_the_same_bytes_with_one_process_or_two(world: World, tmp_path: Path) -> None:
    again = generate_pocket(tmp_path / "again", "test", workers=2)
    assert contents(again.folder) == contents(world.folder)


def test_another_seed_is_another_world(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pocket, "_make_clip", lambda task: None)
    monkeypatch.setattr(pocket, "_make_picture", lambda task: None)
    other = generate_pocket(tmp_path, "test", seed=1, workers=1)
    assert all(rows(other, name) != rows(world, name) for name in MANIFESTS)


def test_interrupted_it_continues_to_the_same_bytes_and_makes_only_what_is_missing(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = contents(world.folder)
    made: list[Scene] = []
    limit = 10

    def drawn(scene: Scene) -> Image.Image:
        if len(made) == limit:
            raise KeyboardInterrupt
        made.append(scene)
        return render(scene)

    monkeypatch.setattr(pocket, "render", drawn)
    with pytest.raises(KeyboardInterrupt):
        generate_pocket(tmp_path, "test", workers=1)
    made.clear()
    limit = 1000
    shutil.copytree(world.folder / "speech", tmp_path / "speech")
    generate_pocket(tmp_path, "test", workers=1)
    assert len(made) == 32 - 10
    assert contents(tmp_path) == expected


def test_a_complete_world_is_left_alone(world: World) -> None:
    before = {p: p.stat().st_mtime_ns for p in world.folder.rglob("*")}
    assert generate_pocket(world.folder, "test", workers=1) == world
    assert {p: p.stat().st_mtime_ns for p in world.folder.rglob("*")} == before


def test_a_folder_with_another_world_and_an_unknown_size_are_refused(world: World, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"holds another pocket world \(size test, seed 0.*choose another folder"):
        generate_pocket(world.folder, "test", seed=5)
    with pytest.raises(ConfigError, match="no pocket world of size 'huge'; known: test, nano, tiny, release"):
        generate_pocket(tmp_path, "huge")


def test_all_seen_combinations_are_in_a_nano_world(tmp_path: Path) -> None:
    made = pocket._Generator(World(tmp_path, "nano", 0), pocket.SIZES["nano"], 1, lambda line: None)
    pictures = made._held_out_pictures()
    assert sum(p.scene.is_unseen for p in pictures) == 150
    assert {(t.colour, t.shape) for p in pictures for t in p.scene.things} == {*SEEN_COMBINATIONS, *HELD_OUT_COMBINATIONS}
