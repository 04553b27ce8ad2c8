"""How fast a model writes, answers and speaks: tokens a second; how soon the first word and the first sound are there and what that time goes
into; and how long speech takes as a whole."""

from __future__ import annotations

import functools
import statistics
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

from omni import memory
from omni.inference.omni import Omni, Picture
from omni.inference.sampling import Sampling
from omni.vocoder import NeuralVocoder

TEN_WORDS = "The old house stood quietly at the edge of town."
LONGER = (
    "The old house stood quietly at the edge of town, and nobody had lived in it for years. On a warm evening in June the children "
    "climbed over the garden wall, because they had seen a light behind one of the windows. There was a cat on the stairs, and it "
    "looked at them as if it had been waiting all day long."
)
OTHER = "everything_else"
AUDIBLE = 0.01  # of full scale: what is softer is silence
TRIES = 3  # of the whole texts, of which the median counts


QUESTIONS = tuple(
    f"{ask} {what}?"
    for ask in ("What colour is", "Where is", "How many are there of", "Tell me about")
    for what in ("the sea", "the big house", "that red circle", "the small star", "the town", "the old man", "the garden", "a square")
)


@dataclass(frozen=True)
class GenerationSpeed:
    """Of one reply after another, greedy and in float32, in this process: tokens a second, and milliseconds from question to first text (median)."""

    tokens_per_s: float
    first_text_ms: float
    replies: int


def measure_generation(omni: Omni, seconds: float = 10.0, n_tokens: int = 64) -> GenerationSpeed:
    """Answer QUESTIONS in turn for so long, each with `n_tokens`. Raises CheckpointError for a checkpoint without a Thinker."""
    sampling = Sampling(max_new_tokens=n_tokens, min_new_tokens=n_tokens)
    omni.chat([{"role": "user", "content": QUESTIONS[0]}], sampling)
    firsts: list[float] = []
    tokens = 0
    begun = time.perf_counter()
    while time.perf_counter() - begun < seconds:
        start = time.perf_counter()
        prompt = omni.prompt([{"role": "user", "content": QUESTIONS[len(firsts) % len(QUESTIONS)]}], reserve=n_tokens)
        batch = omni.engine.batch()
        (draft,) = batch.join([prompt], [sampling])
        firsts.append(time.perf_counter() - start)
        while batch.drafts:
            batch.step()
        tokens += len(draft.ids)
    return GenerationSpeed(round(tokens / (time.perf_counter() - begun), 1), round(1000 * statistics.median(firsts), 2), len(firsts))


@dataclass(frozen=True)
class SpeechSpeed:
    """Of a ten-word sentence: milliseconds to the first sound (median, and each stage's part in that request) and the length of that sound, much
    of which is the silence before the first word; so also to the first audible sample, for who plays each piece as it comes, and how long that
    player waits for a piece at most (0: never), medians too;
    of speech of `audio_s` seconds: `real_time_factor`, seconds of work for a second of speech, streamed and as a whole; and the largest
    difference of a sample between the two, over both texts. `look_ahead_ms` of codec decoder and vocoder, which the first sound waits for."""

    vocoder: str
    words: int
    first_audio_ms: float
    stages_ms: dict[str, float]
    first_piece_ms: float
    first_audible_ms: float
    longest_wait_ms: float
    look_ahead_ms: dict[str, float]
    audio_s: float
    real_time_factor: float
    streamed_real_time_factor: float
    streamed_difference: float


