"""A host for tests of apt: folders of its own for a real apt, and archives that are signed and served on loopback."""

from __future__ import annotations

import functools
import hashlib
import http.server
import io
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass, field
from email.utils import formatdate
from pathlib import Path
from typing import Any, BinaryIO

from test_packages import Root

from conftest import PROJECT, load

repositories = load("plugins/filter/apt_repository.py")
ARCHITECTURE = subprocess.run(
    ["dpkg", "--print-architecture"], capture_output=True, text=True, check=False
).stdout.strip()
PROGRAM = PROJECT / "plugins/module_utils/apt_state.py"
# What the role says of versions, and of a host that is Debian 12.
BAD = [
    {"of": "debian 12", "line": "7.0", "fixed": "5:7.0.15-1~deb12u10"},
    {"of": "upstream", "line": "7.4", "fixed": "7.4.9"},
]
HEADER = "# of the tests\n"
NAMES = ("redis-server", "redis-tools")


class Signer:
    """A key of OpenPGP, in a folder whose path is short enough for gpg's socket."""

    def __init__(self, name: str) -> None:
        self.home = Path(tempfile.mkdtemp(prefix="gpg-"))
        self._gpg("--quick-generate-key", f"{name} <{name}@example.com>", "rsa3072", "sign", "never")
        self.public = self._gpg("--armor", "--export")
        colons = self._gpg("--with-colons", "--list-keys")
        self.fingerprint = next(line.split(":")[9] for line in colons.splitlines() if line.startswith("fpr"))

    def _gpg(self, *words: str, text: str = "") -> str:
        return subprocess.run(
            ["gpg", "--homedir", self.home, "--batch", "--passphrase", "", "--pinentry-mode", "loopback", *words],
            input=text,
            capture_output=True,
            text=True,
            check=True,
        ).stdout

    def sign(self, text: str) -> str:
        """Return a text with its signature."""
        return self._gpg("--clearsign", text=text)

    def binary(self) -> bytes:
        """Return the public key as gpg exports it."""
        data: bytes = repositories.dearmour(self.public)
        return data

    def private(self) -> str:
        """Return what must be given to nobody."""
        return self._gpg("--armor", "--export-secret-keys")

    def close(self) -> None:
        """End gpg's agent, and remove the key."""
        subprocess.run(["gpgconf", "--homedir", self.home, "--kill", "all"], capture_output=True, check=False)
        shutil.rmtree(self.home, ignore_errors=True)


class Web:
    """A folder that is served on loopback."""

    def __init__(self, folder: Path) -> None:
        class Quiet(http.server.SimpleHTTPRequestHandler):
            def log_message(self, *_: Any) -> None:
                pass

            def send_head(self) -> io.BytesIO | BinaryIO | None:
                # It knows seconds only, and an archive may be published twice in one.
                del self.headers["If-Modified-Since"]
                return super().send_head()

        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(folder)))
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"

    def close(self) -> None:
        """Stop serving."""
        self.server.shutdown()
        self.server.server_close()


@dataclass
class Archive:
    """An archive of packages in a served folder; `publish` writes it anew."""

    web: Web
    name: str
    signer: Signer | None
    suite: str
    component: str = "main"
    fields: dict[str, str] = field(default_factory=dict)
    paragraphs: list[str] = field(default_factory=list)

    @property
    def url(self) -> str:
        """Where apt finds it."""
        return f"{self.web.url}/{self.name}"

    def add(self, package: str, version: str, depends: str = "") -> None:
        """Build a package that holds nothing but its name and version."""
        pool = self.web.folder / self.name / "pool"
        pool.mkdir(parents=True, exist_ok=True)
        control = f"Package: {package}\nVersion: {version}\nArchitecture: all\nMaintainer: nobody\n"
        control += f"Depends: {depends}\n" if depends else ""
        control += f"Description: {package}\n"
        with tempfile.TemporaryDirectory() as folder:
            Path(folder).chmod(0o755)
            (Path(folder) / "DEBIAN").mkdir()
            (Path(folder) / "DEBIAN/control").write_text(control)
            file = pool / f"{package}_{version.replace(':', '_')}.deb"
            subprocess.run(["dpkg-deb", "--build", folder, file], check=True, capture_output=True)
        content = file.read_bytes()
        self.paragraphs.append(
            f"{control}Filename: pool/{file.name}\nSize: {len(content)}\n"
            f"SHA256: {hashlib.sha256(content).hexdigest()}\n"
        )

    def add_redis(self, *versions: str, depends: str = "") -> None:
        """Add the packages of some versions of Redis, of which the server needs the tools."""
        for version in versions:
            self.add("redis-tools", version)
            self.add("redis-server", version, ", ".join(filter(None, [f"redis-tools (= {version})", depends])))

    def publish(self, *, days_old: float = 0, valid_until: str = "") -> Archive:
        """Write its index, and sign it."""
        folder, path = self.web.folder / self.name / "dists" / self.suite, f"{self.component}/binary-{ARCHITECTURE}"
        if self.suite.endswith("/"):
            folder, path = self.web.folder / self.name, "."
        index = folder / path
        index.mkdir(parents=True, exist_ok=True)
        text = "\n".join(self.paragraphs)
        (index / "Packages").write_text(text)
        lines = {**self.fields, "Date": formatdate(time.time() - days_old * 86400, usegmt=True)}
        lines |= {"Valid-Until": valid_until} if valid_until else {}
        lines |= {"Architectures": ARCHITECTURE, "Components": self.component}
        release = "".join(f"{name}: {value}\n" for name, value in lines.items())
        size, digest = len(text.encode()), hashlib.sha256(text.encode()).hexdigest()
        release += f"SHA256:\n {digest} {size} {f'{path}/Packages'.removeprefix('./')}\n"
        (folder / "InRelease").unlink(missing_ok=True)
        (folder / "Release").unlink(missing_ok=True)
        if self.signer:
            (folder / "InRelease").write_text(self.signer.sign(release))
        else:
            (folder / "Release").write_text(release)
        return self


