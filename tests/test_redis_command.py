"""The module redis_command, run as Ansible runs it, against a real server."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any

from ports import free_port

from conftest import PROJECT, Server, load

resp = load("plugins/module_utils/resp.py")


def run(arguments: dict[str, Any], check: bool = False) -> tuple[dict[str, Any], str]:
    """Return the module's result, and all that it wrote."""
    # A stand-in for Ansible's wrapper: the utility module under its real name, arguments on standard input.
    program = (
        "import sys; sys.path.insert(0, 'tests'); from conftest import load;"
        "load('plugins/module_utils/resp.py');"
        "load('plugins/modules/redis_command.py').main()"
    )
    plain = {"_ansible_check_mode": check, "_ansible_no_log": False, "_ansible_remote_tmp": "/tmp"}
    done = subprocess.run(
        [sys.executable, "-c", program],
        input=json.dumps({"ANSIBLE_MODULE_ARGS": {**arguments, **plain}}),
        cwd=PROJECT,
        env={**os.environ, "PYTHONWARNINGS": "ignore"},
        capture_output=True,
        text=True,
        check=False,
    )
    return json.loads(done.stdout), done.stdout + done.stderr


def probe(server: Server, **changes: Any) -> dict[str, Any]:
    """Return a probe that pings the server."""
    return {"name": "p", "port": server.port, "password": server.password, "commands": [["PING"]], **changes}


def test_answers_every_command_and_hides_the_password(redis_server: Server) -> None:
    result, output = run({"probes": [probe(redis_server, commands=[["PING"], ["CONFIG", "GET", "port", "save"]])]})
    assert result["changed"] is False
    answer = result["probes"]["p"]
    assert (answer["connected"], answer["error"]) == (True, "")
    assert answer["replies"] == ["PONG", {"port": str(redis_server.port), "save": ""}]
    assert redis_server.password not in output


def test_a_refusal_is_an_answer(redis_server: Server) -> None:
    result, _ = run(
        {
            "probes": [
                probe(redis_server, name="anonymous", password=None),
                probe(redis_server, name="wrong", password="not-the-password"),
                {"name": "nobody", "port": free_port(), "commands": [["PING"]]},
            ]
        }
    )
    answers = result["probes"]
    assert answers["anonymous"]["error"].startswith("NOAUTH")
    assert "WRONGPASS" in answers["wrong"]["error"]
    assert (answers["nobody"]["connected"], answers["nobody"]["replies"]) == (False, [])


def test_strict_makes_a_refusal_a_failure(redis_server: Server) -> None:
    result, _ = run({"strict": True, "probes": [probe(redis_server, password=None)]})
    assert result["failed"]
    assert "NOAUTH" in result["msg"]


def test_plaintext_to_a_tls_port_is_refused(tls_server: Server) -> None:
    result, _ = run({"probes": [probe(tls_server, password=None)]})
    assert result["probes"]["p"]["error"]
    assert result["probes"]["p"]["replies"] == []


def test_check_mode_sends_nothing_that_changes(redis_server: Server) -> None:
    change = {"changes": True, "strict": True, "probes": [probe(redis_server, commands=[["SET", "checked", "1"]])]}
    question = {"probes": [probe(redis_server, commands=[["EXISTS", "checked"]])]}
    assert run(change, check=True)[0]["changed"] is True
    assert run(question, check=True)[0]["probes"]["p"]["replies"] == [0]
    assert run(change)[0]["changed"] is True
    assert run(question)[0]["probes"]["p"]["replies"] == [1]
