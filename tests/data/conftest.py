"""Small clips, pictures and manifests."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile
from PIL import Image


class Folder:
    """A folder that manifests and their media are written to."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def clip(self, name: str, seconds: float = 0.5, rate: int = 16_000, seed: int = 0) -> str:
        """A noise clip; returns its name."""
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(path, np.random.default_rng(seed).normal(0, 0.1, int(seconds * rate)).astype(np.float32), rate)
        return name

    def picture(self, name: str, colour: str = "red") -> str:
        """A picture of one colour; returns its name."""
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (20, 10), colour).save(path)
        return name

    def jsonl(self, name: str, rows: list) -> str:
        """A manifest; a row that is text is written as it is. Returns its path."""
        path = self.root / name
        lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
        path.write_text("".join(line + "\n" for line in lines))
        return str(path)


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    return Folder(tmp_path)
