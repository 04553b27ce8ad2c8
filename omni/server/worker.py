"""The one thread that runs the model. Every request is a job; in every round each reply gets a token and each text that is said a frame, all of
them together, and one recording is heard for one window more. Jobs join between rounds and leave when they are done, late or unwanted.

What a round brings is handed to the event loop at once, but not more often than a reader could tell."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections import deque
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass, field

from omni.errors import DataError, OmniError
from omni.inference.engine import Draft, Prompt, Stopped
from omni.inference.omni import Omni
from omni.inference.sampling import Sampling
from omni.inference.speech import Line, Speech, SpeechBatch
from omni.inference.transcript import Transcript

log = logging.getLogger(__name__)

FLUSH_S = 1 / 30  # between two hand-overs to the event loop, which cost both threads time; the first piece of a job never waits
PREFILL_POSITIONS = 4096  # that are read in one round: a flood of prompts must not hold up the replies under way


class Overloaded(OmniError):
    """The queue is full; worth another try after `retry_after_s`."""

    def __init__(self, retry_after_s: int) -> None:
        super().__init__(f"too many requests are waiting; try again in {retry_after_s} s")
        self.retry_after_s = retry_after_s


class TimeLimitExceeded(OmniError):
    """A request took longer than it may."""

    def __init__(self, time_limit_s: float) -> None:
        super().__init__(f"the request took longer than {time_limit_s:g} s")


class ShuttingDown(OmniError):
    """The server finishes what it has accepted and takes no more."""


class WorkerFailed(OmniError):
    """A bug of ours; the details are in the log and nowhere else."""


@dataclass(frozen=True)
class Piece:
    """What a job has brought: more of the reply's text, more sound, or the transcript so far."""

    text: str = ""
    speech: Speech | None = None
    transcript: Transcript | None = None


@dataclass(frozen=True)
class Failed:
    """A job ended in an error."""

    error: OmniError


@dataclass(eq=False)
class Job:
    """A request's work: a `prompt` to answer, a `line` to say (the answer's, if there is a prompt), or `transcripts` to make.

    `marks` are seconds from acceptance: started, read (the prompt), first_text, first_audio, done. `n_tokens` and `n_frames` count what was made."""

    prompt: Prompt | None = None
    sampling: Sampling = field(default_factory=Sampling)
    line: Line | None = None
    transcripts: Iterator[Transcript] | None = None
    marks: dict[str, float] = field(default_factory=dict)
    notices: list[str] = field(default_factory=list)
    stopped: Stopped | None = None
    n_tokens: int = 0
    n_frames: int = 0
    accepted_s: float = 0.0
    cancelled: bool = False
    begun: bool = False  # whether anything of it was handed over
    draft: Draft | None = None
    queue: asyncio.Queue[Piece | Failed | None] = field(default_factory=asyncio.Queue)

    def mark(self, name: str) -> None:
        """Note when something happened for the first time."""
        self.marks.setdefault(name, time.monotonic() - self.accepted_s)


