"""/v1/realtime: a conversation over a WebSocket, in OpenAI's events. Sound comes in, turns are found by voice activity, the answer goes out in text and
sound while it is made, and stops when the user begins to speak. 16-bit PCM at 24 kHz both ways.

One task reads the client's events and runs the turns; one at a time sends a response."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import uuid
from collections.abc import Coroutine, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

import numpy as np
import soxr
from fastapi import APIRouter, WebSocket
from pydantic import Field, ValidationError
from starlette.websockets import WebSocketDisconnect, WebSocketDisconnected, WebSocketState

from omni.audio import resampled
from omni.chat import Message
from omni.errors import OmniError
from omni.inference.sampling import Sampling
from omni.server.chat import REPLY_TOKENS, usage_of
from omni.server.errors import ApiError, compact, error_body, invalid
from omni.server.media import PCM_RATE_HZ, SoundWriter, from_base64, picture, to_base64
from omni.server.schemas import Request
from omni.server.service import Service
from omni.server.settings import MEGABYTE
from omni.server.voice_activity import VoiceActivity, VoiceEvent
from omni.server.worker import Job

log = logging.getLogger(__name__)

MAX_ITEMS, MAX_ITEM_BYTES = 200, 32 * MEGABYTE  # of a conversation; the oldest are forgotten, as the context does anyway
CHARACTER_BYTES = 32  # that reading a character of text takes
MAX_APPEND_CHARACTERS = 4 << 20
SAMPLE_BYTES = 4  # float32
SUBPROTOCOL = "realtime"
GONE = (WebSocketDisconnect, WebSocketDisconnected)
BEGUN_TOO_SOON_MS = 100  # shorter commits hold no word


class Format(Request):
    """The one there is."""

    type: Literal["audio/pcm"] = "audio/pcm"
    rate: Literal[24000] = 24000


class TurnDetection(Request):
    """When a turn begins and ends."""

    type: Literal["server_vad"] = "server_vad"
    threshold: Annotated[float, Field(ge=0, le=1)] = 0.5
    prefix_padding_ms: Annotated[int, Field(ge=0, le=2000)] = 300
    silence_duration_ms: Annotated[int, Field(ge=60, le=5000)] = 500
    create_response: bool = True
    interrupt_response: bool = True


class Transcription(Request):
    """Also write down what the user says, in English; `model` is ours, whatever it is called."""

    model: str | None = None
    language: Literal["en"] | None = None
    prompt: Annotated[str, Field(max_length=0)] | None = None


class Input(Request):
    """`turn_detection` null: the client commits its turns itself."""

    format: Format = Format()
    turn_detection: TurnDetection | None = TurnDetection()
    transcription: Transcription | None = None


class Output(Request):
    """How answers sound."""

    format: Format = Format()
    voice: str | None = None
    speed: Annotated[float, Field(ge=1, le=1)] = 1.0


class Audio(Request):
    """Sound, both ways."""

    input: Input = Input()
    output: Output = Output()


Modality = Literal["text", "audio"]
Modalities = Annotated[list[Modality], Field(min_length=1, max_length=2)]


NoTools = Annotated[list[Any], Field(max_length=0)]


class Session(Request):
    """What `session.update` may change. There are no `tools`."""

    type: Literal["realtime"] = "realtime"
    model: str | None = None
    instructions: Annotated[str, Field(max_length=10_000)] = ""
    output_modalities: Modalities = Field(default_factory=lambda: list[Modality](["audio"]))
    max_output_tokens: Annotated[int, Field(ge=1)] | Literal["inf"] = "inf"
    audio: Audio = Audio()
    tools: NoTools = Field(default_factory=list[Any])


class ResponseAudio(Request):
    """How one response sounds."""

    output: Output = Output()


class ResponseOptions(Request):
    """What `response.create` may change for one response, which is always one to the `conversation`."""

    instructions: Annotated[str, Field(max_length=10_000)] | None = None
    output_modalities: Modalities | None = None
    max_output_tokens: Annotated[int, Field(ge=1)] | Literal["inf"] | None = None
    audio: ResponseAudio = ResponseAudio()
    conversation: Literal["auto"] | None = None
    input: None = None
    tools: NoTools | None = None


class ItemPart(Request):
    """A part of an item that the client writes."""

    type: Literal["input_text", "input_audio", "input_image", "output_text", "text"]
    text: Annotated[str, Field(max_length=10_000)] | None = None
    audio: str | None = None
    image_url: str | None = None


class Item(Request):
    """A message that the client writes."""

    type: Literal["message"]
    role: Literal["system", "user", "assistant"]
    content: Annotated[list[ItemPart], Field(max_length=16)]


def new_id(kind: str) -> str:
    """A name that nobody else has."""
    return f"{kind}_{uuid.uuid4().hex[:24]}"


def size_bytes(message: Message) -> int:
    """What a message holds of texts, pictures and sounds."""
    content = message["content"]
    if isinstance(content, str):
        return CHARACTER_BYTES * len(content)
    return sum(CHARACTER_BYTES * len(part["text"]) if part["type"] == "text" else int(part[part["type"]].nbytes) for part in content)


def updated(old: dict[str, Any], new: dict[str, Any]) -> dict[str, Any]:
    """`old` with what `new` says, section by section."""
    both = {
        key: updated(old[key], new[key]) for key in old.keys() & new.keys() if isinstance(old[key], dict) and isinstance(new[key], dict)
    }
    return old | new | both


def _event(text: str | None) -> dict[str, Any]:
    """What the client sent. Raises ApiError unless it is an event."""
    try:
        event = json.loads(text or "")
    except (ValueError, RecursionError):
        raise ApiError(400, "an event is JSON text") from None
    if not isinstance(event, dict) or not isinstance(event.get("type"), str):
        raise ApiError(400, "an event is a JSON object with a type")
    return event


@dataclass
class Answer:
    """A response on its way: its names in the client's events, and what has become of it."""

    speaks: bool
    before: str | None  # the item that it answers
    identity: str = field(default_factory=lambda: new_id("resp"))
    item_id: str = field(default_factory=lambda: new_id("item"))
    text: str = ""
    begun: bool = False  # whether the client knows of its item
    ended: bool = False  # whether all that is left is to tell so
    cancel_reason: str | None = None

    @property
    def kind(self) -> Literal["audio", "text"]:
        """What it mainly is."""
        return "audio" if self.speaks else "text"

    @property
    def text_event(self) -> str:
        """The kind of the events that bring its text."""
        return "response.output_audio_transcript" if self.speaks else "response.output_text"

    @property
    def of_item(self) -> dict[str, Any]:
        """Where its item is."""
        return {"response_id": self.identity, "output_index": 0}

    @property
    def place(self) -> dict[str, Any]:
        """Where its one part is."""
        return {**self.of_item, "item_id": self.item_id, "content_index": 0}

    @property
    def said(self) -> dict[str, Any]:
        """Its text, as far as it has come."""
        return {"transcript" if self.speaks else "text": self.text}


