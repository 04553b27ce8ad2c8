"""Results on standard output, everything else on standard error."""

from __future__ import annotations

import json
import logging
import sys
from pathlib import Path
from typing import Any

from omni.errors import DataError


def print_json(value: Any) -> None:
    """One JSON object on one line of standard output, at once."""
    print(json.dumps(value, ensure_ascii=False), flush=True)


def note(text: str) -> None:
    """One line on standard error."""
    print(text, file=sys.stderr, flush=True)


def make_folder(path: Path) -> Path:
    """A folder to write into. Raises DataError where there can be none."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(f"{path}: cannot be made a folder: {error.strerror}") from None
    return path


def log_to_stderr() -> None:
    """What the library logs, as plain lines on standard error."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(message)s"))
    logger = logging.getLogger("omni")
    logger.handlers[:] = [handler]
    logger.setLevel(logging.INFO)
    logger.propagate = False
