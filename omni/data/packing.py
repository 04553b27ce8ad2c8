"""Text packed into one memory-mapped file of token ids, documents end to end.

Written in steps of 10,000 documents: a killed run continues from the last step and leaves nothing behind but the finished folder."""

from __future__ import annotations

import hashlib
import itertools
import json
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from omni.errors import DataError

D = TypeVar("D")
STEP = 10_000  # documents between two notes of progress


def pack(documents: Iterable[D], encode: Callable[[D], list[int]], folder: Path, *, vocab_size: int, source: str) -> None:
    """Encode `documents` (always the same in the same order) into `folder`: tokens.bin and meta.json.

    `source` names what went in (manifests and tokenizer); a folder packed from the same source is left as it is, another is packed anew.
    """
    folder.mkdir(parents=True, exist_ok=True)
    identity = hashlib.sha256(source.encode()).hexdigest()
    meta, progress, tokens = folder / "meta.json", folder / "progress.json", folder / "tokens.bin"
    if meta.exists() and json.loads(meta.read_text())["identity"] == identity:
        progress.unlink(missing_ok=True)  # a run killed between its last two lines leaves it
        return
    meta.unlink(missing_ok=True)
    dtype = np.dtype(np.uint16 if vocab_size <= 2**16 else np.uint32)
    done = json.loads(progress.read_text()) if progress.exists() else {}
    if done.get("identity") != identity:
        done = {"identity": identity, "documents": 0, "tokens": 0}
    with open(tokens, "ab") as file:
        file.truncate(done["tokens"] * dtype.itemsize)
        remaining = itertools.islice(documents, done["documents"], None)
        while step := list(itertools.islice(remaining, STEP)):
            for document in step:
                file.write(np.array(encode(document), dtype=dtype).tobytes())
            file.flush()
            os.fsync(file.fileno())
            done = {"identity": identity, "documents": done["documents"] + len(step), "tokens": file.tell() // dtype.itemsize}
            _write_json(progress, done)
    _write_json(meta, done | {"dtype": dtype.name, "source": source})
    progress.unlink(missing_ok=True)


def _write_json(path: Path, value: object) -> None:
    part = path.with_suffix(".part")
    part.write_text(json.dumps(value))
    part.replace(path)


class PackedText:
    """Windows of `length` + 1 ids, side by side, over a packed folder; memory-mapped. The last id of a window is the first of the next."""

    def __init__(self, folder: Path, length: int) -> None:
        meta = json.loads((folder / "meta.json").read_text())
        self.length, self.n_documents, self.n_tokens = length, meta["documents"], meta["tokens"]
        if self.n_tokens <= length:
            raise DataError(
                f"{folder}: {self.n_tokens} tokens do not fill one context of {length}; add text or shorten thinker.context_length"
            )
        self._tokens = np.memmap(folder / "tokens.bin", dtype=meta["dtype"], mode="r")
        if len(self._tokens) != self.n_tokens:
            raise DataError(
                f"{folder}/tokens.bin: {len(self._tokens)} tokens, but meta.json says {self.n_tokens}; delete the folder to pack again"
            )

    def __len__(self) -> int:
        return (self.n_tokens - 1) // self.length

    def __getitem__(self, index: int) -> Tensor:
        if not 0 <= index < len(self):
            raise IndexError(index)
        start = index * self.length
        return torch.from_numpy(self._tokens[start : start + self.length + 1].astype(np.int64))
