"""A server under load: many clients that stream at once, beside one alone and beside no server at all.

The server is a process of its own on this machine; the clients are coroutines of this one that read sockets and little else. Every reply is
compared with the one that the same question gets alone."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import itertools
import json
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from omni.errors import ConfigError, DataError
from omni.evaluation.speed import QUESTIONS, GenerationSpeed, measure_generation
from omni.inference.omni import Omni
from omni.inference.sampling import Sampling
from omni.server.media import PCM_RATE_HZ
from omni.server.settings import MEGABYTE

START_S = 300.0
REPLY_TOKENS = 64
TURNS = 10  # that generation without a server and one client take: a machine is not as fast at one time as at another
SAMPLING = Sampling(max_new_tokens=REPLY_TOKENS, min_new_tokens=REPLY_TOKENS)  # whatever the model would say, the work is the same
SAME_SAMPLE = 328  # of 16 bits, one hundredth of full scale: neighbours in a batch change the rounding, another code changes much more


@dataclass(frozen=True)
class Load:
    """What so many clients saw, together, for so long: replies asked for and got whole; of those how many were as they are alone, word and sound,
    and of the others the largest gap between the top two logits where their texts part. First text or sound in milliseconds, median and 95th
    percentile. `tokens_per_s` of text, `audio_s_per_s` of sound. Memory of the server in megabytes, after a tenth of the time and at the end."""

    clients: int
    seconds: float
    asked: int
    whole: int
    as_alone: int
    largest_gap: float
    tokens_per_s: float
    audio_s_per_s: float
    first_ms: float
    first_ms_p95: float
    memory_mb: list[float]


@dataclass(frozen=True)
class ServingSpeed:
    """In-process generation and, in turns with it, one client; many clients; in-process spoken answers, one client of them and several, if the
    model speaks."""

    generate_tokens_per_s: float
    generate_first_text_ms: float
    alone: Load
    many: Load
    answer_first_audio_ms: float | None
    spoken_alone: Load | None
    spoken: Load | None
    share_of_generate: float
    times_one_client: float


@dataclass
class _Reply:
    """A reply as far as it came. It is `whole` if it came to its end without an error."""

    text: str = ""
    tokens: int = 0
    sound: bytes = b""
    first_s: float | None = None
    whole: bool = False

    def take(self, event: dict[str, Any]) -> None:
        """Add what an event brings."""
        for choice in event.get("choices", ()):
            audio = choice["delta"].get("audio") or {}
            self.text += choice["delta"].get("content") or audio.get("transcript") or ""
            self.sound += base64.b64decode(audio.get("data") or "")
        if "usage" in event:
            self.tokens = event["usage"]["completion_tokens_details"]["text_tokens"]

    def is_like(self, other: _Reply) -> bool:
        """Whether it says the same and sounds the same."""
        ours, theirs = (np.frombuffer(reply.sound, "<i2").astype(np.int32) for reply in (self, other))
        same_sound = len(ours) == len(theirs) and int(np.abs(ours - theirs).max(initial=0)) <= SAME_SAMPLE
        return self.text == other.text and same_sound


@dataclass
class _Run:
    """What clients got, with the numbers of what they asked."""

    seconds: float = 0.0
    asked: int = 0
    replies: list[tuple[int, _Reply]] = field(default_factory=list)
    memory_mb: list[float] = field(default_factory=list)


class _Server:
    """The process."""

    def __init__(self, checkpoint: Path, threads: int, clients: int) -> None:
        self._log = tempfile.NamedTemporaryFile(suffix=".log")  # noqa: SIM115 - as long as the process
        command = [
            sys.executable,
            "-m",
            "omni.cli",
            "serve",
            "--ckpt",
            str(checkpoint),
            "--port",
            "0",
            "--max-batch",
            str(max(64, clients)),
            "--device",
            "cpu",
            "--threads",
            str(threads),
        ]
        self.process = subprocess.Popen(command, stderr=self._log)
        until = time.monotonic() + START_S
        while "on http://" not in (text := Path(self._log.name).read_text()):
            if self.process.poll() is not None or time.monotonic() > until:
                self.process.kill()
                raise ConfigError(f"the server did not start: {text.strip().splitlines()[-1] if text.strip() else 'no word from it'}")
            time.sleep(0.1)
        self.port = int(text.split("on http://")[1].split()[0].rpartition(":")[2])

    def memory_mb(self) -> float:
        """Resident."""
        pages = int(Path(f"/proc/{self.process.pid}/statm").read_text().split()[1])
        return round(pages * 4096 / MEGABYTE, 1)

    def stop(self) -> None:
        """As a service manager does."""
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(60)


async def ask(port: int, n: int, *, spoken: bool) -> _Reply:
    """The nth question, answered in a stream; `spoken`: aloud too, and what is first is the sound."""
    body = {
        "model": "muomni",
        "messages": [{"role": "user", "content": QUESTIONS[n % len(QUESTIONS)]}],
        "max_tokens": REPLY_TOKENS,
        "muomni": {"min_tokens": REPLY_TOKENS},
        "stream": True,
        "stream_options": {"include_usage": True},
        **({"modalities": ["text", "audio"], "audio": {"format": "pcm16"}} if spoken else {}),
    }
    data = json.dumps(body).encode()
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\nContent-Type: application/json\r\nContent-Length: {len(data)}\r\n\r\n"
    reply, failed = _Reply(), False
    start = time.perf_counter()
    reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=MEGABYTE)
    writer.write(head.encode() + data)
    try:
        while line := await reader.readline():
            if line.startswith(b"data: {"):
                event = json.loads(line[6:])
                failed |= "error" in event
                reply.take(event)
                if reply.first_s is None and (reply.sound if spoken else reply.text):
                    reply.first_s = time.perf_counter() - start
            reply.whole |= line.startswith(b"data: [DONE]") and not failed
        return reply
    finally:
        writer.close()


async def _load(server: _Server, clients: int, seconds: float, *, spoken: bool = False) -> _Run:
    """So many clients that ask one thing after another until the time is over."""
    run, numbers = _Run(), itertools.count()
    start = time.perf_counter()

    async def client() -> None:
        while time.perf_counter() - start < seconds:
            n = next(numbers)
            run.asked += 1
            with contextlib.suppress(OSError, ValueError):  # then it is lost: it was asked and is not there
                run.replies.append((n, await ask(server.port, n, spoken=spoken)))

    async def watch() -> None:
        await asyncio.sleep(seconds / 10)
        run.memory_mb.append(server.memory_mb())

    await asyncio.gather(watch(), *(client() for _ in range(clients)))
    run.seconds = time.perf_counter() - start
    run.memory_mb.append(server.memory_mb())
    return run


def _summary(clients: int, runs: Sequence[_Run], omni: Omni, wanted: Mapping[str, _Reply]) -> Load:
    """What came of runs, whose replies should be those in `wanted`."""
    whole = [(n, reply) for run in runs for n, reply in run.replies if reply.whole]
    seconds = sum(run.seconds for run in runs)
    firsts = sorted(1000 * reply.first_s for _, reply in whole if reply.first_s is not None) or [0.0]
    asked = [(QUESTIONS[n % len(QUESTIONS)], reply) for n, reply in whole]
    others = [(question, reply.text) for question, reply in asked if reply.text != wanted[question].text]
    return Load(
        clients=clients,
        seconds=round(seconds, 1),
        asked=sum(run.asked for run in runs),
        whole=len(whole),
        as_alone=sum(reply.is_like(wanted[question]) for question, reply in asked),
        largest_gap=round(max((_gap(omni, question, text) for question, text in others), default=0.0), 6),
        tokens_per_s=round(sum(reply.tokens for _, reply in whole) / seconds, 1),
        audio_s_per_s=round(sum(len(reply.sound) for _, reply in whole) / (2 * PCM_RATE_HZ) / seconds, 2),
        first_ms=round(statistics.median(firsts), 1),
        first_ms_p95=round(firsts[int(0.95 * (len(firsts) - 1))], 1),
        memory_mb=[runs[0].memory_mb[0], runs[-1].memory_mb[-1]],
    )


def _first_sound_ms(omni: Omni) -> float:
    """From a question to the first sound of its spoken answer, in this process; median over QUESTIONS."""
    firsts = []
    for question in QUESTIONS:
        start = time.perf_counter()
        replies, speech = omni.engine.batch(), omni.speaker.batch()
        (draft,) = replies.join([omni.prompt([{"role": "user", "content": question}], reserve=REPLY_TOKENS)], [SAMPLING])
        line = omni.speaker.line(None, SAMPLING)
        speech.join(line)
        with contextlib.suppress(DataError):  # a reply without words
            while line.news() is None:
                if not line.complete and (news := draft.news()) is not None:
                    line.add(news.text, last=news.stopped is not None)
                if speech.can_step:
                    speech.step()
                if replies.drafts:
                    replies.step()
            firsts.append(1000 * (time.perf_counter() - start))
    return round(statistics.median(firsts or [0.0]), 1)


@torch.inference_mode()
def _gap(omni: Omni, question: str, text: str) -> float:
    """Between the top two logits, at the token where `text` parts from the reply to `question` in this process."""
    prompt = omni.prompt([{"role": "user", "content": question}], reserve=REPLY_TOKENS)
    ids = omni.engine.generate([prompt], SAMPLING)[0].ids
    same = next((n for n in range(len(ids)) if not text.startswith(omni.tokenizer.decode(ids[: n + 1]))), len(ids))
    logits = omni.model.thinker(torch.tensor([prompt.rendered.input_ids + ids[:same]], device=omni.device))[0, -1]
    logits[omni.tokenizer.end_id] = -torch.inf
    top = logits.float().topk(2).values
    return float(top[0] - top[1])


def measure_serving(omni: Omni, *, clients: int = 64, spoken_clients: int = 8, seconds: float = 60.0, threads: int = 1) -> ServingSpeed:
    """One client for a third of the time, then `clients` for all of it, then, if the model speaks, one client of spoken answers for a sixth and
    `spoken_clients` for half. All on the CPU. Raises ConfigError if the server does not start."""
    assert omni.folder is not None, "a model from a folder, which the server loads too"
    torch.set_num_threads(threads)
    prompts = {q: omni.prompt([{"role": "user", "content": q}], reserve=REPLY_TOKENS) for q in QUESTIONS}
    wanted = {q: _Reply(omni.engine.generate([prompt], SAMPLING)[0].text) for q, prompt in prompts.items()}
    wanted_spoken: dict[str, _Reply] = {}
    generated: list[GenerationSpeed] = []
    alone: list[_Run] = []
    server = _Server(omni.folder, threads, clients)
    answer_first_audio_ms = spoken_alone = spoken = None
    try:
        for _ in range(TURNS):
            generated.append(measure_generation(omni, seconds / 3 / TURNS, REPLY_TOKENS))
            alone.append(asyncio.run(_load(server, 1, seconds / 3 / TURNS)))
        many = asyncio.run(_load(server, clients, seconds))
        if {"talker", "codec"} <= set(omni.model.components):
            answer_first_audio_ms = _first_sound_ms(omni)
            wanted_spoken = {q: asyncio.run(ask(server.port, n, spoken=True)) for n, q in enumerate(QUESTIONS)}
            spoken_alone = asyncio.run(_load(server, 1, seconds / 6, spoken=True))
            spoken = asyncio.run(_load(server, spoken_clients, seconds / 2, spoken=True))
    finally:
        server.stop()
    one, most = _summary(1, alone, omni, wanted), _summary(clients, [many], omni, wanted)
    generate_tokens_per_s = round(statistics.mean(speed.tokens_per_s for speed in generated), 1)
    return ServingSpeed(
        generate_tokens_per_s=generate_tokens_per_s,
        generate_first_text_ms=round(statistics.median(speed.first_text_ms for speed in generated), 2),
        alone=one,
        many=most,
        answer_first_audio_ms=answer_first_audio_ms,
        spoken_alone=_summary(1, [spoken_alone], omni, wanted_spoken) if spoken_alone is not None else None,
        spoken=_summary(spoken_clients, [spoken], omni, wanted_spoken) if spoken is not None else None,
        share_of_generate=round(one.tokens_per_s / generate_tokens_per_s, 3),
        times_one_client=round(most.tokens_per_s / max(one.tokens_per_s, 1e-9), 2),
    )
