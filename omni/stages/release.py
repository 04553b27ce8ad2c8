"""The recipe `release`: the stages on real and generated data, whose weights ship in `checkpoints/`.

    muomni train release --stage text;  … --stage chat;  … --stage audio;  … --stage vision;  … --stage codec;  …
    muomni train release --publish checkpoints/omni-tiny

A *step* is one run of a trainer's stage; its `steps` are updates. `release_run` writes the manifests of a step from the data folder (`muomni data
get`), the generated world and the synthetic voices (`muomni data voices`), and says how it trains.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

import soundfile
import torch

from omni.checkpoint import find_checkpoint, load_model, save_model, write_json
from omni.config import ImageTokens, RunConfig, parse, preset, read_json
from omni.data import conversations, release
from omni.data.conversations import Aloud, Asked
from omni.data.plan import clips_of
from omni.data.split import held_out, normalised
from omni.data.worlds.extras import make_extras
from omni.data.worlds.pocket import World, generate_pocket
from omni.data.worlds.questions import plain_caption
from omni.errors import ConfigError, DataError
from omni.omni_model import COMPONENTS
from omni.parameters import count
from omni.stages.processes import train_on_all
from omni.stages.recipes import assemble
from omni.stages.splices import make_splices
from omni.stages.told import make_told

log = logging.getLogger(__name__)

Row = dict[str, Any]
PRESET = "release"
WORLD = "release"  # how much of the generated world
VALIDATION = 0.02  # of the training side, by text: what training itself looks at; the held-out side is for `muomni eval` alone


@dataclass(frozen=True)
class Folders:
    """`data` holds what was fetched; `work` what the recipe makes: world/, extras/, voices/, data/ (manifests) and a run folder per stage."""

    data: Path
    work: Path

    @property
    def world(self) -> World:
        """The generated world, made when it is not there."""
        return generate_pocket(self.work / "world", WORLD)

    def extras(self, name: str) -> list[Row]:
        """The rows of what stage E needs beside the world, made when they are not there."""
        manifest = make_extras(self.work / "extras")[name]
        return list(_within(manifest, "audio" if name == "silence" else "image"))

    def manifest(self, name: str) -> Path:
        """A manifest that the recipe writes."""
        return self.work / "data" / f"{name}.jsonl"


@dataclass(frozen=True)
class ReleaseStage:
    """A step of the recipe: the trainer's stage, what makes its rows, which steps it starts from, and its settings."""

    stage: str
    rows: Callable[[Folders], Iterable[Row]]
    train: dict[str, Any]
    init_from: tuple[str, ...] = ()
    world: tuple[str, ...] = ()  # manifests of the world to read as well
    data: dict[str, Any] = field(default_factory=dict)
    image_tokens: ImageTokens | None = None  # other ones than the vision encoder has learned with
    model: dict[str, Any] = field(default_factory=dict)  # sizes other than the preset's
    remembers: tuple[str, float] | None = None  # a step of which so much is mixed into the Thinker that it starts from


def _documents(folders: Folders) -> Iterable[Row]:
    return release.text_documents(folders.data, held_out=False)


TURNS, TURNS_BETWEEN = 12, 8  # long dialogues are cut into windows of so many messages that fit the context
PASSAGE_CHARACTERS = 600  # as many fit it whatever they say,
LONG_PASSAGE_CHARACTERS = 1200  # and as many if it is the prose that there is


def _dialogues(folders: Folders) -> Iterable[Row]:
    """Windows of dialogues."""
    for row in _documents(folders):
        if "messages" in row:
            messages = row["messages"]
            for start in range(0, max(1, len(messages) - TURNS + TURNS_BETWEEN), TURNS_BETWEEN):
                yield row | {"messages": messages[start : start + TURNS]}


def _prose(folders: Folders) -> list[str]:
    """Stories and parts of novels."""
    return [row["text"] for row in _documents(folders) if "text" in row]


