"""The directives of redis.conf as they are declared, compared with those of a running server and of its file."""

from __future__ import annotations

import glob
import os
import re
import ssl
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ansible_collections.quantdesk.redis.plugins.module_utils.redis_conf import (
    HIDDEN,
    LIMITS,
    SECRETS,
    STARTUP,
    ConfError,
    Value,
    canonical,
    declared,
    default,
    found,
    from_live,
    merge,
    parse,
    same,
    to_live,
)
from ansible_collections.quantdesk.redis.plugins.module_utils.redis_defaults import IMMUTABLE, PROTECTED
from ansible_collections.quantdesk.redis.plugins.module_utils.redis_files import as_user, read
from ansible_collections.quantdesk.redis.plugins.module_utils.resp import Client, ErrorReply

TLS_FILES = ["tls-cert-file", "tls-key-file", "tls-ca-cert-file"]
TLS_OTHERS = ["tls-ca-cert-dir", "tls-client-cert-file", "tls-client-key-file"]
AT_START = "Redis reads it at its start only"


def included(pattern: str, seen: set[str], absent: list[str]) -> set[str]:
    """Return the names of all directives in the files of an include, and of theirs; note a missing file."""
    # The server's working directory when it reads them is that of its unit.
    pattern = os.path.join("/", pattern)
    paths = glob.glob(pattern) if re.search(r"[*?\[]", pattern) else [pattern]
    names: set[str] = set()
    for path in paths:
        if path in seen:
            continue
        seen.add(path)
        try:
            text = Path(path).read_text(encoding="utf-8", errors="surrogateescape")
        except FileNotFoundError:
            absent.append(path)
            continue
        entries = parse(text)
        names |= {entry.name for entry in entries if entry.name}
        for words in found(entries, "include"):
            names |= included(" ".join(words), seen, absent)
    return names


def check_includes(text: str, managed: set[str], tolerate: bool) -> None:
    """Raise ConfError when an included file is missing or overrides what is managed.

    `tolerate` missing files in check mode, where a task before this one may only have said that it would write them.
    """
    entries = parse(text)
    for at, entry in enumerate(entries):
        if entry.name != "include":
            continue
        pattern, absent = " ".join(entry.words), list[str]()
        names = included(pattern, set(), absent)
        if absent and not tolerate:
            raise ConfError(f"include {pattern}: there is no file {', '.join(absent)}")
        later = {other.name for other in entries[at:]}
        # Several lines of these add up; of all others the last one counts.
        adding = {"save", LIMITS}
        clash = sorted(name for name in names & managed - STARTUP if name in adding or name not in later)
        if clash:
            raise ConfError(
                f"include {pattern} sets {', '.join(clash)}, which would override the declared value: remove it there"
            )


def live_values(client: Client, names: set[str]) -> dict[str, str]:
    """Return the running server's values by today's names; those that it does not know are missing."""
    reply = client.call("CONFIG", "GET", *sorted(names))
    assert isinstance(reply, list)
    values = {canonical(str(name)): str(value) for name, value in zip(reply[::2], reply[1::2], strict=True)}
    return {name: value for name, value in values.items() if name in names}


def certificate(path: str) -> bytes | None:
    """Return the first certificate of a PEM file in DER, None where there is none; raises OSError."""
    pem = re.search(
        r"-----BEGIN CERTIFICATE-----.*?-----END CERTIFICATE-----", Path(path).read_text("latin-1"), re.DOTALL
    )
    return ssl.PEM_cert_to_DER_cert(pem[0]) if pem else None


def restart_reason(item: Mapping[str, Any]) -> str:
    """Return in words why a directive asks for a restart."""
    return f"{item['directive']} is {item['running']}, wanted {item['wanted']}"


