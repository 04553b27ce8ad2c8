"""Running the application under uvicorn."""

from __future__ import annotations

import asyncio
import logging
import signal
import socket
import sys
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import uvicorn
from fastapi import FastAPI
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol

from omni.errors import ConfigError
from omni.inference.omni import Omni
from omni.server.app import create_app
from omni.server.settings import MEGABYTE, Settings

log = logging.getLogger(__name__)

CONNECTIONS = 1024
HEADER_TIME_S = 10.0
SWITCH_S = 0.0005  # how long the event loop may keep the worker from running Python, and the other way round


class Timer:
    """Calls `act` after `seconds`, unless it is stopped or started anew before."""

    def __init__(self, seconds: float, act: Callable[[], None]) -> None:
        self.seconds, self.act = seconds, act
        self._handle: asyncio.TimerHandle | None = None

    def start(self, loop: asyncio.AbstractEventLoop) -> None:
        """Count from now."""
        self.stop()
        self._handle = loop.call_later(self.seconds, self.act)

    def stop(self) -> None:
        """Call nothing."""
        if self._handle is not None:
            self._handle.cancel()


class Patient(asyncio.Protocol):
    """A connection whose client is cut off when for `write_time_s` it does not take what it is sent. `close` alone would wait for it for ever."""

    loop: asyncio.AbstractEventLoop
    transport: asyncio.Transport

    def __init__(self, *arguments: Any, write_time_s: float, **settings: Any) -> None:
        super().__init__(*arguments, **settings)
        self._deaf = Timer(write_time_s, self._cut_off)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self.transport.set_write_buffer_limits(high=0)  # paused from the first byte that is not taken, so that none is forgotten

    def pause_writing(self) -> None:
        self._deaf.start(self.loop)
        super().pause_writing()

    def resume_writing(self) -> None:
        self._deaf.stop()
        super().resume_writing()

    def connection_lost(self, exc: Exception | None) -> None:
        self._deaf.stop()
        super().connection_lost(exc)

    def _cut_off(self) -> None:
        log.info("a client did not take its answer")
        self.transport.abort()


class PatientWebSocket(Patient, WebSocketsSansIOProtocol):
    """A WebSocket."""


class PatientHTTP(Patient, HttpToolsProtocol):
    """HTTP whose heads must arrive in time; a connection that dawdles is closed."""

    def __init__(self, *arguments: Any, **settings: Any) -> None:
        super().__init__(*arguments, **settings)
        self._late = Timer(HEADER_TIME_S, lambda: self.transport.close())

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self._late.start(self.loop)

    def on_message_begin(self) -> None:
        self._late.start(self.loop)
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        self._late.stop()
        super().on_headers_complete()

    def connection_lost(self, exc: Exception | None) -> None:
        self._late.stop()
        super().connection_lost(exc)


def warm_up(omni: Omni) -> None:
    """A first request of each kind is slow; let it be ours."""
    if "thinker" in omni.model.components:
        omni.chat([{"role": "user", "content": "Hello"}])
    if {"thinker", "talker", "codec"} <= set(omni.model.components):
        omni.say("Hello there.")


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens. Raises ConfigError where that is not possible."""
    try:
        return socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET, backlog=1024)
    except OSError as error:
        raise ConfigError(f"{host}:{port}: cannot listen there: {error.strerror or error}; choose another --host or --port") from None


def configured(app: FastAPI, settings: Settings) -> uvicorn.Config:
    """How the application is served."""
    return uvicorn.Config(
        app,
        http=partial(PatientHTTP, write_time_s=settings.write_time_s),  # type: ignore[arg-type]
        ws=partial(PatientWebSocket, write_time_s=settings.write_time_s),  # type: ignore[arg-type]
        loop="uvloop",
        ws_max_size=8 * MEGABYTE,
        log_level="warning",
        access_log=False,
        server_header=False,
        limit_concurrency=CONNECTIONS,
        timeout_graceful_shutdown=round(settings.time_limit_s) + 5,
    )


def run(omni: Omni, settings: Settings, threads: int = 1) -> None:
    """Serve until a signal; then accept nothing more, finish what was accepted, and return. The log tells the address."""
    listener = listen(settings.host, settings.port)
    torch.set_num_threads(threads)
    sys.setswitchinterval(SWITCH_S)
    warm_up(omni)
    config = configured(create_app(omni, settings), settings)
    for number in (
        signal.SIGINT,
        signal.SIGTERM,
    ):  # uvicorn handles them, and raises them again once it has shut down: by then they are obeyed
        signal.signal(number, signal.SIG_IGN)
    host = f"[{settings.host}]" if ":" in settings.host else settings.host
    log.info("serving %s on http://%s:%d", settings.name, host, listener.getsockname()[1])
    uvicorn.Server(config).run(sockets=[listener])
