"""/v1/chat/completions: a conversation in text, pictures and sound; the answer in text and, if asked, aloud, whole or as it comes."""

from __future__ import annotations

import secrets
import time
import uuid
from collections.abc import AsyncIterator, Mapping
from typing import Any

import numpy as np
from fastapi import APIRouter, Body, Request, Response

from omni.chat import Message
from omni.inference.engine import Prompt
from omni.inference.sampling import Sampling
from omni.server.errors import ApiError, compact, json_response, refuse
from omni.server.media import SoundWriter, encode_sound, from_base64, picture, seen, sound, spectrogram, to_base64
from omni.server.schemas import CHAT_EXAMPLES, AudioPart, ChatMessage, ChatRequest, ImagePart, Part, RefusalPart, TextPart
from omni.server.service import Service, Streamed, as_events, unless_gone
from omni.server.settings import Settings
from omni.server.worker import Job, Piece

REPLY_TOKENS = 256  # unless the request says how many
FINISH = {"end": "stop", "stop": "stop", "limit": "length", None: "stop"}


def sampling_of(request: ChatRequest) -> Sampling:
    """How the reply is chosen: without a seed, and not greedily, differently every time."""
    stop = request.stop
    return Sampling(
        temperature=request.temperature or 0.0,
        top_p=1.0 if request.top_p is None else request.top_p,
        seed=secrets.randbits(63) if request.seed is None else request.seed % 2**63,
        max_new_tokens=request.max_completion_tokens or request.max_tokens or REPLY_TOKENS,
        min_new_tokens=request.muomni.min_tokens,
        stop=(stop,) if isinstance(stop, str) else tuple(stop or ()),
    )


def numbered_parts(messages: list[ChatMessage]) -> dict[str, Part]:
    """The parts of all messages that have some, by where they are."""
    return {
        f"messages.{i}.content.{k}": part
        for i, message in enumerate(messages)
        if isinstance(message.content, list)
        for k, part in enumerate(message.content)
    }


def check_size(messages: list[ChatMessage], settings: Settings) -> None:
    """Raises ApiError for more media or text than a request may hold."""
    parts = numbered_parts(messages)
    media = [param for param, part in parts.items() if isinstance(part, (ImagePart, AudioPart))]
    if len(media) > settings.max_media:
        param = media[settings.max_media]
        raise ApiError(400, f"{param}: more than {settings.max_media} pictures and sounds", param, "too_many_media")
    n = sum(len(message.content) for message in messages if isinstance(message.content, str))
    n += sum(len(part.text) for part in parts.values() if isinstance(part, TextPart))
    n += sum(len(part.refusal) for part in parts.values() if isinstance(part, RefusalPart))
    if n > settings.max_text_characters:
        message = f"messages: {n} characters exceed the limit of {settings.max_text_characters}; leave out the oldest"
        raise ApiError(400, message, "messages", "too_long")


def picture_urls(messages: list[ChatMessage]) -> dict[str, str]:
    """The addresses of all pictures, by where they are."""
    return {f"{param}.image_url": part.image_url.url for param, part in numbered_parts(messages).items() if isinstance(part, ImagePart)}


def read_messages(messages: list[ChatMessage], service: Service, fetched: Mapping[str, bytes]) -> list[Message]:
    """Messages with their media decoded, and remote pictures as `fetched`. Raises ApiError that names the part that is wrong."""
    settings, rate_hz = service.settings, service.sample_rate_hz
    image_size = service.omni.model.config.vision_encoder.image_size
    left_s = settings.max_audio_s
    read: list[Message] = []
    for i, message in enumerate(messages):
        role = "system" if message.role == "developer" else message.role
        if message.content is None:
            if message.audio is None:
                raise ApiError(400, f"messages.{i}: has neither content nor audio", "messages")
            read.append({"role": role, "content": service.recall(message.audio.id)})
            continue
        if isinstance(message.content, str):
            read.append({"role": role, "content": message.content})
            continue
        parts: list[dict[str, Any]] = []
        for k, part in enumerate(message.content):
            param = f"messages.{i}.content.{k}"
            if isinstance(part, ImagePart):
                place = f"{param}.image_url"
                pixels = picture(part.image_url.url, place, image_size, settings, fetched.get(place))
                parts.append({"type": "image", "image": pixels})
            elif isinstance(part, AudioPart):
                wave = sound(from_base64(part.input_audio.data, f"{param}.input_audio.data"), f"{param}.input_audio", rate_hz, settings)
                left_s -= len(wave) / rate_hz
                if left_s < 0:
                    raise ApiError(400, f"{param}: all sounds together exceed {settings.max_audio_s:g} s", param, "invalid_audio")
                parts.append({"type": "audio", "audio": wave})
            else:
                parts.append({"type": "text", "text": part.refusal if isinstance(part, RefusalPart) else part.text})
        read.append({"role": role, "content": parts})
    return read


