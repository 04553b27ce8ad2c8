"""Stage A: the Thinker learns to predict the next token of plain text and of dialogues in the chat template."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor

from omni.data.collate import TextBatch
from omni.nn.moe import Routing, load_balance_loss
from omni.omni_model import OmniModel
from omni.stages.base import OmniStage
from omni.stages.data import text_splits
from omni.training.losses import next_token_loss
from omni.training.stage import Context, Splits, Term


class TextStage(OmniStage[TextBatch]):
    """`muomni train text --config configs/thinker_tiny.json`: next-token loss over packed sequences of one context each."""

    name = "text"
    best_metric, best_mode = "loss", "min"
    unit = "tokens"
    trains: tuple[str, ...] = ("thinker",)

    def build_data(self) -> Splits[TextBatch]:
        splits, self.tokenizer = text_splits(self.run, self.config, self.tokenizer)
        vocabulary = self.tokenizer.vocab_size
        self.config = self.config.model_copy(update={"thinker": self.config.thinker.model_copy(update={"vocab_size": vocabulary})})
        return splits

    def items(self, batch: TextBatch, n_examples: int) -> int:
        return batch.input_ids.numel()

    def counts(self, batch: TextBatch) -> dict[str, int]:
        targets = int((batch.labels != -100).sum())
        return {"loss": targets} | ({"balance": batch.input_ids.numel()} if self.config.thinker.n_experts else {})

    def statistics(self, model: OmniModel, batch: TextBatch) -> dict[str, Tensor] | None:
        """How often every expert of every layer is chosen: the load-balance loss needs the counts of the whole global batch."""
        if not self.config.thinker.n_experts:
            return None
        routing: list[Routing] = []
        model.thinker.hidden_states(batch.input_ids, routing=routing)
        return {"chosen": torch.stack([r.chosen for r in routing])[None]}  # (1, layers, experts)

    def loss(self, model: OmniModel, batch: TextBatch, context: Context) -> dict[str, Term]:
        routing: list[Routing] = []
        hidden = model.thinker.hidden_states(batch.input_ids, routing=routing)
        terms = {"loss": next_token_loss(hidden, model.thinker.lm_head.weight, batch.labels)}
        if routing:
            chosen = context.statistics["chosen"].sum(0)  # (layers, experts)
            balance = torch.stack([load_balance_loss(r.probability, c, 1) for r, c in zip(routing, chosen, strict=True)]).mean()
            terms["balance"] = Term(balance, batch.input_ids.numel(), self.config.thinker.load_balance_weight)
        return terms

    def evaluate(self, model: OmniModel, batches: Iterable[TextBatch]) -> dict[str, float]:
        """Mean loss in nats per token and its perplexity."""
        total, count = 0.0, 0
        for batch in batches:
            term = next_token_loss(model.thinker.hidden_states(batch.input_ids), model.thinker.lm_head.weight, batch.labels)
            total, count = total + float(term.sum), count + int(term.count)
        return {"loss": total / max(count, 1), "perplexity": math.exp(min(total / max(count, 1), 50.0))}
