"""The module wheelhouse builds for real, without an index: what it leaves behind, and what it refuses."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import tarfile
import zipfile
from concurrent.futures import ThreadPoolExecutor
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

from conftest import PROJECT

pytestmark = pytest.mark.slow

PYPROJECT = """\
[build-system]
requires = ["hatchling"]
build-backend = "hatchling.build"

[project]
name = "tiny"
version = "1.2.3"
requires-python = ">=3.11"

[tool.hatch.build.targets.wheel]
packages = ["src/tiny"]
"""


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A project that depends on nothing, so that its build asks nobody."""
    folder = tmp_path / "tiny"
    (folder / "src/tiny").mkdir(parents=True)
    (folder / "src/tiny/__init__.py").write_text("ANSWER = 42\n")
    (folder / "pyproject.toml").write_text(PYPROJECT)
    (folder / "requirements.txt").write_text("# Nothing is needed.\n")
    return folder


@pytest.fixture
def needed(source: Path) -> str:
    """Put a wheel where pip looks for it, and return its hash."""
    wheel = source.parent / "needed-1.0-py3-none-any.whl"
    about = "needed-1.0.dist-info"
    with zipfile.ZipFile(wheel, "w") as file:
        file.writestr(f"{about}/METADATA", "Metadata-Version: 2.1\nName: needed\nVersion: 1.0\n")
        file.writestr(
            f"{about}/WHEEL", "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        file.writestr(f"{about}/RECORD", "")
    return sha256(wheel.read_bytes()).hexdigest()


def build(source: Path, check: bool = False, python: str = "3.11.2", wheels: Path | None = None) -> dict[str, Any]:
    """Run the module as Ansible does, and return its result."""
    program = (
        "import sys; sys.path.insert(0, 'tests'); from conftest import load;"
        "load('plugins/modules/wheelhouse.py').main()"
    )
    arguments = {
        "source": str(source),
        "lock": str(source / "requirements.txt"),
        "dest": str(source.parent / "build"),
        "python": python,
        "machine": "x86_64",
        "platforms": ["manylinux_2_28_x86_64"],
        "wheels": str(wheels) if wheels else None,
        "_ansible_check_mode": check,
    }
    done = subprocess.run(
        [sys.executable, "-c", program],
        input=json.dumps({"ANSIBLE_MODULE_ARGS": arguments}),
        cwd=PROJECT,
        # An index that cannot answer: whoever asks one fails.
        env={**os.environ, "PYTHONWARNINGS": "ignore", "PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(source.parent)},
        capture_output=True,
        text=True,
        check=False,
    )
    result: dict[str, Any] = json.loads(done.stdout)
    return result


def test_builds_one_archive_with_the_wheel_and_its_requirements(source: Path) -> None:
    result = build(source)
    assert result["changed"] is True, result
    assert result["release"].startswith("1.2.3-")
    with tarfile.open(result["path"]) as tar:
        names = {Path(name).name for name in tar.getnames()}
    assert {"tiny-1.2.3-py3-none-any.whl", "requirements.txt"} <= names


def test_leaves_nothing_behind_in_the_sources_or_beside_the_archive(source: Path) -> None:
    before = sorted(source.rglob("*"))
    archive = Path(build(source)["path"])
    assert sorted(source.rglob("*")) == before
    assert list(archive.parent.iterdir()) == [archive]


def test_builds_the_same_sources_only_once(source: Path) -> None:
    first = build(source)
    written = Path(first["path"]).stat().st_mtime_ns
    second = build(source)
    assert second["changed"] is False
    assert (second["path"], second["release"]) == (first["path"], first["release"])
    assert Path(second["path"]).stat().st_mtime_ns == written


def test_hosts_that_ask_at_once_share_an_archive_for_each_python(source: Path) -> None:
    with ThreadPoolExecutor() as pool:
        results = list(pool.map(lambda python: build(source, python=python), ["3.11.2", "3.13.5", "3.11.2"]))
    assert sorted(result["changed"] for result in results) == [False, True, True], results
    assert results[0]["path"] == results[2]["path"] != results[1]["path"]
    assert {Path(result["path"]) for result in results} == set((source.parent / "build").iterdir())


def test_check_mode_announces_the_archive_and_builds_nothing(source: Path) -> None:
    announced = build(source, check=True)
    assert announced["changed"] is True
    assert not (source.parent / "build").exists()
    assert build(source)["path"] == announced["path"]
    assert build(source, check=True)["changed"] is False


def test_gathers_what_the_lock_names_by_its_hash(source: Path, needed: str) -> None:
    (source / "requirements.txt").write_text(f"needed==1.0 \\\n    --hash=sha256:{needed}\n")
    result = build(source)
    assert result["changed"] is True, result
    with tarfile.open(result["path"]) as tar:
        assert "./needed-1.0-py3-none-any.whl" in tar.getnames()


@pytest.mark.parametrize("wrong", ["", f" --hash=sha256:{'0' * 64}"], ids=["no hash", "another hash"])
def test_refuses_what_the_lock_names_without_the_right_hash(source: Path, needed: str, wrong: str) -> None:
    (source / "requirements.txt").write_text(f"needed==1.0{wrong}\n")
    result = build(source)
    assert result.get("failed"), result
    assert "hashes" in result["msg"].lower()
    assert list((source.parent / "build").iterdir()) == []


def offer(folder: Path, **files: bytes) -> Path:
    """Return a tar as a backup of a release's wheels is, with files of the caller's choice."""
    archive = folder / "offered.tar"
    with tarfile.open(archive, "w") as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
        link = tarfile.TarInfo("wheels/link-1.0-py3-none-any.whl")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link)
    return archive


def test_wheels_of_a_backup_are_taken_where_their_hashes_are_those_of_the_lock(source: Path, needed: str) -> None:
    (source / "requirements.txt").write_text(f"needed==1.0 --hash=sha256:{needed}\n")
    wheel = (source.parent / "needed-1.0-py3-none-any.whl").read_bytes()
    forged = {
        # What the archive says of itself, and the application's own wheel in it, do not count.
        "wheels/requirements.txt": b"evil==1.0\n",
        "wheels/tiny-1.2.3-py3-none-any.whl": b"forged",
        "../../../escaped-1.0-py3-none-any.whl": b"forged",
    }
    result = build(source, wheels=offer(source.parent, **forged, **{"wheels/needed-1.0-py3-none-any.whl": wheel}))
    assert result["changed"] is True, result
    with tarfile.open(result["path"]) as tar:
        contents = {member.name: tar.extractfile(member).read() for member in tar if member.isfile()}  # type: ignore[union-attr]  # these are files
    assert set(contents) == {"./needed-1.0-py3-none-any.whl", "./tiny-1.2.3-py3-none-any.whl", "./requirements.txt"}
    assert contents["./requirements.txt"] == f"needed==1.0 --hash=sha256:{needed}\n".encode()
    assert contents["./tiny-1.2.3-py3-none-any.whl"] != b"forged"
    assert not list(source.parent.parent.rglob("escaped*"))


def test_a_forged_wheel_of_a_backup_is_refused_before_there_is_an_archive(source: Path, needed: str) -> None:
    (source / "requirements.txt").write_text(f"needed==1.0 --hash=sha256:{needed}\n")
    wheel = (source.parent / "needed-1.0-py3-none-any.whl").read_bytes()
    result = build(source, wheels=offer(source.parent, **{"wheels/needed-1.0-py3-none-any.whl": wheel + b"forged"}))
    assert result.get("failed"), result
    assert "not those of the lock file" in result["msg"]
    assert list((source.parent / "build").iterdir()) == []
    # The wheel that the lock names lies where pip would look for it without a backup.
    assert build(source)["changed"] is True


def test_a_broken_build_leaves_no_archive_that_a_later_run_would_take(source: Path) -> None:
    (source / "pyproject.toml").write_text(PYPROJECT.replace("hatchling.build", "nowhere"))
    result = build(source)
    assert result.get("failed"), result
    assert list((source.parent / "build").iterdir()) == []


@pytest.mark.parametrize("content", [None, "[project]\nname = 'tiny'\n", "not toml"])
def test_a_folder_that_is_no_project_is_refused_by_the_name_of_the_variable(source: Path, content: str | None) -> None:
    if content is None:
        (source / "pyproject.toml").unlink()
    else:
        (source / "pyproject.toml").write_text(content)
    result = build(source)
    assert result["failed"]
    assert f"app_source {source} holds no project" in result["msg"]
    assert not (source.parent / "build").exists()
