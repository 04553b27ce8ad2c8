"""Every example once an epoch, whoever reads it and wherever reading begins."""

from __future__ import annotations

import threading
from typing import Any

import pytest

from omni.errors import DataError
from omni.training.batches import EpochOrder, Prefetcher
from omni.training.stage import Splits


class Numbers:
    """Example i is (epoch, i)."""

    def __init__(self, n: int) -> None:
        self.n, self.epoch = n, 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return self.n

    def __getitem__(self, index: int) -> tuple[int, int]:
        return self.epoch, index


def read(n_batches: int, **options: Any) -> list[list[list[tuple[int, int]]]]:
    settings = {"position": 0, "batch_size": 6, "micro_batch_size": 2, "rank": 0, "world_size": 1} | options
    reader = Prefetcher(Splits(Numbers(10), Numbers(0), list), EpochOrder(10, seed=3), **settings)
    try:
        return [next(reader).micro_batches for _ in range(n_batches)]
    finally:
        reader.close()


def flat(batch: list[list[tuple[int, int]]]) -> list[tuple[int, int]]:
    return [example for micro_batch in batch for example in micro_batch]


def test_an_epoch_holds_every_example_once_and_the_next_is_in_another_order() -> None:
    seen = [example for batch in read(5) for example in flat(batch)]
    epochs = [[i for e, i in seen if e == epoch] for epoch in range(3)]
    assert all(sorted(epoch) == list(range(10)) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2]


def test_reading_from_a_position_continues_the_same_order() -> None:
    assert read(5)[2:] == read(3, position=12)


@pytest.mark.parametrize("world_size", [2, 3])
def test_ranks_share_the_same_global_batches(world_size: int) -> None:
    whole = [flat(batch) for batch in read(4)]
    shares = [[flat(batch) for batch in read(4, rank=r, world_size=world_size)] for r in range(world_size)]
    assert [[example for share in shares for example in share[i]] for i in range(4)] == whole


def test_micro_batches_only_cut_the_batch() -> None:
    assert [flat(b) for b in read(3, micro_batch_size=4)] == [flat(b) for b in read(3)]
    assert [len(m) for m in read(1, micro_batch_size=4)[0]] == [4, 2]


def test_no_examples_is_an_error_and_so_is_a_bad_one_where_it_is_due() -> None:
    with pytest.raises(DataError, match="no training samples"):
        EpochOrder(0, seed=0)

    class Bad(Numbers):
        def __getitem__(self, index: int) -> tuple[int, int]:
            raise DataError("clip.wav: unreadable")

    before = threading.active_count()
    reader = Prefetcher(Splits(Bad(4), Bad(0), list), EpochOrder(4, seed=0), position=0, batch_size=2, micro_batch_size=2)
    with pytest.raises(DataError, match=r"clip\.wav"):
        next(reader)
    reader.close()
    assert threading.active_count() == before
