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
from omni.server.realtime import CHARACTER_BYTES, Conversation, size_bytes, updated
from omni.server.service import Service
from omni.server.settings import Settings
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


HELLO: dict[str, Any] = {
    "type": "conversation.item.create",
    "item": {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "Hello!"}]},
}


class Socket:
    """A client in this process: what it sends, and the events that it gets."""

    def __init__(self, *events: dict[str, Any]) -> None:
        self.incoming: asyncio.Queue[Any] = asyncio.Queue()
        self.sent: list[dict[str, Any]] = []
        self.closed: int | None = None
        for event in events:
            self.do(event)

    def do(self, event: dict[str, Any]) -> None:
        self.incoming.put_nowait({"type": "websocket.receive", "text": json.dumps(event)})

    async def receive(self) -> Any:
        return await self.incoming.get()

    async def send_text(self, text: str) -> None:
        self.sent.append(json.loads(text))

    async def close(self, code: int = 1000) -> None:
        self.closed = code
        self.incoming.put_nowait({"type": "websocket.disconnect"})

    def of(self, kind: str) -> list[dict[str, Any]]:
        return [event for event in self.sent if event["type"] == kind]


def in_process(omni: Omni, socket: Socket, until: Callable[[Conversation], bool]) -> Conversation:
    """A conversation with the client of `socket` until it has come so far."""

    async def run() -> Conversation:
        service = Service(omni, Settings())
        service.worker.start()
        conversation = Conversation(socket, service)  # type: ignore[arg-type]
        running = asyncio.create_task(conversation.run())
        while not until(conversation) and not running.done():
            await asyncio.sleep(0.01)
        await socket.close()
        await running
        await service.worker.stop()
        return conversation

    return asyncio.run(asyncio.wait_for(run(), LIMIT_S))


def settings(**detection: Any) -> dict[str, Any]:
    audio = {"input": {"turn_detection": {"type": "server_vad", **detection}}}
    return {"type": "session.update", "session": {"type": "realtime", "max_output_tokens": 8, "audio": audio}}


def append(data: bytes) -> dict[str, Any]:
    return {"type": "input_audio_buffer.append", "audio": base64.b64encode(data).decode()}


def test_a_turn_that_ends_while_a_response_is_under_way_is_answered_after_it(omni: Omni) -> None:
    turns = silent(0.6) + spoken(0.8) + silent(0.8) + spoken(0.8, seed=1) + silent(0.8)
    socket = Socket(settings(interrupt_response=False), append(turns))
    conversation = in_process(omni, socket, lambda conversation: len(socket.of("response.done")) == 2)
    assert socket.of("error") == []
    assert len(socket.of("input_audio_buffer.speech_stopped")) == 2
    assert [message["role"] for message in conversation.items.values()] == ["user", "assistant"] * 2
    kinds = [event["type"] for event in socket.sent]
    assert kinds.index("response.done") < len(kinds) - 1 - kinds[::-1].index("response.created")
    texts = [event["response"]["output"][0]["content"][0]["transcript"] for event in socket.of("response.done")]
    messages = list(conversation.items.values())
    assert texts == [omni.chat(messages[:n], Sampling(max_new_tokens=8)).text for n in (1, 3)]


def test_a_cancelled_response_is_closed_part_by_part(omni: Omni) -> None:
    socket = Socket(HELLO, {"type": "response.create"})
    cancelled = False

    def until(conversation: Conversation) -> bool:
        nonlocal cancelled
        if socket.of("response.content_part.added") and not cancelled:
            socket.do({"type": "response.cancel"})
            cancelled = True
        return bool(socket.of("response.done"))

    in_process(omni, socket, until)
    kinds = [event["type"] for event in socket.sent]
    closing = ["output_audio.done", "output_audio_transcript.done", "content_part.done", "output_item.done", "done"]
    assert [kind for kind in kinds if kind.removeprefix("response.") in closing] == [f"response.{name}" for name in closing]
    (done,), (item,) = socket.of("response.done"), socket.of("response.output_item.done")
    assert done["response"]["output"] == [item["item"]]
    assert item["item"]["status"] == ("completed" if done["response"]["status"] == "completed" else "incomplete")


