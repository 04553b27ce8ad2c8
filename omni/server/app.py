"""The application: endpoints, page and guard around one model."""

from __future__ import annotations

import mimetypes
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Response

from omni import __version__
from omni.inference.omni import Omni
from omni.server import audio, chat, errors, realtime
from omni.server.errors import ApiError, json_response
from omni.server.guard import Guard
from omni.server.service import Service
from omni.server.settings import Settings

STATIC = Path(__file__).parent / "static"
DESCRIPTION = """A small omni-modal model behind OpenAI's interface: text, pictures and speech in; text and speech out. The official clients work with
`base_url="http://127.0.0.1:8000/v1"`. A realtime conversation is at `/v1/realtime` (WebSocket), a page to talk to the model at `/`."""


def create_app(omni: Omni, settings: Settings) -> FastAPI:
    """The ASGI application for one model. Its worker runs from startup to shutdown, which finishes what was accepted."""
    service = Service(omni, settings)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        service.worker.start()
        yield
        await service.worker.stop()

    app = FastAPI(
        title="μOmni",
        version=__version__,
        description=DESCRIPTION,
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
        responses=errors.ANSWERS,
    )
    app.state.service = service
    app.add_middleware(Guard, service=service)
    errors.install(app)
    for module in (chat, audio, realtime):
        app.include_router(module.router(service))

    def described() -> dict[str, Any]:
        return {
            "id": settings.name,
            "object": "model",
            "created": service.started_s,
            "owned_by": "muomni",
            "components": list(omni.model.components),
            "voices": list(omni.voices) if service.can_speak else [],
            "context_length": omni.model.config.thinker.context_length,
        }

    @app.get("/v1/models", summary="The model that is served")
    async def models() -> Response:
        """A list of one, with its components and voices."""
        return json_response({"object": "list", "data": [described()]})

    @app.get("/v1/models/{name}", summary="One model")
    async def model(name: str) -> Response:
        """The same by name."""
        service.check_model(name)
        return json_response(described())

    @app.get("/health", summary="Whether requests are taken")
    async def health() -> Response:
        """200 while they are, else 503."""
        if not service.worker.healthy:
            raise ApiError(503, "the server is shutting down")
        return json_response({"status": "ok", "running": len(service.worker.running), "waiting": service.worker.n_waiting})

    @app.get("/metrics", summary="Counts and times for Prometheus")
    async def metrics() -> Response:
        """Prometheus' text format."""
        return Response(service.metrics.text(), media_type="text/plain; version=0.0.4")

    assets = {path.name: path.read_bytes() for path in STATIC.iterdir()}  # no name from a request is ever looked for on the disk

    def asset(name: str) -> Response:
        if name not in assets:
            raise ApiError(404, "no such page")
        return Response(assets[name], media_type=mimetypes.guess_type(name)[0])

    @app.get("/", include_in_schema=False)
    async def page() -> Response:
        return asset("index.html")

    @app.get("/docs", include_in_schema=False)
    async def docs() -> Response:
        return asset("docs.html")

    @app.get("/static/{name}", include_in_schema=False)
    async def static(name: str) -> Response:
        return asset(name)

    return app