def _dialogues_and_prose(folders: Folders) -> Iterable[Row]:
    """What the chat step learns: windows of dialogues; and passages of the other texts as replies, so that it does not forget them."""
    yield from _dialogues(folders)
    for text in _prose(folders):
        for start in range(0, len(text), PASSAGE_CHARACTERS):
            yield {"messages": [{"role": "assistant", "content": text[start : start + PASSAGE_CHARACTERS]}]}


# How often an epoch holds the clips of a reader, the one that is the world's among them: at first many voices, then the natural ones.
MANY_VOICES = {"kathleen": 3, "heart": 1, "espeak": 1, "flite": 1, "piper": 1, "world": 1 / 6}
VOICES: dict[str, float] = {"heart": 1, "teacher": 1, "kathleen": 2, "piper": 1}  # those that the model is to speak with
# Beside them, what the Talker said before, to say it behind another Thinker: more texts than anybody has read (knowledge distillation of
# sequences, Kim & Rush 2016, §3.2)
TUNED_VOICES: dict[str, float] = {"heart": 2, "teacher": 2, "kathleen": 2, "piper": 1, "told": 1}
LM_VOICES: dict[str, float] = {"told": 1, "heart": 2, "kathleen": 4}  # the speech LM says those of its configuration, and hears all
VOICE_NAMES = {"teacher": "heart", "piper": "joe"}  # of readers who are not called what their voice is
MORE_VOICES = {"kathleen": 8, "heart": 2, "teacher": 2, "cast": 2, "piper": 1, "flite": 1, "espeak": 1 / 8}
NATURAL_VOICES = {"kathleen": 6, "heart": 2, "teacher": 2, "piper": 2, "flite": 1, "espeak": 1 / 2, "world": 1 / 12}


SPLICED_VOICES = {"spliced": 1, "kathleen": 2, "heart": 2, "teacher": 1, "cast": 3, "piper": 1, "flite": 1 / 2, "espeak": 1 / 8}
SPLICES = 12_000  # new sentences out of Kathleen's
TOLD_VOICES = {"told": 1, "kathleen": 2, "heart": 2, "teacher": 1, "cast": 2, "piper": 1 / 2, "flite": 1 / 4, "espeak": 1 / 8}
TOLD = 18_000  # sentences, first
TOLD_FROM = ("novels", "stories", "dialogues")  # what is nearest to what real readers read
TELLER = ("chat", "codec", "vocoder", "talker")  # what it takes to say them
TOLD_BY = ("kathleen", "kathleen", "heart", "joe")  # taking turns


def _clips(shares: dict[str, float]) -> Callable[[Folders], Iterable[Row]]:
    """Clips whose sentences are not held out."""

    def rows(folders: Folders) -> Iterable[Row]:
        for reader, share in shares.items():
            number = None
            for number, row in enumerate(_reader(reader, folders)):
                row |= {"speaker": VOICE_NAMES.get(reader, row["speaker"])}
                if share >= 1:
                    yield from int(share) * [row]
                elif number % round(1 / share) == 0:
                    yield row
            if number is None:
                log.warning("there is no clip of %s", reader)

    return rows


def _reader(name: str, folders: Folders) -> Iterable[Row]:
    if name in release.READERS:
        return release.speech_rows(folders.data, held_out=False, readers=(name,))
    if name == "spliced":
        read = [row for row in release.speech_rows(folders.data, held_out=False, readers=("kathleen",)) if not _validates(row)]
        return _within(make_splices(read, folders.work / ALIGNER, folders.work / "voices" / name, SPLICES, "kathleen"), "audio")
    if name == "told":
        manifest = _told(folders)
    else:
        manifest = folders.world.manifest("speech") if name == "world" else folders.work / "voices" / f"{name}.jsonl"
    rows = _within(manifest, "audio")
    return (row for row in rows if not release.sentence_held_out(folders.data, row["text"]))


