"""The document's snippets in docs/shapes.md run, and every tensor has the shape in its comment."""

from __future__ import annotations

import ast
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from omni.tokenizer import train_tokenizer

PAGE = Path(__file__).parent.parent / "docs" / "shapes.md"
SHAPE = re.compile(r"#\s*(\([\d, ]*\))\s*$")


def blocks() -> list[str]:
    """The Python blocks of the page, in order."""
    return re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), flags=re.DOTALL)


def run(source: str, names: dict[str, Any]) -> int:
    """Execute statement by statement; returns how many shapes in comments were compared."""
    lines, compared = source.splitlines(), 0
    for statement in ast.parse(source).body:
        exec(compile(ast.Module([statement], []), str(PAGE), "exec"), names)
        comment = SHAPE.search(lines[(statement.end_lineno or 1) - 1])
        if comment and isinstance(statement, ast.Assign) and isinstance(statement.targets[0], ast.Name):
            name = statement.targets[0].id
            assert tuple(names[name].shape) == ast.literal_eval(comment[1]), lines[statement.lineno - 1]
            compared += 1
    return compared


def test_every_block_runs_and_every_commented_shape_is_right(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "checkpoints" / "thinker_tiny"
    folder.mkdir(parents=True)
    train_tokenizer(["Hello, how are you? I am doing well, thank you!"] * 8, 300, folder / "tokenizer.model", seed=0)
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    with torch.no_grad():
        compared = [run(block, names) for block in blocks()]
    assert len(compared) == 6 and all(compared[1:]) and sum(compared) >= 40
