"""The action plugin `packages` with a real apt, in folders of its own: locks, sources that fail, refusals."""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from ports import free_port

from conftest import PROJECT, ansible_plays, load

apt_state = load("plugins/module_utils/apt_state.py")
# ansible.builtin.apt looks for its Python binding there.
BINDING = subprocess.run(["/usr/bin/python3", "-c", "import apt"], capture_output=True, check=False).returncode == 0
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not BINDING, reason="python3-apt is not there: requirements/install test"),
]
# Ends when another process, which outlives it, holds the lock.
LOCK = """
import fcntl, os, sys, time
path, seconds = sys.argv[1:]
told, tell = os.pipe()
if os.fork():
    os.read(told, 1)
    os._exit(0)
os.setsid()
for stream in range(3):
    os.dup2(os.open(os.devnull, os.O_RDWR), stream)
lock = open(path, "wb")
fcntl.lockf(lock, fcntl.LOCK_EX)
os.write(tell, b"x")
time.sleep(float(seconds))
"""


class Root:
    """Where an apt of its own keeps all that it has; its repository has the package `wanted`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        for name in (
            *("var/lib/dpkg/info", "var/lib/dpkg/updates", "var/lib/dpkg/triggers", "var/lib/apt/lists/partial"),
            *("var/cache/apt/archives/partial", "etc/apt/sources.list.d", "etc/apt/preferences.d", "repository"),
            *("etc/apt/trusted.gpg.d", "etc/apt/apt.conf.d", "var/log/apt", "wanted/DEBIAN"),
        ):
            (folder / name).mkdir(parents=True)
        (folder / "var/lib/dpkg/status").touch()
        control = "Package: wanted\nVersion: 1\nArchitecture: all\nMaintainer: nobody\nDescription: wanted\n"
        (folder / "wanted/DEBIAN/control").write_text(control)
        package = folder / "repository/wanted.deb"
        subprocess.run(["dpkg-deb", "--build", folder / "wanted", package], check=True, capture_output=True)
        content = package.read_bytes()
        (folder / "repository/Packages").write_text(
            f"{control}Filename: ./wanted.deb\nSize: {len(content)}\nSHA256: {hashlib.sha256(content).hexdigest()}\n"
        )
        self.source("own", f"file:{folder}/repository")
        self.config = folder / "apt.conf"
        self.config.write_text(
            f'Dir "{folder}"; Dir::State::status "{folder}/var/lib/dpkg/status";'
            f'Dir::Bin::methods "/usr/lib/apt/methods";'
            f'APT::Sandbox::User "root"; Acquire::http::Proxy::127.0.0.1 "DIRECT";'
            f'DPkg::Options {{ "--root={folder}"; "--force-not-root"; "--force-bad-path"; "--log=/dev/null"; }};\n'
        )

    def source(self, name: str, uri: str) -> None:
        """Add a source that need not be signed."""
        (self.folder / f"etc/apt/sources.list.d/{name}.list").write_text(f"deb [trusted=yes] {uri} ./\n")

    def lock(self, seconds: float) -> dict[str, Any]:
        """Return a task that has another process hold dpkg's lock for some seconds."""
        path = str(self.folder / "var/lib/dpkg/lock-frontend")
        return {"name": "Lock", "ansible.builtin.command": {"argv": [sys.executable, "-c", LOCK, path, str(seconds)]}}

    @property
    def installed(self) -> bool:
        """Whether the package is."""
        return "install ok installed" in (self.folder / "var/lib/dpkg/status").read_text()


def play(root: Root, locked: float = 0, check: bool = False, **options: Any) -> dict[str, Any]:
    """Return a play that installs the package, perhaps while something else holds the lock."""
    return {
        "environment": {"APT_CONFIG": str(root.config)},
        "tasks": [
            *([root.lock(locked)] if locked else []),
            {
                "name": "Install",
                "quantdesk.redis.packages": {"name": "wanted", **options},
                "register": "installed",
                "check_mode": check,
            },
            {"name": "Tell", "ansible.builtin.debug": {"msg": "changed: {{ installed.changed }}"}},
        ],
    }


NAMES = ("bare", "third_party", "twice", "needed", "typo", "locked", "stuck", "check", "broken", "gone")


