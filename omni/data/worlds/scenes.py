"""Pictures of the pocket world: coloured shapes on a noisy ground, with clutter and partial overlap."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

import numpy as np
from PIL import Image, ImageDraw

SIZE = 224
SHAPES = ("circle", "square", "triangle", "star", "diamond")
COLOURS = {
    "red": (214, 40, 40),
    "green": (44, 160, 60),
    "blue": (42, 82, 214),
    "yellow": (240, 212, 40),
    "orange": (242, 132, 26),
    "purple": (138, 52, 170),
    "black": (24, 24, 24),
    "white": (250, 250, 250),
}
RADII = {"small": 17, "medium": 27, "big": 40}
# Never in a training picture: an unseen scene holds at least one of these.
HELD_OUT_COMBINATIONS = (("red", "star"), ("blue", "circle"), ("green", "triangle"), ("yellow", "square"), ("purple", "diamond"), ("black", "circle"))
SEEN_COMBINATIONS = tuple((c, s) for c in COLOURS for s in SHAPES if (c, s) not in HELD_OUT_COMBINATIONS)
GRAIN = 8  # pixels: noise in squares of this size, which PNG packs well
GROUNDS = ((176, 176, 168), (150, 168, 182), (186, 170, 158), (160, 178, 160), (172, 160, 178))


@dataclass(frozen=True)
class Thing:
    """One object; (x, y) is its centre in pixels."""

    colour: str
    shape: str
    size: str
    x: int
    y: int

    @property
    def name(self) -> str:
        """Colour and shape."""
        return f"{self.colour} {self.shape}"


@dataclass(frozen=True)
class Scene:
    """Objects in drawing order; `ground` and `noise_seed` decide the rest of the picture."""

    things: tuple[Thing, ...]
    ground: int
    noise_seed: int


def random_scene(rng: Random, n_things: int, *, unseen: bool) -> Scene:
    """A scene of `n_things`, each at most a fifth covered. An unseen scene holds at least one held-out combination, others none."""
    combinations: list[tuple[str, str]] = [rng.choice(SEEN_COMBINATIONS) for _ in range(n_things)]
    if unseen:
        combinations[rng.randrange(n_things)] = rng.choice(HELD_OUT_COMBINATIONS)
    things: list[Thing] = []
    for colour, shape in combinations:
        size = rng.choice(tuple(RADII))
        things.append(Thing(colour, shape, size, *_free_place(rng, RADII[size], things)))
    return Scene(tuple(things), rng.randrange(len(GROUNDS)), rng.randrange(2**31))


def _free_place(rng: Random, radius: int, others: Sequence[Thing]) -> tuple[int, int]:
    """The first of 40 random places with little overlap, else the one with least."""
    best, best_gap = (0, 0), -math.inf
    for _ in range(40):
        x, y = rng.randrange(radius + 2, SIZE - radius - 2), rng.randrange(radius + 2, SIZE - radius - 2)
        gap = min((math.dist((x, y), (o.x, o.y)) - 0.9 * (radius + RADII[o.size]) for o in others), default=math.inf)
        if gap >= 0:
            return x, y
        if gap > best_gap:
            best, best_gap = (x, y), gap
    return best


def render(scene: Scene) -> Image.Image:
    """224 x 224 RGB, drawn twice as large and scaled down."""
    noise = np.random.default_rng(scene.noise_seed)
    canvas = Image.new("RGB", (2 * SIZE, 2 * SIZE), GROUNDS[scene.ground])
    draw = ImageDraw.Draw(canvas)
    for x, y, dx, dy in noise.integers(0, 2 * SIZE, (6, 4)):
        draw.line((x, y, x + (dx - SIZE) / 4, y + (dy - SIZE) / 4), fill=(120, 120, 120), width=3)
    for thing in scene.things:
        _draw(draw, thing)
    small = np.asarray(canvas.resize((SIZE, SIZE), Image.Resampling.BOX), dtype=np.int16)
    grain = noise.integers(-6, 7, (SIZE // GRAIN, SIZE // GRAIN, 1), dtype=np.int16).repeat(GRAIN, 0).repeat(GRAIN, 1)
    return Image.fromarray((small + grain).clip(0, 255).astype(np.uint8))


def _draw(draw: ImageDraw.ImageDraw, thing: Thing) -> None:
    r, x, y = 2 * RADII[thing.size], 2 * thing.x, 2 * thing.y
    fill, outline = COLOURS[thing.colour], (70, 70, 70)
    if thing.shape == "circle":
        draw.ellipse((x - r, y - r, x + r, y + r), fill=fill, outline=outline, width=3)
        return
    if thing.shape == "square":
        side = 0.86 * r
        corners = [(x - side, y - side), (x + side, y - side), (x + side, y + side), (x - side, y + side)]
    elif thing.shape == "triangle":
        corners = [(x, y - r), (x + 0.95 * r, y + 0.8 * r), (x - 0.95 * r, y + 0.8 * r)]
    elif thing.shape == "diamond":
        corners = [(x, y - r), (x + 0.68 * r, y), (x, y + r), (x - 0.68 * r, y)]
    else:
        radius = (r, 0.42 * r)
        corners = [(x + radius[k % 2] * math.sin(k * math.pi / 5), y - radius[k % 2] * math.cos(k * math.pi / 5)) for k in range(10)]
    draw.polygon(corners, fill=fill, outline=outline, width=3)
