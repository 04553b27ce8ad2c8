"""How well everything works together: unseen scenes asked about in unseen voices and answered aloud, captions, statements, transcription, and
what should be refused.

In the loop an answer is right if it holds the answer slot and no rival to it (`is_right`): read as text, and as Whisper base hears it spoken;
`exact` demands the whole sentence. Beside it: the same questions typed, and by every voice apart; another scene's picture, another
question, no picture (who cannot see), the commonest answer of a kind of question, and to the same words about other scenes; and, as a ceiling,
what is heard when the right answers are said."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from omni.chat import DESCRIBE, TRANSCRIBE
from omni.data import release
from omni.data.conversations import STATEMENT_WORDINGS, TRANSCRIBE_WORDINGS
from omni.data.worlds.questions import caption, is_right, things_named
from omni.data.worlds.scenes import COLOURS, RADII, SHAPES, Scene, render
from omni.data.worlds.text import EMPTY_PICTURE, NO_PICTURE, NO_SOUND
from omni.errors import DataError
from omni.evaluation.asr import rates, speech_sets
from omni.evaluation.judge import WHISPER_BASE, Judge, find_judge
from omni.evaluation.metrics import normalise, rounded_ratio, spread
from omni.evaluation.pocket import BATCH, SceneQuestion, answers, content, evaluate_scenes, guesses, replies, right_answers, share
from omni.evaluation.scenes import CLIPS, SCENES, AskedScene, Voices, asked_scenes, commonest_answers, question_voices, scene_questions
from omni.inference.omni import Omni

log = logging.getLogger(__name__)

NEEDED = ("thinker", "vision_encoder", "image_projector", "audio_encoder", "audio_projector", "talker", "codec")
REFUSED = 40  # requests of each kind
READER = "kathleen"  # the real one who is transcribed
STATEMENT = STATEMENT_WORDINGS[1]

Row = dict[str, Any]


def heard_answers(omni: Omni, questions: Sequence[SceneQuestion], texts: Sequence[str], judge: Judge) -> Row:
    """`answers` of what the judge hears when the model says `texts`; nothing is heard of one without a word."""
    has_words = [any(map(str.isalnum, text)) for text in texts]
    spoken = iter(omni.say_batch([text for text, some in zip(texts, has_words, strict=True) if some]))
    sounds = [next(spoken).waveform if some else np.zeros(0, np.float32) for some in has_words]
    return answers(questions, [normalise(text) for text in judge.hear(sounds)])


# --- the loop


def evaluate_loop(omni: Omni, asked: list[AskedScene], voices: Voices, judge: Judge) -> tuple[Row, Row, Row]:
    """Metrics, baselines and ceilings."""
    questions = scene_questions(asked, voices)
    scenes = evaluate_scenes(omni, questions)
    typed = scenes.scores["typed"]
    others = [*questions[1:], questions[0]]
    other_asked = replies(omni, [content(q.image, audio=other.spoken) for q, other in zip(questions, others, strict=True)])
    by_voice = {name: _by_voice(omni, scene_questions(asked, voices, name), scenes.typed_replies) for name in voices}
    worst = max(by_voice.values(), key=lambda found: found["points_under_typed"])
    metrics: Row = {
        "heard": heard_answers(omni, questions, scenes.spoken_replies, judge),
        "read": scenes.scores["spoken"],
        "typed": typed,
        "by_voice": by_voice,
        "most_points_under_typed": worst["points_under_typed"],
        "most_points_under_typed_95": worst["points_under_typed_95"],
        "later": evaluate_later(omni, asked),
    }
    baselines: Row = {
        **{name: scenes.scores[name] for name in ("swapped", "withheld", "majority")},
        "same_words": guesses(questions, commonest_answers(asked)),
        "swapped_question": answers(questions, other_asked),
    }
    return metrics, baselines, {"right_answers_heard": heard_answers(omni, questions, [q.sentence for q in questions], judge)}


def _by_voice(omni: Omni, questions: Sequence[SceneQuestion], typed: Sequence[str]) -> Row:
    """`typed`: replies to the same questions typed; points under them are counted scene by scene."""
    spoken = replies(omni, [content(q.image, audio=q.spoken) for q in questions])
    pairs = zip(right_answers(questions, typed), right_answers(questions, spoken), strict=True)
    points, points_95 = rounded_ratio([100 * (a - b) for a, b in pairs], [1] * len(questions), range(len(questions)))
    return answers(questions, spoken) | {"points_under_typed": points, "points_under_typed_95": points_95}


def evaluate_later(omni: Omni, asked: Sequence[AskedScene]) -> Row:
    """Of second questions about a picture that the first message showed: the model must look back, and not repeat itself."""
    right: list[bool] = []
    for start in range(0, len(asked), BATCH):
        batch = asked[start : start + BATCH]
        conversations = [[{"role": "user", "content": content(render(one.scene), text=one.first.question)}] for one in batch]
        for turns, one, reply in zip(conversations, batch, omni.chat_batch(conversations), strict=True):
            turns += [{"role": "assistant", "content": reply.text}, {"role": "user", "content": content(text=one.later.question)}]
        right += [is_right(one.later.answer, reply.text) for one, reply in zip(batch, omni.chat_batch(conversations), strict=True)]
    return share(right)


# --- captions


def f1(told: Iterable[Iterable[str]], true: Iterable[Iterable[str]]) -> tuple[float, tuple[float, float]]:
    """2 · hits / (told + true) over the words or things of all captions, each counted as often as it occurs, with its 95 % interval."""
    counts = [(Counter(a), Counter(b)) for a, b in zip(told, true, strict=True)]
    hits = [2 * (a & b).total() for a, b in counts]
    return rounded_ratio(hits, [a.total() + b.total() for a, b in counts], range(len(counts)))


def evaluate_captions(scenes: Sequence[Scene], texts: Sequence[str]) -> Row:
    """`things`: size, colour and shape of a thing together, the others by themselves; `exact`: all things in their order."""
    true = [caption(scene) for scene in scenes]
    found: Row = {"items": len(scenes)}
    found["things_f1"], found["things_f1_95"] = f1(map(things_named, texts), map(things_named, true))
    for name, family in (("colour", COLOURS), ("shape", SHAPES), ("size", RADII)):
        told, shown = ([[w for w in normalise(text).split() if w in family] for text in side] for side in (texts, true))
        found[f"{name}_f1"], found[f"{name}_f1_95"] = f1(told, shown)
    exact = share([things_named(a) == things_named(b) for a, b in zip(texts, true, strict=True)])
    return found | {"exact": exact["share"], "exact_95": exact["share_95"]}


# --- statements, transcription, refusals


def evaluate_statements(omni: Omni, data: Path, limit: int | None) -> tuple[Row, Row]:
    """NLVR's held-out statements, each asked of one picture as a whole; and the commoner label of the training ones."""
    rows = spread(list(release.nlvr_statements(data, held_out=True)), limit)
    texts = replies(omni, [content(row["image"], text=STATEMENT.format(row["sentence"])) for row in rows])
    said = [normalise(text).split()[:1] for text in texts]
    groups = [row["identifier"] for row in rows]

    def measure(right: Sequence[bool]) -> Row:
        value, interval = rounded_ratio(right, [1] * len(rows), groups)
        return {"items": len(rows), "accuracy": value, "accuracy_95": interval}

    labels = [row["label"] for row in release.nlvr_statements(data, held_out=False)]
    common = 2 * sum(labels) >= len(labels)
    right = [word == [str(row["label"]).lower()] for word, row in zip(said, rows, strict=True)]
    neither = sum(word not in (["true"], ["false"]) for word in said)
    return measure(right) | {"neither": neither}, {"majority": measure([row["label"] == common for row in rows])}


