"""A conversation: what is remembered, and what is not."""

import json
import os

import pytest

from omni.errors import DataError
from omni.inference.conversation import Conversation
from omni.inference.omni import CUT_OFF
from omni.inference.sampling import Sampling


@pytest.fixture
def conversation(omni) -> Conversation:
    return Conversation(omni, Sampling(max_new_tokens=8))


def say(conversation: Conversation, text: str) -> str:
    return "".join(conversation.send(text))


def test_the_history_is_part_of_the_next_question(omni, conversation):
    first = say(conversation, "Hello")
    second = say(conversation, "And now?")
    history = [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": first}, {"role": "user", "content": "And now?"}]
    assert second == omni.chat(history, conversation.sampling).text
    assert second != omni.chat(history[2:], conversation.sampling).text
    assert conversation.last_reply == second


def test_media_go_with_the_next_message_and_are_kept(omni, conversation, media, tmp_path):
    picture = tmp_path / "p.png"
    picture.write_bytes((media / "a.png").read_bytes())
    conversation.attach("image", str(picture))
    conversation.attach("audio", str(media / "short.wav"))
    first = say(conversation, "What?")
    assert first == omni.ask("What?", image=picture, audio=media / "short.wav", sampling=conversation.sampling).text
    picture.unlink()
    say(conversation, "Why?")  # the file is not needed any more
    assert [p["type"] for p in conversation.messages[0]["content"]] == ["image", "audio", "text"]
    assert [p["type"] for p in conversation.messages[2]["content"]] == ["text"]


def test_it_is_saved_as_messages_with_file_names(conversation, media, tmp_path):
    conversation.attach("image", str(media / "a.png"))
    reply = say(conversation, "Wie geht’s?")
    conversation.save(tmp_path / "c.json")
    messages = json.loads((tmp_path / "c.json").read_text(encoding="utf-8"))["messages"]
    content = [{"type": "image", "image": os.path.relpath(media / "a.png", tmp_path)}, {"type": "text", "text": "Wie geht’s?"}]
    assert messages == [{"role": "user", "content": content}, {"role": "assistant", "content": reply}]
    with pytest.raises(DataError, match="cannot be written"):
        conversation.save(tmp_path / "no" / "c.json")


def test_an_exchange_that_is_broken_off_or_fails_is_not_remembered(conversation, media):
    say(conversation, "Hello")
    before = list(conversation.messages)
    conversation.attach("image", str(media / "a.png"))
    pieces = conversation.send("And now?")
    next(pieces)
    pieces.close()
    with pytest.raises(DataError, match="the last turn takes"):
        say(conversation, "word " * 500)
    assert conversation.messages == before
    say(conversation, "Again")
    assert [p["type"] for p in conversation.messages[2]["content"]] == ["image", "text"]  # what was attached is still there


def test_a_file_that_is_no_use_is_refused_when_it_is_attached(conversation, media):
    for kind, file in (("image", "nowhere.png"), ("image", str(media / "short.wav")), ("audio", str(media / "a.png")), ("audio", "")):
        with pytest.raises(DataError):
            conversation.attach(kind, file)
    with pytest.raises(DataError, match="nothing was said"):
        say(conversation, "")


def test_reset_forgets_everything(conversation, media):
    first = say(conversation, "Hello")
    conversation.attach("image", str(media / "a.png"))
    conversation.reset()
    assert say(conversation, "Hello") == first


def test_a_long_conversation_drops_its_oldest_turns_with_a_notice(conversation):
    for _ in range(12):
        say(conversation, "The circle is red.")
    assert "dropped the oldest" in conversation.notices[0]


def test_a_reply_that_was_cut_off_says_so(conversation):
    say(conversation, "Hello")
    assert conversation.notices == [CUT_OFF]  # no random model ends within six tokens


def test_what_is_attached_can_be_left_out_again(conversation, media):
    conversation.attach("image", str(media / "a.png"))
    assert conversation.attached == [str(media / "a.png")]
    conversation.detach()
    say(conversation, "Hello")
    assert conversation.messages[0]["content"] == [{"type": "text", "text": "Hello"}]
