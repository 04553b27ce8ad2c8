"""`muomni bench serve`, against a server process of its own, and `bench generate`, without one."""

from __future__ import annotations

import asyncio
import json
import subprocess
from pathlib import Path

import pytest
from served import MUOMNI, ROOT

from omni.server.benchmark import _Reply, ask

TEXT = b'data: {"choices":[{"delta":{"content":"Yes"}}]}\n\n'
DONE = b"data: [DONE]\n\n"


@pytest.mark.parametrize(
    ("answer", "whole"),
    [(TEXT + DONE, True), (TEXT, False), (TEXT + b'data: {"error":{"message":"late"}}\n\n' + DONE, False), (b"", False)],
)
def test_a_reply_is_whole_if_it_ends_without_an_error(answer: bytes, whole: bool) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\n\r\n" + answer)
        writer.close()

    async def run() -> _Reply:
        async with await asyncio.start_server(serve, "127.0.0.1") as server:
            return await ask(server.sockets[0].getsockname()[1], 0, spoken=False)

    reply = asyncio.run(run())
    assert (reply.whole, reply.text) == (whole, "Yes" * answer.startswith(TEXT))


def test_replies_are_alike_if_they_say_and_sound_the_same() -> None:
    one = _Reply("Yes", sound=b"\0\1\0\2")
    assert one.is_like(_Reply("Yes", sound=b"\5\1\0\2"))
    assert not one.is_like(_Reply("Yes", sound=b"\0\11\0\2"))
    assert not one.is_like(_Reply("Yes", sound=b"\0\1"))
    assert not one.is_like(_Reply("No", sound=one.sound))


@pytest.mark.slow
def test_the_load_is_measured_and_nothing_is_lost_or_mixed_up(checkpoint: Path, tmp_path: Path) -> None:
    options = [
        "--ckpt",
        checkpoint,
        "--clients",
        "6",
        "--spoken-clients",
        "2",
        "--seconds",
        "3",
        "--threads",
        "1",
        "--out",
        tmp_path / "x.json",
    ]
    done = subprocess.run([*MUOMNI, "bench", "serve", "--json", *map(str, options)], cwd=ROOT, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["what"] == "serve"
    assert json.loads((tmp_path / "x.json").read_text()) == result
    metrics = result["metrics"]
    for name, clients in (("alone", 1), ("many", 6), ("spoken_alone", 1), ("spoken", 2)):
        load = metrics[name]
        assert load["clients"] == clients
        assert load["asked"] == load["whole"] > 0
        assert load["first_ms"] > 0
        assert load["tokens_per_s"] * load["seconds"] == pytest.approx(
            64 * load["whole"], abs=0.06 * load["tokens_per_s"] + 1
        )  # seconds are rounded
        assert load["as_alone"] >= 0.99 * load["whole"] or load["largest_gap"] < 1e-3
        assert load["as_alone"] > 0
        assert (load["audio_s_per_s"] > 0) == name.startswith("spoken")
    assert metrics["answer_first_audio_ms"] > 0
    assert result["checkpoint"] == str(checkpoint)
    assert metrics["many"]["tokens_per_s"] > 0


@pytest.mark.slow
def test_generation_is_measured_in_one_process(checkpoint: Path) -> None:
    command = [*MUOMNI, "bench", "generate", "--ckpt", str(checkpoint), "--seconds", "0.5", "--threads", "1", "--device", "cpu", "--json"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["what"] == "generate"
    assert result["checkpoint"] == str(checkpoint)
    assert result["machine"]["threads"] == 1
    assert all(result["metrics"][name] > 0 for name in ("tokens_per_s", "first_text_ms", "replies"))
