"""Stage C: the vision encoder learns to match pictures with captions (CLIP, Radford et al. 2021) and to caption from its patches.

The contrastive loss shapes only the CLS vector and is weak at count and position; the captioning loss runs through the frozen Thinker
from the patch grid (CoCa, Yu et al. 2022, joins the same two losses)."""

from __future__ import annotations

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from omni.data.collate import CaptionBatch
from omni.evaluation.metrics import recall_at_1
from omni.omni_model import OmniModel
from omni.stages.base import OmniStage
from omni.stages.data import caption_splits
from omni.training.losses import info_nce, next_token_loss
from omni.training.stage import Context, Splits, Term

EMBEDDING_SIZE = 128
INITIAL_TEMPERATURE = 0.07


class ContrastiveModel(nn.Module):
    """The OmniModel and the two heads and temperature that only this stage needs."""

    def __init__(self, omni: OmniModel) -> None:
        super().__init__()
        self.omni = omni
        self.image_head = nn.Linear(omni.config.vision_encoder.d_model, EMBEDDING_SIZE, bias=False)
        self.text_head = nn.Linear(omni.config.thinker.d_model, EMBEDDING_SIZE, bias=False)
        self.log_scale = nn.Parameter(-torch.tensor(INITIAL_TEMPERATURE).log())

    def forward(self, batch: CaptionBatch) -> tuple[Tensor, Tensor, Tensor]:
        """Unit vectors of pictures and captions, each (B,E), and the patch grid (B,P,d)."""
        cls, grid = self.omni.vision_encoder(batch.pixels)
        states = self.omni.thinker.hidden_states(batch.input_ids)
        last = (batch.labels != -100).sum(1) - 1  # the caption's last token
        text = states[torch.arange(len(states), device=states.device), last]
        return F.normalize(self.image_head(cls[:, 0]).float(), dim=-1), F.normalize(self.text_head(text).float(), dim=-1), grid

    def caption_states(self, grid: Tensor, input_ids: Tensor) -> Tensor:
        """The Thinker's states (B,T,d) over the caption, with the projected patches before it."""
        patches = self.omni.projectors["image"](grid)
        tokens = self.omni.thinker.tok_emb(input_ids)
        return self.omni.thinker.hidden_states(embeddings=torch.cat((patches.to(tokens.dtype), tokens), dim=1))[:, patches.shape[1] :]


class VisionStage(OmniStage[CaptionBatch]):
    """`muomni train vision --config configs/vision_tiny.json`: InfoNCE over the global batch plus next-token loss of the caption."""

    name = "vision"
    best_metric, best_mode = "caption_loss", "min"
    needs = ("thinker",)
    trains = ("vision_encoder", "projectors")

    def build_model(self) -> nn.Module:
        return ContrastiveModel(self.build_omni())

    def omni_of(self, model: nn.Module) -> OmniModel:
        assert isinstance(model, ContrastiveModel)
        return model.omni

    def build_data(self) -> Splits[CaptionBatch]:
        return caption_splits(self.run, self.config, self.require_tokenizer())

    def counts(self, batch: CaptionBatch) -> dict[str, int]:
        return {"contrastive": len(batch.pixels), "caption": int((batch.labels != -100).sum())}

    def statistics(self, model: nn.Module, batch: CaptionBatch) -> dict[str, Tensor]:
        images, texts, _ = model(batch)
        return {"images": images, "texts": texts}

    def loss(self, model: nn.Module, batch: CaptionBatch, context: Context) -> dict[str, Term]:
        assert isinstance(model, ContrastiveModel)
        images, texts, grid = model(batch)
        hidden = model.caption_states(grid, batch.input_ids)
        return {
            "contrastive": info_nce(images, texts, model.log_scale, context),
            "caption": next_token_loss(hidden, model.omni.thinker.lm_head.weight, batch.labels),
        }

    def evaluate(self, model: nn.Module, batches: Iterable[CaptionBatch]) -> dict[str, float]:
        """Retrieval R@1 both ways over all validation pairs (identical captions count as one), and the caption loss."""
        assert isinstance(model, ContrastiveModel)
        images: list[Tensor] = []
        texts: list[Tensor] = []
        captions: list[str] = []
        total, count = 0.0, 0
        for batch in batches:
            image, text, grid = model(batch)
            term = next_token_loss(model.caption_states(grid, batch.input_ids), model.omni.thinker.lm_head.weight, batch.labels)
            total, count = total + float(term.sum), count + int(term.count)
            images.append(image.cpu())
            texts.append(text.cpu())
            captions.extend(batch.texts)
        similarity = torch.cat(images) @ torch.cat(texts).T
        return {
            "caption_loss": total / max(count, 1),
            "image_to_text_r1": recall_at_1(similarity, captions),
            "text_to_image_r1": recall_at_1(similarity.T, captions),
        }