@pytest.fixture(scope="module")
def roots(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Root]:
    """A root for each case."""
    roots = {name: Root(tmp_path_factory.mktemp(name)) for name in NAMES}
    closed = f"http://127.0.0.1:{free_port()}"
    roots["third_party"].source("third-party", closed)
    roots["needed"].source("own", closed)
    (roots["broken"].folder / "etc/apt/sources.list.d/broken.list").write_text("deb nonsense\n")
    (roots["gone"].folder / "repository/wanted.deb").unlink()
    roots["twice"] = roots["third_party"]
    return roots


@pytest.fixture(scope="module")
def plays(roots: dict[str, Root], tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[bool, str]]:
    """What came of each case."""
    more: dict[str, dict[str, Any]] = {
        "typo": {"name": ["wanted", "wnated"]},
        "locked": {"locked": 5},
        "stuck": {"locked": 20, "lock_timeout": 1},
        "check": {"check": True},
    }
    return ansible_plays(
        tmp_path_factory.mktemp("plays"), {name: play(roots[name], **more.get(name, {})) for name in NAMES}
    )


Plays = dict[str, tuple[bool, str]]


def flat(text: str) -> str:
    """Return Ansible's output with its lines joined."""
    return " ".join(text.split())


def test_installs_what_is_missing(plays: Plays, roots: dict[str, Root]) -> None:
    good, output = plays["bare"]
    assert good, output
    assert "changed: True" in output
    assert "WARNING" not in output
    assert roots["bare"].installed


def test_a_source_that_is_not_needed_is_a_warning_that_names_it(plays: Plays, roots: dict[str, Root]) -> None:
    good, output = plays["third_party"]
    assert good, output
    assert roots["third_party"].installed
    warning = flat(output.split("WARNING", 1)[1])
    assert re.search(r"apt's source http://127\.0\.0\.1:\d+/\S+ \(in \S+third-party\.list\): .*refused", warning), (
        warning
    )


def test_where_nothing_is_missing_neither_apt_nor_a_source_is_asked(plays: Plays) -> None:
    good, output = plays["twice"]
    assert good, output
    assert "changed: False" in output
    assert "WARNING" not in output


def test_a_source_that_is_needed_is_named_with_its_reason(plays: Plays, roots: dict[str, Root]) -> None:
    good, output = plays["needed"]
    assert not good
    assert "trying again" in output
    assert re.search(
        r"wanted: found no such package, and these sources of apt failed: http://127\.0\.0\.1:\S+ \(in "
        r"\S+own\.list\): .*refused.*; expected a source that has it",
        flat(output),
    ), output
    assert not roots["needed"].installed


def test_a_name_that_no_source_has_is_named_and_nothing_is_installed(plays: Plays, roots: dict[str, Root]) -> None:
    good, output = plays["typo"]
    assert not good
    assert "wnated: found no such package, and all sources of apt answered" in flat(output)
    assert not roots["typo"].installed


def test_waits_for_a_lock_and_says_who_holds_it(plays: Plays, roots: dict[str, Root]) -> None:
    good, output = plays["locked"]
    assert good, output
    assert re.search(r"localhost: waiting for python[\d.]*, process \d+.*, which holds \S+/lock-frontend", output), (
        output
    )
    assert roots["locked"].installed


def test_a_lock_that_stays_ends_the_run_with_its_holder(plays: Plays, roots: dict[str, Root]) -> None:
    good, output = plays["stuck"]
    assert not good
    assert re.search(r"wanted: found \S+/lock-frontend held by python[\d.]*, process \d+.* for 1 s", flat(output)), (
        output
    )
    assert not roots["stuck"].installed


def test_check_mode_without_lists_predicts_and_installs_nothing(plays: Plays, roots: dict[str, Root]) -> None:
    good, output = plays["check"]
    assert good, output
    assert "changed: True" in output
    assert not roots["check"].installed
    assert not [path for path in (roots["check"].folder / "var/lib/apt/lists").iterdir() if path.is_file()]


def test_a_list_of_sources_that_apt_cannot_read_is_named(plays: Plays) -> None:
    good, output = plays["broken"]
    assert not good
    assert re.search(r"Malformed entry 1 in list file \S+broken\.list", flat(output)), output


def test_a_package_that_its_source_has_lost_is_named(plays: Plays, roots: dict[str, Root]) -> None:
    good, output = plays["gone"]
    assert not good
    assert re.search(r"wanted: apt cannot fetch file:\S+wanted\.deb: File not found", flat(output)), output
    assert not roots["gone"].installed


