"""Sampling: what each setting allows, and that a seed decides."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from omni.errors import ConfigError
from omni.inference.sampling import Sampling, sample


def draw(logits: list[float], sampling: Sampling, n: int = 200, seen: tuple[int, ...] = ()) -> list[int]:
    generator = torch.Generator().manual_seed(sampling.seed)
    return [sample(torch.tensor(logits), sampling, seen, generator) for _ in range(n)]


def test_frequencies_are_the_probabilities():
    drawn = torch.bincount(torch.tensor(draw([0.0, 1.0, 2.0, -torch.inf], Sampling(temperature=0.5), 4000)), minlength=4) / 4000
    torch.testing.assert_close(drawn, torch.softmax(torch.tensor([0.0, 2.0, 4.0, -torch.inf]), 0), atol=0.02, rtol=0)


def test_greedy_takes_the_largest_and_needs_no_chance():
    assert set(draw([0.0, 3.0, 2.9], Sampling())) == {1}
    assert set(draw([0.0, 3.0, 2.9], Sampling(temperature=1e-30))) == {1}


def test_top_k_and_top_p_keep_the_likeliest():
    logits = [1.0, 4.0, 3.0, 2.0]  # about 0.03, 0.64, 0.24, 0.09
    assert set(draw(logits, Sampling(temperature=1.0, top_k=1))) == {1}
    assert set(draw(logits, Sampling(temperature=1.0, top_k=2))) == {1, 2}
    assert set(draw(logits, Sampling(temperature=1.0, top_p=0.01))) == {1}
    assert set(draw(logits, Sampling(temperature=1.0, top_p=0.7))) == {1, 2}
    assert set(draw(logits, Sampling(temperature=1.0, top_k=3, top_p=0.99))) == {1, 2, 3}


def test_the_repetition_penalty_lowers_what_was_seen_whatever_its_sign():
    assert draw([2.0, 1.9], Sampling(repetition_penalty=1.2), 1, seen=(0, 0)) == [1]
    assert draw([-1.0, -1.1], Sampling(repetition_penalty=1.2), 1, seen=(0,)) == [1]
    assert draw([2.0, 1.0], Sampling(repetition_penalty=1.2), 1, seen=(0,)) == [0]


def test_a_seed_gives_the_same_draws_and_another_gives_others():
    logits = [0.0] * 50
    assert draw(logits, Sampling(temperature=1.0, seed=3)) == draw(logits, Sampling(temperature=1.0, seed=3))
    assert draw(logits, Sampling(temperature=1.0, seed=3)) != draw(logits, Sampling(temperature=1.0, seed=4))


@settings(max_examples=50, deadline=None)
@given(
    st.lists(st.floats(-50, 50, width=32), min_size=1, max_size=9),
    st.floats(1e-6, 10),
    st.integers(0, 12),
    st.floats(0.001, 1),
    st.integers(0, 8),
)
def test_a_forbidden_id_is_never_drawn(logits, temperature, top_k, top_p, forbidden):
    logits = [*logits, 0.0]
    forbidden %= len(logits) - 1
    logits[forbidden] = -torch.inf
    drawn = draw(logits, Sampling(temperature=temperature, top_k=top_k, top_p=top_p, repetition_penalty=1.1), 5, seen=(forbidden,))
    assert forbidden not in drawn


WRONG = [
    {"temperature": -1},
    {"temperature": float("nan")},
    {"top_k": -1},
    {"top_p": 0},
    {"top_p": 1.1},
    {"repetition_penalty": 0},
    {"seed": -1},
    {"max_new_tokens": 0},
    {"min_new_tokens": -1},
    {"stop": "text"},
    {"stop": ("",)},
]


@pytest.mark.parametrize("wrong", WRONG)
def test_a_wrong_setting_is_named(wrong):
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        Sampling(**wrong)