def _told(folders: Folders) -> Path:
    """The manifest of what the Talker says; made when it is not there."""
    out = folders.work / "voices" / "told"
    if not out.with_suffix(".jsonl").exists():
        texts: list[str] = []
        for source in TOLD_FROM:
            found = release.spoken_texts(folders.data, held_out=False, source=source)
            Random("told").shuffle(found)
            texts += found
        assemble([folders.work / step for step in TELLER], folders.work / "teller")
        make_told(texts[:TOLD], folders.work / "teller", out, TOLD_BY)
    return out.with_suffix(".jsonl")


def _within(manifest: Path, medium: str) -> Iterable[Row]:
    """Rows, with the paths of their media made absolute."""
    for row in release.read_jsonl(manifest):
        yield row | ({medium: str((manifest.parent / row[medium]).resolve())} if medium in row else {})


def _captioned(folders: Folders) -> Iterable[Row]:
    yield from _within(folders.world.manifest("captions"), "image")
    yield from release.drawing_rows(folders.data, held_out=False)
    yield from release.nlvr_captions(folders.data)


# --- the conversations of stage E

# Who is heard there, and how often. Questions about the world's pictures are read by `muomni data voices --questions`.
TRANSCRIBED = {
    "kathleen": 4,
    "told": 1 / 2,
    "heart": 2,
    "teacher": 1,
    "cast": 1,
    "piper": 1,
    "espeak": 1 / 2,
    "flite": 1 / 6,
    "world": 1 / 6,
}
ALOUD: dict[str, int] = {
    **{"world": 1, "questions/espeak": 2, "questions/flite": 1, "questions/piper": 1, "questions/cast": 1, "questions/crowd": 3},
    **dict.fromkeys((*VOICES, "espeak", "flite", "cast"), 1),
}
CAPTIONED = 3  # times that every scene is described in an epoch: a caption says all that a dozen answers would
HARDER = {"count": 4, "relation": 4}  # kinds of questions about pictures that are asked more often, times
MIX = {  # conversations of each kind in an epoch; `transcribe` follows from its rows
    "chat": 40_000,
    "prose": 30_000,
    "image_qa": 70_000,
    "image_qa_spoken": 240_000,
    "drawings": 8_000,
    "statement": 16_000,
    "follow_up": 20_000,
    "refusal": 12_000,
}


def _conversations(folders: Folders) -> Iterable[Row]:
    """Everything that somebody may say to the model. Captions of scenes are in the plain wording alone, unless it is asked where things are."""
    rng, aloud = Random("stage E"), _aloud(folders)
    asked = list(_asked(folders))
    audible = [a for a in asked if a.question in aloud]
    if not audible:
        raise DataError(f"{folders.work}/voices: nobody reads a question about a picture; make them with: muomni data voices --questions")
    weighed = [a for a in asked for _ in range(HARDER.get(a.kind, 1))]
    yield from conversations.typed(conversations.take(weighed, MIX["image_qa"], rng))
    weighed = [a for a in weighed if a.question in aloud]
    yield from conversations.spoken(conversations.take(weighed, MIX["image_qa_spoken"], rng), aloud, rng)
    captions = list(_within(folders.world.manifest("captions"), "image"))
    scenes = [row | {"caption": plain_caption(row["caption"])} for row in captions]
    yield from conversations.described(CAPTIONED * scenes, rng)
    placed = [row for row in captions if " at the " in row["caption"]]
    yield from conversations.described(CAPTIONED * placed, rng, conversations.PLACES_WORDINGS)
    drawings = [*release.drawing_rows(folders.data, held_out=False), *release.nlvr_captions(folders.data)]
    yield from conversations.described(conversations.take(drawings, MIX["drawings"], rng), rng)
    statements = [
        row
        for row in (*release.nlvr_statements(folders.data, held_out=False), *folders.extras("statements"))
        if normalised(row["sentence"]) not in release.held_out_statements(folders.data)
    ]
    yield from conversations.judged(conversations.take(statements, MIX["statement"], rng), rng)
    config = preset(PRESET)
    clips = list(_not_longer(_clips(TRANSCRIBED)(folders), config.max_audio_tokens / config.encoder_rate_hz))  # heard to their end
    yield from conversations.transcribed(clips, rng)
    dialogues = [*_dialogues(folders), *release.read_jsonl(folders.world.manifest("text_chat"))]
    yield from conversations.chats(conversations.take(dialogues, MIX["chat"], rng), aloud, rng)
    yield from conversations.passages(_prose(folders), LONG_PASSAGE_CHARACTERS, MIX["prose"], rng)
    small_talk = conversations.chats(release.read_jsonl(folders.world.manifest("text_chat")), {}, rng)
    between = [row for row in small_talk if len(row["messages"]) == 2]
    between += conversations.transcribed(rng.sample(clips, min(len(clips), len(between))), rng)
    yield from conversations.follow_ups(asked, aloud, between, MIX["follow_up"], rng)
    blank, silent = ([row[kind] for row in folders.extras(name)] for name, kind in (("blank", "image"), ("silence", "audio")))
    yield from conversations.refusals(audible, aloud, clips, blank, silent, MIX["refusal"], rng)


