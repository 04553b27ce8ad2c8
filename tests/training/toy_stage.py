"""Tiny stages for the trainer's tests, and a command line that trains them: `python toy_stage.py LIST_OF_SETTINGS.json`."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from omni import checkpoint, distributed
from omni.config import RunConfig, TrainConfig
from omni.training.losses import info_nce
from omni.training.stage import Context, Export, Objective, Splits, Stage, Term
from omni.training.trainer import train

WIDTH = 12


@dataclass(frozen=True)
class ToyBatch:
    x: Tensor
    y: Tensor
    keep: Tensor

    def to(self, device: torch.device) -> ToyBatch:
        return ToyBatch(self.x.to(device), self.y.to(device), self.keep.to(device))


class ToyData:
    """Example i of epoch e is a function of (i, e); `keep` differs from example to example, so that a mean of means would be wrong."""

    def __init__(self, n: int, first: int = 0) -> None:
        self.n, self.first, self.epoch = n, first, 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return self.n

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor, Tensor]:
        generator = torch.Generator().manual_seed(self.first + index)
        x = torch.randn(4, WIDTH, generator=generator)
        noise = torch.Generator().manual_seed(1_000_000 + 1_000 * self.epoch + index)
        y = x.roll(1, -1).tanh() + 0.01 * torch.randn(4, WIDTH, generator=noise)
        return x, y, torch.arange(4) <= index % 4


def collate(examples: list[tuple[Tensor, Tensor, Tensor]]) -> ToyBatch:
    return ToyBatch(*(torch.stack(column) for column in zip(*examples, strict=True)))


class ToyBlock(nn.Module):
    def __init__(self, dropout: float) -> None:
        super().__init__()
        self.linear = nn.Linear(WIDTH, WIDTH)
        self.norm = nn.LayerNorm(WIDTH)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.dropout(self.linear(self.norm(x)).tanh())


class ToyModel(nn.Module):
    def __init__(self, dropout: float = 0.0) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(ToyBlock(dropout) for _ in range(2))
        self.frozen = nn.Linear(WIDTH, WIDTH)
        self.frozen.requires_grad_(False)
        self.head = nn.Linear(WIDTH, WIDTH, bias=False)
        self.unused = nn.Linear(WIDTH, WIDTH)
        self.gain = nn.Parameter(torch.tensor(1.0))
        self.log_scale = nn.Parameter(torch.tensor(1.0))
        self.register_buffer("updates", torch.zeros(()))

    def states(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        return x

    def shard_units(self) -> list[nn.Module]:
        return list(self.blocks)


class ToyStage(Stage[ToyBatch]):
    """Regression on the kept positions; with `noise`, dropout and all three sources of random numbers shape every update."""

    name = "toy"
    best_metric, best_mode = "loss", "min"

    def __init__(self, run: RunConfig, n_train: int = 40, n_validation: int = 8, noise: bool = False) -> None:
        super().__init__(run)
        self.n_train, self.n_validation, self.noise = n_train, n_validation, noise

    def build_model(self) -> nn.Module:
        return ToyModel(0.2 if self.noise else 0.0)

    def build_data(self) -> Splits[ToyBatch]:
        return Splits(ToyData(self.n_train), ToyData(self.n_validation, first=10_000), collate)

    def counts(self, batch: ToyBatch) -> dict[str, int]:
        return {"square": int(batch.keep.sum())}

    def loss(self, model: Any, batch: ToyBatch, context: Context) -> dict[str, Term]:
        error = (model.gain * model.head(model.states(batch.x)) - batch.y).square().sum(-1)
        kept = (error * batch.keep).sum()
        if self.noise and model.training:
            kept = kept * (1 + 0.1 * (random.random() + random.gauss(0, 0.1) + np.random.rand()))  # noqa: NPY002
        return {"square": Term(kept, int(batch.keep.sum())), "seen": Term(batch.keep.sum().float(), batch.keep.numel(), weight=0.0)}

    def after_update(self, model: Any, reduce: Any) -> None:
        model.updates += 1

    def evaluate(self, model: Any, batches: Iterable[ToyBatch]) -> dict[str, float]:
        torch.rand(7)  # must not disturb the run
        terms = [self.loss(model, batch, Context())["square"] for batch in batches]
        return {"loss": float(sum(term.sum for term in terms)) / sum(int(term.count) for term in terms)}

    def export(self, model: Any) -> Export:
        tensors = {f"thinker.{name}": t for name, t in model.state_dict().items() if not name.startswith(("unused", "log_scale"))}
        return Export(tensors, self.run.model, ["thinker"], b"tokenizer", {"stage": self.name})


class ContrastiveStage(ToyStage):
    """InfoNCE between two views: not additive over examples."""

    def counts(self, batch: ToyBatch) -> dict[str, int]:
        return {"contrastive": len(batch.x)}

    def _views(self, model: Any, batch: ToyBatch) -> tuple[Tensor, Tensor]:
        a, b = model.head(model.states(batch.x)).mean(1), model.states(batch.y).mean(1)
        return nn.functional.normalize(a, dim=-1), nn.functional.normalize(b, dim=-1)

    def statistics(self, model: Any, batch: ToyBatch) -> dict[str, Tensor]:
        a, b = self._views(model, batch)
        return {"images": a, "texts": b}

    def loss(self, model: Any, batch: ToyBatch, context: Context) -> dict[str, Term]:
        return {"contrastive": info_nce(*self._views(model, batch), model.log_scale, context)}

    def evaluate(self, model: Any, batches: Iterable[ToyBatch]) -> dict[str, float]:
        return {"loss": 0.0}


class SometimesStage(ToyStage):
    """`unused` takes part only where an example is kept whole: one rank may need it while another does not."""

    def loss(self, model: Any, batch: ToyBatch, context: Context) -> dict[str, Term]:
        states = model.states(batch.x)
        rows = batch.keep.all(-1).nonzero()[:, 0]
        if len(rows):
            states = states.index_add(0, rows, model.unused(batch.x[rows]))
        error = (model.gain * model.head(states) - batch.y).square().sum(-1)
        return {"square": Term((error * batch.keep).sum(), int(batch.keep.sum()))}


class TwoObjectiveStage(ToyStage):
    """Two objectives, as a GAN has: the head learns against the blocks' features, the blocks against the head."""

    def objectives(self, model: Any) -> list[Objective]:
        head = list(model.head.parameters())
        rest = [p for p in model.parameters() if p.requires_grad and all(p is not q for q in head)]
        return [Objective("blocks", rest), Objective("head", head)]

    def loss(self, model: Any, batch: ToyBatch, context: Context) -> dict[str, Term]:
        sign = 1.0 if context.objective == "blocks" else 0.5
        return {name: Term(term.sum * sign, term.count, term.weight) for name, term in super().loss(model, batch, context).items()}


