"""`muomni bench train` counts operations by the stated formula and times the real Trainer."""

from __future__ import annotations

import json

import pytest
import torch

from omni.checkpoint import find_checkpoint, load_model
from omni.cli.app import main
from omni.config import RunConfig, model_config, parse
from omni.stages.benchmark import RandomTextStage, operations_per_token
from omni.training.trainer import train


def test_operations_per_token_are_six_per_matrix_weight_and_attention() -> None:
    block = 256 * (4 + 2 * 2) * 64 + 256 * 256 + 3 * 256 * 1024
    assert operations_per_token(model_config("tiny").thinker) == 6 * (4 * block + 256 * 5_000 + 4 * 256 * 512)


def test_only_the_chosen_experts_count() -> None:
    dense, routed = (model_config("tiny", [f"thinker.n_experts={n}"]).thinker for n in (0, 8))
    router, second_expert = 256 * 8, 3 * 256 * 1024
    assert operations_per_token(routed) - operations_per_token(dense) == 6 * 4 * (router + second_expert)


def test_bench_train_measures(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "train", "--preset", "nano", "--updates", "2", "--batch-size", "4", "--micro-batch-size", "2", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    metrics = result["metrics"]
    assert result["what"] == "train" and result["machine"]["threads"] >= 1
    assert metrics["tokens_per_update"] == 4 * 256
    assert metrics["tokens_per_s"] >= metrics["median_tokens_per_s"] > 0
    assert 0 < metrics["fraction_of_peak"] < 1


def test_a_run_with_muon_resumes_with_the_same_bits(tmp_path) -> None:
    def weights(name: str, *stops: int) -> dict[str, torch.Tensor]:
        for steps in stops:
            settings = {"steps": steps, "batch_size": 2, "micro_batch_size": 2, "optimizer": "muon", "warmup_steps": 0}
            settings |= {"final_learning_rate_fraction": 1.0, "checkpoint_every": 1}
            raw = {"stage": "text", "preset": "nano", "out_dir": str(tmp_path / name), "train": settings}
            train(RandomTextStage(parse(RunConfig, raw, "test")))
        return load_model(find_checkpoint(tmp_path / name)).tensors

    whole, halves = weights("whole", 4), weights("halves", 2, 4)
    assert all(torch.equal(whole[name], halves[name]) for name in whole)
