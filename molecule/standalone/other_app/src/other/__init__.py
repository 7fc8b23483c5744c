"""An application that has nothing to do with QuantDesk, to prove that the role `app` does not know it."""

import http.server
import os


def main() -> None:
    """Serve an empty folder on loopback at PORT."""
    http.server.ThreadingHTTPServer(
        ("127.0.0.1", int(os.environ["PORT"])), http.server.SimpleHTTPRequestHandler
    ).serve_forever()
