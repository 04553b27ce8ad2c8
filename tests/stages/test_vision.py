"""Stage vision: which losses a run has decides what trains and what is measured, and a patch says the word that it points to."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from omni.config import RunConfig
from omni.stages import STAGES
from omni.stages.vision import WORD_SCALE, word_logits
from omni.training.stage import local_context


@pytest.mark.parametrize(
    ("losses", "trains", "best"),
    [
        (["contrastive"], ("vision_encoder", "contrastive"), "image_to_text_r1"),
        (["caption"], ("vision_encoder", "image_projector"), "caption_loss"),
        (["words"], ("vision_encoder", "image_projector"), "words_f1"),
        (["words", "contrastive"], ("vision_encoder", "image_projector", "contrastive"), "words_f1"),
    ],
)
def test_a_run_trains_and_measures_by_the_losses_that_it_names(
    losses: list[str], trains: tuple[str, ...], best: str, nano_run: Callable[..., RunConfig], trained: Callable[[str], str]
) -> None:
    stage: Any = STAGES["vision"](nano_run("vision", "captions", init_from=(trained("text"),), vision_losses=losses))
    splits, model = stage.build_data(), stage.build_model()
    batch = splits.collate([splits.train[i] for i in range(4)])
    terms = stage.loss(model, batch, local_context(stage, model, batch))
    assert set(terms) == set(stage.counts(batch)) == set(losses)
    sum(term.sum for term in terms.values()).backward()
    learning = {name.partition(".")[0] for name, p in model.named_parameters() if p.grad is not None}
    assert learning == set(stage.trains) == set(trains)
    with torch.no_grad():
        assert stage.best_metric == best and best in stage.evaluate(model.eval(), [batch])
    assert stage.is_better(1.0, 2.0) == (best == "caption_loss")


def test_a_word_is_as_likely_as_the_patch_that_points_to_it_says() -> None:
    torch.manual_seed(0)
    embedding = nn.Embedding(10, 10)
    nn.init.eye_(embedding.weight)
    model: Any = SimpleNamespace(image_projector=nn.Identity(), thinker=SimpleNamespace(tok_emb=embedding))
    words, log_odds = torch.tensor([2, 5, 7]), torch.tensor([-1.0, -2.0, -3.0])
    grid = torch.zeros(1, 4, 10)
    grid[0, :, 9] = 1.0  # patches that say none of the words,
    with torch.no_grad():
        assert torch.allclose(word_logits(model, grid, words, log_odds), log_odds)
        grid[0, 3] = 3 * embedding.weight[5]  # and one that says the second
        said = word_logits(model, grid, words, log_odds)
    expected = -2.0 + torch.log((torch.tensor(WORD_SCALE).exp() + 3) / 4)
    assert torch.allclose(said[0, 1], expected)
    assert said[0, 0] < log_odds[0] + 1e-6 and said[0, 2] < log_odds[2] + 1e-6
