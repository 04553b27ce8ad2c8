"""The one training loop: every stage, every objective, one process or many.

One update: read the micro-batches of this rank, compute the gradient of the global batch (`gradients`), check it once, clip, step.

A checkpoint is saved before every evaluation, so that a crash in evaluation costs nothing; a run that resumes from a checkpoint whose
evaluation was not finished evaluates first, and so ends with the same bits as one that was never interrupted."""

from __future__ import annotations

import math
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor, nn

from omni import checkpoint, distributed, memory
from omni.config import RunConfig
from omni.errors import CheckpointError, ConfigError
from omni.nn.precision import autocast, autocast_dtype
from omni.training.batches import EpochOrder, Prefetcher, Share, ValidationBatches, read_examples
from omni.training.gradients import GlobalGradients
from omni.training.guards import Guard, LossScaler, nan_watch
from omni.training.optimizers import check_objectives, learning_rate, make_optimizers
from omni.training.parallel import Parallel, full, like, local
from omni.training.random_state import all_rng_states, deterministic, seed_everything, set_all_rng_states
from omni.training.report import Reporter
from omni.training.stage import Objective, Stage, local_context

B = TypeVar("B")
THROUGHPUT_WINDOW = 50  # updates


@dataclass(frozen=True)
class Event:
    """Something that happened in a run: "resume", "update", "skip", "checkpoint", "evaluate" or "end"."""

    kind: str
    step: int
    values: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class TrainResult:
    """How a run ended. `best` is the best value of the stage's metric (None without validation data). The weights that are kept are those after
    update `kept_step`, which had it, and `metrics` their scores. `seconds` is the time spent in updates over all its processes' lives,
    `peak_memory_bytes` this process's peak."""

    steps: int
    best: float | None
    kept_step: int
    metrics: dict[str, float]
    seconds: float
    tokens_per_s: float
    peak_memory_bytes: int
    run_dir: Path


@dataclass
class Progress:
    """Where a run is: all of it is in the training state. `position` counts examples over all ranks."""

    step: int = 0
    position: int = 0
    best: float | None = None
    best_step: int | None = None
    best_metrics: dict[str, float] = field(default_factory=dict)
    evaluated_step: int = 0
    metrics: dict[str, float] = field(default_factory=dict)
    seconds: float = 0.0
    items: int = 0


def train(
    stage: Stage[Any], *, resume: bool = True, device: str | None = None, on_event: Callable[[Event], None] | None = None
) -> TrainResult:
    """Run `stage` to its last step in `stage.run.out_dir`, from its newest checkpoint if there is one.

    With `resume` off, the checkpoints and curves of an earlier run in that folder are deleted first. Under torchrun every process calls
    this. Raises OmniError for what the user can mend, NonFiniteError when training diverges.
    """
    where = distributed.device(device)
    if where.type not in ("cpu", "cuda"):
        raise ConfigError(f"device {where}: training runs on cpu or cuda")
    if where.type == "cpu":
        memory.keep_freed_memory()
    try:
        with distributed.group(where), deterministic(where):
            return Trainer(stage, where, on_event or (lambda event: None)).run(resume)
    except torch.OutOfMemoryError as error:
        size = stage.run.train.micro_batch_size
        raise ConfigError(
            f"{where} is out of memory: lower train.micro_batch_size (now {size}) or set train.gradient_checkpointing"
        ) from error


