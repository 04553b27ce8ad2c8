"""Whether speech says its text: judges write down what they hear of the held-out sentences (omni.evaluation.sentences), every voice apart.

Beside the Talker, in the same table: what they hear of the recordings of the reader whose voice it is, where there are any, and of what is left
of these after a log-mel, and after the codec, through each vocoder. Two controls: the Talker without the Thinker's states, and speech against
the text of the next sentence. What is measured on some of the sentences only (without states, Griffin-Lim) stands beside what it is compared with
on the same ones: `talker_where_zeroed`, `mel_neural_where_griffin_lim`.

The groups are `short` (up to 15 words) and `long` (16 to 30) sentences, and those `with_unseen_words`: words that the training text nowhere
has, be it read or heard. Of these words and of the others the share is told that was heard."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from omni.alignment import SLOTS
from omni.audio import load_audio
from omni.characters import encode_characters
from omni.errors import DataError
from omni.evaluation.codec import codes_of, through_codec, through_mel, vocoders
from omni.evaluation.judge import Judge, find_judges
from omni.evaluation.metrics import error_rates, normalise, points_over, rounded_ratio, spread, words_heard
from omni.evaluation.sentences import LENGTHS, LIST, Sentence, check_held_out, load_sentences, training_words
from omni.inference.omni import Omni
from omni.inference.sampling import Sampling
from omni.inference.speech import Speech
from omni.talker import USUAL

log = logging.getLogger(__name__)

REPEATED = 20  # sentences that are said twice
CONTROLS = 60  # sentences of each length that show what a control, or Griffin-Lim, does
RUNAWAY = 2.0  # times the usual length, and a second more: speech that does not end
REPLIES, REPLY_WORDS = 10, 60  # so many texts of as many words, to be said to their end

Row = dict[str, Any]


@contextmanager
def states_zeroed(omni: Omni) -> Iterator[None]:
    """Meanwhile the Talker is told nothing by the Thinker, only the spelling and the voice."""
    hook = omni.model.talker.conditioning.register_forward_pre_hook(lambda _, inputs: (torch.zeros_like(inputs[0]), *inputs[1:]))
    try:
        yield
    finally:
        hook.remove()


# --- scores


@dataclass(frozen=True)
class Examination:
    """Who listens, and the words of the training text."""

    judges: Sequence[Judge]
    known_words: frozenset[str]

    @property
    def reference(self) -> Examination:
        """The first judge alone."""
        return replace(self, judges=self.judges[:1])

    def hear(self, sounds: Sequence[Path | np.ndarray]) -> dict[str, list[str]]:
        """What each judge hears in each sound."""
        return {judge.name: judge.hear(sounds) for judge in self.judges}

    def scores(self, sentences: Sequence[Sentence], heard: dict[str, list[str]]) -> Row:
        """By group and judge."""
        out: Row = {}
        groups = {length: [i for i, sentence in enumerate(sentences) if sentence.length == length] for length in LENGTHS}
        groups["with_unseen_words"] = [i for i, s in enumerate(sentences) if not self.known_words.issuperset(normalise(s.text).split())]
        for group, chosen in groups.items():
            if chosen:
                texts, ids = [sentences[i].text for i in chosen], [sentences[i].id for i in chosen]
                out[group] = {"items": len(chosen), "words": sum(sentences[i].words for i in chosen)}
                for name, said in heard.items():
                    found = [said[i] for i in chosen]
                    out[group][name] = asdict(error_rates(texts, found, ids)) | loops(texts, found, ids)
        for name, wanted in (("unseen_words", False), ("seen_words", True)):
            out[name] = self._heard(sentences, heard, wanted)
        return out

    def _heard(self, sentences: Sequence[Sentence], heard: dict[str, list[str]], known: bool) -> Row:
        """Of the words that are `known` or not: how many there are, and the share that each judge heard."""
        out: Row = {"words": sum((word in self.known_words) == known for s in sentences for word in normalise(s.text).split())}
        for judge, texts in heard.items():
            marks: dict[str, list[bool]] = {}  # of the sentences that hold such words
            for sentence, text in zip(sentences, texts, strict=True):
                for word, found in words_heard(sentence.text, text):
                    if (word in self.known_words) == known:
                        marks.setdefault(sentence.id, []).append(found)
            if marks:
                share, share_95 = rounded_ratio([sum(m) for m in marks.values()], [len(m) for m in marks.values()], list(marks))
                out[judge] = {"heard": share, "heard_95": share_95}
        return out

    def points_over(self, sentences: Sequence[Sentence], heard: dict[str, list[str]], others: dict[str, list[str]]) -> Row:
        """By group and judge: by how many points WER is higher than of other sounds that say the same, sentence by sentence."""
        out: Row = {}
        for length in LENGTHS:
            chosen = [i for i, sentence in enumerate(sentences) if sentence.length == length]
            for name in heard if chosen else ():
                texts, ids = [sentences[i].text for i in chosen], [sentences[i].id for i in chosen]
                points, points_95 = points_over(texts, [heard[name][i] for i in chosen], [others[name][i] for i in chosen], ids)
                out.setdefault(length, {"items": len(chosen)})[name] = {"points": points, "points_95": points_95}
        return out

    def of(self, sentences: Sequence[Sentence], sounds: Sequence[Path | np.ndarray]) -> Row:
        """Scores of sounds that should say the sentences."""
        return self.scores(sentences, self.hear(sounds))


def is_runaway(sentence: Sentence, speech: Speech, code_rate_hz: float) -> bool:
    """Whether it lasts much longer than its text needs."""
    usual_s = len(encode_characters(sentence.text)) * USUAL / SLOTS / code_rate_hz
    return speech.duration_s > RUNAWAY * usual_s + 1.0


def is_cut(sentence: Sentence, heard: str) -> bool:
    """Whether neither of the last two words is heard where it belongs: last, or next to last."""
    said, found = (["", *normalise(text).split()] for text in (sentence.text, heard))
    return said[-1] not in found[-2:] and (len(said) < 3 or said[-2] not in found[-3:-1])


def is_loop(said: str, heard: str) -> bool:
    """Whether a judge hears so much more than was said that it must have gone round in circles: one such item is most of a set's errors."""
    return len(normalise(heard).split()) > 2 * len(normalise(said).split()) + 5


