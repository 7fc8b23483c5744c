"""The application as its users see it, with Redis and without."""

from __future__ import annotations

import json
import time
import urllib.error
import urllib.request
from typing import Any

from testinfra.host import Host

from conftest import assert_confined, eventually, published

# Published on loopback of this machine.
BASE = f"http://127.0.0.1:{published(3002)}"


def ask(path: str, method: str = "GET", body: Any = None, token: str | None = None) -> tuple[int, dict[str, str], Any]:
    """Return status, headers and JSON body of an answer; errors are answers."""
    request = urllib.request.Request(BASE + path, method=method)
    request.add_header("Content-Type", "application/json")
    if token:
        request.add_header("Authorization", f"Bearer {token}")
    data = None if body is None else json.dumps(body).encode()
    try:
        with urllib.request.urlopen(request, data, timeout=5) as answer:
            return answer.status, dict(answer.headers), json.loads(answer.read())
    except urllib.error.HTTPError as error:
        return error.code, dict(error.headers), json.loads(error.read())


def test_is_healthy_through_the_published_port() -> None:
    status, _, body = ask("/health")
    assert status == 200
    assert (body["status"], body["redis"]["status"], body["redis"]["available"]) == ("healthy", "healthy", True)
    assert ask("/api/redis/health")[0] == 200


def test_a_price_is_read_from_the_database_once_and_then_from_redis(admin_token: str) -> None:
    assert ask("/api/prices/BTC-USD", "PUT", {"price": "64250.10"}, admin_token)[0] == 200
    answers = [ask("/api/prices/BTC-USD") for _ in range(2)]
    assert [answer[0] for answer in answers] == [200, 200]
    assert [{key.lower(): value for key, value in answer[1].items()}["x-cache"] for answer in answers] == [
        "MISS",
        "HIT",
    ]
    assert answers[1][2]["data"]["price"] == "64250.10"


def test_nobody_writes_a_price_without_the_token() -> None:
    assert ask("/api/prices/BTC-USD", "PUT", {"price": "1"})[0] in (401, 403)
    assert ask("/api/prices/BTC-USD", "PUT", {"price": "1"}, "not-the-token-of-this-lab")[0] in (401, 403)
    assert ask("/api/redis/clear", "POST", {"pattern": "*"})[0] in (401, 403)


def test_goes_on_without_redis_and_recovers_by_itself(redis1: Host, app1: Host, admin_token: str) -> None:
    since = app1.check_output("date '+%Y-%m-%d %H:%M:%S'")
    time.sleep(1)
    assert ask("/api/prices/ETH-USD", "PUT", {"price": "3100"}, admin_token)[0] == 200
    redis1.check_output("systemctl stop redis-server")
    try:
        status, _, body = eventually(lambda: ask("/health"), lambda answer: answer[2]["status"] == "degraded")
        assert (status, body["status"], body["redis"]["available"]) == (200, "degraded", False)
        assert ask("/api/redis/health")[0] == 503
        status, headers, body = ask("/api/prices/ETH-USD")
        assert (status, {k.lower(): v for k, v in headers.items()}["x-cache"]) == (200, "BYPASS")
        assert body["data"]["price"] == "3100"
        assert ask("/api/prices/ETH-USD", "PUT", {"price": "3200"}, admin_token)[0] == 200
    finally:
        redis1.check_output("systemctl start redis-server")
    assert eventually(lambda: ask("/api/redis/health")[0], lambda status: status == 200, 5) == 200
    assert ask("/health")[2]["status"] == "healthy"
    # What was written meanwhile is what is read now.
    assert ask("/api/prices/ETH-USD")[2]["data"]["price"] == "3200"
    journal = app1.check_output("journalctl --unit quantdesk@3002 --no-pager --output cat --since %s", since)
    assert journal.count("Redis connection failed, continuing without Redis") == 1
    assert journal.count("Redis connected") == 1


def test_the_unit_is_enabled_and_confined(app1: Host) -> None:
    assert_confined(app1, "quantdesk@3002", "quantdesk", exposure=20)


def test_its_secrets_are_in_a_file_that_only_it_reads(app1: Host) -> None:
    environment = app1.file("/etc/quantdesk/quantdesk.env")
    assert (environment.mode, environment.user, environment.group) == (0o640, "root", "quantdesk")
    assert app1.run("runuser -u nobody -- cat /etc/quantdesk/quantdesk.env").rc != 0


def test_no_secret_is_in_a_process_or_the_journal(app1: Host, admin_token: str) -> None:
    # Read as files, so that the search itself does not carry the token in its arguments.
    everything = app1.check_output("cat /proc/[0-9]*/cmdline | tr '\\0' ' '; journalctl --no-pager --quiet")
    assert len(everything) > 1000
    assert admin_token not in everything


def test_it_needed_no_package_index(app1: Host) -> None:
    # Everything came from the wheelhouse: pip has no cache and no index was ever asked.
    assert app1.check_output(
        "/opt/quantdesk/current/venv/bin/python -c 'import quantdesk, sys; print(sys.prefix)'"
    ).startswith("/opt/quantdesk/")
    assert not app1.file("/root/.cache/pip/http-v2").exists


def test_a_killed_process_is_back_within_seconds(app1: Host) -> None:
    app1.check_output("systemctl kill --signal KILL quantdesk@3002")

    def status() -> int:
        try:
            return ask("/health")[0]
        except OSError:
            return 0

    assert eventually(status, lambda answer: answer == 200) == 200
