"""What the roles' look.sh tell of a run that was cut off before a service took over what it wrote."""

from __future__ import annotations

import os
import subprocess
import time
from pathlib import Path

import pytest

from conftest import PROJECT

# Answers `systemctl show … StateChangeTimestamp`.
SYSTEMCTL = "#!/bin/sh\necho @{at}\n"
KEYS = """# managed
restrict,from="10.0.0.1,10.0.0.0/8" ssh-ed25519 AAAA1 databackup@app1
restrict ssh-ed25519 AAAA2 databackup@redis1
"""


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


@pytest.mark.parametrize(("age", "stale"), [(60, []), (-60, ["stale=yes"])], ids=["read", "written since"])
def test_the_vault_tells_who_may_come_in_and_whether_sshd_has_read_its_file(
    tmp_path: Path, age: int, stale: list[str]
) -> None:
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/systemctl").write_text(SYSTEMCTL.format(at=int(time.time())))
    (tmp_path / "bin/systemctl").chmod(0o755)
    (tmp_path / "sshd_config.d").mkdir()
    file = tmp_path / "sshd_config.d/backup-vault.conf"
    file.write_text("")
    os.utime(file, (time.time() - age,) * 2)
    (tmp_path / "keys").write_text(KEYS)
    lines = look("roles/backup_vault/files/look.sh", tmp_path, "nobody", "/srv", "none", str(tmp_path / "keys"))
    assert [line for line in lines if line.startswith("granted=")] == [
        "granted=ssh-ed25519 AAAA1 databackup@app1",
        "granted=ssh-ed25519 AAAA2 databackup@redis1",
    ]
    assert [line for line in lines if line.startswith("stale=")] == stale


def test_a_bare_vault_tells_nothing_of_it(tmp_path: Path) -> None:
    lines = look("roles/backup_vault/files/look.sh", tmp_path, "nobody", "/srv", "none", str(tmp_path / "keys"))
    assert not [line for line in lines if line.startswith(("granted=", "stale="))]


def test_a_host_tells_where_its_backups_go(tmp_path: Path) -> None:
    (tmp_path / "ssh").mkdir()
    (tmp_path / "ssh/known_hosts").write_text("# managed\n10.0.0.51 ssh-ed25519 AAAA\n[::1]:2222 ssh-ed25519 BBBB\n")
    lines = look("roles/backup/files/look.sh", tmp_path, str(tmp_path), str(tmp_path))
    known = [line for line in lines if line.startswith("known=")]
    assert known == ["known=10.0.0.51 ssh-ed25519 AAAA", "known=[::1]:2222 ssh-ed25519 BBBB"]
