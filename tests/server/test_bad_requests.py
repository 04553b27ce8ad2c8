"""Whatever is sent, the answer is a 4xx in OpenAI's shape or a clean close, nothing of our insides is told, and the server is healthy after it."""

from __future__ import annotations

import base64
import copy
import http.client
import io
import json
import random
import socket
import string
import struct
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from PIL import Image
from served import Served, data_uri, encoded

CHAT = "/v1/chat/completions"
JSON = {"Content-Type": "application/json"}


def chat(content: Any, **more: Any) -> dict[str, Any]:
    return {"model": "muomni", "messages": [{"role": "user", "content": content}], "max_tokens": 2, **more}


def image(url: str) -> list[Any]:
    return [{"type": "image_url", "image_url": {"url": url}}]


def audio(data: bytes) -> list[Any]:
    return [{"type": "input_audio", "input_audio": {"data": base64.b64encode(data).decode(), "format": "wav"}}]


def large_picture() -> str:
    file = io.BytesIO()
    Image.new("1", (10_000, 10_000)).save(file, format="PNG")
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()


def two_hours() -> bytes:
    file = io.BytesIO()
    soundfile.write(file, np.zeros(7200 * 8000, np.int16), 8000, format="FLAC")
    return file.getvalue()


def checked(status: int, answer: Any) -> str:
    """The message of an error in OpenAI's shape."""
    assert 400 <= status < 500, (status, answer)
    assert set(answer) == {"error"}
    assert set(answer["error"]) == {"message", "type", "param", "code"}
    message = answer["error"]["message"]
    assert "Traceback" not in message
    assert "/omni/" not in message
    assert " at 0x" not in message
    assert len(message) < 1000
    return str(message)


CASES: dict[str, tuple[Any, str]] = {
    "no model": ({"messages": []}, "model"),
    "another model": (chat("Hello", model="gpt-4o"), "no model 'gpt-4o'"),
    "no messages": ({"model": "muomni", "messages": []}, "messages"),
    "unknown role": ({"model": "muomni", "messages": [{"role": "wizard", "content": "x"}]}, "messages.0.role"),
    "half a surrogate as a part": (chat([{"type": "\ud800"}]), "messages.0.content"),
    "unknown part": (chat([{"type": "video", "video": "x"}]), "messages.0.content"),
    "no content": ({"model": "muomni", "messages": [{"role": "user"}]}, "neither content nor audio"),
    "temperature": (chat("x", temperature=3), "temperature"),
    "top_p": (chat("x", top_p=0), "top_p"),
    "no tokens": (chat("x", max_tokens=0), "max_tokens"),
    "empty stop": (chat("x", stop=""), "stop"),
    "five stops": (chat("x", stop=list("abcde")), "stop"),
    "tools": (chat("x", tools=[{"type": "function"}]), "tools"),
    "two answers": (chat("x", n=2), "n: "),
    "json mode": (chat("x", response_format={"type": "json_object"}), "response_format"),
    "unknown voice": (chat("x", modalities=["audio"], audio={"voice": "nobody"}), "ada, bob"),
    "mp3 stream": (chat("x", modalities=["audio"], audio={"format": "mp3"}, stream=True), "audio.format"),
    "half a surrogate": (chat("\ud800"), "surrogate|unicode"),
    "too long": (chat("word " * 1000), "context of 128"),
    "10,000 messages": ({"model": "muomni", "messages": [{"role": "user", "content": "x"}] * 10_000}, "at most 1000"),
    "too many pictures": (chat(image("data:image/png;base64,AA==") * 40), "more than 32"),
    "too many parts": (chat([{"type": "text", "text": "x"}] * 101), "at most 100"),
    "too much text": (chat("x" * 1_000_001), "exceed the limit of 1000000"),
    "remote picture": (chat(image("http://127.0.0.1:1/a.png")), "fetches nothing"),
    "file as picture": (chat(image("file:///etc/passwd")), "fetches nothing"),
    "wrong base64": (chat(image("data:image/png;base64,@@@")), "not valid base64"),
    "no picture": (chat(image("data:image/png;base64,AAAA")), "not a readable picture"),
    "no sound": (chat(audio(b"nonsense")), "not a readable audio file"),
}


@pytest.mark.parametrize("case", CASES)
def test_a_wrong_request_is_told_what_is_wrong(case: str, server: Served) -> None:
    body, wanted = CASES[case]
    message = checked(*server.post(CHAT, body))
    assert any(part in message for part in wanted.split("|")), message
    assert server.healthy


def test_media_that_would_cost_much_cost_little(server: Served, media: Path) -> None:
    for content, wanted in (
        (image(large_picture()), "exceed"),
        (audio(two_hours()), "exceed"),
        (audio((media / "short.wav").read_bytes()[:-1000]), "cut off"),
    ):
        assert wanted in checked(*server.post(CHAT, chat(content)))
    assert server.healthy


