"""Forced alignment: characters are found where they are named."""

import pytest
import torch

from omni.alignment import ctc_alignment, durations
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


@pytest.mark.parametrize("named", [[0], [10, 11, 12, 19], [4, 9]])
def test_durations_fill_the_clip(named: list[int]) -> None:
    found = durations(named, 20)
    assert len(found) == len(named) + 2
    assert int(found.sum()) == 20
    assert (found >= 0).all()


def test_a_character_reaches_half_way_to_its_neighbours() -> None:
    assert durations([10, 14], 40).tolist() == [7, 5, 6, 22]
