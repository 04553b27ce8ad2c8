"""How large a data set is, and the run that fits it: steps for so many epochs, warm-up, vocabulary.

Counting notes its progress every 10,000 rows: a killed count continues there, and a finished one leaves nothing behind.
"""

from __future__ import annotations

import hashlib
import io
import json
import logging
import math
import random
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import soundfile

from omni.chat import parts_of, render_text
from omni.checkpoint import write_json
from omni.config import RunConfig
from omni.data.manifests import Manifests, Row, Rows, open_rows
from omni.errors import ConfigError, DataError, OmniError
from omni.tokenizer import BPETokenizer, train_tokenizer

log = logging.getLogger(__name__)

STEP = 10_000  # rows between two notes of progress; also how many the tokenizer is trained on
WARMUP_FRACTION = 0.05
FIELDS: dict[str, tuple[str, ...]] = {  # what each stage reads
    "text": ("text|messages",),
    "audio": ("audio", "text"),
    "vision": ("image", "caption"),
    "codec": ("audio", "text"),
    "vocoder": ("audio", "text"),
    "speech-lm": ("audio", "text"),
    "talker": ("audio", "text"),
    "sft": ("messages|text",),
}


@dataclass(frozen=True)
class Plan:
    """`rows` good and `bad_rows` bad ones, `tokens` of text (in the chat template where there are messages), `audio_s` seconds of sound;
    `steps` of `batch_size` sequences that go `epochs` times over the training share of it."""

    stage: str
    rows: int
    bad_rows: int
    tokens: int
    audio_s: float
    vocab_size: int
    batch_size: int
    epochs: float
    steps: int
    warmup_steps: int


def plan(
    sources: Sequence[str],
    run: RunConfig,
    *,
    epochs: float = 1.0,
    tokenizer: Path | None = None,
    assume_text_tokens: int | None = None,
    work: Path | None = None,
) -> Plan:
    """Measure the manifests `sources` for `run`, whose stage, batch, context and validation share decide the steps.

    Text is counted in the pieces of `tokenizer`, or of one trained on at most 10,000 rows. `assume_text_tokens` (of the whole data set)
    replaces counting them. `work` is the folder that an interrupted count continues from, removed at the end. Raises DataError, and
    ConfigError for no step.
    """
    rows = Manifests([open_rows(source, FIELDS[run.stage]) for source in sources])
    given = BPETokenizer(tokenizer) if tokenizer is not None else None
    has_audio = run.stage not in ("text", "vision")
    with _work_folder(work, _identity(sources, run, rows, given, assume_text_tokens)) as folder:
        pieces = None if assume_text_tokens is not None else given or _trained(rows, run, folder / "tokenizer.model")
        sizes = _count(rows, pieces, has_audio, folder / "progress.json") if pieces or has_audio else _Sizes()
    tokens = assume_text_tokens if assume_text_tokens is not None else sizes.tokens
    good = len(rows) - sizes.unreadable
    if good == 0:
        raise DataError(f"{', '.join(sources)}: none of the {len(rows)} rows has a readable clip")
    training_share = 1.0 if run.data.validation else 1.0 - run.data.validation_fraction
    sequences = training_share * good * (2 if run.stage == "speech-lm" else 1)  # which says and hears each; only hears those of no voice
    if run.stage == "text":
        sequences = (training_share * tokens - 1) // run.model.thinker.context_length
        if sequences < 1:
            context = run.model.thinker.context_length
            raise DataError(
                f"{', '.join(sources)}: {tokens} tokens do not fill one context of {context}; add text or shorten thinker.context_length"
            )
    steps = math.ceil(epochs * sequences / run.train.batch_size)
    if steps < 1:
        raise ConfigError(f"{epochs:g} epochs give no step at all; ask for more")
    return Plan(
        stage=run.stage,
        rows=good,
        bad_rows=sum(part.n_bad for part in rows.parts) + sizes.unreadable,
        tokens=tokens,
        audio_s=sizes.audio_s,
        vocab_size=pieces.vocab_size if pieces else _vocab_size(run),
        batch_size=run.train.batch_size,
        epochs=epochs,
        steps=steps,
        warmup_steps=math.ceil(WARMUP_FRACTION * steps),
    )