def prompt_counts(prompt: Prompt) -> dict[str, int]:
    """Tokens of a prompt by modality; the markers count as text."""
    counts = {kind: sum(span.length for span in prompt.rendered.media if span.kind == kind) for kind in ("image", "audio")}
    return {"text": len(prompt.rendered.input_ids) - sum(counts.values()), **counts}


def usage_of(job: Job) -> dict[str, Any]:
    """Counts of a job that is done; a spoken answer's frames of 80 ms are audio tokens."""
    assert job.prompt is not None
    counts, made = prompt_counts(job.prompt), job.n_tokens + job.n_frames
    return {
        "prompt_tokens": sum(counts.values()),
        "completion_tokens": made,
        "total_tokens": sum(counts.values()) + made,
        "prompt_tokens_details": {"cached_tokens": 0, **{f"{kind}_tokens": n for kind, n in counts.items()}},
        "completion_tokens_details": {"text_tokens": job.n_tokens, "audio_tokens": job.n_frames, "reasoning_tokens": 0},
    }


def extras_of(job: Job, view: bool) -> dict[str, Any]:
    """μOmni's own: what did not fit, when what was ready, and, with `view`, what was heard and seen."""
    assert job.prompt is not None
    extras: dict[str, Any] = {
        "notices": [*job.prompt.rendered.notices, *job.notices],
        "timings_ms": {name: round(1000 * seconds, 1) for name, seconds in job.marks.items()},
        "prompt_tokens": prompt_counts(job.prompt),
    }
    if view:
        extras |= {"heard": [spectrogram(mel) for mel in job.prompt.mels], "saw": [seen(pixels) for pixels in job.prompt.pixels]}
    return extras


