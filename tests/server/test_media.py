"""Sounds and pictures of requests and answers: what goes out comes back in, in pieces or whole; what is too much is refused before it costs much."""

from __future__ import annotations

import base64
import io
import socketserver
import struct
import threading
import time
import zlib
from collections.abc import Iterator

import numpy as np
import pytest
import soundfile
import torch
from PIL import Image

from omni.audio import decode_audio
from omni.image import to_pixels
from omni.server import remote
from omni.server.errors import ApiError
from omni.server.media import PCM_RATE_HZ, SoundWriter, encode_sound, from_base64, picture, sound, spectrogram, to_base64
from omni.server.remote import fetch, fetch_all, public_address
from omni.server.settings import Settings

RATE_HZ = 16_000
SETTINGS = Settings(max_audio_s=5.0, max_pixels=10_000)
TONE = (0.5 * np.sin(2 * np.pi * 440 * np.arange(RATE_HZ) / RATE_HZ)).astype(np.float32)


def soon() -> float:
    return time.monotonic() + 10


def uri(data: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(data).decode()


def png(width: int, height: int) -> bytes:
    """A well-formed PNG that claims to be so large; its pixels are few bytes."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")


@pytest.mark.parametrize("kind", ["wav", "flac", "mp3", "opus"])
def test_a_sound_comes_back(kind):
    heard = sound(encode_sound(TONE, RATE_HZ, kind), "file", RATE_HZ, SETTINGS)
    assert abs(len(heard) - len(TONE)) <= 2400  # MP3 and Opus pad
    spectrum = np.abs(np.fft.rfft(heard[4000:12000]))
    assert spectrum.argmax() * RATE_HZ / 8000 == pytest.approx(440, abs=4)


@pytest.mark.parametrize("kind", ["wav", "flac", "mp3", "opus", "pcm"])
def test_a_file_in_pieces_can_be_read_like_a_whole_one(kind):
    writer = SoundWriter(kind, RATE_HZ)
    parts = [writer.write(piece) for piece in np.split(TONE, [100, 3000, 3001, 9000])]
    data = b"".join([*parts, writer.write(np.zeros(0, np.float32), last=True)])
    assert kind == "flac" or any(parts[:-1])  # it is sent while it is made
    if kind == "pcm":
        assert data == encode_sound(TONE, RATE_HZ, "pcm")
        assert len(data) == pytest.approx(2 * PCM_RATE_HZ, abs=4)
        return
    heard = decode_audio(data, "x", max_s=2.0)
    assert len(heard) / RATE_HZ == pytest.approx(1.0, abs=0.15)
    if kind in ("wav", "flac"):
        np.testing.assert_allclose(heard, TONE, atol=1e-4)


@pytest.mark.parametrize("text", ["====", "abc", "a b=", "äöü=", "data:audio/wav;base64,AAAA", "\ud800"])
def test_what_is_no_base64_is_refused(text):
    with pytest.raises(ApiError, match="not valid base64"):
        from_base64(text, "x")
    assert from_base64(to_base64(b"\0\xff"), "x") == b"\0\xff"


def test_a_picture_is_what_the_package_makes_of_it(media):
    data = (media / "a.png").read_bytes()
    wanted = to_pixels(Image.open(media / "a.png").convert("RGB"), 32)
    assert torch.equal(picture(uri(data), "x", 32, SETTINGS), wanted)


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("http://example.com/a.png", "fetches nothing"),
        ("file:///etc/passwd", "fetches nothing"),
        ("/etc/passwd", "fetches nothing"),
        ("data:image/png,abc", "a data URI is written"),
        ("data:image/png;base64,%%%", "not valid base64"),
        ("data:image/png;base64,", "not a readable picture"),
        (uri(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n"), "not a readable picture"),
        (uri(png(10_000, 10_000)), "exceed the limit|more pixels"),
        (uri(png(50_000, 50_000)), "exceed the limit|more pixels"),
        (uri(png(90, 90)), "not a readable picture"),
    ],
)
def test_what_is_no_picture_or_too_large_is_refused(url, message):
    with pytest.raises(ApiError, match=message):
        picture(url, "x", 32, SETTINGS)


def wav(seconds: float, claimed: int | None = None, channels: int = 1) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, np.zeros((round(seconds * 8000), channels), np.float32), 8000, format="WAV")
    data = bytearray(file.getvalue())
    if claimed is not None:
        data[4:8] = struct.pack("<I", claimed)
    return bytes(data)


def flac(seconds: float) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, np.zeros(round(seconds * 8000), np.float32), 8000, format="FLAC")
    return file.getvalue()


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "not a readable audio file"),
        (b"RIFF", "not a readable audio file"),
        (b"no sound at all", "not a readable audio file"),
        (wav(0), "empty"),
        (wav(1)[:-100], "cut off"),
        (wav(6), "exceed the limit"),
        (flac(7200), "exceed the limit"),  # two hours in few bytes
        (wav(1, channels=9), "exceed the limit"),
    ],
)
def test_what_is_no_sound_or_too_long_is_refused(data, message):
    assert len(data) < 200_000
    with pytest.raises(ApiError, match=message):
        sound(data, "file", RATE_HZ, SETTINGS)


def mp3(seconds: float) -> bytes:
    """Its head tells how long it is."""
    file = io.BytesIO()
    noise = np.random.default_rng(0).standard_normal(round(seconds * RATE_HZ)) * 0.1
    soundfile.write(file, noise, RATE_HZ, format="MP3")
    return file.getvalue()


def test_an_mp3_that_is_cut_off_is_refused_where_its_head_tells_its_length():
    data = mp3(4)
    assert len(sound(data, "file", RATE_HZ, SETTINGS)) == 4 * RATE_HZ
    for n in (len(data) // 2, len(data) - 1000):
        with pytest.raises(ApiError, match="the MP3 file is cut off: .* of 4 s"):
            sound(data[:n], "file", RATE_HZ, SETTINGS)
    writer = SoundWriter("mp3", RATE_HZ)
    streamed = writer.write(TONE) + writer.write(np.zeros(0, np.float32), last=True)
    assert len(sound(streamed[: len(streamed) // 2], "file", RATE_HZ, SETTINGS)) > 0


def test_a_wav_of_unknown_length_is_fine():
    assert len(sound(wav(1, claimed=0xFFFFFFFF), "file", RATE_HZ, SETTINGS)) == RATE_HZ


def test_a_limit_changes_nothing_for_what_keeps_to_it(media):
    data = (media / "short.wav").read_bytes()
    assert np.array_equal(decode_audio(data, "x"), decode_audio(data, "x", max_s=100.0))


def test_a_spectrogram_has_a_row_for_every_band():
    data = base64.b64decode(spectrogram(torch.randn(50, 128)).split(",")[1])
    assert Image.open(io.BytesIO(data)).size == (50, 128)


@pytest.mark.parametrize(
    "host",
    [
        "127.0.0.1",
        "localhost",
        "10.0.0.1",
        "169.254.169.254",
        "[::1]",
        "[::ffff:127.0.0.1]",
        "0.0.0.0",
        "224.0.0.1",
        "[64:ff9b::7f00:1]",
        "[2002:7f00:1::]",
    ],
)
def test_a_private_address_is_never_fetched_from(host, monkeypatch):
    with pytest.raises(ApiError, match="not public|no address"):
        fetch(f"http://{host}/a.png", "x", max_bytes=1000, until_s=soon())


def test_a_name_with_one_private_address_is_private(monkeypatch):
    found = [(2, 1, 6, "", ("8.8.8.8", 80)), (2, 1, 6, "", ("192.168.0.1", 80))]
    monkeypatch.setattr("socket.getaddrinfo", lambda *arguments, **settings: found)
    with pytest.raises(ApiError, match="not public"):
        public_address("example.com", 80, "x")
    monkeypatch.setattr("socket.getaddrinfo", lambda *arguments, **settings: found[:1])
    assert public_address("example.com", 80, "x") == "8.8.8.8"


@pytest.mark.parametrize(
    "url", ["ftp://example.com/a", "http://", "http://[bad/", "http://user:secret@example.com/", "http://example.com:99999/"]
)
def test_an_address_of_another_kind_is_refused(url):
    with pytest.raises(ApiError, match="cannot be fetched"):
        fetch(url, "x", max_bytes=1000, until_s=soon())


ANSWERS = {
    b"/good": b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nabc",
    b"/away": b"HTTP/1.1 302 Found\r\nLocation: /good\r\nContent-Length: 0\r\n\r\n",
    b"/missing": b"HTTP/1.1 404 Not Found\r\nContent-Length: 3\r\n\r\nabc",
    b"/large": b"HTTP/1.1 200 OK\r\n\r\n" + b"x" * 5000,
    b"/nonsense": b"hello",
}


class Answering(socketserver.StreamRequestHandler):
    """Gives ANSWERS; /slow a byte now and then."""

    def handle(self) -> None:
        path = self.rfile.readline().split()[1]
        if path == b"/slow":
            for byte in b"HTTP/1.1 200 OK\r\nX: " + b"y" * 1000:
                time.sleep(0.02)
                try:
                    self.wfile.write(bytes([byte]))
                except OSError:
                    return
        else:
            self.wfile.write(ANSWERS[path])


@pytest.fixture
def site(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A site on this machine that passes for a public one."""
    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Answering) as server:
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setattr(remote, "public_address", lambda host, port, param: "127.0.0.1")
        yield f"http://example.com:{server.server_address[1]}"
        server.shutdown()


