"""The admin token: permission to change what affects every user."""

import ipaddress
import secrets
from collections.abc import Iterable
from typing import Any, Final

from litestar.connection import ASGIConnection
from litestar.exceptions import NotAuthorizedException, PermissionDeniedException
from litestar.handlers import BaseRouteHandler

from quantdesk.services import Services
from quantdesk.settings import Settings
from quantdesk.web.errors import LIMIT_ERRORS, error_spec

# Errors of every route that needs the admin token.
ADMIN_ERRORS: Final = {
    401: error_spec("The token is missing or wrong"),
    403: error_spec(
        "No token is configured and the caller is not local, or is a page of another origin"
    ),
    **LIMIT_ERRORS,
}


def require_admin(
    connection: ASGIConnection[Any, Any, Any, Any], handler: BaseRouteHandler
) -> None:
    """Permit requests with the admin token; if none is configured, of local callers only.

    Raises:
        NotAuthorizedException: the token is missing or wrong (401).
        PermissionDeniedException: none is configured, and the caller is not local or this is
            production (403).
    """
    services: Services = connection.app.state.services
    settings: Settings = services.settings
    if settings.admin_token is None:
        if settings.production or not _is_local(connection):
            raise PermissionDeniedException("No admin token is configured")
        return
    if not has_admin_token(connection.scope["headers"], settings):
        raise NotAuthorizedException(
            "A valid admin token is required", headers={"WWW-Authenticate": "Bearer"}
        )


def has_admin_token(headers: Iterable[tuple[bytes, bytes]], settings: Settings) -> bool:
    """Tell whether a request's headers hold the admin token; false if none is configured."""
    if settings.admin_token is None:
        return False
    expected = settings.admin_token.reveal().encode()
    for name, value in headers:
        if name == b"authorization":
            scheme, _, token = value.partition(b" ")
            # In constant time, so that the time of an answer reveals nothing about the token.
            return scheme.lower() == b"bearer" and secrets.compare_digest(token.strip(), expected)
    return False


def _is_local(connection: ASGIConnection[Any, Any, Any, Any]) -> bool:
    # Behind a proxy on this host every caller seems local.
    if {"forwarded", "x-forwarded-for", "x-real-ip"} & set(connection.headers.keys()):
        return False
    if connection.client is None:
        return False
    try:
        return ipaddress.ip_address(connection.client.host).is_loopback
    except ValueError:
        return False