@pytest.mark.parametrize(
    ("path", "body", "headers", "status"),
    [
        (CHAT, b"{", JSON, 400),
        (CHAT, b"", JSON, 400),
        (CHAT, b"\xff\xfe", JSON, 400),
        (CHAT, b"[" * 100_000, JSON, 400),
        (CHAT, b'{"model": ' + b"9" * 5000 + b"}", JSON, 400),
        (CHAT, b'{"model": "muomni", "messages": [{"role": "user", "content": "x"}], "temperature": NaN}', JSON, 400),
        (CHAT, b'{"model": "muomni", "messages": [{"role": "user", "content": "x"}]}', {"Content-Type": "text/plain"}, 400),
        (CHAT, b"{}", {**JSON, "Origin": "http://evil.example"}, 403),
        (CHAT, b"{}", {**JSON, "Host": "evil.example"}, 403),
        (CHAT, b"{}", {**JSON, "Content-Length": str(10**12)}, 413),
        ("/v1/audio/transcriptions", b"--x\r\n", {"Content-Type": "multipart/form-data; boundary=x"}, 400),
        ("/v1/audio/transcriptions", b"{}", JSON, 400),
        ("/v1/nothing", b"{}", JSON, 404),
        ("/static/../../../etc/passwd", None, {}, 404),
    ],
)
def test_a_broken_request_is_refused(path: str, body: bytes | None, headers: dict[str, str], status: int, server: Served) -> None:
    found, data = server.ask("POST", path, body, headers)
    assert found == status, data
    checked(found, json.loads(data))
    assert server.healthy


def test_a_wrong_method_is_told_the_right_one(server: Served) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
    connection.request("GET", CHAT)
    response = connection.getresponse()
    assert (response.status, response.getheader("Allow")) == (405, "POST")
    checked(response.status, json.loads(response.read()))
    connection.close()


def test_wrong_speech_and_transcription_requests_are_told_so(server: Served) -> None:
    for body, wanted in (
        ({"model": "muomni", "input": ""}, "nothing to say"),
        ({"model": "muomni", "input": "x" * 5000}, "exceed the limit"),
        ({"model": "muomni", "input": "Hello", "voice": "nobody"}, "ada, bob"),
        ({"model": "muomni", "input": "Hello", "response_format": "aac"}, "response_format"),
        ({"model": "muomni", "input": "Hello", "speed": 2}, "speed"),
        ({"model": "muomni", "input": "Hello", "instructions": "Whisper."}, "instructions"),
    ):
        assert wanted in checked(*server.post("/v1/audio/speech", body))
    for name, value in (("language", "de"), ("prompt", "Names"), ("temperature", "0.5"), ("include[]", "logprobs"), ("keywords[]", "a")):
        body = b"".join(
            f'--x\r\nContent-Disposition: form-data; name="{field}"\r\n\r\n{text}\r\n'.encode()
            for field, text in (("model", "muomni"), (name, value))
        )
        body += b'--x\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\nRIFF\r\n--x--\r\n'
        status, answer = server.ask("POST", "/v1/audio/transcriptions", body, {"Content-Type": "multipart/form-data; boundary=x"})
        assert name.removesuffix("[]") in checked(status, json.loads(answer))
    assert server.healthy


# --- clients that behave badly


def head(length: int, path: str = CHAT) -> bytes:
    return f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\nContent-Length: {length}\r\n\r\n".encode()


def test_clients_that_go_away_leave_nothing_behind(server: Served) -> None:
    body = json.dumps(
        chat("Hello!", stream=True, temperature=2.0, max_tokens=90, modalities=["text", "audio"], audio={"format": "pcm16"})
    ).encode()
    for wait_s in (0.0, 0.05, 0.2):
        for whole in (body, body[:20]):
            connection = socket.create_connection(("127.0.0.1", server.port))
            connection.sendall(head(len(body)) + whole)
            time.sleep(wait_s)
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            connection.close()  # with a reset
    assert server.idle()
    assert server.healthy


@pytest.mark.slow
def test_a_client_that_dawdles_is_closed(server: Served) -> None:
    connection = socket.create_connection(("127.0.0.1", server.port), timeout=60)
    connection.sendall(b"POST /v1/chat")
    assert connection.recv(1000) == b""  # the head took too long
    assert server.healthy