class Completion:
    """One answer: its job, and how it is written down."""

    def __init__(self, request: ChatRequest, service: Service) -> None:
        self.request, self.service = request, service
        self.identity, self.created_s = f"chatcmpl-{uuid.uuid4().hex}", int(time.time())
        self.audio_identity = f"audio_{uuid.uuid4().hex}"
        self.speaks = "audio" in (request.modalities or ())
        self.format = request.audio.format if request.audio is not None else "wav"

    async def begin(self, connection: Request) -> None:
        """Read the request and submit its job. Raises before anything is sent."""
        request, service = self.request, self.service
        service.check_model(request.model)
        refuse(request.unsupported())
        check_size(request.messages, service.settings)
        if self.speaks and request.stream and self.format not in ("pcm16", "pcm", "wav"):
            raise ApiError(400, "audio.format: a stream is pcm16 (24 kHz) or wav", "audio.format", "unsupported_value")
        voice = service.voice(request.audio.voice if request.audio is not None else None) if self.speaks else None
        sampling = sampling_of(request)
        line = service.omni.speaker.line(voice, sampling) if self.speaks else None
        self.job = Job(sampling=sampling, line=line)
        await unless_gone(connection, service.admit(self.job, self._read))

    async def _read(self) -> None:
        fetched = await self.service.fetched(picture_urls(self.request.messages))
        self.job.prompt = await self.service.beside(self._prompt, fetched)

    def _prompt(self, fetched: Mapping[str, bytes]) -> Prompt:
        messages = read_messages(self.request.messages, self.service, fetched)
        return self.service.omni.prompt(messages, reserve=self.job.sampling.max_new_tokens)

    def _head(self, kind: str) -> dict[str, Any]:
        return {"id": self.identity, "object": kind, "created": self.created_s, "model": self.service.settings.name}

    async def whole(self, connection: Request) -> Response:
        """The answer at once."""
        pieces = await self.service.all_pieces(connection, self.job)
        text = "".join(piece.text for piece in pieces)
        message: dict[str, Any] = {"role": "assistant", "content": text, "refusal": None}
        waves = [piece.speech.waveform for piece in pieces if piece.speech is not None]
        if waves:
            data = await self.service.beside(encode_sound, np.concatenate(waves), self.service.sample_rate_hz, self.format)
            until_s = self.service.remember(self.audio_identity, text)
            message |= {
                "content": None,
                "audio": {"id": self.audio_identity, "data": to_base64(data), "expires_at": until_s, "transcript": text},
            }
        choice = {"index": 0, "message": message, "finish_reason": FINISH[self.job.stopped], "logprobs": None}
        extras = extras_of(self.job, self.request.muomni.view)
        return json_response({**self._head("chat.completion"), "choices": [choice], "usage": usage_of(self.job), "muomni": extras})

    async def chunks(self, pieces: AsyncIterator[Piece]) -> AsyncIterator[str]:
        """The answer as it comes. What was said of a spoken one is remembered, however it ends: its name has been told."""
        head = compact(self._head("chat.completion.chunk"))[:-1]  # without the closing brace: most chunks differ in their delta alone

        def chunk(delta: dict[str, Any], finish: str | None = None) -> str:
            return f'{head},"choices":[{{"index":0,"delta":{compact(delta)},"logprobs":null,"finish_reason":{compact(finish)}}}]}}'

        writer = SoundWriter(self.format, self.service.sample_rate_hz) if self.speaks else None
        text, sounded, until_s = "", False, 0
        yield chunk(
            {"role": "assistant", "content": None, "audio": {"id": self.audio_identity}}
            if self.speaks
            else {"role": "assistant", "content": ""}
        )
        try:
            async for piece in pieces:
                if piece.text:
                    text += piece.text
                    yield chunk(
                        {"audio": {"id": self.audio_identity, "transcript": piece.text}} if self.speaks else {"content": piece.text}
                    )
                if piece.speech is not None and writer is not None:
                    sounded = True
                    yield chunk({"audio": {"id": self.audio_identity, "data": to_base64(writer.write(piece.speech.waveform))}})
        finally:
            if self.speaks:
                until_s = self.service.remember(self.audio_identity, text)
        if writer is not None:
            if sounded and (rest := writer.write(np.zeros(0, np.float32), last=True)):
                yield chunk({"audio": {"id": self.audio_identity, "data": to_base64(rest)}})
            yield chunk({"audio": {"id": self.audio_identity, "expires_at": until_s}})
        final = chunk({}, FINISH[self.job.stopped])[:-1]
        yield f'{final},"muomni":{compact(extras_of(self.job, self.request.muomni.view))}}}'
        if self.request.stream_options is not None and self.request.stream_options.include_usage:
            yield f'{head},"choices":[],"usage":{compact(usage_of(self.job))}}}'
        yield "[DONE]"


def router(service: Service) -> APIRouter:
    """The endpoint."""
    routes = APIRouter()

    @routes.post(
        "/v1/chat/completions",
        summary="Answer a conversation",
        response_description="A chat completion, or with `stream` chunks as server-sent events, as in OpenAI's interface",
    )
    async def chat_completions(request: Request, body: ChatRequest = Body(openapi_examples=CHAT_EXAMPLES)) -> Response:
        """Text, pictures (`image_url` with a data URI) and sound (`input_audio`) in; text and, with `modalities: ["text", "audio"]`, speech out.
        What does not fit into the context is cut or dropped, and `muomni.notices` of the answer say so."""
        completion = Completion(body, service)
        await completion.begin(request)
        if not body.stream:
            return await completion.whole(request)
        pieces = await service.begun(request, completion.job)
        return Streamed(as_events(completion.chunks(pieces)), "text/event-stream", service.worker, completion.job)

    return routes
