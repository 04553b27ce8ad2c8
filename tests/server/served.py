"""A server as a process of its own."""

from __future__ import annotations

import base64
import http.client
import json
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import openai

ROOT = Path(__file__).parents[2]
MUOMNI = [sys.executable, "-m", "omni.cli"]
START_S = 300.0  # torch is slow to import on a busy machine


@dataclass
class Served:
    """A running server."""

    process: subprocess.Popen[bytes]
    port: int
    log: Path

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def client(self, key: str = "none") -> openai.OpenAI:
        return openai.OpenAI(base_url=f"{self.url}/v1", api_key=key, max_retries=0, timeout=120)

    def ask(self, method: str, path: str, body: bytes | None = None, headers: dict[str, str] | None = None) -> tuple[int, bytes]:
        """One request on a connection of its own: status and body."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=120)
        try:
            connection.request(method, path, body, headers or {})
            response = connection.getresponse()
            return response.status, response.read()
        finally:
            connection.close()

    def post(self, path: str, value: Any) -> tuple[int, Any]:
        """A JSON request: status and JSON."""
        status, data = self.ask("POST", path, json.dumps(value).encode(), {"Content-Type": "application/json"})
        return status, json.loads(data)

    @property
    def healthy(self) -> bool:
        return self.ask("GET", "/health")[0] == 200

    def idle(self, within_s: float = 30.0) -> bool:
        """Whether all its work ends soon."""
        until = time.monotonic() + within_s
        while time.monotonic() < until:
            health = json.loads(self.ask("GET", "/health")[1])
            if health["running"] == health["waiting"] == 0:
                return True
            time.sleep(0.05)
        return False


def start(checkpoint: Path, folder: Path, *options: object) -> Served:
    """A server of its own process at a free port."""
    log = folder / "server.log"
    with log.open("wb") as file:
        command = [*MUOMNI, "serve", "--ckpt", str(checkpoint), "--port", "0", "--threads", "1", *map(str, options)]
        process = subprocess.Popen(command, cwd=ROOT, stdout=file, stderr=file)
    until = time.monotonic() + START_S
    while time.monotonic() < until and process.poll() is None:
        if "on http://" in (text := log.read_text()):
            served = Served(process, int(text.split("on http://")[1].split()[0].rpartition(":")[2]), log)
            assert served.healthy
            return served
        time.sleep(0.1)
    process.kill()
    raise AssertionError(f"the server did not start:\n{log.read_text()}")


def end(served: Served) -> None:
    """As a service manager does it; it must end well and have logged no failure of ours."""
    served.process.send_signal(signal.SIGTERM)
    try:
        assert served.process.wait(60) == 0, served.log.read_text()
    finally:
        served.process.kill()
    assert "Traceback" not in served.log.read_text(), served.log.read_text()


def data_uri(path: Path) -> str:
    return "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode()


def encoded(path: Path) -> str:
    return base64.b64encode(path.read_bytes()).decode()