@contextmanager
def clocked(methods: dict[str, list[tuple[Any, str]]]) -> Iterator[dict[str, float]]:
    """Meanwhile the seconds spent in the named methods add up, by stage; none of them may call another."""
    spent = dict.fromkeys(methods, 0.0)

    def timed(stage: str, method: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(method)
        def call(*arguments: Any, **settings: Any) -> Any:
            start = time.perf_counter()
            try:
                return method(*arguments, **settings)
            finally:
                spent[stage] += time.perf_counter() - start

        return call

    found = [(stage, owner, name) for stage, pairs in methods.items() for owner, name in pairs]
    for stage, owner, name in found:
        setattr(owner, name, timed(stage, getattr(owner, name)))
    try:
        yield spent
    finally:
        for _, owner, name in found:
            delattr(owner, name)  # the class has the method itself


def stages(omni: Omni) -> dict[str, list[tuple[Any, str]]]:
    """The methods in which the time until the first sound goes."""
    model = omni.model
    talker = model.talker
    streams = isinstance(model.vocoder, NeuralVocoder)
    return {
        "thinker": [(model, "reply_states")],
        "talker_text": [(talker.conditioning, "forward"), (talker, "durations"), (talker.frame_conditioning, "forward")],
        "talker_frames": [(talker, "step"), (talker, "first_logits"), (talker, "rest_logits")],
        "codec": [(model.codec, "decode_span" if streams else "decode")],
        "vocoder": [(model.vocoder, "advance" if streams else "forward")],
    }


def _whole(omni: Omni, text: str, voice: str | None) -> tuple[np.ndarray, float]:
    start = time.perf_counter()
    speech = omni.say(text, voice)
    return speech.waveform, time.perf_counter() - start


def _streamed(omni: Omni, text: str, voice: str | None) -> tuple[np.ndarray, float]:
    start = time.perf_counter()
    pieces = [speech.waveform for speech in omni.say_stream(text, voice)]
    return np.concatenate(pieces), time.perf_counter() - start


def played(pieces: Iterable[tuple[float, np.ndarray]], rate_hz: int) -> tuple[float, float]:
    """Pieces (n,) of a waveform with the seconds at which they come, for who plays them as they come → seconds until the first audible sample (the end,
    if there is none), and the longest wait for a piece that is late."""
    audible, wait, end = None, 0.0, None
    for now, piece in pieces:
        begin = now if end is None else max(now, end)
        wait = max(wait, begin - end) if end is not None else wait
        loud = np.flatnonzero(np.abs(piece) > AUDIBLE)
        if audible is None and len(loud):
            audible = begin + float(loud[0]) / rate_hz
        end = begin + len(piece) / rate_hz
    assert end is not None, "nothing came"
    return end if audible is None else audible, wait


def _arriving(omni: Omni, text: str, voice: str | None) -> Iterator[tuple[float, np.ndarray]]:
    start = time.perf_counter()
    for speech in omni.say_stream(text, voice):
        yield time.perf_counter() - start, speech.waveform


def measure_speech(omni: Omni, voice: str | None = None, rounds: int = 10) -> SpeechSpeed:
    """The stages are those of the request with the median time. Raises ConfigError for a voice that the model does not have, CheckpointError
    for a checkpoint that cannot speak."""
    _whole(omni, TEN_WORDS, voice)  # allocations, and choices of kernels
    rate_hz, requests = omni.model.config.audio.sample_rate_hz, []
    for _ in range(rounds):
        with clocked(stages(omni)) as spent:
            start = time.perf_counter()
            first = next(omni.say_stream(TEN_WORDS, voice))
            seconds = time.perf_counter() - start
        requests.append((seconds, {**spent, OTHER: seconds - sum(spent.values())}, first.duration_s))
    seconds, spent, first_s = sorted(requests, key=lambda request: request[0])[(rounds - 1) // 2]
    audible, waits = zip(*(played(_arriving(omni, TEN_WORDS, voice), rate_hz) for _ in range(rounds)), strict=True)
    texts = (TEN_WORDS, LONGER)
    whole = [[_whole(omni, text, voice) for text in texts] for _ in range(TRIES)]
    streamed = [[_streamed(omni, text, voice) for text in texts] for _ in range(TRIES)]
    audio_s = sum(len(wave) for wave, _ in whole[0]) / rate_hz
    pace, streamed_pace = (statistics.median(sum(t for _, t in runs) for runs in tries) / audio_s for tries in (whole, streamed))
    config, vocoder = omni.model.config, omni.model.vocoder
    look_ahead = {"codec": 1000 * config.codec.look_ahead / config.code_rate_hz}
    return SpeechSpeed(
        vocoder=omni.model.vocoder_name,
        words=len(TEN_WORDS.split()),
        first_audio_ms=round(1000 * seconds, 1),
        stages_ms={stage: round(1000 * s, 1) for stage, s in spent.items()},
        first_piece_ms=round(1000 * first_s, 1),
        first_audible_ms=round(1000 * statistics.median(audible), 1),
        longest_wait_ms=round(1000 * statistics.median(waits), 1),
        look_ahead_ms=look_ahead | ({"vocoder": vocoder.delay_ms} if isinstance(vocoder, NeuralVocoder) else {}),
        audio_s=round(audio_s, 2),
        real_time_factor=round(pace, 4),
        streamed_real_time_factor=round(streamed_pace, 4),
        streamed_difference=max(float(abs(a - b).max()) for (a, _), (b, _) in zip(whole[0], streamed[0], strict=True)),
    )


# --- a whole answer

QUESTION_S = 3.0


@dataclass(frozen=True)
class AnswerSpeed:
    """Of a spoken question about a picture, both decoded already: milliseconds to the first token, to the whole reply of `reply_tokens`, and to its
    first sound (medians of `rounds`); `peak_memory_mb` of this process so far, which is the model's alone in a fresh one."""

    question_s: float
    rounds: int
    first_token_ms: float
    reply_ms: float
    reply_tokens: int
    first_audio_ms: float
    reply: str
    peak_memory_mb: float


def of_length(waveform: np.ndarray, n: int) -> np.ndarray:
    """(n,): a clip between silences, or its beginning."""
    spare = max(0, n - len(waveform))
    return np.pad(waveform, (spare // 2, spare - spare // 2))[:n]


def measure_answer(omni: Omni, picture: Picture, question: np.ndarray, voice: str | None = None, rounds: int = 10) -> AnswerSpeed:
    """`question` (n,) is stretched with silence to three seconds. Raises ConfigError for a voice that the model does not have, CheckpointError
    for a checkpoint that lacks a component, DataError if the model has nothing to say."""
    wave = of_length(question, int(QUESTION_S * omni.model.config.audio.sample_rate_hz))
    message, _ = omni.question(image=picture, audio=wave)
    times: list[tuple[float, float, float]] = []
    reply = ""
    for _ in range(rounds + 1):  # the first is for allocations, and choices of kernels
        start = time.perf_counter()
        _, events = omni.chat_stream([message])
        reply = next(events).text
        first_token = time.perf_counter() - start
        reply += "".join(event.text for event in events)
        whole = time.perf_counter() - start
        next(omni.say_stream(reply, voice))
        times.append((first_token, whole, time.perf_counter() - start))
    first_token_ms, reply_ms, first_audio_ms = (round(1000 * statistics.median(column), 1) for column in zip(*times[1:], strict=True))
    return AnswerSpeed(
        question_s=QUESTION_S,
        rounds=rounds,
        first_token_ms=first_token_ms,
        reply_ms=reply_ms,
        reply_tokens=len(omni.tokenizer.encode(reply)),
        first_audio_ms=first_audio_ms,
        reply=reply,
        peak_memory_mb=round(memory.peak(omni.device) / 1e6, 1),
    )
