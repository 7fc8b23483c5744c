"""An application's units as systemd runs them: ask, start, wait until healthy, and hear why they are not."""

from __future__ import annotations

import http.client
import os
import pwd
import re
import socket
import ssl
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from ansible_collections.quantdesk.redis.plugins.module_utils import programs
from ansible_collections.quantdesk.redis.plugins.module_utils.redis_files import Candidate, Ownership

PROPERTIES = "LoadState,ActiveState,Result,UnitFileState,MainPID,Wants"
# Seconds between two questions.
PAUSE = 0.1
# A health URL that takes longer than this to answer is not well.
ANSWER = 5.0
RUNNING = ("active", "activating", "reloading", "deactivating")


class Unwell(Exception):
    """An instance that did not get healthy, and why."""


def systemctl(*words: str, timeout: float | None = None) -> subprocess.CompletedProcess[str]:
    """Run systemctl and return what came of it; raises Unwell when it takes too long."""
    try:
        done: subprocess.CompletedProcess[str] = programs.run(["systemctl", *words], timeout=timeout)
        return done
    except subprocess.TimeoutExpired as error:
        raise Unwell(f"systemctl {' '.join(words)} took more than {timeout:.0f} s") from error


def show(unit: str) -> dict[str, str]:
    """Return systemd's report on a unit; of one that it does not know, too."""
    shown = systemctl("show", unit, "--property", PROPERTIES).stdout
    return dict(line.split("=", 1) for line in shown.splitlines() if "=" in line)


def listed(*patterns: str) -> dict[str, str]:
    """Return the loaded units that match, with their state."""
    lines = systemctl("list-units", "--all", "--plain", "--no-legend", "--full", *patterns).stdout.splitlines()
    return {words[0]: words[2] for words in map(str.split, lines) if len(words) > 2}


def started_at(pid: int) -> float:
    """Return when a process started, in seconds since the epoch; raises OSError when it is gone."""
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rsplit(")", 1)[1].split()
    boot = next(
        line
        for line in Path("/proc/stat").read_text(encoding="utf-8", errors="replace").splitlines()
        if line.startswith("btime ")
    )
    # btime is a whole second: without one more, what was written just before the start would count as newer.
    return int(boot.split()[1]) + int(fields[19]) / os.sysconf("SC_CLK_TCK") + 1


def confinement(pid: int) -> str:
    """Return the user of a process and what keeps it from more, as in `app NoNewPrivs:1 Seccomp:2`."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text(encoding="utf-8", errors="replace").splitlines()
        status = dict(line.split(":\t", 1) for line in lines if ":\t" in line)
        user = pwd.getpwuid(int(status["Uid"].split()[0])).pw_name
    except (OSError, KeyError, ValueError):
        return "none"
    return f"{user} NoNewPrivs:{status.get('NoNewPrivs', '?')} Seccomp:{status.get('Seccomp', '?')}"


def certificate_file(environment: str) -> str:
    """Return the certificate with which an application of some environment serves; empty for one in plaintext."""
    found = re.search(r'^TLS_CERT_FILE="?([^"\n]+)"?$', environment, re.MULTILINE)
    return found[1] if found else ""


def trusting() -> ssl.SSLContext:
    """Return a TLS client for this host's own instances.

    Their certificate need not name loopback: it is compared with the one on the disk instead of being verified.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    return context


def shown_certificate(url: str, timeout: float = ANSWER) -> bytes:
    """Return the certificate that a new connection is shown; empty without one."""
    parts = urlsplit(url)
    try:
        with (
            socket.create_connection((parts.hostname or "", parts.port or 443), timeout) as plain,
            trusting().wrap_socket(plain) as tls,
        ):
            return tls.getpeercert(True) or b""
    except OSError:
        return b""


def certificate_on_disk(path: str) -> bytes:
    """Return the first certificate of a PEM file; empty where there is none."""
    end = "-----END CERTIFICATE-----"
    try:
        text, found, _ = Path(path).read_text(encoding="utf-8").partition(end)
        return ssl.PEM_cert_to_DER_cert(text[text.index("-----BEGIN") :] + end + "\n") if found else b""
    except (OSError, ValueError):
        return b""


def ask(url: str, timeout: float = ANSWER) -> tuple[int, str]:
    """Return status and body of an answer; 0 and the reason when there is none. Follows no redirect."""
    parts = urlsplit(url)
    host = parts.hostname or ""
    if parts.scheme == "https":
        connection: http.client.HTTPConnection = http.client.HTTPSConnection(
            host, parts.port or 443, timeout=timeout, context=trusting()
        )
    else:
        connection = http.client.HTTPConnection(host, parts.port or 80, timeout=timeout)
    try:
        path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        connection.request("GET", path, headers={"Connection": "close"})
        answer = connection.getresponse()
        return answer.status, answer.read(65536).decode(errors="replace")
    except (OSError, http.client.HTTPException) as error:
        return 0, f"{type(error).__name__}: {error}".rstrip(": ")
    finally:
        connection.close()


def wait_healthy(url: str, unit: str, seconds: float, over: Callable[[str], bool]) -> None:
    """Wait for a 200; raises Unwell after so many seconds, or as soon as the unit is in a state that is `over`."""
    deadline = time.monotonic() + seconds
    while True:
        status, text = ask(url, min(ANSWER, max(deadline - time.monotonic(), 0.5)))
        if status == 200:
            return
        said = f"{url} answers {status}" if status else f"{url} does not answer ({text})"
        state = show(unit).get("ActiveState", "")
        if over(state):
            raise Unwell(f"{unit} is {state}")
        if time.monotonic() > deadline:
            raise Unwell(f"{said} after {seconds:.0f} s")
        time.sleep(PAUSE)


def journal(unit: str, since: float, lines: int = 15) -> str:
    """Return a unit's last lines since a time."""
    argv = ["journalctl", "--unit", unit, "--since", f"@{since:.0f}", "--lines", str(lines)]
    return programs.run([*argv, "--output", "cat", "--no-pager", "--quiet"]).stdout.strip() or "(none)"


def own(file: dict[str, Any], module: Any, path: str | None = None) -> None:
    """Give one of the caller's files, or another path, its owner and mode."""
    attributes = dict.fromkeys(("selevel", "serole", "setype", "seuser", "attributes"))
    arguments = module.load_file_common_arguments({**file, **attributes}, path=path or file["path"])
    module.set_fs_attributes_if_different(arguments, False)


def put(file: dict[str, Any], module: Any) -> None:
    """Write one of the caller's files, whole or not at all, with owner and mode; raises OSError."""
    candidate = Candidate(file["path"], file["content"], Ownership.of(file).apply)
    try:
        candidate.replace(keep=False)
    finally:
        candidate.discard()


FILE_OPTIONS: dict[str, Any] = {
    "path": {"type": "path", "required": True},
    "content": {"type": "str", "required": True},
    "owner": {"type": "str", "default": "root"},
    "group": {"type": "str", "default": "root"},
    "mode": {"type": "str", "default": "0644"},
}
# Its text is an option of its own: Ansible hides what is secret within another one from its output, but not from the
# host's journal.
ENVIRONMENT_OPTIONS: dict[str, Any] = {
    **{name: option for name, option in FILE_OPTIONS.items() if name != "content"},
    "mode": {"type": "str", "default": "0640"},
}


def environment_of(params: dict[str, Any]) -> dict[str, Any]:
    """Return the environment file with its text."""
    return {**params["environment"], "content": params["environment_text"] or ""}