def loops(texts: Sequence[str], heard: Sequence[str], ids: Sequence[str]) -> Row:
    """How often a judge did, and if it did, WER of the other items."""
    rows = [row for row in zip(texts, heard, ids, strict=True) if not is_loop(*row[:2])]
    found: Row = {"loops": len(texts) - len(rows)}
    if rows and found["loops"]:
        found["wer_without_loops"] = error_rates(*zip(*rows, strict=True)).wer
    return found


# --- the suite


def some(sentences: Sequence[Sentence]) -> list[Sentence]:
    """CONTROLS of each length."""
    return [s for length in LENGTHS for s in spread([s for s in sentences if s.length == length], CONTROLS)]


def say(omni: Omni, sentences: Sequence[Sentence], voice: str, **settings: Any) -> list[Speech]:
    """As `muomni say` does."""
    return omni.say_batch([s.text for s in sentences], voice, **settings)


def evaluate_talker(
    omni: Omni, voice: str, sentences: Sequence[Sentence], recorded: Sequence[Sentence], data: Path, exam: Examination
) -> tuple[Row, Row]:
    """Metrics of a voice, and its controls."""
    start = time.perf_counter()
    spoken = say(omni, sentences, voice)
    seconds = time.perf_counter() - start
    heard = exam.hear([speech.waveform for speech in spoken])
    metrics: Row = {"talker": exam.scores(sentences, heard)}
    if recorded:  # for a fair look at the ceilings
        there = [i for i, sentence in enumerate(sentences) if sentence in recorded]
        same = {name: [texts[i] for i in there] for name, texts in heard.items()}
        metrics["talker_where_recorded"] = exam.scores(recorded, same)
        metrics["over_recordings"] = exam.points_over(recorded, same, exam.hear(_waves(omni, recorded, voice, data)))
    reference = heard[exam.judges[0].name]
    rate_hz = omni.model.config.code_rate_hz
    metrics |= {
        "items": len(sentences),
        "runaways": sum(is_runaway(s, speech, rate_hz) for s, speech in zip(sentences, spoken, strict=True)),
        "early_stops": sum(is_cut(s, text) for s, text in zip(sentences, reference, strict=True)),
        "real_time_factor": round(seconds / sum(speech.duration_s for speech in spoken), 4),
        "repeated": repeated(omni, voice, sentences),
        "replies": evaluate_replies(omni, voice, sentences, exam),
    }
    few = some(sentences)
    with states_zeroed(omni):
        unaware = exam.reference.hear([speech.waveform for speech in say(omni, few, voice)])
    aware = {name: [heard[name][sentences.index(s)] for s in few] for name in unaware}
    metrics["talker_where_zeroed"] = exam.scores(few, aware)
    metrics["zeroed_over_talker"] = exam.points_over(few, unaware, aware)
    rotated = [*sentences[1:], sentences[0]]
    return metrics, {
        "states_zeroed": exam.scores(few, unaware),
        "swapped_text": exam.scores(rotated, heard),
    }


def repeated(omni: Omni, voice: str, sentences: Sequence[Sentence]) -> Row:
    """How many sentences, drawn by chance but with one seed, are said the same twice, to the sample."""
    few = spread(sentences, REPEATED)
    sampling = Sampling(temperature=1.0, seed=1)
    pairs = zip(*(say(omni, few, voice, sampling=sampling) for _ in range(2)), strict=True)
    same = sum(torch.equal(a.codes, b.codes) and np.array_equal(a.waveform, b.waveform) for a, b in pairs)
    return {"items": len(few), "same": same, "identical": same == len(few)}


