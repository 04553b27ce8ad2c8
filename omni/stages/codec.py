"""Stage D, first half: the codec learns to squeeze log-mel through residual codebooks and back."""

from __future__ import annotations

from collections.abc import Iterable

from omni.data.collate import SpeechBatch
from omni.omni_model import OmniModel
from omni.stages.base import OmniStage
from omni.stages.data import speech_splits
from omni.training.stage import Context, Reduce, Splits, Term


class CodecStage(OmniStage[SpeechBatch]):
    """`muomni train codec`: absolute and squared error of the scaled log-mel plus commitment; codebooks move once an update."""

    name = "codec"
    best_metric, best_mode = "absolute", "min"
    trains = ("codec",)

    def build_data(self) -> Splits[SpeechBatch]:
        return speech_splits(self.run, self.config)

    def prepare(self, model: OmniModel, batch: SpeechBatch) -> None:
        model.codec.initialise(batch.mel, batch.mel_lengths)

    def counts(self, batch: SpeechBatch) -> dict[str, int]:
        frames = int(batch.mel_lengths.sum())
        return {"absolute": frames, "squared": frames, "commitment": int((-(-batch.mel_lengths // self.config.codec.stride)).sum())}

    def loss(self, model: OmniModel, batch: SpeechBatch, context: Context) -> dict[str, Term]:
        out = model.codec(batch.mel, batch.mel_lengths)
        counts = self.counts(batch)
        return {
            "absolute": Term(out.absolute, counts["absolute"]),
            "squared": Term(out.squared, counts["squared"]),
            "commitment": Term(out.commitment, counts["commitment"], self.config.codec.commitment_weight),
        }

    def after_update(self, model: OmniModel, reduce: Reduce) -> None:
        model.codec.update_codebooks(reduce)

    def after_skip(self, model: OmniModel) -> None:
        model.codec.forget_statistics()

    def evaluate(self, model: OmniModel, batches: Iterable[SpeechBatch]) -> dict[str, float]:
        """Mean absolute error of the scaled log-mel, and how many codes are in use (share and perplexity, mean over codebooks)."""
        absolute, frames = 0.0, 0
        for batch in batches:
            absolute, frames = absolute + float(model.codec(batch.mel, batch.mel_lengths).absolute), frames + int(batch.mel_lengths.sum())
        usage = model.codec.usage()
        return {
            "absolute": absolute / max(frames, 1),
            "codes_used": sum(share for share, _ in usage) / len(usage),
            "perplexity": sum(perplexity for _, perplexity in usage) / len(usage),
        }