class Trainer(Generic[B]):
    """One run of one stage. Build, restore, update until done, save."""

    def __init__(self, stage: Stage[B], device: torch.device, on_event: Callable[[Event], None]) -> None:
        self.stage, self.device, self.on_event = stage, device, on_event
        self.config = stage.run.train
        self.run_dir = Path(stage.run.out_dir)
        self.progress = Progress()
        self.guard = Guard(self.config)
        self.dtype = autocast_dtype(device, self.config.precision)
        self.scaler = LossScaler(self.dtype is torch.float16)
        world = distributed.world_size()
        if self.config.batch_size % world:
            raise ConfigError(f"train.batch_size {self.config.batch_size} is not a multiple of the {world} processes")
        self._recent: list[tuple[float, int]] = []

    def run(self, resume: bool) -> TrainResult:
        """Train to the end."""
        found = self._open_run_dir(resume)
        seed_everything(self.config.seed)
        with distributed.main_first():  # it may write caches that the others read
            self.splits = self.stage.build_data()
        self.order = EpochOrder(len(self.splits.train), self.config.seed)
        self.model = self.stage.build_model().to(self.device)
        self._frozen = [module for module in self.model.modules() if is_frozen(module)]
        if self.config.gradient_checkpointing:
            self._set_gradient_checkpointing()
        tensors, values = self._load(found) if found else ({}, {})
        if not found:
            self.stage.prepare(self.model, self._first_batch())
        estimate = self._estimate_memory()
        self._build_optimizers()
        if found:
            self._restore(tensors, values, found)
        else:
            seed_everything(self.config.seed + 7919 * distributed.rank())
        self.report = Reporter(self.run_dir, self.stage.name, self.stage.unit, self.progress.step, self.config.steps)
        try:
            self.report.line(f"memory: {estimate}")
            if found:
                self._say_resumed(found, values)
            self._loop()
            return self._finish()
        finally:
            self.report.close()

    # --- building

    def _open_run_dir(self, resume: bool) -> Path | None:
        """Make the run's folder fit to be written; the checkpoint to resume from, if any."""
        if distributed.is_main():
            self.run_dir.mkdir(parents=True, exist_ok=True)
            checkpoint.clean(self.run_dir)
            if not resume:
                (self.run_dir / checkpoint.CONFIG).unlink(missing_ok=True)  # no longer a model folder
                for name in ("checkpoints", "best", "tensorboard"):
                    shutil.rmtree(self.run_dir / name, ignore_errors=True)
            checkpoint.prune(self.run_dir, self.config.keep_checkpoints)
            checkpoint.write_json(self.run_dir / "run.json", self.stage.run.model_dump(mode="json"))
        distributed.barrier()
        return checkpoint.latest(self.run_dir)

    def _set_gradient_checkpointing(self) -> None:
        switch = getattr(self.model, "set_gradient_checkpointing", None)
        if switch is None:
            raise ConfigError(f"train.gradient_checkpointing: the model of stage {self.stage.name} has no such option; set it to false")
        switch(True)

    def _first_batch(self) -> B:
        """The whole first global batch, the same on every rank."""
        examples = read_examples(self.splits.train, self.order, range(self.config.batch_size))
        return self._to_device(self.splits.collate(examples))

    def _estimate_memory(self) -> memory.MemoryEstimate:
        """From the model and one forward pass over one example, which leaves no trace."""
        example = self._to_device(self.splits.collate([self.splits.train[self.order[self.progress.position][1]]]))
        buffers = {name: buffer.clone() for name, buffer in self.model.named_buffers()}
        self._train_mode()
        objective = self.stage.objectives(self.model)[0].name
        with torch.random.fork_rng([self.device] if self.device.type == "cuda" else []), autocast(self.device, self.dtype):
            with torch.no_grad():
                context = local_context(self.stage, self.model, example, objective)
            saved = memory.SavedBytes(self.model)
            with saved:
                terms = self.stage.loss(self.model, example, context)
        del terms
        for name, buffer in self.model.named_buffers():
            buffer.copy_(buffers[name])
        own = self.config.batch_size // distributed.world_size()
        sharded = self.config.parallel == "fsdp"
        return memory.estimate(self.model, saved.total, min(self.config.micro_batch_size, own), distributed.world_size(), sharded)

    def _build_optimizers(self) -> None:
        """Wrap the model and make the optimizers of every objective. Only one objective's parameters require gradients at a time."""
        self.parallel = Parallel(self.model, self.config.parallel, self.device, self.stage.shard_units(self.model))
        self.gradients = GlobalGradients(self.stage, self.model, self.parallel, self.device, self.dtype)
        self.objectives = self.stage.objectives(self.model)
        check_objectives(self.model, self.objectives)
        if len(self.objectives) > 1 and self.parallel.kind == "fsdp":
            raise ConfigError(f"train.parallel: stage {self.stage.name} has several objectives, which fsdp cannot train; use ddp")
        self.optimizers = {objective.name: make_optimizers(self.model, objective, self.config) for objective in self.objectives}
        for objective in self.objectives:
            self._only(objective)
            self.parallel.add(objective)

    def _only(self, objective: Objective) -> None:
        """Gradients for this objective's parameters alone."""
        if len(self.objectives) > 1:
            for other in self.objectives:
                for p in other.parameters:
                    p.requires_grad_(other is objective)

    # --- the loop

    def _loop(self) -> None:
        progress, config = self.progress, self.config
        with ExitStack() as stack:
            if config.debug_nan:
                stack.enter_context(nan_watch(self.model))
            if progress.step and self._evaluation_due() and progress.evaluated_step < progress.step:
                self._evaluate()  # the run was interrupted between saving and evaluating
            reader = Prefetcher(
                self.splits,
                self.order,
                position=progress.position,
                batch_size=config.batch_size,
                micro_batch_size=config.micro_batch_size,
                rank=distributed.rank(),
                world_size=distributed.world_size(),
            )
            stack.callback(reader.close)
            self._train_mode()
            while progress.step < config.steps:
                start = time.monotonic()
                self._update(next(reader), start)
                evaluate = self._evaluation_due()
                if evaluate or progress.step % config.checkpoint_every == 0 or progress.step == config.steps:
                    self._save()
                if evaluate:
                    self._evaluate()
                    self._train_mode()

    def _evaluation_due(self) -> bool:
        step = self.progress.step
        return len(self.splits.validation) > 0 and (step % self.config.evaluate_every == 0 or step == self.config.steps)

    def _update(self, share: Share[B], start: float) -> None:
        """One update of every objective, on micro-batches that `start`ed to be waited for at that time."""
        rate = learning_rate(self.config, self.progress.step)
        values: dict[str, float] = {}
        applied = True
        for objective in self.objectives:
            self._only(objective)
            for optimizer in self.optimizers[objective.name]:
                optimizer.zero_grad(set_to_none=True)
            terms, norm = self.gradients.of(objective, share.micro_batches, self.progress.step, self.scaler.scale)
            loss = sum(mean * weight for mean, weight in terms.values())
            prefix = f"{objective.name}/" if len(self.objectives) > 1 else ""
            values |= {f"{prefix}loss": loss, f"{prefix}grad_norm": norm} | {f"{prefix}{name}": mean for name, (mean, _) in terms.items()}
            applied = self._apply(objective, loss, norm, rate) and applied
        if applied:
            self.stage.after_update(self.model, distributed.all_reduce_sum)
        else:
            self.stage.after_skip(self.model)
        self.progress.step += 1
        self.progress.position += self.config.batch_size
        self._account(share, values | {"learning_rate": rate}, time.monotonic() - start)

    def _apply(self, objective: Objective, loss: float, norm: float, rate: float) -> bool:
        """Clip and step, unless a guard objects. All ranks see the same numbers, so they agree."""
        step = self.progress.step
        fault = self.guard.fault(step, loss, norm)
        overflow = not math.isfinite(norm) and math.isfinite(loss) and self.scaler.can_fall
        scale = self.scaler.scale
        self.scaler.update(overflow)
        if fault is not None:
            self.report.line(f"step {step + 1}: update skipped: {fault}" + (f"; loss scale now {self.scaler.scale:g}" if overflow else ""))
            self.on_event(Event("skip", step + 1, {"fault": fault, "overflow": overflow}))
            self.guard.refuse(step + 1, fault, overflow)
            return False
        self.guard.passed()
        grads = [local(p.grad) for p in objective.parameters if p.grad is not None]
        factor = min(1.0, self.config.max_grad_norm / (norm + 1e-6)) / scale
        if grads and factor != 1.0:
            torch._foreach_mul_(grads, factor)
        for optimizer in self.optimizers[objective.name]:
            for group in optimizer.param_groups:
                group["lr"] = rate
            optimizer.step()
        return True

    def _account(self, share: Share[B], values: dict[str, float], seconds: float) -> None:
        """Add an update to the books and show it."""
        progress = self.progress
        items = sum(map(self.stage.items, share.micro_batches, share.sizes)) * distributed.world_size()
        progress.seconds += seconds
        progress.items += items
        self._recent = [*self._recent[1 - THROUGHPUT_WINDOW :], (seconds, items)]
        spent, done = (sum(column) for column in zip(*self._recent, strict=True))
        per_second = done / max(spent, 1e-9)
        due = progress.step % self.config.log_every == 0 or progress.step == self.config.steps
        loss = values["loss"] if "loss" in values else values[f"{self.objectives[0].name}/loss"]
        self.report.update(progress.step, loss, per_second, due=due)
        if due:
            self.report.scalars(progress.step, values | {f"{self.stage.unit}_per_s": per_second, "skipped": self.guard.skipped}, "train")
        self.on_event(Event("update", progress.step, values))

    def _evaluate(self) -> None:
        """Score the model on the validation data; keep it if it is the best so far. Random numbers are as if this had not been."""
        progress = self.progress
        batches = ValidationBatches(self.splits.validation, self.splits.collate, self._own_micro_batch, self._to_device)
        before = all_rng_states(self.device)
        self.model.eval()
        with torch.no_grad(), autocast(self.device, self.dtype):
            metrics = self.parallel.run(None, self.stage.evaluate, self.model, batches)
        self.parallel.rest()
        set_all_rng_states(before, self.device)
        assert self.stage.best_metric in metrics, f"stage {self.stage.name}: evaluate() gave no {self.stage.best_metric!r}"
        progress.metrics, progress.evaluated_step = metrics, progress.step
        value = float(distributed.broadcast_(torch.tensor(metrics[self.stage.best_metric], dtype=torch.float64)))
        is_best = math.isfinite(value) and (progress.best is None or self.stage.is_better(value, progress.best))
        if is_best:
            progress.best, progress.best_step, progress.best_metrics = value, progress.step, metrics
        with self.parallel.gathered():
            if distributed.is_main():
                if is_best:
                    self._export(self.run_dir / "best")
                checkpoint.update_training_state(checkpoint.step_folder(self.run_dir, progress.step), {"progress": asdict(progress)})
        distributed.barrier()
        shown = "  ".join(f"{name} {score:.4g}" for name, score in metrics.items())
        self.report.line(f"step {progress.step}: {shown}" + ("  (best)" if is_best else ""))
        self.report.scalars(progress.step, metrics, "validation")
        self.report.flush()
        self.on_event(Event("evaluate", progress.step, dict(metrics)))

    def _export(self, folder: Path, dtype: torch.dtype | None = None) -> None:
        export = self.stage.export(self.model)
        about = export.extra | {"step": self.progress.step, "metrics": self.progress.metrics}
        checkpoint.save_model(folder, export.tensors, export.config, export.components, export.tokenizer, dtype=dtype, extra=about)

    def _finish(self) -> TrainResult:
        """The folder of the run becomes a model folder: the best weights, or the last ones without validation, in bfloat16."""
        progress = self.progress
        self.parallel.rest()
        with self.parallel.gathered():
            if distributed.is_main():
                if progress.best is not None:
                    best = checkpoint.load_model(self.run_dir / "best")
                    tokenizer = best.tokenizer.read_bytes() if best.tokenizer is not None else None
                    checkpoint.save_model(
                        self.run_dir, best.tensors, best.config, best.components, tokenizer, dtype=torch.bfloat16, extra=best.extra
                    )
                else:
                    self._export(self.run_dir, torch.bfloat16)
        distributed.barrier()
        per_second = progress.items / max(progress.seconds, 1e-9)
        peak = memory.peak(self.device)
        self.report.line(
            f"done: {progress.step} steps, {per_second:,.0f} {self.stage.unit}/s, peak memory {memory.readable(peak)}, "
            f"{self.guard.skipped} updates skipped; model in {self.run_dir}"
        )
        kept, metrics = progress.best_step or progress.step, progress.best_metrics or progress.metrics
        result = TrainResult(progress.step, progress.best, kept, metrics, progress.seconds, per_second, peak, self.run_dir)
        self.on_event(Event("end", progress.step, {"best": progress.best} | metrics))
        return result

    # --- checkpoints

    def _save(self) -> None:
        """Everything that the run needs to continue, in one folder, whole or not at all."""
        self.report.flush()
        self.parallel.rest()
        random_states = {name: distributed.all_gather_cat(state[None]) for name, state in all_rng_states(self.device).items()}
        tensors = {f"rng.{name}": states for name, states in random_states.items()}
        parameters = dict(self.model.named_parameters())
        for objective, optimizer in self._all_optimizers():
            for name, p in parameters.items():
                for slot, value in optimizer.state.get(p, {}).items():
                    tensors[f"optimizer.{objective}.{name}.{slot}"] = full(value)
        with self.parallel.gathered():
            if distributed.is_main():
                export = self.stage.export(self.model)
                exported, rest = match_export(self.model.state_dict(), export.tensors)
                tensors |= {f"model.{name}": tensor for name, tensor in rest.items()}
                values = {
                    "progress": asdict(self.progress),
                    "exported": exported,
                    "skipped": self.guard.skipped,
                    "skipped_in_a_row": self.guard.in_a_row,
                    "loss_scale": self.scaler.scale,
                    "loss_scale_good": self.scaler.good,
                    "run": self.stage.run.model_dump(mode="json"),
                }
                about = export.extra | {"step": self.progress.step}
                with checkpoint.atomic_folder(checkpoint.step_folder(self.run_dir, self.progress.step)) as folder:
                    checkpoint.write_model(folder, export.tensors, export.config, export.components, export.tokenizer, extra=about)
                    checkpoint.save_training_state(folder, tensors, values)
                checkpoint.prune(self.run_dir, self.config.keep_checkpoints)
        distributed.barrier()
        self.on_event(Event("checkpoint", self.progress.step))

    def _load(self, folder: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """The weights into the model; the rest of the training state for `_restore`."""
        saved = checkpoint.load_model(folder)
        tensors, values = checkpoint.load_training_state(folder)
        weights = {name: tensors.pop(f"model.{name}") for name in self.model.state_dict() if f"model.{name}" in tensors}
        for name, exported in values["exported"].items():
            if exported not in saved.tensors:
                raise CheckpointError(f"{folder}: tensor {exported} is missing")
            weights[name] = saved.tensors[exported]
        checkpoint.load_into(self.model, weights, f"{folder} (to start anew, choose another out_dir)")
        self.progress = Progress(**values["progress"])
        return tensors, values

    def _restore(self, tensors: dict[str, Tensor], values: dict[str, Any], folder: Path) -> None:
        """Optimizers, guard, scaler and random states as they were."""
        for objective, optimizer in self._all_optimizers():
            names = {id(p): name for name, p in self.model.named_parameters()}
            state: dict[int, dict[str, Tensor]] = {}
            for i, p in enumerate(p for group in optimizer.param_groups for p in group["params"]):
                prefix = f"optimizer.{objective}.{names[id(p)]}."
                slots = {key.removeprefix(prefix): like(t, p) for key, t in tensors.items() if key.startswith(prefix)}
                if slots:
                    state[i] = slots
            optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
        self.guard.skipped, self.guard.in_a_row = values["skipped"], values["skipped_in_a_row"]
        if self.scaler.enabled:
            self.scaler.scale, self.scaler.good = values["loss_scale"], values["loss_scale_good"]
        states = {key.removeprefix("rng."): t for key, t in tensors.items() if key.startswith("rng.")}
        if distributed.rank() < min(len(t) for t in states.values()):
            set_all_rng_states({name: t[distributed.rank()] for name, t in states.items()}, self.device)
        else:  # more processes than the run had
            seed_everything(self.config.seed + 7919 * distributed.rank() + self.progress.step)

    def _say_resumed(self, folder: Path, values: dict[str, Any]) -> None:
        changed = differences(values["run"], self.stage.run)
        if changed and self.progress.step >= self.config.steps:
            raise ConfigError(
                f"{self.run_dir}: this run is complete, and its settings were others ({', '.join(changed)}); name another folder, or raise train.steps"
            )
        self.report.line(f"resuming from {folder}" + (f" with changed settings: {', '.join(changed)}" if changed else ""))
        self.on_event(Event("resume", self.progress.step, {"changed": changed}))

    # --- small things

    def _all_optimizers(self) -> Iterator[tuple[str, torch.optim.Optimizer]]:
        """Each with the name of its objective."""
        return ((objective, optimizer) for objective, optimizers in self.optimizers.items() for optimizer in optimizers)

    @property
    def _own_micro_batch(self) -> int:
        return min(self.config.micro_batch_size, self.config.batch_size // distributed.world_size())

    def _to_device(self, batch: Any) -> Any:
        return batch.to(self.device)

    def _train_mode(self) -> None:
        """Training mode, except for parts that are frozen as a whole: their dropout stays off."""
        self.model.train()
        for module in self._frozen:
            module.eval()


def is_frozen(module: nn.Module) -> bool:
    """Whether a module has parameters and trains none of them."""
    parameters = list(module.parameters())
    return bool(parameters) and not any(p.requires_grad for p in parameters)


def match_export(own: dict[str, Tensor], exported: dict[str, Tensor]) -> tuple[dict[str, str], dict[str, Tensor]]:
    """Which of the model's own tensors are saved already, under which exported name, and those that are not."""
    by_place = {(t.data_ptr(), t.dtype, t.shape): name for name, t in exported.items() if t.numel()}
    same = {name: by_place[(t.data_ptr(), t.dtype, t.shape)] for name, t in own.items() if (t.data_ptr(), t.dtype, t.shape) in by_place}
    return same, {name: t for name, t in own.items() if name not in same}


def differences(before: dict[str, Any], run: RunConfig) -> list[str]:
    """Settings of a run that are not what they were: "train.steps 100 → 200"."""

    def flat(value: Any, prefix: str = "") -> dict[str, Any]:
        if not isinstance(value, dict):
            return {prefix[:-1]: value}
        return {key: v for name, inner in value.items() for key, v in flat(inner, f"{prefix}{name}.").items()}

    old, new = flat(before), flat(run.model_dump(mode="json"))
    return [f"{key} {old.get(key)} → {value}" for key, value in new.items() if old.get(key) != value]