def test_a_cancellation_on_the_heels_of_its_response_leaves_nothing_open(omni: Omni) -> None:
    socket = Socket(HELLO, {"type": "response.create"}, {"type": "response.cancel"})
    in_process(omni, socket, lambda conversation: bool(socket.of("response.done") or socket.of("error")))
    assert [event["type"] for event in socket.sent][-2:] == ["response.created", "response.done"]
    assert socket.sent[-1]["response"]["status"] == "cancelled"


def test_a_bug_in_a_response_ends_the_conversation(omni: Omni, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    def bug(*arguments: Any) -> None:
        raise ValueError("secret")

    monkeypatch.setattr(Service, "pieces", bug)
    socket = Socket(HELLO, {"type": "response.create"})
    codes: list[int | None] = []
    in_process(omni, socket, lambda conversation: socket.closed is not None and not codes.append(socket.closed))
    assert codes == [1011]
    assert "secret" in caplog.text
    assert "secret" not in json.dumps(socket.sent)


def test_sound_in_small_pieces_costs_no_more_than_its_samples(omni: Omni) -> None:
    pieces = [append(b"")] * 300 + [append(spoken(1 / RATE_HZ))] * 300
    socket = Socket({"type": "session.update", "session": {"type": "realtime", "audio": {"input": {"turn_detection": None}}}}, *pieces)
    socket.do({"type": "input_audio_buffer.append", "audio": base64.b64encode(spoken(0.2)).decode()})
    socket.do({"type": "input_audio_buffer.commit"})
    conversation = in_process(omni, socket, lambda conversation: bool(socket.of("conversation.item.done")))
    (message,) = conversation.items.values()
    assert len(message["content"][0]["audio"]) == pytest.approx(16_000 * (0.2 + 300 / RATE_HZ), abs=600)  # the resampler holds some back
    assert conversation._heard == b""


def test_items_are_added_at_the_end_or_not_at_all(omni: Omni) -> None:
    a, last, first = (
        {**HELLO, "previous_item_id": before, "item": {**HELLO["item"], "id": name}}
        for before, name in ((None, "a"), ("a", "b"), ("root", "c"))
    )
    socket = Socket(a, last, first)
    conversation = in_process(omni, socket, lambda conversation: bool(socket.of("error")))
    assert list(conversation.items) == ["a", "b"]
    assert socket.of("error")[0]["error"]["param"] == "previous_item_id"


def test_a_session_is_changed_section_by_section() -> None:
    old = {"a": 1, "b": {"c": 2, "d": {"e": 3}}}
    assert updated(old, {"b": {"d": {"e": 4}}}) == {"a": 1, "b": {"c": 2, "d": {"e": 4}}}
    assert updated(old, {"b": None}) == {"a": 1, "b": None}


def test_the_oldest_turns_are_forgotten_when_they_are_too_many_or_too_large(monkeypatch: pytest.MonkeyPatch) -> None:
    conversation = object.__new__(Conversation)
    conversation.items = {}
    sound = {"role": "user", "content": [{"type": "audio", "audio": np.zeros(25, np.float32)}, {"type": "text", "text": "What?"}]}
    assert size_bytes(sound) == 100 + 5 * CHARACTER_BYTES
    monkeypatch.setattr(realtime, "MAX_ITEMS", 4)
    monkeypatch.setattr(realtime, "MAX_ITEM_BYTES", 250 + 10 * CHARACTER_BYTES)
    for name in "abc":
        conversation._keep(name, sound)
    assert list(conversation.items) == ["b", "c"]
    for name in "defgh":
        conversation._keep(name, {"role": "user", "content": "Hi"})
    assert list(conversation.items) == ["e", "f", "g", "h"]
    conversation._keep("i", {"role": "user", "content": "x" * 300})
    assert list(conversation.items) == ["i"]
