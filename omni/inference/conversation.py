"""A conversation with memory: what was said, shown and played so far."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from omni.audio import load_audio
from omni.chat import Message
from omni.errors import DataError
from omni.image import load_image
from omni.inference.omni import Omni
from omni.inference.sampling import Sampling


class Conversation:
    """Messages in order. Attached media go with the next thing that is said."""

    def __init__(self, omni: Omni, sampling: Sampling) -> None:
        self.omni, self.sampling = omni, sampling
        self.reset()

    def reset(self) -> None:
        """Forget everything."""
        self.messages: list[Message] = []
        self.notices: list[str] = []
        self._attached: list[dict[str, Any]] = []

    def attach(self, kind: str, file: str) -> None:
        """Show a picture or play a sound with the next message. Raises DataError at once if the file is no use."""
        if not file:
            raise DataError(f"/{kind} needs a file name")
        (load_image if kind == "image" else load_audio)(file)
        self._attached.append({"type": kind, kind: file})

    def send(self, text: str) -> Iterator[str]:
        """Say something; yields the reply in pieces. Only a whole exchange enters the history."""
        content = self._attached + ([{"type": "text", "text": text}] if text else [])
        if not content:
            raise DataError("nothing was said")
        message = {"role": "user", "content": content}
        self.notices, pieces = self.omni.chat_stream([*self.messages, message], self.sampling)
        reply = ""
        for piece in pieces:
            reply += piece
            yield piece
        self.messages += [message, {"role": "assistant", "content": reply}]
        self._attached = []

    @property
    def last_reply(self) -> str:
        """The assistant's latest words."""
        return str(self.messages[-1]["content"])

    @property
    def n_replies(self) -> int:
        """How often the assistant has answered."""
        return len(self.messages) // 2

    def save(self, path: Path) -> None:
        """Write the messages as JSON. Raises DataError if the file cannot be written."""
        try:
            path.write_text(json.dumps({"messages": self.messages}, indent=1, ensure_ascii=False), encoding="utf-8")
        except OSError as error:
            raise DataError(f"{path}: cannot be written: {error.strerror}") from None
