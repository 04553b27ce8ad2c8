"""The application behind real sockets: connections whose clients are slow or deaf end in time; a server that is full or late says so."""

from __future__ import annotations

import asyncio
import json
import re
import socket
import threading
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any

import pytest
import uvicorn
import uvloop
import websockets

from omni.inference import engine
from omni.inference.omni import Omni
from omni.server import service
from omni.server.app import create_app
from omni.server.serve import configured
from omni.server.service import Service
from omni.server.settings import MEGABYTE, Settings

WRITE_TIME_S = 0.5
DEAF = Settings(write_time_s=WRITE_TIME_S)
ANSWER = b"x" * (16 * MEGABYTE)  # more than the kernel takes for a client that does not read


async def whole(scope: Any, receive: Any, send: Any) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": ANSWER})


async def in_pieces(scope: Any, receive: Any, send: Any) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": []})
    for _ in range(32):
        await send({"type": "http.response.body", "body": ANSWER[:MEGABYTE], "more_body": True})
    await send({"type": "http.response.body", "body": b""})


async def failing(scope: Any, receive: Any, send: Any) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": ANSWER, "more_body": True})


async def conversing(scope: Any, receive: Any, send: Any) -> None:
    await receive()
    await send({"type": "websocket.accept"})
    await send({"type": "websocket.send", "bytes": ANSWER})
    await send({"type": "websocket.close"})


@asynccontextmanager
async def serving(app: Any, settings: Settings = DEAF) -> AsyncIterator[tuple[uvicorn.Server, int]]:
    listener = socket.create_server(("127.0.0.1", 0))
    config = configured(app, settings)
    config.ws_per_message_deflate = False  # what is sent must be large
    server = uvicorn.Server(config)
    running = asyncio.create_task(server.serve([listener]))
    try:
        yield server, listener.getsockname()[1]
    finally:
        begun_s = time.monotonic()
        server.should_exit = True
        await running
    assert time.monotonic() - begun_s < 20  # nobody holds up the end


def run(work: Coroutine[Any, Any, None]) -> None:
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(asyncio.wait_for(work, 60))


async def until(condition: Callable[[], bool]) -> None:
    while not condition():
        await asyncio.sleep(0.01)


UPGRADE = "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: MDEyMzQ1Njc4OWFiY2RlZg==\r\n"


