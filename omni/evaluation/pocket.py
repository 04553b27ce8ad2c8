"""How well a model does in the pocket world: unseen scenes, beside what it scores without seeing them; unseen voices; and whether its speech says
its text."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from omni.characters import BLANK_ID, N_CHARACTERS, encode_characters
from omni.data.manifests import open_rows
from omni.data.worlds.questions import is_right
from omni.errors import DataError
from omni.evaluation.asr import Clip, rates
from omni.evaluation.judge import Judge
from omni.evaluation.metrics import bootstrap_interval, error_rates, normalise, share_interval, spread
from omni.inference.omni import GREEDY, Omni, Picture, Sound
from omni.training.losses import ctc_nats

BATCH = 32
# By preset of the recipe: what a model that it made must reach. "typed": right answers; "hearing" and "speech": word errors.
PROMISED: dict[str, dict[str, tuple[str, float]]] = {"tiny": {"typed": ("≥", 0.8), "hearing": ("≤", 0.15), "speech": ("≤", 0.3)}}

# What is measured, for tables.
LABELS = {
    "typed": "unseen scenes, typed questions: right",
    "spoken": "… questions by voices never heard",
    "swapped": "… another scene's picture",
    "withheld": "… no picture",
    "majority": "… commonest answer of the kind of question",
    "hearing": "voices never heard: word errors of CTC",
    "speech": "its own speech: word errors of Whisper base",
}

Row = dict[str, Any]


@dataclass(frozen=True)
class SceneQuestion:
    """One held-out question: typed and spoken, with its picture and right answer slot."""

    image: Picture
    question: str
    spoken: Path
    answer: str
    sentence: str
    kind: str


def scene_questions(data_dir: Path, most: int) -> list[SceneQuestion]:
    """The first `most` held-out questions of a pocket world. Raises DataError if it has fewer."""
    rows = open_rows(str(data_dir / "conversations.heldout.jsonl"), ("messages",))
    out: list[SceneQuestion] = []
    for row in rows:
        if row["kind"] == "image_qa_spoken" and len(out) < most:
            picture, clip = row["messages"][0]["content"]
            image, spoken = rows.path(picture["image"]), rows.path(clip["audio"])
            out.append(SceneQuestion(image, row["question"], spoken, row["answer"], row["messages"][1]["content"], row["question_type"]))
    if len(out) < most:
        raise DataError(f"{data_dir}: holds {len(out)} held-out scene questions, {most} are needed")
    return out


def content(image: Picture | None = None, audio: Sound | None = None, text: str | None = None) -> list[dict[str, Any]]:
    """What a user message holds."""
    given = {"image": image, "audio": audio, "text": text}
    return [{"type": kind, kind: value} for kind, value in given.items() if value is not None]


def replies(omni: Omni, contents: Sequence[list[dict[str, Any]]]) -> list[str]:
    """What the model answers to each user message, decoded greedily in batches."""
    out = []
    for start in range(0, len(contents), BATCH):
        out += [r.text for r in omni.chat_batch([[{"role": "user", "content": c}] for c in contents[start : start + BATCH]])]
    return out


def share(right: Sequence[bool]) -> Row:
    """Of items that count alike."""
    low, high = share_interval(sum(right), len(right))
    return {"share": round(sum(right) / len(right), 4), "share_95": (round(low, 4), round(high, 4)), "items": len(right)}


def right_answers(questions: Sequence[SceneQuestion], texts: Sequence[str]) -> list[bool]:
    """Whether each text holds its question's answer slot and no rival to it."""
    return [is_right(q.answer, text) for q, text in zip(questions, texts, strict=True)]


def answers(questions: Sequence[SceneQuestion], texts: Sequence[str]) -> Row:
    """How many are right, and right to the word, by kind of question too."""
    exact = share([normalise(text) == normalise(q.sentence) for q, text in zip(questions, texts, strict=True)])
    right = right_answers(questions, texts)
    kinds = sorted({q.kind for q in questions})
    by_kind = {kind: share([r for q, r in zip(questions, right, strict=True) if q.kind == kind]) for kind in kinds}
    return share(right) | {"exact": exact["share"], "exact_95": exact["share_95"], "by_kind": by_kind}


def guesses(questions: Sequence[SceneQuestion], slots: Sequence[str]) -> Row:
    """`answers` of one that names only the answer slot, and says no sentence."""
    return {name: value for name, value in answers(questions, slots).items() if not name.startswith("exact")}


@dataclass(frozen=True)
class SceneResults:
    """Right answers to the typed and the spoken questions, beside the baselines: another scene's picture, no picture, the commonest answer to the
    kind of question. `scores` has `answers` of each by name."""

    scores: Row
    typed_replies: list[str]
    spoken_replies: list[str]


