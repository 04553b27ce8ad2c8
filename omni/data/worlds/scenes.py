"""Pictures of the pocket world: coloured shapes on plain, shaded or noisy grounds, with clutter and partial overlap."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

import numpy as np
from PIL import Image, ImageDraw

SIZE = 224  # pixels
SUPERSAMPLING = 2
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
GROUNDS = ((176, 176, 168), (150, 168, 182), (186, 170, 158), (160, 178, 160), (172, 160, 178))

Combination = tuple[str, str]
ALL_COMBINATIONS: tuple[Combination, ...] = tuple((c, s) for c in COLOURS for s in SHAPES)
# In no training picture, nor asked about there; words spoken or written elsewhere may pair them.
HELD_OUT_COMBINATIONS: tuple[Combination, ...] = (
    *(("red", "star"), ("blue", "circle"), ("green", "triangle"), ("yellow", "square")),
    *(("purple", "diamond"), ("black", "circle"), ("white", "triangle"), ("orange", "star")),
)
SEEN_COMBINATIONS = tuple(c for c in ALL_COMBINATIONS if c not in HELD_OUT_COMBINATIONS)

LIKENESS = 0.35  # how often a thing shares its colour or shape with an earlier one, so that there is something to count
NEAREST = 0.85  # centres are at least this share of the two radii apart: at most about a quarter of a thing is covered
MIN_DX = 8  # pixels, so that "from left to right" is plain to see


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
    """Objects in drawing order; `noise_seed` decides ground and clutter."""

    things: tuple[Thing, ...]
    noise_seed: int

    @property
    def is_unseen(self) -> bool:
        """Whether it holds a held-out combination of colour and shape."""
        return any((t.colour, t.shape) in HELD_OUT_COMBINATIONS for t in self.things)


def random_scene(rng: Random, n_things: int, combinations: Sequence[Combination] = ALL_COMBINATIONS) -> Scene:
    """A scene of `n_things` (1 to 6), each of one of the `combinations` of colour and shape."""
    assert 1 <= n_things <= 6, n_things
    while True:
        things: list[Thing] = []
        for _ in range(n_things):
            alike = [c for c in combinations if any((c[0] == t.colour) != (c[1] == t.shape) for t in things)]
            colour, shape = rng.choice(alike if alike and rng.random() < LIKENESS else combinations)
            size = rng.choice(tuple(RADII))
            place = _free_place(rng, RADII[size], things)
            if place is None:
                break
            things.append(Thing(colour, shape, size, *place))
        else:
            return Scene(tuple(things), rng.randrange(2**31))


def _free_place(rng: Random, radius: int, others: Sequence[Thing]) -> tuple[int, int] | None:
    """The first of 40 random places that leaves the others to be seen."""
    for _ in range(40):
        x, y = rng.randrange(radius + 2, SIZE - radius - 2), rng.randrange(radius + 2, SIZE - radius - 2)
        if all(abs(x - o.x) >= MIN_DX and math.dist((x, y), (o.x, o.y)) >= NEAREST * (radius + RADII[o.size]) for o in others):
            return x, y
    return None


def render(scene: Scene) -> Image.Image:
    """224 x 224 RGB, drawn twice as large and scaled down."""
    noise = np.random.default_rng(scene.noise_seed)
    canvas = Image.new("RGB", (SUPERSAMPLING * SIZE,) * 2, GROUNDS[noise.integers(len(GROUNDS))])
    draw = ImageDraw.Draw(canvas)
    shade = int(noise.integers(90, 150))
    for x, y, dx, dy in noise.integers(0, SUPERSAMPLING * SIZE, (noise.integers(0, 11), 4)):
        draw.line((x, y, x + (dx - SIZE) / 4, y + (dy - SIZE) / 4), fill=(shade,) * 3, width=3)
    for thing in scene.things:
        _draw(draw, thing)
    small = np.asarray(canvas.resize((SIZE, SIZE), Image.Resampling.BOX), dtype=np.int16)
    return Image.fromarray((small + _relief(noise)).clip(0, 255).astype(np.uint8))


def _relief(noise: np.random.Generator) -> np.ndarray:
    """What is added to all colours, (SIZE, SIZE, 1): nothing, a slope of light, or noise. Squares of 4 or 8 pixels keep the PNG small."""
    kind = noise.integers(3)
    if kind == 0:
        return np.zeros((SIZE, SIZE, 1), dtype=np.int16)
    grain = int(noise.choice((4, 8)))
    n = SIZE // grain
    if kind == 1:
        dx, dy = noise.uniform(-18, 18, 2)
        slope = np.linspace(-dx, dx, n)[None, :] + np.linspace(-dy, dy, n)[:, None]
        cells = slope.round().astype(np.int16)
    else:
        depth = int(noise.integers(4, 13))
        cells = noise.integers(-depth, depth + 1, (n, n), dtype=np.int16)
    return cells.repeat(grain, 0).repeat(grain, 1)[..., None]


def _draw(draw: ImageDraw.ImageDraw, thing: Thing) -> None:
    r, x, y = SUPERSAMPLING * RADII[thing.size], SUPERSAMPLING * thing.x, SUPERSAMPLING * thing.y
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
