"""Stage D, second half: the Talker learns to say a text in a voice, as codes of the frozen codec."""

from __future__ import annotations

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor

from omni.data.collate import TalkerBatch
from omni.omni_model import OmniModel
from omni.stages.base import OmniStage
from omni.stages.data import talker_splits
from omni.talker import TalkerOutput
from omni.training.stage import Context, Splits, Term


def talker_labels(codes: Tensor, lengths: Tensor, end_id: int) -> tuple[Tensor, Tensor]:
    """codes (B,F,K), lengths (B,) → labels of the first codebook (B,F+1), end of speech behind the last frame, and of the
    others (B,F,K-1); -100 beyond."""
    frame = torch.arange(codes.shape[1] + 1, device=codes.device)
    first = F.pad(codes[..., 0], (0, 1))
    first = torch.where(frame == lengths[:, None], end_id, first).masked_fill(frame > lengths[:, None], -100)
    rest = codes[..., 1:].masked_fill((frame[:-1] >= lengths[:, None])[..., None], -100)
    return first, rest


def talker_losses(output: TalkerOutput, first: Tensor, rest: Tensor) -> tuple[Tensor, Tensor]:
    """Summed cross-entropy of the first codebook (with end of speech) and of the others."""
    a = F.cross_entropy(output.first.float().flatten(0, 1), first.flatten(), reduction="sum")
    if not rest.shape[-1]:
        return a, a.new_zeros(())
    return a, F.cross_entropy(output.rest.float().flatten(0, 2), rest.flatten(), reduction="sum")


class TalkerStage(OmniStage[TalkerBatch]):
    """`muomni train talker --config configs/talker_tiny.json`: cross-entropy of every code given the text, the voice and the codes before."""

    name = "talker"
    best_metric, best_mode = "first", "min"
    needs = ("thinker", "codec")
    trains = ("talker",)

    def build_data(self) -> Splits[TalkerBatch]:
        return talker_splits(self.run, self.config, self.require_tokenizer())

    def counts(self, batch: TalkerBatch) -> dict[str, int]:
        frames = int(self._frames(batch).sum())
        return {"first": frames + len(batch.texts), "rest": frames * (self.config.codec.n_codebooks - 1)}

    def _frames(self, batch: TalkerBatch) -> Tensor:
        return -(-batch.mel_lengths // self.config.codec.stride)

    def _forward(self, model: OmniModel, batch: TalkerBatch, keep_states: Tensor | None = None) -> tuple[Tensor, Tensor]:
        with torch.no_grad():
            codes = model.codec.encode(batch.mel, batch.mel_lengths)
        conditioning = model.condition(
            batch.input_ids, batch.lengths, batch.char_ids, batch.char_tokens, batch.char_lengths, batch.voices, keep_states
        )
        return talker_losses(model.talker(codes, conditioning), *talker_labels(codes, self._frames(batch), model.talker.end_id))

    def loss(self, model: OmniModel, batch: TalkerBatch, context: Context) -> dict[str, Term]:
        keep = torch.rand(len(batch.texts), device=batch.mel.device) >= self.config.talker.conditioning_dropout
        first, rest = self._forward(model, batch, keep)
        counts = self.counts(batch)
        return {"first": Term(first, counts["first"])} | ({"rest": Term(rest, counts["rest"])} if counts["rest"] else {})

    def evaluate(self, model: OmniModel, batches: Iterable[TalkerBatch]) -> dict[str, float]:
        """Nats per code of the first and the other codebooks, with the right text and with the neighbour's (does it follow the text?)."""
        sums = dict.fromkeys(("first", "rest", "first_other_text"), 0.0)
        frames, rest_count = 0, 0
        for batch in batches:
            counts = self.counts(batch)
            first, rest = self._forward(model, batch)
            other, _ = self._forward(model, batch.with_text_of_neighbour())
            frames, rest_count = frames + counts["first"], rest_count + counts["rest"]
            for key, value in (("first", first), ("rest", rest), ("first_other_text", other)):
                sums[key] += float(value)
        return {key: value / max(rest_count if key == "rest" else frames, 1) for key, value in sums.items()}
