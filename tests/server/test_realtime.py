"""/v1/realtime with the official client: turns are found, answers come in text and sound at 24 kHz, and an interruption silences them."""

from __future__ import annotations

import asyncio
import base64
import json
import time
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import websockets
from openai import AsyncOpenAI
from openai.resources.realtime.realtime import AsyncRealtimeConnection
from served import Served, end, start
from small_model import CONFIG, make_omni, save

from omni.inference.omni import Omni
from omni.inference.sampling import Sampling
from omni.server import realtime
from omni.server.realtime import Conversation, size_bytes, updated
from omni.tokenizer import BPETokenizer

RATE_HZ = 24_000
LIMIT_S = 120


def spoken(seconds: float, seed: int = 0) -> bytes:
    """Noise as loud as a voice."""
    wave = np.random.default_rng(seed).standard_normal(round(seconds * RATE_HZ)) * 0.15
    return (wave.clip(-1, 1) * 32767).astype("<i2").tobytes()


def silent(seconds: float) -> bytes:
    return bytes(2 * round(seconds * RATE_HZ))


def converse(server: Served, talk: Callable[[AsyncRealtimeConnection], Coroutine[Any, Any, Any]]) -> Any:
    async def run() -> Any:
        client = AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)
        async with asyncio.timeout(LIMIT_S), client.realtime.connect(model="muomni") as connection:
            return await talk(connection)

    return asyncio.run(run())


async def say(connection: AsyncRealtimeConnection, data: bytes, pace: float = 0.0) -> None:
    """Send sound in pieces of 40 ms."""
    for at in range(0, len(data), 1920):
        await connection.input_audio_buffer.append(audio=base64.b64encode(data[at : at + 1920]).decode())
        await asyncio.sleep(pace * 0.04)


async def until(connection: AsyncRealtimeConnection, kind: str) -> list[Any]:
    """The events up to the first of this kind."""
    events: list[Any] = []
    async for event in connection:
        events.append(event)
        assert event.type != "error" or kind == "error", event
        if event.type == kind:
            return events
    raise AssertionError(f"the connection ended without {kind}")


def sound_of(events: list[Any]) -> bytes:
    return b"".join(base64.b64decode(e.delta) for e in events if e.type == "response.output_audio.delta")


def test_a_spoken_turn_is_found_and_answered_aloud(server: Served, omni: Omni) -> None:
    async def talk(connection: AsyncRealtimeConnection) -> list[Any]:
        assert (await connection.recv()).type == "session.created"
        await connection.session.update(
            session={
                "type": "realtime",
                "max_output_tokens": 30,
                "audio": {"input": {"transcription": {"model": "muomni"}}, "output": {"voice": "bob"}},
            }
        )
        await until(connection, "session.updated")
        await say(connection, silent(0.6) + spoken(0.8) + silent(0.8))
        return await until(connection, "response.done")

    events = converse(server, talk)
    kinds = [event.type for event in events]
    started, stopped = (next(e for e in events if e.type == f"input_audio_buffer.speech_{what}") for what in ("started", "stopped"))
    assert started.audio_start_ms == pytest.approx(300, abs=60)  # 600, less the padding
    assert stopped.audio_end_ms == pytest.approx(1400, abs=60)
    for one, other in (
        ("input_audio_buffer.speech_started", "input_audio_buffer.speech_stopped"),
        ("input_audio_buffer.committed", "response.created"),
        ("response.created", "response.output_audio_transcript.delta"),
        ("response.output_audio.delta", "response.output_audio.done"),
    ):
        assert kinds.index(one) < kinds.index(other)
    response = events[-1].response
    text = "".join(e.delta for e in events if e.type == "response.output_audio_transcript.delta")
    assert response.status in ("completed", "incomplete")
    assert response.output[0].content[0].transcript == text
    wanted = omni.say(text, "bob", sampling=Sampling(max_new_tokens=30))
    assert len(sound_of(events)) == pytest.approx(2 * RATE_HZ * wanted.duration_s, abs=8)
    assert response.usage.output_token_details.audio_tokens == len(wanted.codes)


