"""Request bodies: reading them strictly, and describing them in OpenAPI."""

import asyncio
from dataclasses import dataclass
from typing import Final, TypeVar

import msgspec
from litestar.exceptions import ClientException, HTTPException, InternalServerException
from litestar.openapi.spec import OpenAPIMediaType, Operation, RequestBody, Schema

from quantdesk.errors import AnyRequest, Unprocessable

# Bytes.
MAX_BODY: Final = 64 * 1024
# Seconds that a client has to send a body.
BODY_TIMEOUT: Final = 10.0

T = TypeVar("T")


async def decode_body(request: AnyRequest, decoder: msgspec.json.Decoder[T]) -> T:
    """Decode the request's JSON body; an empty body counts as an empty object.

    Raises:
        ClientException: the body is not JSON, or did not arrive whole (400).
        HTTPException: it did not arrive in time (408).
        RequestEntityTooLarge: it is larger than MAX_BODY (413).
        Unprocessable: it is JSON of another form than expected (422).
    """
    try:
        async with asyncio.timeout(BODY_TIMEOUT):
            body = await request.body() or b"{}"
    except InternalServerException:
        raise ClientException("The body did not arrive whole") from None
    except TimeoutError:
        # Nor is the rest waited for, with which the connection could be held on to.
        raise HTTPException(
            "The body did not arrive in time", status_code=408, headers={"Connection": "close"}
        ) from None
    try:
        # As text, so that what a decoder keeps raw is known to be UTF-8 too.
        return decoder.decode(body.decode())
    except msgspec.ValidationError as error:
        raise Unprocessable(str(error)) from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise ClientException("The body is not valid JSON") from None


def describe_body(schema: Schema, *, required: bool = True) -> type[Operation]:
    """Return the operation class of a route that decodes a body of this schema itself."""

    @dataclass
    class Described(Operation):
        def __post_init__(self) -> None:
            content = {"application/json": OpenAPIMediaType(schema=schema)}
            self.request_body = RequestBody(content=content, required=required)

    return Described
