"""A real server process with the small random model of `tests/small_model.py`, and the official client for it: tests are no package."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import openai
import pytest

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parent))

from served import Served, end, start
from small_model import checkpoint, media, omni, own_omni, tokenizer  # noqa: F401


@pytest.fixture(scope="session")
def server(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:  # noqa: F811
    """One for all tests that do not change it."""
    served = start(checkpoint, tmp_path_factory.mktemp("server"))
    yield served
    end(served)


@pytest.fixture
def client(server: Served) -> openai.OpenAI:
    """The official one."""
    return server.client()
