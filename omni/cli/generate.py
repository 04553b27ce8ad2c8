"""Using a model: ask, say, transcribe, describe, chat."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from omni.cli.output import make_folder, note, print_json
from omni.config import DEFAULT_CHECKPOINT, DEFAULT_SPEECH_LM
from omni.errors import ConfigError, DataError, OmniError

if TYPE_CHECKING:
    from omni.inference.conversation import Conversation
    from omni.inference.omni import Omni, Reply
    from omni.inference.sampling import Sampling
    from omni.inference.speech import Speech
    from omni.speech_lm import SpeechLM

Checkpoint = Annotated[Path | None, typer.Option("--ckpt", help=f"checkpoint folder; default {DEFAULT_CHECKPOINT}")]
Device = Annotated[str, typer.Option(help="cpu, cuda or cuda:N; auto is a GPU if there is one")]
Temperature = Annotated[float, typer.Option(help="0 is greedy")]
TopK = Annotated[int, typer.Option(help="keep this many likeliest tokens; 0 keeps all")]
TopP = Annotated[float, typer.Option(help="keep the likeliest tokens of this much probability")]
Penalty = Annotated[float, typer.Option("--repetition-penalty", help="above 1 punishes repetition")]
Seed = Annotated[int, typer.Option(help="the same seed gives the same reply")]
MaxNewTokens = Annotated[int, typer.Option(help="longest reply")]
Json = Annotated[bool, typer.Option("--json", help="one JSON object on standard output")]
BatchSize = Annotated[int, typer.Option(min=1, help="with --manifest: work on so many rows together")]
Model = Annotated[str, typer.Option(help=f"omni, or speech-lm: the second system, whose default checkpoint is {DEFAULT_SPEECH_LM}")]
Strict = Annotated[bool, typer.Option(help="make it an error when something does not fit, instead of a notice")]


def register(app: typer.Typer) -> None:
    """Add the five verbs, and the flags of `infer_chat.py`."""
    for command in (ask, say, transcribe, describe, chat):
        app.command()(command)
    app.command("infer-chat", hidden=True)(infer_chat)


Row = dict[str, Any]
T = TypeVar("T")
MODELS = ("omni", "speech-lm")


def _load(checkpoint: Path | None, device: str, vocoder: str | None = None) -> Omni:
    from omni.inference.omni import Omni

    return Omni.from_pretrained(checkpoint, device, vocoder)


def _load_speaking(model: str, checkpoint: Path | None, device: str, vocoder: str | None) -> Omni | SpeechLM:
    """One of the two systems."""
    if not is_speech_lm(model):
        return _load(checkpoint, device, vocoder)
    if vocoder is not None:
        raise ConfigError("--vocoder belongs to --model omni; a speech LM speaks through what it was trained with")
    return _load_speech_lm(checkpoint, device)


def _load_speech_lm(checkpoint: Path | None, device: str) -> SpeechLM:
    from omni.speech_lm import SpeechLM

    return SpeechLM.from_pretrained(checkpoint, device)


def is_speech_lm(model: str) -> bool:
    """Which system --model names. Raises ConfigError for neither."""
    if model not in MODELS:
        raise ConfigError(f"no model {model!r}; known: {', '.join(MODELS)}")
    return model == "speech-lm"


def _sampling(**settings: Any) -> Sampling:
    from omni.inference.sampling import Sampling

    return Sampling(**settings)


def _speaking(model: str, **settings: Any) -> Sampling:
    """How a system draws its speech, but for what the flags say."""
    from dataclasses import replace

    if is_speech_lm(model):
        from omni.speech_lm import SPEAKING as usual
    else:
        from omni.inference.omni import GREEDY as usual
    return replace(usual, **{name: value for name, value in settings.items() if value is not None})


def _manifest(path: Path, needed: tuple[str, ...], optional: tuple[str, ...] = ()) -> list[Row]:
    """Rows of a JSONL file: an id that can be a file name, at least one of `needed`, and what is in `optional`, all of them text. Raises
    DataError with file and line."""
    if not path.is_file():
        raise DataError(f"{path}: no such manifest")
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read: {error}") from None
    rows: dict[str, Row] = {}
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        where = f"{path}:{number}"
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise DataError(f"{where}: not JSON: {error.msg}") from None
        if not isinstance(row, dict):
            raise DataError(f"{where}: a row is an object, found {type(row).__name__}")
        identity = str(row["id"]) if isinstance(row.get("id"), (str, int)) else ""
        if not identity.strip(".") or any(c in identity for c in "/\\\0") or not identity.isprintable() or len(identity.encode()) > 200:
            raise DataError(f"{where}: a row needs an 'id' that can be a file name")
        if identity in rows:
            raise DataError(f"{where}: the id {identity!r} is used twice")
        for name in (*needed, *optional):
            if row.get(name) is not None and not isinstance(row[name], str):
                raise DataError(f"{where}: {name!r} should be text, found {type(row[name]).__name__}")
        if not any((row.get(name) or "").strip() for name in needed):
            raise DataError(f"{where}: a row needs {' or '.join(needed)}")
        rows[identity] = row
    if not rows:
        raise DataError(f"{path}: the manifest is empty")
    return list(rows.values())


def _in_batches(rows: Sequence[Row], batch_size: int, work: Callable[[Sequence[Row]], list[T]]) -> Iterator[tuple[Row, T | DataError]]:
    """Every row with its result, in order. If a batch fails, its rows are tried one by one, so that only the bad ones fail."""
    for start in range(0, len(rows), batch_size):
        batch = rows[start : start + batch_size]
        try:
            results: list[T] = work(batch)
        except DataError as error:
            if len(batch) == 1:
                yield batch[0], error
            else:
                yield from _in_batches(batch, 1, work)
        else:
            yield from zip(batch, results, strict=True)


def _fail(failed: int, total: int, what: str) -> None:
    """Raises DataError if any failed; each has had its own line."""
    if failed:
        raise DataError(f"{failed} of {total} {what} failed")


def _check_target(path: Path) -> None:
    from omni.audio import check_target

    check_target(path)


def _save_speech(speech: Speech, path: Path) -> None:
    from omni.audio import save_audio

    save_audio(path, speech.waveform, speech.sample_rate_hz)


def _is_saved(speech: Speech, path: Path) -> bool:
    """Whether it could be; a note says why not, and the other rows go on."""
    try:
        _save_speech(speech, path)
    except DataError as error:
        note(f"error: {error}")
        return False
    return True


def _note_reply(reply: Reply, prefix: str = "") -> None:
    for notice in reply.notices:
        note(f"notice: {prefix}{notice}")
    if reply.stopped == "limit":
        from omni.inference.omni import CUT_OFF

        note(f"notice: {prefix}{CUT_OFF}")


def ask(
    text: Annotated[str | None, typer.Option(help="question in words")] = None,
    image: Annotated[Path | None, typer.Option(help="picture")] = None,
    audio: Annotated[Path | None, typer.Option(help="spoken question, or sound to ask about")] = None,
    video: Annotated[Path | None, typer.Option(help="video, seen at one frame a second")] = None,
    audio_out: Annotated[Path | None, typer.Option(help="speak the answer into this file")] = None,
    voice: Annotated[str | None, typer.Option(help="voice of the answer")] = None,
    manifest: Annotated[Path | None, typer.Option(help='many questions: JSONL rows {"id", "image"?, "audio"?, "text"?}')] = None,
    out_dir: Annotated[Path | None, typer.Option(help="with --manifest: speak the answers into this folder")] = None,
    batch_size: BatchSize = 8,
    ckpt: Checkpoint = None,
    device: Device = "auto",
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
    if manifest is None and out_dir is not None:
        raise DataError("--out-dir belongs to --manifest; for one question use --audio-out")
    sampling = _sampling(
        temperature=temperature, top_k=top_k, top_p=top_p, repetition_penalty=repetition_penalty, seed=seed, max_new_tokens=max_new_tokens
    )
    if manifest is not None:
        _ask_rows(manifest, out_dir, voice, sampling, strict, batch_size, lambda: _load(ckpt, device))
        return
    if audio_out is not None:
        _check_target(audio_out)
    omni = _load(ckpt, device)
    reply = omni.ask(
        text, image=image, audio=audio, video=video, speak=audio_out is not None, voice=voice, sampling=sampling, strict=strict
    )
    _note_reply(reply)
    result = {"text": reply.text}
    if reply.speech is not None and audio_out is not None:
        _save_speech(reply.speech, audio_out)
        result["file"] = str(audio_out)
    print_json(result) if as_json else print(reply.text)
    if audio_out is not None and reply.speech is None:
        raise DataError(f"{audio_out}: not written, because the reply has no words to say")


def _ask_rows(
    manifest: Path, out_dir: Path | None, voice: str | None, sampling: Sampling, strict: bool, batch_size: int, load: Callable[[], Omni]
) -> None:
    rows = _manifest(manifest, ("image", "audio", "text"))
    omni = load()
    if out_dir is not None:
        omni.speaker.voice_id(voice)
        make_folder(out_dir)

    def answer(batch: Sequence[Row]) -> list[Reply]:
        prompts = []
        for row in batch:
            image, audio = (manifest.parent / row[name] if row.get(name) else None for name in ("image", "audio"))
            message, _ = omni.question(row.get("text"), image=image, audio=audio)
            prompts.append(omni.prompt([message], reserve=sampling.max_new_tokens, strict=strict))
        return omni.answer(prompts, sampling)

    failed = 0
    for row, reply in _in_batches(rows, batch_size, answer):
        if isinstance(reply, DataError):
            note(f"error: {row['id']}: {reply}")
            failed += 1
            continue
        if out_dir is not None:
            reply = omni.say_reply(reply, voice, sampling=sampling)
        _note_reply(reply, f"{row['id']}: ")
        result = {"id": row["id"], "text": reply.text}
        if reply.speech is not None and out_dir is not None:
            path = out_dir / f"{row['id']}.wav"
            if _is_saved(reply.speech, path):
                result["file"] = str(path)
            else:
                failed += 1
        print_json(result)
    _fail(failed, len(rows), "questions")


def say(
    text: Annotated[str | None, typer.Argument(help="what to say")] = None,
    out: Annotated[str | None, typer.Option(help="WAV or FLAC file; - streams a WAV to standard output")] = None,
    voice: Annotated[str | None, typer.Option(help="name of a voice; default: the model's first")] = None,
    manifest: Annotated[Path | None, typer.Option(help='many sentences: JSONL rows {"id", "text", "voice"?}')] = None,
    out_dir: Annotated[Path | None, typer.Option(help="with --manifest: folder of the WAV files")] = None,
    batch_size: BatchSize = 1,
    vocoder: Annotated[str | None, typer.Option(help="neural or griffin-lim; default: neural if the checkpoint has one")] = None,
    model: Model = "omni",
    ckpt: Checkpoint = None,
    device: Device = "auto",
    temperature: Annotated[float | None, typer.Option(help="0 is greedy; default 0, of speech-lm 0.7")] = None,
    top_k: TopK = 0,
    top_p: Annotated[
        float | None, typer.Option(help="keep the likeliest codes of this much probability; default 1, of speech-lm 0.9")
    ] = None,
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """Say a text aloud."""
    sampling = _speaking(model, temperature=temperature, top_k=top_k, top_p=top_p, seed=seed)
    if (manifest is None) == (text is None):
        raise DataError("give either a text to say or --manifest")
    if manifest is not None:
        if out_dir is None or out is not None:
            raise DataError("--manifest writes into --out-dir; give that, and no --out")
        _say_rows(manifest, out_dir, voice, sampling, batch_size, lambda: _load_speaking(model, ckpt, device, vocoder))
        return
    if out is None or out_dir is not None:
        raise DataError("say where to: --out FILE.wav, or --out - for a stream; --out-dir belongs to --manifest")
    assert text is not None
    if out != "-":
        _check_target(Path(out))
    omni = _load_speaking(model, ckpt, device, vocoder)
    if out == "-":
        if as_json:
            raise DataError("--out - streams sound to standard output; leave out --json")
        _stream_wav(omni.say_stream(text, voice, sampling=sampling), omni.sample_rate_hz)
        return
    start = time.monotonic()
    speech = omni.say(text, voice, sampling=sampling)
    _save_speech(speech, Path(out))
    seconds = time.monotonic() - start
    if as_json:
        print_json({"file": out, **_figures(omni, speech, seconds)})
    else:
        note(f"{out}: {speech.duration_s:.2f} s of speech in {seconds:.2f} s ({omni.vocoder_name} vocoder)")


def _figures(omni: Omni | SpeechLM, speech: Speech, seconds: float) -> Row:
    return {"audio_s": round(speech.duration_s, 3), "seconds": round(seconds, 3), "vocoder": omni.vocoder_name}


def _say_rows(
    manifest: Path, out_dir: Path, voice: str | None, sampling: Sampling, batch_size: int, load: Callable[[], Omni | SpeechLM]
) -> None:
    """The time of a batch is shared out by the length of its speech."""
    rows = _manifest(manifest, ("text",), ("voice",))
    omni = load()
    voices = {row["id"]: row.get("voice") or voice for row in rows}
    for name in voices.values():
        omni.voice_id(name)
    make_folder(out_dir)

    def speak(batch: Sequence[Row]) -> list[tuple[Speech, float]]:
        start = time.monotonic()
        speeches = omni.say_batch([row["text"] for row in batch], [voices[row["id"]] for row in batch], sampling=sampling)
        pace = (time.monotonic() - start) / sum(s.duration_s for s in speeches)
        return [(s, s.duration_s * pace) for s in speeches]

    failed = 0
    for row, result in _in_batches(rows, batch_size, speak):
        if isinstance(result, DataError):
            note(f"error: {row['id']}: {result}")
            failed += 1
            continue
        speech, seconds = result
        path = out_dir / f"{row['id']}.wav"
        if _is_saved(speech, path):
            print_json({"id": row["id"], "file": str(path), **_figures(omni, speech, seconds)})
        else:
            failed += 1
    _fail(failed, len(rows), "sentences")


def _stream_wav(chunks: Iterator[Speech], sample_rate_hz: int) -> None:
    """16-bit mono WAV of unknown length, each chunk as soon as it is there."""
    import io
    import struct

    from omni.audio import save_audio

    unknown = 0xFFFFFFFF
    form = struct.pack("<4sIHHIIHH", b"fmt ", 16, 1, 1, sample_rate_hz, 2 * sample_rate_hz, 2, 16)
    header = b"RIFF" + struct.pack("<I", unknown) + b"WAVE" + form + b"data" + struct.pack("<I", unknown)
    sys.stdout.buffer.write(header)
    for chunk in chunks:
        samples = io.BytesIO()
        save_audio(samples, chunk.waveform, sample_rate_hz, format="RAW")  # rounded as in a file; little-endian, as WAV is
        sys.stdout.buffer.write(samples.getvalue())
        sys.stdout.buffer.flush()


def transcribe(
    files: Annotated[list[Path], typer.Argument(help="recordings of any length")],
    decoder: Annotated[
        str | None, typer.Option(help="ctc (default): the audio encoder alone; ctc-beam: with a language model; thinker: asked in words")
    ] = None,
    model: Model = "omni",
    ckpt: Checkpoint = None,
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Write down what is said, one line a file."""
    if is_speech_lm(model):
        if decoder is not None:
            raise ConfigError("--decoder belongs to --model omni; a speech LM has one way to write")
        _each(files, _load_speech_lm(ckpt, device).transcribe, as_json)
        return
    omni = _load(ckpt, device)
    _each(files, lambda file: omni.transcribe(file, decoder or "ctc"), as_json)