def evaluate_replies(omni: Omni, voice: str, sentences: Sequence[Sentence], exam: Examination) -> Row:
    """Texts of REPLY_WORDS and more, made of sentences one after the other: are they said to their end?"""
    texts: list[Sentence] = []
    together: list[Sentence] = []
    for sentence in sentences[::-1]:  # the long ones are last
        together.append(sentence)
        if sum(s.words for s in together) >= REPLY_WORDS and len(texts) < REPLIES:
            text = " ".join(s.text for s in together)
            texts.append(Sentence("+".join(s.id for s in together), text, "replies", sum(s.words for s in together)))
            together = []
    if not texts:
        return {"items": 0}
    heard = exam.reference.hear([speech.waveform for speech in say(omni, texts, voice)])
    (name, found), said, ids = *heard.items(), [s.text for s in texts], [s.id for s in texts]
    rates = asdict(error_rates(said, found, ids)) | loops(said, found, ids)
    cut = sum(is_cut(s, text) for s, text in zip(texts, found, strict=True))
    return {"items": len(texts), "words": sum(s.words for s in texts), "cut": cut, name: rates}


def evaluate_ceilings(omni: Omni, reader: str, recorded: Sequence[Sentence], data: Path, exam: Examination) -> Row:
    """Recordings of a reader, and what is left of them after log-mel and codec; of another vocoder than the model's own on `some` of them."""
    if not recorded:
        return {}
    sounds, few = _waves(omni, recorded, reader, data), some(recorded)
    waves = {s.id: wave for s, wave in zip(recorded, sounds, strict=True)}
    out: Row = {"recordings": exam.of(recorded, sounds)}
    available = vocoders(omni)
    for name, vocoder in available.items():
        own = vocoder is omni.model.vocoder
        chosen = recorded if own else few
        made = {f"mel_{name}": [through_mel(omni, waves[s.id], vocoder) for s in chosen]}
        made[f"codec_{name}"] = [through_codec(omni, codes_of(omni, waves[s.id]), len(waves[s.id]), vocoder) for s in chosen]
        for system, rebuilt in made.items():
            heard = exam.reference.hear(rebuilt)
            out[system] = exam.scores(chosen, heard)
            if own and len(available) > 1 and len(few) < len(recorded):
                same = {judge: [texts[recorded.index(s)] for s in few] for judge, texts in heard.items()}
                out[f"{system}_where_griffin_lim"] = exam.scores(few, same)
    return out


def _waves(omni: Omni, recorded: Sequence[Sentence], reader: str, data: Path) -> list[np.ndarray]:
    """The recordings (n,) each; in one form, so that a judge hears them once."""
    return [load_audio(_recording(s, reader, data), omni.model.config.audio.sample_rate_hz) for s in recorded]


def _recording(sentence: Sentence, reader: str, data: Path) -> Path:
    path = sentence.recording(reader, data)
    assert path is not None  # only recorded sentences come here
    return path


def prepare(data: Path, sentences: Path, limit: int | None, judge: Path | None) -> tuple[list[Sentence], Examination]:
    """What is to be said, `limit` sentences of each length, and who listens. Raises DataError for missing data or judges, for fewer than two
    sentences and for one that is trained on."""
    judges, everything = find_judges(judge), load_sentences(sentences)
    chosen = [s for length in LENGTHS for s in spread([s for s in everything if s.length == length], limit)]
    if len(chosen) < 2:
        raise DataError(f"{sentences}: two sentences or more are needed to tell whether speech follows its text")
    check_held_out(chosen, data)
    return chosen, Examination(judges, training_words(data))


def tts_suite(omni: Omni, data: Path, *, limit: int | None = None, judge: Path | None = None, sentences: Path = LIST) -> Row:
    """The suite `tts`; `limit` sentences of each length, `judge` another environment than this one that has the judges. Raises DataError
    for missing data or judges and when a sentence is trained on, CheckpointError for a checkpoint that cannot speak."""
    for name in ("talker", "thinker", "codec"):
        getattr(omni.model, name)  # says what the checkpoint lacks
    chosen, exam = prepare(data, sentences, limit, judge)
    metrics: Row = {}
    baselines: Row = {}
    ceilings: Row = {}
    for voice in omni.voices:
        recorded = [s for s in chosen if s.recording(voice, data) is not None]
        metrics[voice], baselines[voice] = evaluate_talker(omni, voice, chosen, recorded, data, exam)
        ceilings[voice] = evaluate_ceilings(omni, voice, recorded, data, exam)
        log.info("%s: %s", voice, metrics[voice]["talker"])
    return {
        "suite": "tts",
        "checkpoint": str(omni.folder),
        "items": len(chosen) * len(omni.voices),
        "metrics": metrics,
        "baselines": baselines,
        "ceilings": ceilings,
    }
