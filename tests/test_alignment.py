"""Forced alignment: characters are found where they are named, and last as long as they sound."""

import math
from itertools import pairwise, product
from random import Random

import pytest
import torch
from torch.nn.utils.rnn import pad_sequence

from omni.alignment import Aligner, ctc_alignment, diagonal_prior, durations, forward_sum
from omni.audio import SILENCE
from omni.characters import BLANK_ID, N_CHARACTERS, encode_characters


def emissions(spikes: dict[int, int], n_slots: int, noise: float = 0.0) -> torch.Tensor:
    """Log-probabilities (S,98): blanks but for `spikes`, slot → character."""
    logits = noise * torch.randn(n_slots, N_CHARACTERS, generator=torch.Generator().manual_seed(0))
    logits[:, BLANK_ID] += 5.0
    for slot, character in spikes.items():
        logits[slot, character] += 10.0
    return logits.log_softmax(-1)


def test_characters_are_where_they_are_named() -> None:
    text = encode_characters("hello")
    where = [3, 5, 6, 8, 15]
    assert ctc_alignment(emissions(dict(zip(where, text, strict=True)), 20, noise=1.0), text) == where


def test_a_character_that_lasts_is_named_where_it_is_surest() -> None:
    (a,) = encode_characters("a")
    logits = emissions({4: a, 5: a, 6: a}, 9)
    logits[6, a] += 1.0
    assert ctc_alignment(logits, [a]) == [6]


@pytest.mark.parametrize(("text", "slots", "fits"), [("abc", 3, True), ("abc", 2, False), ("aab", 3, False), ("aab", 4, True)])
def test_a_text_that_does_not_fit_has_no_alignment(text: str, slots: int, fits: bool) -> None:
    assert (ctc_alignment(emissions({}, slots), encode_characters(text)) is not None) == fits


def test_wrong_emissions_still_give_an_increasing_path() -> None:
    text = encode_characters("a whole sentence, said aloud.")
    found = ctc_alignment(emissions({}, 70, noise=3.0), text)
    assert found is not None
    assert found == sorted(set(found))
    assert len(found) == len(text)


# --- an aligner that learns what characters sound like


def said(text: str, lasts: list[int], seed: int = 0) -> tuple[torch.Tensor, list[int]]:
    """A clip whose every character is a band of its own, two mel frames a slot, and its characters."""
    characters = encode_characters(text)
    noise = torch.randn(2 * sum(lasts), 16, generator=torch.Generator().manual_seed(seed)) * 0.1
    bands = torch.repeat_interleave(torch.tensor(characters) % 16, 2 * torch.tensor(lasts))
    return noise + 2.0 * torch.nn.functional.one_hot(bands, 16), characters


def batch(clips: list[tuple[torch.Tensor, list[int]]]) -> tuple[torch.Tensor, ...]:
    """mel, slots, characters and how many; behind a clip's end is silence."""
    mel = pad_sequence([mel for mel, _ in clips], batch_first=True, padding_value=SILENCE)
    characters = pad_sequence([torch.tensor(c) for _, c in clips], batch_first=True)
    return mel, torch.tensor([len(m) // 2 for m, _ in clips]), characters, torch.tensor([len(c) for _, c in clips])


def test_an_aligner_learns_how_long_characters_last() -> None:
    torch.manual_seed(0)
    rng, aligner = Random(0), Aligner(16, 2, 32)
    optimizer = torch.optim.Adam(aligner.parameters(), lr=5e-3)
    for step in range(130):
        texts = ["".join(rng.sample("abcdefgh", 6)) for _ in range(8)]
        clips = batch([said(text, [rng.randint(1, 6) for _ in text], seed=step) for text in texts])
        loss = forward_sum(aligner(*clips), clips[1], clips[3])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    lasts = [[2, 9, 1, 5, 3], [1, 1, 12, 2, 1]]  # far from the diagonal
    clips = batch([said("cafeh", one) for one in lasts])
    for found, true in zip(durations(aligner(*clips), clips[1], clips[3]), lasts, strict=True):
        assert int((found - torch.tensor(true)).abs().max()) <= 1


def test_an_aligner_hears_a_clip_the_same_alone_and_among_longer_ones() -> None:
    torch.manual_seed(0)
    aligner = Aligner(16, 2, 16)
    short, long = said("abc", [2, 3, 4]), said("abcdefgh", [4] * 8)
    alone, together = aligner(*batch([short])), aligner(*batch([short, long]))
    torch.testing.assert_close(together[0, :9, :3], alone[0])
    assert (together[0, :9, 3:] < -1e9).all()


def test_durations_are_those_of_the_likeliest_path() -> None:
    log_p = torch.randn(3, 7, 4, generator=torch.Generator().manual_seed(0)).log_softmax(-1)
    slots, n_chars = torch.tensor([7, 5, 4]), torch.tensor([4, 3, 4])
    for row, found in enumerate(durations(log_p, slots, n_chars)):
        n, c = int(slots[row]), int(n_chars[row])
        every = [p for p in product(range(c), repeat=n) if p[0] == 0 and p[-1] == c - 1 and all(b - a in (0, 1) for a, b in pairwise(p))]
        best = max(every, key=lambda path: sum(float(log_p[row, s, k]) for s, k in enumerate(path)))
        assert found.tolist() == [best.count(k) for k in range(c)]


def test_all_paths_together_are_likelier_than_the_likeliest_and_order_matters() -> None:
    log_p = torch.full((1, 6, 3), -8.0)
    log_p[0, [0, 1, 2, 3, 4, 5], [0, 0, 1, 1, 2, 2]] = 0.0
    in_order = float(forward_sum(log_p, torch.tensor([6]), torch.tensor([3])))
    assert in_order < float(forward_sum(log_p.flip(1), torch.tensor([6]), torch.tensor([3]))) - 10
    assert in_order < 6 * math.log(1 + math.exp(-1.0)) + 1e-3  # the blank takes its part in every slot


def test_the_prior_is_a_distribution_about_the_diagonal() -> None:
    prior = diagonal_prior(torch.tensor([20, 10]), torch.tensor([5, 5]), 20, 5).exp()
    torch.testing.assert_close(prior[0].sum(-1), torch.ones(20))
    torch.testing.assert_close(prior[1, :10].sum(-1), torch.ones(10))
    assert prior[0].argmax(-1)[[0, 10, 19]].tolist() == [0, 2, 4]
