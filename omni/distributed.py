"""Who this process is among those that `torchrun` started, and the few collectives that we need. With one process all are no-ops."""

from __future__ import annotations

import gc
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor

from omni.errors import ConfigError

COLLECTIVE_TIMEOUT = timedelta(minutes=30)  # evaluation and saving may keep one rank waiting


def rank() -> int:
    """This process's number, from 0."""
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    """How many processes train together."""
    return dist.get_world_size() if dist.is_initialized() else 1


def is_main() -> bool:
    """Whether this process writes files and reports."""
    return rank() == 0


def local_rank() -> int:
    """This process's number on its host: which GPU is its own."""
    return int(os.environ.get("LOCAL_RANK", "0"))


def device(name: str | None = None) -> torch.device:
    """`name` as a device; by default this process's own GPU, or the CPU. Raises ConfigError for one that is not there."""
    if name is None:
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        chosen = torch.device(name)
    except RuntimeError:
        raise ConfigError(f"device {name!r}: not a device; use cpu, cuda or cuda:N") from None
    if chosen.type == "cuda":
        if not torch.cuda.is_available():
            raise ConfigError(f"device {name!r}: no CUDA device is available here; use cpu")
        index = local_rank() if chosen.index is None else chosen.index
        if index >= torch.cuda.device_count():
            raise ConfigError(f"device cuda:{index}: this host has {torch.cuda.device_count()}")
        return torch.device("cuda", index)
    return chosen


def setup(on: torch.device) -> bool:
    """Join the processes that torchrun started (gloo for the CPU, NCCL for CUDA). Returns whether `cleanup` is the caller's to call."""
    if dist.is_initialized() or int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return False
    if on.type == "cuda":
        torch.cuda.set_device(on)
    dist.init_process_group("cpu:gloo,cuda:nccl" if on.type == "cuda" else "gloo", timeout=COLLECTIVE_TIMEOUT)
    return True


def cleanup() -> None:
    """Leave the group that `setup` joined.

    A Gloo thread that is still letting go of a tensor when Python shuts down aborts the process (pytorch issue 190489). The threads end
    with the last reference to the group; FSDP's caches keep one, so they also get time to become idle.
    """
    if dist.is_initialized():
        barrier()
        dist.destroy_process_group()
        gc.collect()
        time.sleep(0.1)


@contextmanager
def group(on: torch.device) -> Iterator[None]:
    """Be in the group within the block. After an error nobody waits: the others may be waiting for something else, which this process's
    end ends."""
    joined = setup(on)
    yield
    if joined:
        cleanup()


def barrier() -> None:
    """Wait until every process is here."""
    if world_size() > 1:
        dist.barrier()


@contextmanager
def main_first() -> Iterator[None]:
    """The main rank runs the block while the others wait; then they do."""
    if not is_main():
        barrier()
    yield
    if is_main():
        barrier()


def all_reduce_sum(tensor: Tensor) -> Tensor:
    """The sum over ranks, as a new tensor (the same one with one process)."""
    if world_size() == 1:
        return tensor
    total = tensor.detach().clone().contiguous()
    dist.all_reduce(total)
    return total


def broadcast_(tensor: Tensor, src: int = 0) -> Tensor:
    """Overwrite `tensor` by that of rank `src`."""
    if world_size() > 1:
        dist.broadcast(tensor, src)
    return tensor


def all_gather_cat(tensor: Tensor) -> Tensor:
    """The tensors of all ranks, which may differ in their first dimension, joined along it in the order of ranks."""
    if world_size() == 1:
        return tensor
    lengths = torch.zeros(world_size(), dtype=torch.int64, device=tensor.device)
    lengths[rank()] = len(tensor)
    dist.all_reduce(lengths)
    longest = int(lengths.max())
    padded = tensor.new_zeros((longest, *tensor.shape[1:]))
    padded[: len(tensor)] = tensor.detach()
    parts = [torch.empty_like(padded) for _ in range(world_size())]
    dist.all_gather(parts, padded)
    return torch.cat([part[:length] for part, length in zip(parts, lengths.tolist(), strict=True)])