def evaluate_transcription(omni: Omni, data: Path, limit: int | None) -> tuple[Row, Row]:
    """A real reader's held-out clips, written down by the Thinker when asked; and by CTC."""
    clips = spread(speech_sets(data)[READER], limit)
    if not clips:
        raise DataError(f"{data}: holds no held-out clip of {READER}; fetch the data with: muomni data get")
    thinker, ctc = (asdict(rates(clips, [omni.transcribe(clip.audio, decoder) for clip in clips])) for decoder in ("thinker", "ctc"))
    return {"items": len(clips)} | thinker, {"ctc": ctc}


def evaluate_refusals(omni: Omni, questions: Sequence[SceneQuestion]) -> Row:
    """How often the model says what is missing: the picture, the sound, anything in the picture, a voice in the sound. And how often it says
    so although everything is there, which it should not."""
    rate_hz = omni.model.config.audio.sample_rate_hz
    silence = np.random.default_rng(0).standard_normal((len(questions), 2 * rate_hz)).astype(np.float32) * 1e-3
    blank = [render(Scene((), seed)) for seed in range(len(questions))]
    requests: dict[str, tuple[str, list[list[Row]]]] = {
        "no_picture": (NO_PICTURE, [content(text=q.question) for q in questions]),
        "no_picture_spoken": (NO_PICTURE, [content(audio=q.spoken) for q in questions]),
        "no_sound": (
            NO_SOUND,
            [content(text=wording) for wording in TRANSCRIBE_WORDINGS]
            + [content(q.image, text=TRANSCRIBE_WORDINGS[i % len(TRANSCRIBE_WORDINGS)]) for i, q in enumerate(questions)],
        ),
        "blank_picture": (EMPTY_PICTURE, [content(picture, text=DESCRIBE) for picture in blank]),
        "blank_picture_asked": (EMPTY_PICTURE, [content(p, text=q.question) for p, q in zip(blank, questions, strict=True)]),
        "silence": (NO_SOUND, [content(audio=wave, text=TRANSCRIBE) for wave in silence]),
    }
    found: Row = {}
    for name, (wanted, contents) in requests.items():
        found[name] = share([normalise(text) == normalise(wanted) for text in replies(omni, contents)])
    said = replies(omni, [content(q.image, audio=q.spoken) for q in questions])
    found["needless"] = share([normalise(text) in map(normalise, (NO_PICTURE, NO_SOUND, EMPTY_PICTURE)) for text in said])
    return found


