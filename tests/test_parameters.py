"""The parameter table is computed from the modules, and agrees with the documents'."""

from __future__ import annotations

import json

import pytest
import torch

from omni.cli.app import main
from omni.config import PRESETS, ModelConfig, model_config, preset
from omni.omni_model import OmniModel
from omni.parameters import MEANINGS, ParameterTable, count, parameter_table

DOCUMENTED = {"thinker": 20.32e6, "audio_encoder": 2.05e6, "vision_encoder": 0.914e6, "talker": 2.24e6, "codec": 49e3, "projectors": 82e3}


def table(config: ModelConfig) -> ParameterTable:
    with torch.device("meta"):
        return parameter_table(OmniModel(config))


def test_tiny_32k_is_the_documents_table() -> None:
    counts = table(preset("tiny-32k"))
    assert counts.components["thinker"] == 20_318_464
    assert counts.components["projectors"] == 82_432
    assert counts.components["talker"] == 2_250_624
    assert counts.components["codec"] == 49_344
    for name, documented in DOCUMENTED.items():
        assert counts.components[name] == pytest.approx(documented, rel=0.01), name
    assert counts.total == pytest.approx(25.65e6, rel=0.001)


@pytest.mark.parametrize("name", list(PRESETS))
def test_nothing_is_left_out_and_nothing_counts_twice(name: str) -> None:
    counts = table(preset(name))
    with torch.device("meta"):
        model = OmniModel(preset(name))
    assert counts.grand_total == sum(p.numel() for p in model.parameters())
    assert all(n > 0 for row, n in (counts.components | counts.additions).items() if row != "vocoder")
    assert set(counts.components | counts.additions) == set(MEANINGS)


def test_sizes_of_the_other_presets() -> None:
    assert table(preset("nano")).grand_total < 500_000
    assert table(preset("small")).grand_total == pytest.approx(120e6, rel=0.05)
    assert table(preset("tiny")).total == table(preset("tiny-32k")).total - 2 * 27_000 * 256


def test_tied_embeddings_count_once() -> None:
    apart, tied = (table(model_config("tiny", [f"thinker.tie_embeddings={value}"])) for value in ("false", "true"))
    assert apart.components["thinker"] - tied.components["thinker"] == 5_000 * 256


def test_a_codebook_counts_and_its_statistics_do_not() -> None:
    quantizer = OmniModel(preset("nano"), ["codec"]).codec.rvq.quantizers[0]
    codes, width = 64, 16
    assert count(quantizer) == codes * width + 2 * width * width


def test_params_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["params", "--preset", "tiny-32k", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["preset"] == "tiny-32k"
    assert list(result["components"]) == ["thinker", "vision_encoder", "audio_encoder", "projectors", "talker", "codec", "vocoder"]
    assert result["total"] == sum(result["components"].values())
    assert result["grand_total"] == result["total"] + sum(result["additions"].values())


def test_params_as_a_table(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["params", "--preset", "tiny-32k"]) == 0
    assert "20,318,464" in capsys.readouterr().out
