"""The transformer against formulas written out, and cached against uncached."""

import math

import pytest
import torch
import torch.nn.functional as F

from omni.nn.attention import QUERIES, attention
from omni.nn.kv_cache import KVCache
from omni.nn.moe import MixtureOfExperts, Routing, load_balance_loss
from omni.nn.transformer import Attention, RMSNorm, SwiGLU, Transformer, TransformerShape, places_in_branches, rotate, rotation

torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


def shape(**changes) -> TransformerShape:
    return TransformerShape(**{"d_model": 32, "n_layers": 2, "n_heads": 4, "n_kv_heads": 2, "d_ff": 48, "causal": True} | changes)


def transformer(**changes) -> Transformer:
    """With weights large enough that everything matters."""
    torch.manual_seed(0)
    model = Transformer(shape(**changes)).eval()
    for p in model.parameters():
        p.data = torch.randn_like(p) * 0.3 + (1.0 if p.dim() == 1 else 0.0)
    return model


def written_out(q, k, v, may_look) -> torch.Tensor:
    """Attention one query, one head at a time. q (B,H,T,D), k and v (B,K,S,D), may_look (B,T,S)."""
    out = torch.zeros_like(q)
    group = q.shape[1] // k.shape[1]
    for b in range(q.shape[0]):
        for h in range(q.shape[1]):
            for t in range(q.shape[2]):
                seen = may_look[b, t].nonzero()[:, 0]
                keys, values = k[b, h // group, seen], v[b, h // group, seen]
                weights = torch.softmax(keys @ q[b, h, t] / math.sqrt(q.shape[3]), dim=0)
                out[b, h, t] = weights @ values
    return out


@pytest.mark.parametrize("kv_heads", [1, 2, 4])
def test_attention_is_the_written_out_formula(kv_heads):
    q, k, v = torch.randn(2, 4, 6, 8), torch.randn(2, kv_heads, 6, 8), torch.randn(2, kv_heads, 6, 8)
    causal = torch.ones(6, 6, dtype=torch.bool).tril().expand(2, -1, -1)
    torch.testing.assert_close(attention(q, k, v, causal=True), written_out(q, k, v, causal))
    torch.testing.assert_close(attention(q, k, v), written_out(q, k, v, torch.ones(2, 6, 6, dtype=torch.bool)))
    mask = torch.rand(2, 1, 6, 6) > 0.4
    mask[..., 0] = True
    torch.testing.assert_close(attention(q, k, v, mask=mask), written_out(q, k, v, mask[:, 0]))


def test_attention_in_blocks_of_queries_is_torchs_attention():
    length = 2 * QUERIES + 37
    q, k, v = torch.randn(1, 4, length, 8), torch.randn(1, 2, length, 8), torch.randn(1, 2, length, 8)
    torch.testing.assert_close(attention(q, k, v, causal=True), F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True))


def test_a_query_that_may_look_nowhere_is_finite():
    q = torch.randn(1, 2, 3, 4)
    assert attention(q, q, q, mask=torch.zeros(1, 1, 3, 3, dtype=torch.bool)).isfinite().all()


def test_grouped_queries_are_repeated_heads():
    grouped, full = Attention(shape(n_kv_heads=2)), Attention(shape(n_kv_heads=4))
    q, k, v = grouped.qkv.weight.view(8, 8, 32).split((4, 2, 2))
    full.qkv.weight.data = torch.cat((q, k.repeat_interleave(2, 0), v.repeat_interleave(2, 0))).flatten(0, 1)
    full.out.weight.data = grouped.out.weight.data
    x = torch.randn(2, 7, 32)
    torch.testing.assert_close(grouped(x, None, None, None, 0), full(x, None, None, None, 0))


