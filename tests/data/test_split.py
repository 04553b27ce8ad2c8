"""One rule of what is held out."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from omni.data.split import held_out, normalised


@pytest.mark.parametrize("same", ["the cat's hat", "The CAT’S hat!", "  the  cat's,\nhat.", "“The cat's hat”"])
def test_case_punctuation_and_spacing_do_not_matter(same):
    assert normalised(same) == "the cat's hat"
    assert held_out(same, 0.5) == held_out("the cat's hat", 0.5)


def test_texts_in_other_scripts_are_told_apart():
    assert normalised("Die Öfen, 猫 und Кот_2") == "die öfen 猫 und кот 2"
    assert len({held_out(chr(0x4E00 + i), 0.5) for i in range(20)}) == 2


def test_the_share_held_out_is_the_fraction():
    assert sum(held_out(f"sentence number {i}", 0.1) for i in range(5000)) == pytest.approx(500, abs=80)


@given(st.text(), st.floats(0, 1), st.floats(0, 1))
def test_what_is_held_out_stays_so_at_a_larger_fraction(text, a, b):
    assert held_out(text, max(a, b)) or not held_out(text, min(a, b))


@given(st.text())
def test_nothing_is_held_out_at_zero_and_everything_at_one(text):
    assert not held_out(text, 0.0) and held_out(text, 1.0)


def test_the_rule_does_not_change_between_versions():
    texts = ("a red cube", "a blue ball", "two green cones", "hello", "good night", "the end")
    assert [held_out(text, 0.3) for text in texts] == [False, True, True, True, False, False]
