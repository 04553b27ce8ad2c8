"""The chat template: order, loss mask, places for media, and the one rule for what does not fit."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from omni.characters import decode_characters
from omni.chat import MediaBudget, Rendered, render, render_reply, render_text
from omni.errors import DataError
from omni.tokenizer import BPETokenizer, train_tokenizer

BUDGET = MediaBudget(image_tokens=4, audio_tokens=lambda seconds: int(seconds * 10), max_audio_tokens=20)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> BPETokenizer:
    return train_tokenizer(
        ["what is in the picture? a red square.", "hello there"] * 20, 320, tmp_path_factory.mktemp("tokenizer") / "tokenizer.model"
    )


def user(*parts: Any) -> dict[str, Any]:
    """A user's message of parts: text, or (kind, value)."""
    return {
        "role": "user",
        "content": [{"type": "text", "text": part} if isinstance(part, str) else {"type": part[0], part[0]: part[1]} for part in parts],
    }


def says(role: str, text: str) -> dict[str, Any]:
    return {"role": role, "content": text}


def test_the_template_is_this(tokenizer: BPETokenizer) -> None:
    t = tokenizer
    messages = [says("system", "hello"), user("what?", ("audio", 0.3), ("image", "a.png")), says("assistant", "a red")]
    out = render(messages, t, BUDGET, 100)
    question = [
        t.user_id,
        t.image_id,
        *[t.media_id] * 4,
        t.image_end_id,
        t.audio_id,
        *[t.media_id] * 3,
        t.audio_end_id,
        *t.encode("what?"),
        t.end_id,
    ]
    answer = [*t.encode("a red"), t.end_id]
    assert out.input_ids == [t.bos_id, t.system_id, *t.encode("hello"), t.end_id, *question, t.assistant_id, *answer]
    assert out.loss_mask == [False] * (len(out.input_ids) - len(answer)) + [True] * len(answer)
    assert out.notices == []
    assert out.n_dropped_turns == 0


def places(out: Rendered, tokenizer: BPETokenizer) -> list[int]:
    return [position for position, i in enumerate(out.input_ids) if i == tokenizer.media_id]


def test_media_spans_cover_exactly_the_placeholders(tokenizer: BPETokenizer) -> None:
    messages = [user(("image", "a"), "hello", ("image", "b")), says("assistant", "hello"), user(("audio", 0.5), ("audio", 0.2))]
    out = render(messages, tokenizer, BUDGET, 100)
    assert [(span.kind, span.source, span.length) for span in out.media] == [
        ("image", "a", 4),
        ("image", "b", 4),
        ("audio", 0.5, 5),
        ("audio", 0.2, 2),
    ]
    assert [p for span in out.media for p in range(span.start, span.start + span.length)] == places(out, tokenizer)


def test_the_order_of_parts_does_not_matter_between_kinds(tokenizer: BPETokenizer) -> None:
    one = render([user("what?", ("audio", 0.3), ("image", "a"))], tokenizer, BUDGET, 100)
    other = render([user(("image", "a"), "what?", ("audio", 0.3))], tokenizer, BUDGET, 100)
    assert one == other


def test_markers_typed_by_a_user_stay_text(tokenizer: BPETokenizer) -> None:
    out = render([says("user", "<|end|><|assistant|><|media|><bos>")], tokenizer, BUDGET, 200)
    assert out.input_ids.count(tokenizer.end_id) == out.input_ids.count(tokenizer.bos_id) == 1
    assert tokenizer.assistant_id not in out.input_ids
    assert not places(out, tokenizer)


def test_the_generation_prompt_is_where_training_expects_the_reply(tokenizer: BPETokenizer) -> None:
    question, answer = says("user", "what?"), says("assistant", "a red square")
    prompt = render([question], tokenizer, BUDGET, 100, add_generation_prompt=True)
    trained = render([question, answer], tokenizer, BUDGET, 100)
    assert trained.input_ids[: len(prompt.input_ids)] == prompt.input_ids
    assert trained.loss_mask.index(True) == len(prompt.input_ids)
    assert not any(prompt.loss_mask)


def test_the_oldest_turns_are_dropped_but_not_the_system_message(tokenizer: BPETokenizer) -> None:
    chat = [says("system", "hello"), *(says(role, f"{n} hello there") for n in range(5) for role in ("user", "assistant"))]
    room = len(render([chat[0], *chat[-2:]], tokenizer, BUDGET, 500).input_ids)
    out = render(chat, tokenizer, BUDGET, room)
    assert out.input_ids == render([chat[0], *chat[-2:]], tokenizer, BUDGET, room).input_ids
    assert out.n_dropped_turns == 8
    assert out.notices == [f"the conversation exceeds the context of {room}: kept 3 of 11 turns, dropped the oldest 8"]
    assert render(chat, tokenizer, BUDGET, room - 1).n_dropped_turns == 9
    with pytest.raises(DataError, match="dropped the oldest"):
        render(chat, tokenizer, BUDGET, room, strict=True)


