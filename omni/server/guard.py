"""What stands before every endpoint: who may ask, from where, how much, and how slowly it comes. Pure ASGI: a body is whole before anybody reads it."""

from __future__ import annotations

import asyncio
import hmac
import time
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from omni.errors import OmniError
from omni.server.errors import ApiError, error_response
from omni.server.service import Service
from omni.server.settings import is_loopback
from omni.server.worker import Overloaded

BODIES_AT_ONCE = 8  # of the largest size; together, requests hold no more than this, whole or on their way
BODIES_RETRY_S = 1
OPEN = ("/", "/docs", "/health", "/openapi.json")  # and /static: they tell nothing, and a browser's first look brings no key
KEY_PROTOCOL = "openai-insecure-api-key."  # how browsers, which cannot set headers there, give a WebSocket's key


class Guard:
    """Wraps the application."""

    def __init__(self, app: ASGIApp, service: Service) -> None:
        self.app, self.service, self.settings = app, service, service.settings
        self._key = None if self.settings.api_key is None else self.settings.api_key.encode()
        self._held_bytes = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self.app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        if scope["type"] == "websocket":
            try:
                self._check(scope, headers)
            except ApiError:
                await receive()
                await send({"type": "websocket.close", "code": 1008})  # before it is accepted: the client sees 403
                return
            await self.app(scope, receive, send)
            return
        start_s, status = time.monotonic(), 0
        held: list[bytes] = []

        async def secured_send(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message["headers"], *SECURITY]
            await send(message)

        try:
            try:
                self._check(scope, headers)
                body = await self._body(headers, receive, held)
            except OmniError as error:
                response = error_response(error)
                response.headers["Connection"] = "close"  # what is left of the body is not read
                await response(scope, receive, secured_send)
                return
            await self.app(scope, _replay(body, receive), secured_send)
        finally:
            self._held_bytes -= sum(map(len, held))
            route = getattr(scope.get("route"), "path", "other")
            self.service.metrics.answered(route, status, time.monotonic() - start_s)

    def _check(self, scope: Scope, headers: Headers) -> None:
        """Raises ApiError for a foreign page or name, and for a missing or wrong key."""
        host = headers.get("host", "")
        if self._key is None and is_loopback(self.settings.host) and not is_loopback(_name(f"//{host}")):
            # a foreign name that was made to point here; its pages have no key
            raise ApiError(403, "this server answers to its own name only")
        origin = headers.get("origin")
        if origin is not None and origin.partition("://")[2] != host:
            raise ApiError(403, "this server answers its own page only")
        path: str = scope["path"]
        if self._key is None or path in OPEN or path.startswith("/static/"):
            return
        scheme, _, given = headers.get("authorization", "").partition(" ")
        if scheme.lower() != "bearer":
            offered = [name.strip() for name in headers.get("sec-websocket-protocol", "").split(",")]
            given = next((name.removeprefix(KEY_PROTOCOL) for name in offered if name.startswith(KEY_PROTOCOL)), "")
        if not hmac.compare_digest(given.strip().encode("utf-8", "surrogateescape"), self._key):
            raise ApiError(401, "the API key is missing or wrong; send it as: Authorization: Bearer KEY")

    async def _body(self, headers: Headers, receive: Receive, held: list[bytes]) -> bytes:
        """The whole body, of which `held` has what is there, counted among the bytes that the server holds. Raises ApiError if it is too long or too
        slow, Overloaded if the server holds too much already."""
        most = self.settings.max_body_bytes
        too_large = ApiError(413, f"the body exceeds the limit of {most} bytes")
        length = headers.get("content-length", "0")
        if not length.isdecimal() or int(length) > most:
            raise too_large
        size = 0
        try:
            async with asyncio.timeout(self.settings.body_time_s):
                while True:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        raise ApiError(400, "the client has gone")
                    part = message.get("body", b"")
                    size += len(part)
                    if size > most:
                        raise too_large
                    if self._held_bytes + len(part) > BODIES_AT_ONCE * most:
                        raise Overloaded(BODIES_RETRY_S)
                    held.append(part)
                    self._held_bytes += len(part)
                    if not message.get("more_body", False):
                        held[:] = [b"".join(held)]
                        return held[0]
        except TimeoutError:
            raise ApiError(408, f"the body took longer than {self.settings.body_time_s:g} s") from None


SECURITY = [
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (
        b"content-security-policy",
        b"default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; media-src 'self' data: blob:; "
        b"connect-src 'self'; worker-src 'self' blob:; form-action 'none'; base-uri 'none'; frame-ancestors 'none'",
    ),
]


def _name(address: str) -> str:
    """The host in an address; nothing if there is none."""
    try:
        return urlsplit(address).hostname or ""
    except ValueError:
        return ""


def _replay(body: bytes, receive: Receive) -> Receive:
    """The whole body first, then whatever comes (a client that goes away)."""
    given = False

    async def again() -> Message:
        nonlocal given
        if given:
            return await receive()
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return again
