"""OpenAI's own client against a real server: every endpoint, and each answer is the one that the package gives in this process."""

from __future__ import annotations

import base64
import io
import json
import re
import threading
from pathlib import Path
from typing import Any

import numpy as np
import openai
import pytest
import soundfile
from served import ROOT, Served, data_uri, encoded, end, start

from omni.audio import decode_audio
from omni.inference.omni import Omni
from omni.inference.sampling import Sampling
from omni.server.media import encode_sound

GREETING = [{"role": "user", "content": "Hello!"}]


def test_there_is_one_model_and_it_tells_what_it_is(client: openai.OpenAI, omni: Omni) -> None:
    (model,) = client.models.list().data
    assert model.id == client.models.retrieve("muomni").id == "muomni"
    assert model.voices == list(omni.voices)
    with pytest.raises(openai.NotFoundError, match="no model 'other'"):
        client.models.retrieve("other")


# --- chat


def test_a_chat_is_the_package_s_answer(client: openai.OpenAI, omni: Omni) -> None:
    answer = client.chat.completions.create(model="muomni", messages=GREETING, max_completion_tokens=20)
    wanted = omni.chat(GREETING, Sampling(max_new_tokens=20))
    assert answer.choices[0].message.content == wanted.text
    assert answer.choices[0].finish_reason == ("length" if wanted.stopped == "limit" else "stop")
    prompt = omni.prompt(GREETING, reserve=20)
    assert answer.usage.prompt_tokens == len(prompt.rendered.input_ids)
    assert 0 < answer.usage.completion_tokens <= 20
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens


def test_sampling_is_obeyed(client: openai.OpenAI, omni: Omni) -> None:
    settings = {"temperature": 1.3, "top_p": 0.9, "max_tokens": 24}
    texts = [
        client.chat.completions.create(model="muomni", messages=GREETING, seed=s, **settings).choices[0].message.content for s in (5, 5, 6)
    ]
    assert texts[0] == texts[1] != texts[2]
    assert texts[0] == omni.chat(GREETING, Sampling(temperature=1.3, top_p=0.9, seed=5, max_new_tokens=24)).text
    stop = texts[0][3:5]
    stopped = client.chat.completions.create(model="muomni", messages=GREETING, seed=5, stop=[stop, "zzz"], **settings)
    assert stopped.choices[0].message.content == texts[0][: texts[0].index(stop)]
    assert stopped.choices[0].finish_reason == "stop"


def test_without_a_seed_every_answer_is_another_unless_it_is_greedy(client: openai.OpenAI) -> None:
    def texts(**settings: float) -> set[str | None]:
        answers = [client.chat.completions.create(model="muomni", messages=GREETING, max_tokens=24, **settings) for _ in range(3)]
        return {answer.choices[0].message.content for answer in answers}

    assert len(texts(temperature=1.3)) == 3
    assert len(texts(temperature=0.0)) == len(texts(temperature=1.3, seed=0)) == len(texts()) == 1


def test_pictures_and_sounds_reach_the_answer(client: openai.OpenAI, omni: Omni, media: Path) -> None:
    content = [
        {"type": "text", "text": "What?"},
        {"type": "image_url", "image_url": {"url": data_uri(media / "a.png")}},
        {"type": "input_audio", "input_audio": {"data": encoded(media / "short.wav"), "format": "wav"}},
    ]
    messages = [{"role": "developer", "content": "Be brief."}, {"role": "user", "content": content}]
    answer = client.chat.completions.create(model="muomni", messages=messages, max_tokens=16, extra_body={"muomni": {"view": True}})
    ours = [{"type": "text", "text": "What?"}, {"type": "image", "image": media / "a.png"}, {"type": "audio", "audio": media / "short.wav"}]
    wanted = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": ours}]
    assert answer.choices[0].message.content == omni.chat(wanted, Sampling(max_new_tokens=16)).text
    details = answer.usage.prompt_tokens_details
    assert details.audio_tokens == 9
    assert details.image_tokens == 4
    assert [len(answer.muomni[name]) for name in ("heard", "saw")] == [1, 1]
    assert {"started", "read", "first_text", "done"} <= set(answer.muomni["timings_ms"])


