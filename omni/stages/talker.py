"""Stage D, last part: the Talker learns to say a text in a voice, as codes of the frozen codec, while its aligner learns how long each character
lasts in a clip."""

from __future__ import annotations

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from omni.alignment import SLOTS, durations, forward_sum
from omni.data.collate import IGNORE, TalkerBatch
from omni.errors import DataError
from omni.omni_model import OmniModel
from omni.stages.base import OmniStage
from omni.stages.data import talker_splits
from omni.talker import TalkerOutput
from omni.training.stage import Context, Splits, Term


def talker_losses(output: TalkerOutput, codes: Tensor, lengths: Tensor, lasts: Tensor, char_lengths: Tensor) -> dict[str, Tensor]:
    """Summed cross-entropy of the first codebook and of the others over codes (B,F,K) of `lengths` (B,) frames, and of the durations, given the
    true ones (B,C): Poisson regression, whose optimum is the mean, so that speech lasts as long as it should."""
    inside = torch.arange(codes.shape[1], device=codes.device) < lengths[:, None]
    labels = codes.masked_fill(~inside[..., None], IGNORE)
    sums = {"first": F.cross_entropy(output.first.float().flatten(0, 1), labels[..., 0].flatten(), ignore_index=IGNORE, reduction="sum")}
    if codes.shape[-1] > 1:
        rest = output.rest.float().flatten(0, 2), labels[..., 1:].flatten()
        sums["rest"] = F.cross_entropy(*rest, ignore_index=IGNORE, reduction="sum")
    spelled = torch.arange(lasts.shape[1], device=codes.device) < char_lengths[:, None]
    deviance = F.poisson_nll_loss(output.log_durations.float(), lasts.float(), log_input=True, full=False, reduction="none")
    return sums | {"duration": (deviance * spelled).sum()}


class TalkerStage(OmniStage[TalkerBatch]):
    """`muomni train talker --config configs/talker_tiny.json`: cross-entropy of every code given the text, the voice and the codes before, the
    duration of every character, and the alignment that the durations are taken from."""

    name = "talker"
    best_metric, best_mode = "codes", "min"
    needs = ("thinker", "codec")
    trains = ("talker",)

    _codes: dict[str, Tensor]

    def build_data(self) -> Splits[TalkerBatch]:
        self._codes = {}
        return talker_splits(self.run, self.config, self.require_tokenizer())

    def prepare(self, model: OmniModel, batch: TalkerBatch) -> None:
        """Codes start as the vectors that they mean, where these are as wide; those of a trained Talker stay what it has learned."""
        if "talker" in self.sources:
            return
        for weight, meaning in zip(model.talker.code_emb.parameters(), model.codec.rvq.vectors(), strict=True):
            if meaning.shape == weight.shape:
                weight.data.copy_(meaning / meaning.square().mean().sqrt().clamp(min=1e-6) / weight.shape[1] ** 0.5)

    def counts(self, batch: TalkerBatch) -> dict[str, int]:
        frames, more = int(self._frames(batch).sum()), self.config.codec.n_codebooks - 1
        characters = int(batch.char_lengths.sum())
        counts = {"first": frames, "duration": characters, "alignment": characters}
        return counts | ({"rest": frames * more} if more else {})

    def _frames(self, batch: TalkerBatch) -> Tensor:
        return -(-batch.mel_lengths // self.config.codec.stride)

    def _coded(self, model: OmniModel, batch: TalkerBatch) -> list[Tensor]:
        """The codes (F,K) of every clip, each by itself, so that they are the same in every batch, and once."""
        for row, clip in enumerate(batch.clips):
            if clip not in self._codes:
                with torch.autocast(batch.mel.device.type, enabled=False), torch.no_grad():
                    self._codes[clip] = model.codec.encode(batch.mel[row : row + 1, : int(batch.mel_lengths[row])])[0]
        return [self._codes[clip] for clip in batch.clips]

    def _aligned(self, model: OmniModel, batch: TalkerBatch) -> tuple[Tensor, list[Tensor]]:
        """The summed loss of the alignment, and the slots (C,) that every clip's characters last, silence at both ends included. Raises DataError
        for a clip that is too short for its text."""
        slots = self._frames(batch) * SLOTS
        for clip, n_slots, n_chars in zip(batch.clips, slots.tolist(), batch.char_lengths.tolist(), strict=True):
            if n_slots < n_chars:
                raise DataError(f"{clip}: {n_slots / SLOTS:g} frames are too short for the {n_chars} characters of its text")
        log_probabilities = model.talker.aligner(batch.mel, slots, batch.char_ids, batch.char_lengths)
        loss = forward_sum(log_probabilities, slots, batch.char_lengths)
        return loss, durations(log_probabilities, slots, batch.char_lengths)

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
        counts = self.counts(batch)
        alignment, lasts = self._aligned(model, batch)
        sums = self._sums(model, batch, self._coded(model, batch), lasts, keep) | {"alignment": alignment}
        return {name: Term(value, counts[name]) for name, value in sums.items()}

    def evaluate(self, model: OmniModel, batches: Iterable[TalkerBatch]) -> dict[str, float]:
        """Nats per code, of the first codebook and the others apart too, the first also with the neighbour's text (does it follow the text?), and
        what the durations and their alignment cost."""
        totals: dict[str, float] = {}
        counts: dict[str, int] = {}
        for batch in batches:
            coded, (alignment, lasts) = self._coded(model, batch), self._aligned(model, batch)
            sums = self._sums(model, batch, coded, lasts) | {"alignment": alignment}
            other = self._sums(model, batch.with_text_of_neighbour(), coded, lasts[-1:] + lasts[:-1])
            count = self.counts(batch)
            for name, value in (sums | {"first_other_text": other["first"]}).items():
                totals[name] = totals.get(name, 0.0) + float(value)
                counts[name] = counts.get(name, 0) + count.get(name, count["first"])
        codes = (totals["first"] + totals.get("rest", 0.0)) / max(counts["first"] + counts.get("rest", 0), 1)
        return {"codes": codes} | {name: value / max(counts[name], 1) for name, value in totals.items()}
