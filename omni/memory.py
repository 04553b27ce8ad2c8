"""How much memory a run needs: estimated before it starts, measured when it has ended. Bytes."""

from __future__ import annotations

import ctypes
import resource
import sys
from dataclasses import dataclass

import torch
from torch import Tensor, nn

REFERENCE_GPU_BYTES = 12 * 2**30  # the card that μOmni is made for


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes on one device. `activations` is what one micro-batch keeps for its backward pass, scaled up from one example."""

    parameters: int
    gradients: int
    optimizer: int
    activations: int

    @property
    def total(self) -> int:
        """All of it."""
        return self.parameters + self.gradients + self.optimizer + self.activations

    def fits(self, capacity: int = REFERENCE_GPU_BYTES) -> bool:
        """Whether it fits, with a tenth to spare for what is not counted."""
        return self.total * 1.1 <= capacity

    def __str__(self) -> str:
        parts = ", ".join(f"{name} {readable(getattr(self, name))}" for name in ("parameters", "gradients", "optimizer", "activations"))
        return f"about {readable(self.total)} ({parts}); {'fits' if self.fits() else 'does NOT fit'} a 12 GB GPU"


def readable(n_bytes: float) -> str:
    """1536 → "1.5 KiB"."""
    for unit in ("B", "KiB", "MiB"):
        if n_bytes < 1024:
            return f"{n_bytes:.0f} {unit}" if unit == "B" else f"{n_bytes:.1f} {unit}"
        n_bytes /= 1024
    return f"{n_bytes:.2f} GiB"


class SavedBytes(torch.autograd.graph.saved_tensors_hooks):
    """Counts the bytes that a forward pass keeps for its backward pass, each storage once and parameters not at all."""

    def __init__(self, model: nn.Module) -> None:
        self.total = 0
        self._seen = {p.untyped_storage().data_ptr() for p in model.parameters()}
        super().__init__(self._pack, lambda tensor: tensor)

    def _pack(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in self._seen:
            self._seen.add(storage.data_ptr())
            self.total += storage.nbytes()
        return tensor


def estimate(
    model: nn.Module, example_activations: int, micro_batch_size: int, world_size: int = 1, sharded: bool = False
) -> MemoryEstimate:
    """What a rank needs, from the model and the activations of one example."""
    trainable = sum(p.nbytes for p in model.parameters() if p.requires_grad)
    held = sum(t.nbytes for t in (*model.parameters(), *model.buffers()))
    share = world_size if sharded else 1
    return MemoryEstimate(
        (held - trainable) + trainable // share, trainable // share, 2 * trainable // share, example_activations * micro_batch_size
    )


def keep_freed_memory() -> None:
    """Tell glibc to keep freed memory for the next allocation. A step on the CPU frees and takes the same hundreds of megabytes again and
    again; returned to the kernel each time, they come back as fresh pages, which cost 10 to 20 % of the step."""
    trim_threshold, top_pad, mmap_max = -1, -2, -4  # malloc.h
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        mallopt(mmap_max, 0)
        mallopt(trim_threshold, 2**31 - 1)
        mallopt(top_pad, 2**26)


def peak(device: torch.device) -> int:
    """The most this process has held: of the device's memory on CUDA, resident in main memory otherwise."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    n = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return n if sys.platform == "darwin" else n * 1024
