"""The commands ask, say, transcribe, describe and chat, as the command line runs them."""

import io
import json
import os
import subprocess
import sys
import wave
from pathlib import Path

import numpy as np
import pytest
import soundfile
import typer
from PIL import Image
from typer.testing import CliRunner

from omni.cli import generate
from omni.cli.app import main
from omni.errors import DataError
from omni.evaluation.scenes import asked_scenes
from omni.evaluation.speed import of_length
from omni.inference.engine import TextEvent
from omni.inference.omni import Omni, Reply
from omni.inference.sampling import Sampling

app = typer.Typer(pretty_exceptions_enable=False)
generate.register(app)


@pytest.fixture
def run(checkpoint, capsys):
    """Runs the command line with the small model; returns exit code, standard output and standard error."""

    def go(command: str, *arguments: object, ckpt: object = checkpoint) -> tuple[int, str, str]:
        code = main([command, *map(str, arguments), "--ckpt", str(ckpt)])
        return code, *capsys.readouterr()

    return go


def rows(text: str) -> list[dict]:
    return [json.loads(line) for line in text.splitlines()]


def write_rows(path, *values) -> None:
    path.write_text("".join(json.dumps(v) + "\n" for v in values))


def error_line(err: str) -> str:
    """The last line; there is no traceback."""
    assert "Traceback" not in err
    return err.splitlines()[-1]


# --- ask


def test_ask_prints_the_reply_and_its_logs_elsewhere(run, omni, media, checkpoint):
    code, out, err = run("ask", "--text", "What?", "--image", media / "a.png", "--max-new-tokens", 8)
    assert code == 0
    assert str(checkpoint) in err
    code, out_json, _ = run("ask", "--text", "What?", "--image", media / "a.png", "--max-new-tokens", 8, "--json")
    assert rows(out_json) == [{"text": out[:-1]}]


def test_ask_with_one_seed_repeats_itself(run):
    question = ("ask", "--text", "Hello", "--temperature", 1.5, "--max-new-tokens", 12, "--json", "--seed")
    assert run(*question, 1)[1] == run(*question, 1)[1] != run(*question, 2)[1]


def test_ask_speaks_into_a_file(run, tmp_path):
    code, out, _ = run("ask", "--text", "Hello", "--audio-out", tmp_path / "a.wav", "--voice", "bob", "--json")
    assert code == 0
    assert rows(out)[0]["file"] == str(tmp_path / "a.wav")
    assert soundfile.info(tmp_path / "a.wav").samplerate == 16_000


def test_ask_a_manifest_is_asking_one_by_one(run, media, tmp_path):
    questions = [{"id": "q1", "image": "a.png", "text": "What?"}, {"id": "q2", "audio": "short.wav"}, {"id": 3, "text": "Hello"}]
    write_rows(media / "questions.jsonl", *questions)
    code, out, _ = run("ask", "--manifest", media / "questions.jsonl", "--out-dir", tmp_path / "spoken", "--max-new-tokens", 8)
    assert code == 0
    alone = [
        run("ask", "--json", "--max-new-tokens", 8, *flags)[1]
        for flags in (("--image", media / "a.png", "--text", "What?"), ("--audio", media / "short.wav"), ("--text", "Hello"))
    ]
    assert [(r["id"], r["text"]) for r in rows(out)] == [(q["id"], rows(a)[0]["text"]) for q, a in zip(questions, alone, strict=True)]
    assert all(soundfile.info(r["file"]).frames % 1280 == 0 for r in rows(out) if "file" in r)


@pytest.fixture
def answers(monkeypatch):
    """Puts words into the model's mouth, in turn."""

    def say(*texts: str) -> None:
        remaining = iter(texts)
        monkeypatch.setattr(Omni, "answer", lambda self, prompts, sampling: [Reply(next(remaining), []) for _ in prompts])

    return say


