"""Speech: exact durations, batched == single, streamed == whole, and an end that the text decides."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from omni.chat import render_reply
from omni.errors import ConfigError, DataError
from omni.inference.omni import GREEDY, Omni
from omni.inference.sampling import Sampling
from omni.inference.speech import BATCH, SHORTEST_CLAUSE, clauses

ROOT = Path(__file__).parents[2]
FREE = Sampling(temperature=1.0)
TEXTS = ["Hello!", "The circle is red.", "There are two small stars and one thing", "Yes."]
LONG = "There are two small stars, and one big square. The circle is red; what colour is the big blue thing? Yes."


def test_so_many_frames_are_so_many_seconds(omni):
    speech = omni.say("The circle is red.", sampling=FREE)
    frames, codebooks = speech.codes.shape
    assert codebooks == 2
    assert len(speech.waveform) == frames * 1280
    assert speech.duration_s == frames / 12.5
    assert speech.waveform.dtype == np.float32
    assert np.isfinite(speech.waveform).all()
    assert np.abs(speech.waveform).max() <= 1.0


@torch.no_grad()
def test_greedy_codes_are_those_of_full_passes(own_omni):
    for p in own_omni.model.talker.transformer.parameters():
        if p.dim() > 1:
            p.data *= 8.0  # what was said before matters much
    for text, speech in zip(TEXTS, own_omni.speaker.say(TEXTS, "bob", GREEDY), strict=True):
        reply = render_reply(text, own_omni.tokenizer)
        ids, chars, tokens = (torch.tensor([x]) for x in (reply.input_ids, reply.char_ids, reply.char_tokens))
        n_ids, n_chars = torch.tensor([ids.shape[1]]), torch.tensor([chars.shape[1]])
        conditioning = own_omni.model.condition(ids, n_ids, chars, tokens, n_chars, torch.tensor([1]))
        out = own_omni.model.talker(speech.codes[None], conditioning, own_omni.model.talker.durations(conditioning))
        assert torch.equal(out.first[0].argmax(-1), speech.codes[:, 0])
        assert torch.equal(out.rest[0].argmax(-1), speech.codes[:, 1:])
        assert len(speech.codes.unique(dim=0)) > 2


def test_a_codec_gone_wild_does_not_make_nan(own_omni):
    own_omni.model.codec.proj_out.bias.data.fill_(1e4)
    waveform = own_omni.say("Hello!", sampling=FREE).waveform
    assert np.isfinite(waveform).all()
    assert np.abs(waveform).max() <= 1.0


def same(a, b) -> bool:
    return torch.equal(a.codes, b.codes) and np.allclose(a.waveform, b.waveform, atol=1e-4)


@pytest.mark.parametrize("sampling", [GREEDY, FREE])
def test_batched_is_single(omni, sampling):
    voices = ["ada", "bob", None, "ada"]
    together = omni.say_batch(TEXTS, voices, sampling=sampling)
    assert all(same(s, omni.say(t, v, sampling=sampling)) for t, v, s in zip(TEXTS, voices, together, strict=True))


def test_streamed_is_whole(omni):
    parts = list(omni.say_stream(LONG, "bob", sampling=FREE))
    whole = omni.say(LONG, "bob", sampling=FREE)
    assert len(parts) >= 1
    assert torch.equal(torch.cat([p.codes for p in parts]), whole.codes)
    np.testing.assert_allclose(np.concatenate([p.waveform for p in parts]), whole.waveform, atol=1e-3)  # an untrained codec is loud


def test_the_released_model_streams_what_it_says():
    omni = Omni.from_pretrained(ROOT / "checkpoints/omni-tiny", "cpu")
    for voice in omni.voices:
        parts = list(omni.say_stream("The old house stood quietly at the edge of town.", voice))
        whole = omni.say("The old house stood quietly at the edge of town.", voice)
        assert len(parts) > 2
        np.testing.assert_allclose(np.concatenate([p.waveform for p in parts]), whole.waveform, rtol=0, atol=1e-4)


@pytest.mark.parametrize("size", [1, 7, 30])
@pytest.mark.parametrize("text", [LONG, "The 3.5 circles. Yes, no: hello! There", "No", "One, two. " * 12])
def test_a_text_that_comes_in_pieces_is_the_whole_text(omni, text, size):
    """And its sound begins before it is complete."""
    line, batch = omni.speaker.line("bob", FREE), omni.speaker.batch()
    batch.join(line)
    pieces = []
    early = False
    for start in range(0, len(text), size):
        line.add(text[start : start + size], last=start + size >= len(text))
        for _ in range(3):
            if batch.can_step:
                batch.step()
                early |= not line.complete
                pieces.append(line.news())
    while batch.lines:
        batch.step()
        pieces.append(line.news())
    spoken = [piece for piece in pieces if piece is not None]
    whole = omni.say(text, "bob", sampling=FREE)
    assert torch.equal(torch.cat([piece.codes for piece in spoken]), whole.codes)
    np.testing.assert_allclose(np.concatenate([piece.waveform for piece in spoken]), whole.waveform, atol=1e-3)
    assert early or text != LONG or size == 30


def test_texts_that_join_and_leave_change_nothing_for_the_others(omni):
    batch = omni.speaker.batch()
    lines = [omni.speaker.line(None, FREE, text) for text in (LONG, TEXTS[1], TEXTS[2])]
    for line in lines:
        batch.join(line)
        for _ in range(5):
            batch.step()
    batch.leave(lines[1])
    while batch.lines:
        batch.step()
    for line, text in ((lines[0], LONG), (lines[2], TEXTS[2])):
        assert same(line.whole(), omni.say(text, sampling=FREE))


def test_text_voice_and_seed_matter_and_the_same_seed_repeats(omni):
    base = omni.say(TEXTS[1], "ada", sampling=FREE).codes
    assert torch.equal(base, omni.say(TEXTS[1], sampling=FREE).codes)  # the first voice is the default
    others = [
        omni.say(TEXTS[1], "bob", sampling=FREE),
        omni.say("The circle is rod.", sampling=FREE),
        omni.say(TEXTS[1], sampling=Sampling(temperature=1.0, seed=1)),
    ]
    assert not any(torch.equal(base, other.codes) for other in others)


def test_speech_lasts_as_long_as_its_characters(own_omni):
    duration = own_omni.model.talker.duration
    duration.weight.data.zero_()
    for slots, text in ((2.0, "Hello!"), (7.0, "Hello!"), (3.0, "There are two small stars and one thing")):
        duration.bias.data.fill_(math.log(slots))
        speech = own_omni.say(text, sampling=FREE)
        assert len(speech.codes) == math.ceil(slots * (len(text) + 2) / 4)  # with the silence before and behind


def test_no_character_lasts_for_ever_and_something_always_sounds(own_omni):
    duration = own_omni.model.talker.duration
    duration.weight.data.zero_()
    for bias, frames in ((50.0, own_omni.model.config.talker.context_length // 2), (-50.0, 1)):
        duration.bias.data.fill_(bias)
        assert len(own_omni.say("There are two small stars and one thing", sampling=FREE).codes) == frames


def test_more_texts_than_are_decoded_together(omni):
    texts = ["Yes."] * BATCH + TEXTS
    said = omni.say_batch(texts, sampling=FREE)
    assert same(said[0], said[BATCH - 1])
    assert same(said[-1], omni.say("Yes.", sampling=FREE))


@torch.no_grad()
def test_a_clause_follows_the_one_before(own_omni):
    """The second clause is read behind the first, and its frames come behind the first's."""
    first, second = own_omni.speaker.say([LONG.split(";")[0] + ";", LONG], "bob", FREE)
    assert torch.equal(second.codes[: len(first.codes) - 2], first.codes[: len(first.codes) - 2])  # but for the silence behind
    other = own_omni.say(LONG.replace("one big square", "two wide houses"), "bob", sampling=FREE)
    assert other.codes[-10:].tolist() != second.codes[-10:].tolist()


