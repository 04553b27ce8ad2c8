"""The held-out sentences that speech is measured on: `evaluation_data/sentences.jsonl`, rows {"id", "text", "source", "words", "recordings"}.

    python -m omni.evaluation.sentences DATA      writes the list anew from the data folder; the same data give the same list

They come from the held-out novel, the held-out dialogues and ARCTIC. No stage trains on their text or on a sound of it. They are plain: no
number, abbreviation or name inside, whose spelling a recognizer can only guess. `words` counts as error rates do; `recordings` names, for each
reader who has read the sentence, a file in the data folder. The teacher can be asked: evaluation_data/recordings/heart holds what it says
(`python -m omni.evaluation.sentences DATA --teacher`)."""

from __future__ import annotations

import argparse
import hashlib
import json
import re
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from functools import cache
from pathlib import Path

from omni.checkpoint import shipped
from omni.data import release
from omni.data.split import normalised
from omni.errors import DataError, OmniError
from omni.evaluation.metrics import normalise

EVALUATION_DATA = shipped("evaluation_data")
LIST = EVALUATION_DATA / "sentences.jsonl"
RECORDINGS = EVALUATION_DATA / "recordings"  # READER/ID.opus of sentences that the data folder has no recording of
TEACHER = "heart"
LENGTHS = {"short": range(3, 16), "long": range(16, 31)}  # words
QUOTAS = {
    ("arctic", "short"): 80,
    ("novels", "short"): 80,
    ("dialogues", "short"): 80,
    ("novels", "long"): 60,
    ("dialogues", "long"): 60,
}
NEW_WORDS = 0.25  # of a quota is for sentences with a word that the Talker never meets in training
INSIDE = re.compile(r"[a-z][a-z']*[,;:]?|I('[a-z]+)?,?")  # words behind the first: no name, no hyphen, no mark of its own
SLIPS = "you you|aright|ye|mane of|ike|yo|goo|the care|for you assistance|you visit|hubert j|jasbir|bong"  # in the draw; all of them words elsewhere
MISWRITTEN = re.compile(
    rf"\b(?:ok|tv|wifi|veg|{SLIPS})\b|(?<!\w)'|'(?!\w)|'nt\b", re.IGNORECASE
)  # what recognizers write otherwise, and slips
CUT = re.compile(rf"{release.ABBREVIATION.pattern}\.$")  # behind it a sentence goes on
TYPO = 20  # dialogues are typed by many hands: a word that no book has is a typing error if it is rarer


@dataclass(frozen=True)
class Sentence:
    """One of the list; `words` of them as error rates count."""

    id: str
    text: str
    source: str
    words: int
    recordings: dict[str, str] = field(default_factory=dict)

    @property
    def length(self) -> str:
        """ "short" (at most 15 words) or "long"."""
        return "short" if self.words in LENGTHS["short"] else "long"

    def recording(self, reader: str, data: Path) -> Path | None:
        """The file in which `reader` says it, if there is one."""
        made = RECORDINGS / reader / f"{self.id}.opus"
        return data / self.recordings[reader] if reader in self.recordings else made if made.exists() else None


def load_sentences(path: Path = LIST) -> list[Sentence]:
    """The list. Raises DataError when it is not there or holds nothing."""
    found = [Sentence(**row) for row in release.read_jsonl(path)]
    if not found:
        raise DataError(f"{path}: holds no sentence")
    return found


# --- what is trained on


@cache
def training_text(data: Path) -> str:
    """All prose, dialogue and speech that any stage trains on, normalised, words between single spaces, one string. (Captions are not in it: the
    Thinker alone reads them.)"""
    documents = (passage for row in release.text_documents(data, held_out=False) for passage in release.passages(row))
    read = (row["text"] for row in release.speech_rows(data, held_out=False))
    return f" {' '.join(normalised(text) for texts in (documents, read) for text in texts)} "


def read_in_training(text: str, data: Path) -> bool:
    """Whether a stage may have read `text`, be it as a part of a longer one."""
    return f" {normalised(text)} " in training_text(data)


def trained_on(text: str, data: Path) -> bool:
    """Whether a stage may have read `text` or heard it."""
    return read_in_training(text, data) or not release.sentence_held_out(data, text)


@cache
def training_words(data: Path) -> frozenset[str]:
    """Every word of `training_text`."""
    return frozenset(word.strip("'") for word in training_text(data).split())  # there, quotation marks stick to their words


@cache
def spoken_vocabulary(data: Path) -> frozenset[str]:
    """Every word that a clip for training may say: of the readers, and of the synthesizers, which are given sentences of the training text."""
    texts = [row["text"] for row in release.speech_rows(data, held_out=False)] + release.spoken_texts(data, held_out=False)
    return frozenset(word for text in texts for word in normalise(text).split())


def check_held_out(sentences: Sequence[Sentence], data: Path) -> None:
    """Raises DataError when one of them is trained on."""
    trained = [s.text for s in sentences if trained_on(s.text, data)]
    if trained:
        raise DataError(f"{len(trained)} of {len(sentences)} sentences are trained on, for example {trained[0]!r}; write the list anew")


