"""Stage B: the audio encoder learns to spell what it hears (CTC, Graves et al. 2006), several character slots a frame."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import torch
from torch import Tensor

from omni.characters import BLANK_ID
from omni.data.collate import SpeechBatch
from omni.evaluation.metrics import ErrorRate, greedy_ctc
from omni.omni_model import OmniModel
from omni.stages.base import OmniStage
from omni.stages.data import speech_splits
from omni.training.augmentation import mask_mel, vary
from omni.training.losses import ctc_nats
from omni.training.stage import Context, Splits, Term


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
        if model.training:
            batch = self._augmented(batch)
        nats, _, _ = self._nats(model, batch)
        infeasible = Term((nats == 0).sum(), len(nats), weight=0.0)  # logged: clips whose text cannot fit teach nothing
        return {"ctc": Term(nats.sum(), int(batch.target_lengths.sum())), "infeasible": infeasible}

    def _augmented(self, batch: SpeechBatch) -> SpeechBatch:
        mel, lengths = batch.mel, batch.mel_lengths
        if self.run.data.vary_speech:
            mel, lengths = vary(mel, lengths, self.config.audio)
        if self.run.data.mel_masks:
            mel = mask_mel(mel, lengths, self.run.data.mel_masks)
        return replace(batch, mel=mel, mel_lengths=lengths)

    def _nats(self, model: OmniModel, batch: SpeechBatch) -> tuple[Tensor, Tensor, Tensor]:
        """Of every clip (B,), with the logits (B,F·S,characters) and their lengths (B,)."""
        states, lengths = model.audio_encoder(batch.mel, batch.mel_lengths)
        logits, slots = model.audio_encoder.ctc_logits(states, lengths), lengths * self.config.audio_encoder.ctc_slots
        return ctc_nats(logits, slots, batch.targets, batch.target_lengths, BLANK_ID), logits, slots

    def evaluate(self, model: OmniModel, batches: Iterable[SpeechBatch]) -> dict[str, float]:
        """WER and CER of greedy decoding, nats per character, and how many clips cannot hold their text."""
        errors, nats, characters, infeasible = ErrorRate(), torch.zeros(()), 0, 0
        for batch in batches:
            losses, logits, slots = self._nats(model, batch)
            nats, characters = nats + losses.sum().cpu(), characters + int(batch.target_lengths.sum())
            infeasible += int((losses == 0).sum())
            for text, heard in zip(batch.texts, greedy_ctc(logits, slots), strict=True):
                errors.add(text, heard)
        return {"wer": errors.wer, "cer": errors.cer, "loss": float(nats) / max(characters, 1), "infeasible": float(infeasible)}
