"""The pocket world as a folder of manifests: text, dialogues, captioned scenes, speech in many voices, and conversations over all media.

Everything follows from (size, seed). Files are written whole or not at all, and a second call makes only what is missing.

    text.jsonl  text_chat.jsonl  captions.jsonl  speech.jsonl  voice.jsonl  conversations.jsonl   each with a *.heldout.jsonl beside it
    images/  speech/  voice/  world.json
"""

from __future__ import annotations

import json
import multiprocessing
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import count
from pathlib import Path
from random import Random
from typing import Any, TypeVar

import soundfile

from omni.data.split import held_out
from omni.data.worlds import text
from omni.data.worlds.questions import Question, ask, caption
from omni.data.worlds.scenes import Scene, random_scene, render
from omni.data.worlds.speech import SAMPLE_RATE_HZ, Voice, speak
from omni.errors import ConfigError, DataError

VERSION = 1
HELD_OUT_FRACTION = 0.1  # of sentences and texts

# Voices that train; rate and pitch vary from clip to clip.
TRAINING_VOICES = (
    *("en-us", "en-us+f2", "en-us+m3", "en-us+m7", "en-us-nyc", "en-gb-x-rp", "en-gb-x-rp+f3", "en-gb-x-gbclan+m5"),
    *("en-gb-scotland+m2", "en-029+f4"),
)
HELD_OUT_VOICES = ("en-us+f5", "en-gb-scotland+f1", "en-gb-x-gbcwmd+m1")
TALKER_VOICES = {"ada": Voice("en-us+f3", 165, 55), "ben": Voice("en-gb-x-rp+m6", 165, 40)}


@dataclass(frozen=True)
class Sizes:
    """How much of everything. Scenes hold up to `max_things`; every question text is spoken `question_clips` times."""

    texts: int
    dialogues: int
    scenes: int
    held_out_scenes: int
    max_things: int
    questions_per_scene: int
    question_clips: int
    sentence_clips: int
    held_out_clips: int
    talker_voices: tuple[str, ...]
    talker_clips: int


SIZES = {
    "test": Sizes(120, 60, 24, 8, 2, 2, 1, 24, 8, ("ada",), 24),
    "nano": Sizes(6_000, 3_000, 3_000, 300, 3, 3, 4, 2_000, 300, ("ada",), 2_000),
    "tiny": Sizes(60_000, 20_000, 16_000, 500, 6, 4, 16, 12_000, 500, ("ada", "ben"), 6_000),
}

T = TypeVar("T")
Row = dict[str, Any]


def generate_pocket(out_dir: Path, size: str, *, seed: int = 0, workers: int = 2, on_progress: Callable[[str], None] = lambda line: None) -> None:
    """Make the world in `out_dir`. Raises ConfigError for an unknown size, DataError if the folder holds another world."""
    if size not in SIZES:
        raise ConfigError(f"no pocket world of size {size!r}; known: {', '.join(SIZES)}")
    identity = {"version": VERSION, "size": size, "seed": seed, **asdict(SIZES[size])}
    stamp = out_dir / "world.json"
    if stamp.exists():
        found = json.loads(stamp.read_text())
        if json.loads(json.dumps(identity)) != {k: v for k, v in found.items() if k != "complete"}:
            raise DataError(f"{out_dir}: holds another pocket world (size {found.get('size')}, seed {found.get('seed')}); choose another folder")
        if found["complete"]:
            return
    out_dir.mkdir(parents=True, exist_ok=True)
    _write(stamp, json.dumps(identity | {"complete": False}))
    _World(out_dir, SIZES[size], seed, workers, on_progress).build()
    _write(stamp, json.dumps(identity | {"complete": True}, indent=1))


def _write(path: Path, content: str) -> None:
    part = path.with_suffix(".part")
    part.write_text(content)
    part.replace(path)