class Worker:
    """Takes jobs and brings their pieces. `accept`, `submit` and `pieces` belong to the event loop that `start` was called in."""

    def __init__(self, omni: Omni, *, max_batch: int, max_queue: int, time_limit_s: float) -> None:
        self.omni, self.max_batch, self.max_queue, self.time_limit_s = omni, max_batch, max_queue, time_limit_s
        self.running: list[Job] = []
        self.waiting: deque[Job] = deque()
        self._reading: set[Job] = set()  # they have a place, while what their requests hold is still read
        self.n_rounds = 0
        self.mean_job_s = 1.0
        self._changed = threading.Condition()
        self._stopping = False
        self._outbox: list[tuple[Job, Piece | Failed | None]] = []
        self._flushed_s = 0.0
        self._urgent = False
        self._starting: list[Job] = []
        self._thread = threading.Thread(target=self._run, name="worker", daemon=True)

    # --- the event loop's side

    def start(self) -> None:
        """Begin to work for the running event loop."""
        self._loop = asyncio.get_running_loop()
        self._reset()
        self._thread.start()

    async def stop(self) -> None:
        """Finish what was accepted, and end."""
        with self._changed:
            self._stopping = True
            self._changed.notify()
        await asyncio.to_thread(self._thread.join)

    @property
    def healthy(self) -> bool:
        """Whether it takes jobs."""
        return self._thread.is_alive() and not self._stopping

    @property
    def n_waiting(self) -> int:
        """Jobs that have a place and are not worked on yet."""
        return len(self._reading) + len(self.waiting)

    def accept(self, job: Job) -> Job:
        """Give a job a place, before its request costs anything; `submit` or `cancel` must follow. Raises Overloaded or ShuttingDown."""
        with self._changed:
            if not self.healthy:
                raise ShuttingDown("the server is shutting down")
            n_jobs = self.n_waiting + len({*self.running, *self._starting})
            if n_jobs >= self.max_batch + self.max_queue:
                raise Overloaded(max(1, min(round(n_jobs / self.max_batch * self.mean_job_s), round(self.time_limit_s))))
            job.accepted_s = time.monotonic()
            self._reading.add(job)
        return job

    def submit(self, job: Job) -> Job:
        """Have a job worked on; one without a place is accepted first. Raises Overloaded or ShuttingDown."""
        with self._changed:
            if job not in self._reading:
                self.accept(job)
            self._reading.remove(job)
            self.waiting.append(job)
            self._changed.notify()
        return job

    async def pieces(self, job: Job) -> AsyncIterator[Piece]:
        """What a job brings, as it comes. Raises its error. A job whose pieces nobody wants any more is cancelled."""
        try:
            while (event := await job.queue.get()) is not None:
                if isinstance(event, Failed):
                    raise event.error
                yield event
        finally:
            self.cancel(job)

    def cancel(self, job: Job) -> None:
        """Nobody wants it any more; of no effect on one that is done."""
        with self._changed:
            job.cancelled = True
            self._reading.discard(job)
            if job in self.waiting:
                self.waiting.remove(job)
            self._changed.notify()

    # --- the thread's side

    def _run(self) -> None:
        while self._take():
            try:
                self._round()
            except Exception:  # a bug of ours must end the jobs it touches, not the server
                jobs = {*self.running, *self._starting}
                log.exception("a round failed; its %d jobs end", len(jobs))
                for job in jobs:
                    self._emit(job, Failed(WorkerFailed("the server could not finish this request")))
                self.running.clear()
                self._reset()
            self._flush(always=not self.running)

    def _reset(self) -> None:
        self._batch = self.omni.engine.batch() if "thinker" in self.omni.model.components else None
        self._speech_batch: SpeechBatch | None = None

    def _take(self) -> bool:
        """Wait for work and move what fits from the queue into the batch; false when there is none and will be none."""
        with self._changed:
            while not self.running and not self.waiting:
                if self._stopping and not self._reading:
                    return False
                self._changed.wait()
            self._starting = []
            longest = 0
            while self.waiting and len(self.running) + len(self._starting) < self.max_batch:
                prompt = self.waiting[0].prompt
                longest = max(longest, len(prompt.rendered.input_ids) if prompt is not None else 0)
                if self._starting and longest * (len(self._starting) + 1) > PREFILL_POSITIONS:
                    break
                self._starting.append(self.waiting.popleft())
        return True

    def _round(self) -> None:
        self.n_rounds += 1
        starting = [job for job in self._starting if self._wanted(job)]
        for job in [job for job in self.running if not self._wanted(job)]:
            self._remove(job)
        for job in starting:
            job.mark("started")
        self.running += starting
        self._starting = []
        if self._batch is not None and self._batch.drafts:
            self._batch.step()
        self._read([job for job in starting if job.prompt is not None])
        for job in self.running:
            self._pass_on_text(job)
        self._speak(starting)
        self._hear()
        for job in [job for job in self.running if job.draft is None and job.line is None and job.transcripts is None]:
            self.running.remove(job)
            job.mark("done")
            self.mean_job_s += 0.1 * (job.marks["done"] - self.mean_job_s)
            self._emit(job, None)

    def _wanted(self, job: Job) -> bool:
        """False for a job that is cancelled or late; a late one is told so."""
        if not job.cancelled and time.monotonic() - job.accepted_s > self.time_limit_s:
            self._emit(job, Failed(TimeLimitExceeded(self.time_limit_s)))
            return False
        return not job.cancelled

    def _remove(self, job: Job) -> None:
        """Take a job out before it is done."""
        self.running.remove(job)
        if job.draft is not None and self._batch is not None and job.draft.stopped is None:
            self._batch.leave(job.draft)
        if job.line is not None and self._speech_batch is not None and job.line in self._speech_batch.lines:
            self._speech_batch.leave(job.line)

    def _fail(self, job: Job, error: OmniError) -> None:
        self._remove(job)
        self._emit(job, Failed(error))

    def _read(self, jobs: Sequence[Job]) -> None:
        """Begin the replies of jobs; one that cannot be read fails alone."""
        if not jobs:
            return
        try:
            batch = self._batch or self.omni.engine.batch()  # the latter says what the checkpoint lacks
            drafts = batch.join([job.prompt for job in jobs if job.prompt is not None], [job.sampling for job in jobs])
            for job, draft in zip(jobs, drafts, strict=True):
                job.draft = draft
                job.mark("read")
        except OmniError as error:
            if len(jobs) == 1:
                self._fail(jobs[0], error)
            else:
                for job in jobs:
                    self._read([job])

    def _pass_on_text(self, job: Job) -> None:
        if job.draft is None or (news := job.draft.news()) is None:
            return
        job.n_tokens = len(job.draft.ids) + (job.draft.stopped == "end")
        if news.text:
            job.mark("first_text")
            self._emit(job, Piece(text=news.text))
        if news.stopped is not None:
            job.stopped, job.draft = news.stopped, None
        if job.line is not None:
            try:
                job.line.add(news.text, last=news.stopped is not None)
            except DataError as error:
                job.notices.append(f"the reply is not spoken: {error}")
                if self._speech_batch is not None and job.line in self._speech_batch.lines:
                    self._speech_batch.leave(job.line)
                job.line = None

    def _speak(self, starting: Sequence[Job]) -> None:
        """A frame more of everything that is said."""
        for job in starting:
            if job.line is not None and job in self.running:
                try:
                    self._speech_batch = self._speech_batch or self.omni.speaker.batch()
                except OmniError as error:
                    self._fail(job, error)
                else:
                    self._speech_batch.join(job.line)
        if self._speech_batch is None:
            return
        if self._speech_batch.can_step:
            self._speech_batch.step()
        for job in self.running:
            if job.line is None:
                continue
            if (speech := job.line.news()) is not None:
                job.mark("first_audio")
                job.n_frames += len(speech.codes)
                self._emit(job, Piece(speech=speech))
            if job.line.done:
                job.line = None

    def _hear(self) -> None:
        """One window more of one recording, in turn."""
        hearing = [job for job in self.running if job.transcripts is not None]
        if not hearing:
            return
        job = hearing[self.n_rounds % len(hearing)]
        assert job.transcripts is not None
        try:
            transcript = next(job.transcripts)
        except OmniError as error:
            self._fail(job, error)
        else:
            job.mark("first_text")
            self._emit(job, Piece(transcript=transcript))
            if transcript.complete:
                job.transcripts = None

    def _emit(self, job: Job, event: Piece | Failed | None) -> None:
        self._outbox.append((job, event))
        self._urgent |= not job.begun
        job.begun = True

    def _flush(self, *, always: bool) -> None:
        now = time.monotonic()
        if self._outbox and (always or self._urgent or now - self._flushed_s >= FLUSH_S):
            outbox, self._outbox, self._flushed_s, self._urgent = self._outbox, [], now, False
            self._loop.call_soon_threadsafe(_deliver, outbox)


def _deliver(outbox: list[tuple[Job, Piece | Failed | None]]) -> None:
    """In the event loop. Texts of one job that come together are one piece."""
    texts: dict[int, str] = {}
    for job, event in outbox:
        if isinstance(event, Piece) and event.text:
            texts[id(job)] = texts.get(id(job), "") + event.text
            continue
        if text := texts.pop(id(job), ""):
            job.queue.put_nowait(Piece(text=text))
        job.queue.put_nowait(event)
    for job, _ in outbox:
        if text := texts.pop(id(job), ""):
            job.queue.put_nowait(Piece(text=text))
