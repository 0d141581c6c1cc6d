"""Errors of the service as JSON, {"error": ...}: their statuses, and their place in the OpenAPI document."""

from __future__ import annotations

import logging
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.routing import Match, Route

from balancer.errors import InputError
from balancer.names import quoted
from balancer.serving.errors import ConflictError, EncodingError, MissingError, TooLargeError
from balancer.serving.http.logs import LOGGER
from balancer.serving.http.schemas import Problem
from balancer.serving.http.validation import sentence_of
from balancer.serving.storage.database import DiskFullError, UnavailableError

LOG = logging.getLogger(LOGGER)
_DESCRIPTIONS = {
    400: "The request is malformed.",
    401: "The key is missing, wrong or revoked.",
    403: "The key lacks the scope.",
    404: "The object does not exist, or belongs to another tenant.",
    409: "The request contradicts stored data.",
    413: "The request has too many bytes or rows.",
    422: "A value in the request can't be used; the error names it.",
    429: "Too many requests.",
    503: "No model is in service, or the database is unavailable; send the same request again.",
}
_NO_ROUTE = {404: "Not Found", 405: "Method Not Allowed"}
_METHODS = ("DELETE", "GET", "PATCH", "POST", "PUT")
_STATUSES = {EncodingError: 400, MissingError: 404, ConflictError: 409, TooLargeError: 413}


def problem_responses(*further: int) -> dict[int | str, dict[str, Any]]:
    """Return the error responses of a route for OpenAPI; `further` are statuses besides the usual ones."""
    statuses = (401, 403, 413, 422, 429, 503, *further)
    # FastAPI makes a validator of each model that it is given, which takes time; the first one brings the
    # schema into the document, and the others refer to it.
    named = {"content": {"application/json": {"schema": {"$ref": f"#/components/schemas/{Problem.__name__}"}}}}
    found: dict[int | str, dict[str, Any]] = {400: {"model": Problem, "description": _DESCRIPTIONS[400]}}
    return found | {status: {"description": _DESCRIPTIONS[status], **named} for status in statuses}


def status_of(error: InputError) -> int:
    """The HTTP status of an error in a request; 422 where no other one fits."""
    return next((status for kind, status in _STATUSES.items() if isinstance(error, kind)), 422)


def add_error_handlers(app: FastAPI) -> None:
    """Make the application answer every error as {"error": ...}."""

    def problem(status: int, error: str, headers: dict[str, str] | None = None) -> JSONResponse:
        return JSONResponse({"error": error}, status, headers)

    @app.exception_handler(InputError)
    def bad_input(_: Request, error: InputError) -> JSONResponse:
        return problem(status_of(error), str(error))

    @app.exception_handler(UnavailableError)
    def unavailable(_: Request, error: UnavailableError) -> JSONResponse:
        if isinstance(error, DiskFullError):
            LOG.exception("the disk of the database is full")
        return problem(503, f"{error}; send the same request again", {"Retry-After": "1"})

    @app.exception_handler(RequestValidationError)
    def invalid(_: Request, error: RequestValidationError) -> JSONResponse:
        return problem(422, sentence_of(error.errors()[0]))

    @app.exception_handler(HTTPException)
    def refused(request: Request, error: HTTPException) -> JSONResponse:
        headers, detail = dict(error.headers or {}), str(error.detail)
        if detail == _NO_ROUTE.get(error.status_code):  # of the router, which knows no remedy
            methods = sorted(method for method in _METHODS if _answers(app, request, method))
            detail = "there is no such route; /docs lists all routes"
            if methods:
                headers["Allow"] = ", ".join(methods)
                detail = f"the route does not take the method {quoted(request.method)}; use {' or '.join(methods)}"
        return problem(error.status_code, detail, headers)


def _answers(app: FastAPI, request: Request, method: str) -> bool:
    """Whether a route answers the path of a request with another method."""
    scope = {**request.scope, "method": method}
    return any(isinstance(route, Route) and route.matches(scope)[0] == Match.FULL for route in app.routes)
