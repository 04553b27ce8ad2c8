"""μOmni: a small omni-modal model system. `from omni import Omni`."""

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"
__all__ = ["Omni", "__version__"]

if TYPE_CHECKING:
    from omni.inference.omni import Omni


def __getattr__(name: str) -> Any:
    """Load `Omni` when it is first asked for: importing this package alone is light."""
    if name == "Omni":
        from omni.inference.omni import Omni

        return Omni
    raise AttributeError(f"module 'omni' has no attribute {name!r}")
