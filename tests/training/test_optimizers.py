"""What decays, how the rate moves, and who trains what."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from toy_stage import ToyModel, TwoObjectiveStage, make_run

from omni.config import TrainConfig, preset
from omni.errors import ConfigError
from omni.thinker import ThinkerLM
from omni.training.optimizers import Muon, adamw, check_objectives, learning_rate, make_optimizers
from omni.training.stage import Objective


def test_matrices_decay_and_nothing_else_does() -> None:
    model = nn.ModuleDict({"embedding": nn.Embedding(5, 4), "tied": nn.Linear(4, 5), "linear": nn.Linear(4, 4), "norm": nn.LayerNorm(4)})
    model["conv"] = nn.Conv2d(1, 2, 3)
    model["tied"].weight = model["embedding"].weight  # type: ignore[assignment]
    optimizer = adamw(model, list(model.parameters()), TrainConfig(weight_decay=0.1))
    names = {id(p): name for name, p in model.named_parameters()}
    decaying = {names[id(p)] for group in optimizer.param_groups if group["weight_decay"] for p in group["params"]}
    assert decaying == {"linear.weight", "conv.weight"}
    assert sum(len(group["params"]) for group in optimizer.param_groups) == len(names)


def test_the_rate_warms_up_then_falls_as_a_cosine() -> None:
    config = TrainConfig(steps=110, warmup_steps=10, learning_rate=1.0, final_learning_rate_fraction=0.1)
    rates = [learning_rate(config, step) for step in range(111)]
    assert rates[:10] == pytest.approx([0.1 * (i + 1) for i in range(10)])
    assert rates[10] == pytest.approx(1.0) and rates[60] == pytest.approx(0.55) and rates[110] == pytest.approx(0.1)
    assert rates[10:] == sorted(rates[10:], reverse=True)


def test_every_trained_parameter_is_in_exactly_one_objective() -> None:
    model = ToyModel()
    stage = TwoObjectiveStage(make_run("unused"))
    blocks, head = stage.objectives(model)
    check_objectives(model, [blocks, head])
    with pytest.raises(AssertionError, match=r"in no objective: \['head.weight'\]"):
        check_objectives(model, [blocks])
    with pytest.raises(AssertionError, match=r"more than one objective: \['head.weight'\]"):
        check_objectives(model, [Objective("both", blocks.parameters + head.parameters), head])
    with pytest.raises(AssertionError, match="frozen"):
        check_objectives(model, [blocks, Objective("head", head.parameters + list(model.frozen.parameters()))])
    with pytest.raises(ConfigError, match="nothing to train"):
        check_objectives(model.requires_grad_(False), [])


def test_adamw_with_decay_equals_its_formula() -> None:
    model = nn.Linear(2, 1, bias=False)
    before, gradient = model.weight.detach().clone(), torch.tensor([[0.5, -2.0]])
    config = TrainConfig(learning_rate=0.1, weight_decay=0.3)
    model.weight.grad = gradient
    adamw(model, [model.weight], config).step()
    torch.testing.assert_close(model.weight.detach(), before * (1 - 0.1 * 0.3) - 0.1 * gradient.sign(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_every_parameter_is_updated_by_exactly_one_optimizer(optimizer) -> None:
    model = ThinkerLM(preset("nano").thinker)
    optimizers = make_optimizers(model, Objective("all", list(model.parameters())), TrainConfig(optimizer=optimizer))
    held = [id(p) for o in optimizers for group in o.param_groups for p in group["params"]]
    assert len(held) == len(set(held)) and set(held) == {id(p) for p in model.parameters()}
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    model(torch.randint(0, 480, (2, 16))).float().logsumexp(-1).sum().backward()
    for o in optimizers:
        o.step()
    assert not [name for name, p in model.named_parameters() if torch.equal(p, before[name])]


def test_muon_takes_the_matrices_of_the_blocks_alone() -> None:
    model = ThinkerLM(preset("nano").thinker)
    names = {id(p): name for name, p in model.named_parameters()}
    _, matrices = make_optimizers(model, Objective("all", list(model.parameters())), TrainConfig(optimizer="muon"))
    taken = {names[id(p)] for group in matrices.param_groups for p in group["params"]}
    assert taken == {name for name, p in model.named_parameters() if ".blocks." in name and p.ndim == 2}


def test_a_step_of_muon_is_an_orthogonal_matrix_of_the_size_of_adamws() -> None:
    torch.manual_seed(0)
    weight = nn.Parameter(torch.zeros(64, 32))
    weight.grad = torch.randn(64, 32)
    Muon([weight], TrainConfig(learning_rate=0.1, weight_decay=0.0)).step()
    singular = torch.linalg.svdvals(weight.detach()) / (0.1 * 0.2 * 64**0.5)
    assert singular.min() > 0.6 and singular.max() < 1.3
    assert 0.5 < weight.detach().square().mean().sqrt() / (0.1 * 0.2) < 1.5


@pytest.mark.parametrize("shape", [(48, 32), (32, 48), (32, 32)])
def test_muon_steps_alike_with_and_without_bfloat16(shape, monkeypatch) -> None:
    def stepped(native: bool, dtype: torch.dtype = torch.float32) -> tuple[torch.Tensor, dict]:
        monkeypatch.setattr("omni.training.optimizers.computes_bfloat16", lambda device: native)
        torch.manual_seed(0)
        weight, unused = nn.Parameter(torch.randn(shape).to(dtype)), nn.Parameter(torch.ones(2, 2))
        optimizer = Muon([weight, unused], TrainConfig(learning_rate=0.1, weight_decay=0.1))
        for _ in range(3):
            weight.grad = torch.randn(shape).to(dtype)
            optimizer.step()
        assert unused.eq(1).all()
        return weight.detach(), optimizer.state_dict()

    (torchs, state), (ours, same) = stepped(native=True), stepped(native=False)
    torch.testing.assert_close(ours, torchs, atol=3e-3, rtol=0)
    assert same["param_groups"] == state["param_groups"]
    torch.testing.assert_close(same["state"], state["state"])  # a run may continue on another machine
    torch.testing.assert_close(ours, stepped(native=False, dtype=torch.float64)[0].float(), atol=1e-5, rtol=0)  # nothing was in bfloat16


def test_muon_refuses_sharded_matrices() -> None:
    model = ThinkerLM(preset("nano").thinker)
    with pytest.raises(ConfigError, match="whole matrices"):
        make_optimizers(model, Objective("all", list(model.parameters())), TrainConfig(optimizer="muon", parallel="fsdp"))