def test_typed_turns_are_a_chat(server: Served, omni: Omni) -> None:
    async def talk(connection: AsyncRealtimeConnection) -> list[str]:
        await connection.session.update(session={"type": "realtime", "output_modalities": ["text"], "instructions": "Be brief."})
        texts = []
        for words in ("Hello!", "Why?"):
            item: Any = {"type": "message", "role": "user", "content": [{"type": "input_text", "text": words}]}
            await connection.conversation.item.create(item=item)
            await connection.response.create(response={"max_output_tokens": 12})
            events = await until(connection, "response.done")
            texts.append("".join(e.delta for e in events if e.type == "response.output_text.delta"))
        return texts

    texts = converse(server, talk)
    messages: list[dict[str, Any]] = [{"role": "system", "content": "Be brief."}]
    for words, text in zip(("Hello!", "Why?"), texts, strict=True):
        messages.append({"role": "user", "content": words})
        assert text == omni.chat(messages, Sampling(max_new_tokens=12)).text
        messages.append({"role": "assistant", "content": text})


@pytest.fixture
def talkative(tokenizer: BPETokenizer, tmp_path: Path) -> Iterator[Served]:
    """A server whose answers take it seconds to make: its Thinker has a long context."""
    thinker = CONFIG.thinker.model_copy(update={"context_length": 4096})
    served = start(save(make_omni(tokenizer, CONFIG.model_copy(update={"thinker": thinker})), tmp_path / "model"), tmp_path)
    yield served
    end(served)


def test_an_interruption_silences_the_answer_within_200_ms(talkative: Served) -> None:
    async def talk(connection: AsyncRealtimeConnection) -> tuple[float, list[Any]]:
        await connection.session.update(session={"type": "realtime", "max_output_tokens": 3000, "audio": {"output": {"voice": "ada"}}})
        item: Any = {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "What colour is the big blue square?"}]}
        await connection.conversation.item.create(item=item)
        await say(connection, silent(0.5))
        await connection.response.create()
        await until(connection, "response.output_audio.delta")
        begun_s = time.monotonic()
        speaking = asyncio.create_task(say(connection, spoken(1.0), pace=1.0))
        last_s, events = begun_s, []
        async for event in connection:
            events.append(event)
            if event.type == "response.output_audio.delta":
                last_s = time.monotonic()
            if event.type == "response.done":
                break
        await speaking
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.5):
                events += await until(connection, "response.output_audio.delta")
        return last_s - begun_s, events

    for _ in range(3):  # the machine may be busy with something else
        silenced_s, events = converse(talkative, talk)
        done = next(e for e in events if e.type == "response.done").response
        if done.status == "cancelled" and silenced_s < 0.2:
            break
    assert done.status == "cancelled"
    assert done.status_details.reason == "turn_detected"
    assert silenced_s < 0.2
    assert talkative.idle()


def test_turns_without_detection_and_cancelling(server: Served) -> None:
    async def talk(connection: AsyncRealtimeConnection) -> tuple[list[Any], list[Any]]:
        await connection.session.update(session={"type": "realtime", "audio": {"input": {"turn_detection": None}}})
        await say(connection, spoken(0.5) + silent(1.0))
        await connection.input_audio_buffer.commit()
        first = await until(connection, "conversation.item.done")
        await connection.response.create()
        await until(connection, "response.created")
        await connection.response.cancel()
        return first, await until(connection, "response.done")

    first, second = converse(server, talk)
    assert "input_audio_buffer.speech_started" not in [e.type for e in first]
    assert second[-1].response.status in ("cancelled", "completed", "incomplete")


