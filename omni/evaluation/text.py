"""How well a model predicts text that it never saw: bits per byte of held-out dialogues, stories and a novel, beside two baselines.

A document's cost is −Σ ln p of the tokens behind its <bos>; bits per byte is that / ln 2 / its UTF-8 bytes. In a dialogue the chat template's
markers (whose turn it is, the end of a turn) cost nats like all tokens, while the bytes are those of the messages alone. The <eos> that parts
documents in training is not counted. All models read the same tokens.

A document longer than a context is read in windows that advance by half of one; each scores only what the windows before it did not, so that
a token has half a context before it or all of its document.

B windows  T positions  V vocabulary"""

from __future__ import annotations

import logging
import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from omni.chat import Rendered, render_text
from omni.config import ThinkerConfig
from omni.data.release import Row, passages, text_documents
from omni.errors import CheckpointError, DataError
from omni.evaluation.metrics import ratio_interval, spread
from omni.evaluation.ngram import Ngram
from omni.inference.engine import Prompt
from omni.inference.omni import Omni
from omni.inference.sampling import Sampling
from omni.tokenizer import BPETokenizer

log = logging.getLogger(__name__)

SET_NAMES = {"dialogues": "dialogues_dev"}  # all other sets are called what their source is
BATCH_TOKENS = 8_192
PROMPT_CHARACTERS = 200
SAMPLES = 5  # of each kind
TEMPERATURE, TOP_P = 0.8, 0.95


class LanguageModel(Protocol):
    """The Thinker, or what can stand in its place."""

    config: ThinkerConfig
    lm_head: nn.Linear

    def hidden_states(self, input_ids: Tensor) -> Tensor: ...


@dataclass(frozen=True)
class Document:
    """`ids` begin with <bos>; `n_bytes` of UTF-8 that they spell."""

    ids: list[int]
    n_bytes: int


def document(row: Row, tokenizer: BPETokenizer) -> Document:
    """A dialogue in the chat template, or plain text."""
    ids = render_text(row["messages"], tokenizer) if "messages" in row else [tokenizer.bos_id, *tokenizer.encode(row["text"])]
    return Document(ids, sum(len(text.encode()) for text in passages(row)))


@dataclass(frozen=True)
class Window:
    """Positions `start` to `end` of a document are read; those from `scored` on are predicted (each from the one before it)."""

    document: int
    start: int
    scored: int
    end: int


def windows(lengths: Sequence[int], context_length: int) -> Iterator[Window]:
    """Windows of `context_length` predictions that predict every token but the first of each document once."""
    for index, length in enumerate(lengths):
        start, scored = 0, 1
        while scored < length:
            end = min(start + context_length + 1, length)
            yield Window(index, start, scored, end)
            scored, start = end, end - 1 - context_length // 2