def describe(
    files: Annotated[list[Path], typer.Argument(help="pictures")],
    ckpt: Checkpoint = None,
    device: Device = "auto",
    temperature: Temperature = 0.0,
    top_k: TopK = 0,
    top_p: TopP = 1.0,
    repetition_penalty: Penalty = 1.0,
    seed: Seed = 0,
    max_new_tokens: MaxNewTokens = 96,
    as_json: Json = False,
) -> None:
    """Say in words what is in pictures, one line a file."""
    sampling = _sampling(
        temperature=temperature, top_k=top_k, top_p=top_p, repetition_penalty=repetition_penalty, seed=seed, max_new_tokens=max_new_tokens
    )
    omni = _load(ckpt, device)
    _each(files, lambda file: omni.describe(file, sampling), as_json)


def _each(files: list[Path], work: Callable[[Path], str], as_json: bool) -> None:
    """Print the result of every file in order; a bad file has a line on standard error, and the exit code tells."""
    failed = 0
    for file in files:
        try:
            text = work(file)
        except DataError as error:
            note(f"error: {error}")
            failed += 1
        else:
            print_json({"file": str(file), "text": text}) if as_json else print(text, flush=True)
    _fail(failed, len(files), "files")


CHAT_HELP = """/image F and /audio F go with the next message (Enter alone sends them); /drop leaves them out
/voice NAME   /save F (.json: the conversation; .wav or .flac: the last answer, spoken)   /reset   /quit"""


