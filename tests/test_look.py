"""What the roles' look.sh tell of a run that was cut off before a service took over what it wrote."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

from conftest import PROJECT


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
    (tmp_path / "ssh/known_hosts").write_text("# managed\n10.0.0.51 ssh-ed25519 AAAA\n[::1]:2222 ssh-ed25519 BBBB\n")
    lines = look("roles/backup/files/look.sh", tmp_path, str(tmp_path), str(tmp_path))
    known = [line for line in lines if line.startswith("known=")]
    assert known == ["known=10.0.0.51 ssh-ed25519 AAAA", "known=[::1]:2222 ssh-ed25519 BBBB"]


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
