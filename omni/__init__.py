"""μOmni: a small omni-modal model system. `from omni import Omni`, and `SpeechLM` for the second system."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"
__all__ = ["MultimodalPretrainingConfig", "MultimodalPretrainingTrainer", "Omni", "SpeechLM", "__version__"]

if TYPE_CHECKING:
    from omni.config import MultimodalPretrainingConfig
    from omni.inference.omni import Omni
    from omni.pretraining import MultimodalPretrainingTrainer
    from omni.speech_lm import SpeechLM

_HOMES = {
    "MultimodalPretrainingConfig": "omni.config",
    "MultimodalPretrainingTrainer": "omni.pretraining",
    "Omni": "omni.inference.omni",
    "SpeechLM": "omni.speech_lm",
}


def __getattr__(name: str) -> Any:
    """Load what is public when it is first asked for: importing this package alone is light."""
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'omni' has no attribute {name!r}")
