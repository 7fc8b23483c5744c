"""What root does in a folder that Redis may write: it follows no name there, and runs nothing of what is written there.

Each test plays a Redis that was broken into, and has put something in the place of a file of its own.
"""

from __future__ import annotations

import json
import os
import shutil
import stat
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from conftest import ansible_module, load, server_command

files = load("plugins/module_utils/redis_files.py")

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="root is whom the tests are about")
SECRET = "root:$y$j9T$what-only-root-may-read"
# Any user that is not root stands for Redis'.
USER = "nobody"
ADMIN = "admin-secret-0123456789"


@pytest.fixture
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that Redis' user owns, and can get to."""
    folder = tmp_path_factory.mktemp("redis")
    shutil.chown(folder, USER)
    return folder


@pytest.fixture
def victim(tmp_path: Path) -> Path:
    """A file that root alone may read."""
    file = tmp_path / "shadow"
    file.write_text(f"{SECRET}\n")
    file.chmod(0o600)
    return file


def users(folder: Path, binary: str) -> tuple[str, dict[str, Any]]:
    declared = [{"name": "admin", "password": ADMIN, "rules": "~* &* +@all"}]
    return "quantdesk.redis.redis_users", {
        "path": str(folder / "users.acl"),
        "users": declared,
        "server_binary": binary,
        "owner": USER,
        "mode": "0600",
    }


def config(folder: Path, binary: str) -> tuple[str, dict[str, Any]]:
    return "quantdesk.redis.redis_config", {
        "path": str(folder / "redis.conf"),
        "directives": {"maxmemory": "10mb"},
        "server_binary": binary,
        "owner": USER,
        "mode": "0600",
    }


def link(place: Path, victim: Path) -> None:
    place.symlink_to(victim)


def hard_link(place: Path, victim: Path) -> None:
    os.link(victim, place)


@pytest.mark.parametrize("put", [link, hard_link])
@pytest.mark.parametrize("module", [users, config])
def test_another_file_in_the_place_of_one_is_refused_by_name(
    folder: Path,
    victim: Path,
    tmp_path: Path,
    module: Callable[[Path, str], tuple[str, dict[str, Any]]],
    put: Callable[[Path, Path], None],
) -> None:
    name, arguments = module(folder, server_command(tmp_path))
    put(Path(arguments["path"]), victim)
    code, output = ansible_module(name, arguments, "-vvvv", "--diff")
    found = victim.stat()
    assert (found.st_uid, stat.S_IMODE(found.st_mode), victim.read_text()) == (0, 0o600, f"{SECRET}\n")
    assert SECRET not in output
    assert code != 0, output
    said = " ".join(output.split())
    assert arguments["path"] in said
    assert "found a link to" in said or "found a file with 2 names" in said
    assert "expected a plain file with one name" in said
    assert {path.name for path in folder.iterdir()} == {Path(arguments["path"]).name}


@pytest.mark.parametrize("kind", ["pipe", "folder"])
def test_what_is_no_file_neither_blocks_a_run_nor_is_replaced(folder: Path, tmp_path: Path, kind: str) -> None:
    name, arguments = config(folder, server_command(tmp_path))
    place = Path(arguments["path"])
    if kind == "pipe":
        os.mkfifo(place)
    else:
        place.mkdir()
    code, output = ansible_module(name, arguments)
    assert code != 0
    assert "expected a plain file with one name" in " ".join(output.split())


def test_an_included_file_is_read_with_the_rights_of_redis(folder: Path, victim: Path, tmp_path: Path) -> None:
    name, arguments = config(folder, server_command(tmp_path))
    Path(arguments["path"]).write_text(f"include {victim}\n")
    code, output = ansible_module(name, arguments, "-vvvv", "--diff")
    assert code != 0
    assert "Permission denied" in output
    assert SECRET not in output