# --- making the list


def plain(sentence: str) -> bool:
    """Whether it is said as it is spelled, and a recognizer that hears it can spell it."""
    return (
        bool(release.SPEAKABLE.fullmatch(sentence))
        and not release.ABBREVIATION.search(sentence)
        and not MISWRITTEN.search(sentence)
        and not re.search(r"\s[,;:?]|[.?!]{2}|[A-Z]{2}", sentence)
        and "-" not in sentence
        and all(INSIDE.fullmatch(word) for word in re.sub(r"[.?!]$", "", sentence).split()[1:])
    )


def _candidates(data: Path) -> Iterator[tuple[str, str]]:
    """Different plain sentences with their sources, in order of appearance."""
    documents = [row for row in release.text_documents(data, held_out=True) if row["source"] != "stories"]
    texts = [(row["source"], text) for row in documents for text in _whole_sentences(row)]
    texts += [("arctic", row["text"]) for row in release.speech_rows(data, held_out=True, readers=("kathleen",))]
    spelled = _spelled_words(data)
    found: set[str] = set()
    for source, text in texts:
        if normalised(text) not in found and plain(text) and (source != "dialogues" or spelled.issuperset(normalised(text).split())):
            found.add(normalised(text))
            yield source, text


def _whole_sentences(row: release.Row) -> Iterator[str]:
    before = ""
    for text in release.sentences(row):
        if not CUT.search(before):
            yield text
        before = text


def _spelled_words(data: Path) -> set[str]:
    """Words that books have, and frequent ones of the dialogues."""
    counts: Counter[str] = Counter()
    for held_out in (False, True):
        for row in release.text_documents(data, held_out=held_out):
            weight = 1 if row["source"] == "dialogues" else TYPO
            for passage in release.passages(row):
                counts.update(dict.fromkeys(normalised(passage).split(), weight))
    return {word for word, count in counts.items() if count >= TYPO}


def make_list(data: Path) -> list[Sentence]:
    """The list, from the data folder; the draw is by the hash of each sentence."""
    readings = _readings(data)
    groups: dict[tuple[str, str], list[Sentence]] = {group: [] for group in QUOTAS}
    for source, text in _candidates(data):
        key = normalised(text)
        name = hashlib.sha256(key.encode()).hexdigest()[:8]
        sentence = Sentence(f"{source}-{name}", text, source, len(normalise(text).split()), readings.get(key, {}))
        if (source, sentence.length) in groups and sentence.words in LENGTHS[sentence.length]:
            groups[source, sentence.length].append(sentence)
    chosen: list[Sentence] = []
    for group, quota in QUOTAS.items():
        chosen += _draw(sorted(groups[group], key=lambda s: s.id), quota, data)
    return chosen


def _readings(data: Path) -> dict[str, dict[str, str]]:
    """Normalised text → reader → the first take that is not trained on."""
    out: dict[str, dict[str, str]] = {}
    for reader in release.READERS:
        for row in release.speech_rows(data, held_out=True, readers=(reader,)):
            audio = Path(row["audio"]).relative_to((data / "speech").resolve())
            out.setdefault(normalised(row["text"]), {}).setdefault(reader, f"speech/{audio.as_posix()}")
    return out


def _draw(sentences: Sequence[Sentence], quota: int, data: Path) -> Iterator[Sentence]:
    """Those that nothing trains on: first some that each bring a word that is new to the Talker, then as they come."""
    known = set(spoken_vocabulary(data))
    taken: list[Sentence] = []
    for most, bringing_a_word in ((int(NEW_WORDS * quota), True), (quota, False)):
        for sentence in sentences:
            new = set(normalise(sentence.text).split()) - known
            if len(taken) < most and sentence not in taken and (new or not bringing_a_word) and not trained_on(sentence.text, data):
                taken.append(sentence)
                known |= new
    yield from sorted(taken, key=lambda s: s.id)


def write_list(sentences: Iterable[Sentence], path: Path) -> None:
    """One row a sentence."""
    path.write_text("".join(json.dumps(asdict(s)) + "\n" for s in sentences), encoding="utf-8")


def record_teacher(sentences: Sequence[Sentence], data: Path, out: Path) -> None:
    """Let the teacher say what the data folder has no recording of by it, into OUT/heart. Interrupted, it continues."""
    from omni.data.worlds.voices import TEACHER_VOICE, Clip, synthesize

    missing = [s for s in sentences if TEACHER not in s.recordings]
    synthesize([Clip(f"{TEACHER}/{s.id}.opus", s.text, "teacher", TEACHER_VOICE, 1.0, 50) for s in missing], out, data, print)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="folder of `muomni data get`")
    parser.add_argument("--teacher", action="store_true", help="let the teacher say the sentences of the list instead")
    arguments = parser.parse_args()
    if arguments.teacher:
        record_teacher(load_sentences(), arguments.data, RECORDINGS)
    else:
        write_list(make_list(arguments.data), LIST)


if __name__ == "__main__":
    try:
        main()
    except OmniError as error:
        sys.exit(f"error: {error}")
