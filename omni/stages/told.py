"""Sentences that no reader has read, said by a Talker of our own for the audio encoder to hear (synthesised speech as augmentation, Rosenberg et
al. 2019). A reader of one hour does not say every word; who learned to talk like her does."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import soundfile

from omni.checkpoint import load_model
from omni.inference.sampling import Sampling
from omni.inference.speech import BATCH, Speaker
from omni.omni_model import OmniModel
from omni.tokenizer import BPETokenizer

log = logging.getLogger(__name__)

TEMPERATURE = 0.8
LONGEST_S = 12.0  # what takes longer has not been said as it should

Row = dict[str, Any]


def make_told(sentences: Sequence[str], speaking: Path, out: Path, voices: Sequence[str]) -> Path:
    """`sentences` by the model in the folder `speaking`, its `voices` taking turns: clips in OUT/ (interrupted, it goes on), and then OUT.jsonl,
    without the overlong."""
    saved = load_model(speaking)
    assert saved.tokenizer is not None, "a Thinker is always saved with its tokenizer"
    speaker = Speaker(OmniModel.from_saved(saved).eval(), BPETokenizer(saved.tokenizer))
    out.mkdir(parents=True, exist_ok=True)
    rows: list[Row] = []
    for start in range(0, len(sentences), BATCH):
        texts = sentences[start : start + BATCH]
        names = [voices[i % len(voices)] for i in range(start, start + len(texts))]
        files = [out / f"{i:05}.flac" for i in range(start, start + len(texts))]
        if not all(file.exists() for file in files):
            for file, said in zip(files, speaker.say(texts, names, Sampling(temperature=TEMPERATURE, seed=start)), strict=True):
                soundfile.write(file, said.waveform, said.sample_rate_hz)
            log.info("%d of %d sentences are told", start + len(texts), len(sentences))
        rows += [{"audio": f"{out.name}/{file.name}", "text": t, "speaker": v} for file, t, v in zip(files, texts, names, strict=True)]
    manifest = out.with_suffix(".jsonl")
    kept = [row for row in rows if soundfile.info(out.parent / row["audio"]).duration <= LONGEST_S]
    manifest.write_text("".join(f"{json.dumps(row)}\n" for row in kept), encoding="utf-8")
    return manifest