@pytest.mark.skipif(shutil.which("gcc") is None, reason="makes a module of Redis")
@pytest.mark.parametrize("through", ["itself", "an included file", "another spelling"])
def test_a_trial_runs_no_module_that_redis_has_written(folder: Path, tmp_path: Path, through: str) -> None:
    traces = folder / "ran-as"
    (tmp_path / "module.c").write_text(
        "#include <stdio.h>\n#include <unistd.h>\n__attribute__((constructor)) static void run(void)"
        f' {{ FILE *f = fopen("{traces}", "w"); if (f) {{ fprintf(f, "%d", geteuid()); fclose(f); }} }}\n'
    )
    module = folder / "module.so"
    subprocess.run(["gcc", "-shared", "-fPIC", "-o", module, tmp_path / "module.c"], check=True)
    # Of the user, as a Redis that was broken into would have written it.
    shutil.chown(module, USER)
    name, arguments = config(folder, server_command(folder))
    line = f'"load\\x6dodule" {module}\n' if through == "another spelling" else f"loadmodule {module}\n"
    if through == "an included file":
        (folder / "more.conf").write_text(line)
        shutil.chown(folder / "more.conf", USER)
        line = f"include {folder}/more.conf\n"
    Path(arguments["path"]).write_text(line)
    # All of the way there is open to the user, as in a folder below /var/lib.
    for parent in list(folder.parents)[:-2]:
        parent.chmod(0o755)
    code, output = ansible_module(name, arguments)
    assert not traces.exists(), f"ran as user {traces.read_text()}"
    assert code == 0, output


def test_a_trial_does_not_need_the_folder_that_its_user_will_have(folder: Path, tmp_path: Path) -> None:
    name, arguments = config(folder, server_command(folder))
    for parent in list(folder.parents)[:-2]:
        parent.chmod(0o755)
    # Of somebody else until systemd starts the unit, as that of an instance of an earlier version.
    tmp_path.chmod(0o700)
    Path(arguments["path"]).write_text(f"dir {tmp_path}\nlogfile {tmp_path}/log\n")
    code, output = ansible_module(name, arguments)
    assert code == 0, output
    Path(arguments["path"]).write_text("maxclients none\n")
    assert "Redis does not start on this configuration" in ansible_module(name, arguments)[1]


def test_a_file_that_comes_into_the_place_of_a_new_one_gets_neither_its_owner_nor_its_mode(
    folder: Path, victim: Path
) -> None:
    def swap(handle: int) -> None:
        (new,) = folder.iterdir()
        new.rename(folder / "elsewhere")
        new.symlink_to(victim)
        files.Ownership.of({"owner": USER, "mode": "0644"}).apply(handle)

    candidate = files.Candidate(str(folder / "redis.conf"), "port 0\n", swap)
    candidate.replace()
    candidate.discard()
    found = victim.stat()
    assert (found.st_uid, stat.S_IMODE(found.st_mode)) == (0, 0o600)


def test_a_file_that_is_replaced_is_kept_with_its_owner_and_not_for_others(folder: Path) -> None:
    place = folder / "users.acl"
    place.write_text("before\n")
    shutil.chown(place, USER)
    place.chmod(0o644)
    candidate = files.Candidate(str(place), "after\n", files.Ownership(mode=0o600).apply)
    kept = Path(str(candidate.replace()))
    candidate.discard()
    assert (place.read_text(), kept.read_text()) == ("after\n", "before\n")
    assert kept == folder / "users.acl.previous"
    assert (kept.owner(), stat.S_IMODE(kept.stat().st_mode)) == (USER, 0o640)
    assert kept.stat().st_nlink == place.stat().st_nlink == 1
    assert {path.name for path in folder.iterdir()} == {"users.acl", "users.acl.previous"}


def test_write_files_replaces_a_link_and_leaves_what_it_leads_to(folder: Path, victim: Path) -> None:
    place = folder / "unit"
    place.symlink_to(victim)
    arguments = {"files": [{"path": str(place), "content": "new\n", "mode": "0644"}]}
    code, output = ansible_module("quantdesk.redis.write_files", arguments, "--diff")
    assert code == 0, output
    assert (place.is_symlink(), place.read_text(), victim.read_text()) == (False, "new\n", f"{SECRET}\n")
    assert SECRET not in output
    assert "changed: false" in ansible_module("quantdesk.redis.write_files", arguments)[1]


def test_the_end_of_a_log_is_not_read_through_a_link(folder: Path, victim: Path) -> None:
    service = load("plugins/module_utils/redis_unit.py")
    (folder / "redis.log").symlink_to(victim)
    assert SECRET not in service.evidence({"unit": "none.service", "log_file": str(folder / "redis.log")})


def test_secrets_are_not_looked_for_through_a_link(folder: Path, victim: Path) -> None:
    (folder / "users.acl").symlink_to(victim)
    arguments = {"secrets": {"root": SECRET}, "files": [str(folder / "users.acl")]}
    code, output = ansible_module("quantdesk.redis.find_secrets", arguments)
    assert code == 0, output
    assert "users.acl" not in json.dumps(output).split("invocation")[0]
