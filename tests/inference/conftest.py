"""The small random model of `tests/small_model.py`: tests are no package."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from small_model import checkpoint, media, omni, own_omni, tokenizer  # noqa: F401
