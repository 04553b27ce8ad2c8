"""What the server allows. Everything a request may ask for has a bound here."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass

from omni.errors import ConfigError

MEGABYTE = 1 << 20


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches `host`."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"


@dataclass(frozen=True)
class Settings:
    """`name` is the model's in the interface. `max_batch` requests are worked on together, `max_queue` more wait, the next is refused. A request may
    take `time_limit_s` from its acceptance, waiting included; its body `body_time_s` to arrive, and each piece of the answer `write_time_s` to
    leave. `max_audio_s`, `max_media` and `max_text_characters` bound the sounds, pictures and texts of one request, `max_pixels` each picture."""

    name: str = "muomni"
    host: str = "127.0.0.1"
    port: int = 8000
    api_key: str | None = None
    allow_remote: bool = False
    max_batch: int = 64
    max_queue: int = 64
    time_limit_s: float = 120.0
    max_body_bytes: int = 32 * MEGABYTE
    body_time_s: float = 30.0
    write_time_s: float = 30.0
    max_audio_s: float = 300.0
    max_media: int = 32
    max_pixels: int = 16_000_000
    max_text_characters: int = 1_000_000
    max_speech_characters: int = 4_096
    max_sessions: int = 16

    def __post_init__(self) -> None:
        if self.api_key is not None and (not self.api_key or not self.api_key.isascii() or any(c.isspace() for c in self.api_key)):
            raise ConfigError("api_key: use ASCII characters without spaces, at least one")
        if not is_loopback(self.host) and self.api_key is None:
            raise ConfigError(f"host {self.host}: others would reach this server; give --api-key too, or bind 127.0.0.1")
        if not 0 <= self.port < 65536:
            raise ConfigError(f"port {self.port}: use 1 to 65535, or 0 for any that is free")
        for name in ("max_batch", "time_limit_s", "max_body_bytes", "max_audio_s", "max_pixels"):
            if getattr(self, name) <= 0:
                raise ConfigError(f"{name} {getattr(self, name)}: use more than 0")
        if self.max_queue < 0:
            raise ConfigError(f"max_queue {self.max_queue}: use 0 or more")