def test_qk_norm_normalises_queries_and_keys():
    layer = Attention(shape(qk_norm=True))
    layer.q_norm.weight.data.uniform_(0.5, 2)
    layer.k_norm.weight.data.uniform_(0.5, 2)
    x = torch.randn(2, 5, 32)
    q, k, v = layer.qkv(x).view(2, 5, 8, 8).transpose(1, 2).split((4, 2, 2), dim=1)
    q, k = (F.rms_norm(y, (8,), norm.weight, 1e-6) for y, norm in ((q, layer.q_norm), (k, layer.k_norm)))
    expected = written_out(q, k, v, torch.ones(5, 5, dtype=torch.bool).tril().expand(2, -1, -1))
    torch.testing.assert_close(layer(x, None, None, None, 0), layer.out(expected.transpose(1, 2).flatten(2)))


def test_rms_norm_and_its_gradient_are_the_formula():
    norm = RMSNorm(16).double()
    norm.weight.data.uniform_(0.5, 2)
    x = (torch.randn(3, 5, 16, dtype=torch.float64) * 3).requires_grad_()
    torch.testing.assert_close(norm(x), x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt() * norm.weight)
    assert torch.autograd.gradcheck(lambda y, w: torch.func.functional_call(norm, {"weight": w}, (y,)), (x, norm.weight))


def test_swiglu_is_the_formula():
    layer = SwiGLU(8, 12)
    gate, up = layer.gate_up.weight.chunk(2)
    x = torch.randn(3, 8)
    a = x @ gate.T
    torch.testing.assert_close(layer(x), (a * torch.sigmoid(a) * (x @ up.T)) @ layer.down.weight.T)


def test_rotation_turns_pairs_and_keeps_only_distances():
    q, k = torch.randn(8), torch.randn(8)

    def turned(x, position):
        cos, sin = rotation(torch.tensor([float(position)]), 8, 10_000.0)
        return rotate(x.view(1, 1, 1, 8), cos[None], sin[None]).flatten()

    angle = 3.0 * 10_000.0 ** (-2 * 1 / 8)  # of pair 1 at position 3
    expected = torch.stack((q[1] * math.cos(angle) - q[5] * math.sin(angle), q[5] * math.cos(angle) + q[1] * math.sin(angle)))
    torch.testing.assert_close(turned(q, 3)[[1, 5]], expected)
    torch.testing.assert_close(turned(q, 9) @ turned(k, 4), turned(q, 105) @ turned(k, 100), atol=1e-4, rtol=1e-4)
    assert not torch.isclose(turned(q, 9) @ turned(k, 4), turned(q, 9) @ turned(k, 5))


def test_the_past_matters_and_the_future_does_not():
    model, x = transformer(), torch.randn(1, 9, 32)
    before = model(x)
    changed = x.clone()
    changed[:, 4] += 1.0
    after = model(changed)
    torch.testing.assert_close(after[:, :4], before[:, :4])
    assert ((after - before).abs().amax(-1)[0, 4:] > 1e-3).all()


def test_the_order_of_the_past_matters():
    model, x = transformer(), torch.randn(1, 6, 32)
    swapped = x[:, [1, 0, 2, 3, 4, 5]]
    assert (model(x)[:, 5] - model(swapped)[:, 5]).abs().max() > 1e-3


def test_branches_go_on_from_what_they_share_as_if_they_were_alone():
    model = transformer()
    shared, ways, alone = torch.randn(5, 32), [torch.randn(n, 32) for n in (4, 1, 6)], torch.randn(3, 32)
    rows = torch.nn.utils.rnn.pad_sequence([torch.cat([shared, *ways]), alone], batch_first=True)
    branches = torch.tensor([[0] * 5 + [1] * 4 + [2] + [3] * 6, [0] * 16])
    assert places_in_branches(branches)[0].tolist() == [*range(9), 5, *range(5, 11)]
    out = model(rows, branches=branches)
    torch.testing.assert_close(out[1, :3], model(alone[None])[0])
    start = 5
    for way in ways:
        expected = model(torch.cat((shared, way))[None])[0]
        torch.testing.assert_close(out[0, :5], expected[:5])
        torch.testing.assert_close(out[0, start : start + len(way)], expected[5:])
        start += len(way)


