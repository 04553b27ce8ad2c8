"""/v1/audio/speech and /v1/audio/transcriptions."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Annotated, Any, Literal

import numpy as np
from fastapi import APIRouter, Body, File, Form, Request, Response, UploadFile
from starlette.responses import PlainTextResponse

from omni.errors import DataError
from omni.inference.sampling import Sampling
from omni.inference.transcript import Span, Transcript
from omni.server.errors import ApiError, compact, json_response, refuse
from omni.server.media import MEDIA_TYPES, SoundWriter, sound, to_base64
from omni.server.schemas import SPEECH_EXAMPLES, SpeechRequest
from omni.server.service import Service, Streamed, as_events, unless_gone
from omni.server.worker import Job, Piece

ENGLISH = ("en", "english")
TranscriptFormat = Literal["json", "text", "srt", "vtt", "verbose_json"]


def clock(seconds: float, point: str) -> str:
    """hh:mm:ss and milliseconds behind `point`."""
    milliseconds = round(1000 * seconds)
    return f"{milliseconds // 3_600_000:02}:{milliseconds // 60_000 % 60:02}:{milliseconds // 1000 % 60:02}{point}{milliseconds % 1000:03}"


def srt(segments: list[Span]) -> str:
    """SubRip subtitles."""
    return "".join(f"{i}\n{clock(s.start_s, ',')} --> {clock(s.end_s, ',')}\n{s.text}\n\n" for i, s in enumerate(segments, start=1))


def vtt(segments: list[Span]) -> str:
    """WebVTT subtitles."""
    escaped = ((s, s.text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")) for s in segments)
    return "WEBVTT\n\n" + "".join(f"{clock(s.start_s, '.')} --> {clock(s.end_s, '.')}\n{text}\n\n" for s, text in escaped)


def verbose(transcript: Transcript, duration_s: float, words: bool) -> dict[str, Any]:
    """Text with times. The figures that only Whisper has are at the values that say nothing."""
    unknown = {"seek": 0, "tokens": [], "temperature": 0.0, "avg_logprob": 0.0, "compression_ratio": 1.0, "no_speech_prob": 0.0}
    segments = [
        {"id": i, "start": round(s.start_s, 3), "end": round(s.end_s, 3), "text": s.text, **unknown}
        for i, s in enumerate(transcript.segments)
    ]
    spans = [{"word": w.text, "start": round(w.start_s, 3), "end": round(w.end_s, 3)} for w in transcript.words]
    answer = {"task": "transcribe", "language": "english", "duration": round(duration_s, 3), "text": transcript.text, "segments": segments}
    return answer | ({"words": spans} if words else {})


def router(service: Service) -> APIRouter:
    """The endpoints."""
    routes = APIRouter()

    async def sounds(pieces: AsyncIterator[Piece], kind: Any) -> AsyncIterator[bytes]:
        writer = SoundWriter(kind, service.sample_rate_hz)
        async for piece in pieces:
            if piece.speech is not None and (data := writer.write(piece.speech.waveform)):
                yield data
        if data := writer.write(np.zeros(0, np.float32), last=True):
            yield data

    async def sound_events(job: Job, pieces: AsyncIterator[Piece], kind: Any) -> AsyncIterator[str]:
        async for data in sounds(pieces, kind):
            yield compact({"type": "speech.audio.delta", "audio": to_base64(data)})
        usage = {"input_tokens": 0, "output_tokens": job.n_frames, "total_tokens": job.n_frames}
        yield compact({"type": "speech.audio.done", "usage": usage})

    @routes.post("/v1/audio/speech", summary="Say a text", response_class=Response)
    async def speech(request: Request, body: SpeechRequest = Body(openapi_examples=SPEECH_EXAMPLES)) -> Response:
        """The file is sent while it is spoken. `stream_format: "sse"` sends it as events instead."""
        service.check_model(body.model)
        refuse(body.unsupported())
        voice = service.voice(body.voice)
        most = service.settings.max_speech_characters
        if len(body.input) > most:
            raise ApiError(400, f"input: {len(body.input)} characters exceed the limit of {most}", "input", "too_long")
        job = Job()

        async def read() -> None:
            try:
                job.line = await service.beside(service.omni.speaker.line, voice, Sampling(), body.input)
            except DataError as error:
                raise ApiError(400, f"input: {error}", "input") from None

        await unless_gone(request, service.admit(job, read))
        pieces = await service.begun(request, job)
        if body.stream_format == "sse":
            return Streamed(as_events(sound_events(job, pieces, body.response_format)), "text/event-stream", service.worker, job)
        return Streamed(sounds(pieces, body.response_format), MEDIA_TYPES[body.response_format], service.worker, job)

    async def transcript_events(pieces: AsyncIterator[Piece], duration_s: float) -> AsyncIterator[str]:
        told = ""
        async for piece in pieces:
            if piece.transcript is not None and (text := piece.transcript.text) != told:
                yield compact({"type": "transcript.text.delta", "delta": text[len(told) :]})
                told = text
        yield compact({"type": "transcript.text.done", "text": told, "usage": {"type": "duration", "seconds": round(duration_s, 3)}})

    @routes.post("/v1/audio/transcriptions", summary="Write down what is said", response_class=Response)
    async def transcriptions(
        request: Request,
        file: Annotated[UploadFile, File(description="WAV, FLAC, Ogg or MP3")],
        model: Annotated[str, Form()],
        response_format: Annotated[TranscriptFormat, Form()] = "json",
        stream: Annotated[bool, Form()] = False,
        timestamp_granularities: Annotated[list[str] | None, Form(alias="timestamp_granularities[]")] = None,
        language: Annotated[str, Form(description="English, which is all the model knows")] = "en",
        temperature: Annotated[float, Form(ge=0, le=0)] = 0.0,
        prompt: Annotated[str | None, Form(include_in_schema=False)] = None,
        include: Annotated[list[str] | None, Form(alias="include[]", include_in_schema=False)] = None,
        keywords: Annotated[list[str] | None, Form(alias="keywords[]", include_in_schema=False)] = None,
    ) -> Response:
        """Text as JSON, plain text, subtitles (`srt`, `vtt`) or with times (`verbose_json`); with `stream` as events, window by window."""
        service.check_model(model)
        refuse({"prompt": bool(prompt), "include": bool(include), "keywords": bool(keywords)})
        if language.lower().partition("-")[0] not in ENGLISH:
            raise ApiError(400, "language: this model understands English only (en)", "language", "unsupported_value")
        granularities = timestamp_granularities or ["segment"]
        if not set(granularities) <= {"word", "segment"}:
            raise ApiError(400, "timestamp_granularities: use word or segment", "timestamp_granularities")
        job, duration_s = Job(), 0.0

        async def read() -> None:
            nonlocal duration_s
            wave = await service.beside(sound, await file.read(), "file", service.sample_rate_hz, service.settings)
            duration_s = len(wave) / service.sample_rate_hz
            job.transcripts = service.omni.transcripts(wave)

        await unless_gone(request, service.admit(job, read))
        if stream:
            pieces = await service.begun(request, job)
            return Streamed(as_events(transcript_events(pieces, duration_s)), "text/event-stream", service.worker, job)
        transcript = (await service.all_pieces(request, job))[-1].transcript
        assert transcript is not None
        usage = {"type": "duration", "seconds": round(duration_s, 3)}
        match response_format:
            case "text":
                return PlainTextResponse(transcript.text + "\n")
            case "srt":
                return PlainTextResponse(srt(transcript.segments), media_type="application/x-subrip")
            case "vtt":
                return PlainTextResponse(vtt(transcript.segments), media_type="text/vtt")
            case "verbose_json":
                return json_response(verbose(transcript, duration_s, "word" in granularities) | {"usage": usage})
            case _:
                return json_response({"text": transcript.text, "usage": usage})

    return routes
