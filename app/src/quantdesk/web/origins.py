"""Requests that a foreign page makes a browser send: refused before anything is done for them."""

from collections.abc import Iterable
from typing import Final

from litestar.exceptions import HTTPException, PermissionDeniedException

from quantdesk.settings import Settings

# Methods that change nothing are permitted from anywhere: a foreign page cannot read the answers.
SAFE: Final = frozenset({"GET", "HEAD", "OPTIONS"})
_PORTS: Final = {"http": ":80", "https": ":443"}


class UnsupportedMediaType(HTTPException):
    """The body is not declared to be JSON (415)."""

    status_code = 415
    detail = "The Content-Type must be application/json"


class Origins:
    """Tells requests of the application's own pages and of programs from those of other pages.

    A browser names the page of a request in Origin and Sec-Fetch-Site, and sends no
    application/json for a foreign page without a preflight. Programs send neither header.
    """

    def __init__(self, settings: Settings) -> None:
        self._declared = frozenset(settings.allowed_origins)
        self._schemes = ("https",) if settings.production else ("http", "https")

    def check(self, headers: Iterable[tuple[bytes, bytes]], *, body: bool) -> HTTPException | None:
        """Return the refusal of a request, None for one that may pass.

        `body` is whether it has to be declared as JSON even where it has none.
        """
        found: dict[bytes, list[str]] = {}
        for name, value in headers:
            found.setdefault(name, []).append(value.decode("latin-1").strip())
        if not self._own(found):
            return PermissionDeniedException("The request comes from a page of another origin")
        if body or b"transfer-encoding" in found or found.get(b"content-length", ["0"]) != ["0"]:
            kind = found.get(b"content-type", [""])
            if len(kind) > 1 or kind[0].partition(";")[0].strip().lower() != "application/json":
                return UnsupportedMediaType()
        return None

    def _own(self, headers: dict[bytes, list[str]]) -> bool:
        origins = headers.get(b"origin", [])
        if len(origins) == 1 and origins[0].lower() in self._declared:
            return True
        sites = headers.get(b"sec-fetch-site", [])
        if not all(site in ("same-origin", "none") for site in sites):
            return False
        hosts = headers.get(b"host", [])
        return not origins or (
            len(origins) == len(hosts) == 1 and self._same(origins[0].lower(), hosts[0].lower())
        )

    def _same(self, origin: str, host: str) -> bool:
        """Tell whether a page's origin is the host that the request is for."""
        scheme, _, place = origin.partition("://")
        if scheme not in self._schemes or not place:
            return False
        port = _PORTS[scheme]
        return place.removesuffix(port) == host.removesuffix(port)
