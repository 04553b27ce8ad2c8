"""Stage D, last part: the Talker learns to say a text in a voice, as codes of the frozen codec.

What it learns from is measured once a clip: the codes, and by the frozen audio encoder how long each character lasts."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from omni.alignment import ctc_alignment, durations
from omni.data.collate import IGNORE, TalkerBatch
from omni.errors import DataError
from omni.omni_model import OmniModel
from omni.stages.base import OmniStage
from omni.stages.data import talker_splits
from omni.talker import SLOTS, TalkerOutput
from omni.training.stage import Context, Splits, Term


@dataclass(frozen=True)
class Spoken:
    """How a clip is said: codes (F,K), and the slots (C,) that its characters last, silence at both ends included."""

    codes: Tensor
    durations: Tensor


@torch.no_grad()
def named_at(model: OmniModel, mel: Tensor, characters: list[int], clip: str) -> tuple[list[int], int]:
    """mel (T,mels) and the characters said in it → the slot of the CTC head that names each, increasing, and how many slots there are. Raises
    DataError for a clip that is too short for its text."""
    states, _ = model.audio_encoder(mel[None])
    log_probabilities = model.audio_encoder.ctc_logits(states)[0].float().log_softmax(-1)
    named = ctc_alignment(log_probabilities, characters)
    if named is None:
        raise DataError(f"{clip}: {len(mel)} frames are too short for the {len(characters)} characters of its text")
    return named, len(log_probabilities)


@torch.no_grad()
def measure(model: OmniModel, mel: Tensor, characters: list[int], clip: str) -> Spoken:
    """The codes of a clip and how long its characters last. Raises DataError for a clip that is too short for its text."""
    codes = model.codec.encode(mel[None])[0]
    named, n_named = named_at(model, mel, characters, clip)
    n_slots = len(codes) * SLOTS
    scale = n_slots / n_named
    return Spoken(codes, durations([int(slot * scale) for slot in named], n_slots))


def talker_losses(output: TalkerOutput, codes: Tensor, lengths: Tensor, lasts: Tensor, char_lengths: Tensor) -> dict[str, Tensor]:
    """Summed cross-entropy of the first codebook and of the others over codes (B,F,K) of `lengths` (B,) frames, and the summed smooth absolute
    error of the logarithmic durations, given the true ones (B,C)."""
    inside = torch.arange(codes.shape[1], device=codes.device) < lengths[:, None]
    labels = codes.masked_fill(~inside[..., None], IGNORE)
    sums = {"first": F.cross_entropy(output.first.float().flatten(0, 1), labels[..., 0].flatten(), ignore_index=IGNORE, reduction="sum")}
    if codes.shape[-1] > 1:
        rest = output.rest.float().flatten(0, 2), labels[..., 1:].flatten()
        sums["rest"] = F.cross_entropy(*rest, ignore_index=IGNORE, reduction="sum")
    spelled = torch.arange(lasts.shape[1], device=codes.device) < char_lengths[:, None]
    error = F.smooth_l1_loss(output.log_durations.float(), lasts.float().log1p(), beta=0.2, reduction="none")
    return sums | {"duration": (error * spelled).sum()}


class TalkerStage(OmniStage[TalkerBatch]):
    """`muomni train talker --config configs/talker_tiny.json`: cross-entropy of every code given the text, the voice and the codes before, and
    the duration of every character."""

    name = "talker"
    best_metric, best_mode = "first", "min"
    needs = ("thinker", "codec", "audio_encoder")
    trains = ("talker",)

    _spoken: dict[tuple[str, str], Spoken]

    def build_data(self) -> Splits[TalkerBatch]:
        self._spoken = {}
        return talker_splits(self.run, self.config, self.require_tokenizer())

    def prepare(self, model: OmniModel, batch: TalkerBatch) -> None:
        """Codes start as the vectors that they mean, where these are as wide."""
        for weight, meaning in zip(model.talker.code_emb.parameters(), model.codec.rvq.vectors(), strict=True):
            if meaning.shape == weight.shape:
                weight.data.copy_(meaning / meaning.square().mean().sqrt().clamp(min=1e-6) / weight.shape[1] ** 0.5)

    def counts(self, batch: TalkerBatch) -> dict[str, int]:
        frames, more = int(self._frames(batch).sum()), self.config.codec.n_codebooks - 1
        counts = {"first": frames, "duration": int(batch.char_lengths.sum())}
        return counts | ({"rest": frames * more} if more else {})

    def _frames(self, batch: TalkerBatch) -> Tensor:
        return -(-batch.mel_lengths // self.config.codec.stride)

    def _measured(self, model: OmniModel, batch: TalkerBatch) -> list[Spoken]:
        """Of every clip, each by itself, so that it is the same in every batch."""
        rows = list(zip(batch.clips, batch.texts, strict=True))
        for row, (clip, text) in enumerate(rows):
            if (clip, text) not in self._spoken:
                characters = batch.char_ids[row, 1 : int(batch.char_lengths[row]) - 1].tolist()
                with torch.autocast(batch.mel.device.type, enabled=False):
                    self._spoken[clip, text] = measure(model, batch.mel[row, : int(batch.mel_lengths[row])], characters, clip)
        return [self._spoken[row] for row in rows]

    def _sums(
        self, model: OmniModel, batch: TalkerBatch, codes: list[Tensor], lasts: list[Tensor], keep: Tensor | None = None
    ) -> dict[str, Tensor]:
        conditioning = model.condition(
            batch.input_ids, batch.lengths, batch.char_ids, batch.char_tokens, batch.char_lengths, batch.voices, keep
        )
        padded = pad_sequence(codes, batch_first=True)
        output = model.talker(padded, conditioning, lasts)
        return talker_losses(output, padded, self._frames(batch), pad_sequence(lasts, batch_first=True), batch.char_lengths)

    def loss(self, model: OmniModel, batch: TalkerBatch, context: Context) -> dict[str, Term]:
        keep = torch.rand(len(batch.texts), device=batch.mel.device) >= self.config.talker.conditioning_dropout
        measured, counts = self._measured(model, batch), self.counts(batch)
        sums = self._sums(model, batch, [m.codes for m in measured], [m.durations for m in measured], keep)
        return {name: Term(value, counts[name]) for name, value in sums.items()}

    def evaluate(self, model: OmniModel, batches: Iterable[TalkerBatch]) -> dict[str, float]:
        """Nats per code of the first and the other codebooks, the first also with the neighbour's text (does it follow the text?), and the error
        of the durations."""
        totals: dict[str, float] = {}
        counts: dict[str, int] = {}
        for batch in batches:
            measured = self._measured(model, batch)
            codes, lasts = [m.codes for m in measured], [m.durations for m in measured]
            sums = self._sums(model, batch, codes, lasts)
            other = self._sums(model, batch.with_text_of_neighbour(), codes, lasts[-1:] + lasts[:-1])
            count = self.counts(batch)
            for name, value in (sums | {"first_other_text": other["first"]}).items():
                totals[name] = totals.get(name, 0.0) + float(value)
                counts[name] = counts.get(name, 0) + count.get(name, count["first"])
        return {name: value / max(counts[name], 1) for name, value in totals.items()}