def settings(found: Plan, sources: Sequence[str]) -> list[str]:
    """The plan as dotted settings of a RunConfig. The stages text and speech-lm have a vocabulary of their own: the others get it with the Thinker."""
    sizes = {"rows": found.rows, "tokens": found.tokens, "audio_s": found.audio_s}
    out = [
        f"data.train={json.dumps(list(sources))}",
        f"data.sizes={json.dumps(sizes)}",
        f"train.steps={found.steps}",
        f"train.warmup_steps={found.warmup_steps}",
    ]
    own = {"text": "thinker.vocab_size", "speech-lm": "speech_lm.text_vocab_size"}.get(found.stage)
    return out + ([f"model.{own}={found.vocab_size}"] if own else [])


@dataclass
class _Sizes:
    """What the first `rows` rows hold."""

    rows: int = 0
    tokens: int = 0
    audio_s: float = 0.0
    unreadable: int = 0


def _count(rows: Manifests, tokenizer: BPETokenizer | None, has_audio: bool, progress: Path) -> _Sizes:
    sizes = _Sizes(**json.loads(progress.read_text())) if progress.exists() else _Sizes()
    for index in range(sizes.rows, len(rows)):
        row, source, number = rows[index]
        try:
            seconds = sum(_seconds(source, clip) for clip in clips_of(row)) if has_audio else 0.0
            sizes.audio_s += seconds
            sizes.tokens += _n_tokens(row, tokenizer) if tokenizer else 0
        except DataError as error:
            sizes.unreadable += 1
            log.warning("%s: %s", source.where(number), error)
        sizes.rows = index + 1
        if sizes.rows % STEP == 0:
            write_json(progress, vars(sizes))
            log.info("counted %d of %d rows", sizes.rows, len(rows))
    return sizes


def _n_tokens(row: Row, tokenizer: BPETokenizer) -> int:
    """Positions that a row's text takes, its begin and end included (as packing lays it out)."""
    if "messages" in row:
        return len(render_text(row["messages"], tokenizer)) + 1
    return len(tokenizer.encode(row.get("caption") or row["text"])) + 2


def clips_of(row: Row) -> list[Any]:
    """The media fields of the sounds in a row."""
    if "messages" in row:
        return [value for message in row["messages"] for kind, value in parts_of(message) if kind == "audio"]
    return [row["audio"]] if "audio" in row else []


def _seconds(rows: Rows, value: Any) -> float:
    """Length of a clip, by its header: a path relative to the manifest, or a Hugging Face {"bytes", "path"}."""
    media = value if isinstance(value, dict) else {"path": value}
    file = io.BytesIO(media["bytes"]) if media.get("bytes") else str(rows.path(media["path"]))
    try:
        return soundfile.info(file).duration
    except (soundfile.SoundFileError, OSError) as error:
        raise DataError(f"{media.get('path') or 'embedded sound'}: not a readable sound file ({error})") from None


def _trained(rows: Manifests, run: RunConfig, path: Path) -> BPETokenizer:
    """A tokenizer of the run's vocabulary size, or what the text fills of it."""
    if path.exists():
        return BPETokenizer(path)
    chosen = sorted(random.Random(run.train.seed).sample(range(len(rows)), min(STEP, len(rows))))
    texts = (text for index in chosen for text in _texts(rows[index][0]))
    return train_tokenizer(texts, _vocab_size(run), path, seed=run.train.seed)


def _vocab_size(run: RunConfig) -> int:
    return run.model.speech_lm.text_vocab_size if run.stage == "speech-lm" else run.model.thinker.vocab_size


def _texts(row: Row) -> Iterator[str]:
    if "messages" in row:
        yield from (value for message in row["messages"] for kind, value in parts_of(message) if kind == "text")
    else:
        yield row.get("caption") or row["text"]


def _identity(sources: Sequence[str], run: RunConfig, rows: Manifests, tokenizer: BPETokenizer | None, assumed: int | None) -> str:
    """Changes with everything that a count depends on."""
    files = [
        [source, (stat := Path(source).stat()).st_size, stat.st_mtime_ns] if Path(source).is_file() else [source] for source in sources
    ]
    pieces = hashlib.sha256(tokenizer.serialized).hexdigest() if tokenizer else [run.model.thinker.vocab_size, run.train.seed]
    return json.dumps([files, len(rows), run.stage, pieces, assumed])


@contextmanager
def _work_folder(folder: Path | None, identity: str) -> Iterator[Path]:
    """A folder that stays after an interruption and is taken up again for the same `identity`; without `folder`, a temporary one."""
    if folder is None:
        with tempfile.TemporaryDirectory() as name:
            yield Path(name)
        return
    note = folder / "identity.json"
    if not note.exists() or note.read_text() != identity:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        note.write_text(identity)
    try:
        yield folder
    except OmniError:  # continuing would only meet it again
        shutil.rmtree(folder)
        raise
    shutil.rmtree(folder)
