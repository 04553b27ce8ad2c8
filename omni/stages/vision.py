"""Stage C: the vision encoder learns to match pictures with captions (CLIP, Radford et al. 2021) and to caption from its patches.

The contrastive loss shapes only the CLS vector and is weak at count and position; the captioning loss runs through the frozen Thinker, which is
asked to describe the picture, into what it sees of the patches (CoCa, Yu et al. 2022, joins the same two losses). It is the dearer one, and learns
later: a short run does better without it (`train.caption_loss`)."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from omni.config import RunConfig
from omni.data.collate import CaptionBatch
from omni.data.datasets import CaptionDataset
from omni.evaluation.metrics import collisions, recall_at
from omni.omni_model import OmniModel
from omni.stages.base import OmniStage
from omni.stages.data import caption_splits
from omni.training.losses import info_nce, next_token_loss
from omni.training.stage import Context, Splits, Term


def caption_vectors(model: OmniModel, batch: CaptionBatch) -> Tensor:
    """Unit vectors (B,E) of the captions, from the states of the Thinker, which does not change."""
    with torch.no_grad():
        states = model.thinker.hidden_states(batch.caption_ids, lengths=batch.caption_lengths)
    return model.contrastive.text(states, batch.caption_lengths)


def caption_loss(model: OmniModel, cls: Tensor, grid: Tensor, batch: CaptionBatch) -> Term:
    """Next-token loss of the captions as the Thinker's answers about the pictures, which it sees as it will ever after."""
    images = model.image_projector(model.vision_encoder.tokens(cls, grid))
    embeddings = model.embed(batch.input_ids, images=images, image_slots=batch.image_slots)
    return next_token_loss(model.thinker.hidden_states(embeddings=embeddings), model.thinker.lm_head.weight, batch.labels)


class VisionStage(OmniStage[CaptionBatch]):
    """`muomni train vision --config configs/vision_tiny.json`: InfoNCE over the global batch plus next-token loss of the caption."""

    name = "vision"
    best_metric, best_mode = "image_to_text_r1", "max"
    needs = ("thinker",)
    trains: tuple[str, ...] = ("vision_encoder", "image_projector", "contrastive")

    _collisions: float

    def __init__(self, run: RunConfig) -> None:
        """Without the caption loss there is nothing that the projector could learn from."""
        super().__init__(run)
        self.captions = run.train.caption_loss
        if not self.captions:
            self.trains = tuple(name for name in self.trains if name != "image_projector")

    def build_data(self) -> Splits[CaptionBatch]:
        splits = caption_splits(self.run, self.config, self.require_tokenizer())
        assert isinstance(splits.train, CaptionDataset)
        self._collisions = collisions(splits.train.captions(), self.run.train.batch_size)
        return splits

    def counts(self, batch: CaptionBatch) -> dict[str, int]:
        counts = {"contrastive": len(batch.pixels)}
        return counts | {"caption": int((batch.labels != -100).sum())} if self.captions else counts

    def statistics(self, model: OmniModel, batch: CaptionBatch) -> dict[str, Tensor] | None:
        """The unit vectors of all pictures and captions, unless this micro-batch holds them all."""
        if len(batch.pixels) == self.run.train.batch_size:
            return None
        return {"images": model.contrastive.image(model.vision_encoder(batch.pixels)[0]), "texts": caption_vectors(model, batch)}

    def loss(self, model: OmniModel, batch: CaptionBatch, context: Context) -> dict[str, Term]:
        cls, grid = model.vision_encoder(batch.pixels)
        images, texts = model.contrastive.image(cls), caption_vectors(model, batch)
        terms = {"contrastive": info_nce(images, texts, model.contrastive.log_scale, context)}
        return terms | {"caption": caption_loss(model, cls, grid, batch)} if self.captions else terms

    def evaluate(self, model: OmniModel, batches: Iterable[CaptionBatch]) -> dict[str, float]:
        """Retrieval R@1 both ways over all validation pairs (identical captions count as one), the caption loss where it is learned, and the share
        of the training pairs that meet their own caption again in a batch, where it counts as wrong."""
        images: list[Tensor] = []
        texts: list[Tensor] = []
        captions: list[str] = []
        total, count = 0.0, 0
        for batch in batches:
            cls, grid = model.vision_encoder(batch.pixels)
            if self.captions:
                term = caption_loss(model, cls, grid, batch)
                total, count = total + float(term.sum), count + int(term.count)
            images.append(model.contrastive.image(cls).cpu())
            texts.append(caption_vectors(model, batch).cpu())
            captions.extend(batch.texts)
        similarity = torch.cat(images) @ torch.cat(texts).T
        scores = {"caption_loss": total / max(count, 1)} if self.captions else {}
        return scores | {
            "image_to_text_r1": recall_at(similarity, captions, 1),
            "text_to_image_r1": recall_at(similarity.T, captions, 1),
            "collisions": self._collisions,
        }
