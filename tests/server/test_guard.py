"""The guard before every endpoint: bodies that are too large, too slow or too many, foreign names and keys."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterable
from types import SimpleNamespace
from typing import Any

import pytest

from omni.server.errors import error_response
from omni.server.guard import Guard
from omni.server.settings import Settings
from omni.server.worker import Overloaded

SMALL = Settings(max_body_bytes=1000, body_time_s=0.05)
KEYED = Settings(api_key="secret")


def guard(settings: Settings = SMALL) -> tuple[Guard, list[tuple[Any, ...]]]:
    """Around an application that answers with the body it was sent; and what was counted."""
    counted: list[tuple[Any, ...]] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        message = await receive()
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": message["body"]})

    metrics = SimpleNamespace(answered=lambda *values: counted.append(values))
    return Guard(app, SimpleNamespace(settings=settings, metrics=metrics)), counted  # type: ignore[arg-type]


async def ask(
    guarded: Guard, parts: Iterable[bytes] = (b"{}",), headers: dict[str, str] | None = None, *, stall: bool = False
) -> tuple[int, bytes, dict[bytes, bytes]]:
    """One request: status, body and headers of its answer. `stall`: its end never comes."""
    sent: list[Any] = []
    waiting = list(parts)

    async def receive() -> Any:
        if not waiting:
            await asyncio.sleep(1000)
        return {"type": "http.request", "body": waiting.pop(0), "more_body": bool(waiting) or stall}

    async def send(message: Any) -> None:
        sent.append(message)

    given = {"host": "127.0.0.1:8000", **(headers or {})}
    scope = {
        "type": "http",
        "method": "POST",
        "path": "/v1/x",
        "headers": [(name.encode(), value.encode("latin-1")) for name, value in given.items()],
    }
    await guarded(scope, receive, send)
    if not sent:
        return 0, b"", {}
    return sent[0]["status"], b"".join(message.get("body", b"") for message in sent[1:]), dict(sent[0]["headers"])


def message(body: bytes) -> str:
    return str(json.loads(body)["error"]["message"])


def test_a_body_in_pieces_reaches_the_application_whole() -> None:
    guarded, counted = guard()
    status, body, headers = asyncio.run(ask(guarded, [b"a", b"", b"bc"]))
    assert (status, body) == (200, b"abc")
    assert headers[b"x-content-type-options"] == b"nosniff"
    assert counted[0][:2] == ("other", 200)
    assert guarded._held_bytes == 0


@pytest.mark.parametrize(
    ("parts", "headers", "stall", "status", "said"),
    [
        ([b"x" * 600, b"x" * 600], {}, False, 413, "limit of 1000"),
        ([b"x"], {"content-length": "1001"}, False, 413, "limit of 1000"),
        ([b"x"], {"content-length": "-1"}, False, 413, "limit of 1000"),
        ([b"x"], {}, True, 408, "took longer"),
    ],
)
def test_a_body_that_is_too_large_or_too_slow_is_refused(
    parts: list[bytes], headers: dict[str, str], stall: bool, status: int, said: str
) -> None:
    guarded, _ = guard()
    found, body, sent = asyncio.run(ask(guarded, parts, headers, stall=stall))
    assert found == status
    assert said in message(body)
    assert sent[b"connection"] == b"close"
    assert guarded._held_bytes == 0


def test_bodies_on_their_way_count_and_the_next_is_told_to_come_back() -> None:
    guarded, _ = guard()

    async def flood() -> list[Any]:
        slow = [ask(guarded, [b"x" * 999], stall=True) for _ in range(8)]
        return list(await asyncio.gather(*slow, ask(guarded, [b"y" * 999])))

    *slow, last = asyncio.run(flood())
    assert [status for status, _, _ in slow] == [408] * 8
    assert last[0] == 429
    assert last[2][b"retry-after"] == b"1"
    assert guarded._held_bytes == 0


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 200),
        ({"host": "localhost:8000"}, 200),
        ({"host": "[::1]:8000"}, 200),
        ({"host": "evil.example"}, 403),
        ({"host": "[bad"}, 403),
        ({"origin": "http://127.0.0.1:8000"}, 200),
        ({"origin": "http://evil.example"}, 403),
        ({"origin": "null"}, 403),
    ],
)
def test_only_its_own_name_and_page_are_answered(headers: dict[str, str], status: int) -> None:
    assert asyncio.run(ask(guard()[0], headers=headers))[0] == status


@pytest.mark.parametrize(
    ("given", "status"),
    [("Bearer secret", 200), ("bearer secret", 200), ("Bearer wrong", 401), ("Basic secret", 401), ("Bearer secr\xe9t", 401), (None, 401)],
)
def test_the_key_is_asked_for(given: str | None, status: int) -> None:
    found, _, headers = asyncio.run(ask(guard(KEYED)[0], headers={"authorization": given} if given is not None else {}))
    assert found == status
    assert status == 200 or headers[b"www-authenticate"] == b"Bearer"


def test_with_a_key_it_answers_to_the_name_that_a_proxy_has() -> None:
    names = {"host": "api.example", "origin": "https://api.example"}
    for more, status in (
        ({}, 401),
        ({"authorization": "Bearer secret"}, 200),
        ({"authorization": "Bearer secret", "origin": "https://b.example"}, 403),
    ):
        assert asyncio.run(ask(guard(KEYED)[0], headers=names | more))[0] == status


def test_an_overloaded_server_says_when_to_come_back() -> None:
    response = error_response(Overloaded(7))
    assert response.status_code == 429
    assert response.headers["retry-after"] == "7"
