"""Stage C: the vision encoder learns from captions, in up to three ways (`train.vision_losses`).

- contrastive: to match pictures with captions (CLIP, Radford et al. 2021). It shapes only the CLS vector, is weak at count and position, and in
  small batches learns only what tells most pictures apart.
- caption: to describe the picture from its patches, through the frozen Thinker (CoCa, Yu et al. 2022, joins these two losses).
- words: which words the caption has, in any order, some patch of the picture being each of them (multiple instance learning of captions' words,
  Fang et al. 2015, §3). A projected patch says the words whose embeddings of the Thinker it points to, so it needs no head and no
  pass through the Thinker; it is the cheapest, and teaches a small encoder shapes long before the others do.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from omni.config import RunConfig, VisionLoss
from omni.data.collate import CaptionBatch
from omni.data.datasets import CaptionDataset
from omni.evaluation.metrics import collisions, recall_at
from omni.omni_model import OmniModel
from omni.stages.base import OmniStage
from omni.stages.data import caption_splits
from omni.training.losses import info_nce, next_token_loss
from omni.training.stage import Context, Splits, Term

WORD_SCALE = 20.0  # logits per cosine of a patch with a word

BEST: dict[VisionLoss, tuple[str, Literal["min", "max"]]] = {
    "contrastive": ("image_to_text_r1", "max"),
    "caption": ("caption_loss", "min"),
    "words": ("words_f1", "max"),
}  # the score that decides, by the loss that a run names first


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


def word_logits(model: OmniModel, grid: Tensor, words: Tensor, log_odds: Tensor) -> Tensor:
    """Patches (B,N,d), ids of `words` (W,) and their log-odds in a caption about any picture (W,) → log-odds (B,W) in those about these pictures:
    a smooth maximum over the patches (log-mean-exp, Pinheiro & Collobert 2015)."""
    patches = F.normalize(model.image_projector(grid).float(), dim=-1)
    embeddings = F.normalize(model.thinker.tok_emb.weight[words].float(), dim=-1)
    return log_odds + (WORD_SCALE * patches @ embeddings.T).logsumexp(1) - math.log(grid.shape[1])


def words_of(batch: CaptionBatch, words: Tensor) -> Tensor:
    """Which of `words` (W,) the captions have: (B,W) of 0 and 1."""
    return (batch.caption_ids[:, :, None] == words).any(1).float()


class VisionStage(OmniStage[CaptionBatch]):
    """`muomni train vision --config configs/vision_tiny.json`: the sum of the losses that the run names. The projector learns what it has part in."""

    name = "vision"
    needs = ("thinker",)

    _collisions: float
    _words: Tensor
    _log_odds: Tensor

    def __init__(self, run: RunConfig) -> None:
        self.losses = run.train.vision_losses
        self.best_metric, self.best_mode = BEST[self.losses[0]]
        projector = ("image_projector",) if {"caption", "words"} & set(self.losses) else ()
        heads = ("contrastive",) if "contrastive" in self.losses else ()
        self.trains = ("vision_encoder", *projector, *heads)
        super().__init__(run)

    def build_data(self) -> Splits[CaptionBatch]:
        tokenizer = self.require_tokenizer()
        splits = caption_splits(self.run, self.config, tokenizer)
        assert isinstance(splits.train, CaptionDataset)
        captions = splits.train.captions()
        self._collisions = collisions(captions, self.run.train.batch_size)
        if "words" in self.losses:
            counts = Counter(word for caption in captions for word in set(tokenizer.encode(caption)))
            self._words = torch.tensor(sorted(counts))
            self._log_odds = torch.tensor([(counts[word] + 0.5) / (len(captions) + 1) for word in sorted(counts)]).logit()
        return splits

    def counts(self, batch: CaptionBatch) -> dict[str, int]:
        targets = {"contrastive": len(batch.pixels), "caption": int((batch.labels != -100).sum()), "words": len(batch.pixels)}
        return {name: targets[name] for name in self.losses}

    def statistics(self, model: OmniModel, batch: CaptionBatch) -> dict[str, Tensor] | None:
        """The unit vectors of all pictures and captions, unless this micro-batch holds them all."""
        if "contrastive" not in self.losses or len(batch.pixels) == self.run.train.batch_size:
            return None
        return {"images": model.contrastive.image(model.vision_encoder(batch.pixels)[0]), "texts": caption_vectors(model, batch)}

    def _said(self, model: OmniModel, grid: Tensor, batch: CaptionBatch) -> tuple[Tensor, Tensor]:
        """Log-odds (B,W) of the captions' words by the patches, and which there are (B,W)."""
        words = self._words.to(grid.device)
        return word_logits(model, grid, words, self._log_odds.to(grid.device)), words_of(batch, words)

    def loss(self, model: OmniModel, batch: CaptionBatch, context: Context) -> dict[str, Term]:
        cls, grid = model.vision_encoder(batch.pixels)
        terms = {}
        if "contrastive" in self.losses:
            images, texts = model.contrastive.image(cls), caption_vectors(model, batch)
            terms["contrastive"] = info_nce(images, texts, model.contrastive.log_scale, context)
        if "caption" in self.losses:
            terms["caption"] = caption_loss(model, cls, grid, batch)
        if "words" in self.losses:
            logits, present = self._said(model, grid, batch)
            terms["words"] = Term(F.binary_cross_entropy_with_logits(logits, present, reduction="sum"), len(logits))
        return terms

    def evaluate(self, model: OmniModel, batches: Iterable[CaptionBatch]) -> dict[str, float]:
        """Of the losses in use: retrieval R@1 both ways over all validation pairs (identical captions count as one) and the share of the training
        pairs that meet their own caption again in a batch, where it counts as wrong; the caption loss; F1 of the words likelier than not."""
        images: list[Tensor] = []
        texts: list[Tensor] = []
        captions: list[str] = []
        total, count, right, marked = 0.0, 0, 0.0, 0.0
        for batch in batches:
            cls, grid = model.vision_encoder(batch.pixels)
            if "contrastive" in self.losses:
                images.append(model.contrastive.image(cls).cpu())
                texts.append(caption_vectors(model, batch).cpu())
                captions.extend(batch.texts)
            if "caption" in self.losses:
                term = caption_loss(model, cls, grid, batch)
                total, count = total + float(term.sum), count + int(term.count)
            if "words" in self.losses:
                logits, present = self._said(model, grid, batch)
                right += float((present * (logits > 0)).sum())
                marked += float(present.sum() + (logits > 0).sum())
        scores: dict[str, float] = {}
        if images:
            similarity = torch.cat(images) @ torch.cat(texts).T
            scores |= {"image_to_text_r1": recall_at(similarity, captions, 1), "text_to_image_r1": recall_at(similarity.T, captions, 1)}
            scores["collisions"] = self._collisions
        if "caption" in self.losses:
            scores["caption_loss"] = total / max(count, 1)
        if "words" in self.losses:
            scores["words_f1"] = 2 * right / max(marked, 1)
        return scores