@pytest.mark.parametrize("batch_size", [1, 8])
def test_a_row_answered_without_words_is_printed_and_the_others_are_spoken(run, answers, tmp_path, batch_size):
    answers("Yes.", "...", "No.")
    write_rows(tmp_path / "m.jsonl", *({"id": i, "text": "Well?"} for i in "abc"))
    code, out, err = run("ask", "--manifest", tmp_path / "m.jsonl", "--out-dir", tmp_path / "d", "--batch-size", batch_size)
    assert code == 0
    files = {i: str(tmp_path / "d" / f"{i}.wav") for i in "ac"}
    assert rows(out) == [
        {"id": "a", "text": "Yes.", "file": files["a"]},
        {"id": "b", "text": "..."},
        {"id": "c", "text": "No.", "file": files["c"]},
    ]
    assert "notice: b: the reply is not spoken: there is nothing to say" in err
    assert sorted(p.name for p in (tmp_path / "d").iterdir()) == ["a.wav", "c.wav"]


def test_a_reply_without_words_is_printed_before_the_file_is_missed(run, answers, tmp_path):
    answers("...")
    code, out, err = run("ask", "--text", "Well?", "--audio-out", tmp_path / "a.wav")
    assert (code, out) == (1, "...\n")
    assert "notice: the reply is not spoken" in err
    assert error_line(err).endswith("a.wav: not written, because the reply has no words to say")


def test_a_bad_row_fails_alone_and_in_the_exit_code(run, media):
    write_rows(media / "some.jsonl", {"id": "a", "text": "Hello"}, {"id": "b", "image": "nowhere.png"}, {"id": "c", "text": "Well?"})
    code, out, err = run("ask", "--manifest", media / "some.jsonl", "--max-new-tokens", 4)
    assert code == 1
    assert [r["id"] for r in rows(out)] == ["a", "c"]
    assert "error: b: " in err
    assert "nowhere.png" in err
    assert error_line(err) == "error: 1 of 3 questions failed"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is empty"),
        ("{", ":1: not JSON"),
        ("[1]", ":1: a row is an object"),
        ('{"text": "a"}', ":1: a row needs an 'id'"),
        ('{"id": "../a", "text": "a"}', ":1: a row needs an 'id' that can be a file name"),
        ('{"id": "a"}', ":1: a row needs image or audio or text"),
        ('{"id": "a", "text": 3}', ":1: 'text' should be text, found int"),
        ('{"id": "a", "text": "x"}\n\n{"id": "a", "text": "y"}', ":3: the id 'a' is used twice"),
    ],
)
def test_a_manifest_that_is_wrong_is_refused_with_its_line(run, tmp_path, text, message):
    (tmp_path / "m.jsonl").write_text(text)
    code, out, err = run("ask", "--manifest", tmp_path / "m.jsonl")
    assert (code, out) == (1, "")
    assert message in error_line(err)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "nothing was asked"),
        (("--image", "nowhere.png"), "nowhere.png: no such picture"),
        (("--audio", "nowhere.wav"), "nowhere.wav: no such audio file"),
        (("--video", "nowhere.mp4"), "nowhere.mp4: no such video"),
        (("--text", "a", "--top-p", "2"), "top_p 2.0"),
        (("--text", "a", "--device", "quantum"), "device 'quantum'"),
        (("--text", "a", "--manifest", "m.jsonl"), "--manifest asks its own questions"),
        (("--text", "a", "--out-dir", "d"), "--out-dir belongs to --manifest"),
        (("--text", "a", "--audio-out", "no/such/folder/a.wav"), "no/such/folder"),
        (("--text", "a", "--audio-out", "a.wav", "--voice", "eve"), "no voice 'eve'; this model has: ada, bob"),
    ],
)
def test_every_mistake_is_one_clear_line(run, arguments, message):
    code, _, err = run("ask", *arguments)
    assert code == 1
    assert error_line(err).startswith("error: ")
    assert message in error_line(err)