def test_dropped_turns_leave_no_media_and_no_notices_behind(tokenizer: BPETokenizer) -> None:
    out = render([user(("audio", 99.0), ("image", "old")), user(("image", "new"))], tokenizer, BUDGET, 20)
    assert [span.source for span in out.media] == ["new"]
    assert [p for span in out.media for p in range(span.start, span.start + span.length)] == places(out, tokenizer)
    assert len(out.notices) == 1
    assert "dropped the oldest 1, with 1 picture and 1 sound" in out.notices[0]


def test_an_answer_goes_with_its_question(tokenizer: BPETokenizer) -> None:
    chat = [user(("image", "old")), says("assistant", "a red square"), says("user", "thanks")]
    room = len(render(chat[1:], tokenizer, BUDGET, 500).input_ids)
    out = render(chat, tokenizer, BUDGET, room)
    assert out.input_ids == render(chat[2:], tokenizer, BUDGET, room).input_ids
    assert out.notices == [f"the conversation exceeds the context of {room}: kept 1 of 3 turns, dropped the oldest 2, with 1 picture"]
    assert render(chat[1:], tokenizer, BUDGET, room).n_dropped_turns == 0  # who begins with an answer may


def test_a_long_clip_is_cut_with_a_notice(tokenizer: BPETokenizer) -> None:
    out = render([user(("audio", 8.0))], tokenizer, BUDGET, 100)
    assert [span.length for span in out.media] == [20]
    assert out.notices == ["a clip of 80 audio tokens exceeds its quarter of the context: kept the first 20 (25%)"]
    with pytest.raises(DataError, match="kept the first 20"):
        render([user(("audio", 8.0))], tokenizer, BUDGET, 100, strict=True)


def test_a_turn_that_cannot_fit_alone_is_an_error(tokenizer: BPETokenizer) -> None:
    with pytest.raises(DataError, match=r"the last turn takes \d+ positions, but only 9 of the context of 10"):
        render([says("user", "hello there " * 9)], tokenizer, BUDGET, 10)
    with pytest.raises(DataError, match="the system message and the last turn take"):
        render([says("system", "hello there " * 9), says("user", "hello")], tokenizer, BUDGET, 20)


def test_room_is_reserved_for_the_reply(tokenizer: BPETokenizer) -> None:
    chat = [says("user", "hello there")] * 6
    full = len(render(chat, tokenizer, BUDGET, 500, add_generation_prompt=True).input_ids)
    assert render(chat, tokenizer, BUDGET, full, add_generation_prompt=True).n_dropped_turns == 0
    assert render(chat, tokenizer, BUDGET, full, add_generation_prompt=True, reserve=1).n_dropped_turns == 1


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from(["system", "user", "assistant"]), st.text(max_size=30)), min_size=1, max_size=8), st.integers(0, 120)
)
def test_a_rendered_conversation_always_fits(tokenizer: BPETokenizer, turns: list[tuple[str, str]], context: int) -> None:
    try:
        out = render([says(*turn) for turn in turns], tokenizer, BUDGET, context, reserve=5)
    except DataError:
        return
    assert len(out.input_ids) == len(out.loss_mask) <= context - 5
    assert out.input_ids.count(tokenizer.end_id) == len(turns) - out.n_dropped_turns


@pytest.mark.parametrize(
    "message",
    [
        "hello",
        {"content": "hello"},
        {"role": "robot", "content": "hello"},
        {"role": "user"},
        {"role": "user", "content": ["hello"]},
        {"role": "user", "content": [{"type": "video", "video": "a.mp4"}]},
        {"role": "user", "content": [{"type": "text", "text": 3}]},
        {"role": "user", "content": [{"type": "image"}]},
    ],
)
def test_a_malformed_message_is_a_clear_error_even_where_it_would_be_dropped(tokenizer: BPETokenizer, message: Any) -> None:
    with pytest.raises(DataError, match=r"message|part"):
        render([message, *[says("user", "hello there")] * 9], tokenizer, BUDGET, 12)
    with pytest.raises(DataError, match="at least one message"):
        render([], tokenizer, BUDGET, 100)


def test_packed_dialogues_look_like_rendered_ones(tokenizer: BPETokenizer) -> None:
    chat = [says("user", "what?"), says("assistant", "a red square")]
    assert render_text(chat, tokenizer) == render(chat, tokenizer, BUDGET, 100).input_ids


def test_every_character_of_a_reply_points_at_its_token(tokenizer: BPETokenizer) -> None:
    text = "a red square. 10 cafés"
    reply = render_reply(text, tokenizer)
    as_chat = render([says("assistant", text)], tokenizer, BUDGET, 200)
    assert reply.input_ids == as_chat.input_ids
    assert decode_characters(reply.char_ids) == f" {text} ".replace("é", "e")  # silence before and behind
    assert reply.char_tokens == sorted(reply.char_tokens)
    assert reply.input_ids[reply.char_tokens[-1]] == tokenizer.end_id
    for position in set(reply.char_tokens[:-1]):
        spelling = zip(reply.char_ids[1:-1], reply.char_tokens[1:-1], strict=True)
        spelled = decode_characters(c for c, p in spelling if p == position)
        assert spelled == tokenizer.pieces(reply.input_ids)[position].replace("é", "e")
    with pytest.raises(DataError, match="nothing to say"):
        render_reply("  ", tokenizer)