def _asked(folders: Folders) -> Iterable[Asked]:
    """The world's typed questions about pictures."""
    world = folders.world
    for row in release.read_jsonl(world.manifest("conversations")):
        if row["kind"] == "image_qa":
            image, question = row["messages"][0]["content"]
            path, reply = str((world.folder / image["image"]).resolve()), row["messages"][1]["content"]
            yield Asked(path, question["text"], reply, row["question_type"])


def _aloud(folders: Folders) -> Aloud:
    """Every sentence that a reader says, no held-out one among them."""
    aloud: Aloud = {}
    for reader, times in ALOUD.items():
        clips: dict[str, list[str]] = {}
        for row in _reader(reader, folders):
            clips.setdefault(row["text"], []).append(row["audio"])
        for text, files in clips.items():
            aloud.setdefault(text, []).extend(times * [files])
    return aloud


def _not_longer(rows: Iterable[Row], longest_s: float) -> Iterable[Row]:
    """Those whose clips are not."""
    for row in rows:
        if (row["duration_s"] if "duration_s" in row else soundfile.info(row["audio"]).duration) <= longest_s:
            yield row


GPT_RATE = 4e-3  # the best of the three
ALIGNER = "audio-more"  # the step whose audio encoder says where words are to be cut,
LISTENER = "audio-spliced"  # and the one that the codec learns with
HEARING, SEEING, TUNED = "audio-told", "vision-more", "sft-remembering"  # whose audio encoder, vision encoder and Thinker ship


def _plain_gpt(steps: int, rate: float) -> ReleaseStage:
    train = {"steps": steps, "batch_size": 16, "micro_batch_size": 16, "learning_rate": rate, "warmup_steps": 100, "optimizer": "muon"}
    return ReleaseStage("plain-gpt", _documents, train, init_from=("text",), world=("text", "text_chat"))