def test_what_does_not_fit_is_told(client: openai.OpenAI, media: Path) -> None:
    content = [{"type": "input_audio", "input_audio": {"data": encoded(media / "long.wav"), "format": "wav"}}]
    answer = client.chat.completions.create(model="muomni", messages=[{"role": "user", "content": content}], max_tokens=4)
    assert "quarter of the context" in answer.muomni["notices"][0]
    many = [{"role": ("user", "assistant")[i % 2], "content": f"Turn {i}."} for i in range(501)]
    answer = client.chat.completions.create(model="muomni", messages=many, max_tokens=4)
    assert "dropped the oldest" in answer.muomni["notices"][0]


def test_a_stream_is_the_whole(client: openai.OpenAI) -> None:
    settings = {"model": "muomni", "messages": GREETING, "max_tokens": 40, "temperature": 1.5, "seed": 3}
    whole = client.chat.completions.create(**settings)
    chunks = list(client.chat.completions.create(**settings, stream=True, stream_options={"include_usage": True}))
    assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == whole.choices[0].message.content
    assert chunks[0].choices[0].delta.role == "assistant"
    assert [c.choices[0].finish_reason for c in chunks if c.choices][-1] == whole.choices[0].finish_reason
    assert chunks[-1].usage.total_tokens == whole.usage.total_tokens
    assert len({c.id for c in chunks}) == 1


def test_a_spoken_answer_is_what_say_says_and_can_be_referred_to(client: openai.OpenAI, omni: Omni) -> None:
    settings = {"model": "muomni", "messages": GREETING, "max_tokens": 24, "temperature": 1.2, "seed": 1, "modalities": ["text", "audio"]}
    answer = client.chat.completions.create(**settings, audio={"voice": "bob", "format": "wav"})
    message = answer.choices[0].message
    wanted = omni.say(message.audio.transcript, "bob", sampling=Sampling(temperature=1.2, seed=1, max_new_tokens=24))
    samples, rate = soundfile.read(io.BytesIO(base64.b64decode(message.audio.data)), dtype="float32")
    assert rate == 16_000
    np.testing.assert_allclose(samples, wanted.waveform, atol=2e-3)
    assert answer.usage.completion_tokens_details.audio_tokens == len(wanted.codes)
    text = omni.chat(GREETING, Sampling(temperature=1.2, seed=1, max_new_tokens=24)).text
    assert message.audio.transcript == text
    again = [*GREETING, {"role": "assistant", "audio": {"id": message.audio.id}}, {"role": "user", "content": "Why?"}]
    said = [*GREETING, {"role": "assistant", "content": text}, {"role": "user", "content": "Why?"}]
    replies = [client.chat.completions.create(model="muomni", messages=m, max_tokens=8).choices[0].message.content for m in (again, said)]
    assert replies[0] == replies[1]
    with pytest.raises(openai.NotFoundError):
        client.chat.completions.create(model="muomni", messages=[{"role": "assistant", "audio": {"id": "audio_0"}}, *GREETING])


def test_a_streamed_spoken_answer_is_the_whole_one_at_24_khz(client: openai.OpenAI, omni: Omni) -> None:
    settings = {"model": "muomni", "messages": GREETING, "max_tokens": 24, "temperature": 1.2, "seed": 1, "modalities": ["text", "audio"]}
    chunks = list(client.chat.completions.create(**settings, audio={"voice": "ada", "format": "pcm16"}, stream=True))
    audios = [c.choices[0].delta.audio for c in chunks if c.choices and c.choices[0].delta.audio]
    text = "".join(a.transcript or "" for a in audios)
    data = b"".join(base64.b64decode(a.data) for a in audios if a.data)
    speech = omni.say(text, "ada", sampling=Sampling(temperature=1.2, seed=1, max_new_tokens=24))
    wanted = np.frombuffer(encode_sound(speech.waveform, 16_000, "pcm16"), "<i2").astype(int)
    heard = np.frombuffer(data, "<i2").astype(int)
    assert abs(len(heard) - len(wanted)) <= 2
    n = min(len(heard), len(wanted))
    assert np.abs(heard[:n] - wanted[:n]).mean() < 30
    assert any(a.expires_at for a in audios)