class Comparison:
    """What is, what is wanted, and what has to change."""

    def __init__(
        self,
        directives: Mapping[str, Value],
        path: str,
        client: Client | None,
        *,
        local: bool = False,
        owner: str | None = None,
        header: str = "",
        pretend: bool = True,
        reload_tls: bool = True,
    ) -> None:
        """Query the server, where there is one, and read the file; raises ConfError, ErrorReply and OSError.

        `local` is whether the server counts this host as itself. The files that it includes are read as `owner`. With
        `pretend`, nothing will be changed, and what a task before this one would have made may be missing. `header` is
        for a new file.
        """
        self.client, self.path, self.local, self.pretend, self.reload_tls = client, path, local, pretend, reload_tls
        self.wanted = declared(directives)
        self.before = read(path, "")
        top = "".join(f"{line if line.startswith('#') else f'# {line}'.rstrip()}\n" for line in header.splitlines())
        self.after = merge(top if self.before is None else self.before, directives)
        # A line that Redis has written decides what is read here: nothing that Redis itself may not read.
        with as_user(owner):
            check_includes(self.after, set(self.wanted), pretend)
        old, new = parse(self.before or ""), parse(self.after)
        self.rewritten = {name for name in self.wanted if found(old, name) != found(new, name)}
        extra = {"enable-protected-configs", *TLS_FILES, *TLS_OTHERS}
        self.live = self.ask(set(self.wanted) | extra) if client else {}
        self.tls_reloaded = self.other_certificate()
        self.values = self.to_set()
        # What CONFIG GET does not tell, or no default is known for, is known to be old only when its line is.
        unseen = {name for name in self.rewritten if name not in self.live or self.target(name) is None}
        self.unseen: set[str] = unseen if client else set()

    def ask(self, names: set[str]) -> dict[str, str]:
        """Return the running server's values; raises ConfError where its file has taken CONFIG from everybody."""
        assert self.client
        try:
            return live_values(self.client, names)
        except ErrorReply as error:
            if "unknown command" not in str(error):
                raise
            for number, line in enumerate((self.before or "").splitlines(), 1):
                words = line.split()
                if len(words) > 2 and [word.lower() for word in words[:2]] == ["rename-command", "config"]:
                    raise ConfError(
                        f"{self.path}, line {number}: found rename-command CONFIG, which leaves no such command; "
                        "expected no such line: users' rules say who may run it. Take it out, and restart Redis"
                    ) from error
            raise

    def other_certificate(self) -> bool:
        """Return whether the server shows another certificate than its file holds; raises OSError."""
        shown = self.client.peer_certificate() if self.client and self.reload_tls else None
        if shown is None:
            return False
        lines = self.wanted.get("tls-cert-file")
        path = to_live(lines) if lines else self.live.get("tls-cert-file", "")
        if not path or (self.pretend and not os.path.exists(path)):
            return False
        return bool(certificate(path) != shown)

    def to_set(self) -> dict[str, str]:
        """Return what differs on the running server, as CONFIG SET takes it."""
        values = {}
        for name, lines in self.wanted.items():
            target = self.target(name)
            if name in self.live and target is not None and not same(name, from_live(name, self.live[name]), lines):
                values[name] = target
        if self.tls_reloaded:
            # Redis reads these files again even when their names stay the same.
            for name in TLS_FILES + TLS_OTHERS:
                if self.live.get(name):
                    values.setdefault(name, self.live[name])
        return values

    def predict(self) -> dict[str, str]:
        """Return what the running server will say needs a restart, with the reason."""
        allowed = self.live.get("enable-protected-configs", "no")
        guarded = not (allowed == "yes" or (allowed == "local" and self.local))
        refused = {name: "can't set immutable config" for name in self.values if name in IMMUTABLE}
        protected = {name: "can't set protected config" for name in self.values if name in PROTECTED and guarded}
        return {**refused, **protected}

    def restart(self, refused: dict[str, str]) -> list[dict[str, Any]]:
        """Return what the running server takes only at its start."""
        reasons = {**dict.fromkeys(self.unseen, AT_START), **refused}
        return [
            {
                "directive": name,
                "running": self.shown(name, self.live.get(name)),
                "wanted": self.shown(name, self.target(name)),
                "reason": reasons[name],
            }
            for name in sorted(reasons)
        ]

    def target(self, name: str) -> str | None:
        """Return what a directive is to be, None where that is the default and not known."""
        lines = self.wanted[name]
        target = default(name) if lines is None else lines
        return None if target is None else to_live(target)

    def shown(self, name: str, value: str | None) -> str | None:
        """Return a value as the result may show it."""
        return HIDDEN if value is not None and name in SECRETS else value
