"""How fast does training run, measured against what the machine can do? The text stage in the real Trainer, on random tokens.

Operations per token are 6 per weight of every matrix that the token passes (2 forward, 4 backward; the embedding is a lookup), and for
causal attention 6·L·d·T: in each of L layers two products of width d, each over (T+1)/2 keys on average (the half position is left out).
Norms, softmax, rotations and the optimizer are not counted, so the fraction of the peak can never reach 1."""

from __future__ import annotations

import tempfile
import time
from dataclasses import dataclass
from statistics import median

import torch
from torch import Tensor, nn

from omni.config import RunConfig, ThinkerConfig, parse
from omni.data.collate import TextBatch, collate_text
from omni.nn.precision import autocast_dtype
from omni.stages.text import TextStage
from omni.thinker import ThinkerLM
from omni.training.stage import Splits
from omni.training.trainer import Event, train

PEAK_SIZE = 2048  # rows and columns of the matrices whose product is the peak
WARM_UP_UPDATES = 2


def operations_per_token(config: ThinkerConfig) -> int:
    """Floating-point operations of one training step, divided by its tokens (full contexts)."""
    with torch.device("meta"):
        model = ThinkerLM(config)
    weights = 0
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear):
            routed = ".experts." in name
            weights += module.weight.numel() * (config.experts_per_token if routed else 1) // (config.n_experts if routed else 1)
    return 6 * (weights + config.n_layers * config.d_model * config.context_length)


class MatrixProduct:
    """The machine's peak: the fastest product of two square matrices seen so far, in operations per second."""

    def __init__(self, dtype: torch.dtype, device: torch.device) -> None:
        self.a = torch.randn(PEAK_SIZE, PEAK_SIZE, device=device).to(dtype)
        self.out = torch.empty_like(self.a)
        self.best = 0.0

    def measure(self, rounds: int = 3) -> None:
        """Try again: other work on the machine comes and goes."""
        for _ in range(rounds):
            start = _now(self.a.device)
            torch.mm(self.a, self.a.T, out=self.out)
            self.best = max(self.best, 2 * PEAK_SIZE**3 / (_now(self.a.device) - start))


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


class RandomTokens:
    """`n` contexts of random ids."""

    def __init__(self, config: ThinkerConfig, n: int) -> None:
        self.ids = torch.randint(0, config.vocab_size, (n, config.context_length + 1), generator=torch.Generator().manual_seed(0))

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> Tensor:
        return self.ids[index]


class RandomTextStage(TextStage):
    """The text stage, except for its data."""

    def build_data(self) -> Splits[TextBatch]:
        thinker = self.config.thinker
        return Splits(RandomTokens(thinker, 4 * self.run.train.batch_size), RandomTokens(thinker, 0), collate_text)


@dataclass(frozen=True)
class TrainingSpeed:
    """Tokens per second of the best and the median update; operations per second of the two peaks; `fraction_of_peak` is what the best
    update reaches of the peak in its own precision."""

    precision: str
    updates: int
    tokens_per_update: int
    tokens_per_s: float
    median_tokens_per_s: float
    operations_per_token: int
    float32_peak: float
    bfloat16_peak: float
    fraction_of_peak: float


def measure_training(preset: str, *, updates: int, batch_size: int, micro_batch_size: int, precision: str = "auto") -> TrainingSpeed:
    """Run `updates` updates of the text stage and time each. The peaks are measured again before every one of them, so that all see the
    same machine."""
    with tempfile.TemporaryDirectory() as folder:
        steps = WARM_UP_UPDATES + updates
        settings = {
            "steps": steps,
            "log_every": steps,
            "batch_size": batch_size,
            "micro_batch_size": micro_batch_size,
            "precision": precision,
        }
        run = parse(RunConfig, {"stage": "text", "preset": preset, "out_dir": folder, "train": settings}, "bench train")
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        dtype = autocast_dtype(device, run.train.precision) or torch.float32
        peaks = {kind: MatrixProduct(kind, device) for kind in (torch.float32, torch.bfloat16, dtype)}
        seconds: list[float] = []
        start = 0.0

        def on_event(event: Event) -> None:
            nonlocal start
            if event.kind == "update":
                seconds.append(_now(device) - start)
                for peak in peaks.values():
                    peak.measure()
                start = _now(device)

        train(RandomTextStage(run), resume=False, device=device.type, on_event=on_event)
    seconds = seconds[WARM_UP_UPDATES:]
    thinker = run.model.thinker
    tokens = batch_size * thinker.context_length
    operations = operations_per_token(thinker)
    return TrainingSpeed(
        precision=str(dtype).removeprefix("torch."),
        updates=updates,
        tokens_per_update=tokens,
        tokens_per_s=tokens / min(seconds),
        median_tokens_per_s=tokens / median(seconds),
        operations_per_token=operations,
        float32_peak=peaks[torch.float32].best,
        bfloat16_peak=peaks[torch.bfloat16].best,
        fraction_of_peak=operations * tokens / min(seconds) / peaks[dtype].best,
    )
