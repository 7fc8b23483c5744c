"""PostgreSQL as its clients see it: who gets in, and how."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest
from testinfra.host import Host

from conftest import ADDRESSES, LAB, connect, playbook, secret

ADDRESS = ADDRESSES["db1"]
# Runs with what the application itself connects with; the password comes by standard input.
LOGIN = """
import asyncio, ssl, sys, asyncpg
async def main():
    tls = ssl.create_default_context(cafile="/etc/ssl/quantdesk/ca.crt") if sys.argv[1] == "tls" else False
    try:
        connection = await asyncpg.connect(host=sys.argv[5], user=sys.argv[2], password=sys.stdin.readline().strip(),
                                           database=sys.argv[3], ssl=tls, timeout=5)
        print("ok", await connection.fetchval(sys.argv[4]))
    except (OSError, asyncpg.PostgresError) as error:
        print(type(error).__name__, error)
asyncio.run(main())
"""


def login(way: str, user: str, password: str, question: str = "SELECT 1", database: str = "quantdesk") -> str:
    """Log in from an application host, ask something, and return the answer or the refusal."""
    words = ["/opt/quantdesk/current/venv/bin/python", "-c", LOGIN, way, user, database, question, ADDRESS]
    quoted = " ".join("'" + word.replace("'", "'\\''") + "'" for word in words)
    done = subprocess.run(
        ["ssh", "-F", LAB / "ssh/config", "app1", f"sudo {quoted}"],
        input=password + "\n",
        capture_output=True,
        text=True,
        check=False,
        timeout=30,
    )
    return (done.stdout + done.stderr).strip()


@pytest.fixture(scope="module")
def password() -> str:
    """The password of the application's user."""
    return secret("database_password")


def test_lets_the_application_in_over_tls(password: str) -> None:
    assert login("tls", "quantdesk", password) == "ok 1"
    assert login("tls", "quantdesk", password, "SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()") == "ok True"


def test_refuses_plaintext(password: str) -> None:
    assert "no encryption" in login("plaintext", "quantdesk", password)


def test_refuses_a_wrong_password() -> None:
    assert "InvalidPasswordError" in login("tls", "quantdesk", "not-the-password-of-this-lab")


@pytest.mark.parametrize(("user", "database"), [("postgres", "postgres"), ("quantdesk", "postgres")])
def test_refuses_other_users_and_other_databases(password: str, user: str, database: str) -> None:
    assert "no pg_hba.conf entry" in login("tls", user, password, database=database)


@pytest.mark.parametrize(
    "statement",
    [
        "CREATE ROLE somebody",
        "CREATE DATABASE somewhere",
        "COPY prices TO PROGRAM 'true'",
        "SELECT pg_read_file('/etc/passwd')",
        "ALTER SYSTEM SET ssl = off",
        "SELECT rolpassword FROM pg_authid",
    ],
)
def test_the_owner_of_the_database_is_nobody_beyond_it(password: str, statement: str) -> None:
    assert "InsufficientPrivilegeError" in login("tls", "quantdesk", password, statement)


@pytest.mark.parametrize(
    ("user", "role", "database", "answer"),
    [
        ("databackup-postgresql", "quantdesk", "quantdesk", "quantdesk|off"),
        ("databackup-postgresql", "quantdesk", "postgres", "Peer authentication failed"),
        ("databackup-postgresql", "postgres", "quantdesk", "Peer authentication failed"),
        ("nobody", "quantdesk", "quantdesk", "Peer authentication failed"),
    ],
)
def test_backups_log_in_as_the_owner_and_as_nobody_else(user: str, role: str, database: str, answer: str) -> None:
    question = "SELECT session_user, current_setting('is_superuser')"
    words = f'psql -X -qAt -h /var/run/postgresql -U {role} -d {database} -c "{question}"'
    done = connect("db1").run(f"cd / && runuser -u {user} -- {words}")
    assert answer in done.stdout + done.stderr


def test_the_server_runs_without_root_and_starts_again() -> None:
    db1: Host = connect("db1")
    for restarted in (False, True):
        if restarted:
            db1.check_output("systemctl restart postgresql@15-main")
        process = db1.check_output("systemctl show --property MainPID --value postgresql@15-main")
        status = db1.check_output(f"cat /proc/{process}/status")
        assert "NoNewPrivs:\t1" in status
        assert "Seccomp:\t2" in status
        assert status.count("0000000000000000\n") >= 5
        # The group of the key came with the user.
        assert login("tls", "quantdesk", secret("database_password")) == "ok 1"


def test_verify_names_what_backups_or_the_role_may_beyond_their_own(tmp_path: Path) -> None:
    db1: Host = connect("db1")
    ask = 'cd / && runuser -u postgres -- psql -X -q -v ON_ERROR_STOP=1 -c "{}"'
    ident = "/etc/postgresql/15/main/pg_ident.conf"
    report = tmp_path / "verify.json"
    db1.check_output(f"cp -a {ident} /root/ && echo 'databackup nobody quantdesk' >> {ident}")
    try:
        db1.check_output("systemctl reload postgresql@15-main")
        db1.check_output(ask.format("GRANT pg_read_server_files TO quantdesk"))
        db1.check_output(ask.format("GRANT CREATE ON SCHEMA public TO PUBLIC"))
        playbook("verify.yml", "--limit", "db1", "-e", f"verify_report={report}")
    finally:
        db1.check_output(ask.format("REVOKE CREATE ON SCHEMA public FROM PUBLIC"))
        db1.check_output(ask.format("REVOKE pg_read_server_files FROM quantdesk"))
        db1.check_output(f"mv /root/pg_ident.conf {ident} && systemctl reload postgresql@15-main")
    failed = [check["control"] for check in json.loads(report.read_text())["checks"] if check["verdict"] == "FAILED"]
    assert sorted(failed) == [[47], [48], [49]]


@pytest.mark.parametrize("name", ["outsider", "lb1", "redis1"])
def test_a_stranger_times_out(name: str) -> None:
    knock = f"python3 -c \"import socket; socket.create_connection(('{ADDRESS}', 5432), 1.5)\""
    assert "TimeoutError" in connect(name).run(knock).stderr


def test_the_password_is_stored_and_written_nowhere_in_clear(password: str) -> None:
    db1: Host = connect("db1")
    stored = db1.check_output("cd / && runuser -u postgres -- psql -qAt -c 'SELECT rolpassword FROM pg_authid'")
    assert "SCRAM-SHA-256$" in stored
    # Read as files, so that the search itself does not carry the password in its arguments.
    read = "cat /proc/[0-9]*/cmdline | tr '\\0' ' '; journalctl --no-pager --quiet"
    for host in (db1, connect("app1"), connect("app2")):
        everything = host.check_output(f"{read}; cat /var/log/postgresql/*.log 2>/dev/null || true")
        assert len(everything) > 1000
        assert password not in everything
        assert secret("admin_token") not in everything
