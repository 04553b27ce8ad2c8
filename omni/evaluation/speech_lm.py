"""The second system, both ways: whether its speech says the held-out sentences (as the suite `tts` asks of the Talker), and what it hears in
held-out clips (as the suite `asr` asks of the audio encoder), under the same judges and on the same items.

Controls: what it said against the text of the next sentence, what it heard against a clip's far from it. Ceilings: the readers' own recordings, and
what is left of them as its audio tokenizer's codes, as the reference judge hears them.

The groups are those of the suite `tts`. `cut` clauses were not over at the most frames that their text may take. A real-time factor is seconds of
work for a second of sound."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from omni.audio import load_audio, resampled
from omni.data.release import UNSEEN_READERS
from omni.errors import DataError
from omni.evaluation.asr import Clip, rates, speech_sets
from omni.evaluation.judge import RATE_HZ, Judge
from omni.evaluation.metrics import spread
from omni.evaluation.sentences import LIST, Sentence
from omni.evaluation.tts import Examination, prepare
from omni.parameters import count
from omni.speech_lm import SpeechLM

log = logging.getLogger(__name__)

Row = dict[str, Any]


def audible(model: SpeechLM, waveform: np.ndarray) -> np.ndarray:
    """(n,) at the model's rate → (n,) at the judges'."""
    return resampled(waveform, model.sample_rate_hz, RATE_HZ)


def evaluate_speaking(model: SpeechLM, voice: str | None, sentences: Sequence[Sentence], exam: Examination) -> tuple[Row, Row]:
    """Metrics of a voice, and its control."""
    start = time.perf_counter()
    spoken = model.say_batch([s.text for s in sentences], voice)
    seconds = time.perf_counter() - start
    heard = exam.hear([audible(model, speech.waveform) for speech in spoken])
    figures = {
        "items": len(sentences),
        "cut": sum(speech.cut for speech in spoken),
        "real_time_factor": round(seconds / max(sum(speech.duration_s for speech in spoken), 1e-9), 4),
    }
    swapped = exam.scores([*sentences[1:], sentences[0]], heard)
    return exam.scores(sentences, heard) | figures, {"swapped_text": swapped}


def evaluate_hearing(model: SpeechLM, clips: Sequence[Clip], judge: Judge) -> tuple[Row, Row, Row]:
    """Metrics on a reader's clips, the control, and the ceilings. Raises DataError for fewer than two clips."""
    if len(clips) < 2:
        raise DataError("two clips or more are needed to tell whether what is heard follows the sound")
    waves = [load_audio(clip.audio, model.sample_rate_hz) for clip in clips]
    start = time.perf_counter()
    heard = model.transcribe_batch(waves)
    seconds = time.perf_counter() - start
    audio_s = sum(map(len, waves)) / model.sample_rate_hz
    metrics: Row = {"items": len(clips), "hours": round(audio_s / 3600, 4), "real_time_factor": round(seconds / audio_s, 4)}
    metrics |= asdict(rates(clips, heard))
    half = len(clips) // 2  # takes of one sentence stand together
    sounds = {"recordings": waves, "codes": [through_tokenizer(model, wave) for wave in waves]}
    ceilings = {name: asdict(rates(clips, judge.hear([audible(model, wave) for wave in made]))) for name, made in sounds.items()}
    return metrics, {"shuffled_audio": asdict(rates([*clips[half:], *clips[:half]], heard))}, ceilings


def through_tokenizer(model: SpeechLM, waveform: np.ndarray) -> np.ndarray:
    """(n,) → codes → (n,)."""
    tokenizer = model.audio_tokenizer
    return tokenizer.decode_audio(tokenizer.encode_audio(waveform))[: len(waveform)]


def speech_lm_suite(model: SpeechLM, data: Path, *, limit: int | None = None, judge: Path | None = None, sentences: Path = LIST) -> Row:
    """The suite `speech-lm`; `limit` sentences of each length and clips of each reader, `judge` another environment than this one that has
    the judges. Raises DataError for missing data or judges and when a sentence is trained on."""
    chosen, exam = prepare(data, sentences, limit, judge)
    parameters = count(model.model)
    metrics: Row = {"parameters": parameters, "speaking": {}, "hearing": {}}
    baselines: Row = {"speaking": {}, "hearing": {}}
    ceilings: Row = {"hearing": {}}
    for voice in model.voices or (None,):
        name = voice or "any"
        metrics["speaking"][name], baselines["speaking"][name] = evaluate_speaking(model, voice, chosen, exam)
        log.info("says as %s: %s", name, metrics["speaking"][name])
    items = len(chosen) * len(metrics["speaking"])
    for reader, clips in speech_sets(data).items():
        if reader in UNSEEN_READERS:  # its clips are long, and nobody like that is in the training data of two voices
            continue
        few = spread(clips, limit)
        metrics["hearing"][reader], baselines["hearing"][reader], ceilings["hearing"][reader] = evaluate_hearing(model, few, exam.judges[0])
        items += len(few)
        log.info("hears %s: %s", reader, metrics["hearing"][reader])
    return {
        "suite": "speech-lm",
        "checkpoint": str(model.folder),
        "items": items,
        "metrics": metrics,
        "baselines": baselines,
        "ceilings": ceilings,
    }
