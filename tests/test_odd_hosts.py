"""Modules on hosts that others set up: a locale that is not UTF-8, and a login whose files are for itself alone."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from conftest import PROJECT, ansible_module, ansible_plays, load, server_command

# ASCII, which is even narrower than ISO-8859-1: Python would take C for C.UTF-8.
ASCII = {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}


def test_a_redis_conf_with_letters_that_the_locale_does_not_have(tmp_path: Path) -> None:
    conf = tmp_path / "redis.conf"
    text = f"# 5 € a month, café\nport 0\nunixsocket {tmp_path}/s\ndir {tmp_path}\n"
    conf.write_bytes(text.encode() + b"# in Latin-1: caf\xe9\n")
    arguments = {
        "path": str(conf),
        "directives": {"maxmemory": "5mb"},
        "server_binary": server_command(tmp_path),
        "server": {"port": 9},
    }
    plays = {
        "redis_config": {"environment": ASCII, "tasks": [{"name": "Merge", "quantdesk.redis.redis_config": arguments}]},
        "write_files": {
            "environment": ASCII,
            "tasks": [
                {
                    "name": "Write",
                    "quantdesk.redis.write_files": {
                        "files": [{"path": f"{tmp_path}/euro", "content": "5 €\n", "mode": "0600"}]
                    },
                }
            ],
        },
    }
    for name, (well, output) in ansible_plays(tmp_path, plays).items():
        assert well, f"{name}: {output}"
    assert conf.read_bytes() == text.encode() + b"# in Latin-1: caf\xe9\nmaxmemory 5mb\n"
    assert (tmp_path / "euro").read_text(encoding="utf-8") == "5 €\n"


def test_a_folder_that_a_module_makes_is_for_all_whatever_the_umask(tmp_path: Path) -> None:
    before = os.umask(0o077)
    try:
        code, output = ansible_module(
            "quantdesk.redis.write_files", {"files": [{"path": f"{tmp_path}/made/file", "content": "x\n"}]}
        )
    finally:
        os.umask(before)
    assert code == 0, output
    assert (tmp_path / "made").stat().st_mode & 0o777 == 0o755


def test_a_release_that_only_root_can_enter_is_installed_again(tmp_path: Path) -> None:
    for name in ("nftables", "processes", "listeners", "app_units"):
        load(f"plugins/module_utils/{name}.py")
    installed = load("plugins/modules/app_deployment.py").installed
    release = tmp_path / "release"
    (release / "venv/bin").mkdir(parents=True)
    (release / "venv/lib").mkdir()
    assert not installed(str(release))
    (release / "installed").touch()
    # Without a Python it would not start.
    assert not installed(str(release))
    (release / "venv/bin/python").symlink_to(sys.executable)
    assert installed(str(release))
    (release / "venv/bin").chmod(0o700)
    assert not installed(str(release))


def test_nothing_is_run_from_a_folder_that_may_be_mounted_noexec() -> None:
    # Of itself the module makes its folders in /tmp.
    places = [*PROJECT.glob("roles/*/tasks/*.yml"), *PROJECT.glob("playbooks/**/*.yml")]
    assert [path.name for path in places if "ansible.builtin.tempfile" in path.read_text()] == []