def test_sound_comes_before_the_text_is_whole(client: openai.OpenAI) -> None:
    settings: dict[str, Any] = {
        "max_tokens": 90,
        "extra_body": {"muomni": {"min_tokens": 80}},
        "temperature": 1.2,
        "modalities": ["text", "audio"],
        "audio": {"voice": "ada", "format": "pcm16"},
    }
    kinds = ""
    for seed in range(30):  # a random model seldom ends a clause
        for chunk in client.chat.completions.create(model="muomni", messages=GREETING, seed=seed, stream=True, **settings):
            audio = chunk.choices[0].delta.audio if chunk.choices else None
            kinds += "a" if audio and audio.data else "t" if audio and audio.transcript else ""
        if "at" in kinds:
            return
        kinds += "."
    raise AssertionError(kinds)


def test_the_example_of_the_documentation_runs(server: Served, capsys: pytest.CaptureFixture[str]) -> None:
    page = (ROOT / "docs" / "serving.md").read_text(encoding="utf-8")
    (example,) = re.findall(r"```python\n(.*?)```", page, flags=re.DOTALL)
    assert "http://127.0.0.1:8000" in example
    exec(compile(example.replace("http://127.0.0.1:8000", server.url), "serving.md", "exec"), {})
    assert capsys.readouterr().out.strip()


# --- speech and transcriptions


@pytest.mark.parametrize("kind", ["wav", "flac", "mp3", "opus", "pcm"])
def test_speech_in_every_format(client: openai.OpenAI, omni: Omni, kind: str) -> None:
    wanted = omni.say("The circle is red.", "bob")
    with client.audio.speech.with_streaming_response.create(
        model="muomni", voice="bob", input="The circle is red.", response_format=kind
    ) as response:
        data = b"".join(response.iter_bytes())
    if kind == "pcm":
        assert len(data) == pytest.approx(2 * 24_000 * wanted.duration_s, abs=8)
        return
    samples = decode_audio(data, "x")
    assert len(samples) / 16_000 == pytest.approx(wanted.duration_s, abs=0.2)
    if kind in ("wav", "flac"):
        np.testing.assert_allclose(samples, wanted.waveform, atol=2e-3)


def test_speech_as_events(server: Served) -> None:
    body = json.dumps({"model": "muomni", "input": "Hello there.", "response_format": "pcm", "stream_format": "sse"}).encode()
    status, data = server.ask("POST", "/v1/audio/speech", body, {"Content-Type": "application/json"})
    events = [json.loads(part.removeprefix("data: ")) for part in data.decode().split("\n\n") if part]
    assert status == 200
    assert {e["type"] for e in events[:-1]} == {"speech.audio.delta"}
    assert events[-1]["type"] == "speech.audio.done"


def test_transcriptions_in_every_format(client: openai.OpenAI, omni: Omni, media: Path) -> None:
    path = media / "long.wav"
    text = omni.transcribe(path)

    def ask(kind: str, **more: object):  # type: ignore[no-untyped-def]
        return client.audio.transcriptions.create(model="muomni", file=path, response_format=kind, **more)  # type: ignore[call-overload]

    assert ask("json").text == ask("json", language="en", temperature=0, prompt="").text == text
    assert ask("text") == text + "\n"
    verbose = ask("verbose_json", timestamp_granularities=["word", "segment"])
    assert verbose.text == text
    assert verbose.duration == 5.0
    assert [w.word for w in verbose.words] == [word for word in text.split(" ") if word]
    assert ask("vtt").startswith("WEBVTT\n\n")
    assert " --> " in ask("srt")
    events = list(client.audio.transcriptions.create(model="muomni", file=path, stream=True))
    assert events[-1].type == "transcript.text.done"
    assert events[-1].text == "".join(e.delta for e in events[:-1]) == text


