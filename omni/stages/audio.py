"""Stage B: the audio encoder learns to spell what it hears (CTC, Graves et al. 2006), several character slots a frame."""

from __future__ import annotations

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor

from omni.audio_encoder import AudioEncoderTiny
from omni.characters import BLANK_ID
from omni.data.collate import SpeechBatch
from omni.evaluation.metrics import ErrorRate, greedy_ctc
from omni.omni_model import OmniModel
from omni.stages.base import OmniStage
from omni.stages.data import speech_splits
from omni.training.stage import Context, Splits, Term


def ctc_losses(encoder: AudioEncoderTiny, mel: Tensor, mel_lengths: Tensor, targets: Tensor, target_lengths: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Negative log-likelihood in nats of every clip (B,), 0 where the text cannot fit, with the logits (B,F·S,98) and their lengths."""
    states, lengths = encoder(mel, mel_lengths)
    logits = encoder.ctc_logits(states)
    slots = lengths * encoder.config.ctc_slots
    log_p = logits.float().log_softmax(-1).transpose(0, 1)
    return F.ctc_loss(log_p, targets, slots, target_lengths, blank=BLANK_ID, reduction="none", zero_infinity=True), logits, slots


class AudioStage(OmniStage[SpeechBatch]):
    """`muomni train audio --config configs/audio_enc_tiny.json`: nats per character over all voices."""

    name = "audio"
    best_metric, best_mode = "cer", "min"
    trains = ("audio_encoder",)

    def build_data(self) -> Splits[SpeechBatch]:
        return speech_splits(self.run, self.config)

    def counts(self, batch: SpeechBatch) -> dict[str, int]:
        return {"ctc": int(batch.target_lengths.sum())}

    def loss(self, model: OmniModel, batch: SpeechBatch, context: Context) -> dict[str, Term]:
        nats, _, _ = ctc_losses(model.audio_encoder, batch.mel, batch.mel_lengths, batch.targets, batch.target_lengths)
        return {"ctc": Term(nats.sum(), int(batch.target_lengths.sum()))}

    def evaluate(self, model: OmniModel, batches: Iterable[SpeechBatch]) -> dict[str, float]:
        """WER and CER of greedy decoding, and nats per character."""
        errors, nats, characters = ErrorRate(), torch.zeros(()), 0
        for batch in batches:
            losses, logits, slots = ctc_losses(model.audio_encoder, batch.mel, batch.mel_lengths, batch.targets, batch.target_lengths)
            nats, characters = nats + losses.sum().cpu(), characters + int(batch.target_lengths.sum())
            for text, heard in zip(batch.texts, greedy_ctc(logits, slots), strict=True):
                errors.add(text, heard)
        return {"wer": errors.wer, "cer": errors.cer, "loss": float(nats) / max(characters, 1)}
