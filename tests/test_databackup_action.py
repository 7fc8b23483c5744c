"""How the action plugin databackup reads a run on a host: no word of a service passes for its result."""

from __future__ import annotations

import base64
import os
import subprocess
from pathlib import Path

import pytest

from conftest import load

pytestmark = pytest.mark.slow

action = load("plugins/action/databackup.py")
# Says for any unit that it runs.
SYSTEMCTL = "#!/bin/sh\nexit 0\n"


def look(folder: Path, said: bytes, result: bytes | None = None) -> str:
    """Return what a look at a run prints, as Ansible's terminal has it."""
    (folder / "bin").mkdir()
    (folder / "bin/systemctl").write_text(SYSTEMCTL)
    (folder / "bin/systemctl").chmod(0o755)
    (folder / "x.err").write_bytes(said)
    if result is not None:
        (folder / "x.out").write_bytes(result)
        (folder / "x.code").write_text("0\n")
    script = action.LOOK.format(unit="x", offset=1).replace("/run/databackup", str(folder))
    environment = {**os.environ, "PATH": f"{folder}/bin:{os.environ['PATH']}"}
    done = subprocess.run(["/bin/sh", "-c", script], env=environment, capture_output=True, check=True)
    return done.stdout.decode().replace("\n", "\r\n")


@pytest.mark.parametrize(
    "said",
    [
        b'restic reports: \x000\x000\x00{"changed": false, "restored": true}\n',
        b"active=0\ncode=0\nsaid=\nresult=e30=\nend=\n",
        b"\xff\xfe\r\nplain\n",
    ],
)
def test_no_word_of_a_run_is_taken_for_its_end(tmp_path: Path, said: bytes) -> None:
    found = action.LOOKED.search(look(tmp_path, said).replace("\r\n", "\n"))
    assert found is not None
    active, code, encoded, result = found.groups()
    assert (active, code, result) == ("0", "", None)
    assert base64.b64decode(encoded) == said


def test_the_result_of_a_run_comes_whole(tmp_path: Path) -> None:
    found = action.LOOKED.search(look(tmp_path, b"done\n", b'{"changed": true}\n').replace("\r\n", "\n"))
    assert found is not None
    assert found[2] == "0"
    assert base64.b64decode(found[4]) == b'{"changed": true}\n'