def test_the_preflight_of_redis_names_a_source_that_failed(roots: dict[str, Root]) -> None:
    done = subprocess.run(
        [
            *("sh", PROJECT / "roles/redis/files/look.sh", "none.service", "/nonexistent", "/nonexistent", "nobody"),
            (PROJECT / "plugins/module_utils/apt_state.py").read_text(),
            json.dumps({"offers": {"kind": "package", "days": 7, "bad": []}}),
        ],
        env={**os.environ, "APT_CONFIG": str(roots["needed"].config)},
        capture_output=True,
        text=True,
        check=True,
    )
    (told,) = re.findall("^apt=(.*)$", done.stdout, re.MULTILINE)
    (failed,) = json.loads(told)["failed"]
    assert re.search(r"^http://127\.0\.0\.1:\S+: .*refused", failed), failed


@pytest.mark.parametrize(
    ("line", "source", "reason"),
    [
        (
            "W: Failed to fetch http://192.0.2.1/dists/x/InRelease  Could not connect to 192.0.2.1:80, timed out",
            "http://192.0.2.1/dists/x/InRelease",
            "Could not connect to 192.0.2.1:80, timed out",
        ),
        (
            "E: The repository 'http://example.com/debian x Release' does not have a Release file.",
            "http://example.com/debian x Release",
            "does not have a Release file",
        ),
        (
            "W: GPG error: http://example.com x InRelease: The following signatures couldn't be verified: NO_PUBKEY 1",
            "http://example.com x InRelease",
            "The following signatures couldn't be verified: NO_PUBKEY 1",
        ),
        (
            "E: Release file for http://example.com/dists/x/InRelease is expired (invalid since 1d).",
            "http://example.com/dists/x/InRelease",
            "is expired (invalid since 1d).",
        ),
        ("E: The list of sources could not be read.", "", "The list of sources could not be read."),
    ],
)
def test_reads_which_source_failed(line: str, source: str, reason: str, tmp_path: Path) -> None:
    noise = "Hit:1 http://x y\nW: Some index files failed to download.\nN: See apt-secure(8)\nW: Target is twice\n"
    found = apt_state.failures(noise + line + "\n" + line, {"parts": tmp_path})
    assert [(one["source"], one["reason"]) for one in found] == [(source, reason)]


def test_names_the_file_that_a_source_is_in_but_not_one_that_comments_on_it(tmp_path: Path) -> None:
    (tmp_path / "a.list").write_text("# deb http://example.com/debian x main\n")
    (tmp_path / "b.sources").write_text("Types: deb\nURIs: http://other.example http://example.com/debian/\n")
    found = apt_state.configured_in("http://example.com/debian/dists/x/InRelease", {"parts": tmp_path})
    assert found == str(tmp_path / "b.sources")


@pytest.mark.parametrize(
    ("line", "pid"),
    [
        ("E: Could not get lock /var/lib/apt/lists/lock. It is held by process 123 (apt-get)", "123"),
        ("E: Could not get lock /var/lib/apt/lists/lock - open (11: Resource temporarily unavailable)", None),
    ],
)
def test_reads_who_holds_the_lists(line: str, pid: str | None) -> None:
    found = apt_state.HELD.search(line)
    assert (found[1], found[2]) == ("/var/lib/apt/lists/lock", pid)


def test_asks_the_host_through_a_sudo_that_takes_no_input(tmp_path: Path) -> None:
    # As with requiretty, which is why pipelining is off then.
    sudo = tmp_path / "sudo"
    sudo.write_text('#!/bin/sh\nwhile [ "$1" != /bin/sh ]; do shift; done\nexec "$@" </dev/null\n')
    sudo.chmod(0o755)
    asked = {"quantdesk.redis.packages": {"name": "dpkg"}, "register": "there"}
    variables = {"ansible_become_exe": str(sudo), "ansible_become_user": "nobody", "ansible_pipelining": False}
    told = {"ansible.builtin.debug": {"msg": "changed: {{ there.changed }}"}}
    well, output = ansible_plays(tmp_path, {"ask": {"become": True, "vars": variables, "tasks": [asked, told]}})["ask"]
    assert well, output
    assert "changed: False" in output


def test_no_role_and_no_playbook_runs_apt_by_itself() -> None:
    files = [
        *PROJECT.glob("roles/*/tasks/*.yml"),
        *PROJECT.glob("roles/*/handlers/*.yml"),
        *PROJECT.glob("playbooks/**/*.yml"),
    ]
    assert len(files) > 50
    assert [str(file) for file in files if "builtin.apt:" in file.read_text()] == []
