"""The shared ids and the grammar: disjoint, invertible for every layout, and the same for training and generation."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from omni.errors import DataError
from omni.speech_tokens import Grammar, ScaleLayout, SpeechVocabulary, choices, is_forced

SNAC_24KHZ, SNAC_44KHZ = ScaleLayout(4096, (1, 2, 4)), ScaleLayout(4096, (1, 2, 4, 8))

layouts = st.builds(ScaleLayout, st.integers(1, 9), st.lists(st.sampled_from([1, 2, 3, 4, 8]), max_size=3).map(lambda rates: (1, *rates)))


@st.composite
def clips(draw: st.DrawFn) -> tuple[ScaleLayout, list[list[int]]]:
    """A layout, and codes of a few frames in it."""
    layout, n_frames = draw(layouts), draw(st.integers(1, 4))
    code = st.integers(0, layout.codebook_size - 1)
    return layout, [draw(st.lists(code, min_size=rate * n_frames, max_size=rate * n_frames)) for rate in layout.rates]


@st.composite
def pairs(draw: st.DrawFn) -> tuple[SpeechVocabulary, list[int], list[list[int]], list[int]]:
    """A vocabulary, text, frames in shared ids, and the frame in which each text id is said."""
    layout, codes = draw(clips())
    vocabulary = SpeechVocabulary(draw(st.integers(1, 12)), layout, draw(st.integers(0, 2)))
    text = draw(st.lists(st.integers(0, vocabulary.text_size - 1), min_size=1, max_size=6))
    frames = [[vocabulary.text_size + i for i in frame] for frame in layout.frames(codes)]
    said_in = sorted(draw(st.lists(st.integers(0, len(frames) - 1), min_size=len(text), max_size=len(text))))
    return vocabulary, text, frames, said_in


# --- ids


@given(layouts, st.integers(1, 20), st.integers(0, 3))
def test_text_codebooks_markers_and_voices_share_no_id_and_leave_none_out(layout: ScaleLayout, text_size: int, n_voices: int) -> None:
    v = SpeechVocabulary(text_size, layout, n_voices)
    markers = [v.audio_start, v.audio_end, v.text_start, v.text_end, v.frame_id, v.pad, v.hidden, *(v.voice(n) for n in range(n_voices))]
    groups = [v.text, *(v.codebook(k) for k in range(layout.n_codebooks)), markers]
    assert sorted(i for group in groups for i in group) == list(range(v.size))
    assert sorted(i for k in range(layout.n_codebooks) for i in v.codebook(k)) == list(v.audio)


@given(clips())
def test_codes_to_ids_to_codes_is_the_identity(clip: tuple[ScaleLayout, list[list[int]]]) -> None:
    layout, codes = clip
    ids = layout.to_ids(codes)
    assert layout.to_codes(ids) == codes
    assert (ids[0], ids[-1]) == (layout.start_id, layout.end_id)
    assert [i for i in ids if i >= layout.start_id] == [layout.start_id, layout.end_id]  # once a clip
    assert layout.read_frames(ids)[1] == 0


def test_a_frame_is_told_in_time_coarse_before_fine() -> None:
    assert ScaleLayout(8, (1, 1, 1)).slots == (0, 1, 2)
    assert SNAC_24KHZ.slots == (0, 1, 2, 2, 1, 2, 2)
    assert SNAC_44KHZ.slots == (0, 1, 2, 3, 3, 2, 3, 3, 1, 2, 3, 3, 2, 3, 3)
    assert ScaleLayout(10, (1, 2, 4)).to_ids([[1], [2, 3], [4, 5, 6, 7]]) == [30, 1, 12, 24, 25, 13, 26, 27, 31]


@given(clips(), st.data())
def test_an_id_out_of_order_costs_its_own_frame_at_most(clip: tuple[ScaleLayout, list[list[int]]], data: st.DataObject) -> None:
    layout, codes = clip
    frames = layout.frames(codes)
    ids = [i for frame in frames for i in frame]
    at, wrong = data.draw(st.integers(0, len(ids))), data.draw(st.integers(0, layout.n_ids + 3))
    broken = [*ids[:at], wrong, *ids[at:]]
    if wrong == layout.end_id:
        assert layout.read_frames(broken) == (frames[: at // layout.tokens_per_frame], at % layout.tokens_per_frame)
        return
    found, lost = layout.read_frames(broken)
    assert len(found) * layout.tokens_per_frame + lost == len(ids) + (wrong != layout.start_id)
    hurt = at // layout.tokens_per_frame
    others = [frame for n, frame in enumerate(frames) if n != hurt]
    rest = iter(found)
    assert all(frame in rest for frame in others)  # in order


def test_the_rule_for_ids_out_of_order_in_examples() -> None:
    layout = ScaleLayout(10, (1, 1))
    assert layout.read_frames([20, 1, 12, 2, 3, 14]) == ([[1, 12], [3, 14]], 1)  # 2 is broken off by 3
    assert layout.read_frames([15, 1, 12, 4]) == ([[1, 12]], 2)  # 15 begins no frame, 4 begins one that does not end
    assert layout.read_frames([1, 12, 21, 3, 14]) == ([[1, 12]], 0)  # behind the end
    assert layout.to_codes([]) == [[], []]


@pytest.mark.parametrize(
    ("codes", "message"),
    [
        ([[0]], "codes of 1 codebooks"),
        ([[0], [1, 2, 3]], "codebook 1 has 3 codes"),
        ([[0], [1, 10]], "outside 0 to 9"),
        ([[-1], [0, 0]], "code -1"),
    ],
)
def test_codes_that_are_none_are_refused(codes: list[list[int]], message: str) -> None:
    with pytest.raises(DataError, match=message):
        ScaleLayout(10, (1, 2)).to_ids(codes)


# --- grammar


def walk(grammar: Grammar, choose: random.Random) -> list[int]:
    """Any way through a grammar."""
    ids, options = [], next(grammar)
    while True:
        option = choose.choice(options)
        ids.append(choose.choice(option.ids))
        try:
            options = grammar.send(ids[-1])
        except StopIteration:
            return ids


@given(pairs(), st.booleans(), st.integers(0, 5), st.randoms())
def test_whatever_is_chosen_speech_is_whole_frames_of_the_whole_text(pair, side_by_side: bool, most: int, choose: random.Random) -> None:
    v, text, _, _ = pair
    voice = v.n_voices - 1 if v.n_voices else None
    ids = walk(v.speaking(text, side_by_side=side_by_side, most_frames=most, voice=voice), choose)
    assert [i for i in ids if i in v.text] == text
    assert ids[ids.index(v.text_end) - 1] == text[-1]  # that the text is over is told at once
    frames, lost = v.layout.read_frames([i - v.text_size for i in ids if i in v.audio])
    assert lost == 0 and 1 <= len(frames) <= max(most, 1)
    assert ids.count(v.frame_id) == len(frames)
    assert ids[-1] == v.audio_end and ids[: voice is not None] == ([] if voice is None else [v.voice(voice)])
    if not side_by_side:
        assert ids.index(v.text_end) < ids.index(v.audio_start)


@given(pairs(), st.booleans(), st.integers(0, 5), st.randoms())
def test_whatever_is_chosen_hearing_hears_every_frame_and_writes_text_alone(
    pair, side_by_side: bool, most: int, choose: random.Random
) -> None:
    v, _, frames, _ = pair
    ids = walk(v.hearing(frames, side_by_side=side_by_side, most_text=most), choose)
    assert [i for i in ids if i in v.audio] == [i for frame in frames for i in frame]
    assert sum(i in v.text for i in ids) <= most
    assert ids[-1] == v.text_end
    if not side_by_side:
        assert not [i for i in ids[: ids.index(v.audio_end)] if i in v.text]


@given(pairs(), st.one_of(st.none(), st.integers(0, 3)))
def test_a_spoken_training_sequence_obeys_the_grammar(pair, lead: int | None) -> None:
    v, text, frames, said_in = pair
    due = None if lead is None else [max(0, n - lead) for n in said_in]
    ids = v.speaking_ids(text, frames, due)
    chosen = choices(v.speaking(text, side_by_side=lead is not None, most_frames=len(frames) + 1), ids)
    assert [i for i in ids if i in v.text] == text
    assert [i for i in ids if i in v.audio] == [i for frame in frames for i in frame]
    size = v.layout.codebook_size
    for i, c in zip(ids, chosen, strict=True):
        if i in v.audio:
            assert c == (size > 1)  # of one code there is no choice
        if i in (v.text_start, v.text_end) or (lead is None and (i in v.text or i == v.audio_start)):
            assert not c  # what is given is no target
    for n, frame in enumerate(said_in):  # text leads its sound
        before = ids[: [at for at, i in enumerate(ids) if i in v.text][n]]
        assert before.count(v.frame_id) <= max(0, frame - (lead or 0))


@given(pairs(), st.one_of(st.none(), st.integers(1, 3)))
def test_a_heard_training_sequence_obeys_the_grammar(pair, lag: int | None) -> None:
    v, text, frames, said_in = pair
    due = None if lag is None else [max(1, n + lag) for n in said_in]
    ids = v.hearing_ids(text, frames, due)
    chosen = choices(v.hearing(frames, side_by_side=lag is not None, most_text=len(text) + 1), ids)
    assert [i for i in ids if i in v.text] == text
    for i, c in zip(ids, chosen, strict=True):
        if i in v.text or i == v.text_end:
            assert c
        if i in v.audio or i in (v.audio_start, v.audio_end):
            assert not c
    for n, frame in enumerate(said_in):  # text is behind its sound, and not longer than it must be
        before = ids[: [at for at, i in enumerate(ids) if i in v.text][n]]
        assert before.count(v.frame_id) == (len(frames) if lag is None else min(len(frames), frame + lag))


def test_a_sequence_that_the_grammar_does_not_allow_is_found_out() -> None:
    v = SpeechVocabulary(5, ScaleLayout(4, (1, 1)))
    frames = [[5, 9], [6, 10]]
    good = v.hearing_ids([1], frames, None)
    for bad in (good[:-1], [*good, 1], [*good[:2], 6, *good[3:]]):
        with pytest.raises(AssertionError):
            choices(v.hearing(frames, side_by_side=False, most_text=3), bad)


def test_what_is_told_first_is_forced() -> None:
    v = SpeechVocabulary(5, ScaleLayout(4, (1,)))
    grammar = v.speaking([1, 2], side_by_side=False, most_frames=3)
    options = next(grammar)
    forced = []
    while is_forced(options):
        forced.append(options[0].ids.start)
        options = grammar.send(forced[-1])
    assert forced == [v.text_start, 1, 2, v.text_end, v.audio_start, v.frame_id]