def test_a_bidirectional_stack_looks_both_ways_but_not_at_padding():
    model, x = transformer(causal=False), torch.randn(2, 9, 32)
    changed = x.clone()
    changed[:, 8] += 1.0
    assert ((model(changed) - model(x)).abs().amax(-1)[:, 0] > 1e-3).all()
    lengths = torch.tensor([9, 6])
    out = model(x, lengths=lengths)
    torch.testing.assert_close(out[1, :6], model(x[1:, :6])[0])
    torch.testing.assert_close(out[0], model(x[:1])[0])


@pytest.mark.parametrize("changes", [{}, {"qk_norm": True}, {"n_experts": 4}, {"n_kv_heads": 1}, {"rope_theta": None}])
def test_cached_is_the_full_pass_for_rows_of_different_lengths(changes):
    """Prompts of different lengths, then single steps; a row that leaves or joins changes nothing for the others."""
    model = transformer(**changes)
    lengths, steps = [7, 3, 5], 4
    x = torch.randn(3, 7 + steps, 32)
    whole = [model(x[b : b + 1, : lengths[b] + steps]) for b in range(3)]
    cache = model.make_cache(3, 7 + steps)
    prefill = model(x[:, :7], lengths=lengths, cache=cache)
    for b in range(3):
        torch.testing.assert_close(prefill[b, : lengths[b]], whole[b][0, : lengths[b]], atol=1e-5, rtol=1e-4)
    rows = [0, 1, 2]
    for step in range(steps):
        if step == 2:
            rows = [2, 1]
            cache.leave(0)
        if step == 3:
            late = model.make_cache(1, 20)
            model(x[:1, : lengths[0] + step], cache=late)
            cache.join(late)
            rows = [2, 1, 0]
        new = torch.stack([x[b, lengths[b] + step] for b in rows])[:, None]
        out = model(new, cache=cache)
        for i, b in enumerate(rows):
            torch.testing.assert_close(out[i, 0], whole[b][0, lengths[b] + step], atol=1e-5, rtol=1e-4)
    assert cache.lengths == [5 + steps, 3 + steps, 7 + steps]
    assert cache.max_length == 20


def test_a_prompt_in_chunks_is_the_prompt_at_once():
    model, x = transformer(), torch.randn(2, 10, 32)
    cache = model.make_cache(2, 10)
    parts = [model(part, cache=cache) for part in x.split([4, 1, 5], dim=1)]
    torch.testing.assert_close(torch.cat(parts, dim=1), model(x), atol=1e-5, rtol=1e-4)


def test_a_full_cache_says_so():
    cache = KVCache(1, 1, 1, 4, 2, dtype=torch.float32, device=torch.device("cpu"))
    with pytest.raises(AssertionError, match="cache of 4 positions cannot hold 5"):
        cache.append(0, torch.zeros(1, 1, 5, 2), torch.zeros(1, 1, 5, 2))


def test_mixture_of_experts_is_the_written_out_formula():
    torch.manual_seed(1)
    layer = MixtureOfExperts(8, 5, 2, lambda: SwiGLU(8, 12))
    x = torch.randn(2, 7, 8)
    for token in x.flatten(0, 1):
        probability = torch.softmax(layer.router(token), dim=0)
        best = probability.argsort(descending=True)[:2]
        expected = sum(probability[e] * layer.experts[e](token) for e in best) / probability[best].sum()
        torch.testing.assert_close(layer(token.view(1, 1, 8))[0, 0], expected)
    torch.testing.assert_close(layer(x), torch.stack([layer(t.view(1, 1, 8))[0, 0] for t in x.flatten(0, 1)]).view_as(x))


def test_routing_counts_leave_out_padding_and_a_balanced_router_scores_one():
    layer = MixtureOfExperts(8, 4, 2, lambda: SwiGLU(8, 12))
    routing: list[Routing] = []
    valid = torch.tensor([[True, True, False], [True, False, False]])
    layer(torch.randn(2, 3, 8), valid, routing)
    assert routing[0].chosen.sum() == 6
    torch.testing.assert_close(routing[0].probability.sum(), torch.tensor(3.0))
    assert load_balance_loss(torch.full((4,), 2.5), torch.full((4,), 5.0), 10) == pytest.approx(1.0)