# --- the others


def test_metrics_and_the_description_of_the_interface(server: Served, client: openai.OpenAI) -> None:
    client.chat.completions.create(model="muomni", messages=GREETING, max_tokens=4)
    status, text = server.ask("GET", "/metrics")
    assert status == 200
    assert b'muomni_requests_total{path="/v1/chat/completions",status="200"}' in text
    assert b'muomni_tokens_total{kind="reply"}' in text
    api = json.loads(server.ask("GET", "/openapi.json")[1])
    assert {"/v1/chat/completions", "/v1/audio/speech", "/v1/audio/transcriptions", "/v1/models", "/health", "/metrics"} <= set(
        api["paths"]
    )
    assert "HTTPValidationError" not in api["components"]["schemas"]
    for operation in (operation for path in api["paths"].values() for operation in path.values()):
        error = operation["responses"]["4XX"]["content"]["application/json"]["schema"]
        assert error == {"$ref": "#/components/schemas/ErrorAnswer"}
    for path in ("/v1/chat/completions", "/v1/audio/speech"):
        examples = api["paths"][path]["post"]["requestBody"]["content"]["application/json"]["examples"]
        for example in examples.values():
            body = example["value"] | ({"max_tokens": 4} if "chat" in path else {})
            assert server.ask("POST", path, json.dumps(body).encode(), {"Content-Type": "application/json"})[0] == 200


def test_the_page_needs_nothing_from_elsewhere(server: Served) -> None:
    for path in ("/", "/docs", "/static/app.js", "/static/sound.js", "/static/recorder.js", "/static/docs.js", "/static/style.css"):
        status, data = server.ask("GET", path)
        assert status == 200
        assert b"//cdn" not in data
        assert b"https://" not in data
        assert b"http://" not in data.replace(b"http://www.w3.org", b"")


def test_concurrent_clients_get_their_own_answers(server: Served, omni: Omni) -> None:
    """Sixteen streams at once, each with its own question and seed."""
    questions = [[{"role": "user", "content": f"{'What colour ' * (i % 4)}is {i}?"}] for i in range(16)]
    answers: dict[int, str] = {}

    def ask(i: int) -> None:
        stream = server.client().chat.completions.create(
            model="muomni", messages=questions[i], stream=True, max_tokens=20 + i, temperature=1.2, seed=i
        )
        answers[i] = "".join(chunk.choices[0].delta.content or "" for chunk in stream if chunk.choices)

    threads = [threading.Thread(target=ask, args=(i,)) for i in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    wanted = [omni.chat(q, Sampling(temperature=1.2, seed=i, max_new_tokens=20 + i)).text for i, q in enumerate(questions)]
    assert [answers[i] for i in range(16)] == wanted


@pytest.mark.slow
def test_a_key_is_asked_for_where_there_is_one_and_shutdown_finishes_what_was_accepted(
    checkpoint: Path, tmp_path: Path, omni: Omni
) -> None:
    served = start(checkpoint, tmp_path, "--api-key", "secret", "--name", "tiny")
    try:
        with pytest.raises(openai.AuthenticationError):
            served.client("wrong").models.list()
        assert served.ask("GET", "/v1/models")[0] == served.ask("GET", "/metrics")[0] == 401
        assert served.ask("GET", "/")[0] == served.ask("GET", "/health")[0] == 200
        assert served.client("secret").models.list().data[0].id == "tiny"
        stream = served.client("secret").chat.completions.create(
            model="tiny", messages=GREETING, stream=True, temperature=2.0, max_tokens=96, seed=2
        )
        pieces = [next(iter(stream))]
        served.process.terminate()
        pieces += list(stream)
        text = "".join(c.choices[0].delta.content or "" for c in pieces if c.choices)
        assert text == omni.chat(GREETING, Sampling(temperature=2.0, max_new_tokens=96, seed=2)).text
    finally:
        end(served)
