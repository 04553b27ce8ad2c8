"""How well a model hears: word and character error rates on held-out speech, each set by itself, beside Whisper's on the same clips.

The sets are the held-out sentences of a real reader (kathleen) and of the synthetic teacher (heart), a real reader on whom nothing trains (lj),
and unseen synthetic voices (voices, and voice-… each).

No sentence is in the training speech, but some are in the text that the Thinker, which is the language model of the beam search, has read. So the
search has its error rates without them too.

B batch  F encoder frames"""

from __future__ import annotations

import itertools
import logging
import os
import time
from collections import defaultdict
from collections.abc import Sequence, Set
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from omni.characters import encode_characters
from omni.data.datasets import slots_needed
from omni.data.manifests import open_rows
from omni.data.release import READERS, speech_rows
from omni.errors import DataError
from omni.evaluation.judge import Judge
from omni.evaluation.metrics import ErrorRate, Rates, error_rates, greedy_ctc, normalise, spread
from omni.evaluation.sentences import EVALUATION_DATA, read_in_training
from omni.inference.ctc_beam import BeamSearch, ThinkerWords
from omni.inference.omni import Omni

log = logging.getLogger(__name__)


BATCH = 16
VOICES = EVALUATION_DATA / "voices"
HEARD_EARLY = ("festival-kal_diphone", "festival-cmu_us_slt_arctic_hts")  # speakers whom the shipped weights heard once, by another engine


@dataclass(frozen=True)
class Clip:
    """A file and what is said in it; takes of one sentence share their `sentence`."""

    audio: Path
    text: str
    sentence: str


Sets = dict[str, list[Clip]]


def speech_sets(data: Path) -> Sets:
    """The held-out clips of every reader in the data folder. Raises DataError for a missing folder."""
    if not data.is_dir():
        raise DataError(f"{data}: no such data folder; fetch it with: muomni data get")
    sets: Sets = {}
    for reader in READERS:
        rows = speech_rows(data, held_out=True, readers=(reader,))
        sets[reader] = [Clip(Path(row["audio"]), row["text"], row["sentence_id"]) for row in rows]
    return sets


def voice_sets(folder: Path) -> Sets:
    """The clips of the manifests {"audio", "text", "speaker"} in `folder` as the set `voices`, without speakers heard early, and a set for every
    voice. Raises DataError for a folder without manifests."""
    sets: Sets = defaultdict(list)
    manifests = sorted(folder.glob("*.jsonl"))
    if not manifests:
        raise DataError(f"{folder}: no manifest of voices there; make them with: muomni data voices --held-out --out {folder}")
    for manifest in manifests:
        rows = open_rows(str(manifest), ("audio", "text", "speaker"))
        for row in rows:
            clip = Clip(rows.path(row["audio"]), row["text"], row["text"])
            sets[f"voice-{row['speaker']}"].append(clip)
            if row["speaker"] not in HEARD_EARLY:
                sets["voices"].append(clip)
    return dict(sorted(sets.items(), key=lambda item: (item[0] != "voices", item[0])))


@dataclass(frozen=True)
class Hearing:
    """One set. `infeasible`: clips with fewer character slots than their text needs. `times_real_time` and `beam_times_real_time`: seconds
    of sound per second of work; the first from files to text, greedily in batches, the second the search alone, clip by clip. `read`: clips whose
    sentence the Thinker has read in training, and `beam_unread` the rates of the others."""

    items: int
    hours: float
    words: int
    infeasible: int
    times_real_time: float
    greedy: Rates
    beam_times_real_time: float | None = None
    beam: Rates | None = None
    read: int | None = None
    beam_unread: Rates | None = None


def rates(clips: Sequence[Clip], heard: Sequence[str]) -> Rates:
    """Of what was heard in `clips`."""
    return error_rates([clip.text for clip in clips], heard, [clip.sentence for clip in clips])


@dataclass(frozen=True)
class _Heard:
    """Of every clip: log-probabilities (slots, characters) on the CPU, and the greedy text; seconds of sound, and of work."""

    log_probabilities: list[Tensor]
    texts: list[str]
    audio_s: float
    wall_s: float


def _hear(omni: Omni, clips: Sequence[Clip]) -> _Heard:
    """Files are decoded by several threads; clips of about one size share a batch. A first one is for allocations, and choices of kernels."""
    omni.ctc_logits([omni.log_mel(clip.audio) for clip in clips[:BATCH]])
    start, frames = time.perf_counter(), 0
    found: dict[int, tuple[Tensor, str]] = {}
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        order = sorted(range(len(clips)), key=lambda i: _size(clips[i].audio))
        for at in range(0, len(order), BATCH):
            batch = order[at : at + BATCH]
            mels = list(pool.map(omni.log_mel, [clips[i].audio for i in batch]))
            for i, logits in zip(batch, omni.ctc_logits(mels), strict=True):
                found[i] = logits.log_softmax(-1), greedy_ctc(logits[None], [len(logits)])[0]
            frames += sum(map(len, mels))
    wall_s = time.perf_counter() - start
    results = [found[i] for i in range(len(clips))]
    return _Heard([r[0] for r in results], [r[1] for r in results], frames / omni.model.config.audio.mel_rate_hz, wall_s)


