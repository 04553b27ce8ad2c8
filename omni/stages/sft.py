"""Stage E: instruction tuning of the Thinker and projectors on turns of text, pictures and sound."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import torch
from torch import Tensor, nn

from omni.config import RunConfig
from omni.data.collate import IGNORE, ConversationBatch
from omni.errors import CheckpointError
from omni.omni_model import OmniModel
from omni.stages.base import OmniStage
from omni.stages.data import conversation_splits
from omni.training.augmentation import vary
from omni.training.losses import next_token_loss, shares_in_groups
from omni.training.stage import Context, Splits, Term


def sft_hidden_states(model: OmniModel, batch: ConversationBatch) -> Tensor:
    """The Thinker's states (B,T,d) over the conversations with their media spliced in."""
    embeddings = model.embed(
        batch.input_ids,
        pixels=batch.pixels,
        image_slots=batch.image_slots,
        mel=batch.mel,
        mel_lengths=batch.mel_lengths,
        audio_slots=batch.audio_slots,
    )
    return model.thinker.hidden_states(embeddings=embeddings, branches=batch.branches if batch.branches.any() else None)


class SFTStage(OmniStage[ConversationBatch]):
    """`muomni train sft --config configs/omni_sft_tiny.json`: next-token loss on what the assistant says, and on its end of turn. Every conversation
    counts the same, or the long replies of chats would drown answers of a few words; but of those of which every word is learned every piece does
    (`ConversationExample.groups`)."""

    name = "sft"
    best_metric, best_mode = "exact", "max"
    trains: tuple[str, ...] = ("thinker", "vision_encoder", "audio_encoder", "image_projector", "audio_projector")

    def __init__(self, run: RunConfig) -> None:
        """Trains the Thinker with the encoders that `init_from` brings: text alone where there is none. (A medium without its encoder is an error.)"""
        super().__init__(run)
        if "thinker" not in self.sources:
            raise CheckpointError("stage sft needs a trained thinker in init_from; train stage text before it")
        senses = (("vision_encoder", "image_projector"), ("audio_encoder", "audio_projector"))
        self.trains = ("thinker", *(name for sense in senses if sense[0] in self.sources for name in sense))

    def shard_units(self, model: OmniModel) -> list[nn.Module]:
        """The Thinker's blocks alone: a rank whose batch holds no picture or clip does not run that encoder, and others would wait for it."""
        return list(model.thinker.blocks)

    def build_data(self) -> Splits[ConversationBatch]:
        return conversation_splits(self.run, self.config, self.require_tokenizer())

    def counts(self, batch: ConversationBatch) -> dict[str, int]:
        return {"loss": round(float(shares_in_groups(batch.labels != IGNORE, batch.groups).sum()))}

    def loss(self, model: OmniModel, batch: ConversationBatch, context: Context) -> dict[str, Term]:
        if model.training and self.run.data.vary_speech and len(batch.mel):
            mel, _ = vary(batch.mel, batch.mel_lengths, self.config.audio, speed=(1.0, 1.0))  # a clip keeps its place in the text
            batch = replace(batch, mel=mel)
        return {"loss": next_token_loss(sft_hidden_states(model, batch), model.thinker.lm_head.weight, batch.labels, groups=batch.groups)}

    def evaluate(self, model: OmniModel, batches: Iterable[ConversationBatch]) -> dict[str, float]:
        """Loss of a group's mean token, and the share of groups whose every token is the likeliest one (what greedy decoding would say)."""
        total, count, exact = 0.0, 0, 0
        for batch in batches:
            hidden = sft_hidden_states(model, batch)
            term = next_token_loss(hidden, model.thinker.lm_head.weight, batch.labels, groups=batch.groups)
            total, count = total + float(term.sum), count + int(term.count)
            row, column = (batch.labels != IGNORE).nonzero(as_tuple=True)
            wrong = model.thinker.lm_head(hidden[row, column]).argmax(-1) != batch.labels[row, column]
            errors = torch.zeros_like(batch.groups).index_put((row, batch.groups[row, column]), wrong.long(), accumulate=True)
            exact += int(term.count) - int((errors > 0).sum())
        return {"loss": total / max(count, 1), "exact": exact / max(count, 1)}
