"""Pictures of the pocket world."""

from random import Random

import numpy as np
import pytest

from omni.data.worlds.scenes import (
    COLOURS,
    HELD_OUT_COMBINATIONS,
    RADII,
    SEEN_COMBINATIONS,
    SHAPES,
    SIZE,
    Scene,
    Thing,
    random_scene,
    render,
)


def test_the_world_has_five_shapes_eight_colours_and_three_sizes() -> None:
    assert (len(SHAPES), len(COLOURS), len(RADII)) == (5, 8, 3)


def test_every_colour_and_every_shape_is_seen_although_some_combinations_are_not() -> None:
    assert {c for c, _ in SEEN_COMBINATIONS} == set(COLOURS) and {s for _, s in SEEN_COMBINATIONS} == set(SHAPES)
    assert not set(SEEN_COMBINATIONS) & set(HELD_OUT_COMBINATIONS)


@pytest.mark.parametrize("n_things", range(1, 7))
def test_a_scene_has_as_many_things_as_asked_inside_the_picture_and_only_seen_combinations(n_things: int) -> None:
    for seed in range(30):
        scene = random_scene(Random(seed), n_things, SEEN_COMBINATIONS)
        assert len(scene.things) == n_things and not scene.is_unseen
        assert all(RADII[t.size] < min(t.x, t.y, SIZE - t.x, SIZE - t.y) for t in scene.things)


def test_every_thing_shows_its_colour_at_its_centre_whatever_lies_over_it() -> None:
    for seed in range(40):
        scene = random_scene(Random(seed), 6)
        pixels = np.asarray(render(scene), dtype=int)
        for t in scene.things:
            shown = pixels[t.y - 2 : t.y + 3, t.x - 2 : t.x + 3].reshape(-1, 3).mean(0)
            nearest = min(COLOURS, key=lambda c: float(np.abs(shown - COLOURS[c]).sum()))
            assert nearest == t.colour, (seed, t)


def test_a_bigger_thing_covers_more_pixels() -> None:
    for shape in SHAPES:
        areas = []
        for size in ("small", "medium", "big"):
            pixels = np.asarray(render(Scene((Thing("red", shape, size, 112, 112),), 0)), dtype=int)
            areas.append(int((np.abs(pixels - COLOURS["red"]).sum(-1) < 60).sum()))
        assert areas[0] < areas[1] < areas[2]


def test_pictures_repeat_from_the_scene_and_differ_between_grounds() -> None:
    scene = random_scene(Random(3), 3)
    first, again = render(scene), render(scene)
    other = render(Scene(scene.things, scene.noise_seed + 1))
    assert first.size == (SIZE, SIZE) and first.mode == "RGB"
    assert first.tobytes() == again.tobytes() != other.tobytes()
