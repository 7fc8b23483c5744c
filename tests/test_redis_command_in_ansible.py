"""The module redis_command through Ansible itself: its wrapper, its masking of secrets, its check mode."""

from __future__ import annotations

from typing import Any

import pytest

from conftest import Server, ansible_plays


def probe(server: Server, *command: str, **changes: Any) -> dict[str, Any]:
    """Return a probe that authenticates, over TLS where the server speaks it."""
    secured = {"ca_file": server.ca_file} if server.ca_file else {}
    return {
        "name": "p",
        "port": server.port,
        "password": server.password,
        "commands": [list(command)],
        **secured,
        **changes,
    }


def ask(check: bool = False, **arguments: Any) -> dict[str, Any]:
    """Return a play that runs the module."""
    return {"tasks": [{"name": "Ask", "quantdesk.redis.redis_command": arguments, "check_mode": check}]}


@pytest.fixture(scope="module")
def asked(
    redis_server: Server, tls_server: Server, foreign_ca: str, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, tuple[bool, str]]:
    """Whether the module went well, and the most talkative output, one after the other."""
    wrong = probe(redis_server, "PING", name="wrong", password="an-utterly-wrong-one")
    write = probe(redis_server, "SET", "touched", "1")
    question = probe(redis_server, "EVAL", "return 'touched=' .. redis.call('EXISTS', KEYS[1])", "1", "touched")
    secured = [probe(tls_server, "ECHO", "verified"), probe(tls_server, "PING", name="foreign", ca_file=foreign_ca)]
    transaction = [["MULTI"], ["SET", "text", "x"], ["INCR", "text"], ["EXEC"]]
    plays = {
        "passwords": ask(probes=[probe(redis_server, "PING"), wrong]),
        "strict": ask(strict=True, probes=[probe(redis_server, "PING", password=None, name="stranger")]),
        "predicted": ask(check=True, changes=True, probes=[write]),
        "before": ask(probes=[question]),
        "written": ask(changes=True, probes=[write]),
        "after": ask(probes=[question]),
        "TLS": ask(probes=secured),
        "transaction": ask(probes=[probe(redis_server, commands=transaction)]),
    }
    return ansible_plays(tmp_path_factory.mktemp("asked"), plays, "-vvvv")


def test_a_password_is_masked_even_in_the_most_talkative_output(
    asked: dict[str, tuple[bool, str]], redis_server: Server
) -> None:
    well, output = asked["passwords"]
    assert well, output
    assert "PONG" in output
    assert "WRONGPASS" in output
    for _, any_output in asked.values():
        assert redis_server.password not in any_output
        assert "an-utterly-wrong-one" not in any_output


def test_strict_ends_the_task_and_names_the_probe(asked: dict[str, tuple[bool, str]]) -> None:
    well, output = asked["strict"]
    assert not well
    assert "stranger: NOAUTH" in output


def test_check_mode_does_not_touch_the_server(asked: dict[str, tuple[bool, str]]) -> None:
    well, output = asked["predicted"]
    assert well, output
    assert '"changed": true' in output or "changed: true" in output
    assert "touched=0" in asked["before"][1]
    assert asked["written"][0]
    assert "touched=1" in asked["after"][1]


def test_asks_over_tls_and_refuses_an_authority_that_it_does_not_know(asked: dict[str, tuple[bool, str]]) -> None:
    well, output = asked["TLS"]
    assert well, output
    assert "verified" in output
    assert "CERTIFICATE_VERIFY_FAILED" in output
    assert "PONG" not in output


def test_an_error_within_a_list_of_replies_is_readable(asked: dict[str, tuple[bool, str]]) -> None:
    well, output = asked["transaction"]
    assert well, output
    assert "error: ERR value is not an integer" in output
