"""The data of the recipe `release`: real text, speech and pictures from the data folder (layout of `muomni data get`), with the one split.

    text      dialogues.dev; 5 % of the stories, by their text; the novel HELD_OUT_NOVEL          are held out, whole documents
    speech    10 % of the sentences, by their text, and every sentence that a held-out document holds; the reader LJ
    pictures  NLVR `hidden`; of the drawings 10 % by their name, and one of the drawings of another 10 % of the names

Both sides follow from the rules in this file alone, so no list is kept: a sentence is on one side in every voice and every stage.
"""

from __future__ import annotations

import gzip
import json
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

from omni.data.split import held_out, normalised
from omni.data.worlds import nlvr
from omni.errors import DataError

Row = dict[str, Any]

HELD_OUT_NOVEL = "Ward_Milly_1881"
HELD_OUT_STORIES = 0.05
HELD_OUT_SENTENCES = 0.10
HELD_OUT_DRAWINGS = 0.10
DOCUMENT_CHARACTERS = 4_000  # novels are cut at paragraphs into documents of about this length
READERS = ("kathleen", "lj", "heart")
UNSEEN_READERS = ("lj",)  # nothing trains on them: how a model hears somebody whom it has never heard
DRAWINGS = ("emoji", "clipart")
SPEAKABLE = re.compile(r"[A-Z][A-Za-z',;:? -]*[a-z][.?!]")  # a plain sentence: nothing that is read otherwise than it is spelled
SPEAKABLE_WORDS = range(3, 21)
ABBREVIATION = re.compile(r"\b(?:Mr|Mrs|Ms|Dr|St|No|etc|vs|Ave|Rd|Blvd)\b")


def read_jsonl(path: Path) -> Iterator[Row]:
    """The rows of a JSONL file, gzipped or not. Raises DataError that says how to get the file, or names the line that is wrong."""
    try:
        with gzip.open(path, "rt", encoding="utf-8") if path.suffix == ".gz" else open(path, encoding="utf-8") as file:
            for number, line in enumerate(file, 1):
                try:
                    yield json.loads(line)
                except json.JSONDecodeError as error:
                    raise DataError(f"{path}:{number}: not JSON: {error.msg}") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror or error}); fetch it with: muomni data get") from None


# --- text


def text_documents(data: Path, *, held_out: bool) -> Iterator[Row]:
    """Rows {"source", "messages"} of dialogues and {"source", "text"} of stories and novels, of one side of the split."""
    for row in read_jsonl(data / f"text/dialogues.{'dev' if held_out else 'train'}.jsonl.gz"):
        yield {"source": "dialogues", "messages": row["messages"]}
    for row in read_jsonl(data / "text/stories.jsonl"):
        text = row["text"].replace("##", "").strip()
        if _is_held_out_story(text) == held_out:
            yield {"source": "stories", "text": f"{row['title']}\n{text}"}
    for novel in _novels(data):
        if (novel.stem == HELD_OUT_NOVEL) == held_out:
            for document in _documents(novel.read_text(encoding="utf-8-sig")):
                yield {"source": "novels", "text": document}


def _is_held_out_story(text: str) -> bool:
    return held_out(text, HELD_OUT_STORIES)


def _novels(data: Path) -> list[Path]:
    novels = sorted((data / "text/novels").glob("*.txt"))
    if not novels:
        raise DataError(f"{data}/text/novels: no novel there; fetch them with: muomni data get novels")
    return novels


def _documents(novel: str) -> Iterator[str]:
    """Whole paragraphs, lines joined, until a document is long enough."""
    paragraphs: list[str] = []
    for paragraph in re.split(r"\n\s*\n", novel):
        joined = " ".join(paragraph.split())
        if joined:
            paragraphs.append(joined)
        if sum(map(len, paragraphs)) > DOCUMENT_CHARACTERS:
            yield "\n".join(paragraphs)
            paragraphs = []
    if paragraphs:
        yield "\n".join(paragraphs)


def passages(row: Row) -> list[str]:
    """The texts of a document: a dialogue's turns, or the whole."""
    return [message["content"] for message in row["messages"]] if "messages" in row else [row["text"]]


