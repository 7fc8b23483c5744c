"""Serve one of the applications that ours is compared with, by uvicorn as ours is.

python serve.py MODULE PORT
"""

from __future__ import annotations

import importlib
import sys

import uvicorn

if __name__ == "__main__":
    uvicorn.run(
        importlib.import_module(sys.argv[1]).app,
        host="127.0.0.1",
        port=int(sys.argv[2]),
        loop="uvloop",
        http="httptools",
        log_level="warning",
        access_log=False,
        server_header=False,
        proxy_headers=False,
    )