def _speech_lm(steps: int, optimizer: str, rate: float, evaluate_every: int) -> ReleaseStage:
    """The second system: says two voices and hears more, through the codec's codes. An update is 32 sequences of about 200 ids."""
    train = {"steps": steps, "batch_size": 32, "micro_batch_size": 16, "learning_rate": rate, "optimizer": optimizer}
    train |= {"warmup_steps": min(200, steps // 10), "evaluate_every": evaluate_every}
    return ReleaseStage("speech-lm", _clips(LM_VOICES), train, init_from=(LISTENER, "codec", "vocoder"), data={"max_audio_s": 12.0})


def _hearing(shares: dict[str, float], steps: int, init_from: str, batch_size: int = 32) -> ReleaseStage:
    """More of it, from an encoder that hears already."""
    train = {
        "steps": steps,
        "batch_size": batch_size,
        "micro_batch_size": 16,
        "learning_rate": 1e-3,
        "warmup_steps": 100,
        "optimizer": "muon",
    }
    data = {"max_audio_s": 12.0, "mel_masks": 1, "vary_speech": True, "cached_hours": 60.0}
    return ReleaseStage("audio", _clips(shares), train, (init_from,), data=data)


def _codec(steps: int, sizes: dict[str, int] | None = None) -> ReleaseStage:
    train = {"steps": steps, "batch_size": 32, "micro_batch_size": 32, "learning_rate": 1e-3, "warmup_steps": 100}
    data = {"max_audio_s": 12.0, "cached_hours": 60.0}
    return ReleaseStage("codec", _clips(VOICES), train, init_from=(LISTENER,), data=data, model={"codec": sizes} if sizes else {})


def _seeing(steps: int, *init_from: str, freeze: tuple[str, ...] = ()) -> ReleaseStage:
    train = {
        "steps": steps,
        "batch_size": 128,
        "micro_batch_size": 128,
        "learning_rate": 1e-3,
        "warmup_steps": 100,
        "optimizer": "muon",
        "freeze": list(freeze),
    }
    return ReleaseStage("vision", _captioned, train, init_from)


UNTUNED = ("chat", LISTENER, SEEING)
IMAGE_TOKENS: tuple[ImageTokens, ...] = ("cls", "pooled", "grid")  # that are compared


def _tuning(
    steps: int,
    *init_from: str,
    freeze: tuple[str, ...] = ("audio_encoder", "vision_encoder"),
    image_tokens: ImageTokens | None = None,
    remembers: tuple[str, float] | None = None,
    learning_rate: float = 1e-3,
) -> ReleaseStage:
    """Stage E. With the encoders frozen, what they hear and see is learned, and CTC is what it was."""
    train = {
        "steps": steps,
        "batch_size": 64,
        "micro_batch_size": 16,
        "learning_rate": learning_rate,
        "warmup_steps": 100,
        "optimizer": "muon",
        "evaluate_every": 1000,
        "freeze": list(freeze),
    }
    data = {"cached_hours": 20.0, "side_by_side": 8, "vary_speech": True}
    return ReleaseStage("sft", _conversations, train, init_from, data=data, image_tokens=image_tokens, remembers=remembers)


STAGES: dict[str, ReleaseStage] = {
    "text": ReleaseStage(
        "text",
        _documents,
        {"steps": 3600, "batch_size": 16, "micro_batch_size": 16, "learning_rate": 2e-3, "warmup_steps": 100, "optimizer": "muon"},
        world=("text", "text_chat"),
    ),
    # the baseline: the best of three learning rates, in short runs, then for as long as the Thinker learns to read and to chat
    **{f"gpt-{rate:g}": _plain_gpt(200, rate) for rate in (2e-3, 4e-3, 8e-3)},
    "gpt": _plain_gpt(3800, GPT_RATE),
    "chat": ReleaseStage(
        "sft",
        _dialogues_and_prose,
        {"steps": 300, "batch_size": 32, "micro_batch_size": 16, "learning_rate": 2e-4, "warmup_steps": 20},
        init_from=("text",),
        world=("text_chat",),
    ),
    "audio": ReleaseStage(
        "audio",
        _clips(MANY_VOICES),
        {"steps": 4500, "batch_size": 64, "micro_batch_size": 16, "learning_rate": 1.5e-3, "warmup_steps": 300},
        data={"max_audio_s": 12.0, "mel_masks": 2, "vary_speech": True, "cached_hours": 60.0},
    ),
    "audio-natural": _hearing(NATURAL_VOICES, 5000, "audio", batch_size=64),
    "audio-more": _hearing(MORE_VOICES, 11000, "audio-natural"),
    "audio-spliced": _hearing(SPLICED_VOICES, 8000, ALIGNER),
    "vision": _seeing(2000, "chat"),
    "vision-more": _seeing(2500, "chat", "vision"),  # shapes come last
    "codec": _codec(6000),
    "codec-175": _codec(3000, {"n_codebooks": 2, "codebook_size": 128}),  # the documents' codec of 175 bit/s, to compare with
    "vocoder": ReleaseStage(
        "vocoder",
        _clips(VOICES),
        {"steps": 4000, "batch_size": 16, "micro_batch_size": 16, "learning_rate": 2e-3, "warmup_steps": 100, "adversarial_after": 2500},
        init_from=("codec",),
        data={"max_audio_s": 12.0, "cached_hours": 60.0, "codec_share": 0.8},
    ),
    "talker": ReleaseStage(
        "talker",
        _clips(VOICES),
        {"steps": 8000, "batch_size": 32, "micro_batch_size": 32, "learning_rate": 1.5e-3, "warmup_steps": 200},
        init_from=("chat", "codec"),
        data={"max_audio_s": 12.0, "cached_hours": 60.0},
    ),
    "audio-told": _hearing(TOLD_VOICES, 6000, LISTENER),
    # Short runs, compared by what they score: one vector of a picture, means of its patches, or every patch.
    **{f"sft-{tokens}": _tuning(400, *UNTUNED, image_tokens=tokens) for tokens in IMAGE_TOKENS},
    "sft": _tuning(4500, *UNTUNED),
    # To bind colours to shapes and places, the vision encoder has to learn too.
    "sft-seeing": _tuning(4500, "sft", freeze=("audio_encoder",)),
    "sft-hearing": _tuning(3000, "sft-seeing", HEARING, freeze=("audio_encoder",)),
    "sft-remembering": _tuning(8800, "sft-hearing", HEARING, freeze=("audio_encoder",), remembers=("chat", 0.15), learning_rate=8e-4),
    # Retrieval by what the tuned encoder sees and the tuned Thinker reads.
    "vision-heads": _seeing(400, SEEING, TUNED, freeze=("vision_encoder", "image_projector")),
    # The Talker follows the Thinker that ships. Its loss is looked at in the end alone: the weights that have the least do not say it best.
    "talker-tuned": ReleaseStage(
        "talker",
        _clips(TUNED_VOICES),
        {
            "steps": 2900,
            "batch_size": 32,
            "micro_batch_size": 32,
            "learning_rate": 6e-4,
            "warmup_steps": 50,
            "evaluate_every": 2900,
            "freeze": ["talker.aligner"],
        },
        init_from=("talker", "codec", TUNED),
        data={"max_audio_s": 12.0, "cached_hours": 60.0},
    ),
    "speech-lm": _speech_lm(4500, "muon", 2e-3, evaluate_every=500),
    # does Muon bring anything here? Short runs, beside AdamW at the best of three learning rates (python benchmarks/curves.py)
    "speech-lm-muon": _speech_lm(300, "muon", 2e-3, evaluate_every=25),
    **{f"speech-lm-adamw-{rate:g}": _speech_lm(300, "adamw", rate, evaluate_every=25) for rate in (1e-3, 2e-3, 4e-3)},
}


def _about(row: Row) -> list[str]:
    """What decides whether a row validates; any of it suffices. Drawings go by their file: the two drawings of a name are two pictures."""
    return row.get("about") or [row["image"] if "image" in row else "\n".join(release.passages(row))]


def _validates(row: Row) -> bool:
    return any(held_out(f"validation {text}", VALIDATION) for text in _about(row))


def _write_manifests(step: str, folders: Folders) -> tuple[list[Path], list[Path]]:
    """The training and validation manifests of a step; written anew every time, unchanged rows giving unchanged files."""
    stage = STAGES[step]
    sides: tuple[list[str], list[str]] = [], []
    rows = stage.rows(folders)
    for row in _not_longer(rows, stage.data["max_audio_s"]) if "max_audio_s" in stage.data else rows:
        sides[_validates(row)].append(json.dumps(row, ensure_ascii=False))
    if not sides[0]:
        raise DataError(f"{folders.data}: no training row for stage {step}; fetch the data with: muomni data get all")
    paths = [folders.manifest(step), folders.manifest(f"{step}.validation")]
    for path, lines in zip(paths, sides, strict=True):
        content = "".join(f"{line}\n" for line in lines)
        if path.exists() and path.read_text(encoding="utf-8") == content:
            continue
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_suffix(".part")
        part.write_text(content, encoding="utf-8")
        part.replace(path)
    return [paths[0], *(folders.world.manifest(name) for name in stage.world)], [path for path in paths[1:] if path.stat().st_size]


def train_step(step: str, data: Path, work: Path, seed: int = 0) -> Row:
    """Train a step, or take note that it is done; what it took is also written to result.json in its run folder."""
    run = release_run(step, data, work, seed)
    stage = STAGES[step]
    if not (work / step).exists():
        sources = (*stage.init_from, *([stage.remembers[0]] if stage.remembers is not None else []))
        write_json(_begun(work, step), {name: _weights_digest(work / name) for name in sources})
    elif changed := _changed(work, step):
        raise ConfigError(f"{work / step}: was begun from other weights of {', '.join(changed)}; remove the folder to train it anew")
    if stage.remembers is not None:
        name, share = stage.remembers
        _mix(work / stage.init_from[0], work / name, share, _mixed(work, step))
    trained = train_on_all(run)
    row: Row = {"step": step, "steps": trained.steps, "kept_step": trained.kept_step, "seconds": round(trained.seconds)}
    row |= {"metrics": trained.metrics, "data": _amount(run)}
    write_json(work / step / "result.json", row)
    return row


def _begun(work: Path, step: str) -> Path:
    """Which weights a step began with."""
    return work / "data" / f"{step}.begun.json"


def _changed(work: Path, step: str) -> list[str]:
    """The steps whose weights are no longer those that this one began with."""
    begun = read_json(note) if (note := _begun(work, step)).exists() else {}
    return [name for name, digest in begun.items() if _weights_digest(work / name) != digest]


def _weights_digest(folder: Path) -> str:
    """Of the model that a step begins with."""
    found = find_checkpoint(folder)
    return hashlib.sha256(b"".join(path.read_bytes() for path in sorted(found.glob("*.safetensors")))).hexdigest()[:16]


def _mixed(work: Path, step: str) -> Path:
    return work / "data" / f"{step}.start"


def _mix(folder: Path, other: Path, share: float, out: Path) -> None:
    """The model in `folder` with a Thinker of which `share` is the other's: part of the way back, much of what tuning forgot is there again and most of
    what it taught still is (Wortsman et al. 2022, "Robust fine-tuning of zero-shot models", §3)."""
    tuned, before = (load_model(find_checkpoint(folder)) for folder in (folder, other))
    assert tuned.tokenizer is not None, "a Thinker is always saved with its tokenizer"
    tensors = {
        name: torch.lerp(tensor.float(), before.tensors[name].float(), share) if name.startswith("thinker.") else tensor
        for name, tensor in tuned.tensors.items()
    }
    save_model(out, tensors, tuned.config, tuned.components, tuned.tokenizer.read_bytes())


def _amount(run: RunConfig) -> Row:
    """Rows of the training manifests, and the hours of their clips (repeated ones as often as they occur)."""
    rows = [row for name in run.data.train for row in _within(Path(name), "audio")]
    clips = Counter(clip for row in rows for clip in clips_of(row))
    seconds = sum(n * soundfile.info(path).duration for path, n in clips.items())
    kinds = Counter(row["kind"] for row in rows if "about" in row)
    found = {"rows": len(rows)} | ({"kinds": dict(kinds)} if kinds else {})
    return found | ({"clips": len(clips), "hours": round(seconds / 3600, 2)} if clips else {})


NEEDED = ("text", "chat", "audio", "audio-natural", ALIGNER, LISTENER, "vision", SEEING)  # without these nothing is published,
AFTER_TUNED = ("vision-heads", "talker-tuned")  # nor the tuned Thinker without these, trained behind it
PUBLISHED = tuple(
    dict.fromkeys(
        (
            "chat",
            LISTENER,
            SEEING,
            "codec",
            "vocoder",
            "talker",
            HEARING,
            "sft",
            "sft-seeing",
            "sft-hearing",
            TUNED,
            *AFTER_TUNED,
        )
    )
)
MOST_BYTES, MOST_PARAMETERS = 40_000_000, 25_650_000
CARD_BYTES = 12_000  # that the model card, which is written when all is measured, may add


def publish(work: Path, out: Path) -> None:
    """What is trained so far as one model in bfloat16, with how each of its steps was trained: of a component the latest. With a Talker that
    follows the tuned Thinker it is the whole. Raises ConfigError for a missing step, and for a model that is larger than a release may be."""
    for step in (*NEEDED, *(AFTER_TUNED if (work / TUNED / "result.json").exists() else ())):
        if not (work / step / "result.json").exists():
            raise ConfigError(f"{work / step / 'result.json'}: no such file; train its stage first: muomni train release --stage {step}")
        if changed := _changed(work, step):
            raise ConfigError(
                f"{work / step}: was trained behind other weights of {', '.join(changed)}; remove the folder and train it anew"
            )
    done = [step for step in STAGES if (work / step / "result.json").exists() and step in (*NEEDED, *PUBLISHED)]
    lost = sorted(_before(done) - set(done))
    extra = {"recipe": "release", "training": [read_json(work / step / "result.json") for step in done], "unrecorded": lost}
    sources = [work / step for step in PUBLISHED if step in done]
    model = assemble(sources, out, (*COMPONENTS, "contrastive"), dtype=torch.bfloat16, extra=extra)
    parameters, n_bytes = count(model), sum(file.stat().st_size for file in out.iterdir() if file.is_file())
    if parameters > MOST_PARAMETERS or n_bytes + CARD_BYTES > MOST_BYTES:
        raise ConfigError(
            f"{out}: written, but with {parameters:,} parameters in {n_bytes / 1e6:.1f} MB it is larger than a release may be "
            f"({MOST_PARAMETERS:,} in {MOST_BYTES / 1e6:.0f} MB with its card); make a component of preset {PRESET} smaller"
        )


def _before(steps: Iterable[str]) -> set[str]:
    """The steps that these began with, and those that they did."""
    found = {name for step in steps for name in STAGES[step].init_from}
    return found | _before(found) if found else found


def publish_speech_lm(work: Path, out: Path) -> None:
    """The trained speech LM with its tokenizer, codec and vocoder, in bfloat16, with how it was trained."""
    path = work / "speech-lm" / "result.json"
    if not path.exists():
        raise ConfigError(f"{path}: no such file; train its stage first: muomni train release --stage speech-lm")
    saved = load_model(find_checkpoint(path.parent))
    tokenizer = saved.tokenizer.read_bytes() if saved.tokenizer is not None else None
    extra = {"recipe": "release", "training": [read_json(path)]}
    save_model(out, saved.tensors, saved.config, saved.components, tokenizer, dtype=torch.bfloat16, extra=extra)


def release_run(step: str, data: Path, work: Path, seed: int = 0) -> RunConfig:
    """The run of one step, its manifests written. Raises ConfigError for an unknown step, DataError when data is missing."""
    if step not in STAGES:
        raise ConfigError(f"recipe release has no stage {step!r}; it has: {', '.join(STAGES)}")
    stage, folders = STAGES[step], Folders(data, work)
    train, validation = _write_manifests(step, folders)
    init_from = [str(work / name) for name in stage.init_from]
    if stage.remembers is not None:
        init_from[0] = str(_mixed(work, step))
    raw = {
        "stage": stage.stage,
        "preset": PRESET,
        "model": stage.model,
        "init_from": init_from,
        "image_tokens": stage.image_tokens,
        "data": {"train": [*map(str, train)], "validation": [*map(str, validation)], **stage.data},
        "train": {"seed": seed, "evaluate_every": 500, "checkpoint_every": 100, **stage.train},
        "out_dir": str(work / step),
    }
    return parse(RunConfig, raw, f"recipe release, stage {step}")
