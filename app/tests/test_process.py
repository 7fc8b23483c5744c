"""The command, as a process of its own."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from conftest import HANG, Server, free_port


@contextmanager
def process(folder: Path, **env: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """Start the command; yield it and its address, once it answers."""
    port = free_port()
    started = subprocess.Popen(
        [sys.executable, "-m", "quantdesk"],
        env={"PATH": os.environ["PATH"], "STATE_DIRECTORY": str(folder), "PORT": str(port), **env},
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    address = f"http://127.0.0.1:{port}"
    try:
        deadline = time.monotonic() + HANG
        while time.monotonic() < deadline and started.poll() is None:
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.05)
        yield started, address
    finally:
        started.kill()
        started.communicate()


def refuse(folder: Path, *arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "quantdesk", *arguments],
        env={"PATH": os.environ["PATH"], "STATE_DIRECTORY": str(folder), **env},
        capture_output=True,
        text=True,
        timeout=HANG,
        check=False,
    )


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_serves_and_stops_cleanly(
    tmp_path: Path, redis_server: Server, number: signal.Signals
) -> None:
    env = {"REDIS_URL": redis_server.url, "APP_ENV": "production", "ADMIN_TOKEN": "t" * 32}
    with process(tmp_path, **env) as (app, address):
        deadline = time.monotonic() + HANG
        # The start waits for Redis, but not for long.
        while (health := httpx.get(f"{address}/health", timeout=HANG)).json()[
            "status"
        ] != "healthy":
            assert time.monotonic() < deadline, health.text
            time.sleep(0.05)
        assert health.status_code == 200
        assert health.headers.get("server") is None
        big = httpx.put(
            f"{address}/api/prices/A",
            content=b"x" * 70000,
            headers={"Authorization": "Bearer " + "t" * 32},
            timeout=HANG,
        )
        assert (big.status_code, big.json()["success"]) == (413, False)
        app.send_signal(number)
        out, err = app.communicate(timeout=HANG)
        assert app.returncode == 0
    assert out == ""
    messages = [json.loads(line)["message"] for line in err.splitlines()]
    assert messages.count("Redis connected") == 1
    assert "Redis connection failed, continuing without Redis" not in messages
    assert "t" * 32 not in err
    assert (tmp_path / "quantdesk.db").exists()


def test_prices_outlive_the_process(tmp_path: Path) -> None:
    with process(tmp_path) as (app, address):
        written = httpx.put(f"{address}/api/prices/A", json={"price": "1.50"}, timeout=HANG)
        assert written.status_code == 200
        app.kill()
    with process(tmp_path) as (_, address):
        assert httpx.get(f"{address}/api/prices/A", timeout=HANG).json() == written.json()


def test_wrong_settings_stop_the_start(tmp_path: Path) -> None:
    ended = refuse(tmp_path, PORT="no", LOG_LEVEL="loud", REDIS_URL="redis://:hunter2@h:x")
    assert ended.returncode == os.EX_CONFIG
    assert ended.stdout == ""
    lines = ended.stderr.splitlines()
    assert lines[0] == "quantdesk cannot start, 3 settings are wrong:"
    assert sorted(line.split(":")[0].strip() for line in lines[1:]) == [
        "LOG_LEVEL",
        "PORT",
        "REDIS_URL",
    ]
    assert "hunter2" not in ended.stderr


def test_check_tells_whether_settings_are_right(tmp_path: Path) -> None:
    assert refuse(tmp_path, "--check").returncode == 0
    assert refuse(tmp_path, "--check", PORT="no").returncode == os.EX_CONFIG


def test_unusable_database_stops_the_start(tmp_path: Path) -> None:
    file = tmp_path / "other.db"
    file.write_bytes(b"this is not a database " * 100)
    ended = refuse(tmp_path, DATABASE_URL=f"sqlite+aiosqlite:///{file}", PORT=str(free_port()))
    assert ended.returncode == 3
    assert "The database cannot be opened" in ended.stderr
    assert "Traceback" not in ended.stderr
