"""`muomni serve`: the model behind OpenAI's interface, and a page to talk to it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from omni.config import DEFAULT_CHECKPOINT
from omni.errors import ConfigError


def register(app: typer.Typer) -> None:
    """Add `serve`."""
    app.command()(serve)


def serve(
    host: Annotated[str, typer.Option(help="address to listen at; others than this machine's own need --api-key")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="0 is any that is free")] = 8000,
    api_key: Annotated[str | None, typer.Option(envvar="MUOMNI_API_KEY", help="what clients must send as a bearer token")] = None,
    name: Annotated[str, typer.Option(help="name of the model for clients")] = "muomni",
    allow_remote: Annotated[bool, typer.Option("--allow-remote", help="fetch pictures from public addresses")] = False,
    max_batch: Annotated[int, typer.Option(help="requests that are worked on together")] = 64,
    max_queue: Annotated[int, typer.Option(help="requests that wait; more are told to come back")] = 64,
    time_limit: Annotated[float, typer.Option(help="seconds that a request may take, waiting included")] = 120.0,
    threads: Annotated[int, typer.Option(min=1, help="threads of the worker's mathematics; small models are fastest on one")] = 1,
    vocoder: Annotated[str | None, typer.Option(help="neural or griffin-lim; default: neural if the checkpoint has one")] = None,
    ckpt: Annotated[Path | None, typer.Option("--ckpt", help=f"checkpoint folder; default {DEFAULT_CHECKPOINT}")] = None,
    device: Annotated[str, typer.Option(help="cpu, cuda or cuda:N; auto is a GPU if there is one")] = "auto",
) -> None:
    """Serve the model: OpenAI's HTTP interface at /v1, a realtime socket, and a page to talk to it at /."""
    try:
        from omni.server.serve import run
        from omni.server.settings import Settings
    except ImportError as error:
        raise ConfigError(f"serving needs {error.name}; install it with: pip install -c constraints.txt -e .[serve]") from None
    from omni.inference.omni import Omni

    settings = Settings(
        name=name,
        host=host,
        port=port,
        api_key=api_key,
        allow_remote=allow_remote,
        max_batch=max_batch,
        max_queue=max_queue,
        time_limit_s=time_limit,
    )
    run(Omni.from_pretrained(ckpt, device, vocoder), settings, threads)
