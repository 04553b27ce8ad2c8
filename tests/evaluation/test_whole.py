"""The suite `omni`, run on somebody who sees, hears and speaks perfectly, and on some who do not: the figures tell them apart."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from random import Random
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from omni.chat import DESCRIBE, parts_of
from omni.config import ModelConfig
from omni.data.conversations import TRANSCRIBE_WORDINGS
from omni.data.worlds.questions import KINDS, caption, questions
from omni.data.worlds.scenes import Scene, Thing, render
from omni.data.worlds.text import EMPTY_PICTURE, NO_PICTURE, NO_SOUND
from omni.errors import CheckpointError, DataError
from omni.evaluation import whole
from omni.evaluation.asr import Clip
from omni.evaluation.report import HEADLINES, find
from omni.evaluation.scenes import LOOKED_AT, asked_scenes, question_voices, scene_questions
from omni.evaluation.vision import unseen_scenes
from omni.evaluation.whole import evaluate_captions, omni_suite

N = 12
VOICES = ("ked", "emma")


def write_clips(write_rows: Callable[[Path, list[dict[str, Any]]], None], manifest: Path, texts: Iterable[str]) -> None:
    """Every text in every voice; a clip is known by its name, and empty."""
    rows = [{"audio": f"{name}-{text}.wav", "text": text, "speaker": name} for name in VOICES for text in texts]
    write_rows(manifest, rows)
    for row in rows:
        (manifest.parent / row["audio"]).touch()


class Perfect:
    """Stands in for a trained model: it knows the scenes by their pixels, and the clips by their names. What it says sounds like a number."""

    folder = Path("checkpoint")

    def __init__(self) -> None:
        self.model = SimpleNamespace(**dict.fromkeys(whole.NEEDED), config=ModelConfig())
        self.scenes = {render(one.scene).tobytes(): one.scene for one in asked_scenes(N)}
        self.scenes |= {render(Scene((), seed)).tobytes(): Scene((), seed) for seed in range(N)}
        self.said: list[str] = []
        self.true_statements: set[str] = set()

    def chat_batch(self, conversations: list[list[dict[str, Any]]]) -> list[SimpleNamespace]:
        return [SimpleNamespace(text=self.reply(messages)) for messages in conversations]

    def reply(self, messages: list[dict[str, Any]]) -> str:
        picture = None
        for message in messages:
            given = dict(parts_of(message))
            picture = given.get("image", picture)
        return self.answer(given.get("text"), given.get("audio"), picture)

    def answer(self, text: str | None, audio: Any, picture: Any) -> str:
        if isinstance(audio, np.ndarray) or text in TRANSCRIBE_WORDINGS:
            return NO_SOUND
        asked = text or audio.stem.split("-", 1)[1]
        if asked.startswith("True or false?"):
            return "True." if picture in self.true_statements else "False."
        if picture is None:
            return NO_PICTURE
        scene = self.scenes[picture.tobytes()]
        if not scene.things:
            return EMPTY_PICTURE
        if asked == DESCRIBE:
            return caption(scene)
        return next((q.sentence for q in questions(scene, Random(0)) if q.question == asked), "I do not know.")

    def say_batch(self, texts: list[str]) -> list[SimpleNamespace]:
        self.said += texts
        return [SimpleNamespace(waveform=np.full(1, float(len(self.said) - len(texts) + i))) for i in range(len(texts))]

    def hear(self, sounds: list[np.ndarray]) -> list[str]:
        """As the judge would, who writes small numbers in figures."""
        return [self.said[int(sound[0])].replace("two", "2") if len(sound) else "" for sound in sounds]

    def transcribe(self, audio: Path, decoder: str) -> str:
        return "a red star" if decoder == "ctc" else "a red car"


class Blind(Perfect):
    """Says of every picture what is true of the first."""

    def answer(self, text: str | None, audio: Any, picture: Any) -> str:
        return super().answer(text, audio, picture if isinstance(picture, str | None) else render(asked_scenes(1)[0].scene))


class Deaf(Perfect):
    """Hears the same question in every clip."""

    def answer(self, text: str | None, audio: Any, picture: Any) -> str:
        return super().answer(text, Path(f"ked-{asked_scenes(1)[0].first.question}.wav") if isinstance(audio, Path) else audio, picture)


@pytest.fixture
def suite(tmp_path, write_rows, monkeypatch) -> Callable[[Perfect], dict[str, Any]]:
    write_clips(write_rows, tmp_path / "questions/engine.jsonl", {one.first.question for one in asked_scenes(N)})
    for name, n in (("dev", 7), ("hidden", 10)):
        statements = [{"image": f"{name}{i}.png", "sentence": f"S{i}", "label": i % 5 > 0, "identifier": str(i // 2)} for i in range(n)]
        write_rows(tmp_path / f"images/nlvr.{name}.jsonl.gz", statements)
    monkeypatch.setattr(whole, "speech_sets", lambda data: {"kathleen": [Clip(Path("a.wav"), "A red star.", "1")] * 3})

    def run(omni: Perfect) -> dict[str, Any]:
        omni.true_statements = {str((tmp_path / f"images/hidden{i}.png").resolve()) for i in range(10) if i % 5}
        monkeypatch.setattr(whole, "find_judge", lambda name, environment: omni)
        return json.loads(json.dumps(omni_suite(omni, tmp_path, limit=N, clips=tmp_path / "questions")))  # type: ignore[arg-type]

    return run


def test_who_does_everything_right_scores_everything_and_its_controls_do_not(suite) -> None:
    result = suite(Perfect())
    metrics, baselines = result["metrics"], result["baselines"]
    for name in ("heard", "read", "typed"):
        assert metrics[name]["share"] == metrics[name]["exact"] == 1.0 and metrics[name]["items"] == N
        assert {found["share"] for found in metrics[name]["by_kind"].values()} == {1.0}
        assert sum(found["items"] for found in metrics[name]["by_kind"].values()) == N
    assert set(metrics["by_voice"]) == set(VOICES)
    assert all(found["share"] == 1.0 and found["points_under_typed"] == 0.0 for found in metrics["by_voice"].values())
    assert metrics["most_points_under_typed"] == 0.0
    assert metrics["later"]["share"] == metrics["captions"]["things_f1"] == metrics["captions"]["exact"] == 1.0
    assert {name: row["share"] for name, row in metrics["refusals"].items()} == {
        **dict.fromkeys(("no_picture", "no_picture_spoken", "no_sound", "blank_picture", "blank_picture_asked", "silence"), 1.0),
        "needless": 0.0,
    }
    assert max(baselines[name]["share"] for name in ("swapped", "swapped_question")) < 0.7
    assert baselines["withheld"]["share"] == 0.0 < baselines["majority"]["share"] < 1.0
    assert metrics["statements"]["accuracy"] == 1.0 and metrics["statements"]["neither"] == 0
    assert baselines["statements"]["majority"]["accuracy"] == 0.8
    assert metrics["transcription"]["wer"] == round(1 / 3, 4) and baselines["transcription"]["ctc"]["wer"] == 0.0
    assert result["ceilings"]["right_answers_heard"]["share"] == 1.0
    assert result["items"] == N * 3 + 10 + 3
    lines = [line for line in HEADLINES if line.path.startswith("suites.omni.")]
    assert len(lines) > 10 and all(isinstance(find({"suites": {"omni": result}}, line.path), float) for line in lines)


def test_who_does_not_look_or_listen_is_found_out(suite) -> None:
    blind, deaf = suite(Blind())["metrics"], suite(Deaf())["metrics"]
    assert blind["typed"]["share"] < 0.7 and blind["captions"]["exact"] == round(1 / N, 4) and blind["captions"]["things_f1"] < 0.5
    assert blind["refusals"]["blank_picture"]["share"] == 0.0
    assert deaf["typed"]["share"] == 1.0 and deaf["read"]["share"] < 0.7
    assert min(found["points_under_typed"] for found in deaf["by_voice"].values()) > 30 and deaf["most_points_under_typed"] > 30


def test_points_under_typed_are_counted_scene_by_scene_with_the_interval_of_the_worst_voice(suite) -> None:
    class DeafToEmma(Perfect):
        """Of what emma asks it understands some."""

        def answer(self, text: str | None, audio: Any, picture: Any) -> str:
            lost = isinstance(audio, Path) and audio.stem.startswith("emma") and len(audio.stem) % 3
            return "I do not know." if lost else super().answer(text, audio, picture)

    metrics = suite(DeafToEmma())["metrics"]
    ked, emma = metrics["by_voice"]["ked"], metrics["by_voice"]["emma"]
    n_lost = sum(len(f"emma-{one.first.question}") % 3 > 0 for one in asked_scenes(N))
    assert 0 < n_lost < N
    assert (ked["points_under_typed"], ked["points_under_typed_95"]) == (0.0, [0.0, 0.0])
    assert emma["points_under_typed"] == round(100 * n_lost / N, 4)
    low, high = emma["points_under_typed_95"]
    assert 0 < low < emma["points_under_typed"] < high
    assert metrics["most_points_under_typed"] == emma["points_under_typed"]
    assert metrics["most_points_under_typed_95"] == emma["points_under_typed_95"]


def test_what_voice_and_typing_get_wrong_alike_is_no_difference(suite) -> None:
    blind = suite(Blind())["metrics"]
    assert blind["typed"]["share"] < 0.7 and blind["most_points_under_typed_95"] == [0.0, 0.0]


def test_an_empty_reply_is_wrong_and_nothing_is_said(suite) -> None:
    class Silent(Perfect):
        def answer(self, text: str | None, audio: Any, picture: Any) -> str:
            return " "

    omni = Silent()
    metrics = suite(omni)["metrics"]
    assert metrics["heard"]["share"] == metrics["read"]["share"] == metrics["statements"]["accuracy"] == 0.0
    assert metrics["statements"]["neither"] == 10 and "" not in map(str.strip, omni.said)


def test_captions_lose_by_what_they_leave_out_and_what_they_add() -> None:
    scenes = [one.scene for one in asked_scenes(N) if len(one.scene.things) > 1]
    texts = [caption(Scene(scene.things[:1], 0)) for scene in scenes]
    told, shown = len(scenes), sum(len(scene.things) for scene in scenes)
    found = evaluate_captions(scenes, texts)
    assert found["things_f1"] == pytest.approx(2 * told / (told + shown), abs=1e-4) and found["exact"] == 0.0
    assert evaluate_captions(scenes, [f"{caption(scene)} A big red star." for scene in scenes])["things_f1"] < 1.0


def test_attributes_count_apart() -> None:
    found = evaluate_captions([Scene((Thing("blue", "star", "big", 50, 50),), 0)], ["A big red star."])
    assert (found["size_f1"], found["colour_f1"], found["shape_f1"], found["things_f1"]) == (1.0, 0.0, 1.0, 0.0)


def test_scenes_are_asked_two_different_questions_of_all_kinds() -> None:
    asked = asked_scenes(40)
    assert all(one.first != one.later for one in asked) and asked[:N] == asked_scenes(N)
    assert len({one.first.kind for one in asked}) == 8
    for one in asked:
        assert {one.first, one.later} <= set(questions(one.scene, Random(1)))


def test_missing_clips_and_components_are_named(tmp_path, write_rows, speaker) -> None:
    with pytest.raises(DataError, match=r"no manifest of spoken questions there; .*--questions --held-out"):
        question_voices(tmp_path)
    write_clips(write_rows, tmp_path / "festival.jsonl", ["Who?"])
    with pytest.raises(DataError, match=r"no clip of .* by ked"):
        scene_questions(asked_scenes(1), question_voices(tmp_path))
    with pytest.raises(CheckpointError, match="has no vision_encoder"):
        omni_suite(speaker, tmp_path)


def test_scenes_are_others_than_those_that_were_looked_at() -> None:
    looked_at = {caption(scene) for scene in unseen_scenes(LOOKED_AT)}
    assert not looked_at & {caption(one.scene) for one in asked_scenes(40)}


def test_voices_take_turns_with_every_kind_of_question(tmp_path, write_rows) -> None:
    asked = asked_scenes(48)
    write_clips(write_rows, tmp_path / "festival.jsonl", [one.first.question for one in asked])
    voices = question_voices(tmp_path)
    found = scene_questions(asked, voices)
    assert [q.spoken.stem.partition("-")[2] for q in found] == [one.first.question for one in asked]
    assert Counter((q.kind, q.spoken.stem.partition("-")[0]) for q in found) == {(kind, name): 3 for kind in KINDS for name in VOICES}
    assert {q.spoken.stem.split("-")[0] for q in scene_questions(asked, voices, "emma")} == {"emma"}