def _make_picture(task: tuple[Path, Scene]) -> None:
    path, scene = task
    part = path.with_suffix(".part")
    render(scene).save(part, format="PNG", optimize=False)
    part.replace(path)


def _make_clip(task: tuple[Path, str, Voice]) -> None:
    path, sentence, voice = task
    part = path.with_suffix(".part")
    soundfile.write(part, speak(sentence, voice), SAMPLE_RATE_HZ, format="FLAC", subtype="PCM_16")
    part.replace(path)


def _conversation(kind: str, parts: list[Row], reply: str, **more: Any) -> Row:
    return {"kind": kind, "messages": [{"role": "user", "content": parts}, {"role": "assistant", "content": reply}], **more}


@dataclass(frozen=True)
class _Clip:
    file: str
    text: str
    speaker: str
    voice: Voice

    def row(self) -> Row:
        return {"audio": self.file, "text": self.text, "speaker": self.speaker}


class _World:
    def __init__(self, out_dir: Path, sizes: Sizes, seed: int, workers: int, on_progress: Callable[[str], None]) -> None:
        self.out_dir, self.sizes, self.seed, self.workers, self.on_progress = out_dir, sizes, seed, workers, on_progress

    def rng(self, *name: object) -> Random:
        return Random(f"{self.seed}/{'/'.join(map(str, name))}")

    def build(self) -> None:
        texts, held_texts = self._unique("text", self.sizes.texts, text.plain)
        self._manifest("text", [{"text": t} for t in texts], [{"text": t} for t in held_texts])
        chats, held_chats = self._dialogues()
        self._manifest("text_chat", chats, held_chats)

        scenes = [self._scene("train", i, unseen=False) for i in range(self.sizes.scenes)]
        held_scenes = [self._scene("heldout", i, unseen=True) for i in range(self.sizes.held_out_scenes)]
        files = [f"images/train-{i:06d}.png" for i in range(len(scenes))]
        held_files = [f"images/heldout-{i:06d}.png" for i in range(len(held_scenes))]
        self._parallel("pictures", _make_picture, [(self.out_dir / f, s) for f, s in zip(files + held_files, scenes + held_scenes, strict=True)])
        self._manifest("captions", [_caption_row(f, s) for f, s in zip(files, scenes, strict=True)], [_caption_row(f, s) for f, s in zip(held_files, held_scenes, strict=True)])

        asked = [[ask(scene, self.rng("question", i, k)) for k in range(self.sizes.questions_per_scene)] for i, scene in enumerate(scenes)]
        held_asked = [ask(scene, self.rng("heldout-question", i)) for i, scene in enumerate(held_scenes)]
        spoken = self._question_clips(asked)
        held_spoken = [self._clip("speech", f"heldout-question-{i:05d}", q.question, HELD_OUT_VOICES) for i, q in enumerate(held_asked)]
        sentences, held_sentences = self._sentence_clips()
        talker, held_talker = self._talker_clips()
        question_clips = [clip for clips in spoken.values() for clip in clips]
        clips = question_clips + sentences + held_spoken + held_sentences + talker + held_talker
        self._parallel("clips", _make_clip, [(self.out_dir / c.file, c.text, c.voice) for c in sorted(clips, key=lambda c: c.voice.espeak)])
        self._manifest("speech", [c.row() for c in question_clips + sentences + talker], [c.row() for c in held_sentences])
        self._manifest("voice", [c.row() for c in talker], [c.row() for c in held_talker])

        rows = list(self._conversations(files, scenes, asked, spoken, sentences, chats))
        self.rng("order").shuffle(rows)
        self._manifest("conversations", rows, list(self._held_out_conversations(held_files, held_scenes, held_asked, held_spoken, held_sentences)))

    # --- text

    def _unique(self, name: str, n: int, make: Callable[[Random], str]) -> tuple[list[str], list[str]]:
        """About n different texts for training, and those of the held-out tenth that came up meanwhile."""
        sides: tuple[dict[str, None], dict[str, None]] = {}, {}
        for i in count():
            candidate = make(self.rng(name, i))
            sides[held_out(candidate, HELD_OUT_FRACTION)][candidate] = None
            if len(sides[0]) >= n or i > 20 * n:
                break
        return list(sides[0]), list(sides[1])

    def _dialogues(self) -> tuple[list[Row], list[Row]]:
        made = {json.dumps(text.dialogue(self.rng("dialogue", i))): None for i in range(self.sizes.dialogues)}
        rows = [{"messages": json.loads(d)} for d in made]
        hold = [held_out(row["messages"][0]["content"], HELD_OUT_FRACTION) for row in rows]
        return [r for r, h in zip(rows, hold, strict=True) if not h], [r for r, h in zip(rows, hold, strict=True) if h]

    # --- pictures

    def _scene(self, split: str, index: int, *, unseen: bool) -> Scene:
        rng = self.rng("scene", split, index)
        return random_scene(rng, rng.randint(1, self.sizes.max_things), unseen=unseen)

    # --- sound

    def _clip(self, folder: str, name: str, sentence: str, voices: Sequence[str]) -> _Clip:
        rng = self.rng("clip", folder, name)
        speaker = rng.choice(tuple(voices))
        return _Clip(f"{folder}/{name}.flac", sentence, speaker, Voice(speaker, rng.randint(145, 195), rng.randint(30, 70)))

    def _question_clips(self, asked: list[list[Question]]) -> dict[str, list[_Clip]]:
        """Every question text that is not held out, in several voices."""
        texts = [t for t in dict.fromkeys(q.question for questions in asked for q in questions) if not held_out(t, HELD_OUT_FRACTION)]
        return {
            t: [self._clip("speech", f"question-{i:05d}-{k}", t, TRAINING_VOICES) for k in range(self.sizes.question_clips)] for i, t in enumerate(texts)
        }

    def _sentence(self, rng: Random) -> str:
        """Something that is said: an answer, a caption, small talk, or a sentence of a story."""
        scene = random_scene(rng, rng.randint(1, 2), unseen=rng.random() < 0.2)
        kind = rng.random()
        if kind < 0.6:
            return ask(scene, rng).sentence
        if kind < 0.75:
            return caption(scene)
        if kind < 0.9:
            return text.small_talk(rng)[1]
        return rng.choice(text.story(rng).replace(". ", ".|").split("|"))

    def _sentence_clips(self) -> tuple[list[_Clip], list[_Clip]]:
        known, held = self._unique("sentence", self.sizes.sentence_clips, self._sentence)
        pick = self.rng("sentence-order")
        chosen = [known[i % len(known)] for i in range(self.sizes.sentence_clips)]
        held = [held[i % len(held)] for i in range(min(self.sizes.held_out_clips, 4 * len(held)))]
        pick.shuffle(chosen)
        return (
            [self._clip("speech", f"sentence-{i:05d}", t, TRAINING_VOICES) for i, t in enumerate(chosen)],
            [self._clip("speech", f"heldout-sentence-{i:05d}", t, HELD_OUT_VOICES) for i, t in enumerate(held)],
        )

    def _talker_clips(self) -> tuple[list[_Clip], list[_Clip]]:
        """The Talker's voices, always at one rate and pitch."""
        known, held = self._unique("talker", self.sizes.talker_clips, self._sentence)
        sides: list[list[_Clip]] = []
        for split, sentences in (("train", known[: self.sizes.talker_clips]), ("heldout", held[: max(8, self.sizes.talker_clips // 20)])):
            sides.append([_Clip(f"voice/{split}-{v}-{i:05d}.flac", t, v, TALKER_VOICES[v]) for v in self.sizes.talker_voices for i, t in enumerate(sentences)])
        return sides[0], sides[1]

    # --- conversations

    def _conversations(
        self, files: list[str], scenes: list[Scene], asked: list[list[Question]], spoken: dict[str, list[_Clip]], sentences: list[_Clip], chats: list[Row]
    ) -> Iterator[Row]:
        for i, (file, scene, questions) in enumerate(zip(files, scenes, asked, strict=True)):
            rng, picture = self.rng("conversation", i), {"type": "image", "image": file}
            for question in questions:
                yield _conversation("image_qa", [picture, {"type": "text", "text": question.question}], question.sentence, answer=question.answer)
                if question.question in spoken:
                    clip = {"type": "audio", "audio": rng.choice(spoken[question.question]).file}
                    yield _conversation("image_qa_spoken", [picture, clip], question.sentence, answer=question.answer)
            if rng.random() < 0.3:
                yield _conversation("caption", [picture, {"type": "text", "text": text.DESCRIBE}], caption(scene))
            if rng.random() < 0.1:
                yield _conversation("refusal", [{"type": "text", "text": rng.choice((questions[0].question, text.DESCRIBE))}], text.NO_PICTURE)
            if rng.random() < 0.05 and questions[0].question in spoken:
                yield _conversation("refusal", [{"type": "audio", "audio": spoken[questions[0].question][0].file}], text.NO_PICTURE)
            if rng.random() < 0.03:
                yield _conversation("refusal", [{"type": "text", "text": text.TRANSCRIBE}], text.NO_SOUND)
        for clip in sentences:
            yield _conversation("transcribe", [{"type": "audio", "audio": clip.file}, {"type": "text", "text": text.TRANSCRIBE}], clip.text)
        for row in chats:
            yield {"kind": "chat", **row}

    def _held_out_conversations(
        self, files: list[str], scenes: list[Scene], asked: list[Question], spoken: list[_Clip], sentences: list[_Clip]
    ) -> Iterator[Row]:
        for i, (file, scene, question, clip) in enumerate(zip(files, scenes, asked, spoken, strict=True)):
            picture, more = {"type": "image", "image": file}, {"id": f"scene-{i:05d}", "answer": question.answer, "question_type": question.kind}
            yield _conversation("image_qa", [picture, {"type": "text", "text": question.question}], question.sentence, **more)
            yield _conversation("image_qa_spoken", [picture, {"type": "audio", "audio": clip.file}], question.sentence, question=question.question, **more)
            if i % 4 == 0:
                yield _conversation("caption", [picture, {"type": "text", "text": text.DESCRIBE}], caption(scene))
                yield _conversation("refusal", [{"type": "text", "text": question.question}], text.NO_PICTURE)
        for clip in sentences[: len(files) // 2]:
            yield _conversation("transcribe", [{"type": "audio", "audio": clip.file}, {"type": "text", "text": text.TRANSCRIBE}], clip.text)

    # --- files

    def _manifest(self, name: str, rows: Iterable[Row], held: Iterable[Row]) -> None:
        for suffix, part in (("", rows), (".heldout", held)):
            _write(self.out_dir / f"{name}{suffix}.jsonl", "".join(json.dumps(row) + "\n" for row in part))

    def _parallel(self, what: str, make: Callable[[T], None], tasks: Sequence[T]) -> None:
        """Make the files that are not there yet, in `workers` processes; each task begins with its path."""
        missing = [task for task in tasks if not task[0].exists()]  # type: ignore[index]
        for folder in {task[0].parent for task in missing}:  # type: ignore[index]
            folder.mkdir(parents=True, exist_ok=True)
        self.on_progress(f"{what}: {len(missing)} to make, {len(tasks) - len(missing)} there")
        if len(missing) < 100 or self.workers < 2:
            for task in missing:
                make(task)
            return
        with multiprocessing.get_context("spawn").Pool(self.workers) as pool:
            for _ in pool.imap_unordered(make, missing, chunksize=32):
                pass


def _caption_row(file: str, scene: Scene) -> Row:
    return {"image": file, "caption": caption(scene)}
