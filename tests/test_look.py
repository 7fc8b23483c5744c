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
    values = {"limit_upload": 0, "location": "sftp:backup@10.0.0.51:/repository", "options": ["sftp.command=ssh"]}
    (tmp_path / "repository.json").write_text(json.dumps(values, indent=4))
    (tmp_path / "ssh/known_hosts").write_text("# managed\n10.0.0.51 ssh-ed25519 AAAA\n[::1]:2222 ssh-ed25519 BBBB\n")
    lines = look("roles/backup/files/look.sh", tmp_path, str(tmp_path), str(tmp_path))
    known = [line for line in lines if line.startswith("known=")]
    assert known == ["known=10.0.0.51 ssh-ed25519 AAAA", "known=[::1]:2222 ssh-ed25519 BBBB"]
    assert "location=sftp:backup@10.0.0.51:/repository" in lines
