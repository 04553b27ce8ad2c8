"""Connections whose clients do not take what they are sent: each is cut off in time, whatever it was sent and whether it was closed before."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any

import pytest
import uvicorn
import uvloop
import websockets

from omni.server.serve import configured
from omni.server.settings import MEGABYTE, Settings

WRITE_TIME_S = 0.5
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
async def serving(app: Any) -> AsyncIterator[tuple[uvicorn.Server, int]]:
    listener = socket.create_server(("127.0.0.1", 0))
    config = configured(app, Settings(write_time_s=WRITE_TIME_S))
    config.lifespan, config.ws_per_message_deflate = "off", False
    server = uvicorn.Server(config)
    running = asyncio.create_task(server.serve([listener]))
    try:
        yield server, listener.getsockname()[1]
    finally:
        begun_s = time.monotonic()
        server.should_exit = True
        await running
    assert time.monotonic() - begun_s < 10  # nobody holds up the end


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