# --- the suite


def omni_suite(omni: Omni, data: Path, *, limit: int | None = None, judge: Path | None = None, clips: Path = CLIPS) -> Row:
    """The suite `omni`; `limit` scenes, statements and clips, `judge` another environment than this one that has the judges. Raises DataError for
    missing data, clips or judges, CheckpointError for a checkpoint that lacks a component."""
    for name in NEEDED:
        getattr(omni.model, name)  # says what the checkpoint lacks
    listener, voices = find_judge(WHISPER_BASE, judge), question_voices(clips)
    asked = asked_scenes(min(limit or SCENES, SCENES))
    metrics, baselines, ceilings = evaluate_loop(omni, asked, voices, listener)
    log.info("heard %s, read %s, typed %s", *(metrics[name]["share"] for name in ("heard", "read", "typed")))
    scenes = [one.scene for one in asked]
    metrics["captions"] = evaluate_captions(scenes, replies(omni, [content(render(scene), text=DESCRIBE) for scene in scenes]))
    metrics["statements"], baselines["statements"] = evaluate_statements(omni, data, limit)
    metrics["transcription"], baselines["transcription"] = evaluate_transcription(omni, data, limit)
    metrics["refusals"] = evaluate_refusals(omni, scene_questions(asked[:REFUSED], voices))
    for name in ("captions", "statements", "transcription", "refusals"):
        log.info("%s: %s", name, metrics[name])
    return {
        "suite": "omni",
        "checkpoint": str(omni.folder),
        "items": len(asked) * (len(voices) + 1) + metrics["statements"]["items"] + metrics["transcription"]["items"],
        "metrics": metrics,
        "baselines": baselines,
        "ceilings": ceilings,
    }
