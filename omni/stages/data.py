"""The training and validation data of each stage, from the manifests that its run names."""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from torch import Tensor
from torch.utils.data import ConcatDataset

from omni.chat import parts_of, render_text
from omni.checkpoint import TOKENIZER, latest
from omni.config import ModelConfig, RunConfig
from omni.data import collate
from omni.data.datasets import CaptionDataset, ConversationDataset, SpeechDataset, TalkerDataset, VocoderDataset
from omni.data.manifests import Manifests, Row, open_rows
from omni.data.packing import PackedText, pack
from omni.data.split import held_out
from omni.errors import ConfigError
from omni.tokenizer import BPETokenizer, train_tokenizer
from omni.training.stage import Examples, Splits

D = TypeVar("D", bound=Examples)


def text_of(row: Row) -> str:
    """What a row says: the text that decides on which side of the split it is."""
    for name in ("text", "caption"):
        if isinstance(row.get(name), str):
            return row[name]
    return "\n".join(value for message in row["messages"] for kind, value in parts_of(message) if kind == "text")


def open_manifests(sources: tuple[str, ...], required: tuple[str, ...]) -> Manifests:
    """All of `sources`. Raises ConfigError when there is none."""
    if not sources:
        raise ConfigError("data.train names no manifest; give one or more, for example data.train='[\"my.jsonl\"]'")
    return Manifests([open_rows(source, required) for source in sources])


def open_splits(run: RunConfig, required: tuple[str, ...]) -> tuple[Manifests, Manifests]:
    """Training and validation rows: the validation manifests, or else the held-out fraction of the training ones."""
    train = open_manifests(run.data.train, required)
    if run.data.validation:
        return train, open_manifests(run.data.validation, required)
    return split(train, run.data.validation_fraction)


def split(rows: Manifests, fraction: float) -> tuple[Manifests, Manifests]:
    """The rows by the one rule of `held_out`."""
    sides: tuple[array[int], array[int]] = array("Q"), array("Q")
    for index in range(len(rows)):
        sides[held_out(text_of(rows[index][0]), fraction)].append(index)
    return rows.choose(sides[0]), rows.choose(sides[1])


def _splits(
    run: RunConfig, required: tuple[str, ...], dataset: Callable[[Manifests], D], collate_examples: Callable[[Any], Any]
) -> Splits[Any]:
    train, validation = open_splits(run, required)
    return Splits(dataset(train), dataset(validation), collate_examples)


def speech_splits(run: RunConfig, config: ModelConfig) -> Splits[collate.SpeechBatch]:
    """{"audio", "text"}."""
    splits = _splits(run, ("audio", "text"), lambda rows: SpeechDataset(rows, config, run.data), collate.collate_speech)
    return replace(splits, length=lambda example: len(example.mel))


def caption_splits(run: RunConfig, config: ModelConfig, tokenizer: BPETokenizer) -> Splits[collate.CaptionBatch]:
    """{"image", "caption"}."""
    return _splits(run, ("image", "caption"), lambda rows: CaptionDataset(rows, config, tokenizer), collate.collate_captions)


def talker_splits(run: RunConfig, config: ModelConfig, tokenizer: BPETokenizer) -> Splits[collate.TalkerBatch]:
    """{"audio", "text", "speaker"?}."""
    return _splits(run, ("audio", "text"), lambda rows: TalkerDataset(rows, config, tokenizer, run.data), collate.collate_talker)


def vocoder_splits(run: RunConfig, config: ModelConfig, resynthesise: Callable[[Tensor], Tensor] | None) -> Splits[collate.VocoderBatch]:
    """{"audio", "text"}. The validation clips are heard as recorded and, with `resynthesise` (T,mels) → (T,mels), as the codec makes them."""

    def pieces(rows: Manifests, codec_share: float) -> VocoderDataset:
        return VocoderDataset(rows, config, run.data, codec_share=codec_share, resynthesise=resynthesise, seed=run.train.seed)

    train, validation = open_splits(run, ("audio", "text"))
    heard = [pieces(validation, share) for share in ((0.0, 1.0) if resynthesise is not None else (0.0,))]
    both: Examples = ConcatDataset(heard)  # type: ignore[arg-type]  # of anything that has a length and items
    return Splits(pieces(train, run.data.codec_share), both, collate.collate_vocoder)


def conversation_splits(run: RunConfig, config: ModelConfig, tokenizer: BPETokenizer) -> Splits[collate.ConversationBatch]:
    """{"messages"} or {"text"}."""
    splits = _splits(
        run, ("messages|text",), lambda rows: ConversationDataset(rows, config, tokenizer, run.data), collate.collate_conversations
    )
    return replace(splits, length=lambda example: len(example.input_ids))


def encode_document(row: Row, tokenizer: BPETokenizer) -> list[int]:
    """A dialogue in the chat template, or plain text between begin and end of sequence."""
    if row.get("messages"):
        return [*render_text(row["messages"], tokenizer), tokenizer.eos_id]
    return [tokenizer.bos_id, *tokenizer.encode(row["text"]), tokenizer.eos_id]


def text_splits(run: RunConfig, config: ModelConfig, tokenizer: BPETokenizer | None) -> tuple[Splits[collate.TextBatch], BPETokenizer]:
    """Rows {"text"} or {"messages"} packed into contexts; a tokenizer is trained on the training rows unless one is given."""
    train, validation = open_splits(run, ("text|messages",))
    folder, content = _packed(run), _content(run.data.train + run.data.validation)
    tokenizer = tokenizer or own_tokenizer(run, train, config.thinker.vocab_size)
    pieces = hashlib.sha256(tokenizer.serialized).hexdigest()

    def packed(name: str, rows: Manifests) -> PackedText:
        source = f"{name} rows of {run.data.model_dump_json()} {content} in the pieces of {pieces}"
        encode = partial(encode_document, tokenizer=tokenizer)
        pack(_rows(rows), encode, folder / name, vocab_size=tokenizer.vocab_size, source=source)
        return PackedText(folder / name, config.thinker.context_length)

    return Splits(packed("train", train), packed("validation", validation), collate.collate_text), tokenizer


def _packed(run: RunConfig) -> Path:
    """Where a run keeps what it made of the texts."""
    return Path(run.out_dir) / "packed"


def own_tokenizer(run: RunConfig, rows: Manifests, vocab_size: int) -> BPETokenizer:
    """The tokenizer of the run's newest checkpoint, whose ids have been learned; or one that is trained on the texts of `rows`."""
    if (begun := latest(Path(run.out_dir))) is not None:
        return BPETokenizer(begun / TOKENIZER)
    content = _content(run.data.train + run.data.validation)
    key = hashlib.sha256(f"{content} {vocab_size} {run.train.seed}".encode()).hexdigest()
    path = _packed(run) / f"tokenizer-{key[:12]}.model"
    return BPETokenizer(path) if path.exists() else train_tokenizer(map(text_of, _rows(rows)), vocab_size, path, seed=run.train.seed)


def _content(sources: tuple[str, ...]) -> list[tuple[int, int]]:
    """Size and time of change of every manifest that is a file: an edited one is packed anew."""
    return [((stat := Path(source).stat()).st_size, stat.st_mtime_ns) for source in sources if Path(source).is_file()]


def _rows(rows: Manifests) -> Iterator[Row]:
    return (rows[index][0] for index in range(len(rows)))
