"""Stage D, first part: the codec learns to squeeze log-mel through residual codebooks and back.

With a trained audio encoder in init_from it also learns that the encoder hears the same in both: what decides whether words survive is a
small part of the error of the log-mel (the idea of Mimi, Défossez et al. 2024, §3.3.3, as a loss on what is rebuilt)."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from omni.config import RunConfig
from omni.data.collate import SpeechBatch
from omni.evaluation.metrics import ErrorRate, greedy_ctc
from omni.omni_model import OmniModel
from omni.stages.base import OmniStage
from omni.stages.data import speech_splits
from omni.training.stage import Context, Reduce, Splits, Term

LISTENED = slice(None, None, 4)  # rows of a batch: to hear a clip twice costs four times as much as to code it


def _frames(mel_lengths: Tensor, mel_frames: int) -> int:
    """How many frames of so many mel frames each all clips have."""
    return int((-(-mel_lengths // mel_frames)).sum())


class CodecStage(OmniStage[SpeechBatch]):
    """`muomni train codec`: absolute and squared error of the scaled log-mel, what a listener makes of it, and commitment; codebooks move once
    an update."""

    name = "codec"
    best_metric, best_mode = "absolute", "min"
    trains = ("codec",)

    def __init__(self, run: RunConfig) -> None:
        super().__init__(run)
        self.listens = "audio_encoder" in self.sources
        if self.listens:
            self.needs = ("audio_encoder",)
            self.config = self._config()

    def build_data(self) -> Splits[SpeechBatch]:
        return speech_splits(self.run, self.config)

    def prepare(self, model: OmniModel, batch: SpeechBatch) -> None:
        """The codebooks of a new codec start from its first batch."""
        if "codec" not in self.sources:
            model.codec.initialise(batch.mel, batch.mel_lengths)

    def counts(self, batch: SpeechBatch) -> dict[str, int]:
        frames = int(batch.mel_lengths.sum())
        counts = {"absolute": frames, "squared": frames, "commitment": _frames(batch.mel_lengths, self.config.codec.stride)}
        heard = _frames(batch.mel_lengths[LISTENED], self.config.audio_encoder.downsample)
        return counts | ({"heard": heard} if self.listens else {})

    def loss(self, model: OmniModel, batch: SpeechBatch, context: Context) -> dict[str, Term]:
        out = model.codec(batch.mel, batch.mel_lengths)
        counts, config = self.counts(batch), self.config.codec
        terms = {
            "absolute": Term(out.absolute, counts["absolute"]),
            "squared": Term(out.squared, counts["squared"]),
            "commitment": Term(out.commitment, counts["commitment"], config.commitment_weight),
        }
        if self.listens:
            terms["heard"] = Term(self._heard_difference(model, out.mel, batch), counts["heard"], config.hearing_weight)
        return terms

    def _heard_difference(self, model: OmniModel, mel: Tensor, batch: SpeechBatch) -> Tensor:
        """Σ over frames of the mean squared difference between the audio encoder's states of the rebuilt `mel` (B,T,mels) and of the clip, for some
        of the clips."""
        with torch.no_grad():
            wanted, lengths = model.audio_encoder(batch.mel[LISTENED], batch.mel_lengths[LISTENED])
        heard, _ = model.audio_encoder(mel[LISTENED], batch.mel_lengths[LISTENED])
        inside = torch.arange(wanted.shape[1], device=wanted.device) < lengths[:, None]
        return ((heard.float() - wanted.float()).square().mean(-1) * inside).sum()

    def after_update(self, model: OmniModel, reduce: Reduce) -> None:
        model.codec.update_codebooks(reduce)

    def after_skip(self, model: OmniModel) -> None:
        model.codec.forget_statistics()

    def evaluate(self, model: OmniModel, batches: Iterable[SpeechBatch]) -> dict[str, float]:
        """Mean absolute error of the scaled log-mel, how many codes are in use (share and perplexity, mean over codebooks), and the WER of the
        audio encoder, if there is one, on what is rebuilt."""
        absolute, frames, errors = 0.0, 0, ErrorRate()
        for batch in batches:
            out = model.codec(batch.mel, batch.mel_lengths)
            absolute, frames = absolute + float(out.absolute), frames + int(batch.mel_lengths.sum())
            if self.listens:
                states, lengths = model.audio_encoder(out.mel, batch.mel_lengths)
                heard = greedy_ctc(model.audio_encoder.ctc_logits(states, lengths), lengths * self.config.audio_encoder.ctc_slots)
                for text, found in zip(batch.texts, heard, strict=True):
                    errors.add(text, found)
        usage = model.codec.usage()
        return {
            "absolute": absolute / max(frames, 1),
            "codes_used": sum(share for share, _ in usage) / len(usage),
            "perplexity": sum(perplexity for _, perplexity in usage) / len(usage),
        } | ({"heard_wer": errors.wer} if self.listens else {})
