"""When each character of a clip is said: where a trained CTC head names it, by forced alignment (Graves et al. 2006; Kürzinger et al. 2020, §2), or
how long it lasts, by an aligner that learns what it sounds like.

B batch  S slots, of the CTC head or of a frame of codes  T mel frames  C characters"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from omni.audio import SILENCE
from omni.characters import BLANK_ID, N_CHARACTERS

IMPOSSIBLE = -1e30
SLOTS = 4  # of a frame of codes
PRIOR_WEIGHT = 0.3  # of the diagonal, which shows an aligner that knows nothing where to begin; more would forbid long pauses
BLANK_LOGIT = -1.0  # of the blank between characters that CTC must have (Badlani et al. 2022)


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


class Aligner(nn.Module):
    """Which character sounds in which slot, learned beside whatever needs to know (Badlani et al. 2022, "One TTS alignment to rule them all").

    Characters and slots become vectors; the nearer two are, the likelier the character sounds there. All paths on which the characters sound one
    after the other are to be likely together (`forward_sum`), and the likeliest says how long each lasts (`durations`). Unlike the slots in which a
    CTC head names characters, those in which they sound have to resemble each other wherever they occur."""

    def __init__(self, n_mels: int, frames_per_slot: int, width: int) -> None:
        super().__init__()
        self.frames_per_slot = frames_per_slot
        self.character = nn.Embedding(N_CHARACTERS, width)
        self.key = nn.Conv1d(width, width, 5, padding=2)
        self.key_out = nn.Linear(width, width)
        self.sound = nn.Conv1d(n_mels, width, 2 * frames_per_slot + 1, stride=frames_per_slot, padding=frames_per_slot)
        self.query = nn.Conv1d(width, width, 3, padding=1)
        self.query_out = nn.Linear(width, width)

    def forward(self, mel: Tensor, slots: Tensor, char_ids: Tensor, char_lengths: Tensor) -> Tensor:
        """Scaled log-mel (B,T,mels) of clips of `slots` (B,), and the characters (B,C) said in them → log-probabilities (B,S,C) of the character
        in each slot."""
        spelled = _inside(char_ids.shape[1], char_lengths)
        inside = _inside(int(slots.max()), slots)
        keys = self.character(char_ids) * spelled[..., None]
        keys = self.key_out(F.gelu(self.key(keys.transpose(1, 2))).transpose(1, 2))
        sound = mel - SILENCE  # what lies behind a clip is silence, and silence is 0
        sound = F.pad(sound, (0, 0, 0, max(0, inside.shape[1] * self.frames_per_slot - sound.shape[1])))
        sound = F.gelu(self.sound(sound.transpose(1, 2)))[..., : inside.shape[1]] * inside[:, None]
        queries = self.query_out(F.gelu(self.query(sound)).transpose(1, 2))
        distance = queries.square().sum(-1)[..., None] - 2 * queries @ keys.transpose(1, 2) + keys.square().sum(-1)[:, None]
        likeness = -distance / keys.shape[-1] ** 0.5 + PRIOR_WEIGHT * diagonal_prior(slots, char_lengths, *distance.shape[1:])
        return likeness.masked_fill(~spelled[:, None], IMPOSSIBLE).log_softmax(-1)


def _inside(n: int, lengths: Tensor) -> Tensor:
    """(B,n) true before each of the lengths (B,)."""
    return torch.arange(n, device=lengths.device) < lengths[:, None]


@torch.no_grad()
def diagonal_prior(slots: Tensor, char_lengths: Tensor, n_slots: int, n_chars: int) -> Tensor:
    """Log-probability (B,S,C) of each character in each slot if nothing is known but how many there are: beta-binomial about the diagonal
    (Badlani et al. 2022, §2.3). Anything where there is no slot or no character."""
    size = n_slots + n_chars + 2
    log_factorial = torch.arange(size, device=slots.device).clamp(min=1).float().log().cumsum(0)
    last = (char_lengths - 1)[:, None, None]
    c = torch.minimum(torch.arange(n_chars, device=slots.device)[None, None], last)
    a = torch.minimum(torch.arange(1, n_slots + 1, device=slots.device)[None], slots[:, None])[..., None]
    b = slots[:, None, None] - a + 1

    def log_beta(x: Tensor, y: Tensor) -> Tensor:
        return log_factorial[x - 1] + log_factorial[y - 1] - log_factorial[x + y - 1]

    binomial = log_factorial[last] - log_factorial[c] - log_factorial[last - c]
    return binomial + log_beta(c + a, last - c + b) - log_beta(a, b)


def forward_sum(log_probabilities: Tensor, slots: Tensor, char_lengths: Tensor) -> Tensor:
    """−ln of how likely all monotonic paths through (B,S,C) are together, summed over clips: CTC with the characters' places as its classes
    (Shih et al. 2021, §3.2)."""
    with_blank = F.pad(log_probabilities.float(), (1, 0), value=BLANK_LOGIT).log_softmax(-1)
    places = torch.arange(1, with_blank.shape[-1], device=slots.device).expand(len(slots), -1)
    return F.ctc_loss(with_blank.transpose(0, 1), places, slots, char_lengths, reduction="sum", zero_infinity=True)


@torch.no_grad()
def durations(log_probabilities: Tensor, slots: Tensor, char_lengths: Tensor) -> list[Tensor]:
    """Of every clip the slots (C,) that its characters last, at least one each, on the likeliest path through (B,S,C) (monotonic alignment search,
    Kim et al. 2020, §3.2). The clip must have as many slots as characters."""
    emitted = log_probabilities.float().cpu().numpy()
    score = np.full(emitted[:, 0].shape, IMPOSSIBLE)
    score[:, 0] = emitted[:, 0, 0]
    moved = np.zeros(emitted.shape, dtype=bool)
    for slot in range(1, emitted.shape[1]):
        before = np.concatenate((np.full((len(score), 1), IMPOSSIBLE), score[:, :-1]), axis=1)
        moved[:, slot] = before > score
        score = np.maximum(score, before) + emitted[:, slot]
    found = []
    for clip, n_slots, n_chars in zip(moved, slots.tolist(), char_lengths.tolist(), strict=True):
        assert n_slots >= n_chars, f"{n_chars} characters in {n_slots} slots"
        lasts, place = np.zeros(n_chars, dtype=np.int64), n_chars - 1
        for slot in range(n_slots - 1, -1, -1):
            lasts[place] += 1
            if clip[slot, place] or place > slot - 1:
                place -= place > 0
        found.append(torch.from_numpy(lasts).to(slots.device))
    return found
