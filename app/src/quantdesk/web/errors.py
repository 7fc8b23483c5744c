"""Errors as callers see them: one JSON shape, without internals."""

import logging
from http import HTTPStatus
from typing import Any, Final

import msgspec
from litestar import Request, Response
from litestar.exceptions import HTTPException, ValidationException
from litestar.openapi.datastructures import ResponseSpec
from sqlalchemy.exc import SQLAlchemyError

from quantdesk.redis.errors import RedisRefused, RedisUnavailable

log = logging.getLogger(__name__)

AnyRequest = Request[Any, Any, Any]

_CODES: Final = {
    400: "bad_request",
    401: "unauthorized",
    403: "forbidden",
    404: "not_found",
    405: "method_not_allowed",
    408: "request_timeout",
    409: "conflict",
    413: "payload_too_large",
    415: "unsupported_media_type",
    422: "unprocessable",
    429: "too_many_requests",
    503: "unavailable",
}


class ErrorDetail(msgspec.Struct, frozen=True):
    """`code` is for programs, `message` for people."""

    code: str
    message: str


class ErrorBody(msgspec.Struct, frozen=True, kw_only=True):
    """The body of every error."""

    success: bool = False
    error: ErrorDetail


def error_spec(description: str) -> ResponseSpec:
    """Describe an error that a route answers with."""
    return ResponseSpec(ErrorBody, generate_examples=False, description=description)


# Errors of every route with a limit, of those that query the database, of those that change
# something, and of those that read a body.
LIMIT_ERRORS: Final = {429: error_spec("The client's rate limit is used up")}
COMMON_ERRORS: Final = {**LIMIT_ERRORS, 503: error_spec("The database is not available")}
ORIGIN_ERRORS: Final = {403: error_spec("The request is of a page of another origin")}
BODY_ERRORS: Final = {
    **ORIGIN_ERRORS,
    400: error_spec("The body is not JSON"),
    408: error_spec("The body did not arrive in time"),
    413: error_spec("The body is too large"),
    415: error_spec("The body is not declared to be application/json"),
}


class Unprocessable(HTTPException):
    """The request is well formed, but not acceptable (422)."""

    status_code = 422


class TooManyRequests(HTTPException):
    """The client's rate limit is used up (429)."""

    status_code = 429
    detail = "The rate limit is used up; Retry-After says for how many seconds"


def handle_error(request: AnyRequest, error: Exception) -> Response[bytes]:
    """Turn an exception of a handler into a response."""
    status, body = answer_to(error, request.method)
    headers = dict(error.headers or {}) if isinstance(error, HTTPException) else {}
    return Response(body, status_code=status, headers=headers, media_type="application/json")


def answer_to(error: Exception, method: str) -> tuple[int, bytes]:
    """Return the status and body of an error; log an error of the server."""
    match error:
        case ValidationException():
            status, message = 422, error.detail
        case HTTPException() if error.status_code < 500:
            status, message = error.status_code, error.detail
        case SQLAlchemyError() | OSError() | TimeoutError():
            status, message = 503, "The database is not available"
            log.error("Database failed", extra={"reason": type(error).__name__})
        case RedisUnavailable() | RedisRefused():
            status, message = 503, "Redis is not available"
        case _:
            status, message = 500, "Internal server error"
            log.error("Request failed", exc_info=error, extra={"method": method})
    code = _CODES.get(status) or HTTPStatus(status).name.lower()
    return status, msgspec.json.encode(ErrorBody(error=ErrorDetail(code, message)))
