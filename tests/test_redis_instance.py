"""The module redis_instance against real servers: what a step that fails leaves, and check mode.

That all steps together converge a host is what the scenarios show: there is no systemd here.
"""

from __future__ import annotations

import contextlib
import gc
import io
import json
import warnings
from typing import Any

from ansible.module_utils.testing import patch_module_args
from test_redis_users import ADMIN, APP, Host, down, up, users

from conftest import load

redis_instance = load("plugins/modules/redis_instance.py")

__all__ = ["down", "up"]


def arguments(host: Host, directives: dict[str, Any], app: str = APP) -> dict[str, Any]:
    """Return the module's arguments."""
    return {
        "users": {"path": str(host.file), "users": users(app=app)},
        "directives": {"path": f"{host.folder}/redis.conf", "directives": directives},
        "files": [{"path": f"{host.folder}/sub/note", "content": "a\n", "owner": "root", "group": "root"}],
        "unit": {"unit": "redis-none.service"},
        "server": {"port": host.port},
        "logins": [{"username": "admin", "password": ADMIN}],
        "server_binary": host.binary,
    }


def run(words: dict[str, Any], check: bool = False) -> dict[str, Any]:
    """Return the module's result; no output may hold a password."""
    plain = {"_ansible_check_mode": check, "_ansible_no_log": False, "_ansible_remote_tmp": "/tmp"}
    printed = io.StringIO()
    with warnings.catch_warnings():
        # The module leaves a connection to the end of its process.
        warnings.simplefilter("ignore", ResourceWarning)
        with (
            patch_module_args({**words, **plain}),
            contextlib.redirect_stdout(printed),
            contextlib.suppress(SystemExit),
        ):
            redis_instance.main()
        gc.collect()
    for item in words["users"]["users"]:
        assert item["password"] not in printed.getvalue()
    result: dict[str, Any] = json.loads(printed.getvalue())
    return result


def test_check_mode_says_what_each_step_would_do(up: Host) -> None:
    text, acl = (up.folder / "redis.conf").read_text(), up.ask("ACL", "LIST")
    result = run(arguments(up, {"maxmemory": "32mb"}, app="another-secret-0123456789"), check=True)
    assert result["changed"], result
    assert result["users"]["updated"] == ["app"]
    assert result["directives"]["applied"] == ["maxmemory"]
    assert result["files"]["written"] == [f"{up.folder}/sub/note"]
    assert {diff["before_header"] for diff in result["diff"]} >= {f"{up.folder}/redis.conf", f"{up.folder}/sub/note"}
    assert ((up.folder / "redis.conf").read_text(), up.ask("ACL", "LIST")) == (text, acl)
    assert not (up.folder / "sub").exists()


def test_a_step_that_fails_names_what_was_changed_before(up: Host) -> None:
    app, text = "another-secret-0123456789", (up.folder / "redis.conf").read_text()
    result = run(arguments(up, {"maxmemory": "much"}, app=app))
    assert result["failed"]
    assert result["changed"]
    assert "maxmemory" in result["msg"]
    assert result["msg"].endswith("Before that, these were changed as declared: users.")
    assert "Nothing was changed" not in result["msg"]
    assert (up.folder / "redis.conf").read_text() == text
    assert up.ask("PING", user="app", password=app) == "PONG"
    assert not (up.folder / "sub").exists()


def test_a_first_step_that_fails_has_changed_nothing(up: Host) -> None:
    words, text = arguments(up, {"maxmemory": "32mb"}), (up.folder / "redis.conf").read_text()
    words["users"]["users"][1]["rules"] = "+nonsense"
    result = run(words)
    assert result["failed"]
    assert result["msg"].endswith("Nothing was changed.")
    assert (up.folder / "redis.conf").read_text() == text
    assert up.ask("CONFIG", "GET", "maxmemory") != ["maxmemory", str(32 * 1024**2)]