def chat(
    audio_out: Annotated[Path | None, typer.Option(help="speak every answer into this folder")] = None,
    voice: Annotated[str | None, typer.Option(help="voice of the answers")] = None,
    ckpt: Checkpoint = None,
    device: Device = "auto",
    temperature: Temperature = 0.0,
    top_k: TopK = 0,
    top_p: TopP = 1.0,
    repetition_penalty: Penalty = 1.0,
    seed: Seed = 0,
    max_new_tokens: MaxNewTokens = 96,
) -> None:
    """Talk in the terminal; the conversation so far is kept. Ctrl-C breaks off a reply, Ctrl-D ends."""
    from omni.inference.conversation import Conversation

    sampling = _sampling(
        temperature=temperature, top_k=top_k, top_p=top_p, repetition_penalty=repetition_penalty, seed=seed, max_new_tokens=max_new_tokens
    )
    omni = _load(ckpt, device)
    if voice is not None:
        omni.speaker.voice_id(voice)
    if audio_out is not None:
        make_folder(audio_out)
    conversation = Conversation(omni, sampling)
    if sys.stdin.isatty():
        with suppress(ImportError):  # not everywhere
            import readline  # noqa: F401  input() then has history and arrow keys
    note(CHAT_HELP)
    while True:
        try:
            line = input("> " if sys.stdin.isatty() else "").strip()
        except EOFError:
            note("")
            return
        except KeyboardInterrupt:
            note("\n(Ctrl-D ends)")
            continue
        except UnicodeDecodeError as error:
            note(f"error: not text: {error}")
            continue
        command, _, value = line.partition(" ")
        try:
            if command == "/quit":
                return
            if command == "/voice":
                omni.speaker.voice_id(value.strip())
                voice = value.strip()
                note(f"(answers are in the voice {voice})")
            elif command.startswith("/"):
                _command(conversation, command, _unquoted(value.strip()), voice)
            elif line or conversation.attached:
                _exchange(conversation, line, audio_out, voice)
        except OmniError as error:
            note(f"error: {error}")
            _note_attached(conversation)
        except KeyboardInterrupt:
            note("\n(broken off)")


