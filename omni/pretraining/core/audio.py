"""`from omni.pretraining.core.audio import SNACTokenizer`, as the document has it."""

from omni.audio_tokenizers import SNACTokenizer

__all__ = ["SNACTokenizer"]
