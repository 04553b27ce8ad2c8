"""One loop: accumulated == one batch, guards, evaluation, what a run leaves behind. Resuming and processes have tests of their own."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from toy_stage import STAGES, ContrastiveStage, ToyBatch, ToyData, ToyModel, ToyStage, TwoObjectiveStage, collate, make_run, run_toy

from omni.checkpoint import latest, load_model
from omni.errors import CheckpointError, ConfigError, DataError, NonFiniteError
from omni.training.stage import Context, Splits, Term
from omni.training.trainer import Event, TrainResult, train


def last_state(run_dir: Path) -> dict[str, torch.Tensor]:
    folder = latest(run_dir)
    assert folder is not None
    return load_file(folder / "model.safetensors") | load_file(folder / "training_state.safetensors")


def follow(stage: ToyStage, **options: Any) -> tuple[TrainResult, list[Event]]:
    events: list[Event] = []
    return train(stage, device="cpu", on_event=events.append, **options), events


# --- exactness


@pytest.mark.parametrize("stage", STAGES)
def test_accumulated_equals_one_batch(tmp_path: Path, stage: str) -> None:
    whole = run_toy({"stage": stage, "out_dir": str(tmp_path / "whole")})
    pieces = run_toy({"stage": stage, "out_dir": str(tmp_path / "pieces"), "train": {"micro_batch_size": 2}})
    for ours, theirs in zip(pieces, whole, strict=True):
        assert ours == pytest.approx(theirs, rel=1e-4, abs=1e-6)
    expected = last_state(tmp_path / "whole")
    for name, value in last_state(tmp_path / "pieces").items():
        torch.testing.assert_close(value, expected[name], rtol=1e-3, atol=1e-5)


def test_the_loss_is_divided_by_the_targets_of_the_global_batch(tmp_path: Path) -> None:
    updates = run_toy({"out_dir": str(tmp_path), "train": {"steps": 1, "batch_size": 40, "micro_batch_size": 4, "seed": 3}})
    torch.manual_seed(3)
    model = ToyModel()
    batch = collate([ToyData(40)[i] for i in range(40)])
    with torch.no_grad():
        term = ToyStage(make_run(tmp_path)).loss(model, batch, Context())["square"]
    assert updates[0]["loss"] == pytest.approx(float(term.sum) / int(batch.keep.sum()), rel=1e-5)


def test_statistics_draw_the_same_dropout_as_the_loss(tmp_path: Path) -> None:
    class Checked(ContrastiveStage):
        def loss(self, model: Any, batch: ToyBatch, context: Context) -> dict[str, Term]:
            state = torch.get_rng_state()
            own, _ = self._views(model, batch)
            at = context.offsets["images"]
            if context.totals["contrastive"] > 1:  # the memory estimate looks at one example
                assert torch.equal(context.statistics["images"][at : at + len(own)], own.detach())
            torch.set_rng_state(state)
            return super().loss(model, batch, context)

    follow(Checked(make_run(tmp_path, steps=2, micro_batch_size=2), noise=True))


def test_evaluation_does_not_change_the_run(tmp_path: Path) -> None:
    for name, n in (("with", 8), ("without", 0)):
        run_toy({"out_dir": str(tmp_path / name), "options": {"noise": True, "n_validation": n}, "train": {"evaluate_every": 1}})
    expected = last_state(tmp_path / "without")
    assert all(torch.equal(value, expected[name]) for name, value in last_state(tmp_path / "with").items())


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_mixed_precision_has_the_gradients_of_float32(tmp_path: Path, precision: str) -> None:
    still = {"steps": 12, "learning_rate": 1e-9}  # the weights stay, so that every update can be compared
    exact = run_toy({"out_dir": str(tmp_path / "exact"), "train": still})
    mixed = run_toy({"out_dir": str(tmp_path / "mixed"), "train": still | {"precision": precision}})
    for name in ("loss", "grad_norm"):
        assert mixed[-1][name] == pytest.approx(exact[-1][name], rel=0.02), "float16 has found its scale by now"
    learning = run_toy({"out_dir": str(tmp_path / "learning"), "train": {"steps": 20, "precision": precision}})
    assert learning[-1]["loss"] < 0.8 * learning[0]["loss"]
    assert all(t.dtype == torch.float32 for name, t in last_state(tmp_path / "learning").items() if name.startswith("thinker"))


# --- guards


class PoisonedStage(ToyStage):
    """The loss of some updates is multiplied by `factor`."""

    def __init__(self, *arguments: Any, factor: float, at: range, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.factor, self.at = factor, at

    def loss(self, model: Any, batch: ToyBatch, context: Context) -> dict[str, Term]:
        terms = super().loss(model, batch, context)
        if context.step in self.at and context.totals:
            terms["square"] = replace(terms["square"], sum=terms["square"].sum * self.factor)
        return terms


@pytest.mark.parametrize(
    ("factor", "fault"), [(float("nan"), "loss is nan"), (float("inf"), "loss is inf"), (1e4, "exploding_grad_norm"), (1e8, "max_loss")]
)
def test_a_bad_update_is_skipped_and_counted(tmp_path: Path, factor: float, fault: str) -> None:
    stage = PoisonedStage(
        make_run(tmp_path, steps=6, micro_batch_size=4, checkpoint_every=1, keep_checkpoints=6), factor=factor, at=range(3, 5)
    )
    _, events = follow(stage)
    skips = [event for event in events if event.kind == "skip"]
    assert [event.step for event in skips] == [4, 5] and all(fault in event.values["fault"] for event in skips)
    model = [load_file(tmp_path / "checkpoints" / f"step-{step:08d}" / "model.safetensors")["thinker.head.weight"] for step in range(1, 7)]
    assert torch.equal(model[2], model[4]) and not torch.equal(model[4], model[5]) and not torch.equal(model[1], model[2])
    assert last_state(tmp_path)["thinker.updates"] == 4, "after_update ran for a skipped update"


def test_bounds_on_size_begin_after_the_warm_up(tmp_path: Path) -> None:
    _, events = follow(PoisonedStage(make_run(tmp_path, steps=6, warmup_steps=4), factor=1e4, at=range(6)))
    assert [event.step for event in events if event.kind == "skip"] == [5, 6]


def test_too_many_bad_updates_in_a_row_stop_the_run(tmp_path: Path) -> None:
    with pytest.raises(NonFiniteError, match=r"step 6: 4 updates in a row were refused, the last because loss is nan"):
        follow(PoisonedStage(make_run(tmp_path, steps=20, max_bad_updates=4), factor=float("nan"), at=range(2, 20)))
    every_other = range(2, 20, 2)
    follow(PoisonedStage(make_run(tmp_path / "other", steps=20, max_bad_updates=2), factor=float("nan"), at=every_other))


def test_first_overflows_of_the_loss_scale_do_not_count(tmp_path: Path) -> None:
    run = make_run(tmp_path, steps=20, warmup_steps=0, precision="float16", max_bad_updates=1, exploding_grad_norm=1e9)
    _, events = follow(PoisonedStage(run, factor=300.0, at=range(20)))
    overflows = [event for event in events if event.kind == "skip"]
    assert 1 < len(overflows) < 19 and all(event.values["overflow"] for event in overflows)


def test_debug_nan_names_the_module(tmp_path: Path) -> None:
    class Broken(ToyStage):
        def build_model(self) -> Any:
            model = ToyModel()
            with torch.no_grad():
                model.blocks[1].linear.weight[0, 0] = float("nan")
            return model

    with pytest.raises(NonFiniteError, match=r"blocks\.1\.linear \(Linear\)"):
        follow(Broken(make_run(tmp_path, debug_nan=True)))


# --- evaluation, best, export


class ScriptedStage(ToyStage):
    """Its scores are given."""

    best_metric, best_mode = "accuracy", "max"
    scores: tuple[float, ...] = (0.2, 0.7, float("nan"), 0.5)

    def evaluate(self, model: Any, batches: Iterable[ToyBatch]) -> dict[str, float]:
        assert not model.training and not torch.is_grad_enabled()
        assert sum(len(batch.x) for batch in batches) == sum(len(batch.x) for batch in batches) == 8
        self.asked = getattr(self, "asked", -1) + 1
        return {"accuracy": self.scores[self.asked]}


def test_the_best_by_validation_is_kept_and_exported(tmp_path: Path) -> None:
    result, _ = follow(ScriptedStage(make_run(tmp_path, evaluate_every=2, checkpoint_every=2, keep_checkpoints=4)))
    assert (
        result.best == 0.7
        and result.metrics == {"accuracy": 0.7}
        and result.steps == 8
        and result.kept_step == 4
        and result.run_dir == tmp_path
    )
    best, final = load_model(tmp_path / "best"), load_model(tmp_path)
    assert best.extra["step"] == final.extra["step"] == 4
    at_4 = load_model(tmp_path / "checkpoints" / "step-00000004").tensors
    for name, value in best.tensors.items():
        assert torch.equal(value, at_4[name]) and torch.equal(final.tensors[name], value.bfloat16())
    assert final.tokenizer is not None and final.components == ("thinker",)
    assert json.loads((tmp_path / "run.json").read_text())["train"]["steps"] == 8


def test_without_validation_the_last_weights_are_exported(tmp_path: Path) -> None:
    result, _ = follow(ToyStage(make_run(tmp_path), n_validation=0))
    assert result.best is None and not (tmp_path / "best").exists()
    assert torch.equal(load_model(tmp_path).tensors["thinker.head.weight"], last_state(tmp_path)["thinker.head.weight"].bfloat16())


def test_a_crash_in_evaluation_costs_nothing(tmp_path: Path) -> None:
    class Crashes(ToyStage):
        def evaluate(self, model: Any, batches: Iterable[ToyBatch]) -> dict[str, float]:
            raise DataError("validation clip: unreadable")

    with pytest.raises(DataError, match="validation clip"):
        follow(Crashes(make_run(tmp_path, evaluate_every=3, checkpoint_every=100)))
    _, events = follow(ToyStage(make_run(tmp_path, evaluate_every=3, checkpoint_every=100)))
    assert [(e.kind, e.step) for e in events[:3]] == [("resume", 3), ("evaluate", 3), ("update", 4)]


def test_frozen_parts_stay_in_evaluation_mode(tmp_path: Path) -> None:
    class Modes(ToyStage):
        def loss(self, model: Any, batch: ToyBatch, context: Context) -> dict[str, Term]:
            if context.totals:
                assert model.training and model.blocks[0].dropout.training and not model.frozen.training
            return super().loss(model, batch, context)

    follow(Modes(make_run(tmp_path, evaluate_every=2)))


def test_parts_of_other_objectives_stay_in_training_mode(tmp_path: Path) -> None:
    class Modes(TwoObjectiveStage):
        def loss(self, model: Any, batch: ToyBatch, context: Context) -> dict[str, Term]:
            assert not context.totals or (model.head.training and model.blocks[0].training)
            return super().loss(model, batch, context)

    follow(Modes(make_run(tmp_path, evaluate_every=2)))


# --- settings and resuming


def test_counts_that_contradict_the_loss_are_refused(tmp_path: Path) -> None:
    class Miscounting(ToyStage):
        def counts(self, batch: ToyBatch) -> dict[str, int]:
            return {"square": batch.keep.numel()}

    with pytest.raises(AssertionError, match=r"term 'square' has \d+ targets, and counts\(\) said 32"):
        follow(Miscounting(make_run(tmp_path)))


def test_a_finished_run_is_not_run_again_and_more_steps_continue_it(tmp_path: Path) -> None:
    first, _ = follow(ToyStage(make_run(tmp_path)))
    again, events = follow(ToyStage(make_run(tmp_path)))
    assert [event.kind for event in events] == ["resume", "end"] and again.best == first.best and again.metrics == first.metrics
    _, events = follow(ToyStage(make_run(tmp_path, steps=10)))
    assert events[0].values["changed"] == ["train.steps 8 → 10"]
    assert [event.step for event in events if event.kind == "update"] == [9, 10]


def test_resume_off_starts_anew(tmp_path: Path) -> None:
    follow(ToyStage(make_run(tmp_path)))
    _, events = follow(ToyStage(make_run(tmp_path)), resume=False)
    assert len([event for event in events if event.kind == "update"]) == 8


def test_a_checkpoint_of_another_model_is_refused(tmp_path: Path) -> None:
    class Wider(ToyStage):
        def build_model(self) -> Any:
            model = super().build_model()
            model.more = torch.nn.Linear(2, 2)
            return model

    follow(ToyStage(make_run(tmp_path)))
    with pytest.raises(CheckpointError, match=r"step-00000008.*more\.weight \(2, 2\) is missing"):
        follow(Wider(make_run(tmp_path, steps=10)))


def test_what_cannot_work_is_an_error_before_the_first_step(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no training samples"):
        follow(ToyStage(make_run(tmp_path), n_train=0))
    with pytest.raises(ConfigError, match="gradient_checkpointing"):
        follow(ToyStage(make_run(tmp_path, gradient_checkpointing=True)))
    with pytest.raises(ConfigError, match="cpu or cuda"):
        train(ToyStage(make_run(tmp_path)), device="meta")


def test_prepare_sees_the_first_global_batch_once(tmp_path: Path) -> None:
    seen: list[int] = []

    class Prepared(ToyStage):
        def prepare(self, model: Any, batch: ToyBatch) -> None:
            seen.append(len(batch.x))

    follow(Prepared(make_run(tmp_path, micro_batch_size=2)))
    follow(Prepared(make_run(tmp_path, micro_batch_size=2, steps=9)))
    assert seen == [8]


def test_the_memory_estimate_leaves_no_trace(tmp_path: Path) -> None:
    class Counting(ToyStage):
        def build_model(self) -> Any:
            model = ToyModel()
            model.register_forward_pre_hook(lambda *_: None)
            return model

        def loss(self, model: Any, batch: ToyBatch, context: Context) -> dict[str, Term]:
            if model.training:
                model.updates += 1000
            return super().loss(model, batch, context)

    follow(Counting(make_run(tmp_path, steps=1), n_validation=0))
    assert last_state(tmp_path)["thinker.updates"] == 1001


def test_data_sets_need_no_validation_part(tmp_path: Path) -> None:
    class NoValidation(ToyStage):
        def build_data(self) -> Splits[ToyBatch]:
            return Splits(ToyData(3), [], collate)

    result, _ = follow(NoValidation(make_run(tmp_path)))  # three examples, batches of eight
    assert result.steps == 8 and result.metrics == {} and result.tokens_per_s > 0 and result.peak_memory_bytes > 0


def test_progress_is_told_in_plain_lines_where_there_is_no_terminal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    follow(ToyStage(make_run(tmp_path, log_every=3)))
    out, errors = capsys.readouterr()
    lines = [line for line in errors.splitlines() if "items/s" in line and "left" in line]
    assert out == "" and [line.split()[2] for line in lines] == ["3/8", "6/8", "8/8"]
    assert "toy: memory: about" in errors and "toy: step 4: loss" in errors and "peak memory" in errors


def test_running_out_of_memory_says_what_to_lower(tmp_path: Path) -> None:
    class Huge(ToyStage):
        def loss(self, model: Any, batch: ToyBatch, context: Context) -> dict[str, Term]:
            raise torch.OutOfMemoryError

    with pytest.raises(ConfigError, match=r"cpu is out of memory: lower train\.micro_batch_size \(now 8\)"):
        follow(Huge(make_run(tmp_path)))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("precision", ["auto", "float16"])
def test_a_gpu_trains_and_resumes_like_the_cpu(tmp_path: Path, precision: str) -> None:
    exact = run_toy({"out_dir": str(tmp_path / "cpu"), "train": {"steps": 4}})
    run = make_run(tmp_path / "gpu", steps=4, checkpoint_every=2, precision="float32")
    train(ToyStage(run), device="cuda")
    events: list[Event] = []
    train(ToyStage(make_run(tmp_path / "gpu", steps=8, precision=precision)), device="cuda", on_event=events.append)
    assert [event.step for event in events if event.kind == "update"] == [5, 6, 7, 8]
    weights = load_file(tmp_path / "gpu" / "checkpoints" / "step-00000004" / "model.safetensors")
    expected = load_file(tmp_path / "cpu" / "checkpoints" / "step-00000004" / "model.safetensors")
    assert exact and all(torch.allclose(weights[name], value, rtol=1e-3, atol=1e-4) for name, value in expected.items())
