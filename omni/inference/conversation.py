"""A conversation with memory: what was said, shown and played so far."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from omni.chat import Message
from omni.checkpoint import write_json
from omni.errors import DataError
from omni.image import load_image
from omni.inference.omni import CUT_OFF, Omni
from omni.inference.sampling import Sampling


class Conversation:
    """Messages in order. Media are read when they are attached, kept, and go with the next thing that is said."""

    def __init__(self, omni: Omni, sampling: Sampling) -> None:
        self.omni, self.sampling = omni, sampling
        self.reset()

    def reset(self) -> None:
        """Forget everything."""
        self.messages: list[Message] = []
        self.notices: list[str] = []
        self._attached: list[dict[str, Any]] = []

    def attach(self, kind: str, file: str) -> None:
        """Show a picture ("image") or play a sound ("audio") with the next message. Raises DataError at once if the file is no use."""
        assert kind in ("image", "audio")
        if not file:
            raise DataError(f"/{kind} needs a file name")
        value = load_image(file) if kind == "image" else self.omni.waveform(file)
        self._attached.append({"type": kind, kind: value, "file": file})

    @property
    def attached(self) -> list[str]:
        """The files that go with the next message."""
        return [part["file"] for part in self._attached]

    def detach(self) -> None:
        """Let what is attached go with no message."""
        self._attached = []

    def send(self, text: str) -> Iterator[str]:
        """Say something; yields the reply in pieces. Only a whole exchange enters the history: one that fails or is broken off can be
        tried again, with what was attached. `notices` then tell what had to be left out, and whether the reply was cut off."""
        content = self._attached + ([{"type": "text", "text": text}] if text else [])
        if not content:
            raise DataError("nothing was said")
        message = {"role": "user", "content": content}
        self.notices, events = self.omni.chat_stream([*self.messages, message], self.sampling)
        reply = ""
        for event in events:
            reply += event.text
            yield event.text
            if event.stopped == "limit":
                self.notices = [*self.notices, CUT_OFF]
        self.messages += [message, {"role": "assistant", "content": reply}]
        self.detach()

    @property
    def last_reply(self) -> str:
        """The assistant's latest words, empty before the first."""
        return str(self.messages[-1]["content"]) if self.messages else ""

    def save(self, path: Path) -> None:
        """Write the messages as JSON, media by the names of their files, relative to its folder. Raises DataError if the file cannot be written."""

        def named(part: dict[str, Any]) -> dict[str, Any]:
            return {"type": part["type"], part["type"]: os.path.relpath(part["file"], path.parent)} if "file" in part else part

        messages = [m if isinstance(m["content"], str) else m | {"content": [named(part) for part in m["content"]]} for m in self.messages]
        try:
            write_json(path, {"messages": messages})
        except OSError as error:
            raise DataError(f"{path}: cannot be written: {error.strerror}") from None