def _unquoted(file: str) -> str:
    """As a shell would read it: terminals put quotes around a file that is dropped into them."""
    if len(file) > 1 and file[0] == file[-1] and file[0] in "'\"":
        file = file[1:-1]
    return str(Path(file).expanduser()) if file else ""


def _command(conversation: Conversation, command: str, file: str, voice: str | None) -> None:
    """What a line asks for that begins with a slash."""
    if command == "/reset":
        conversation.reset()
        note("(forgotten)")
    elif command in ("/image", "/audio"):
        conversation.attach(command[1:], file)
        note(f"({file} goes with the next message)")
    elif command == "/drop":
        conversation.detach()
    elif command == "/save":
        _save(conversation, file, voice)
        note(f"(wrote {file})")
    else:
        raise DataError(f"no command {command}\n{CHAT_HELP}")


def _note_attached(conversation: Conversation) -> None:
    if conversation.attached:
        note(f"still attached: {', '.join(conversation.attached)} (/drop leaves them out)")


def _exchange(conversation: Conversation, line: str, audio_out: Path | None, voice: str | None) -> None:
    """One message and its answer, printed as it comes and spoken into the folder `audio_out`. Ctrl-C breaks off either."""
    from omni.inference.omni import Reply

    try:
        for piece in conversation.send(line):
            print(piece, end="", flush=True)
        print(flush=True)
    except KeyboardInterrupt:
        note("\n(broken off; nothing of it is remembered)")
        _note_attached(conversation)
        return
    for notice in conversation.notices:
        note(f"notice: {notice}")
    if audio_out is not None:
        try:
            reply = conversation.omni.say_reply(Reply(conversation.last_reply, []), voice, sampling=conversation.sampling)
            _note_reply(reply)
            if reply.speech is not None:
                file = _next_file(audio_out)
                _save_speech(reply.speech, file)
                note(f"({file})")
        except KeyboardInterrupt:
            note("(not spoken)")


def _next_file(folder: Path) -> Path:
    """001.wav, or what follows the last one there."""
    last = max((int(file.stem) for file in folder.glob("*.wav") if file.stem.isdigit()), default=0)
    return folder / f"{last + 1:03d}.wav"


def _save(conversation: Conversation, file: str, voice: str | None) -> None:
    kind = Path(file).suffix.lower()
    if kind in (".wav", ".flac"):
        _save_speech(conversation.omni.say(conversation.last_reply, voice, sampling=conversation.sampling), Path(file))
    elif kind == ".json":
        conversation.save(Path(file))
    else:
        raise DataError("/save needs a file name that ends in .json, .wav or .flac")


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
        if audio_out is not None:
            raise DataError("--audio_out needs a question: give --text, --image, --audio_in or --video")
        chat(ckpt=ckpt_dir)
    else:
        ask(text=text, image=image, audio=audio_in, video=video, audio_out=audio_out, ckpt=ckpt_dir)