def test_a_public_address_is_fetched(site):
    assert fetch(f"{site}/good", "x", max_bytes=1000, until_s=soon()) == b"abc"


@pytest.mark.parametrize("path", ["/away", "/missing", "/large", "/nonsense", "/slow"])
def test_a_site_that_does_not_give_a_picture_in_time_and_size_is_refused(site, path):
    begun_s = time.monotonic()
    with pytest.raises(ApiError, match="cannot be fetched"):
        fetch(f"{site}{path}", "x", max_bytes=1000, until_s=begun_s + 0.5)
    assert time.monotonic() - begun_s < 5


def test_all_pictures_of_a_request_share_its_time_and_its_bytes(site, monkeypatch):
    urls = {name: f"{site}/good" for name in "abc"}
    assert fetch_all(urls, max_bytes=9) == dict.fromkeys("abc", b"abc")
    with pytest.raises(ApiError, match="c: cannot be fetched"):
        fetch_all(urls, max_bytes=8)
    monkeypatch.setattr(remote, "TIMEOUT_S", 0.5)
    begun_s = time.monotonic()
    with pytest.raises(ApiError, match="0: cannot be fetched"):
        fetch_all({str(n): f"{site}/slow" for n in range(32)}, max_bytes=1000)
    assert time.monotonic() - begun_s < 5
