"""The module that builds what a host installs from."""

from __future__ import annotations

from pathlib import Path

from conftest import load

wheelhouse = load("plugins/modules/wheelhouse.py")

LOCK = """\
# A comment of the lock.
always==1.0 \\
    --hash=sha256:aa \\
    --hash=sha256:bb
old==2.0 ; python_full_version < '3.11.3' \\
    --hash=sha256:cc
windows==3.0 ; sys_platform == 'win32' \\
    --hash=sha256:dd
arm==4.0 ; platform_machine == 'aarch64' --hash=sha256:ee
extra[fast]==5.0 --hash=sha256:ff
    # via something
"""


def requirements(python: str, machine: str) -> list[str]:
    lines: list[str] = wheelhouse.requirements_for(LOCK, python, machine).splitlines()
    return lines


def test_conditions_are_those_of_the_target_not_of_the_controller() -> None:
    names = [line.split("==")[0] for line in requirements("3.11.2", "x86_64")]
    assert names == ["always", "old", "extra[fast]"]
    assert [line.split("==")[0] for line in requirements("3.13.0", "aarch64")] == ["always", "arm", "extra[fast]"]


def test_all_hashes_stay_and_conditions_go() -> None:
    assert requirements("3.11.2", "x86_64")[:2] == [
        "always==1.0 --hash=sha256:aa --hash=sha256:bb",
        "old==2.0 --hash=sha256:cc",
    ]


def test_the_name_changes_with_sources_lock_and_target_and_with_nothing_else(tmp_path: Path) -> None:
    source = tmp_path / "app"
    (source / "src").mkdir(parents=True)
    (source / "src" / "a.py").write_text("A = 1\n")
    lock = source / "requirements.txt"
    lock.write_text(LOCK)

    def name(*target: str) -> str:
        fingerprint: str = wheelhouse.fingerprint(source, lock, list(target or ("3.11.2", "x86_64")))
        return fingerprint

    first = name()
    for ignored in ("tests/test_a.py", "src/__pycache__/a.pyc", ".git/config", "dist/a.whl", "a.egg-info/PKG-INFO"):
        (source / ignored).parent.mkdir(parents=True, exist_ok=True)
        (source / ignored).write_text("anything")
    assert name() == first
    assert name("3.12.0", "x86_64") != first
    (source / "src" / "a.py").write_text("A = 2\n")
    second = name()
    assert second != first
    lock.write_text(LOCK.replace("==1.0", "==1.1"))
    assert name() not in (first, second)
