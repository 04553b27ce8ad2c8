"""Requests in OpenAI's shapes. What would change the answer and is not there is refused, never ignored; what would not is ignored."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag

from omni.server.media import AudioFormat

MAX_STOP_CHARACTERS = 256
MAX_MESSAGES, MAX_PARTS = 1_000, 100  # of a conversation, of a message
Stop = Annotated[str, Field(min_length=1, max_length=MAX_STOP_CHARACTERS)]


class Request(BaseModel):
    """Fields that are not named here are ignored, as OpenAI's own servers do with those of the future."""

    model_config = ConfigDict(extra="ignore", allow_inf_nan=False)


class TextPart(Request):
    """Words."""

    type: Literal["text"]
    text: str


class ImageURL(Request):
    """`url`: a data URI, `data:image/png;base64,…`."""

    url: str
    detail: Literal["auto", "low", "high"] | None = None


class ImagePart(Request):
    """A picture: PNG, JPEG, GIF or WebP."""

    type: Literal["image_url"]
    image_url: ImageURL


class InputAudio(Request):
    """`data`: a file in base64. What it is decides the decoder, not `format`."""

    data: str
    format: str = "wav"


class AudioPart(Request):
    """A sound: WAV, FLAC, Ogg or MP3."""

    type: Literal["input_audio"]
    input_audio: InputAudio


class RefusalPart(Request):
    """What an assistant would not say."""

    type: Literal["refusal"]
    refusal: str


Part = Annotated[TextPart | ImagePart | AudioPart | RefusalPart, Field(discriminator="type")]
Parts = Annotated[list[Part], Field(max_length=MAX_PARTS)]
Content = Annotated[  # told apart first, so that errors are about the one that was meant
    Annotated[str, Tag("text")] | Annotated[Parts, Tag("parts")], Discriminator(lambda value: "text" if isinstance(value, str) else "parts")
]


class SpokenBefore(Request):
    """An earlier spoken answer, by its id."""

    id: str


class ChatMessage(Request):
    """One turn. A system message may only come first to be kept when a long conversation loses its oldest turns."""

    role: Literal["system", "developer", "user", "assistant"]
    content: Content | None = None
    audio: SpokenBefore | None = None


class AudioOutput(Request):
    """How the answer is to sound."""

    voice: str | None = None
    format: AudioFormat = "wav"


class StreamOptions(Request):
    """`include_usage`: one more chunk at the end, with counts."""

    include_usage: bool = False


class Extras(Request):
    """μOmni's own. `view`: return what the model heard and saw as pictures. `min_tokens`: the reply does not end before."""

    view: bool = False
    min_tokens: Annotated[int, Field(ge=0)] = 0


class ChatRequest(Request):
    """A conversation to answer. `temperature` is 0 (greedy) unless given."""

    model: str
    messages: Annotated[list[ChatMessage], Field(min_length=1, max_length=MAX_MESSAGES)]
    modalities: Annotated[list[Literal["text", "audio"]], Field(min_length=1)] | None = None
    audio: AudioOutput | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = None
    stop: Stop | Annotated[list[Stop], Field(max_length=4)] | None = None
    muomni: Extras = Extras()
    # known, and refused unless they ask for what happens anyway
    n: int | None = None
    logprobs: bool | None = None
    tools: list[Any] | None = None
    functions: list[Any] | None = None
    response_format: dict[str, Any] | None = None
    frequency_penalty: float | None = None
    presence_penalty: float | None = None
    logit_bias: dict[str, Any] | None = None

    def unsupported(self) -> dict[str, bool]:
        """Which fields ask for what this server cannot do."""
        return {
            "n": self.n not in (None, 1),
            "logprobs": bool(self.logprobs),
            "tools": bool(self.tools),
            "functions": bool(self.functions),
            "response_format": self.response_format is not None and self.response_format.get("type") != "text",
            "frequency_penalty": bool(self.frequency_penalty),
            "presence_penalty": bool(self.presence_penalty),
            "logit_bias": bool(self.logit_bias),
        }


class SpeechRequest(Request):
    """A text to say. `response_format` "pcm" is 16-bit mono at 24 kHz."""

    model: str
    input: str
    voice: str | None = None
    response_format: Literal["mp3", "opus", "flac", "wav", "pcm"] = "mp3"
    stream_format: Literal["audio", "sse"] = "audio"
    speed: Annotated[float, Field(ge=1, le=1)] = 1.0
    instructions: str | None = None  # known, and refused

    def unsupported(self) -> dict[str, bool]:
        """Which fields ask for what this server cannot do."""
        return {"instructions": bool(self.instructions)}


RED_PIXEL = "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAIAAACQd1PeAAAADElEQVR4nGP4z8AAAAMBAQDJ/pLvAAAAAElFTkSuQmCC"
CHAT_EXAMPLES: dict[str, Any] = {
    "text": {"summary": "Text in, text out", "value": {"model": "muomni", "messages": [{"role": "user", "content": "Hello!"}]}},
    "picture": {
        "summary": "A picture in",
        "value": {
            "model": "muomni",
            "messages": [
                {
                    "role": "user",
                    "content": [
                        {"type": "text", "text": "What colour is it?"},
                        {"type": "image_url", "image_url": {"url": RED_PIXEL}},
                    ],
                }
            ],
        },
    },
    "spoken": {
        "summary": "A spoken answer, streamed",
        "value": {
            "model": "muomni",
            "modalities": ["text", "audio"],
            "audio": {"format": "pcm16"},
            "stream": True,
            "messages": [{"role": "user", "content": "Hello!"}],
        },
    },
}
SPEECH_EXAMPLES: dict[str, Any] = {
    "sentence": {"summary": "A sentence as WAV", "value": {"model": "muomni", "input": "The circle is red.", "response_format": "wav"}}
}