def evaluate_scenes(omni: Omni, questions: Sequence[SceneQuestion]) -> SceneResults:
    """Answer every question in all ways. The swapped picture is that of the next question with another picture."""
    others = [*questions[1:], questions[0]]
    commonest = {kind: Counter(q.answer for q in questions if q.kind == kind).most_common(1)[0][0] for kind in {q.kind for q in questions}}
    said = {
        "typed": replies(omni, [content(q.image, text=q.question) for q in questions]),
        "spoken": replies(omni, [content(q.image, audio=q.spoken) for q in questions]),
        "swapped": replies(omni, [content(other.image, text=q.question) for q, other in zip(questions, others, strict=True)]),
        "withheld": replies(omni, [content(text=q.question) for q in questions]),
    }
    scores = {name: answers(questions, texts) for name, texts in said.items()}
    scores["majority"] = guesses(questions, [commonest[q.kind] for q in questions])
    return SceneResults(scores, said["typed"], said["spoken"])


@dataclass(frozen=True)
class SpeechFit:
    """Judged by the model's own CTC: nats per character of what it said under its own text and under another's, and how often its own
    fits better."""

    own: float
    other: float
    share: float
    share_95: tuple[float, float]
    items: int


@torch.inference_mode()
def speech_fit(omni: Omni, texts: Sequence[str], voice: str | None = None) -> SpeechFit:
    """Say every different text and ask whose words the sound is: its own, or those of the text nearest to it in length."""
    texts = list(dict.fromkeys(texts))
    if len(texts) < 2:
        raise DataError(f"speech can be told apart only among two or more texts, found {len(texts)}")
    spoken = [s for start in range(0, len(texts), BATCH) for s in omni.speaker.say(texts[start : start + BATCH], voice, GREEDY)]
    own, other = [], []
    for text, speech in zip(texts, spoken, strict=True):
        rival = min((t for t in texts if t != text), key=lambda t: (abs(len(t) - len(text)), t))
        own.append(_nats_per_character(omni, speech.waveform, text))
        other.append(_nats_per_character(omni, speech.waveform, rival))
    fits = [float(a < b) for a, b in zip(own, other, strict=True)]
    return SpeechFit(sum(own) / len(own), sum(other) / len(other), sum(fits) / len(fits), bootstrap_interval(fits), len(fits))


def _nats_per_character(omni: Omni, waveform: Any, text: str) -> float:
    encoder = omni.model.audio_encoder
    states, lengths = encoder(omni.log_mel(waveform)[None].to(omni.device))
    targets = torch.tensor([encode_characters(text)], device=states.device)
    slots = lengths * encoder.config.ctc_slots
    nats = ctc_nats(encoder.ctc_logits(states), slots, targets, torch.tensor([targets.shape[1]]), BLANK_ID)
    # what cannot fit into so little sound is as far from it as a uniform guess of every step
    infeasible = int(slots) * math.log(N_CHARACTERS) / targets.shape[1]
    return float(nats / targets.shape[1]) if float(nats) > 0 else float(infeasible)


@dataclass(frozen=True)
class WorldResults:
    """Right answers about unseen scenes (`SceneResults.scores`), typed and by voices never heard; what CTC hears of held-out sentences by such
    voices; and, with a judge, what it hears when the model says held-out sentences, its voices taking turns."""

    scenes: Row
    hearing: Row
    speech: Row | None


def evaluate_world(
    omni: Omni, data_dir: Path, judge: Judge | None, *, scenes: int = 200, clips: int = 200, sentences: int = 60
) -> WorldResults:
    """So many held-out items of a pocket world, or what it has. Raises DataError if it has fewer scenes."""
    rows = open_rows(str(data_dir / "speech.heldout.jsonl"), ("audio", "text"))
    heard = spread([Clip(rows.path(row["audio"]), row["text"], row["text"]) for row in rows], clips)
    said = spread(sorted({row["text"] for row in open_rows(str(data_dir / "voice.heldout.jsonl"), ("audio", "text"))}), sentences)
    speech = None
    if judge is not None:
        voices = [omni.voices[number % len(omni.voices)] for number in range(len(said))]
        listened = judge.hear([spoken.waveform for spoken in omni.say_batch(said, voices)])
        speech = {"items": len(said)} | asdict(error_rates(said, listened, said))
    return WorldResults(
        evaluate_scenes(omni, scene_questions(data_dir, scenes)).scores,
        {"items": len(heard)} | asdict(rates(heard, [omni.transcribe(clip.audio) for clip in heard])),
        speech,
    )


def measured(found: Mapping[str, Any], promised: Mapping[str, tuple[str, float]]) -> list[tuple[str, ...]]:
    """Rows of a table, what was measured (the fields of WorldResults) beside what was `promised`: label, items, figure, 95 % interval, bound,
    whether it is kept."""
    rows: list[tuple[str, ...]] = []
    for name, row in {**found["scenes"], "hearing": found["hearing"], "speech": found["speech"]}.items():
        if row is None:
            rows.append((LABELS[name], "", "unjudged", "", "", ""))
            continue
        figure = "wer" if "wer" in row else "share"
        low, high = row[f"{figure}_95"]
        bound, kept = "", ""
        if name in promised:
            sign, value = promised[name]
            bound, kept = f"{sign} {value:.0%}", "yes" if (row[figure] >= value if sign == "≥" else row[figure] <= value) else "no"
        rows.append((LABELS[name], str(row["items"]), f"{row[figure]:.1%}", f"{low:.1%} to {high:.1%}", bound, kept))
    return rows
