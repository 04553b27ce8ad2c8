"""New sentences out of a reader's old ones: stretches of words from different clips, cut out where forced alignment says that they are and joined
(aligned data augmentation, Lam et al. 2021). An hour of one reader is learned by heart, sentences and all; of these, only the sounds help.

S slots of the CTC head  n samples"""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import soundfile
import torch

from omni.audio import load_audio
from omni.characters import encode_characters
from omni.checkpoint import load_model
from omni.omni_model import OmniModel

log = logging.getLogger(__name__)

WORDS = range(5, 13)  # of a new sentence
STRETCH = range(2, 6)  # words from one clip
FADE_S = 0.01  # in which one stretch gives way to the next
WINDOW_S = 0.01  # over which loudness is measured, to cut where it is quiet
MARKS = ".,;:!?\"'()- "

Row = dict[str, Any]


@dataclass(frozen=True)
class Spelled:
    """A clip (n,) with its words and the samples that they lie between: word i from cuts[i] to cuts[i + 1]."""

    waveform: np.ndarray
    words: list[str]
    cuts: list[int]


def quietest(waveform: np.ndarray, start: int, end: int, rate_hz: int) -> int:
    """The sample between two others about which the waveform is quietest."""
    half = int(WINDOW_S * rate_hz / 2)
    places = range(start, max(end, start + 1), half)
    return min(places, key=lambda at: float(np.square(waveform[max(0, at - half) : at + half]).sum()))


def spell(model: OmniModel, waveform: np.ndarray, text: str) -> Spelled | None:
    """Where the words of a clip begin and end; None if the text does not fit into it."""
    rate_hz = model.config.audio.sample_rate_hz
    text = " ".join(text.split())
    named, n_slots = model.audio_encoder.named_at(model.log_mel(torch.from_numpy(waveform)), encode_characters(text))
    if named is None or len(named) != len(text):  # a sign that is spelled by several characters
        return None
    samples = len(waveform) / n_slots
    spaces = [i for i, character in enumerate(text) if character == " "]
    between = [quietest(waveform, int(named[i - 1] * samples), int(named[i + 1] * samples), rate_hz) for i in spaces]
    return Spelled(waveform, text.split(), [0, *between, len(waveform)])


def join(stretches: Sequence[np.ndarray], fade: int) -> np.ndarray:
    """One waveform, every stretch fading into the next over `fade` samples."""
    out, ramp = stretches[0], np.linspace(0.0, 1.0, fade, dtype=np.float32)
    for stretch in stretches[1:]:
        overlap = min(fade, len(out), len(stretch))
        mixed = out[len(out) - overlap :] * (1 - ramp[:overlap]) + stretch[:overlap] * ramp[:overlap]
        out = np.concatenate((out[: len(out) - overlap], mixed, stretch[overlap:]))
    return out


def splice(clips: Sequence[Spelled], rng: Random, rate_hz: int) -> tuple[np.ndarray, str]:
    """A new sentence and its words."""
    wanted = rng.choice(WORDS)
    sounds: list[np.ndarray] = []
    words: list[str] = []
    while len(words) < wanted:
        clip = rng.choice(clips)
        n = min(rng.choice(STRETCH), len(clip.words), wanted - len(words))
        start = rng.randrange(len(clip.words) - n + 1)
        sounds.append(clip.waveform[clip.cuts[start] : clip.cuts[start + n]])
        taken = [word.strip(MARKS) for word in clip.words[start : start + n]]
        words += [word.lower() if i + start == 0 and not word.startswith("I'") and word != "I" else word for i, word in enumerate(taken)]
    text = " ".join(words)
    return join(sounds, int(FADE_S * rate_hz)), f"{text[:1].upper()}{text[1:]}."


def make_splices(rows: Sequence[Row], encoder: Path, out: Path, n: int, speaker: str) -> Path:
    """`n` new sentences of the reader of `rows`, by the alignment of the audio encoder in the model folder `encoder`: OUT.jsonl and clips in OUT/.
    Made when the manifest is not there."""
    manifest = out.with_suffix(".jsonl")
    if manifest.exists():
        return manifest
    model, rng = OmniModel.from_saved(load_model(encoder)).eval(), Random(f"splices of {speaker}")
    rate_hz = model.config.audio.sample_rate_hz
    clips = [clip for row in rows if (clip := spell(model, load_audio(row["audio"], rate_hz), row["text"])) is not None]
    log.info("%s: the words of %d of %d clips are found", speaker, len(clips), len(rows))
    out.mkdir(parents=True, exist_ok=True)
    lines = []
    for i in range(n):
        waveform, text = splice(clips, rng, rate_hz)
        soundfile.write(out / f"{i:05}.flac", waveform, rate_hz)
        lines.append(
            json.dumps({"audio": f"{out.name}/{i:05}.flac", "text": text, "speaker": speaker, "duration_s": len(waveform) / rate_hz})
        )
    manifest.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return manifest
