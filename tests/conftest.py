"""Fixtures for the controller-side tests: the plugins as Python modules, and real Redis servers on loopback."""

from __future__ import annotations

import importlib
import json
import os
import re
import shutil
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

import pytest
import yaml
from ports import free_port

PROJECT = Path(__file__).resolve().parent.parent
# This checkout as the collection quantdesk.redis, by the link that requirements/install makes.
sys.path.insert(0, str(PROJECT / ".ansible/collections"))


def load(path: str) -> ModuleType:
    """Load a plugin by its path, under the name that Ansible gives it."""
    return importlib.import_module(f"ansible_collections.quantdesk.redis.{path.removesuffix('.py').replace('/', '.')}")


def ansible(program: str, *words: str | Path, cwd: Path = PROJECT) -> tuple[int, str]:
    """Run `ansible` or `ansible-playbook` on this machine, and return the exit code and all output."""
    # As JSON: the path may have a blank in it.
    here = ["-i", "localhost,", "-e"]
    here.append(json.dumps({"ansible_python_interpreter": sys.executable, "ansible_connection": "local"}))
    done = subprocess.run(
        [Path(sys.executable).parent / program, *here, *words],
        cwd=cwd,
        env={**os.environ, "ANSIBLE_CONFIG": str(PROJECT / "ansible.cfg")},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    return done.returncode, done.stdout


def ansible_plays(folder: Path, plays: dict[str, dict[str, Any]], *options: str) -> dict[str, tuple[bool, str]]:
    """Run plays in one `ansible-playbook`, whose start alone takes a second, each whatever became of those before.

    Returns, by the names of the plays, whether each went well, and what stood in the output of each.
    """
    content = [
        {
            "name": name,
            "hosts": "localhost",
            "gather_facts": False,
            **play,
            "tasks": [
                {"block": play["tasks"], "rescue": [{"name": "Note the failure", "ansible.builtin.meta": "noop"}]},
            ],
        }
        for name, play in plays.items()
    ]
    file = folder / "plays.yml"
    # In lines, of which Ansible quotes those around a failed task.
    file.write_text(yaml.safe_dump(content, sort_keys=False))
    _, output = ansible("ansible-playbook", *options, file)
    _, *parts = re.split(r"^PLAY \[(.*)\] \**$", output, flags=re.MULTILINE)
    found = dict(zip(parts[::2], parts[1::2], strict=True))
    assert list(found) == list(plays), output
    assert all("\nTASK [" in text for text in found.values()), output
    return {name: ("fatal: [" not in text, text) for name, text in found.items()}


def ansible_module(name: str, arguments: dict[str, Any], *options: str) -> tuple[int, str]:
    """Run a module through Ansible itself, and return the exit code and all output."""
    return ansible("ansible", "localhost", "-m", name, "-a", json.dumps(arguments), *options)


def collections(folder: Path, **modules: str) -> str:
    """Return a value of ANSIBLE_COLLECTIONS_PATH with which some modules of this collection are other programs."""
    place = folder / "ansible_collections/quantdesk/redis"
    (place / "plugins/modules").mkdir(parents=True)
    for path in [*PROJECT.glob("plugins/modules/*.*"), *PROJECT.glob("plugins/*"), *PROJECT.glob("*")]:
        link = place / path.relative_to(PROJECT)
        if path.stem not in modules and not link.exists():
            link.symlink_to(path)
    for name, source in modules.items():
        (place / f"plugins/modules/{name}.py").write_text(source)
    return f"{folder}:{PROJECT}/.ansible/collections"


Test = TypeVar("Test", bound=Callable[..., None])


def in_play(*tasks: dict[str, Any], hosts: str = "one", **variables: Any) -> Callable[[Test], Test]:
    """Have tasks run on the hosts `one` and `two`, which are this machine, for a test; see `played`."""

    def note(test: Test) -> Test:
        if "checks_deferred" in variables:
            # Facts outlive a play, and those of another test are not for this one's report.
            variables["checks_deferred"] = f"results_of_{test.__name__}"
        vars(test)["play"] = {"hosts": hosts, "vars": variables, "tasks": list(tasks)}
        return test

    return note


@pytest.fixture(scope="module")
def all_played(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[bool, str]]:
    """Run the plays of a module's tests, all at once."""
    plays = {name: test.play for name, test in vars(request.module).items() if hasattr(test, "play")}
    return ansible_plays(tmp_path_factory.mktemp("plays"), plays, "-i", "one,two,")


@pytest.fixture
def played(request: pytest.FixtureRequest, all_played: dict[str, tuple[bool, str]]) -> tuple[bool, str]:
    """Whether the play of this test went well, and its output."""
    return all_played[request.function.__name__]


@dataclass
class Server:
    """A running redis-server; `ca_file` is there when it speaks TLS."""

    port: int
    password: str
    ca_file: str | None = None


def server_command(folder: Path) -> str:
    """Return a command that starts redis-server; Debian's redis-tools holds the server under another name."""
    if found := shutil.which("redis-server"):
        return found
    checker = shutil.which("redis-check-rdb")
    assert checker, "there is neither redis-server nor redis-check-rdb: install redis-tools (requirements/install test)"
    link = folder / "redis-server"
    link.symlink_to(checker)
    return str(link)


def start(folder: Path, *arguments: str, port: int) -> subprocess.Popen[bytes]:
    """Start a server and wait until it listens."""
    process = subprocess.Popen(
        [server_command(folder), "--bind", "127.0.0.1", "--dir", str(folder), "--save", "", *arguments],
        stdout=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
            return process
        except OSError:
            time.sleep(0.02)
    process.kill()
    raise AssertionError(f"redis-server does not listen on port {port}")


@pytest.fixture(scope="module")
def redis_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server in plaintext with a password."""
    port = free_port()
    process = start(
        tmp_path_factory.mktemp("redis"), "--port", str(port), "--requirepass", "correct-horse-battery", port=port
    )
    yield Server(port, "correct-horse-battery")
    process.terminate()
    process.wait(10)


@pytest.fixture(scope="module")
def tls_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server that speaks TLS only, with a certificate of its own for 127.0.0.1."""
    folder = tmp_path_factory.mktemp("tls")
    key, certificate = folder / "key.pem", folder / "cert.pem"
    subprocess.run(
        [
            *(
                "openssl",
                "req",
                "-x509",
                "-newkey",
                "ec",
                "-pkeyopt",
                "ec_paramgen_curve:P-256",
                "-nodes",
                "-days",
                "2",
            ),
            *("-subj", "/CN=test", "-addext", "subjectAltName=IP:127.0.0.1"),
            *("-keyout", str(key), "-out", str(certificate)),
        ],
        check=True,
        capture_output=True,
    )
    port = free_port()
    process = start(
        folder,
        *("--port", "0", "--tls-port", str(port), "--tls-cert-file", str(certificate), "--tls-key-file", str(key)),
        *("--tls-ca-cert-file", str(certificate), "--tls-auth-clients", "no", "--requirepass", "correct-horse-battery"),
        port=port,
    )
    yield Server(port, "correct-horse-battery", str(certificate))
    process.terminate()
    process.wait(10)


@pytest.fixture(scope="session")
def foreign_ca() -> str:
    """Trust roots that have not signed the test server: the machine's."""
    file = ssl.get_default_verify_paths().cafile or "/etc/ssl/certs/ca-certificates.crt"
    assert Path(file).exists()
    return file
