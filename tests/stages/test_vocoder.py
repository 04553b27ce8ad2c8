"""Stage vocoder: it learns a clip, two sides play and resume bit for bit, and log-mels may go through the codec first."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from omni.checkpoint import load_model
from omni.config import RunConfig
from omni.errors import CheckpointError, ConfigError
from omni.omni_model import OmniModel
from omni.stages import STAGES
from omni.stages.vocoder import VocoderStage
from omni.training.stage import Context
from omni.training.trainer import Event, train
from omni.vocoder import GriffinLim

Run = Callable[..., RunConfig]
SMALL = {"vocoder": {"d_model": 32, "n_blocks": 2, "d_ff": 48, "discriminator_channels": 2}}


def make_stage(nano_run: Run, *, init_from: tuple[str, ...] = (), data: dict[str, Any] | None = None, **settings: Any) -> VocoderStage:
    run = nano_run("vocoder", "voice", init_from=init_from, model=SMALL, **settings)
    return VocoderStage(run.model_copy(update={"data": run.data.model_copy(update=data or {})}))


def test_it_learns_a_clip(nano_run: Run) -> None:
    torch.manual_seed(0)
    stage = make_stage(nano_run)
    splits, game = stage.build_data(), stage.build_model()
    batch = splits.collate([splits.train[0]])
    optimizer = torch.optim.AdamW(game.vocoder.parameters(), 1e-2)
    distances = []
    for _ in range(60):
        distance = stage.loss(game, batch, Context(step=-1))["spectral"].sum
        optimizer.zero_grad()
        distance.backward()
        optimizer.step()
        distances.append(distance.item())
    assert distances[-1] < 0.8 * distances[0]


def bits(run_dir: Path) -> dict[str, bytes]:
    """Every tensor file of a run, and the values beside its training states, without the clock."""
    files = {str(path.relative_to(run_dir)): path.read_bytes() for path in run_dir.rglob("*.safetensors")}
    for path in run_dir.glob("checkpoints/*/training_state.json"):
        values = json.loads(path.read_text())
        del values["progress"]["seconds"], values["run"]["out_dir"]
        files[str(path.relative_to(run_dir))] = json.dumps(values).encode()
    return files


def test_a_run_that_was_killed_ends_with_the_same_bits_on_both_sides(nano_run: Run, tmp_path: Path) -> None:
    """Killed before the discriminators began to learn, and again after."""
    settings = {"steps": 6, "batch_size": 4, "micro_batch_size": 2, "checkpoint_every": 2, "adversarial_after": 3, "evaluate_every": 6}

    def run(folder: str, die_at: int | None = None) -> None:
        def on_event(event: Event) -> None:
            if event.kind == "update" and event.step == die_at:
                raise KeyboardInterrupt

        train(make_stage(nano_run, out=str(tmp_path / folder), **settings), on_event=on_event)

    run("whole")
    for die_at in (3, 5):
        with pytest.raises(KeyboardInterrupt):
            run("killed", die_at)
    run("killed")
    whole = bits(tmp_path / "whole")
    assert whole == bits(tmp_path / "killed")
    state = load_state(tmp_path / "whole")
    assert any(name.startswith("optimizer.discriminators.discriminators.") for name in state)
    assert any(name.startswith("optimizer.vocoder.omni.vocoder.") for name in state)


def load_state(run_dir: Path) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    return load_file(run_dir / "checkpoints" / "step-00000006" / "training_state.safetensors")


def test_the_discriminators_begin_when_they_are_told_to(nano_run: Run, tmp_path: Path) -> None:
    seen: dict[int, dict[str, float]] = {}
    settings = {"steps": 4, "batch_size": 4, "micro_batch_size": 4, "adversarial_after": 2, "learning_rate": 1e-3, "warmup_steps": 0}
    train(
        make_stage(nano_run, out=str(tmp_path), **settings),
        on_event=lambda event: seen.update({event.step: event.values}) if event.kind == "update" else None,
    )
    assert [seen[step]["discriminators/grad_norm"] > 0 for step in (1, 2, 3, 4)] == [False, False, True, True]
    assert ["vocoder/adversarial" in seen[step] for step in (1, 2, 3, 4)] == [False, False, True, True]


def test_the_discriminators_learn_to_tell(nano_run: Run) -> None:
    torch.manual_seed(0)
    stage = make_stage(nano_run)
    splits, game = stage.build_data(), stage.build_model()
    batch = splits.collate([splits.train[i] for i in range(4)])
    optimizer = torch.optim.AdamW(game.discriminators.parameters(), 1e-2)
    losses = []
    for _ in range(80):
        loss = stage.loss(game, batch, Context(objective="discriminators"))["hinge"].sum / 4
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[0] == pytest.approx(2.0, abs=0.2) and losses[-1] < 1.0
    assert all(p.grad is None for p in game.vocoder.parameters())


def test_log_mels_may_go_through_the_codec(nano_run: Run, trained: Callable[[str], str]) -> None:
    stage = make_stage(nano_run, init_from=(trained("codec"),), data={"codec_share": 0.5})
    splits, game = stage.build_data(), stage.build_model()
    through = [splits.train[i].through_codec for i in range(len(splits.train))]
    assert 0 < sum(through) < len(through)
    half = len(splits.validation) // 2
    recorded, rebuilt = splits.validation[0], splits.validation[half]
    assert not recorded.through_codec and rebuilt.through_codec and not torch.equal(recorded.mel, rebuilt.mel)
    batch = splits.collate([splits.validation[i] for i in (0, 1, half)])
    with torch.no_grad():
        metrics = stage.evaluate(game, [batch])
    assert set(metrics) == {"distance", *(p + m for p in ("", "codec_") for m in ("mel", "spectral", "pitch_errors"))}
    assert stage.export(game).components == ("vocoder",)


def test_a_share_for_a_codec_that_is_not_there_is_refused(nano_run: Run) -> None:
    with pytest.raises(CheckpointError, match=r"codec_share 0\.5 needs a trained codec, and none of init_from \(empty\) has one"):
        make_stage(nano_run, data={"codec_share": 0.5})


def test_a_trained_vocoder_is_the_models_unless_another_is_asked_for(trained: Callable[[str], str]) -> None:
    saved = load_model(trained("vocoder"))
    assert OmniModel.from_saved(saved).vocoder_name == OmniModel.from_saved(saved, "neural").vocoder_name == "neural"
    other = OmniModel.from_saved(saved, "griffin-lim")
    assert other.vocoder_name == "griffin-lim" and isinstance(other.vocoder, GriffinLim)
    codec = load_model(trained("codec"))
    assert OmniModel.from_saved(codec).vocoder_name == "griffin-lim"
    with pytest.raises(CheckpointError, match=r"has no neural vocoder \(it holds codec\); use griffin-lim"):
        OmniModel.from_saved(codec, "neural")
    with pytest.raises(ConfigError, match="no vocoder 'wavenet'; known: neural, griffin-lim"):
        OmniModel.from_saved(codec, "wavenet")


def test_it_is_registered() -> None:
    assert STAGES["vocoder"] is VocoderStage