@given(st.text(alphabet=st.sampled_from('ab ,.!?\n é"'), max_size=400), st.integers(21, 60))
def test_clauses_joined_are_the_text(text, longest):
    words = text.split()
    parts = clauses(text, longest)
    assert all(part and part == part.strip() and len(part) <= longest for part in parts)
    if all(len(word) <= longest for word in words):
        assert " ".join(parts) == " ".join(words)
    assert "".join(parts).replace(" ", "") == "".join(words)


def test_clauses_end_at_punctuation_and_are_not_tiny():
    assert clauses("Yes. The circle is red. No.") == ["Yes. The circle is red. No."]
    assert clauses('They said: "there are two stars." And then, one big square; or so we heard today.') == [
        'They said: "there are two stars."',
        "And then, one big square;",
        "or so we heard today.",
    ]
    assert [len(c) for c in clauses("x" * 400)] == [160, 160, 80]
    assert all(len(c) >= SHORTEST_CLAUSE for c in clauses(LONG))


def test_what_is_written_is_said_in_words(omni):
    written, words = omni.say("Mr. Fox pays $2.50 at 9:30."), omni.say("Mister Fox pays two dollars and fifty cents at nine thirty.")
    assert torch.equal(written.codes, words.codes)
    assert clauses("The man in the house is Mr. Fox, they say to all of us now.")[0].endswith("Mr. Fox,")
    with pytest.raises(DataError, match="nothing to say"):
        omni.say("* * *")


def test_long_texts_are_said_whole(omni):
    text = " ".join(["The circle is red"] * 40)
    assert len(clauses(text)) > 4
    assert len(omni.say(text, sampling=FREE).codes) > len(text) * 0.5


def test_what_cannot_be_said_is_one_clear_error(omni):
    with pytest.raises(ConfigError, match=r"no voice 'eve'; this model has: ada, bob"):
        omni.say("Hello", "eve")
    with pytest.raises(ConfigError, match="no voice 'eve'"):
        omni.say_stream("Hello", "eve")  # before any sound is asked for
    for nothing in ("", " \n", "\u0301"):
        with pytest.raises(DataError, match="nothing to say"):
            omni.say(nothing)
