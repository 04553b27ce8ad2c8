"""Using a model: ask, say, transcribe, describe, chat."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from omni.cli.output import note, print_json
from omni.errors import DataError, OmniError

if TYPE_CHECKING:
    from omni.inference.omni import Omni
    from omni.inference.sampling import Sampling
    from omni.inference.speech import Speech

Checkpoint = Annotated[Path | None, typer.Option("--ckpt", help="checkpoint folder; default checkpoints/omni-tiny")]
Device = Annotated[str | None, typer.Option(help="cpu, cuda or cuda:N; default: a GPU if there is one")]
Temperature = Annotated[float, typer.Option(help="0 is greedy")]
TopK = Annotated[int, typer.Option(help="keep this many likeliest tokens; 0 keeps all")]
TopP = Annotated[float, typer.Option(help="keep the likeliest tokens of this much probability")]
Penalty = Annotated[float, typer.Option("--repetition-penalty", help="above 1 punishes repetition")]
Seed = Annotated[int, typer.Option(help="the same seed gives the same reply")]
MaxNewTokens = Annotated[int, typer.Option(help="longest reply")]
Json = Annotated[bool, typer.Option("--json", help="one JSON object on standard output")]
Strict = Annotated[bool, typer.Option(help="make it an error when something does not fit, instead of a notice")]


def register(app: typer.Typer) -> None:
    """Add the five verbs, and the flags of `infer_chat.py`."""
    for command in (ask, say, transcribe, describe, chat):
        app.command()(command)
    app.command("infer-chat", hidden=True)(infer_chat)


def _load(checkpoint: Path | None, device: str | None) -> Omni:
    from omni.inference.omni import Omni

    return Omni.from_pretrained(checkpoint, device)


def _sampling(**settings: Any) -> Sampling:
    from omni.inference.sampling import Sampling

    return Sampling(**settings)


def _manifest(path: Path, needed: tuple[str, ...]) -> Iterator[dict[str, Any]]:
    """Rows of a JSONL file with an id and at least one of `needed`. Raises DataError with file and line."""
    import json

    if not path.is_file():
        raise DataError(f"{path}: no such manifest")
    rows = 0
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise DataError(f"{path}:{number}: not JSON: {error.msg}") from None
        if not isinstance(row, dict) or not isinstance(row.get("id"), str) or "/" in row["id"] or not row["id"].strip("."):
            raise DataError(f"{path}:{number}: a row needs an 'id' that can be a file name")
        if not any(row.get(name) for name in needed):
            raise DataError(f"{path}:{number}: a row needs {' or '.join(needed)}")
        rows += 1
        yield row
    if not rows:
        raise DataError(f"{path}: the manifest is empty")


def _save_speech(speech: Speech, path: Path) -> None:
    from omni.audio import save_audio

    save_audio(path, speech.waveform, speech.sample_rate_hz)
    if not speech.ended:
        note(f"{path}: the speech did not end by itself and was stopped after {speech.duration_s:.1f} s")


def ask(
    text: Annotated[str | None, typer.Option(help="question in words")] = None,
    image: Annotated[Path | None, typer.Option(help="picture")] = None,
    audio: Annotated[Path | None, typer.Option(help="spoken question, or sound to ask about")] = None,
    video: Annotated[Path | None, typer.Option(help="video, seen at one frame a second")] = None,
    audio_out: Annotated[Path | None, typer.Option(help="speak the answer into this file")] = None,
    voice: Annotated[str | None, typer.Option(help="voice of the answer")] = None,
    manifest: Annotated[Path | None, typer.Option(help='many questions: JSONL rows {"id", "image"?, "audio"?, "text"?}')] = None,
    out_dir: Annotated[Path | None, typer.Option(help="with --manifest: speak the answers into this folder")] = None,
    ckpt: Checkpoint = None,
    device: Device = None,
    temperature: Temperature = 0.0,
    top_k: TopK = 0,
    top_p: TopP = 1.0,
    repetition_penalty: Penalty = 1.0,
    seed: Seed = 0,
    max_new_tokens: MaxNewTokens = 96,
    strict: Strict = False,
    as_json: Json = False,
) -> None:
    """Ask about text, a picture, a sound or a video."""
    if manifest is not None and any(x is not None for x in (text, image, audio, video, audio_out)):
        raise DataError("--manifest asks its own questions; leave out --text, --image, --audio, --video and --audio-out")
    sampling = _sampling(
        temperature=temperature, top_k=top_k, top_p=top_p, repetition_penalty=repetition_penalty, seed=seed, max_new_tokens=max_new_tokens
    )
    omni = _load(ckpt, device)
    if manifest is not None:
        for row in list(_manifest(manifest, ("image", "audio", "text"))):
            media = {name: manifest.parent / row[name] for name in ("image", "audio") if row.get(name)}
            reply = omni.ask(row.get("text"), **media, speak=out_dir is not None, voice=voice, sampling=sampling, strict=strict)  # type: ignore[arg-type]
            result = {"id": row["id"], "text": reply.text}
            if reply.speech is not None and out_dir is not None:
                out_dir.mkdir(parents=True, exist_ok=True)
                _save_speech(reply.speech, out_dir / f"{row['id']}.wav")
                result["file"] = str(out_dir / f"{row['id']}.wav")
            print_json(result)
        return
    reply = omni.ask(text, image=image, audio=audio, video=video, speak=audio_out is not None, voice=voice, sampling=sampling, strict=strict)
    for notice in reply.notices:
        note(f"notice: {notice}")
    if reply.speech is not None and audio_out is not None:
        _save_speech(reply.speech, audio_out)
    if as_json:
        print_json({"text": reply.text} | ({"file": str(audio_out)} if audio_out else {}))
    else:
        print(reply.text)


def say(
    text: Annotated[str | None, typer.Argument(help="what to say")] = None,
    out: Annotated[str | None, typer.Option(help="WAV or FLAC file; - streams a WAV to standard output")] = None,
    voice: Annotated[str | None, typer.Option(help="name of a voice; default: the model's first")] = None,
    manifest: Annotated[Path | None, typer.Option(help='many sentences: JSONL rows {"id", "text", "voice"?}')] = None,
    out_dir: Annotated[Path | None, typer.Option(help="with --manifest: folder of the WAV files")] = None,
    ckpt: Checkpoint = None,
    device: Device = None,
    temperature: Temperature = 0.0,
    top_p: TopP = 1.0,
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """Say a text aloud."""
    sampling = _sampling(temperature=temperature, top_p=top_p, seed=seed)
    if (manifest is None) == (text is None):
        raise DataError("give a text to say, or --manifest")
    if manifest is not None:
        if out_dir is None:
            raise DataError("--manifest needs --out-dir")
        rows = list(_manifest(manifest, ("text",)))
        omni = _load(ckpt, device)
        out_dir.mkdir(parents=True, exist_ok=True)
        for row in rows:
            start = time.monotonic()
            speech = omni.say(row["text"], voice=row.get("voice", voice), sampling=sampling)
            path = out_dir / f"{row['id']}.wav"
            _save_speech(speech, path)
            print_json({"id": row["id"], "file": str(path), "audio_s": round(speech.duration_s, 3), "seconds": round(time.monotonic() - start, 3)})
        return
    if out is None:
        raise DataError("say where to: --out FILE.wav, or --out - for a stream")
    omni = _load(ckpt, device)
    assert text is not None
    if out == "-":
        _stream_wav(omni.say_stream(text, voice=voice, sampling=sampling), omni.model.config.audio.sample_rate_hz)
        return
    start = time.monotonic()
    speech = omni.say(text, voice=voice, sampling=sampling)
    _save_speech(speech, Path(out))
    result = {"file": out, "audio_s": round(speech.duration_s, 3), "seconds": round(time.monotonic() - start, 3)}
    print_json(result) if as_json else note(f"{out}: {speech.duration_s:.2f} s of speech in {result['seconds']:.2f} s")


def _stream_wav(chunks: Iterator[Speech], sample_rate_hz: int) -> None:
    """16-bit mono WAV of unknown length, each chunk as soon as it is there."""
    import struct

    import numpy as np

    unknown = 0xFFFFFFFF
    form = struct.pack("<4sIHHIIHH", b"fmt ", 16, 1, 1, sample_rate_hz, 2 * sample_rate_hz, 2, 16)
    header = b"RIFF" + struct.pack("<I", unknown) + b"WAVE" + form + b"data" + struct.pack("<I", unknown)
    sys.stdout.buffer.write(header)
    for chunk in chunks:
        sys.stdout.buffer.write((chunk.waveform.clip(-1, 1) * 32767).astype(np.int16).tobytes())
        sys.stdout.buffer.flush()


def transcribe(
    files: Annotated[list[Path], typer.Argument(help="recordings of any length")],
    decoder: Annotated[str, typer.Option(help="ctc or thinker")] = "ctc",
    ckpt: Checkpoint = None,
    device: Device = None,
    as_json: Json = False,
) -> None:
    """Write down what is said, one line a file."""
    omni = _load(ckpt, device)
    _each(files, lambda file: omni.transcribe(file, decoder), as_json)


def describe(
    files: Annotated[list[Path], typer.Argument(help="pictures")],
    ckpt: Checkpoint = None,
    device: Device = None,
    temperature: Temperature = 0.0,
    top_p: TopP = 1.0,
    seed: Seed = 0,
    max_new_tokens: MaxNewTokens = 96,
    as_json: Json = False,
) -> None:
    """Say in words what is in pictures, one line a file."""
    sampling = _sampling(temperature=temperature, top_p=top_p, seed=seed, max_new_tokens=max_new_tokens)
    omni = _load(ckpt, device)
    _each(files, lambda file: omni.describe(file, sampling), as_json)


def _each(files: list[Path], work: Any, as_json: bool) -> None:
    """Print the result of every file in order; those that fail are named at the end of their line on standard error, and in the exit code."""
    failed = 0
    for file in files:
        try:
            text = work(file)
        except OmniError as error:
            note(f"error: {error}")
            failed += 1
            continue
        print_json({"file": str(file), "text": text}) if as_json else print(text, flush=True)
    if failed:
        raise DataError(f"{failed} of {len(files)} files failed")


CHAT_HELP = "/image F  /audio F  /voice NAME  /save F  /reset  /quit"


def chat(
    audio_out: Annotated[Path | None, typer.Option(help="speak every answer into this folder")] = None,
    voice: Annotated[str | None, typer.Option(help="voice of the answers")] = None,
    ckpt: Checkpoint = None,
    device: Device = None,
    temperature: Temperature = 0.0,
    top_k: TopK = 0,
    top_p: TopP = 1.0,
    repetition_penalty: Penalty = 1.0,
    seed: Seed = 0,
    max_new_tokens: MaxNewTokens = 96,
) -> None:
    """Talk in the terminal; the conversation so far is kept."""
    from omni.inference.conversation import Conversation

    sampling = _sampling(
        temperature=temperature, top_k=top_k, top_p=top_p, repetition_penalty=repetition_penalty, seed=seed, max_new_tokens=max_new_tokens
    )
    omni = _load(ckpt, device)
    omni.speaker.voice_id(voice) if audio_out or voice else None
    conversation = Conversation(omni, sampling)
    note(CHAT_HELP)
    while True:
        try:
            line = input("> " if sys.stdin.isatty() else "")
        except EOFError:
            return
        command, _, value = line.strip().partition(" ")
        try:
            if command == "/quit":
                return
            if command == "/reset":
                conversation.reset()
            elif command in ("/image", "/audio"):
                conversation.attach(command[1:], value.strip())
            elif command == "/voice":
                omni.speaker.voice_id(value.strip())
                voice = value.strip()
            elif command == "/save":
                conversation.save(Path(value.strip()))
            elif command.startswith("/"):
                note(CHAT_HELP)
            else:
                for piece in conversation.send(line.strip()):
                    print(piece, end="", flush=True)
                print()
                for notice in conversation.notices:
                    note(f"notice: {notice}")
                if audio_out is not None:
                    audio_out.mkdir(parents=True, exist_ok=True)
                    _save_speech(omni.say(conversation.last_reply, voice=voice, sampling=sampling), audio_out / f"{conversation.n_replies:03d}.wav")
        except OmniError as error:
            note(f"error: {error}")


def infer_chat(
    ckpt_dir: Annotated[Path | None, typer.Option("--ckpt_dir", help="checkpoint folder")] = None,
    image: Annotated[Path | None, typer.Option("--image")] = None,
    audio_in: Annotated[Path | None, typer.Option("--audio_in")] = None,
    video: Annotated[Path | None, typer.Option("--video")] = None,
    text: Annotated[str | None, typer.Option("--text")] = None,
    audio_out: Annotated[Path | None, typer.Option("--audio_out")] = None,
) -> None:
    """One question by flags, or a chat when there is none."""
    if image is None and audio_in is None and video is None and text is None:
        chat(ckpt=ckpt_dir)
    else:
        ask(text=text, image=image, audio=audio_in, video=video, audio_out=audio_out, ckpt=ckpt_dir)