STAGES = {stage.__name__: stage for stage in (ToyStage, ContrastiveStage, SometimesStage, TwoObjectiveStage)}


def make_run(out_dir: Path | str, **train_settings: Any) -> RunConfig:
    defaults: dict[str, Any] = {
        "steps": 8,
        "batch_size": 8,
        "micro_batch_size": 8,
        "learning_rate": 0.01,
        "warmup_steps": 2,
        "checkpoint_every": 4,
        "evaluate_every": 4,
        "log_every": 1,
        "precision": "float32",
    }
    return RunConfig(stage="text", preset="nano", train=TrainConfig(**(defaults | train_settings)), out_dir=str(out_dir))


def die_at(n: int) -> None:
    """This process dies by SIGKILL at its n-th step of writing or deleting checkpoints."""
    done = 0

    def deadly(original: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            nonlocal done
            done += 1
            if done == n:
                os.kill(os.getpid(), signal.SIGKILL)
            return original(*arguments, **options)

        return call

    os.fsync = lambda descriptor: None  # a killed process loses nothing that it has written
    for owner, name in ((checkpoint, "_sync"), (checkpoint, "save_file"), (os, "rename"), (os, "replace"), (os, "unlink"), (os, "rmdir")):
        setattr(owner, name, deadly(getattr(owner, name)))


def look_at(run_dir: Path) -> None:
    """Whoever reads a killed run finds whole models only. (Reading completes a committed move; that is left to the run.)"""
    for config in run_dir.rglob("config.json"):
        if not any(part.startswith(".") for part in config.relative_to(run_dir).parts):
            copy = run_dir.parent / "looked-at"
            shutil.copytree(config.parent, copy)
            checkpoint.load_model(copy)
            shutil.rmtree(copy)


def in_child(settings: dict[str, Any]) -> bool:
    """Train in a forked process that dies at a step of saving (`die_at`) or is killed a while after its first
    new checkpoint (`kill_after_s`); whether it did."""
    import torch._dynamo  # slow, and optimizers and curves want them: once for all children
    import torch.utils.tensorboard  # noqa: F401

    newest = checkpoint.latest(Path(settings["out_dir"]))
    child = os.fork()
    if child == 0:
        if "die_at" in settings:
            die_at(settings["die_at"])
        run_toy(settings)
        os._exit(0)
    if "kill_after_s" in settings:
        while checkpoint.latest(Path(settings["out_dir"])) == newest:
            time.sleep(0.001)
        time.sleep(settings["kill_after_s"])
        os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    look_at(Path(settings["out_dir"]))
    return os.WIFSIGNALED(status)


def run_toy(settings: dict[str, Any]) -> list[dict[str, Any]]:
    """Train one stage; the values of every update."""
    run = make_run(settings["out_dir"], **settings.get("train", {}))
    stage = STAGES[settings.get("stage", "ToyStage")](run, **settings.get("options", {}))
    updates: list[dict[str, Any]] = []
    train(stage, device="cpu", on_event=lambda event: updates.append(event.values) if event.kind == "update" else None)
    return updates


def main(runs: list[dict[str, Any]]) -> None:
    torch.set_num_threads(1)
    joined = distributed.setup(torch.device("cpu"))
    for settings in runs:
        if "die_at" in settings or "kill_after_s" in settings:
            died = in_child(settings)
            print(json.dumps(died), flush=True)
            continue
        updates = run_toy(settings)
        if distributed.is_main():
            (Path(settings["out_dir"]) / "updates.json").write_text(json.dumps(updates))
    if joined:
        distributed.cleanup()


def start(runs: list[dict[str, Any]], file: Path, **environment: str) -> subprocess.Popen[str]:
    """A process of its own that trains these runs."""
    file.write_text(json.dumps(runs))
    paths = os.pathsep.join([str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")])
    return subprocess.Popen(
        [sys.executable, __file__, str(file)],
        env=os.environ | {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1"} | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def run_processes(runs: list[dict[str, Any]], folder: Path, n: int) -> None:
    """Train these runs in n processes together."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    common = {"WORLD_SIZE": str(n), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    processes = [start(runs, folder / f"rank{r}.json", RANK=str(r), LOCAL_RANK=str(r), **common) for r in range(n)]
    for process in processes:
        _, errors = process.communicate(timeout=300)
        assert process.returncode == 0, errors


if __name__ == "__main__":
    main(json.loads(Path(sys.argv[1]).read_text()))
