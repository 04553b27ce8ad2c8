"""How the next token is chosen."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from omni.errors import ConfigError

COLDEST = 1e-4  # below this temperature the quotients of logits may overflow, and the largest has all the probability anyway


@dataclass(frozen=True)
class Sampling:
    """`temperature` 0 is greedy. `top_k` 0 and `top_p` 1 cut nothing; `repetition_penalty` 1 punishes nothing (Keskar et al. 2019, §4.1).
    A reply ends before the first of the texts in `stop`, with the end of its turn, which
    may not come before `min_new_tokens`, or after `max_new_tokens`."""

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    repetition_penalty: float = 1.0
    seed: int = 0
    max_new_tokens: int = 96
    min_new_tokens: int = 0
    stop: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not 0 <= self.temperature < float("inf"):
            raise ConfigError(f"temperature {self.temperature}: use 0 (greedy) or more")
        if self.top_k < 0:
            raise ConfigError(f"top_k {self.top_k}: use 0 (off) or more")
        if not 0 < self.top_p <= 1:
            raise ConfigError(f"top_p {self.top_p}: use a share above 0 and up to 1")
        if not 0 < self.repetition_penalty < float("inf"):
            raise ConfigError(f"repetition_penalty {self.repetition_penalty}: use 1 (off) or more")
        if not 0 <= self.seed < 2**63:
            raise ConfigError(f"seed {self.seed}: use 0 or more, below 2**63")
        if self.max_new_tokens < 1:
            raise ConfigError(f"max_new_tokens {self.max_new_tokens}: use 1 or more")
        if self.min_new_tokens < 0:
            raise ConfigError(f"min_new_tokens {self.min_new_tokens}: use 0 or more")
        if isinstance(self.stop, str) or "" in self.stop:
            raise ConfigError("stop: give a list of texts, none of them empty")


def sample(logits: Tensor, sampling: Sampling, seen: Sequence[int], generator: torch.Generator) -> int:
    """One id from logits (V,), never one at -inf. `seen`: ids that the repetition penalty applies to; `generator` lives on the CPU."""
    logits = logits.float()
    if sampling.repetition_penalty != 1.0 and seen:
        ids = torch.tensor(sorted(set(seen)), device=logits.device)
        chosen = logits[ids]
        logits = logits.index_copy(
            0, ids, torch.where(chosen > 0, chosen / sampling.repetition_penalty, chosen * sampling.repetition_penalty)
        )
    if sampling.temperature < COLDEST:
        return int(logits.argmax())
    probabilities, order = torch.softmax(logits / sampling.temperature, dim=-1).cpu().sort(descending=True, stable=True)
    if sampling.top_k:
        probabilities[sampling.top_k :] = 0.0
    before = probabilities.cumsum(0) - probabilities  # nucleus (Holtzman et al. 2019): keep the first that reach top_p together
    probabilities[before >= sampling.top_p] = 0.0
    by_id = torch.zeros_like(probabilities).scatter_(0, order, probabilities)  # near ties may change ranks with the size of a batch
    return int(torch.multinomial(by_id, 1, generator=generator))