def sentences(row: Row) -> Iterator[str]:
    """The sentences of a document."""
    for passage in passages(row):
        yield from (s for line in passage.splitlines() for s in re.split(r"(?<=[.?!])[\"”’]?\s+", line.strip()) if s)


def speakable(sentence: str) -> bool:
    """Whether a synthesizer will say `sentence` as it is spelled: 3 to 20 plain words, no numbers, no abbreviations."""
    return bool(SPEAKABLE.fullmatch(sentence)) and len(sentence.split()) in SPEAKABLE_WORDS and not ABBREVIATION.search(sentence)


# --- speech


@cache
def _reserved(data: Path) -> frozenset[str]:
    """Every sentence of the held-out documents, normalised."""
    return frozenset(normalised(s) for row in text_documents(data, held_out=True) for s in sentences(row))


def sentence_held_out(data: Path, text: str) -> bool:
    """Whether no clip of `text` may be trained on."""
    return held_out(text, HELD_OUT_SENTENCES) or normalised(text) in _reserved(data)


def speech_rows(data: Path, *, held_out: bool, readers: tuple[str, ...] = READERS) -> Iterator[Row]:
    """Rows {"audio": absolute path, "text", "speaker", "sentence_id", "duration_s"} of the recorded and the teacher's speech."""
    for reader in readers:
        for row in read_jsonl(data / f"speech/{reader}.jsonl"):
            if (reader in UNSEEN_READERS or sentence_held_out(data, row["text"])) == held_out:
                kept = {name: row[name] for name in ("text", "speaker", "sentence_id", "duration_s")}
                yield {"audio": str((data / "speech" / row["audio"]).resolve()), **kept}


def spoken_texts(data: Path, *, held_out: bool, source: str | None = None) -> list[str]:
    """Different sentences for synthesizers to say (from one `source` alone: dialogues, stories or novels), in order of appearance; none is read by the
    real readers of ARCTIC and LJ."""
    read = {normalised(row["text"]) for reader in ("kathleen", "lj") for row in read_jsonl(data / f"speech/{reader}.jsonl")}
    found: dict[str, str] = {}
    for row in text_documents(data, held_out=held_out):
        if source not in (None, row["source"]):
            continue
        for sentence in sentences(row):
            key = normalised(sentence)
            if key not in found and key not in read and speakable(sentence) and sentence_held_out(data, sentence) == held_out:
                found[key] = sentence
    return list(found.values())


# --- pictures


def drawing_rows(data: Path, *, held_out: bool) -> Iterator[Row]:
    """Rows {"image": absolute path, "caption", "name", "set"} of emoji and clip art; held-out ones also tell in "split" whether the "name" is
    unseen in every set, or only this "drawing" of a name that another set has drawn too."""
    for drawings in DRAWINGS:
        for row in read_jsonl(data / f"images/{drawings}.jsonl"):
            split = _drawing_split(row)
            if (split != "train") == held_out:
                yield {**row, "image": str((data / "images" / row["image"]).resolve()), "split": split}


def _drawing_split(row: Row) -> str:
    if held_out(row["name"], HELD_OUT_DRAWINGS):
        return "name"
    return "drawing" if row["set"] == "openmoji" and held_out(f"drawing of {row['name']}", HELD_OUT_DRAWINGS) else "train"


def nlvr_statements(data: Path, *, held_out: bool) -> Iterator[Row]:
    """Rows {"image": absolute path, "sentence", "label", "identifier"} of NLVR: people's statements, true or false of a picture. The training ones
    (`dev`) may have "objects", what is in the picture."""
    for row in read_jsonl(data / f"images/nlvr.{'hidden' if held_out else 'dev'}.jsonl.gz"):
        yield row | {"image": str((data / "images" / row["image"]).resolve())}


@cache
def held_out_statements(data: Path) -> frozenset[str]:
    """The sentences of NLVR's held-out statements, normalised: simple ones are said of training pictures too, and of made-up ones."""
    return frozenset(normalised(row["sentence"]) for row in nlvr_statements(data, held_out=True))


def nlvr_captions(data: Path) -> Iterator[Row]:
    """Rows {"image": absolute path, "caption"} of the NLVR `dev` pictures whose objects are told."""
    for row in nlvr_statements(data, held_out=False):
        if "objects" in row:
            yield {"image": row["image"], "caption": nlvr.caption(row["objects"])}
