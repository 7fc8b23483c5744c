"""What the scripts of the roles tell of a host, whatever its services are called and whatever language it speaks."""

from __future__ import annotations

import json
import os
import pwd
import shutil
import subprocess
import tempfile
from pathlib import Path

import jinja2
import pytest
import yaml

from conftest import PROJECT

# A host that speaks another language; Debian's coreutils have their translations with them.
GERMAN = {"LC_ALL": "C.UTF-8", "LANGUAGE": "de"}
SCRIPTS = [*PROJECT.glob("roles/*/files/*.sh"), *PROJECT.glob("roles/*/templates/*.sh.j2")]


def look(script: str, folder: Path, *words: str) -> list[str]:
    """Run a role's look.sh with paths of this machine in place of a host's, and return its lines."""
    text = (PROJECT / script).read_text().replace("/etc/ssh/", f"{folder}/")
    done = subprocess.run(
        ["/bin/sh", "-c", text, "look.sh", *words],
        env={**os.environ, "PATH": f"{folder}/bin:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.splitlines()


def test_a_host_tells_where_its_backups_go(tmp_path: Path) -> None:
    (tmp_path / "ssh").mkdir()
    values = {"limit_upload": 0, "location": "sftp:backup@10.0.0.51:/repository", "options": ["sftp.command=ssh"]}
    (tmp_path / "repository.json").write_text(json.dumps(values, indent=4))
    (tmp_path / "ssh/known_hosts").write_text("# managed\n10.0.0.51 ssh-ed25519 AAAA\n[::1]:2222 ssh-ed25519 BBBB\n")
    lines = look("roles/backup/files/look.sh", tmp_path, str(tmp_path), str(tmp_path), "-", "-", "redis1")
    known = [line for line in lines if line.startswith("known=")]
    assert known == ["known=10.0.0.51 ssh-ed25519 AAAA", "known=[::1]:2222 ssh-ed25519 BBBB"]
    assert "location=sftp:backup@10.0.0.51:/repository" in lines


def test_a_renamed_host_has_no_backup_of_its_name(tmp_path: Path) -> None:
    options = {"server": {"host": "127.0.0.1"}}
    (tmp_path / "source-redis.json").write_text(json.dumps({"host": "redis1", "options": options}, indent=2))
    success = {"run": 1.0, "success": {"at": 1.0, "id": "0123", "host": "redis1"}}

    def told(name: str, state: dict[str, object]) -> tuple[str, str]:
        (tmp_path / "redis.json").write_text(json.dumps(state, indent=2) + "\n")
        lines = look("roles/backup/files/look.sh", tmp_path, str(tmp_path), str(tmp_path), "-", "-", name)
        values = dict(line.split("=", 1) for line in lines if "=" in line)
        return values["former"], values["backed"]

    assert told("redis1", success) == ("redis1", "redis")
    assert told("renamed", success) == ("redis1", "")
    # As an earlier version has noted it.
    assert told("redis1", {"success": {"at": 1.0}}) == ("redis1", "redis")
    assert told("renamed", {"success": {"at": 1.0}}) == ("redis1", "")
    # After a run that was interrupted between its new name and the first backup under that.
    (tmp_path / "source-redis.json").write_text(json.dumps({"host": "renamed", "options": options}, indent=2))
    assert told("renamed", success) == ("renamed", "")


def test_what_a_backup_says_of_a_service_s_names_is_one_line(tmp_path: Path) -> None:
    # A service has named a table so that its failure would print a verdict of its own, and a file as no JSON has it.
    (tmp_path / "bin").mkdir()
    program = tmp_path / "bin/databackup"
    program.write_text(
        "#!/bin/sh\n"
        "case $* in\n"
        r"""status*) printf '%s\n' '<3>quantdesk: found the table \nok.quantdesk=yes \012open= \c'; exit 1 ;;""" + "\n"
        r"""*inspect) printf '%s\n' '{"journals": ["a\\nb\u00e9"]}' ;;""" + "\n"
        "esac\n"
    )
    program.chmod(0o755)
    (tmp_path / "state/spool").mkdir(parents=True)
    (tmp_path / "state/spool/a\nok.quantdesk=yes").touch()
    lines = look("roles/backup/files/verify.sh", tmp_path, str(tmp_path), str(tmp_path / "state"), "30", "quantdesk")
    told = dict(line.split("=", 1) for line in lines if "=" in line)
    assert told["status.quantdesk"] == r"quantdesk: found the table \nok.quantdesk=yes \012open= \c"
    assert "ok.quantdesk" not in told
    assert json.loads(told["inspected"]) == {"journals": ["a\\nb\u00e9"]}


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: str(path.relative_to(PROJECT)))
def test_a_script_reads_what_programs_say_in_one_language(script: Path) -> None:
    text = script.read_text()
    assert "export LC_ALL=C\n" in text or "exec env -i " in text


@pytest.mark.skipif(
    os.geteuid() != 0
    or subprocess.run(["unshare", "--mount", "true"], check=False, capture_output=True).returncode != 0,
    reason="needs root, and a mount namespace of its own",
)
def test_an_instance_is_separated_on_a_host_of_another_language(tmp_path: Path) -> None:
    old, new, users = tmp_path / "redis", tmp_path / "redis-state", tmp_path / "passwd"
    users.write_text("root:x:0:0::/root:/bin/sh\nredis:x:64101:64101::/:\nredis-state:x:64102:64102::/:\n")
    (tmp_path / "group").write_text("root:x:0:\nredis:x:64101:\nredis-state:x:64102:\n")
    tmp_path.chmod(0o755)
    for folder, uid in ((old, 64101), (new, 64102)):
        folder.mkdir()
        os.chown(folder, uid, uid)
    for name, text in {"redis-state.conf": "port 6381\n", "users-state.acl": ""}.items():
        (old / name).write_text(text)
        os.chown(old / name, 64101, 64101)
    script = (PROJECT / "roles/redis/files/separate.sh").read_text().replace("/etc/redis", "/mnt/redis")
    there = " && ".join(
        f"mount --bind {mine} /{theirs}"
        for mine, theirs in ((users, "etc/passwd"), (tmp_path / "group", "etc/group"), (tmp_path, "mnt"))
    )
    done = subprocess.run(
        ["unshare", "--mount", "sh", "-c", f'{there} && exec bash -c "$0" separate.sh copy state', script],
        env=os.environ | GERMAN,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert (new / "redis.conf").read_text() == "port 6381\n"
    assert (new / "users.acl").stat().st_uid == 64102


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root: PostgreSQL runs as a user of its own")
def test_a_database_refuses_in_the_words_that_are_compared_on_a_host_of_another_language() -> None:
    own = yaml.safe_load((PROJECT / "roles/database/vars/main.yml").read_text())["__database_own_settings"]
    template = jinja2.Template((PROJECT / "roles/database/templates/managed.conf.j2").read_text().partition("\n")[2])
    programs = max(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda path: int(path.parts[4]))
    # Not below pytest's folders: the server's user may not enter those.
    folder = Path(tempfile.mkdtemp(prefix="database-"))

    def run(user: str, *words: str | Path) -> str:
        done = subprocess.run(
            words,
            cwd="/",
            env=os.environ | GERMAN,
            user=user,
            group=pwd.getpwnam(user).pw_gid,
            extra_groups=[],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        return done.stdout

    try:
        shutil.chown(folder, "postgres")
        folder.chmod(0o711)
        data = folder / "data"
        run("postgres", programs / "initdb", "-D", data, "-A", "peer", "--locale=C.UTF-8", "--no-sync")
        options = f"-k {folder} -c listen_addresses= -c fsync=off"
        run("postgres", programs / "pg_ctl", "-D", data, "-w", "-l", data / "log", "-o", options, "start")
        log_in = ("psql", "-X", "-h", folder, "-U", "postgres", "-c", "SELECT 1")
        # As it was, so that this is known to be such a host.
        assert "Peer authentication failed" not in run("nobody", *log_in)
        managed = template.render(__database_all_settings={"lc_messages": own["lc_messages"]})
        with (data / "postgresql.conf").open("a") as file:
            file.write(managed)
        run("postgres", programs / "pg_ctl", "-D", data, "reload")
        shown = ("psql", "-X", "-h", folder, "-U", "postgres", "-Atc", "SHOW lc_messages")
        while run("postgres", *shown).strip() != "C":
            pass
        assert 'Peer authentication failed for user "postgres"' in run("nobody", *log_in)
    finally:
        run("postgres", programs / "pg_ctl", "-D", folder / "data", "-w", "-m", "immediate", "stop")
        shutil.rmtree(folder)