class Conversation:
    """One socket."""

    def __init__(self, socket: WebSocket, service: Service) -> None:
        self.socket, self.service = socket, service
        self.session = Session(model=service.settings.name)
        if not service.can_speak:
            self.session = self.session.model_copy(update={"output_modalities": ["text"]})
        self.items: dict[str, Message] = {}
        self.response: asyncio.Task[None] | None = None
        self.answer: Answer | None = None  # the response's
        self._answer_next = False  # a turn ended while a response was under way
        self._sending = asyncio.Lock()
        self._step_samples = service.sample_rate_hz // 10  # a turn begins and ends within a moment, however much comes at once
        self._transcribing: set[asyncio.Task[None]] = set()
        self._clear()
        self._listen()

    # --- out

    async def send(self, kind: str, **fields: Any) -> None:
        """One event to the client."""
        async with self._sending:
            await self.socket.send_text(compact({"type": kind, "event_id": new_id("event"), **fields}))

    async def send_error(self, error: OmniError, event_id: Any = None) -> None:
        """What the client did wrong; the conversation goes on."""
        body = error_body(error)["error"]
        await self.send("error", error={**body, "event_id": event_id if isinstance(event_id, str) else None})

    def described(self) -> dict[str, Any]:
        """The session as the client sees it."""
        return {"id": self.session_id, "object": "realtime.session", **self.session.model_dump()}

    # --- the client's events

    async def run(self) -> None:
        """Until the client goes away."""
        self.session_id = new_id("sess")
        await self.send("session.created", session=self.described())
        try:
            while (message := await self.socket.receive())["type"] != "websocket.disconnect":
                event_id = None
                try:
                    event = _event(message.get("text"))
                    event_id = event.get("event_id")
                    await self._handle(event["type"], event)
                except ValidationError as error:
                    await self.send_error(invalid(error.errors()), event_id)
                except OmniError as error:
                    await self.send_error(error, event_id)
        finally:
            tasks = [*self._transcribing, *([self.response] if self.response is not None else [])]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _handle(self, kind: str, event: dict[str, Any]) -> None:
        match kind:
            case "session.update":
                await self._update(event)
            case "input_audio_buffer.append":
                await self._append(event)
            case "input_audio_buffer.commit":
                await self._commit()
            case "input_audio_buffer.clear":
                self._clear()
                await self.send("input_audio_buffer.cleared")
            case "conversation.item.create":
                await self._create_item(event)
            case "conversation.item.delete":
                self._item(event)
                del self.items[event["item_id"]]
                await self.send("conversation.item.deleted", item_id=event["item_id"])
            case "conversation.item.truncate":
                self._item(event)  # the words stay: what was heard of them is not known
                end_ms = event.get("audio_end_ms") if isinstance(event.get("audio_end_ms"), int) else 0
                await self.send("conversation.item.truncated", item_id=event["item_id"], content_index=0, audio_end_ms=end_ms)
            case "response.create":
                options = event.get("response")
                await self._respond(ResponseOptions.model_validate({} if options is None else options))
            case "response.cancel":
                if not self._responding:
                    raise ApiError(400, "no response is under way", code="response_cancel_not_active")
                await self._interrupt("client_cancelled")
            case _:
                raise ApiError(400, f"no event {kind!r:.80}", "type", "unknown_event")

    def _item(self, event: dict[str, Any]) -> Message:
        identity = event.get("item_id")
        if not isinstance(identity, str) or identity not in self.items:
            raise ApiError(400, "item_id: no such item", "item_id", "item_not_found")
        return self.items[identity]

    async def _update(self, event: dict[str, Any]) -> None:
        if not isinstance(event.get("session"), dict):
            raise ApiError(400, "session: an object is needed", "session")
        session = Session.model_validate(updated(self.session.model_dump(), event["session"]))
        if session.model is not None:
            self.service.check_model(session.model)
        if "audio" in session.output_modalities:
            self.service.voice(session.audio.output.voice)
        turns_changed = session.audio.input.turn_detection != self.session.audio.input.turn_detection
        self.session = session
        if turns_changed:
            self._listen()
        await self.send("session.updated", session=self.described())

    # --- hearing

    def _clear(self) -> None:
        """Forget the sound that was not committed."""
        self._heard = bytearray()  # float32, at the model's rate
        self._resample = soxr.ResampleStream(PCM_RATE_HZ, self.service.sample_rate_hz, 1)
        self._item_id = new_id("item")

    def _listen(self) -> None:
        """Begin to look for turns as the session says."""
        turns = self.session.audio.input.turn_detection
        self._activity = (
            VoiceActivity(self.service.sample_rate_hz, threshold=turns.threshold, silence_s=turns.silence_duration_ms / 1000)
            if turns is not None
            else None
        )
        self._clock_samples = 0  # that the detector has seen
        self._start_s = 0.0

    async def _append(self, event: dict[str, Any]) -> None:
        audio = event.get("audio")
        if not isinstance(audio, str) or len(audio) > MAX_APPEND_CHARACTERS:
            raise ApiError(400, f"audio: base64 text of at most {MAX_APPEND_CHARACTERS} characters is needed", "audio")
        data = from_base64(audio, "audio")
        if len(data) % 2:
            raise ApiError(400, "audio: 16-bit samples are an even number of bytes", "audio")
        wave = self._resample.resample_chunk(np.frombuffer(data, "<i2").astype(np.float32) / 32768.0)
        if self._heard_samples + len(wave) > self.service.settings.max_audio_s * self.service.sample_rate_hz:
            self._clear()
            raise ApiError(400, f"the buffer exceeds {self.service.settings.max_audio_s:g} s; it was cleared", "audio", "buffer_full")
        for part in np.split(wave, range(self._step_samples, len(wave), self._step_samples)):
            await self._hear(part)

    async def _hear(self, wave: np.ndarray) -> None:
        """A moment of sound."""
        self._heard += wave.tobytes()
        if self._activity is not None:
            self._clock_samples += len(wave)
            for voice in self._activity.push(wave):
                await self._turn(voice)
            if not self._activity.speaking:
                self._keep_last(self._padding_samples())

    @property
    def _heard_samples(self) -> int:
        return len(self._heard) // SAMPLE_BYTES

    def _waveform(self) -> np.ndarray:
        return np.frombuffer(self._heard.copy(), np.float32)

    def _padding_samples(self) -> int:
        turns = self.session.audio.input.turn_detection
        assert turns is not None
        return round((turns.prefix_padding_ms / 1000 + 0.2) * self.service.sample_rate_hz)  # and what the detector needed to be sure

    def _keep_last(self, n: int) -> None:
        """Silence before a turn is not kept."""
        if self._heard_samples > 2 * n + self.service.sample_rate_hz:
            del self._heard[: -SAMPLE_BYTES * n]

    async def _turn(self, voice: VoiceEvent) -> None:
        turns = self.session.audio.input.turn_detection
        assert turns is not None
        if voice.kind == "start":
            self._start_s = max(0.0, voice.at_s - turns.prefix_padding_ms / 1000)
            if turns.interrupt_response:
                await self._interrupt("turn_detected")
            await self.send("input_audio_buffer.speech_started", audio_start_ms=round(1000 * self._start_s), item_id=self._item_id)
            return
        await self.send("input_audio_buffer.speech_stopped", audio_end_ms=round(1000 * voice.at_s), item_id=self._item_id)
        n_turn = self._clock_samples - round(self._start_s * self.service.sample_rate_hz)  # from the beginning of the turn until now
        await self._add_sound(self._waveform()[-n_turn:])
        if turns.create_response:
            if self._responding:
                self._answer_next = True
            else:
                await self._respond(ResponseOptions())

    async def _commit(self) -> None:
        if self._heard_samples < BEGUN_TOO_SOON_MS * self.service.sample_rate_hz // 1000:
            raise ApiError(400, f"the buffer holds less than {BEGUN_TOO_SOON_MS} ms", code="input_audio_buffer_commit_empty")
        await self._add_sound(self._waveform())

    async def _add_sound(self, wave: np.ndarray) -> None:
        """A spoken turn of the user's, whose sound leaves the buffer."""
        identity, before = self._item_id, next(reversed(self.items), None)
        resample = self._resample
        self._clear()
        self._resample = resample  # sound goes on
        await self.send("input_audio_buffer.committed", item_id=identity, previous_item_id=before)
        content = [{"type": "input_audio", "transcript": None}]
        await self._add(identity, {"role": "user", "content": [{"type": "audio", "audio": wave}]}, content)
        if self.session.audio.input.transcription is not None:
            task = asyncio.create_task(self._beside(self._transcribe(identity, wave)))
            self._transcribing.add(task)
            task.add_done_callback(self._transcribing.discard)

    async def _transcribe(self, identity: str, wave: np.ndarray) -> None:
        kind = "conversation.item.input_audio_transcription"
        place = {"item_id": identity, "content_index": 0}
        text = ""
        try:
            async for piece in self.service.pieces(self.service.worker.submit(Job(transcripts=self.service.omni.transcripts(wave)))):
                text = piece.transcript.text if piece.transcript is not None else text
        except OmniError as error:
            await self.send(f"{kind}.failed", **place, error=error_body(error)["error"])
        else:
            usage = {"type": "duration", "seconds": round(len(wave) / self.service.sample_rate_hz, 3)}
            await self.send(f"{kind}.completed", **place, transcript=text, usage=usage)

    # --- the conversation

    async def _create_item(self, event: dict[str, Any]) -> None:
        if event.get("previous_item_id") not in (None, next(reversed(self.items), None)):
            raise ApiError(400, "previous_item_id: items are added at the end; leave it out", "previous_item_id", "unsupported_value")
        item = Item.model_validate(event.get("item"))
        parts: list[dict[str, Any]] = []
        model = self.service.omni.model.config
        for k, part in enumerate(item.content):
            param = f"item.content.{k}"
            if part.type == "input_image":
                url, image_size = part.image_url or "", model.vision_encoder.image_size
                fetched = await self.service.fetched({param: url})
                pixels = await self.service.beside(picture, url, param, image_size, self.service.settings, fetched.get(param))
                parts.append({"type": "image", "image": pixels})
            elif part.type == "input_audio":
                data = from_base64(part.audio or "", f"{param}.audio")
                samples = np.frombuffer(data[: len(data) // 2 * 2], "<i2").astype(np.float32) / 32768.0
                if not 0 < len(samples) <= self.service.settings.max_audio_s * PCM_RATE_HZ:
                    raise ApiError(
                        400, f"{param}.audio: empty, or longer than {self.service.settings.max_audio_s:g} s", param, "invalid_audio"
                    )
                wave = resampled(samples, PCM_RATE_HZ, self.service.sample_rate_hz)
                parts.append({"type": "audio", "audio": wave})
            else:
                parts.append({"type": "text", "text": part.text or ""})
        given = event["item"].get("id")
        identity = given if isinstance(given, str) and 0 < len(given) <= 64 and given not in self.items else new_id("item")
        shown = [{"type": part.type} | ({"text": part.text} if part.text is not None else {}) for part in item.content]
        await self._add(identity, {"role": item.role, "content": parts}, shown)

    async def _add(self, identity: str, message: Message, content: Sequence[dict[str, Any]]) -> None:
        before = next(reversed(self.items), None)
        self._keep(identity, message)
        item = self._shown(identity, message["role"], content, "completed")
        await self.send("conversation.item.added", previous_item_id=before, item=item)
        await self.send("conversation.item.done", previous_item_id=before, item=item)

    def _keep(self, identity: str, message: Message) -> None:
        """Remember a message, and forget the oldest that are too many or too large."""
        self.items[identity] = message
        held_bytes = sum(map(size_bytes, self.items.values()))
        while len(self.items) > 1 and (len(self.items) > MAX_ITEMS or held_bytes > MAX_ITEM_BYTES):
            held_bytes -= size_bytes(self.items.pop(next(iter(self.items))))

    def _shown(self, identity: str, role: str, content: Sequence[dict[str, Any]], status: str) -> dict[str, Any]:
        return {"id": identity, "object": "realtime.item", "type": "message", "role": role, "status": status, "content": list(content)}

    # --- answering

    @property
    def _responding(self) -> bool:
        return self.response is not None and not self.response.done()

    async def _interrupt(self, reason: str) -> None:
        """End the response that is under way, if one is; when this returns, nothing more of it will be sent."""
        self._answer_next = False
        if self.response is None or self.response.done() or self.answer is None:
            return
        if not self.answer.ended:
            self.answer.cancel_reason = reason
            self.response.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self.response

    async def _respond(self, options: ResponseOptions) -> None:
        """Begin a response to the conversation so far."""
        if self._responding:
            raise ApiError(400, "a response is under way; cancel it first", code="conversation_already_has_active_response")
        modalities = options.output_modalities or self.session.output_modalities
        speaks = "audio" in modalities
        voice = self.service.voice(options.audio.output.voice or self.session.audio.output.voice) if speaks else None
        most = options.max_output_tokens or self.session.max_output_tokens
        sampling = Sampling(max_new_tokens=REPLY_TOKENS if most == "inf" else most)
        instructions = self.session.instructions if options.instructions is None else options.instructions
        messages: list[Message] = [{"role": "system", "content": instructions}] if instructions else []
        messages += self.items.values()
        self._answer_next = False
        self.answer = answer = Answer(speaks, before=next(reversed(self.items), None))
        self._keep(answer.item_id, {"role": "assistant", "content": ""})  # before what the user says meanwhile
        self.response = asyncio.create_task(self._beside(self._run_answer(answer, messages, sampling, voice)))
        await asyncio.sleep(0)  # whatever cancels it finds it begun

    async def _beside(self, work: Coroutine[Any, Any, None]) -> None:
        """Run what goes on while the client's events are read. A bug of ours in it ends the conversation."""
        try:
            await work
        except GONE:
            pass  # `run` will be told
        except Exception:
            log.exception("a conversation ends")
            with contextlib.suppress(*GONE):
                await self.socket.close(1011)

    async def _run_answer(self, answer: Answer, messages: list[Message], sampling: Sampling, voice: str | None) -> None:
        """One response, from created to done; then the next, if a turn has ended meanwhile."""
        response = {"id": answer.identity, "object": "realtime.response", "output_modalities": [answer.kind]}
        status = "completed"
        details: dict[str, Any] | None = None
        usage: dict[str, Any] | None = None
        try:
            await self.send("response.created", response={**response, "status": "in_progress", "output": []})
            job = await self._say(answer, messages, sampling, voice)
            usage = {
                "input_tokens": usage_of(job)["prompt_tokens"],
                "output_tokens": job.n_tokens + job.n_frames,
                "total_tokens": usage_of(job)["total_tokens"],
                "output_token_details": {"text_tokens": job.n_tokens, "audio_tokens": job.n_frames},
            }
            if job.stopped == "limit":
                status, details = "incomplete", {"type": "incomplete", "reason": "max_output_tokens"}
        except asyncio.CancelledError:
            if answer.cancel_reason is None:
                raise  # the client has gone
            status, details = "cancelled", {"type": "cancelled", "reason": answer.cancel_reason}
        except OmniError as error:
            body = error_body(error)["error"]
            status, details = (
                "failed",
                {"type": "failed", "error": {"type": body["type"], "code": body["code"], "message": body["message"]}},
            )
        answer.ended = True
        content = [{"type": f"output_{answer.kind}", **answer.said}]
        item = self._shown(answer.item_id, "assistant", content, "completed" if status == "completed" else "incomplete")
        if answer.text:
            self._keep(answer.item_id, {"role": "assistant", "content": answer.text})
        else:
            self.items.pop(answer.item_id, None)
        if answer.begun:
            if answer.speaks:
                await self.send("response.output_audio.done", **answer.place)
            await self.send(f"{answer.text_event}.done", **answer.place, **answer.said)
            await self.send("response.content_part.done", **answer.place, part={"type": answer.kind, **answer.said})
            await self.send("response.output_item.done", **answer.of_item, item=item)
            await self.send("conversation.item.done", previous_item_id=answer.before, item=item)
        done = {**response, "status": status, "status_details": details, "output": [item], "usage": usage}
        await self.send("response.done", response=done)
        if self._answer_next:
            self.response = None  # this one is over
            await self._respond(ResponseOptions())

    async def _say(self, answer: Answer, messages: list[Message], sampling: Sampling, voice: str | None) -> Job:
        """Send what the worker brings, piece by piece; returns the job when it is done."""
        service = self.service
        line = service.omni.speaker.line(voice, sampling) if answer.speaks else None
        job = Job(sampling=sampling, line=line)

        async def read() -> None:
            job.prompt = await service.beside(lambda: service.omni.prompt(messages, reserve=sampling.max_new_tokens))

        await service.admit(job, read)
        try:
            writer = SoundWriter("pcm16", service.sample_rate_hz)
            item = self._shown(answer.item_id, "assistant", [], "in_progress")
            await self.send("response.output_item.added", **answer.of_item, item=item)
            answer.begun = True
            await self.send("conversation.item.added", previous_item_id=answer.before, item=item)
            await self.send("response.content_part.added", **answer.place, part={"type": answer.kind, **answer.said})
            async for piece in service.pieces(job):
                if piece.text:
                    answer.text += piece.text
                    await self.send(f"{answer.text_event}.delta", **answer.place, delta=piece.text)
                if piece.speech is not None and (data := writer.write(piece.speech.waveform)):
                    await self.send("response.output_audio.delta", **answer.place, delta=to_base64(data))
            if job.n_frames and (data := writer.write(np.zeros(0, np.float32), last=True)):
                await self.send("response.output_audio.delta", **answer.place, delta=to_base64(data))
        finally:
            service.worker.cancel(job)
        return job


def router(service: Service) -> APIRouter:
    """The endpoint."""
    routes = APIRouter()

    @routes.websocket("/v1/realtime")
    async def realtime(socket: WebSocket) -> None:
        offered = [name.strip() for name in socket.headers.get("sec-websocket-protocol", "").split(",")]
        await socket.accept(subprotocol=SUBPROTOCOL if SUBPROTOCOL in offered else None)
        if service.n_sessions >= service.settings.max_sessions:
            await socket.close(1013, "too many conversations; try again later")
            return
        service.n_sessions += 1
        try:
            model = socket.query_params.get("model", service.settings.name)
            conversation = Conversation(socket, service)
            if model != service.settings.name:
                await conversation.send_error(ApiError(404, f"no model {model!r:.80}", "model", "model_not_found"))
                await socket.close(1008)
                return
            await conversation.run()
        except GONE:
            pass
        finally:
            if socket.client_state is socket.application_state is WebSocketState.CONNECTED:
                with contextlib.suppress(*GONE):
                    await socket.close()
            service.n_sessions -= 1

    return routes