@torch.inference_mode()
def nats_of(model: LanguageModel, documents: Sequence[Document]) -> list[float]:
    """What each document costs `model`."""
    device = model.lm_head.weight.device
    todo = sorted(windows([len(d.ids) for d in documents], model.config.context_length), key=lambda w: w.end - w.start)
    nats = [0.0] * len(documents)
    while todo:
        size = max(1, BATCH_TOKENS // (todo[-1].end - todo[-1].start))
        batch, todo = todo[-size:], todo[:-size]
        rows = [torch.tensor(documents[w.document].ids[w.start : w.end]) for w in batch]
        ids = nn.utils.rnn.pad_sequence(rows, batch_first=True).to(device)  # what is behind a token does not change it
        states = model.hidden_states(ids[:, :-1])  # (B, T, d)
        for w, row, state in zip(batch, ids, states, strict=True):
            predicted = slice(w.scored - w.start, w.end - w.start)
            logits = model.lm_head(state[predicted.start - 1 : predicted.stop - 1]).float()  # (tokens, V)
            nats[w.document] += float(F.cross_entropy(logits, row[predicted], reduction="sum"))
    return nats


def ngram_nats(ngram: Ngram, documents: Sequence[Document]) -> list[float]:
    """What each document costs the n-gram."""
    starts = np.cumsum([0, *(len(d.ids) for d in documents)])[:-1]
    return (-np.add.reduceat(ngram.log_probabilities(np.concatenate([d.ids for d in documents])), starts)).tolist()


def fit_ngram(data: Path, tokenizer: BPETokenizer) -> Ngram:
    """On the training side of the data folder, packed as for training, <eos> behind each document."""
    packed = [np.array([*document(row, tokenizer).ids, tokenizer.eos_id], np.uint32) for row in text_documents(data, held_out=False)]
    if not packed:
        raise DataError(f"{data}: no training text for the n-gram; fetch it with: muomni data get")
    return Ngram(np.concatenate(packed), tokenizer.vocab_size, tokenizer.bos_id)


@dataclass(frozen=True)
class Prediction:
    """One model on one set, with 95 % bootstrap intervals over documents."""

    documents: int
    tokens: int
    bytes: int
    bits_per_byte: float
    bits_per_byte_95: tuple[float, float]
    perplexity: float
    perplexity_95: tuple[float, float]


def prediction(documents: Sequence[Document], nats: Sequence[float]) -> Prediction:
    """From what each document costs."""
    n_tokens, n_bytes = [len(d.ids) - 1 for d in documents], [d.n_bytes for d in documents]
    bits = [n / math.log(2) for n in nats]
    low, high = ratio_interval(bits, n_bytes, range(len(documents)))
    per_token = [sum(nats) / sum(n_tokens), *ratio_interval(nats, n_tokens, range(len(documents)))]
    perplexity, *interval = (round(math.exp(n), 3) for n in per_token)
    return Prediction(
        documents=len(documents),
        tokens=sum(n_tokens),
        bytes=sum(n_bytes),
        bits_per_byte=round(sum(bits) / sum(n_bytes), 4),
        bits_per_byte_95=(round(low, 4), round(high, 4)),
        perplexity=perplexity,
        perplexity_95=(interval[0], interval[1]),
    )


def held_out_sets(data: Path) -> dict[str, list[Row]]:
    """The held-out documents by source. Raises DataError where there are none."""
    sets: dict[str, list[Row]] = defaultdict(list)
    for row in text_documents(data, held_out=True):
        source: str = row["source"]
        sets[SET_NAMES.get(source, source)].append(row)
    if not sets:
        raise DataError(f"{data}: holds no held-out text; fetch it with: muomni data get")
    return dict(sets)


# --- samples


def samples(omni: Omni, sets: dict[str, list[Row]]) -> list[dict[str, Any]]:
    """What the model says to prompts from held-out text, as it comes: replies to the first turns of dialogues, and continuations of stories and
    of the novel. Sample i is drawn with seed i."""
    dialogues = [row for rows in sets.values() for row in rows if "messages" in row]
    texts = [spread([row for row in rows if "text" in row], SAMPLES) for rows in sets.values()]
    mixed = [row for rank in range(SAMPLES) for rows in texts for row in rows[rank : rank + 1]]  # sets take turns
    out: list[dict[str, Any]] = []
    for row in spread(dialogues, SAMPLES):
        n = 1 + 2 * (len(out) % 2)  # the first message, or the first three
        sampling = _sampling(len(out))
        prompt = omni.prompt(row["messages"][:n], reserve=sampling.max_new_tokens)
        asked = [message["content"] for message in row["messages"][:n]]
        out.append({"kind": "reply", "prompt": asked, **_said(omni, prompt, sampling)})
    for row in mixed[:SAMPLES]:
        start = row["text"][:PROMPT_CHARACTERS].rsplit(" ", 1)[0]
        room = omni.model.config.thinker.context_length // 2
        ids = [omni.tokenizer.bos_id, *omni.tokenizer.encode(start)][:room]
        prompt = Prompt(Rendered(ids, [False] * len(ids), [], [], 0))
        read = omni.tokenizer.decode(ids)
        out.append({"kind": "continuation", "source": row["source"], "prompt": read, **_said(omni, prompt, _sampling(len(out)))})
    return out


def _sampling(seed: int) -> Sampling:
    return Sampling(temperature=TEMPERATURE, top_p=TOP_P, seed=seed, max_new_tokens=96)


def _said(omni: Omni, prompt: Prompt, sampling: Sampling) -> dict[str, Any]:
    (said,) = omni.engine.generate([prompt], sampling)
    return {"text": said.text, "stopped": said.stopped, "seed": sampling.seed}


# --- the suite


def text_suite(
    omni: Omni, data: Path, *, limit: int | None = None, baseline: tuple[LanguageModel, BPETokenizer] | None = None
) -> dict[str, Any]:
    """The suite `text` over the held-out sets of the data folder, `limit` documents of each; `baseline` is a plain GPT with its tokenizer.
    Raises DataError for missing data, CheckpointError for a checkpoint without a Thinker and a baseline with other tokens."""
    thinker, tokenizer = omni.model.thinker, omni.tokenizer
    if baseline is not None and baseline[1].serialized != tokenizer.serialized:
        raise CheckpointError("the baseline's tokenizer is another than the checkpoint's; compare models with the same one")
    sets = held_out_sets(data)
    documents = {name: [document(row, tokenizer) for row in spread(rows, limit)] for name, rows in sets.items()}

    own = {name: nats_of(thinker, d) for name, d in documents.items()}

    def judge(name: str, costs: dict[str, list[float]]) -> dict[str, Any]:
        """What every set costs a model, and beside a baseline the share of it that it costs the checkpoint."""
        found = {s: asdict(prediction(d, costs[s])) for s, d in documents.items()}
        log.info("%s: bits per byte %s", name, ", ".join(f"{s} {f['bits_per_byte']:.3f}" for s, f in found.items()))
        if costs is not own:
            for s, row in found.items():
                low, high = ratio_interval(own[s], costs[s], range(len(own[s])))
                row |= {"checkpoint_share": round(sum(own[s]) / sum(costs[s]), 4), "checkpoint_share_95": (round(low, 4), round(high, 4))}
        return found

    metrics = judge("checkpoint", own)
    ngram = fit_ngram(data, tokenizer)
    name = f"{ngram.order}-gram"
    baselines = {name: judge(name, {s: ngram_nats(ngram, d) for s, d in documents.items()})}
    if baseline is not None:
        baselines["plain_gpt"] = judge("plain_gpt", {s: nats_of(baseline[0], d) for s, d in documents.items()})
    return {
        "suite": "text",
        "checkpoint": str(omni.folder),
        "items": sum(map(len, documents.values())),
        "metrics": metrics | {"samples": samples(omni, sets)},
        "baselines": baselines,
        "ceilings": {},
    }
