"""Packing: documents end to end, in windows that overlap by one id; killed anywhere, it ends in the same bytes; memory stays flat."""

from __future__ import annotations

import json
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from omni.data import packing
from omni.data.packing import PackedText, pack
from omni.errors import DataError


def documents(n: int) -> Iterator[int]:
    return iter(range(n))


def encode(number: int) -> list[int]:
    """1, the number's digits, 2."""
    return [1, *(10 + int(digit) for digit in str(number)), 2]


def flat(n: int) -> list[int]:
    return [i for number in range(n) for i in encode(number)]


def files(folder: Path) -> list[str]:
    return sorted(file.name for file in folder.iterdir())


def test_windows_are_the_documents_end_to_end(tmp_path: Path) -> None:
    pack(documents(100), encode, tmp_path, vocab_size=500, source="a")
    packed = PackedText(tmp_path, 7)
    ids = flat(100)
    assert (packed.n_documents, packed.n_tokens, len(packed)) == (100, len(ids), (len(ids) - 1) // 7)
    for index, window in enumerate(packed[i] for i in range(len(packed))):
        assert window.dtype == torch.long
        assert window.tolist() == ids[index * 7 : index * 7 + 8]
    with pytest.raises(IndexError):
        packed[len(packed)]
    assert files(tmp_path) == ["meta.json", "tokens.bin"]


@pytest.mark.parametrize(("vocab_size", "width"), [(2**16, 2), (2**16 + 1, 4)])
def test_ids_take_two_bytes_unless_the_vocabulary_needs_four(tmp_path: Path, vocab_size: int, width: int) -> None:
    pack([0, 1], lambda _: [vocab_size - 1] * 5, tmp_path, vocab_size=vocab_size, source="a")
    assert (tmp_path / "tokens.bin").stat().st_size == 10 * width
    assert PackedText(tmp_path, 9)[0].tolist() == [vocab_size - 1] * 10


class Killed(Exception):
    """Stands for a kill: nothing of ours catches it."""


@pytest.mark.parametrize("kill_at", [0, 3, 9, 10, 24])
def test_a_killed_run_repeats_at_most_one_step_and_ends_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kill_at: int) -> None:
    monkeypatch.setattr(packing, "STEP", 10)
    pack(documents(25), encode, tmp_path / "whole", vocab_size=500, source="a")
    seen: list[int] = []

    def dying(number: int) -> list[int]:
        if number == kill_at:
            raise Killed
        return encode(number)

    def watched(number: int) -> list[int]:
        seen.append(number)
        return encode(number)

    folder = tmp_path / "resumed"
    with pytest.raises(Killed):
        pack(documents(25), dying, folder, vocab_size=500, source="a")
    with open(folder / "tokens.bin", "ab") as file:
        file.write(b"half a document")
    pack(documents(25), watched, folder, vocab_size=500, source="a")
    assert seen == list(range(kill_at // 10 * 10, 25))
    assert (folder / "tokens.bin").read_bytes() == (tmp_path / "whole" / "tokens.bin").read_bytes()
    assert (folder / "meta.json").read_bytes() == (tmp_path / "whole" / "meta.json").read_bytes()
    assert files(folder) == ["meta.json", "tokens.bin"]


def test_the_same_source_is_not_packed_twice_and_another_is(tmp_path: Path) -> None:
    pack(documents(30), encode, tmp_path, vocab_size=500, source="a")
    (tmp_path / "progress.json").write_text("{}")  # as a kill at the very end leaves it

    def never(number: int) -> list[int]:
        raise AssertionError(number)

    pack(documents(30), never, tmp_path, vocab_size=500, source="a")
    assert files(tmp_path) == ["meta.json", "tokens.bin"]
    pack(documents(20), encode, tmp_path, vocab_size=500, source="b")
    assert PackedText(tmp_path, 5).n_tokens == len(flat(20))


def test_progress_of_another_source_is_not_taken_up(tmp_path: Path) -> None:
    (tmp_path / "progress.json").write_text(json.dumps({"identity": "other", "documents": 7, "tokens": 20}))
    (tmp_path / "tokens.bin").write_bytes(b"\7" * 40)
    pack(documents(10), encode, tmp_path, vocab_size=500, source="a")
    assert PackedText(tmp_path, len(flat(10)) - 1)[0].tolist() == flat(10)


def test_too_little_text_or_a_cut_file_is_an_error(tmp_path: Path) -> None:
    pack(documents(2), encode, tmp_path, vocab_size=500, source="a")
    with pytest.raises(DataError, match="6 tokens do not fill one context of 6"):
        PackedText(tmp_path, 6)
    (tmp_path / "tokens.bin").write_bytes((tmp_path / "tokens.bin").read_bytes()[:-4])
    with pytest.raises(DataError, match=r"tokens\.bin: 4 tokens, but meta\.json says 6"):
        PackedText(tmp_path, 2)


def test_memory_does_not_grow_with_the_stream(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packing, "STEP", 20)

    def peak_bytes(n: int) -> int:
        tracemalloc.start()
        pack(documents(n), lambda number: [number] * 1000, tmp_path / str(n), vocab_size=5000, source="a")
        packed = PackedText(tmp_path / str(n), 1000)
        for index in range(len(packed)):
            packed[index]
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return peak

    peak_bytes(200)  # what is imported and cached once
    growth = peak_bytes(2_000) - peak_bytes(200)
    assert growth < 16 * 2**10  # of 3.4 MiB more tokens
