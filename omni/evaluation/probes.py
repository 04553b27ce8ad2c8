"""Linear probes (Alain & Bengio 2016): what a linear classifier reads from the frozen vision encoder about scenes of several things.

    colour, shape        which of the 8 colours (5 shapes) are there: a yes or no for each, on scenes of two to six things
    leftmost_colour, …   of the thing furthest to the left, by a clear margin: 8 (5) ways, on the same scenes
    count                how many things: 6 ways, on scenes of one to six
    position             in which quarter of the picture is the only thing of a colour: 4 ways, a classifier a colour, on scenes of two to
                         six; a colour that is absent, shared, or too near the middle is not asked about

Each is read from the CLS vector ("cls"), from the mean of all patches ("mean") and from the patches averaged over a grid of 7 x 7
("grid"); "chosen" is what the held-back training scenes chose of the three. Accuracy is over all questions; `balanced` is the mean recall of every
class of every question (the majority answer scores 1 / classes); `exact` demands all answers about a scene.

N scenes  F features  Q questions  K classes"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from omni.data.worlds.questions import MARGIN, PLACES, place_of
from omni.data.worlds.scenes import COLOURS, SHAPES, Scene, random_scene, render
from omni.evaluation.metrics import ratio_interval
from omni.image import to_pixels
from omni.inference.omni import Omni
from omni.vision_encoder import ViTTiny

TRAINING, TESTS = 4_000, 1_000
GRID = 7
MOST_THINGS = 6
SEED = "scenes of the probes"  # no training draws from it
PENALTIES = (1e-6, 1e-5, 1e-4)
HELD_BACK = 5  # one of so many training scenes chooses the penalty
STEPS = 60
BATCH = 32
UNASKED = -1

Target = Callable[[Scene], list[int]]


def _presence(names: Sequence[str], attribute: str) -> Target:
    return lambda scene: [int(any(getattr(t, attribute) == name for t in scene.things)) for name in names]


def _leftmost(names: Sequence[str], attribute: str) -> Target:
    def target(scene: Scene) -> list[int]:
        first, second = sorted(scene.things, key=lambda t: t.x)[:2]
        return [names.index(getattr(first, attribute)) if second.x - first.x >= MARGIN else UNASKED]

    return target


def _quarters(scene: Scene) -> list[int]:
    def quarter(colour: str) -> int:
        alike = [t for t in scene.things if t.colour == colour]
        place = place_of(alike[0]) if len(alike) == 1 else None
        return UNASKED if place is None else PLACES.index(place)

    return [quarter(colour) for colour in COLOURS]


@dataclass(frozen=True)
class Probe:
    """Q questions of K classes about a scene of at least `fewest` things; `target` gives Q classes, UNASKED where there is no answer."""

    n_classes: int
    fewest: int
    target: Target


PROBES = {
    "colour": Probe(2, 2, _presence(tuple(COLOURS), "colour")),
    "shape": Probe(2, 2, _presence(SHAPES, "shape")),
    "leftmost_colour": Probe(len(COLOURS), 2, _leftmost(tuple(COLOURS), "colour")),
    "leftmost_shape": Probe(len(SHAPES), 2, _leftmost(SHAPES, "shape")),
    "count": Probe(MOST_THINGS, 1, lambda scene: [len(scene.things) - 1]),
    "position": Probe(len(PLACES), 2, _quarters),
}


def coarse(encoder: ViTTiny, grid: Tensor) -> Tensor:
    """Patch vectors (N,P,d) averaged over squares to (N, GRID², d), or as they are where these do not fit."""
    side = encoder.config.grid_size
    if side % GRID:
        return grid
    square = grid.transpose(1, 2).unflatten(2, (side, side))  # (N,d,side,side)
    return F.avg_pool2d(square, side // GRID).flatten(2).transpose(1, 2)


@torch.inference_mode()
def features(encoder: ViTTiny, scenes: Sequence[Scene]) -> dict[str, Tensor]:
    """{"cls": (N,d), "mean": (N,d), "grid": (N, 49·d)} on the CPU; a grid that cannot be averaged to 7 x 7 is taken as it is."""
    found: dict[str, list[Tensor]] = {"cls": [], "mean": [], "grid": []}
    size, device = encoder.config.image_size, encoder.cls.device
    for start in range(0, len(scenes), BATCH):
        pixels = torch.stack([to_pixels(render(scene), size) for scene in scenes[start : start + BATCH]])
        cls, grid = encoder(pixels.to(device))
        found["cls"].append(cls[:, 0].cpu())
        found["mean"].append(grid.mean(1).cpu())
        found["grid"].append(coarse(encoder, grid).flatten(1).cpu())
    return {name: torch.cat(parts) for name, parts in found.items()}


class LinearProbe:
    """Q softmaxes over K classes of one linear map of the features, fitted by L-BFGS with an L2 `penalty`."""

    def __init__(self, x: Tensor, targets: Tensor, n_classes: int, penalty: float) -> None:
        """x (N,F), targets (N,Q)."""
        self.mean, self.scale = x.mean(0), x.std(0).clamp(min=1e-4) * x.shape[1] ** 0.5  # rows of about unit length
        self.shape = targets.shape[1], n_classes
        self.weight = torch.zeros(x.shape[1] + 1, targets.shape[1] * n_classes, requires_grad=True)
        optimizer = torch.optim.LBFGS([self.weight], max_iter=STEPS, history_size=10, line_search_fn="strong_wolfe")
        normed = self._normed(x)

        def loss() -> Tensor:
            optimizer.zero_grad()
            logits = (normed @ self.weight).view(-1, n_classes)
            value = F.cross_entropy(logits, targets.flatten(), ignore_index=UNASKED) + penalty * self.weight[:-1].square().sum()
            value.backward()  # type: ignore[no-untyped-call]
            return value

        optimizer.step(loss)  # type: ignore[arg-type]

    def _normed(self, x: Tensor) -> Tensor:
        return torch.cat(((x - self.mean) / self.scale, x.new_ones(len(x), 1)), dim=1)

    @torch.no_grad()
    def __call__(self, x: Tensor) -> Tensor:
        """The likeliest classes (N,Q)."""
        return (self._normed(x) @ self.weight).view(-1, *self.shape).argmax(-1)


def fit(x: Tensor, targets: Tensor, n_classes: int) -> tuple[LinearProbe, int]:
    """The probe whose penalty is the best on the scenes held back, trained on all; and how many answers about those were right."""
    back = torch.arange(len(x)) % HELD_BACK == 0

    def right(penalty: float) -> int:
        guesses = LinearProbe(x[~back], targets[~back], n_classes, penalty)(x[back])
        return int((guesses == targets[back]).sum())

    n_right = {penalty: right(penalty) for penalty in PENALTIES}
    best = max(PENALTIES, key=lambda penalty: n_right[penalty])
    return LinearProbe(x, targets, n_classes, best), n_right[best]


def majority(targets: Tensor, n_classes: int) -> Tensor:
    """The commonest class of each question, (Q,)."""
    return torch.stack([F.one_hot(column[column != UNASKED], n_classes).sum(0).argmax() for column in targets.T])


def scores(guesses: Tensor, targets: Tensor, n_classes: int) -> dict[str, float]:
    """`accuracy`, `balanced` and, of several questions that are always asked, `exact`; both (N,Q)."""
    right, asked = guesses == targets, targets != UNASKED
    recalls = [
        right[:, q][targets[:, q] == k].float().mean()
        for q in range(targets.shape[1])
        for k in range(n_classes)
        if (targets[:, q] == k).any()
    ]
    found = {"accuracy": float(right[asked].float().mean()), "balanced": float(torch.stack(recalls).mean())}
    if targets.shape[1] > 1 and bool(asked.all()):
        found["exact"] = float(right.all(1).float().mean())
    return {name: round(value, 4) for name, value in found.items()}


def evaluate_probes(omni: Omni, *, limit: int | None = None) -> dict[str, dict[str, Any]]:
    """Metrics by probe and kind of features, with 95 % intervals of the accuracy over the scenes that it is asked about (`items`); baselines:
    the majority answers of training."""
    n_tests = min(limit or TESTS, TESTS)
    n_training = TRAINING * n_tests // TESTS
    rng = Random(SEED)
    scenes = [random_scene(rng, rng.randint(1, MOST_THINGS)) for _ in range(n_training + n_tests)]
    inputs = features(omni.model.vision_encoder, scenes)
    is_test = torch.arange(len(scenes)) >= n_training
    metrics: dict[str, Any] = {"items": n_tests, "training_scenes": n_training}
    baselines: dict[str, Any] = {}
    for name, probe in PROBES.items():
        fits = torch.tensor([len(scene.things) >= probe.fewest for scene in scenes])
        targets = torch.tensor([probe.target(scene) for scene, fit_ in zip(scenes, fits, strict=True) if fit_])
        test = is_test[fits]
        truth = targets[test]
        asked = truth != UNASKED
        common = majority(targets[~test], probe.n_classes)
        baselines[name] = scores(common.expand_as(truth), truth, probe.n_classes)
        metrics[name], n_right = {"items": len(truth), "questions": int(asked.sum())}, {}
        for kind, x in inputs.items():
            fitted, n_right[kind] = fit(x[fits][~test], targets[~test], probe.n_classes)
            guesses = fitted(x[fits][test])
            low, high = ratio_interval(((guesses == truth) & asked).sum(1).tolist(), asked.sum(1).tolist(), range(len(truth)))
            metrics[name][kind] = scores(guesses, truth, probe.n_classes) | {"accuracy_95": (round(low, 4), round(high, 4))}
        best = max(n_right, key=lambda kind: n_right[kind])
        metrics[name]["chosen"] = {"features": best} | metrics[name][best]
    return {"metrics": metrics, "baselines": baselines}
