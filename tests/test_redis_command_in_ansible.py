"""The module redis_command through Ansible itself: its wrapper, its masking of secrets, its check mode."""

from __future__ import annotations

from typing import Any

from conftest import Server, ansible_module


def ask(*options: str, **arguments: Any) -> tuple[int, str]:
    """Run the module on this machine, and return the exit code and all output."""
    return ansible_module("redis_command", arguments, *options)


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


def test_a_password_is_masked_even_in_the_most_talkative_output(redis_server: Server) -> None:
    wrong = probe(redis_server, "PING", name="wrong", password="an-utterly-wrong-one")
    code, output = ask("-vvvv", probes=[probe(redis_server, "PING"), wrong])
    assert code == 0, output
    assert "PONG" in output
    assert "WRONGPASS" in output
    assert redis_server.password not in output
    assert "an-utterly-wrong-one" not in output


def test_strict_ends_the_task_and_names_the_probe(redis_server: Server) -> None:
    code, output = ask(strict=True, probes=[probe(redis_server, "PING", password=None, name="stranger")])
    assert code != 0
    assert "stranger: NOAUTH" in output


def test_check_mode_does_not_touch_the_server(redis_server: Server) -> None:
    code, output = ask("--check", changes=True, probes=[probe(redis_server, "SET", "touched", "1")])
    assert code == 0
    assert '"changed": true' in output or "changed: true" in output
    question = ["EVAL", "return 'touched=' .. redis.call('EXISTS', KEYS[1])", "1", "touched"]
    assert "touched=0" in ask(probes=[probe(redis_server, *question)])[1]
    assert ask(changes=True, probes=[probe(redis_server, "SET", "touched", "1")])[0] == 0
    assert "touched=1" in ask(probes=[probe(redis_server, *question)])[1]


def test_asks_over_tls_and_refuses_an_authority_that_it_does_not_know(tls_server: Server, foreign_ca: str) -> None:
    own = probe(tls_server, "ECHO", "verified")
    code, output = ask(probes=[own, probe(tls_server, "PING", name="foreign", ca_file=foreign_ca)])
    assert code == 0
    assert "verified" in output
    assert "CERTIFICATE_VERIFY_FAILED" in output
    assert "PONG" not in output


def test_an_error_within_a_list_of_replies_is_readable(redis_server: Server) -> None:
    transaction = [["MULTI"], ["SET", "text", "x"], ["INCR", "text"], ["EXEC"]]
    code, output = ask(probes=[probe(redis_server, commands=transaction)])
    assert code == 0, output
    assert "error: ERR value is not an integer" in output
