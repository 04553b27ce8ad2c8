"""The engine: cached == full pass, batched == single, streamed == whole, and everything that stops a reply."""

from collections.abc import Iterator, Sequence

import numpy as np
import pytest
import torch

from omni.chat import Rendered
from omni.inference import engine as engine_module
from omni.inference.engine import Draft, Prompt
from omni.inference.omni import Omni
from omni.inference.sampling import Sampling
from omni.tokenizer import SPECIAL_TOKENS

FIRST_BYTE = len(SPECIAL_TOKENS)  # SentencePiece puts the 256 bytes behind the control symbols
FREE = Sampling(temperature=1.5, max_new_tokens=24)


def prompt_of(ids: Sequence[int]) -> Prompt:
    return Prompt(Rendered(list(ids), [False] * len(ids), [], [], 0))


@pytest.fixture
def prompts(omni: Omni, media) -> list[Prompt]:
    """Of different lengths, with and without pictures and sound."""
    picture, other, sound, long = (str(media / name) for name in ("a.png", "b.png", "short.wav", "long.wav"))
    contents = [
        [{"type": "text", "text": "What colour is the circle?"}],
        [{"type": "image", "image": picture}, {"type": "text", "text": "What?"}],
        [{"type": "image", "image": other}, {"type": "text", "text": "What?"}],
        [{"type": "audio", "audio": sound}],
        [
            {"type": "image", "image": picture},
            {"type": "image", "image": other},
            {"type": "audio", "audio": long},
            {"type": "text", "text": "?"},
        ],
    ]
    return [omni.prompt([{"role": "user", "content": content}], reserve=24) for content in contents]


def letters(text: str) -> list[int]:
    """`text` as byte pieces."""
    return [FIRST_BYTE + byte for byte in text.encode()]


def scripted(monkeypatch, ids: Sequence[int]) -> None:
    """Make the sampler say `ids`."""
    script: Iterator[int] = iter(ids)
    monkeypatch.setattr(engine_module, "sample", lambda logits, sampling, seen, generator: next(script))


@torch.no_grad()
def test_greedy_ids_are_those_of_full_passes_for_200_prompts(omni):
    rng = np.random.default_rng(0)
    prompts = [prompt_of(rng.integers(0, omni.tokenizer.vocab_size, rng.integers(1, 30))) for _ in range(200)]
    replies = omni.engine.generate(prompts, Sampling(max_new_tokens=10))
    sayable = torch.ones(omni.model.config.thinker.vocab_size, dtype=torch.bool)
    sayable[: len(SPECIAL_TOKENS)] = False
    sayable[omni.tokenizer.vocab_size :] = False
    sayable[omni.tokenizer.end_id] = True
    for prompt, reply in zip(prompts, replies, strict=True):
        n = len(prompt.rendered.input_ids)
        wanted = reply.ids + [omni.tokenizer.end_id] * (reply.stopped == "end")
        logits = omni.model.thinker(torch.tensor([prompt.rendered.input_ids + wanted[:-1]]))[0, n - 1 :]
        assert logits.masked_fill(~sayable, -torch.inf).argmax(-1).tolist() == wanted
        assert reply.stopped == "end" or len(reply.ids) == 10
    assert len({i for r in replies for i in r.ids}) > 50


@pytest.mark.parametrize("sampling", [Sampling(max_new_tokens=24), FREE])
def test_batched_is_single(omni, prompts, sampling):
    together = omni.engine.generate(prompts, sampling)
    assert together == [omni.engine.generate([p], sampling)[0] for p in prompts]
    assert together[::-1] == omni.engine.generate(prompts[::-1], sampling)


def test_pictures_and_sounds_reach_the_reply(omni, prompts, media):
    replies = omni.engine.generate(prompts[1:3], Sampling(max_new_tokens=24))
    assert replies[0].ids != replies[1].ids
    waves = [np.zeros(8000, dtype=np.float32), np.random.default_rng(0).standard_normal(8000).astype(np.float32)]
    spoken = [omni.prompt([{"role": "user", "content": [{"type": "audio", "audio": wave}]}], reserve=24) for wave in waves]
    a, b = omni.engine.generate(spoken, Sampling(max_new_tokens=24))
    assert a.ids != b.ids


def test_a_seed_decides_whatever_the_batch(omni, prompts):
    alone = omni.engine.generate(prompts[:1], FREE)[0]
    assert omni.engine.generate([prompts[3], prompts[0], prompts[0]], FREE)[1:] == [alone, alone]
    assert omni.engine.generate(prompts[:1], Sampling(temperature=1.5, max_new_tokens=24, seed=1))[0] != alone


