"""Checkpoints come back as they were written, or not at all."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from omni import checkpoint
from omni.checkpoint import CONFIG, find_checkpoint, load_into, load_model, save_model, shipped, write_model
from omni.config import load_run, preset
from omni.errors import CheckpointError, ConfigError
from omni.stages import STAGES

NANO = preset("nano")


def tensors(scale: float = 1.0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    weight = scale * torch.randn(8, 4, generator=generator)
    return {
        "thinker.tok_emb.weight": weight,
        "thinker.lm_head.weight": weight,
        "thinker.norm": torch.arange(4.0),
        "codec.n": torch.tensor([1, 2]),
    }


def save(folder: Path, scale: float = 1.0, **options: object) -> None:
    save_model(folder, tensors(scale), NANO, ["thinker", "codec"], b"pieces", **options)  # type: ignore[arg-type]


def test_a_model_comes_back_as_it_was_saved(tmp_path: Path) -> None:
    save(tmp_path / "m", extra={"stage": "text"})
    saved = load_model(tmp_path / "m")
    assert saved.config == NANO and saved.components == ("thinker", "codec") and saved.extra == {"stage": "text"}
    assert saved.tokenizer is not None and saved.tokenizer.read_bytes() == b"pieces"
    assert saved.tensors.keys() == tensors().keys()
    for name, value in tensors().items():
        assert torch.equal(saved.tensors[name], value) and saved.tensors[name].dtype == value.dtype


def test_tied_tensors_are_saved_once_and_loaded_tied(tmp_path: Path) -> None:
    save(tmp_path / "m")
    assert len(load_file(tmp_path / "m" / "model.safetensors")) == 3
    saved = load_model(tmp_path / "m").tensors
    assert saved["thinker.tok_emb.weight"].data_ptr() == saved["thinker.lm_head.weight"].data_ptr()


def test_floating_point_alone_is_cast(tmp_path: Path) -> None:
    save(tmp_path / "m", dtype=torch.bfloat16)
    saved = load_model(tmp_path / "m").tensors
    assert saved["thinker.norm"].dtype == torch.bfloat16 and saved["codec.n"].dtype == torch.int64


def test_parts_stay_under_their_size_and_are_indexed(tmp_path: Path) -> None:
    many = {f"thinker.{i}": torch.full((100,), float(i)) for i in range(10)}
    save_model(tmp_path, many, NANO, ["thinker"], None, part_bytes=1000)
    parts = sorted(tmp_path.glob("model-*.safetensors"))
    assert [p.name for p in parts] == [f"model-{i:05d}-of-00005.safetensors" for i in range(1, 6)]
    assert all(p.stat().st_size < 1000 + 300 for p in parts)
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == 4000
    assert all(name in load_file(tmp_path / file) for name, file in index["weight_map"].items())
    loaded = load_model(tmp_path)
    assert loaded.tokenizer is None and all(torch.equal(loaded.tensors[name], value) for name, value in many.items())


def test_saving_over_a_model_replaces_all_of_it(tmp_path: Path) -> None:
    save_model(tmp_path, {f"thinker.{i}": torch.zeros(100) for i in range(4)}, NANO, ["thinker"], b"old", part_bytes=1000)
    (tmp_path / "notes.txt").write_text("mine")
    save_model(tmp_path, {"codec.x": torch.ones(1)}, NANO, ["codec"], None)
    saved = load_model(tmp_path)
    assert list(saved.tensors) == ["codec.x"] and saved.tokenizer is None
    assert sorted(p.name for p in tmp_path.iterdir() if p.suffix != ".model") == [CONFIG, "model.safetensors", "notes.txt"]


def test_an_error_while_saving_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "m"
    save(folder)

    def full(*_: object, **__: object) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr(checkpoint, "save_file", full)
    for target in (folder, tmp_path / "new"):
        with pytest.raises(CheckpointError, match="No space left"):
            save(target, scale=2.0)
    assert torch.equal(load_model(folder).tensors["thinker.tok_emb.weight"], tensors()["thinker.tok_emb.weight"])
    assert [p.name for p in tmp_path.iterdir()] == ["m"] and not list(folder.glob(".*"))


def test_a_reader_completes_a_move_that_was_cut_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(tmp_path)
    replace, calls = os.replace, 0

    def cut_off(source: Path, target: Path) -> None:
        nonlocal calls
        calls += Path(source).parent.name == checkpoint.INCOMING
        if calls == 2:
            raise KeyboardInterrupt
        replace(source, target)

    monkeypatch.setattr(os, "replace", cut_off)
    with pytest.raises(KeyboardInterrupt):
        save(tmp_path, scale=2.0)
    monkeypatch.undo()
    assert torch.equal(load_model(tmp_path).tensors["thinker.tok_emb.weight"], tensors(2.0)["thinker.tok_emb.weight"])
    assert not list(tmp_path.glob(".*"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda f: (f / "model.safetensors").unlink(), "model.safetensors: no such file"),
        (lambda f: os.truncate(f / "model.safetensors", 200), "model.safetensors: truncated"),
        (lambda f: (f / "tokenizer.model").unlink(), "tokenizer.model: no such file"),
        (lambda f: (f / CONFIG).unlink(), "config.json: no such file"),
        (lambda f: os.truncate(f / CONFIG, 30), "config.json: cannot be read"),
        (lambda f: (f / CONFIG).write_text('{"architectures": ["Other"]}'), "not the config.json of a μOmni checkpoint"),
        (lambda f: (f / CONFIG).write_text((f / CONFIG).read_text().replace('"format": 1', '"format": 9')), "format 9"),
    ],
)
def test_damage_is_named(tmp_path: Path, change: object, message: str) -> None:
    save(tmp_path)
    change(tmp_path)  # type: ignore[operator]
    with pytest.raises(CheckpointError, match=message):
        load_model(tmp_path)


def test_an_unknown_setting_in_a_checkpoint_is_named(tmp_path: Path) -> None:
    save(tmp_path)
    (tmp_path / CONFIG).write_text((tmp_path / CONFIG).read_text().replace('"d_model"', '"d_modle"', 1))
    with pytest.raises(ConfigError, match=r"config\.json.*d_modle"):
        load_model(tmp_path)


def test_load_into_refuses_what_does_not_fit_and_changes_nothing() -> None:
    module = nn.Linear(3, 2)
    before = module.weight.detach().clone()
    good = {"weight": torch.zeros(2, 3), "bias": torch.zeros(2)}
    cases = [
        ({"weight": good["weight"]}, r"x/model: tensor bias \(2,\) is missing"),
        (good | {"more": torch.zeros(7)}, r"x/model: tensor more \(7,\) is not one of"),
        (good | {"weight": torch.zeros(3, 2)}, r"x/model: tensor weight has shape \(3, 2\), and the model needs \(2, 3\)"),
    ]
    for wrong, message in cases:
        with pytest.raises(CheckpointError, match=message):
            load_into(module, wrong, "x/model")
    assert torch.equal(module.weight, before)
    load_into(module, {name: t.bfloat16() for name, t in good.items()}, "x/model")
    assert module.weight.dtype == torch.float32 and not module.weight.any()


def test_find_checkpoint_prefers_the_model_itself_then_the_best_then_the_latest(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no such folder"):
        find_checkpoint(tmp_path / "absent")
    with pytest.raises(CheckpointError, match="neither"):
        find_checkpoint(tmp_path)
    for step in (500, 1000):
        save(checkpoint.step_folder(tmp_path, step))
    assert find_checkpoint(tmp_path).name == "step-00001000" and find_checkpoint(str(tmp_path)) == checkpoint.latest(tmp_path)
    save(tmp_path / "best")
    assert find_checkpoint(tmp_path) == tmp_path / "best"
    save(tmp_path)
    assert find_checkpoint(tmp_path) == tmp_path


def test_training_starts_from_no_other_model_than_it_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The documents' names stand for the released model only where a model is used."""
    save(tmp_path / "checkpoints/omni-tiny")
    monkeypatch.chdir(tmp_path)
    for name, stage in {"thinker_tiny": "text", "omni_sft_tiny": "sft"}.items():
        with pytest.raises(CheckpointError, match=f"checkpoints/{name}: no such folder; train stage {stage}, which makes it, or name"):
            find_checkpoint(f"checkpoints/{name}")
    run = load_run(Path(__file__).parents[1] / "configs/vision_tiny.json")
    with pytest.raises(CheckpointError, match="checkpoints/thinker_tiny: no such folder; train stage text"):
        STAGES[run.stage](run)


