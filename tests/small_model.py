"""A small random model that has everything, its tokenizer, and both as a checkpoint on disk: fixtures for whoever imports them."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from omni.audio import save_audio
from omni.checkpoint import save_model
from omni.config import ModelConfig
from omni.inference.omni import Omni
from omni.omni_model import OmniModel
from omni.tokenizer import BPETokenizer, train_tokenizer

torch.set_num_threads(1)

CONFIG = ModelConfig.model_validate(
    {
        "thinker": {"vocab_size": 330, "d_model": 32, "n_layers": 2, "n_heads": 4, "n_kv_heads": 2, "d_ff": 48, "context_length": 128},
        "vision_encoder": {"image_size": 32, "d_model": 16, "n_layers": 1, "n_heads": 2, "d_ff": 16, "image_tokens": "grid"},
        "audio_encoder": {"conv_channels": 4, "d_model": 16, "n_layers": 1, "n_heads": 2, "d_ff": 16},
        "talker": {
            "d_model": 16,
            "n_layers": 2,
            "n_heads": 2,
            "n_kv_heads": 1,
            "d_ff": 24,
            "context_length": 256,
            "voices": ("ada", "bob"),
        },
        "codec": {"n_codebooks": 2, "codebook_size": 16, "latent_size": 8, "hidden_size": 16, "n_blocks": 1},
        "vocoder": {"griffin_lim_rounds": 2, "d_model": 16, "n_blocks": 1, "d_ff": 16},
    }
)
WORDS = "The circle is red. What colour is the big blue square? There are two small stars, and one thing. Yes, no: hello!"


@pytest.fixture(scope="session")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> BPETokenizer:
    return train_tokenizer([WORDS] * 20, CONFIG.thinker.vocab_size, tmp_path_factory.mktemp("tokenizer") / "tokenizer.model")


def make_omni(tokenizer: BPETokenizer, config: ModelConfig = CONFIG) -> Omni:
    """Random, with weights large enough that every input matters; the Thinker's vocabulary is larger than the tokenizer's."""
    torch.manual_seed(0)
    model = OmniModel(config).eval()
    for p in model.parameters():
        if p.dim() > 1 and p.requires_grad:
            p.data *= 4.0
    model.talker.duration.weight.data /= 16.0  # a character lasts about as long as usual
    for p in model.talker.code_emb.parameters():
        p.data /= 8.0  # these are the output heads too: no code is certain
    return Omni(model, tokenizer)


@pytest.fixture(scope="session")
def omni(tokenizer: BPETokenizer) -> Omni:
    return make_omni(tokenizer)


@pytest.fixture
def own_omni(tokenizer: BPETokenizer) -> Omni:
    """One that the test may change."""
    return make_omni(tokenizer)


@pytest.fixture(scope="session")
def checkpoint(omni: Omni, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(omni, tmp_path_factory.mktemp("checkpoint") / "model")


def save(omni: Omni, folder: Path) -> Path:
    """The folder of a model that is saved whole."""
    save_model(folder, omni.model.tensors(), omni.model.config, omni.model.components, omni.tokenizer.serialized)
    return folder


def noise(seconds: float, seed: int = 0) -> np.ndarray:
    return (np.random.default_rng(seed).standard_normal(int(seconds * 16_000)) * 0.1).astype(np.float32)


@pytest.fixture(scope="session")
def media(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """a.png, b.png, short.wav (0.7 s) and long.wav (5 s, over the audio budget of 2.56 s)."""
    folder = tmp_path_factory.mktemp("media")
    for name, colour in (("a", "red"), ("b", "blue")):
        picture = Image.new("RGB", (40, 30), colour)
        picture.paste("white", (5, 5, 20, 15))
        picture.save(folder / f"{name}.png")
    save_audio(folder / "short.wav", noise(0.7), 16_000)
    save_audio(folder / "long.wav", noise(5.0, seed=1), 16_000)
    return folder
