"""Let the real server judge a configuration: start it on the text, in a folder of its own, where nobody reaches it."""

from __future__ import annotations

import ctypes
import os
import pwd
import re
import signal
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any, BinaryIO

from ansible_collections.quantdesk.redis.plugins.module_utils.redis_conf import found, mask, parse, render
from ansible_collections.quantdesk.redis.plugins.module_utils.redis_files import closed

# What a server says that has a socket only.
READY = "server is now ready to accept connections"
# A socket's path must be short, so TMPDIR does not decide.
PLACE = "/tmp"
# prctl(2)
PR_SET_PDEATHSIG = 1
PR_SET_NO_NEW_PRIVS = 38


class TrialError(Exception):
    """The server does not start on this; the message holds its own words, without secrets."""


def _die_with_parent() -> None:
    """Make the kernel end this process when the one that started it is killed, so that no trial outlives a task."""
    libc = ctypes.CDLL(None)
    libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def trustworthy(config_text: str) -> str:
    """Return a configuration without modules and included files that others than root can write.

    Redis may write its configuration. Its unit keeps it from running what it has written; a trial has no such walls. It
    has a folder of its own, too: one that systemd gives to the user at the start is not there for it yet.
    """
    return str(
        render(
            [
                entry
                for entry in parse(config_text)
                if entry.name != "dir"
                and (entry.name not in ("loadmodule", "include") or all(map(closed, entry.words[:1])))
            ]
        )
    )


def trial(
    binary: str, config_text: str, acl_text: str | None = None, timeout: float = 10, user: str | None = None
) -> None:
    """Start the server on a configuration and end it as soon as it is ready; does nothing where there is no binary.

    It listens on a socket in a temporary folder only, contacts no primary, reads and writes no data. With a TLS port it
    loads the certificates. `acl_text` stands in for its ACL file, which is empty otherwise. Raises TrialError when it
    ends by itself, or is not ready after `timeout` seconds.

    With a `user`, whose the configuration is, root starts it as that one and reads what is trustworthy of it.
    """
    if not os.path.exists(binary):
        return
    account = pwd.getpwnam(user) if user and os.geteuid() == 0 else None
    if account:
        config_text = trustworthy(config_text)
    with tempfile.TemporaryDirectory(prefix="redis-trial.", dir=PLACE) as name:
        folder = Path(name)
        config = folder / "redis.conf"
        config.write_text(config_text, encoding="utf-8", errors="surrogateescape", newline="")
        config.chmod(0o600)
        words = [binary, str(config), *_overrides(folder, config_text, acl_text)]
        lesser: dict[str, Any] = {}
        if account:
            lesser = {"user": account.pw_uid, "group": account.pw_gid}
            lesser["extra_groups"] = os.getgrouplist(account.pw_name, account.pw_gid)
            for path in (*folder.iterdir(), folder):
                os.chown(path, account.pw_uid, account.pw_gid)
        # Without a name: the folder is the user's.
        with tempfile.TemporaryFile() as output:
            try:
                process = subprocess.Popen(
                    # What a relative `include` means must not depend on who runs this.
                    words,
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=output,
                    cwd="/",
                    preexec_fn=_die_with_parent,
                    **lesser,
                )
            except OSError as error:
                raise TrialError(f"{binary} cannot be run: {error.strerror}") from error
            try:
                _wait(process, output, timeout)
            finally:
                process.kill()
                process.wait()


def _overrides(folder: Path, config_text: str, acl_text: str | None) -> list[str]:
    """Return the options that take everything away that the trial must not touch."""
    entries = parse(config_text)
    acl = ""
    if acl_text is not None or any(words != ("",) for words in found(entries, "aclfile")):
        acl = str(folder / "users.acl")
        Path(acl).write_text(acl_text or "", encoding="utf-8", errors="surrogateescape")
        os.chmod(acl, 0o600)
    overrides = {
        "port": "0",
        "tls-port": "0",
        "unixsocket": str(folder / "s"),
        "dir": str(folder),
        "appendonly": "no",
        "save": "",
        "daemonize": "no",
        "supervised": "no",
        "logfile": "",
        # A higher one would not tell when it is ready.
        "loglevel": "notice",
        "syslog-enabled": "no",
        "pidfile": "",
        "aclfile": acl,
        "maxmemory": "0",
        # Its nodes.conf may be elsewhere and locked.
        "cluster-enabled": "no",
        "oom-score-adj": "no",
    }
    if any(words not in ((), ("0",)) for words in found(entries, "tls-port")[-1:]):
        # Makes the server load certificate and key although no TLS port is open.
        overrides["tls-replication"] = "yes"
    options = [word for option, value in overrides.items() for word in (f"--{option}", value)]
    # `no one` does not take back a line of the file; on port 0 there is nobody.
    return [*options, "--replicaof", "127.0.0.1", "0"]


def _wait(process: subprocess.Popen[bytes], output: BinaryIO, timeout: float) -> None:
    """Return when the server is ready; raises TrialError with what it says otherwise."""
    deadline = time.monotonic() + timeout
    while True:
        ended = process.poll() is not None
        said = os.pread(output.fileno(), 1 << 20, 0).decode(errors="replace")
        if READY in said:
            return
        if ended:
            raise TrialError(f"Redis does not start on this configuration: {_fault(said)}")
        if time.monotonic() > deadline:
            raise TrialError(f"Redis is not ready after {timeout:g} s on this configuration: {_fault(said)}")
        time.sleep(0.005)


def _fault(said: str) -> str:
    """Return those lines of a server's output that tell what is wrong."""
    said = mask(said)
    if "*** FATAL" in said:
        lines = said[said.index("*** FATAL") :].splitlines()
        # Its first two tell the version, and a line in a file that is gone by now.
        return "; ".join(line.strip() for line in lines[2:] if line.strip())
    warnings = re.findall(r"^\d+:\w .*?\d\d:\d\d:\d\d\.\d+ # (.*)$", said, re.MULTILINE)
    banner = ("oO0OoO0OoO0Oo", "Redis version=", "Configuration loaded", "Server initialized", "WARNING")
    own = [line for line in warnings if not line.startswith(banner)]
    return "; ".join(own[-5:]) or said.strip()[-500:] or "no output"