def test_a_picture_that_is_none_and_a_missing_checkpoint_are_named(run, media, tmp_path):
    (tmp_path / "broken.png").write_bytes(b"no picture")
    assert "broken.png: not a readable picture" in error_line(run("ask", "--image", tmp_path / "broken.png")[2])
    assert "short.wav: not a readable picture" in error_line(run("ask", "--image", media / "short.wav")[2])
    assert "nowhere" in error_line(run("ask", "--text", "a", ckpt="nowhere")[2])


def test_a_long_clip_is_a_notice_or_with_strict_an_error(run, media):
    code, _, err = run("ask", "--audio", media / "long.wav", "--max-new-tokens", 4)
    assert code == 0
    assert "notice: a clip of 63 audio tokens" in err
    code, out, err = run("ask", "--audio", media / "long.wav", "--strict")
    assert (code, out) == (1, "")
    assert "63 audio tokens" in error_line(err)


# --- say


def test_say_writes_a_file_and_reports_it(run, omni, tmp_path):
    code, out, _ = run("say", "The circle is red.", "--voice", "bob", "--out", tmp_path / "a.wav", "--json")
    assert code == 0
    samples, rate = soundfile.read(tmp_path / "a.wav")
    (result,) = rows(out)
    assert result["audio_s"] == pytest.approx(len(samples) / rate, abs=1e-3)
    assert len(samples) == len(omni.say("The circle is red.", "bob").waveform)


@pytest.mark.parametrize("batch_size", [1, 2])
def test_say_a_manifest(run, omni, tmp_path, batch_size):
    sentences = [{"id": "s1", "text": "Hello!"}, {"id": "s2", "text": "The circle is red.", "voice": "bob"}, {"id": "s3", "text": "\u0301"}]
    write_rows(tmp_path / "m.jsonl", *sentences)
    code, out, err = run("say", "--manifest", tmp_path / "m.jsonl", "--out-dir", tmp_path / "d", "--batch-size", batch_size)
    assert code == 1
    assert error_line(err) == "error: 1 of 3 sentences failed"
    assert [(r["id"], r["file"]) for r in rows(out)] == [(i, str(tmp_path / "d" / f"{i}.wav")) for i in ("s1", "s2")]
    for row, voice in zip(rows(out), ("ada", "bob"), strict=True):
        text = next(s["text"] for s in sentences if s["id"] == row["id"])
        assert soundfile.info(row["file"]).frames == len(omni.say(text, voice).waveform)
        assert row["seconds"] > 0