@pytest.mark.parametrize("app", [whole, in_pieces, failing, conversing])
def test_a_client_that_takes_nothing_is_cut_off(app: Any, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")

    async def ask() -> None:
        async with serving(app) as (server, port):
            client = socket.create_connection(("127.0.0.1", port))
            client.sendall(f"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\n{UPGRADE if app is conversing else ''}\r\n".encode())
            await until(lambda: bool(server.server_state.connections))
            begun_s = time.monotonic()
            await until(lambda: not server.server_state.connections and not server.server_state.tasks)
            assert WRITE_TIME_S / 2 < time.monotonic() - begun_s < 10
            client.close()

    run(ask())
    assert "did not take its answer" in caplog.text


def test_a_slow_client_gets_all_of_it() -> None:
    async def ask() -> None:
        async with serving(in_pieces) as (_, port):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n")
            n_bytes = 0
            while data := await reader.read(4 * MEGABYTE):
                n_bytes += len(data)
                await asyncio.sleep(0.01)
            assert n_bytes > 32 * MEGABYTE
            writer.close()
        async with serving(conversing) as (_, port), websockets.connect(f"ws://127.0.0.1:{port}/", max_size=None) as client:
            assert await client.recv() == ANSWER

    run(ask())


# --- the whole application

HELLO: dict[str, Any] = {"model": "muomni", "messages": [{"role": "user", "content": "Hello!"}], "max_tokens": 20}


async def request(port: int, path: str, data: bytes, kind: str = "application/json") -> tuple[int, dict[str, str], bytes]:
    """Status, headers and body of what comes back for these bytes."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(
        f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\nContent-Type: {kind}\r\nContent-Length: {len(data)}\r\n\r\n".encode()
    )
    writer.write(data)
    head, _, body = (await reader.read(-1)).partition(b"\r\n\r\n")
    writer.close()
    status, *lines = head.decode().split("\r\n")
    return int(status.split()[1]), {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}, body


def chat(port: int, **more: Any) -> Coroutine[Any, Any, tuple[int, dict[str, str], bytes]]:
    return request(port, "/v1/chat/completions", json.dumps(HELLO | more).encode())


@pytest.mark.parametrize("stream", [True, False])
def test_a_full_server_says_when_to_come_back_and_reads_nothing(omni: Omni, monkeypatch: pytest.MonkeyPatch, stream: bool) -> None:
    gate, reads = asyncio.Event(), 0
    beside = Service.beside

    async def gated(self: Service, work: Any, *arguments: Any) -> Any:
        nonlocal reads
        reads += 1
        await gate.wait()
        return await beside(self, work, *arguments)

    monkeypatch.setattr(Service, "beside", gated)

    async def burst() -> None:
        settings = Settings(max_batch=1, max_queue=1)
        async with serving(create_app(omni, settings), settings) as (_, port):
            tasks = [asyncio.create_task(chat(port, stream=stream)) for _ in range(5)]
            while sum(task.done() for task in tasks) < 3:
                await asyncio.sleep(0.01)
            assert reads == 2
            gate.set()
            answers = await asyncio.gather(*tasks)
        refused = [headers for status, headers, _ in answers if status == 429]
        assert len(refused) == 3
        assert all(int(headers["retry-after"]) >= 1 for headers in refused)
        assert [status for status, _, _ in answers].count(200) == 2

    run(burst())


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/chat/completions", HELLO),
        ("/v1/chat/completions", HELLO | {"stream": True}),
        ("/v1/audio/speech", {"model": "muomni", "input": "Hello there."}),
        ("/v1/audio/speech", {"model": "muomni", "input": "Hello there.", "stream_format": "sse"}),
    ],
)
def test_a_request_that_waits_too_long_is_told_so(omni: Omni, path: str, body: dict[str, Any]) -> None:
    async def ask() -> None:
        settings = Settings(time_limit_s=0.0001)
        async with serving(create_app(omni, settings), settings) as (_, port):
            status, _, answer = await request(port, path, json.dumps(body).encode())
        assert status == 504
        assert json.loads(answer)["error"]["code"] == "time_limit"

    run(ask())


def test_a_body_that_does_not_come_is_not_waited_for(omni: Omni) -> None:
    async def ask() -> None:
        settings = Settings(body_time_s=0.3)
        async with serving(create_app(omni, settings), settings) as (_, port):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(b"POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 100\r\n\r\n{")
            assert (await reader.read(-1)).startswith(b"HTTP/1.1 408 ")  # and closed
            writer.close()

    run(ask())


def test_a_client_that_leaves_while_its_request_is_read_frees_its_place(omni: Omni, monkeypatch: pytest.MonkeyPatch) -> None:
    async def never(self: Service, work: Any, *arguments: Any) -> None:
        await asyncio.sleep(1000)

    monkeypatch.setattr(Service, "beside", never)

    async def leave() -> None:
        app = create_app(omni, Settings())
        async with serving(app, Settings()) as (_, port):
            task = asyncio.create_task(chat(port))
            await until(lambda: app.state.service.worker.n_waiting == 1)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            await until(lambda: app.state.service.worker.n_waiting == 0)

    run(leave())


def test_slow_sites_hold_up_nobody_else(omni: Omni, monkeypatch: pytest.MonkeyPatch) -> None:
    gate = threading.Event()
    monkeypatch.setattr(service, "fetch_all", lambda urls, max_bytes: gate.wait(60) and dict.fromkeys(urls, b""))
    picture = [{"type": "image_url", "image_url": {"url": "https://example.com/a.png"}}]

    async def ask() -> None:
        settings = Settings(allow_remote=True)
        app = create_app(omni, settings)
        async with serving(app, settings) as (_, port):
            slow = [asyncio.create_task(chat(port, messages=[{"role": "user", "content": picture}])) for _ in range(10)]
            await until(lambda: app.state.service.worker.n_waiting == 10)
            assert (await chat(port))[0] == 200
            gate.set()
            assert [status for status, _, _ in await asyncio.gather(*slow)] == [400] * 10  # no picture

    run(ask())


def test_a_spoken_answer_without_sound_can_be_referred_to(own_omni: Omni, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "sample", lambda *arguments: own_omni.tokenizer.end_id)

    async def ask() -> None:
        async with serving(create_app(own_omni, Settings()), Settings()) as (_, port):
            status, _, body = await chat(port, stream=True, modalities=["text", "audio"])
            name = re.findall(rb'"id":"(audio_\w+)"', body)[0].decode()
            again = [{"role": "assistant", "audio": {"id": name}}, *HELLO["messages"]]
            assert (status, (await chat(port, messages=again))[0]) == (200, 200)

    run(ask())