@pytest.mark.parametrize("seed", range(20))
def test_streamed_is_whole(omni, prompts, seed):
    """At this temperature the model says many broken characters."""
    sampling = Sampling(temperature=3.0, max_new_tokens=40, seed=seed, stop=("e", "\n"))
    whole = omni.engine.generate(prompts[:1], sampling)[0]
    events = list(omni.engine.stream(prompts[0], sampling))
    assert "".join(e.text for e in events) == whole.text
    assert [e.stopped for e in events] == [None] * (len(events) - 1) + [whole.stopped]
    assert all(e.text for e in events[:-1])


def test_a_stream_never_emits_half_a_character(omni, prompts, monkeypatch):
    text = "né 🙂€ 你"
    scripted(monkeypatch, [*letters(text), omni.tokenizer.end_id])
    events = list(omni.engine.stream(prompts[0], Sampling()))
    assert [e.text for e in events] == [*text, ""]


def test_a_character_that_is_never_completed_comes_last(omni, prompts, monkeypatch):
    scripted(monkeypatch, [*letters("a🙂")[:3], omni.tokenizer.end_id])
    assert [e.text for e in omni.engine.stream(prompts[0], Sampling())] == ["a", "\N{REPLACEMENT CHARACTER}"]


def test_the_end_of_turn_ends_a_reply_and_is_not_in_it(omni, prompts, monkeypatch):
    words = omni.tokenizer.encode("Yes, no")
    scripted(monkeypatch, [*words, omni.tokenizer.end_id, *words])
    reply = omni.engine.generate(prompts[:1], Sampling())[0]
    assert (reply.text, reply.ids, reply.stopped) == ("Yes, no", words, "end")


@pytest.mark.parametrize(
    ("stop", "left"), [(("two",), "one "), (("three", " tw"), "one"), (("e t", "zzz"), "on"), (("four", "ree."), "one two three")]
)
def test_a_stop_text_ends_a_reply_before_it(omni, prompts, monkeypatch, stop, left):
    sampling = Sampling(stop=stop)
    ids = [*letters("one two three"), omni.tokenizer.end_id]
    scripted(monkeypatch, ids)
    reply = omni.engine.generate(prompts[:1], sampling)[0]
    assert (reply.text, reply.stopped) == (left, "end" if left == "one two three" else "stop")
    scripted(monkeypatch, ids)
    assert "".join(e.text for e in omni.engine.stream(prompts[0], sampling)) == left


def test_what_may_become_a_stop_text_is_held_back(omni, prompts, monkeypatch):
    scripted(monkeypatch, [*letters("ab abc"), omni.tokenizer.end_id])
    events = [e.text for e in omni.engine.stream(prompts[0], Sampling(stop=("abc",)))]
    assert events == ["ab ", ""]


def test_a_reply_stops_at_its_limit_and_at_the_end_of_the_context(omni):
    context = omni.model.config.thinker.context_length
    long, short = prompt_of([20] * (context - 3)), prompt_of([20, 21])
    replies = omni.engine.generate([long, short], Sampling(temperature=1.0, max_new_tokens=50, seed=5))
    assert len(replies[0].ids) == 3
    assert replies[0].stopped == "limit"
    assert len(replies[1].ids) == 50 or replies[1].stopped == "end"
    assert replies[1] == omni.engine.generate([short], Sampling(temperature=1.0, max_new_tokens=50, seed=5))[0]


def test_no_marker_and_no_id_without_text_is_ever_said(omni, prompts):
    for seed in range(10):
        for reply in omni.engine.generate(prompts, Sampling(temperature=50.0, seed=seed, max_new_tokens=24)):
            assert all(len(SPECIAL_TOKENS) <= i < omni.tokenizer.vocab_size for i in reply.ids)


def test_a_closed_stream_is_over(omni, prompts):
    stream = omni.engine.stream(prompts[0], FREE)
    next(stream)
    stream.close()
    assert list(stream) == []
    assert not torch.is_inference_mode_enabled()


def test_no_prompt_gives_no_reply(omni):
    assert omni.engine.generate([], Sampling()) == []


def test_a_reply_does_not_end_before_it_may(omni):
    logits = torch.zeros(omni.tokenizer.vocab_size)
    logits[omni.tokenizer.end_id] = 9.0
    draft = Draft(8, Sampling(min_new_tokens=3), omni.tokenizer)
    for n in range(3):
        assert (draft.stopped, len(draft.ids)) == (None, n)
        draft.choose(logits)
    draft.choose(logits)
    assert (draft.stopped, len(draft.ids)) == ("end", 3)
    assert omni.tokenizer.end_id not in draft.ids
