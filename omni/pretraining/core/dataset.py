"""`from omni.pretraining.core.dataset import MultimodalDataset`, as the document has it."""

from omni.data.multimodal import MultimodalDataset

__all__ = ["MultimodalDataset"]
