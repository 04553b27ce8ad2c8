"""Look-alikes of NLVR: what is said of three boxes is so, and what people wrote is understood as they meant it."""

from random import Random

import numpy as np
import pytest

from omni.data.worlds import nlvr
from omni.data.worlds.nlvr import Boxes, Item, caption, example, is_tower, random_boxes, random_claim, read, render, statement


def tower(*colours: str) -> list[Item]:
    """From the base up."""
    paint = {name: key for key, name in nlvr.COLOURS.items()}
    return [Item(type="square", color=paint[c], size=20, x_loc=40, y_loc=80 - 21 * i) for i, c in enumerate(colours)]


def item(shape: str, colour: str, x: int, y: int, size: int = 20) -> Item:
    paint = {name: key for key, name in nlvr.COLOURS.items()}
    return Item(type=shape, color=paint[colour], size=size, x_loc=x, y_loc=y)


TOWERS = [tower("yellow", "blue", "black"), tower("blue"), tower("yellow", "yellow")]
SCATTERED = [
    [item("circle", "black", 30, 30, 30), item("square", "yellow", 80, 10), item("triangle", "blue", 3, 90, 10)],
    [item("circle", "black", 99 - 10, 40, 10)],
    [item("square", "blue", 40, 40), item("square", "yellow", 10, 40), item("circle", "yellow", 70, 0)],
]


@pytest.mark.parametrize(
    ("sentence", "boxes", "truth"),
    [
        ("There is a tower with a black block at the top.", TOWERS, True),
        ("there is exactly one tower with a yellow block at the base", TOWERS, False),
        ("There are two yellow blocks as the base of a tower.", TOWERS, True),
        ("There is a black block on a yellow block.", TOWERS, False),
        ("There is a blue block above a yellow block.", TOWERS, True),
        ("There are 3 yellow blocks", TOWERS, True),
        ("There is no tower with exactly two blocks.", TOWERS, False),
        ("There is a blue tower.", TOWERS, True),
        ("the tower with three blocks has a blue block at the top", TOWERS, False),
        ("There are at least two towers with the same height.", TOWERS, False),
        ("There are 2 black circles", SCATTERED, True),
        ("There is exactly one black circle touching the edge", SCATTERED, True),
        ("there is atleast one blue triangle touching the base", SCATTERED, True),
        ("There is a yellow circle touching the base", SCATTERED, False),
        ("There is a box with a yellow square and a blue square.", SCATTERED, True),
        ("There is 1 box with only black items", SCATTERED, True),
        ("Each box has at least 1 black item", SCATTERED, False),
        ("one of the grey square contains exactly one object", SCATTERED, True),
        ("ll blue items are in the same box.", SCATTERED, False),
        ("None of the yellow squares are touching a corner", SCATTERED, True),
    ],
)
def test_sentences_of_people_mean_what_they_say(sentence: str, boxes: Boxes, truth: bool) -> None:
    claim = read(sentence)
    assert claim is not None
    assert claim.holds(boxes) == truth


def test_what_no_template_says_is_not_guessed_at() -> None:
    assert read("There is a circle with four items and the one is yellow.") is None


def test_every_template_says_what_it_reads() -> None:
    rng = Random(0)
    for template in nlvr.TEMPLATES:
        for _ in range(20):
            claim = random_claim(rng, bool(template.towers), template.name)
            again, boxes = read(claim.sentence), random_boxes(rng, template.towers)
            assert again is not None
            assert again.holds(boxes) == claim.holds(boxes), claim.sentence


def test_statements_are_true_or_false_as_labelled_and_as_often() -> None:
    rng = Random(1)
    drawn = [example(rng) for _ in range(200)]
    drawn += [(boxes, *statement(boxes, rng)) for boxes, _, _ in drawn]
    for boxes, sentence, label in drawn:
        claim = read(sentence)
        assert claim is not None
        assert claim.holds(boxes) == label, sentence
    assert 150 < sum(label for *_, label in drawn) < 250


def test_the_same_seed_says_the_same() -> None:
    one, other = example(Random(5)), example(Random(5))
    assert one == other
    assert np.array_equal(np.asarray(render(one[0])), np.asarray(render(other[0])))
    assert example(Random(6)) != one


def test_items_stay_in_their_boxes_and_do_not_overlap() -> None:
    for seed in range(30):
        for box in random_boxes(Random(seed)):
            covered = np.zeros((nlvr.BOX, nlvr.BOX), dtype=int)
            for i in box:
                assert 0 <= i["x_loc"] <= nlvr.BOX - i["size"]
                assert 0 <= i["y_loc"] <= nlvr.BOX - i["size"]
                covered[i["y_loc"] : i["y_loc"] + i["size"], i["x_loc"] : i["x_loc"] + i["size"]] += 1
            assert covered.max() == 1


def test_pictures_show_the_items_where_they_are() -> None:
    picture = render(SCATTERED)
    assert picture.size == (nlvr.WIDTH, nlvr.BOX) == (400, 100)
    for i, box in enumerate(SCATTERED):
        for thing in box:
            centre = 150 * i + thing["x_loc"] + thing["size"] // 2, thing["y_loc"] + thing["size"] // 2
            assert picture.getpixel(centre) == nlvr.PAINTS[thing["color"]]
    assert picture.getpixel((60, 90)) == nlvr.PAPER
    assert picture.getpixel((120, 50)) == nlvr.BETWEEN


def test_captions_name_everything_in_order() -> None:
    assert caption(TOWERS) == (
        "First box: a tower of three blocks, yellow, blue and black. Second box: a blue block. "
        "Third box: a tower of two blocks, yellow and yellow."
    )
    assert caption(SCATTERED) == (
        "First box: a small blue triangle, a big black circle and a medium yellow square. Second box: a small black circle. "
        "Third box: a medium yellow square, a medium blue square and a medium yellow circle."
    )
    assert is_tower(TOWERS[0])
    assert not is_tower(SCATTERED[0])
