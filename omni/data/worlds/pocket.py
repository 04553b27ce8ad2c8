"""The pocket world as a folder of manifests: text, dialogues, captioned scenes, speech in many voices, and conversations over all media.

Everything follows from (size, seed), to the byte on one machine. Files are written whole or not at all, and a second call makes only
what is missing.

    text.jsonl  text_chat.jsonl  captions.jsonl  speech.jsonl  voice.jsonl  conversations.jsonl   each with a *.heldout.jsonl beside it
    images/  speech/  voice/  world.json

What is held out:
    speech         sentences by `omni.data.split` (never spoken in training, in no voice and no conversation), in voices that never train
    pictures       other scenes; half of them hold a combination of colour and shape that no training picture has
    spoken scenes  held-out scenes asked about in held-out voices
    text, chat     whole stories, and dialogues whose every question is held out by `omni.data.split`
Questions and answers are few, so that they are typed on both sides of the split: it is the picture or the sound that is new.
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

from omni.chat import DESCRIBE, TRANSCRIBE
from omni.data.split import held_out
from omni.data.worlds import text
from omni.data.worlds.questions import Balance, Question, caption, questions
from omni.data.worlds.scenes import ALL_COMBINATIONS, SEEN_COMBINATIONS, Combination, Scene, random_scene, render
from omni.data.worlds.speech import SAMPLE_RATE_HZ, Voice, speak
from omni.errors import ConfigError, DataError

VERSION = 6
HELD_OUT_FRACTION = 0.1  # of sentences and texts
SPOKEN_PER_SCENE = 1  # of a picture's questions; an answer never follows others about the same picture, which would give it away

# Voices that train; rate and pitch vary from clip to clip.
TRAINING_VOICES = (
    *("en-us", "en-us+f2", "en-us+m3", "en-us+m7", "en-us-nyc", "en-gb-x-rp", "en-gb-x-rp+f3", "en-gb-x-gbclan+m5"),
    *("en-gb-scotland+m2", "en-029+f4"),
)
HELD_OUT_VOICES = ("en-us+f5", "en-gb-scotland+f1", "en-gb-x-gbcwmd+m1")
TALKER_VOICES = {"ada": Voice("en-us+f3", 165, 55), "ben": Voice("en-gb-x-rp+m6", 165, 40)}


@dataclass(frozen=True)
class Sizes:
    """How much of everything. Scenes hold up to `max_things`; a share `placed_captions` of captions tells where they are; every question is spoken
    `question_clips` times."""

    texts: int
    dialogues: int
    scenes: int
    held_out_scenes: int
    max_things: int
    questions_per_scene: int
    placed_captions: float
    question_clips: int
    sentence_clips: int
    held_out_clips: int
    talker_voices: tuple[str, ...]
    talker_clips: int


SIZES = {
    "test": Sizes(120, 60, 24, 8, 3, 2, 0.25, 1, 24, 8, ("ada",), 24),
    "nano": Sizes(6_000, 2_500, 4_000, 300, 2, 5, 0.25, 5, 2_000, 300, ("ada",), 2_400),
    "tiny": Sizes(40_000, 12_000, 16_000, 1_000, 3, 6, 0.75, 12, 16_000, 1_000, ("ada", "ben"), 8_000),
    "release": Sizes(60_000, 20_000, 25_000, 1_000, 6, 6, 0.25, 12, 16_000, 1_000, ("ada", "ben"), 8_000),
}
MANIFESTS = ("text", "text_chat", "captions", "speech", "voice", "conversations")

T = TypeVar("T")
Row = dict[str, Any]


@dataclass(frozen=True)
class World:
    """A generated world on disk."""

    folder: Path
    size: str
    seed: int

    def manifest(self, name: str, *, held_out: bool = False) -> Path:
        """The manifest called `name`, one of MANIFESTS."""
        assert name in MANIFESTS, name
        return self.folder / f"{name}{'.heldout' if held_out else ''}.jsonl"


def generate_pocket(
    out_dir: Path, size: str, *, seed: int = 0, workers: int = 2, on_progress: Callable[[str], None] | None = None
) -> World:
    """Make the world in `out_dir`. Raises ConfigError for an unknown size, DataError if the folder holds another world."""
    if size not in SIZES:
        raise ConfigError(f"no pocket world of size {size!r}; known: {', '.join(SIZES)}")
    identity: Row = {
        "version": VERSION,
        "size": size,
        "seed": seed,
        **asdict(SIZES[size]),
        "training_voices": TRAINING_VOICES,
        "held_out_voices": HELD_OUT_VOICES,
    }
    identity = json.loads(json.dumps(identity))
    world, stamp = World(out_dir, size, seed), out_dir / "world.json"
    if stamp.exists():
        found = json.loads(stamp.read_text())
        complete = found.pop("complete")
        if identity != found:
            raise DataError(
                f"{out_dir}: holds another pocket world (size {found.get('size')}, seed {found.get('seed')}, "
                f"version {found.get('version')}; wanted size {size}, seed {seed}, version {VERSION}); choose another folder"
            )
        if complete:
            return world
    out_dir.mkdir(parents=True, exist_ok=True)
    _write(stamp, json.dumps(identity | {"complete": False}))
    _Generator(world, SIZES[size], workers, on_progress or (lambda line: None)).build()
    _write(stamp, json.dumps(identity | {"complete": True}, indent=1))
    return world


def _write(path: Path, content: str) -> None:
    part = path.with_suffix(".part")
    part.write_text(content, encoding="utf-8")
    part.replace(path)


def _make_picture(task: tuple[Path, Scene]) -> None:
    path, scene = task
    part = path.with_suffix(".part")
    render(scene).save(part, format="PNG", compress_level=4)
    part.replace(path)


def _make_clip(task: tuple[Path, str, Voice]) -> None:
    path, sentence, voice = task
    part = path.with_suffix(".part")
    soundfile.write(part, speak(sentence, voice), SAMPLE_RATE_HZ, format="FLAC", subtype="PCM_16")
    part.replace(path)


@dataclass(frozen=True)
class _Clip:
    file: str
    text: str
    speaker: str
    voice: Voice

    def row(self) -> Row:
        return {"audio": self.file, "text": self.text, "speaker": self.speaker}

    def part(self) -> Row:
        return {"type": "audio", "audio": self.file}


@dataclass(frozen=True)
class _Picture:
    """A scene, its file, and what is asked about it."""

    file: str
    scene: Scene
    asked: tuple[Question, ...]

    def part(self) -> Row:
        return {"type": "image", "image": self.file}


def _typed(words: str) -> Row:
    return {"type": "text", "text": words}


def _conversation(
    kind: str, parts: list[Row], reply: str, *, answer: str | None = None, question_type: str | None = None, **more: Any
) -> Row:
    messages = [{"role": "user", "content": parts}, {"role": "assistant", "content": reply}]
    return {"kind": kind, "messages": messages, "answer": answer, "question_type": question_type, **more}


def _numbered(rows: Iterable[Row], split: str) -> list[Row]:
    return [{"id": f"{split}-{i:06d}", **row} for i, row in enumerate(rows)]


class _Generator:
    def __init__(self, world: World, sizes: Sizes, workers: int, on_progress: Callable[[str], None]) -> None:
        self.world, self.sizes, self.workers, self.on_progress = world, sizes, workers, on_progress

    def rng(self, *name: object) -> Random:
        return Random(f"{self.world.seed}/{'/'.join(map(str, name))}")

    def build(self) -> None:
        texts = self._unique("text", self.sizes.texts, text.plain)[0]
        held_texts = self._unique("held-out-text", self.sizes.texts // 10, lambda rng: text.story(rng)[0], hold_out=True)[1]
        self._manifest("text", ({"text": t} for t in texts), ({"text": t} for t in held_texts))
        chats, held_chats = (
            self._dialogues(self.sizes.dialogues, hold_out=False),
            self._dialogues(self.sizes.dialogues // 10, hold_out=True),
        )
        self._manifest("text_chat", ({"messages": c} for c in chats), ({"messages": c} for c in held_chats))

        pictures, held_pictures = self._pictures(), self._held_out_pictures()
        self._parallel("pictures", _make_picture, [(self.world.folder / p.file, p.scene) for p in pictures + held_pictures])
        self._manifest("captions", map(self._caption_row, pictures), map(self._caption_row, held_pictures))

        asked = self._spoken("question", dict.fromkeys(q.question for p in pictures for q in p.asked))
        said = self._spoken(
            "talk", dict.fromkeys(turn["content"] for chat in chats for turn in chat[:1] if len(turn["content"].split()) <= 8)
        )
        held_asked = [self._clip("heldout-question", i, p.asked[0].question, HELD_OUT_VOICES) for i, p in enumerate(held_pictures)]
        sentences, held_sentences = self._sentences()
        talker, held_talker = self._talker_clips()
        training = [clip for spoken in (asked, said) for clips in spoken.values() for clip in clips] + sentences + talker
        clips = training + held_asked + held_sentences + held_talker
        self._parallel("clips", _make_clip, [(self.world.folder / c.file, c.text, c.voice) for c in clips])
        self._manifest("speech", (c.row() for c in training), (c.row() for c in held_sentences))
        self._manifest("voice", (c.row() for c in talker), (c.row() for c in held_talker))

        rows = [*self._about_pictures(pictures, asked), *map(self._transcription, sentences), *self._chats(chats, said)]
        self.rng("order").shuffle(rows)
        held_rows = [
            *self._about_held_out_pictures(held_pictures, held_asked),
            *map(self._transcription, held_sentences),
            *self._chats(held_chats, {}),
        ]
        self._manifest("conversations", _numbered(rows, "train"), _numbered(held_rows, "heldout"))

    # --- text

    def _unique(self, name: str, n: int, make: Callable[[Random], str], *, hold_out: bool = False) -> tuple[list[str], list[str]]:
        """About n different texts for training, and those of the held-out tenth that came up meanwhile; or n of these with `hold_out`."""
        sides: tuple[dict[str, None], dict[str, None]] = {}, {}
        for i in count():
            candidate = make(self.rng(name, i))
            sides[held_out(candidate, HELD_OUT_FRACTION)][candidate] = None
            if len(sides[hold_out]) >= n or i > 50 * n:
                break
        return list(sides[0]), list(sides[1])

    def _dialogues(self, n: int, *, hold_out: bool) -> list[list[Row]]:
        def fits(words: str) -> bool:
            return (words not in text.EVERYDAY and held_out(words, HELD_OUT_FRACTION)) == hold_out

        made = (text.dialogue(self.rng("dialogue", hold_out, i), fits) for i in range(n))
        return list({json.dumps(d): d for d in made}.values())

    def _chats(self, chats: list[list[Row]], said: dict[str, list[_Clip]]) -> Iterator[Row]:
        """Typed dialogues, and those whose first question is also spoken once more so."""
        for chat in chats:
            yield {"kind": "chat", "messages": chat, "answer": None, "question_type": None}
        for words, clips in said.items():
            reply = next(chat[1]["content"] for chat in chats if chat[0]["content"] == words)
            for clip in clips:
                yield _conversation("chat_spoken", [clip.part()], reply)

    # --- pictures

    def _pictures(self) -> list[_Picture]:
        balance = Balance()
        return [self._picture("train", i, SEEN_COMBINATIONS, balance, self.sizes.questions_per_scene) for i in range(self.sizes.scenes)]

    def _held_out_pictures(self) -> list[_Picture]:
        """Every other one unseen, that is with a held-out combination; the rest ordinary."""
        balance = Balance()
        return [
            self._picture("heldout", i, ALL_COMBINATIONS if i % 2 else SEEN_COMBINATIONS, balance, 1)
            for i in range(self.sizes.held_out_scenes)
        ]

    def _picture(self, split: str, index: int, combinations: Sequence[Combination], balance: Balance, n_questions: int) -> _Picture:
        rng = self.rng("scene", split, index)
        n_things = rng.randint(1, self.sizes.max_things)
        scene = random_scene(rng, n_things, combinations)
        while scene.is_unseen != (combinations is ALL_COMBINATIONS):
            scene = random_scene(rng, n_things, combinations)
        asked: list[Question] = []
        for _ in range(n_questions):
            asked.append(balance.pick([q for q in questions(scene, rng, combinations) if q not in asked]))
        return _Picture(f"images/{split}-{index:06d}.png", scene, tuple(asked))

    def _caption_row(self, picture: _Picture) -> Row:
        return {"image": picture.file, "caption": caption(picture.scene, self.rng("caption", picture.file), self.sizes.placed_captions)}

    # --- sound

    def _clip(self, name: str, index: int, sentence: str, voices: Sequence[str]) -> _Clip:
        rng = self.rng("clip", name, index)
        speaker = rng.choice(voices)
        return _Clip(f"speech/{name}-{index:06d}.flac", sentence, speaker, Voice(speaker, rng.randint(145, 195), rng.randint(30, 70)))

    def _spoken(self, name: str, texts: Iterable[str]) -> dict[str, list[_Clip]]:
        """Every text that is not held out, several times."""
        known = [t for t in texts if not held_out(t, HELD_OUT_FRACTION)]
        n = self.sizes.question_clips
        return {t: [self._clip(name, n * i + k, t, TRAINING_VOICES) for k in range(n)] for i, t in enumerate(known)}

    def _sentences(self) -> tuple[list[_Clip], list[_Clip]]:
        known, held = self._unique("sentence", self.sizes.sentence_clips, text.spoken_sentence)
        return (
            [self._clip("sentence", i, t, TRAINING_VOICES) for i, t in enumerate(known)],
            [self._clip("heldout-sentence", i, held[i % len(held)], HELD_OUT_VOICES) for i in range(self.sizes.held_out_clips)],
        )

    def _talker_clips(self) -> tuple[list[_Clip], list[_Clip]]:
        """The Talker's voices, always at one rate and pitch."""
        known, held = self._unique("talker", self.sizes.talker_clips, text.spoken_sentence)
        sides: list[list[_Clip]] = []
        for split, sentences in (("train", known), ("heldout", held[: self.sizes.held_out_clips])):
            sides.append(
                [
                    _Clip(f"voice/{split}-{v}-{i:06d}.flac", t, v, TALKER_VOICES[v])
                    for v in self.sizes.talker_voices
                    for i, t in enumerate(sentences)
                ]
            )
        return sides[0], sides[1]

    # --- conversations about media

    def _about_pictures(self, pictures: list[_Picture], spoken: dict[str, list[_Clip]]) -> Iterator[Row]:
        for i, picture in enumerate(pictures):
            rng = self.rng("conversation", i)
            for turn, q in enumerate(picture.asked):
                slots = {"answer": q.answer, "question_type": q.kind}
                yield _conversation("image_qa", [picture.part(), _typed(q.question)], q.sentence, **slots)
                if turn < SPOKEN_PER_SCENE and q.question in spoken:
                    clip = rng.choice(spoken[q.question])
                    yield _conversation("image_qa_spoken", [picture.part(), clip.part()], q.sentence, **slots)
            q, chance = picture.asked[0], rng.random()
            if chance < 0.3:
                yield _conversation("caption", [picture.part(), _typed(DESCRIBE)], caption(picture.scene))
            elif chance < 0.4:
                yield _conversation("refusal", [_typed(rng.choice((q.question, q.question, DESCRIBE)))], text.NO_PICTURE)
            elif chance < 0.47 and q.question in spoken:
                yield _conversation("refusal", [rng.choice(spoken[q.question]).part()], text.NO_PICTURE)
            elif chance < 0.5:
                yield _conversation("refusal", [_typed(TRANSCRIBE)], text.NO_SOUND)

    def _about_held_out_pictures(self, pictures: list[_Picture], spoken: list[_Clip]) -> Iterator[Row]:
        for picture, clip in zip(pictures, spoken, strict=True):
            (q,) = picture.asked
            more: Row = {"answer": q.answer, "question_type": q.kind, "question": q.question, "unseen": picture.scene.is_unseen}
            yield _conversation("image_qa", [picture.part(), _typed(q.question)], q.sentence, **more)
            yield _conversation("image_qa_spoken", [picture.part(), clip.part()], q.sentence, **more)
        for picture in pictures[::4]:
            yield _conversation("caption", [picture.part(), _typed(DESCRIBE)], caption(picture.scene))
            yield _conversation("refusal", [_typed(picture.asked[0].question)], text.NO_PICTURE)

    def _transcription(self, clip: _Clip) -> Row:
        return _conversation("transcribe", [clip.part(), _typed(TRANSCRIBE)], clip.text, answer=clip.text)

    # --- files

    def _manifest(self, name: str, rows: Iterable[Row], held: Iterable[Row]) -> None:
        for hold_out, part in ((False, rows), (True, held)):
            _write(self.world.manifest(name, held_out=hold_out), "".join(json.dumps(row) + "\n" for row in part))

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
