"""The Thinker: cached against uncached, and what its logits depend on."""

import pytest
import torch

from omni.config import ThinkerConfig
from omni.thinker import ThinkerLM

torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


def thinker(**changes) -> ThinkerLM:
    torch.manual_seed(0)
    small = {"vocab_size": 97, "d_model": 32, "n_layers": 3, "n_heads": 4, "n_kv_heads": 2, "d_ff": 48, "context_length": 64}
    model = ThinkerLM(ThinkerConfig(**small | changes)).eval()
    for p in model.parameters():
        if p.dim() > 1:
            p.data *= 8.0
    return model


def test_shapes_are_those_of_the_specification():
    config = ThinkerConfig()
    model = ThinkerLM(config).eval()
    ids = torch.randint(config.vocab_size, (2, 5))
    with torch.no_grad():
        assert model(ids).shape == (2, 5, 5000)
        assert model.hidden_states(ids).shape == (2, 5, 256)
        torch.testing.assert_close(model(embeddings=model.tok_emb(ids)), model(ids))
    assert len(model.blocks) == 4


@pytest.mark.parametrize("changes", [{}, {"n_experts": 4, "qk_norm": True, "tie_embeddings": True}])
@torch.no_grad()
def test_cached_greedy_ids_are_those_of_full_passes_for_200_prompts(changes):
    """Prompts of different lengths in one right-padded batch; every id is checked against a full pass over that row alone."""
    model = thinker(**changes)
    lengths = torch.randint(1, 21, (200,)).tolist()
    prompts = torch.randint(97, (200, 20))
    cache = model.make_cache(200, 32)
    states = model.hidden_states(prompts, lengths=lengths, cache=cache)
    last = states[torch.arange(200), torch.tensor(lengths) - 1]
    said = []
    for _ in range(12):
        said.append(model.lm_head(last).argmax(-1))
        last = model.hidden_states(said[-1][:, None], cache=cache)[:, 0]
    ids = torch.stack(said, dim=1)
    for row, length in enumerate(lengths):
        whole = torch.cat((prompts[row, :length], ids[row]))
        best = model(whole[None, :-1])[0, length - 1 :].argmax(-1)
        assert best.tolist() == ids[row].tolist(), f"prompt {row}"
    assert ids.unique().numel() > 20  # a model that always says the same would prove nothing


@torch.no_grad()
def test_earlier_tokens_and_their_order_change_the_logits_and_later_ones_do_not():
    model = thinker()
    ids = torch.randint(97, (1, 8))
    logits = model(ids)
    past, future = ids.clone(), ids.clone()
    past[0, 2] = (past[0, 2] + 1) % 97
    future[0, 6] = (future[0, 6] + 1) % 97
    assert (model(past)[0, 5] - logits[0, 5]).abs().max() > 1e-3
    torch.testing.assert_close(model(future)[0, :6], logits[0, :6])
    permuted = ids[:, [2, 0, 1, 3, 4, 5, 6, 7]]
    assert (model(permuted)[0, 7] - logits[0, 7]).abs().max() > 1e-3


@torch.no_grad()
def test_padding_changes_nothing():
    model = thinker()
    ids = torch.randint(97, (2, 8))
    torch.testing.assert_close(model(ids, lengths=[8, 5])[1, :5], model(ids[1:, :5])[0], atol=1e-5, rtol=1e-4)


def test_tied_embeddings_are_one_tensor():
    model = thinker(tie_embeddings=True)
    assert model.lm_head.weight is model.tok_emb.weight


def test_ids_and_embeddings_together_are_refused():
    with pytest.raises(AssertionError, match="not both"):
        thinker()(torch.zeros(1, 1, dtype=torch.long), embeddings=torch.zeros(1, 1, 32))