def test_say_streams_a_wav_to_standard_output(checkpoint, omni):
    result = CliRunner().invoke(app, ["say", "Yes. The circle is red. There are two small stars.", "--out", "-", "--ckpt", str(checkpoint)])
    assert result.exit_code == 0
    with wave.open(io.BytesIO(result.stdout_bytes)) as stream:
        assert (stream.getnchannels(), stream.getsampwidth(), stream.getframerate()) == (1, 2, 16_000)
    expected = omni.say("Yes. The circle is red. There are two small stars.").waveform
    assert len(result.stdout_bytes) == 44 + 2 * len(expected)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "give either a text to say or --manifest"),
        (("Hello",), "say where to"),
        (("Hello", "--out", "a.wav", "--voice", "eve"), "no voice 'eve'; this model has: ada, bob"),
        (("Hello", "--out", "-", "--voice", "eve"), "no voice 'eve'"),
        ((" ", "--out", "a.wav"), "there is nothing to say"),
        (("Hello", "--out", "a.xyz"), "a.xyz"),
        (("--manifest", "nowhere.jsonl", "--out-dir", "d"), "nowhere.jsonl: no such manifest"),
        (("--manifest", "nowhere.jsonl"), "--out-dir"),
    ],
)
def test_what_cannot_be_said_is_one_clear_line(run, tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    code, out, err = run("say", *arguments)
    assert (code, out) == (1, "")
    assert message in error_line(err)
    assert list(tmp_path.iterdir()) == []


# --- transcribe and describe


def test_transcribe_prints_a_line_for_each_file_and_goes_on_after_a_bad_one(run, omni, media):
    files = [media / "short.wav", media / "a.png", media / "long.wav"]
    code, out, err = run("transcribe", *files, "--json")
    assert code == 1
    assert rows(out) == [{"file": str(f), "text": omni.transcribe(f)} for f in (files[0], files[2])]
    assert "a.png: not a readable audio file" in err
    assert error_line(err) == "error: 1 of 3 files failed"


def test_transcribe_by_the_thinker(run, omni, media):
    code, out, _ = run("transcribe", media / "short.wav", "--decoder", "thinker")
    assert (code, out) == (0, omni.transcribe(media / "short.wav", "thinker") + "\n")
    code, _, err = run("transcribe", media / "short.wav", media / "long.wav", "--decoder", "magic")
    assert code == 1
    assert error_line(err) == "error: no decoder 'magic'; known: ctc, ctc-beam, thinker"
    assert err.count("magic") == 1


def test_describe_prints_a_line_for_each_picture(run, omni, media):
    code, out, _ = run("describe", media / "a.png", media / "b.png", "--json")
    assert code == 0
    assert rows(out) == [{"file": str(media / n), "text": omni.describe(media / n)} for n in ("a.png", "b.png")]


# --- chat


@pytest.fixture
def chat(run, monkeypatch):
    """Types lines into a chat; an exception in their place is raised by the keyboard."""

    def go(*lines: object, options: tuple = ()) -> tuple[int, str, str]:
        script = iter(lines)

        def keyboard(prompt: str = "") -> str:
            line = next(script, EOFError())
            if isinstance(line, BaseException):
                raise line
            return str(line)

        monkeypatch.setattr("builtins.input", keyboard)
        return run("chat", "--max-new-tokens", 6, *options)

    return go


def test_chat_remembers_saves_and_forgets(chat, omni, media, tmp_path):
    code, out, _ = chat(
        "Hello", f"/image {media / 'a.png'}", "What?", f"/save {tmp_path / 'c.json'}", "/reset", "Hello", "/quit", "never read"
    )
    assert code == 0
    messages = json.loads((tmp_path / "c.json").read_text())["messages"]
    assert [m["role"] for m in messages] == ["user", "assistant"] * 2
    assert out == "".join(f"{text}\n" for text in (messages[1]["content"], messages[3]["content"], messages[1]["content"]))


def test_chat_speaks(chat, tmp_path):
    code, _, _ = chat("Hello", "/voice bob", "Hello", f"/save {tmp_path / 'last.wav'}", options=("--audio-out", tmp_path / "spoken"))
    assert code == 0
    assert sorted(p.name for p in (tmp_path / "spoken").iterdir()) == ["001.wav", "002.wav"]
    assert (tmp_path / "last.wav").read_bytes() == (tmp_path / "spoken" / "002.wav").read_bytes()
    assert chat("Hello", options=("--audio-out", tmp_path / "spoken"))[0] == 0
    assert len(list((tmp_path / "spoken").iterdir())) == 3  # the last conversation's are still there


def test_chat_says_that_a_reply_has_no_words_to_speak(chat, tmp_path, monkeypatch):
    events = [TextEvent("...", None), TextEvent("", "end")]
    monkeypatch.setattr(Omni, "chat_stream", lambda *_, **__: ([], iter(events)))
    code, out, err = chat("Hello", options=("--audio-out", tmp_path / "spoken"))
    assert (code, out) == (0, "...\n")
    assert "notice: the reply is not spoken" in err and "error" not in err
    assert list((tmp_path / "spoken").iterdir()) == []


def test_chat_goes_on_after_mistakes(chat):
    mistakes = [
        "/image nowhere.png",
        f"/image {'a' * 300}",
        "/image /proc/self/mem",
        "/voice eve",
        "/save",
        "/save a.wav",
        "/save a.png",
        "/what",
    ]
    code, out, err = chat(*mistakes, "", "word " * 500, "Hello")
    assert code == 0
    assert [line.split(":")[0] for line in err.splitlines() if line.startswith("error")] == ["error"] * (len(mistakes) + 1)
    assert "no voice 'eve'; this model has: ada, bob" in err and "no command /what" in err
    assert len(out.splitlines()) >= 1
    assert "Traceback" not in err


def test_chat_says_when_it_drops_old_turns_and_goes_on(chat):
    code, out, err = chat(*["The circle is red."] * 12)
    assert code == 0 and len(out.splitlines()) >= 12
    notices = [line for line in err.splitlines() if line.startswith("notice: the conversation exceeds the context of 128")]
    assert notices and "dropped the oldest" in notices[-1]
    assert "exceeds" not in "".join(err.splitlines()[:4])


def test_files_may_be_quoted_and_at_home(chat, media, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(media))
    code, _, err = chat("/image ~/a.png", f"/audio '{media / 'short.wav'}'", "", f'/save "{tmp_path / "my chat.json"}"')
    assert code == 0 and "error" not in err
    (message, _) = json.loads((tmp_path / "my chat.json").read_text())["messages"]
    assert [(tmp_path / part[part["type"]]).resolve().name for part in message["content"]] == ["a.png", "short.wav"]


def test_an_interrupt_breaks_off_the_reply_and_loses_nothing(chat, media, monkeypatch):
    from omni.inference.engine import Engine

    stream = Engine.stream
    calls = []

    def interrupted(self, prompt, sampling):
        events = stream(self, prompt, sampling)
        calls.append(len(prompt.rendered.input_ids))
        if len(calls) == 2:
            yield next(events)
            raise KeyboardInterrupt
        yield from events

    monkeypatch.setattr(Engine, "stream", interrupted)
    code, _, err = chat("Hello", f"/image {media / 'a.png'}", "Hello", KeyboardInterrupt(), "Hello")
    assert code == 0
    assert "broken off" in err and f"still attached: {media / 'a.png'}" in err and "(Ctrl-D ends)" in err
    assert calls[0] < calls[1] == calls[2]  # the exchange that was broken off is not in the history


def test_what_is_attached_is_sent_by_enter_alone_or_dropped(chat, omni, media):
    code, out, err = chat(
        "", f"/audio {media / 'short.wav'}", "", f"/image {media / 'a.png'}", "/drop", "", UnicodeDecodeError("utf-8", b"", 0, 1, "?")
    )
    assert code == 0 and out == f"{omni.ask(audio=media / 'short.wav', sampling=Sampling(max_new_tokens=6)).text}\n"
    assert "error: not text" in err


def test_what_does_not_fit_stays_attached_and_is_named(chat, media):
    code, out, err = chat(*[f"/image {media / 'a.png'}"] * 40, "", "/drop", "Hello")
    assert code == 0 and len(out.splitlines()) == 1
    assert "/drop leaves them out" in err and "Traceback" not in err


def test_infer_chat_takes_the_documents_flags(checkpoint, omni, media, tmp_path, capsys, monkeypatch):
    flags = [
        "--ckpt_dir",
        checkpoint,
        "--image",
        media / "a.png",
        "--audio_in",
        media / "short.wav",
        "--text",
        "What?",
        "--audio_out",
        tmp_path / "a.wav",
    ]
    assert main(["infer-chat", *map(str, flags)]) == 0
    assert capsys.readouterr().out == omni.ask("What?", image=media / "a.png", audio=media / "short.wav").text + "\n"
    assert (tmp_path / "a.wav").exists()
    monkeypatch.setattr(sys, "stdin", io.StringIO("Hello\n"))
    assert main(["infer-chat", "--ckpt_dir", str(checkpoint)]) == 0
    assert capsys.readouterr().out == omni.ask("Hello").text + "\n"


def test_infer_chat_speaks_only_the_answer_to_a_question(checkpoint, tmp_path, capsys):
    assert main(["infer-chat", "--ckpt_dir", str(checkpoint), "--audio_out", str(tmp_path / "a.wav")]) == 1
    out, err = capsys.readouterr()
    assert out == "" and error_line(err).startswith("error: --audio_out needs a question")


def test_rows_that_fail_together_are_tried_alone():
    def work(batch):
        if any(row["id"] == "bad" for row in batch):
            raise DataError("no")
        return [row["id"] for row in batch]

    results = [r for _, r in generate._in_batches([{"id": i} for i in ("a", "bad", "b", "c")], 3, work)]
    assert results[0::2] == ["a", "b"]
    assert isinstance(results[1], DataError)
    assert results[3] == "c"


# --- bench answer and demo


def test_bench_answer_times_the_first_word_and_the_first_sound(checkpoint, media, capsys):
    flags = ["--image", media / "a.png", "--audio", media / "short.wav", "--ckpt", checkpoint, "--rounds", 2, "--json"]
    assert main(["bench", "answer", *map(str, flags)]) == 0
    metrics = rows(capsys.readouterr().out)[0]["metrics"]
    assert 0 < metrics["first_token_ms"] <= metrics["reply_ms"] < metrics["first_audio_ms"]
    assert metrics["question_s"] == 3.0 and metrics["rounds"] == 2 and metrics["peak_memory_mb"] > 50


def test_a_question_is_stretched_or_cut_to_its_length():
    wave = np.arange(1, 6, dtype=np.float32)
    assert of_length(wave, 8).tolist() == [0, 1, 2, 3, 4, 5, 0, 0]
    assert of_length(wave, 3).tolist() == [1, 2, 3]


def test_the_demo_answers_a_spoken_question_about_a_picture_aloud(checkpoint, media, tmp_path, monkeypatch, capsys):
    question = asked_scenes(1)[0].first.question
    monkeypatch.setattr("omni.evaluation.scenes.question_voices", lambda: {"ked": {question: media / "short.wav"}})
    assert main(["demo", "--ckpt", str(checkpoint), "--out", str(tmp_path / "demo"), "--json"]) == 0
    out, err = capsys.readouterr()
    (shown,) = rows(out)
    assert shown["question"] == question and question in err
    assert soundfile.info(shown["file"]).duration > 0 and Image.open(shown["image"]).size == (224, 224)
    assert main(["demo", "--from-nothing", "--ckpt", str(checkpoint)]) == 1
    assert main(["demo", "--ckpt", str(checkpoint), "--seed", "3"]) == 1
    assert main(["demo", "--ckpt", str(checkpoint), "--out", str(checkpoint / "config.json")]) == 1
    assert "leave out --ckpt" in capsys.readouterr().err


def test_the_demo_shows_an_answer_without_words(checkpoint, media, tmp_path, monkeypatch, capsys, answers):
    answers("?")
    voices = {"ked": {asked_scenes(1)[0].first.question: media / "short.wav"}}
    monkeypatch.setattr("omni.evaluation.scenes.question_voices", lambda: voices)
    assert main(["demo", "--ckpt", str(checkpoint), "--out", str(tmp_path / "demo"), "--json"]) == 0
    out, err = capsys.readouterr()
    assert rows(out)[0]["text"] == "?" and "file" not in rows(out)[0]
    assert "answered        ?" in err and "notice: the reply is not spoken" in err


def test_the_demos_clips_are_the_repositorys_wherever_one_is(tmp_path):
    """In a process of its own: the folder is chosen once."""
    code = (
        "from omni.evaluation import asr, scenes, sentences\n"
        "assert scenes.question_voices() and sentences.load_sentences() and asr.voice_sets(asr.VOICES)"
    )
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
