"""The plain GPT, the baseline of stage A: causal, as large as the Thinker, and trained by the same Trainer on the same data."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from omni.config import PRESETS, RunConfig
from omni.errors import CheckpointError
from omni.parameters import count
from omni.stages import STAGES
from omni.stages.plain_gpt import PlainGPT, load_plain_gpt
from omni.thinker import ThinkerLM
from omni.training.trainer import Event, train

Run = Callable[..., RunConfig]


@pytest.mark.parametrize("preset", PRESETS)
def test_it_has_the_thinkers_parameter_count(preset: str) -> None:
    config = PRESETS[preset].thinker
    with torch.device("meta"):
        assert count(PlainGPT(config)) == pytest.approx(count(ThinkerLM(config)), rel=0.01)


@torch.no_grad()
def test_a_later_token_changes_nothing_before_it() -> None:
    model = PlainGPT(PRESETS["nano"].thinker).eval()
    ids = torch.randint(0, 480, (2, 40), generator=torch.Generator().manual_seed(0))
    other = ids.clone()
    other[:, 25] = (other[:, 25] + 1) % 480
    before, after = model(ids), model(other)
    assert torch.equal(before[:, :25], after[:, :25])
    assert not torch.allclose(before[:, 25:], after[:, 25:])


@torch.no_grad()
def test_the_same_token_at_another_place_is_something_else() -> None:
    logits = PlainGPT(PRESETS["nano"].thinker).eval()(torch.full((1, 4), 7))
    assert not torch.allclose(logits[0, 0], logits[0, 3], atol=1e-4)


def test_it_trains_resumes_and_comes_back_from_disk(nano_run: Run, trained: Callable[[str], str], tmp_path: Path) -> None:
    def run(steps: int, folder: Path) -> RunConfig:
        settings = {"steps": steps, "warmup_steps": 1, "final_learning_rate_fraction": 1.0, "learning_rate": 5e-3, "checkpoint_every": 6}
        return nano_run("plain-gpt", "text", init_from=(trained("text"),), out=str(folder), **settings)

    losses: list[float] = []

    def note(event: Event) -> None:
        if event.kind == "update":
            losses.append(event.values["loss"])

    whole = train(STAGES["plain-gpt"](run(12, tmp_path / "whole")), on_event=note)
    assert losses[-1] < losses[0] - 1
    train(STAGES["plain-gpt"](run(6, tmp_path / "parts")))
    resumed = train(STAGES["plain-gpt"](run(12, tmp_path / "parts")))
    assert resumed.metrics == whole.metrics
    saved, again = (load_plain_gpt(tmp_path / name)[0].state_dict() for name in ("whole", "parts"))
    assert all(torch.equal(saved[name], again[name]) for name in saved)
    assert (tmp_path / "whole" / "tokenizer.model").read_bytes() == (Path(trained("text")) / "tokenizer.model").read_bytes()


def test_a_thinker_is_no_plain_gpt(trained: Callable[[str], str]) -> None:
    with pytest.raises(CheckpointError, match="holds thinker, no plain_gpt"):
        load_plain_gpt(trained("text"))


def test_a_run_that_is_not_finished_is_no_baseline(tmp_path: Path) -> None:
    (tmp_path / "checkpoints/step-00000100").mkdir(parents=True)
    with pytest.raises(CheckpointError, match="training is not finished"):
        load_plain_gpt(tmp_path)
