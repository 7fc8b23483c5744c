"""The admin token: who may change what concerns every user."""

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

# What every route may answer with that needs the admin token.
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
    """Let pass whoever shows the admin token; without one configured, local callers only.

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
    if not admin_token_shown(connection.scope["headers"], settings):
        raise NotAuthorizedException(
            "A valid admin token is required", headers={"WWW-Authenticate": "Bearer"}
        )


def admin_token_shown(headers: Iterable[tuple[bytes, bytes]], settings: Settings) -> bool:
    """Tell whether a request's headers hold the admin token; never, if none is configured."""
    if settings.admin_token is None:
        return False
    expected = settings.admin_token.reveal().encode()
    for name, value in headers:
        if name == b"authorization":
            scheme, _, token = value.partition(b" ")
            # In constant time, so that the time of an answer tells nothing about the token.
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
