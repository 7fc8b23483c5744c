"""The program databackup as it comes to a host: one file, the same wherever it is built, sent where it differs."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from conftest import PROJECT, ansible, load

pytestmark = pytest.mark.slow
lookup = load("plugins/lookup/databackup_program.py")


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("program") / "databackup"
    path.write_bytes(lookup.build())
    return path


def run(*words: str | Path) -> subprocess.CompletedProcess[str]:
    """Run Python without what this environment has installed."""
    return subprocess.run([sys.executable, "-Xutf8", "-I", "-S", *words], capture_output=True, text=True, check=False)


def test_the_same_sources_make_the_same_bytes_elsewhere(program: Path, tmp_path: Path) -> None:
    elsewhere = tmp_path / "sources"
    shutil.copytree(lookup.SOURCES, elsewhere, ignore=shutil.ignore_patterns("__pycache__"))
    for path in elsewhere.rglob("*.py"):
        os.utime(path, (0, 0))
        path.chmod(0o600)
    assert lookup.build(elsewhere) == program.read_bytes()
    (elsewhere / "databackup/errors.py").write_text("# another one\n")
    assert lookup.build(elsewhere) != program.read_bytes()


def test_it_holds_the_whole_package_and_nothing_else(program: Path) -> None:
    with zipfile.ZipFile(program) as archive:
        names = archive.namelist()
    package = PROJECT / "databackup/src/databackup"
    wanted = [path.relative_to(package.parent).as_posix() for path in package.rglob("*.py")]
    assert names == ["__main__.py", *sorted(wanted, key=Path)]


def test_it_says_the_version_that_the_controller_expects(program: Path, tmp_path: Path) -> None:
    done = run(program, "--version")
    assert (done.returncode, done.stdout) == (0, lookup.version(program.read_bytes()) + "\n")
    # A byte that somebody changed is another version.
    changed = tmp_path / "databackup"
    changed.write_bytes(program.read_bytes().replace(b"there is no source", b"there is no Source"))
    assert run(changed, "--version").stdout not in ("", done.stdout)


def test_it_ends_with_the_code_of_its_command(program: Path, tmp_path: Path) -> None:
    done = run(program, "--config", str(tmp_path), "status", "redis")
    assert done.returncode == 1
    assert "there is no source 'redis' on this host" in done.stderr
    assert run(program, "no-such-command").returncode == 2


def test_nothing_is_read_from_it_after_its_start(program: Path) -> None:
    # A playbook may put another version in its place while a backup or a restore goes on.
    code = (
        "import pkgutil, sys; sys.path.insert(0, sys.argv[1]); import databackup.cli;"
        "names = [module.name for module in pkgutil.walk_packages(databackup.__path__, 'databackup.')];"
        "print([name for name in names if name not in sys.modules], len(names) > 20)"
    )
    done = run("-c", code, program)
    assert (done.stdout, done.stderr) == ("['databackup.__main__'] True\n", "")


@pytest.mark.skipif(os.geteuid() != 0, reason="the role gives the program to root")
def test_a_run_replaces_an_earlier_version_and_changes_nothing_after_it(tmp_path: Path) -> None:
    """The role's own tasks, with paths of a test in place of the host's."""
    command, library = tmp_path / "sbin/databackup", tmp_path / "lib/databackup"
    former = [library / "__main__.py", library / "kinds.py", library / "__pycache__/kinds.cpython-311.pyc"]
    kept = library / "run.properties"
    for path in (command, kept, *former):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("#!/usr/bin/python3\n")
    role = PROJECT / "roles/backup"
    play = {
        "name": "Install",
        "hosts": "localhost",
        "gather_facts": False,
        "vars": {"__backup_packages": []},
        "vars_files": [f"{role}/defaults/main.yml", f"{role}/vars/main.yml"],
    }

    def played(*tasks: str, check: bool = False) -> str:
        file = tmp_path / "play.yml"
        imports = [
            {"ansible.builtin.import_tasks": f"{role}/tasks/{name}.yml"} for name in tasks or ("look", "program")
        ]
        file.write_text(json.dumps([{**play, "tasks": imports}]))
        paths = f"__backup_command={command} __backup_library={library} role_path={role} ansible_become=false"
        code, output = ansible("ansible-playbook", "-e", paths, *(["--check"] if check else []), file)
        assert code == 0, output
        return output

    before = command.read_text()
    # As where roles/redis takes a server over: this role has not looked at the host.
    assert "changed=2" in played("program", check=True)
    assert command.read_text() == before
    assert all(path.exists() for path in former)
    assert "changed=2" in played()
    assert command.read_bytes() == lookup.build()
    assert command.stat().st_mode & 0o7777 == 0o755
    assert list(library.iterdir()) == [kept]
    told = played()
    assert "changed=0" in told
    assert "skipped=2" in told
    # What somebody has changed is put right.
    command.chmod(0o700)
    assert "changed=1" in played()
    assert command.stat().st_mode & 0o7777 == 0o755
