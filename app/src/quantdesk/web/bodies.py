"""Request bodies: reading them strictly, and describing them in OpenAPI."""

import asyncio
import json
from dataclasses import dataclass
from typing import Final, TypeVar

import msgspec
from litestar.exceptions import ClientException, HTTPException, InternalServerException
from litestar.openapi.spec import OpenAPIMediaType, Operation, RequestBody, Schema

from quantdesk.web.errors import AnyRequest, Unprocessable

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
        Unprocessable: it is JSON of another form than expected, or names a field twice (422).
    """
    try:
        async with asyncio.timeout(BODY_TIMEOUT):
            body = await request.body() or b"{}"
    except InternalServerException:
        raise ClientException("The body did not arrive whole") from None
    except TimeoutError:
        # The rest is not waited for either: it could hold the connection open.
        raise HTTPException(
            "The body did not arrive in time", status_code=408, headers={"Connection": "close"}
        ) from None
    try:
        # As text, so that what a decoder keeps raw is known to be UTF-8 too.
        text = body.decode()
        decoded = decoder.decode(text)
        _duplicates.decode(text)
    except msgspec.ValidationError as error:
        raise Unprocessable(str(error)) from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise ClientException("The body is not valid JSON") from None
    return decoded


def _refuse_duplicates(fields: list[tuple[str, object]]) -> None:
    # A proxy or a log on the way might use the other of the two.
    if len({name for name, _ in fields}) < len(fields):
        raise Unprocessable("A field occurs twice")


# It checks nothing else: the decoder has accepted the text, and numbers stay as written.
_duplicates: Final = json.JSONDecoder(
    object_pairs_hook=_refuse_duplicates, parse_int=str, parse_float=str
)


def describe_body(schema: Schema, *, required: bool = True) -> type[Operation]:
    """Return the operation class of a route that decodes a body of this schema itself."""

    @dataclass
    class Described(Operation):
        def __post_init__(self) -> None:
            content = {"application/json": OpenAPIMediaType(schema=schema)}
            self.request_body = RequestBody(content=content, required=required)

    return Described