def test_what_is_wrong_is_an_error_event_and_the_conversation_goes_on(server: Served) -> None:
    wrong: list[Any] = [
        "",
        "{",
        "[" * 50_000,
        "[]",
        {"type": 1},
        {"type": "nonsense", "event_id": "mine"},
        {"type": "input_audio_buffer.append", "audio": "@@"},
        {"type": "input_audio_buffer.append", "audio": "AA=="},
        {"type": "input_audio_buffer.append"},
        {"type": "input_audio_buffer.commit"},
        {"type": "session.update", "session": {"type": "realtime", "output_modalities": ["video"]}},
        {"type": "session.update", "session": {"type": "realtime", "audio": {"output": {"voice": "nobody"}}}},
        {"type": "session.update", "session": {"type": "realtime", "audio": {"input": {"format": {"type": "audio/pcmu"}}}}},
        {"type": "session.update", "session": None},
        {"type": "conversation.item.create", "item": {"type": "function_call"}},
        {
            "type": "conversation.item.create",
            "item": {"type": "message", "role": "user", "content": [{"type": "input_image", "image_url": "file:///etc/passwd"}]},
        },
        {"type": "conversation.item.create"},
        {"type": "conversation.item.delete", "item_id": []},
        {"type": "response.create", "response": {"max_output_tokens": -1}},
        {"type": "response.create", "response": {"conversation": "none"}},
        {"type": "response.create", "response": {"tools": [{"type": "function", "name": "f"}]}},
        {"type": "response.create", "response": {"audio": {"output": {"voice": "nobody"}}}},
        {"type": "response.cancel"},
        b"bytes",
    ]

    async def talk() -> list[Any]:
        async with asyncio.timeout(LIMIT_S), websockets.connect(f"ws://127.0.0.1:{server.port}/v1/realtime?model=muomni") as socket:
            assert json.loads(await socket.recv())["type"] == "session.created"
            answers = []
            for event in wrong:
                await socket.send(event if isinstance(event, (str, bytes)) else json.dumps(event))
                answers.append(json.loads(await socket.recv()))
            return answers

    answers = asyncio.run(talk())
    assert [a["type"] for a in answers] == ["error"] * len(wrong)
    assert answers[5]["error"]["event_id"] == "mine"
    assert server.healthy


def test_foreign_pages_and_other_models_are_refused(server: Served) -> None:
    async def connect(**settings: Any) -> Any:
        async with websockets.connect(f"ws://127.0.0.1:{server.port}/v1/realtime", **settings) as socket:
            return json.loads(await socket.recv())

    with pytest.raises(websockets.exceptions.InvalidStatus):
        asyncio.run(connect(origin="http://evil.example"))
    assert asyncio.run(connect(subprotocols=["realtime", "openai-insecure-api-key.x"]))["type"] == "session.created"


def test_a_session_is_changed_section_by_section() -> None:
    old = {"a": 1, "b": {"c": 2, "d": {"e": 3}}}
    assert updated(old, {"b": {"d": {"e": 4}}}) == {"a": 1, "b": {"c": 2, "d": {"e": 4}}}
    assert updated(old, {"b": None}) == {"a": 1, "b": None}


def test_the_oldest_turns_are_forgotten_when_they_are_too_many_or_too_large(monkeypatch: pytest.MonkeyPatch) -> None:
    conversation = object.__new__(Conversation)
    conversation.items = {}
    sound = {"role": "user", "content": [{"type": "audio", "audio": np.zeros(25, np.float32)}, {"type": "text", "text": "What?"}]}
    assert size_bytes(sound) == 105
    monkeypatch.setattr(realtime, "MAX_ITEMS", 4)
    monkeypatch.setattr(realtime, "MAX_ITEM_BYTES", 250)
    for name in "abc":
        conversation._keep(name, sound)
    assert list(conversation.items) == ["b", "c"]
    for name in "defgh":
        conversation._keep(name, {"role": "user", "content": "Hello!"})
    assert list(conversation.items) == ["e", "f", "g", "h"]
    conversation._keep("i", {"role": "user", "content": "x" * 300})
    assert list(conversation.items) == ["i"]
