"""A small random model that speaks, two sentences, a data folder, and a judge that hears what it is told."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from omni.audio import save_audio
from omni.config import ModelConfig
from omni.evaluation import judge
from omni.inference.omni import Omni
from omni.omni_model import OmniModel
from omni.tokenizer import train_tokenizer

SPEAKING = ModelConfig.model_validate(
    {
        "thinker": {"vocab_size": 300, "d_model": 16, "n_layers": 1, "n_heads": 2, "n_kv_heads": 1, "d_ff": 16, "context_length": 128},
        "talker": {
            "d_model": 16,
            "n_layers": 1,
            "n_text_layers": 1,
            "n_heads": 2,
            "n_kv_heads": 1,
            "d_ff": 16,
            "voices": ("kathleen", "joe"),
        },
        "codec": {"n_codebooks": 2, "codebook_size": 16, "latent_size": 8, "hidden_size": 16, "n_blocks": 1},
        "vocoder": {"d_model": 8, "n_blocks": 1, "d_ff": 16, "griffin_lim_rounds": 2},
    }
)


@pytest.fixture(scope="session")
def make_speaker(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Omni]:
    """Makes the model with the components that are named."""
    words = "The old house stood quietly at the edge of town. A cat sat on the stairs, and it looked at them."
    tokenizer = train_tokenizer([words] * 10, 300, tmp_path_factory.mktemp("tokenizer") / "tokenizer.model")

    def make(*components: str) -> Omni:
        torch.manual_seed(0)
        model = OmniModel(SPEAKING, components)
        for p in model.parameters():
            if p.dim() > 1 and p.requires_grad:
                p.data *= 4.0
        return Omni(model, tokenizer, Path("checkpoint"))

    return make


@pytest.fixture
def speaker(make_speaker: Callable[..., Omni]) -> Omni:
    """Has all that speaking takes."""
    return make_speaker("thinker", "talker", "codec", "vocoder")


def murmur(seconds: float, seed: int = 0) -> np.ndarray:
    """Noise in syllables, which STOI and PESQ take for speech."""
    n = int(seconds * 16_000)
    beat = np.sin(np.arange(n) / 16_000 * 2 * np.pi * 4) ** 2
    return (np.random.default_rng(seed).standard_normal(n) * beat * 0.1).astype(np.float32)


@pytest.fixture(scope="session")
def sounds(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Three files of one to two seconds."""
    folder = tmp_path_factory.mktemp("sounds")
    for i in range(3):
        save_audio(folder / f"{i}.wav", murmur(1.0 + i / 2, seed=i), 16_000)
    return [folder / f"{i}.wav" for i in range(3)]


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of what can be made again."""
    monkeypatch.setenv("MUOMNI_RUNS", str(tmp_path / "runs"))
    return tmp_path / "runs"


@pytest.fixture
def told_judge() -> Callable[[Sequence[str]], SimpleNamespace]:
    """Makes a judge that hears these texts, over and over."""

    def make(texts: Sequence[str]) -> SimpleNamespace:
        return SimpleNamespace(name=judge.WHISPER_BASE, hear=lambda sounds: [texts[i % len(texts)] for i in range(len(sounds))])

    return make
