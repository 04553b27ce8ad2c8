"""Errors as OpenAI's clients expect them: {"error": {"message", "type", "param", "code"}}, never with anything of our insides."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import Response
from pydantic import BaseModel
from starlette.exceptions import HTTPException

from omni.errors import CheckpointError, OmniError
from omni.server.worker import Overloaded, ShuttingDown, TimeLimitExceeded, WorkerFailed

KINDS = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}
CODES = {
    401: "invalid_api_key",
    404: "not_found",
    405: "method_not_allowed",
    408: "timeout",
    413: "too_large",
    429: "overloaded",
    504: "time_limit",
}


_ENCODER = json.JSONEncoder(separators=(",", ":"))


class ErrorDetail(BaseModel):
    """What went wrong; `param` names the field of the request that is to blame."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorAnswer(BaseModel):
    """The body of every answer that is an error, for the description of the interface."""

    error: ErrorDetail


ANSWERS: dict[int | str, dict[str, Any]] = {
    "4XX": {"model": ErrorAnswer, "description": "What is wrong with the request; 429: come back after `Retry-After` seconds"},
    "5XX": {"model": ErrorAnswer, "description": "The server shuts down, was late, or failed"},
}


class ApiError(OmniError):
    """A request that is refused, with its HTTP status; `param` names the field that is wrong."""

    def __init__(self, status: int, message: str, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.status, self.param, self.code = status, param, code or CODES.get(status)


def refuse(asked: Mapping[str, bool]) -> None:
    """Raises ApiError for the first field that asks for what this server cannot do."""
    for name, is_asked in asked.items():
        if is_asked:
            raise ApiError(400, f"{name}: this server cannot do that; leave it out", name, "unsupported_value")


def status_of(error: OmniError) -> int:
    """The HTTP status for an error of the package's."""
    if isinstance(error, ApiError):
        return error.status
    for kind, status in ((Overloaded, 429), (TimeLimitExceeded, 504), (ShuttingDown, 503), (WorkerFailed, 500)):
        if isinstance(error, kind):
            return status
    return 400


def error_body(error: OmniError) -> dict[str, Any]:
    """The JSON for an error. A checkpoint's folder stays private."""
    status = status_of(error)
    kind = KINDS.get(status, "invalid_request_error" if status < 500 else "server_error")
    message = str(error)
    if isinstance(error, CheckpointError):
        message = "this model cannot do that: " + message.rpartition(": ")[2]
    param, code = (error.param, error.code) if isinstance(error, ApiError) else (None, CODES.get(status))
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


def error_response(error: OmniError, headers: Mapping[str, str] | None = None) -> Response:
    """The answer to a request that failed before its answer began."""
    if isinstance(error, Overloaded):
        headers = {"Retry-After": str(error.retry_after_s)}
    if status_of(error) == 401:
        headers = {"WWW-Authenticate": "Bearer"}
    return json_response(error_body(error), status_of(error), headers)


def json_response(value: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """A JSON answer."""
    return Response(compact(value), status, headers, media_type="application/json")


def compact(value: Any) -> str:
    """JSON without spaces, in ASCII: half a surrogate in an echo must not break the answer."""
    return _ENCODER.encode(value)


def invalid(problems: Sequence[Any]) -> ApiError:
    """What pydantic found, as one line; the values themselves, which may be long or secret, are left out."""
    first = problems[0]
    if first["type"] == "json_invalid":
        return ApiError(400, "the body is not JSON", code="invalid_json")
    place = ".".join(str(part) for part in first["loc"] if part != "body")
    more = f" (and {len(problems) - 1} more problems)" if len(problems) > 1 else ""
    return ApiError(400, f"{place or 'body'}: {first['msg']}{more}"[:500], place or None, "invalid_value")


def install(app: FastAPI) -> None:
    """Answer every error in this shape."""

    @app.exception_handler(OmniError)
    async def of_ours(request: Request, error: OmniError) -> Response:
        return error_response(error)

    @app.exception_handler(RequestValidationError)
    async def of_values(request: Request, error: RequestValidationError) -> Response:
        return error_response(invalid(error.errors()))

    @app.exception_handler(HTTPException)
    async def of_routing(request: Request, error: HTTPException) -> Response:
        return error_response(ApiError(error.status_code, str(error.detail)), error.headers)

    @app.exception_handler(Exception)
    async def of_bugs(request: Request, error: Exception) -> Response:
        return error_response(ApiError(500, "the server could not finish this request"))