def _size(path: Path) -> int:
    """Of a file; that it is missing is for its reader to say."""
    return path.stat().st_size if path.exists() else 0


def evaluate_set(omni: Omni, clips: Sequence[Clip], search: BeamSearch | None, read: Set[str] = frozenset()) -> Hearing:
    """Error rates of greedy decoding, and of `search` if there is one, whose language model has `read` some texts. Raises DataError for no clip and
    for one that cannot be read."""
    if not clips:
        raise DataError("there is no clip to hear in the set")
    heard = _hear(omni, clips)
    beam, beam_pace, n_read, beam_unread = None, None, None, None
    if search is not None:
        start = time.perf_counter()
        texts = [search(x)[0].text for x in heard.log_probabilities]
        beam, beam_pace = rates(clips, texts), round(heard.audio_s / (time.perf_counter() - start), 1)
        unread = [i for i, clip in enumerate(clips) if clip.text not in read]
        n_read = len(clips) - len(unread)
        if n_read and unread:
            beam_unread = rates([clips[i] for i in unread], [texts[i] for i in unread])
    return Hearing(
        items=len(clips),
        hours=round(heard.audio_s / 3600, 4),
        words=sum(len(normalise(clip.text).split()) for clip in clips),
        infeasible=sum(slots_needed(encode_characters(c.text)) > len(x) for c, x in zip(clips, heard.log_probabilities, strict=True)),
        times_real_time=round(heard.audio_s / heard.wall_s, 1),
        greedy=rates(clips, heard.texts),
        beam_times_real_time=beam_pace,
        beam=beam,
        read=n_read,
        beam_unread=beam_unread,
    )


def evaluate_asr(omni: Omni, sets: Sets, *, judge: Judge | None = None, read: Set[str] = frozenset()) -> dict[str, Any]:
    """The suite's result over `sets`. The beam is left out for a checkpoint without a Thinker, which has `read` some texts in training. `judge`: the
    recognizer whose rates become the ceilings. Raises DataError for no set or an empty one."""
    empty = [name for name, clips in sets.items() if not clips]
    if empty or not sets:
        raise DataError(f"nothing to hear: {'no set' if not sets else 'no clip in ' + ', '.join(empty)}")
    search = omni.beam_search if "thinker" in omni.model.components else None
    metrics, ceilings = {}, {}
    for name, clips in sets.items():
        metrics[name] = {key: value for key, value in asdict(evaluate_set(omni, clips, search, read)).items() if value is not None}
        if judge is not None:
            ceilings[name] = asdict(rates(clips, judge.hear([clip.audio for clip in clips])))
        log.info("%s: WER %.4f of %d clips", name, metrics[name]["greedy"]["wer"], len(clips))
    return {
        "suite": "asr",
        "checkpoint": str(omni.folder),
        "items": sum(map(len, sets.values())),
        "metrics": metrics,
        "baselines": {},
        "ceilings": {judge.name: ceilings} if judge is not None else {},
    }


def asr_suite(omni: Omni, data: Path, *, limit: int | None = None, judge: Judge | None = None, voices: Path = VOICES) -> dict[str, Any]:
    """Every set of the data folder and of the folder of unseen voices, which the repository holds; `limit` clips of each."""
    sets = {name: spread(clips, limit) for name, clips in (speech_sets(data) | voice_sets(voices)).items()}
    read = {clip.text for clips in sets.values() for clip in clips if read_in_training(clip.text, data)}
    return evaluate_asr(omni, sets, judge=judge, read=read)


@dataclass(frozen=True)
class Tuned:
    """Weights of the beam search and the WER that they give."""

    wer: float
    alpha: float
    beta: float


def tune(
    omni: Omni,
    clips: Sequence[Clip],
    alphas: Sequence[float] = (0.0, 0.25, 0.5, 0.75, 1.0),
    betas: Sequence[float] = (0.0, 1.0, 2.0),
) -> list[Tuned]:
    """Every pair of weights, the best first. `clips` should be the validation clips of training: the encoder is too sure of clips that it was
    trained on, and the final figures need clips that chose nothing."""
    heard = _hear(omni, clips)
    words = ThinkerWords(omni.model.thinker, omni.tokenizer)
    found = []
    for alpha, beta in itertools.product(alphas, betas):
        search, errors = BeamSearch(words, alpha=alpha, beta=beta), ErrorRate()
        for clip, log_probabilities in zip(clips, heard.log_probabilities, strict=True):
            errors.add(clip.text, search(log_probabilities)[0].text)
        found.append(Tuned(errors.wer, alpha, beta))
    return sorted(found, key=lambda t: (t.wer, t.alpha, t.beta))
