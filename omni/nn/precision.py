"""What matrix products are computed in."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch


def computes_bfloat16(device: torch.device) -> bool:
    """Whether it has instructions for products in bfloat16. What it only emulates is some hundred times slower on a CPU."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return device.type == "cpu" and (torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


def autocast_dtype(device: torch.device, precision: str) -> torch.dtype | None:
    """What matrix products are computed in; None is float32. "auto": bfloat16 where the device computes with it, else float16 on CUDA
    and float32 on CPUs, which would only emulate either."""
    if precision == "float32":
        return None
    if precision == "auto":
        return torch.bfloat16 if computes_bfloat16(device) else torch.float16 if device.type == "cuda" else None
    return {"bfloat16": torch.bfloat16, "float16": torch.float16}[precision]


def autocast(device: torch.device, dtype: torch.dtype | None) -> AbstractContextManager[Any]:
    """Matrix products in `dtype` (None: float32)."""
    return torch.autocast(device.type, dtype) if dtype is not None else nullcontext()