def test_what_is_not_http_is_closed(server: Served) -> None:
    for nonsense in (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", b"hello\r\n\r\n", b"GET / HTTP/9.9\r\n\r\n"):
        with socket.create_connection(("127.0.0.1", server.port), timeout=5) as connection:
            connection.sendall(nonsense)
            answer = b""
            while data := connection.recv(1000):  # a connection that is kept open times out
                answer += data
            assert answer.startswith(b"HTTP/1.1 400 ")
    assert server.healthy


# --- fuzz


def seeds(media: Path) -> list[dict[str, Any]]:
    return [
        chat("Hello!", temperature=0.5, top_p=0.9, seed=1, stop=["a"], stream=False),
        chat([{"type": "text", "text": "What?"}, *image(data_uri(media / "a.png"))]),
        chat([{"type": "input_audio", "input_audio": {"data": encoded(media / "short.wav"), "format": "wav"}}], stream=True),
        chat("Hello!", modalities=["text", "audio"], audio={"voice": "ada", "format": "wav"}),
    ]


ODD: list[Any] = [
    None,
    True,
    -1,
    0,
    1e308,
    10**30,
    "",
    "x",
    "\0",
    "\ud800",
    "é" * 50,
    [],
    {},
    [[]],
    [None],
    {"type": "text"},
    "data:;base64,",
    -0.5,
    2**63,
]


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    children = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path] * bool(path) + [place for key, child in children for place in places(child, (*path, key))]


def mutated(body: dict[str, Any], rng: random.Random) -> bytes:
    """`body` with a few things replaced, removed, doubled or renamed, or its bytes damaged."""
    body = copy.deepcopy(body)
    for _ in range(rng.randint(1, 3)):
        *above, last = rng.choice(places(body))
        parent = body
        for key in above:
            parent = parent[key]
        match rng.randrange(6):
            case 0 | 1:
                parent[last] = rng.choice(ODD)
            case 2:
                del parent[last]
            case 3 if isinstance(parent[last], str) and parent[last]:
                text = list(parent[last])
                for _ in range(rng.randint(1, 8)):
                    text[rng.randrange(len(text))] = rng.choice(string.printable)
                parent[last] = "".join(text)
            case 4 if isinstance(parent[last], str):
                parent[last] = parent[last][: rng.randrange(len(parent[last]) + 1)]
            case _ if isinstance(parent, dict):
                parent[rng.choice(["n", "tools", "audio", "content", "messages", "type", "muomni", "stream_options"])] = rng.choice(ODD)
        if not places(body):
            break
    data = bytearray(json.dumps(body).encode())
    if rng.random() < 0.2 and data:
        for _ in range(rng.randint(1, 5)):
            data[rng.randrange(len(data))] = rng.randrange(256)
    return bytes(data)


@pytest.mark.slow
def test_a_thousand_damaged_requests_get_an_answer_or_a_4xx(server: Served, media: Path) -> None:
    rng = random.Random(0)
    good = seeds(media)
    statuses = []
    for case in range(1000):
        data = mutated(rng.choice(good), rng)
        status, answer = server.ask("POST", CHAT, data, JSON)
        statuses.append(status)
        assert status == 200 or 400 <= status < 500, (case, status, data[:500], answer[:500])
        if status != 200:
            checked(status, json.loads(answer))
    assert server.healthy
    assert server.idle()
    assert min(statuses.count(200), statuses.count(400)) > 50


@pytest.mark.slow
def test_damaged_speech_requests_get_an_answer_or_a_4xx(server: Served) -> None:
    rng = random.Random(2)
    good = {
        "model": "muomni",
        "input": "The circle is red.",
        "voice": "ada",
        "response_format": "wav",
        "stream_format": "audio",
        "speed": 1,
    }
    for case in range(300):
        data = mutated(good, rng)
        status, answer = server.ask("POST", "/v1/audio/speech", data, JSON)
        assert status == 200 or 400 <= status < 500, (case, status, data, answer[:500])
        if status != 200:
            checked(status, json.loads(answer))
    assert server.healthy


@pytest.mark.slow
def test_damaged_sounds_get_an_answer_or_a_4xx(server: Served, media: Path) -> None:
    rng = random.Random(1)
    wave, _ = soundfile.read(media / "short.wav")
    for kind in ("WAV", "FLAC", "OGG", "MP3"):
        file = io.BytesIO()
        soundfile.write(file, wave, 16_000, format=kind)
        for case in range(30):
            data = bytearray(file.getvalue())
            for _ in range(rng.randint(1, 6)):
                data[rng.randrange(min(len(data), 200 if case % 2 else len(data)))] = rng.randrange(256)
            body = b'--x\r\nContent-Disposition: form-data; name="model"\r\n\r\nmuomni\r\n'
            body += b'--x\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n' + bytes(data) + b"\r\n--x--\r\n"
            status, answer = server.ask("POST", "/v1/audio/transcriptions", body, {"Content-Type": "multipart/form-data; boundary=x"})
            assert status in (200, 400), (kind, case, answer)
    assert server.healthy
