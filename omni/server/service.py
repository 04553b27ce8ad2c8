"""What the endpoints share: the model, its worker, and how to run what takes long beside the event loop."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, TypeVar, TypeVarTuple

from fastapi import Request
from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from omni.errors import ConfigError, OmniError
from omni.inference.omni import Omni
from omni.server.errors import ApiError, compact, error_body
from omni.server.metrics import Metrics
from omni.server.remote import fetch_all
from omni.server.settings import Settings
from omni.server.worker import Job, Piece, TimeLimitExceeded, Worker

log = logging.getLogger(__name__)

T = TypeVar("T")
Ts = TypeVarTuple("Ts")

DECODERS_AT_ONCE = 2  # threads that decode media: each may need the memory of its largest picture
FETCHERS_AT_ONCE = 8  # threads that wait for other sites' pictures: slow ones hold up nothing else
REMEMBERED = 1_000  # spoken answers that a later message may name, for an hour
REMEMBERED_S = 3_600
FIRST_VOICE = ("alloy", "default")  # names that stand for the model's first voice: "alloy" is in every client's example
UNBUFFERED = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}


class ClientGone(OmniError):
    """Nobody is waiting for the answer any more."""


class Service:
    """One model being served."""

    def __init__(self, omni: Omni, settings: Settings) -> None:
        self.omni, self.settings = omni, settings
        self.started_s = int(time.time())
        self.worker = Worker(omni, max_batch=settings.max_batch, max_queue=settings.max_queue, time_limit_s=settings.time_limit_s)
        self.metrics = Metrics(self.worker, lambda: self.n_sessions)
        self.n_sessions = 0
        # a thread whose request has gone still ends its work, and holds its place until then
        self._decoders = ThreadPoolExecutor(DECODERS_AT_ONCE, "decoder")
        self._fetchers = ThreadPoolExecutor(FETCHERS_AT_ONCE, "fetcher")
        self._spoken: OrderedDict[str, tuple[int, str]] = OrderedDict()

    @property
    def sample_rate_hz(self) -> int:
        """Of the model's sounds, in and out."""
        return self.omni.model.config.audio.sample_rate_hz

    @property
    def can_speak(self) -> bool:
        """Whether the checkpoint has what speech takes."""
        return {"thinker", "talker", "codec"} <= set(self.omni.model.components)

    async def beside(self, work: Callable[[*Ts], T], *arguments: *Ts) -> T:
        """Run what takes long (decoding media) in another thread."""
        return await asyncio.get_running_loop().run_in_executor(self._decoders, partial(work, *arguments))

    async def fetched(self, addresses: Mapping[str, str]) -> dict[str, bytes]:
        """The pictures at those of `addresses` that are not data URIs, by parameter; none if this server fetches nothing."""
        remote = {param: url for param, url in addresses.items() if not url.startswith("data:")}
        if not remote or not self.settings.allow_remote:
            return {}
        fetch = partial(fetch_all, remote, max_bytes=self.settings.max_body_bytes)
        return await asyncio.get_running_loop().run_in_executor(self._fetchers, fetch)

    async def admit(self, job: Job, read: Callable[[], Awaitable[None]]) -> Job:
        """Give a job a place, have `read` put into it what its request holds, and submit it. Raises Overloaded before anything is read,
        TimeLimitExceeded when that alone takes all the time there is."""
        self.worker.accept(job)
        try:
            async with asyncio.timeout(self.settings.time_limit_s):
                await read()
        except TimeoutError:
            self.worker.cancel(job)
            raise TimeLimitExceeded(self.settings.time_limit_s) from None
        except BaseException:
            self.worker.cancel(job)
            raise
        return self.worker.submit(job)

    def check_model(self, name: str) -> None:
        """Raises ApiError for another model than the one served."""
        if name != self.settings.name:
            raise ApiError(404, f"no model {name!r:.80}; this server has {self.settings.name!r}", "model", "model_not_found")

    def voice(self, name: str | None) -> str | None:
        """A voice's name as the model knows it. Raises ApiError for an unknown one, and when the model cannot speak at all."""
        if not self.can_speak:
            raise ApiError(400, "this model has no voice: its checkpoint holds no Talker", "voice", "no_voice")
        name = None if name in FIRST_VOICE else name
        try:
            self.omni.speaker.voice_id(name)
        except ConfigError as error:
            raise ApiError(400, str(error)[:500], "voice", "unknown_voice") from None
        return name

    def remember(self, identity: str, text: str) -> int:
        """Keep what a spoken answer said; returns the time (Unix) until when."""
        until = int(time.time()) + REMEMBERED_S
        self._spoken[identity] = (until, text)
        while len(self._spoken) > REMEMBERED:
            self._spoken.popitem(last=False)
        return until

    def recall(self, identity: str) -> str:
        """What a spoken answer said. Raises ApiError if it is not known any more."""
        until, text = self._spoken.get(identity, (0, ""))
        if until < time.time():
            raise ApiError(404, "no spoken answer of this id is known (any more)", "messages", "audio_not_found")
        return text

    async def pieces(self, job: Job) -> AsyncIterator[Piece]:
        """Those of a job that was submitted; counts it when it has ended well."""
        async for piece in self.worker.pieces(job):
            yield piece
        self.metrics.done(job)

    async def begun(self, request: Request, job: Job) -> AsyncIterator[Piece]:
        """Those of a job whose first is there: until then its error is still the answer's status. Raises that, and ClientGone."""
        pieces = self.pieces(job)
        return _chained(await unless_gone(request, _first(pieces)), pieces)

    async def all_pieces(self, request: Request, job: Job) -> list[Piece]:
        """All of them together. Raises ClientGone, and cancels the job, when the client is."""
        try:
            return await unless_gone(request, _collect(self.pieces(job)))
        finally:
            self.worker.cancel(job)


async def _collect(pieces: AsyncIterator[Piece]) -> list[Piece]:
    return [piece async for piece in pieces]


async def _first(pieces: AsyncIterator[Piece]) -> Piece | None:
    return await anext(pieces, None)


async def _chained(first: Piece | None, pieces: AsyncIterator[Piece]) -> AsyncIterator[Piece]:
    if first is not None:
        yield first
    async for piece in pieces:
        yield piece


async def _gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def unless_gone(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """The result of `work`, which is cancelled when the client goes away."""
    task, gone = asyncio.create_task(work), asyncio.create_task(_gone(request))
    try:
        await asyncio.wait((task, gone), return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ClientGone("the client has gone")
        return task.result()
    finally:
        task.cancel()
        gone.cancel()


class Streamed(StreamingResponse):
    """An answer that is sent while a job is worked on; however it ends, so does the job."""

    def __init__(self, content: AsyncIterator[bytes], media_type: str, worker: Worker, job: Job) -> None:
        super().__init__(content, media_type=media_type, headers=UNBUFFERED)
        self._worker, self._job = worker, job

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        except OmniError as error:
            log.info("%s: %s", scope["path"], error)  # the answer has begun: returning closes the connection before its end
        finally:
            self._worker.cancel(self._job)


async def as_events(events: AsyncIterator[str]) -> AsyncIterator[bytes]:
    """Server-sent events of these texts; an error that comes while they are under way is the last one."""
    try:
        async for event in events:
            yield f"data: {event}\n\n".encode()
    except OmniError as error:
        yield f"data: {compact(error_body(error))}\n\n".encode()