def test_what_is_shipped_is_found_wherever_one_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setattr(checkpoint, "REPOSITORY", tmp_path / "repository")
    assert shipped("clips") == Path("clips")  # nowhere
    (tmp_path / "repository/clips").mkdir(parents=True)
    assert shipped("clips") == tmp_path / "repository/clips"
    Path("clips").mkdir()
    assert shipped("clips") == Path("clips")


def test_prune_keeps_the_newest_and_clean_removes_leftovers(tmp_path: Path) -> None:
    for step in (5, 10, 15):
        save(checkpoint.step_folder(tmp_path, step))
    checkpoint.prune(tmp_path, keep=2)
    assert sorted(p.name for p in (tmp_path / "checkpoints").iterdir()) == ["step-00000010", "step-00000015"]
    (tmp_path / "checkpoints" / ".step-00000020.tmp-123").mkdir()
    (tmp_path / ".run.json.tmp-123").write_text("half")
    checkpoint.clean(tmp_path)
    assert not list(tmp_path.rglob(".*"))


def test_a_training_state_comes_back(tmp_path: Path) -> None:
    state = {"rng.torch": torch.get_rng_state(), "optimizer.w.step": torch.tensor(3.0)}
    with checkpoint.atomic_folder(tmp_path / "step") as folder:
        write_model(folder, tensors(), NANO, ["thinker"], None)
        checkpoint.save_training_state(folder, state, {"step": 3, "best": None, "rate": 0.1})
    checkpoint.update_training_state(tmp_path / "step", {"best": 0.1 + 0.2})
    loaded, values = checkpoint.load_training_state(tmp_path / "step")
    assert all(torch.equal(loaded[name], value) for name, value in state.items())
    assert values == {"step": 3, "best": 0.1 + 0.2, "rate": 0.1}