class Host(Root):
    """A host with a distribution of its own: an archive, its security archive, and a repository of somebody else."""

    def __init__(self, folder: Path, web: Web, signer: Signer, other: Signer) -> None:
        super().__init__(folder)
        (folder / "etc/apt/sources.list.d/own.list").unlink()
        (folder / "etc/apt/keyrings").mkdir()
        (folder / "etc/apt/keyrings/distribution.asc").write_text(signer.public)
        self.signer, self.other = signer, other
        named = {"Origin": "Debian", "Label": "Debian", "Suite": "oldstable", "Codename": "bookworm"}
        self.main = Archive(web, f"{folder.name}/debian", signer, "bookworm", fields=named)
        named = {"Label": "Debian-Security", "Suite": "oldstable-security", "Codename": "bookworm-security"}
        named = {**self.main.fields, **named}
        self.security = Archive(web, f"{folder.name}/security", signer, "bookworm-security", fields=named)
        # apt has no index of an archive without packages.
        self.security.add("something", "1")
        named = {"Origin": "Site, Inc.", "Label": "Redis of the site", "Suite": "site", "Codename": "site"}
        self.site = Archive(web, f"{folder.name}/site", other, "bookworm", fields=named)

    def sources(self, name: str, *archives: Archive) -> None:
        """Configure archives, as the distribution's installer would."""
        key = f"{self.folder}/etc/apt/keyrings/distribution.asc"
        lines = [f"deb [signed-by={key}] {one.url} {one.suite} {one.component}\n" for one in archives]
        (self.folder / f"etc/apt/sources.list.d/{name}.list").write_text("".join(lines))

    def apt(self, *words: str) -> str:
        """Run a program of apt's, and return what it prints; raises CalledProcessError."""
        return subprocess.run(
            words, env={**os.environ, "APT_CONFIG": str(self.config), "LC_ALL": "C"}, text=True, check=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        ).stdout  # fmt: skip

    def update(self) -> None:
        """Bring apt's lists up to date."""
        self.apt("apt-get", "-qq", "update")

    def forget(self) -> None:
        """Remove apt's lists, as images of containers do."""
        for path in (self.folder / "var/lib/apt/lists").iterdir():
            if path.is_file():
                path.unlink()

    def install(self, *names: str) -> None:
        """Install packages."""
        self.apt("apt-get", "-qq", "--yes", "install", *names)

    def upgrade(self) -> dict[str, str]:
        """Return what an upgrade of the whole host would install, without doing so."""
        lines = self.apt("apt-get", "--simulate", "--yes", "dist-upgrade").splitlines()
        words = [line.split() for line in lines if line.startswith("Inst ")]
        return {line[1]: next(word[1:] for word in line if word.startswith("(")) for line in words}

    def repository(self, **changes: Any) -> dict[str, Any]:
        """Return an input redis_repository for the repository of somebody else."""
        return {
            "url": self.site.url,
            "suite": "bookworm",
            "components": ["main"],
            "key": self.other.public,
            **changes,
        }

    def offers(self, repository: dict[str, Any] | None = None, **more: Any) -> dict[str, Any]:
        """Return what look.sh would be told of this host."""
        question: dict[str, Any] = {"kind": "package", "days": 7, "bad": BAD, "header": HEADER, **more}
        if repository is not None:
            assert repositories.problems(repository) == []
            question |= {"kind": "repository", "repository": repositories.wanted(repository, HEADER)}
        done = subprocess.run(
            [sys.executable, PROGRAM, json.dumps({"offers": question}), "debian 12"],
            env={**os.environ, "APT_CONFIG": str(self.config)},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        answer: dict[str, Any] = json.loads(done.stdout)
        assert "problem" not in answer, answer
        return answer

    def write(self, answer: dict[str, Any]) -> None:
        """Do what the role does with an answer's files."""
        for path in answer["differ"]:
            Path(path).write_text(answer["files"][path])
        for path in answer["left"]:
            Path(path).unlink()

    def state(self) -> dict[str, str]:
        """Return all that the host has, by its path, but for what apt computes anew by itself."""
        return {
            str(path): hashlib.sha256(path.read_bytes()).hexdigest()
            for path in self.folder.rglob("*")
            if path.is_file() and not path.name.endswith("pkgcache.bin")
        }
