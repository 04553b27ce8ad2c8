"""When each character of a clip is said, by forced alignment: the likeliest CTC path that spells its text (Graves et al. 2006; Kürzinger et al. 2020, §2).

S slots of the CTC head  C characters"""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from omni.characters import BLANK_ID

IMPOSSIBLE = -1e30
LEAD_SLOTS, TAIL_SLOTS = 3, 4  # a sound begins a little before the slot that names it, and ends a little behind: 60 and 80 ms


def ctc_alignment(log_probabilities: Tensor, characters: list[int]) -> list[int] | None:
    """log_probabilities (S,characters known) → the slot that names each of the C characters, increasing; None if they do not fit."""
    if not characters:
        return []
    emitted = log_probabilities.float().cpu().numpy()
    states = np.full(2 * len(characters) + 1, BLANK_ID)
    states[1::2] = characters
    may_skip = np.zeros(len(states), dtype=bool)  # over the blank between two characters that differ
    may_skip[3::2] = states[3::2] != states[1:-2:2]
    score = np.full(len(states), IMPOSSIBLE)
    score[:2] = emitted[0, states[:2]]
    came_from = np.zeros((len(emitted), len(states)), dtype=np.int8)
    for slot in range(1, len(emitted)):
        one = np.concatenate(([IMPOSSIBLE], score[:-1]))
        two = np.where(may_skip, np.concatenate(([IMPOSSIBLE, IMPOSSIBLE], score[:-2])), IMPOSSIBLE)
        candidates = np.stack((score, one, two))
        came_from[slot] = candidates.argmax(0)
        score = candidates.max(0) + emitted[slot, states]
    state = len(states) - 1 if score[-1] > score[-2] else len(states) - 2
    if score[state] <= IMPOSSIBLE / 2:
        return None
    named: dict[int, list[int]] = {}
    for slot in range(len(emitted) - 1, -1, -1):
        named.setdefault(state, []).append(slot)
        state -= int(came_from[slot, state])
    return [max(named[2 * i + 1], key=lambda slot: float(emitted[slot, c])) for i, c in enumerate(characters)]


def durations(named: list[int], n_slots: int) -> Tensor:
    """(C+2,) slots that the silence before, each character, and the silence behind last: a character reaches half-way to its neighbours. The
    sum is `n_slots`."""
    first, last = max(named[0] - LEAD_SLOTS, 0), min(named[-1] + TAIL_SLOTS, n_slots)
    between = [(a + b + 1) // 2 for a, b in pairwise(named)]
    edges = torch.tensor([0, first, *between, last, n_slots])
    return edges.diff()
