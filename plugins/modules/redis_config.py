"""Ansible module: managed directives in redis.conf and on the running server. See DOCUMENTATION."""

from __future__ import annotations

DOCUMENTATION = r"""
module: redis_config
short_description: Keep directives in redis.conf and on the running server as declared
description:
  - Merges directives into the configuration file. Lines that mean the same already, and all that are not managed, stay
    as they are, so a file that Redis rewrote (CONFIG REWRITE, a failover) is not fought over.
  - Sets on the running server what differs there, in one CONFIG SET, all of it or nothing. Restarts nothing; what needs
    a restart is returned, also when an earlier run was cut off before it.
  - The running server is the judge. What it refuses is said in its own words, and nothing is changed then. Where it
    cannot judge, because it is down or reads the value at its start only, a second one is started for a moment on the
    new file.
  - In check mode values are not judged.
  - Without O(server) only the file is looked after.
options:
  path: {description: The configuration file., type: path, required: true}
  directives:
    description:
      - Values by name. A list is several lines for C(save), C(client-output-buffer-limit), C(include) and
        C(loadmodule), and one line for all others. Null takes the line out, so that Redis' default holds.
      - An empty list for C(save) is no snapshots. Of C(client-output-buffer-limit) only the named classes are changed.
    type: dict
    required: true
  secrets:
    description: The same for C(requirepass), C(masterauth), C(tls-key-file-pass), C(tls-client-key-file-pass) and
      C(rename-command); never shown.
    type: dict
    default: {}
  header: {description: Comment at the top of a file that is new., type: str}
  server_binary: {description: "The server's program, for the trial.", type: path, default: /usr/bin/redis-server}
  reload_tls:
    description: Make the server read its certificate again when the file holds another one.
    type: bool
    default: true
  owner:
    description: Who owns the file. A trial of it is that user's process, too, and leaves out modules and included files
      that root alone cannot vouch for.
    type: str
  group: {description: Group of the file., type: str}
  mode: {description: "Mode of the file, in octal digits.", type: raw}
notes:
  - Redis may write in the folder of the file. A link, or a file with another name besides, is refused there.
author: The quantdesk-redis maintainers (!UNKNOWN)
extends_documentation_fragment: [quantdesk.redis.redis_login]
"""

EXAMPLES = r"""
- name: Memory, snapshots and a password
  quantdesk.redis.redis_config:
    path: /etc/redis/redis.conf
    directives:
      maxmemory: 512mb
      maxmemory-policy: allkeys-lru
      save: ["3600 1", "300 100"]
      client-output-buffer-limit: ["replica 256mb 64mb 60"]
      unixsocket: null
    secrets: {requirepass: "{{ redis_password }}"}
    owner: redis
    group: redis
    mode: "0640"
    server: {port: 6380, ca_file: /etc/ssl/ca.crt}
    logins: [{password: "{{ redis_password }}"}]
"""

RETURN = r"""
applied: {description: Names of the directives that were set on the running server., type: list, returned: always}
restart:
  description: What the running server takes only at its start, each with C(directive), C(running) (null if it does not
    tell), C(wanted) and C(reason).
  type: list
  returned: always
server: {description: "C(up), C(down) or C(none).", type: str, returned: always}
role: {description: "The running server's, C(master) or C(slave).", type: str, returned: always}
backup: {description: Where the old file is kept; null if nothing was written or replaced., type: str, returned: always}
tls_reloaded: {description: Whether the server was made to read its certificate again., type: bool, returned: always}
"""

import glob  # noqa: E402 - Ansible wants the documentation first
import os  # noqa: E402
import re  # noqa: E402
import ssl  # noqa: E402
import time  # noqa: E402
from pathlib import Path  # noqa: E402
from typing import Any  # noqa: E402

from ansible.module_utils.basic import AnsibleModule  # noqa: E402
from ansible_collections.quantdesk.redis.plugins.module_utils.redis_conf import (  # noqa: E402
    HIDDEN,
    LIMITS,
    SECRETS,
    STARTUP,
    ConfError,
    canonical,
    declared,
    default,
    found,
    from_live,
    mask,
    merge,
    parse,
    same,
    to_live,
)
from ansible_collections.quantdesk.redis.plugins.module_utils.redis_defaults import IMMUTABLE, PROTECTED  # noqa: E402
from ansible_collections.quantdesk.redis.plugins.module_utils.redis_files import (  # noqa: E402
    OWNERSHIP,
    Candidate,
    Ownership,
    as_user,
    ownership_of,
    read,
)
from ansible_collections.quantdesk.redis.plugins.module_utils.redis_server import (  # noqa: E402
    SERVER_OPTIONS,
    Refused,
    connect,
    where,
)
from ansible_collections.quantdesk.redis.plugins.module_utils.redis_trial import TrialError, trial  # noqa: E402
from ansible_collections.quantdesk.redis.plugins.module_utils.resp import Client, ErrorReply, ProtocolError  # noqa: E402
from ansible_collections.quantdesk.redis.plugins.module_utils.sendable import sendable  # noqa: E402

TLS_FILES = ["tls-cert-file", "tls-key-file", "tls-ca-cert-file"]
TLS_OTHERS = ["tls-ca-cert-dir", "tls-client-cert-file", "tls-client-key-file"]
AT_START = "Redis reads it at its start only"
# ERR CONFIG SET failed (possibly related to argument 'io-threads') - can't set immutable config
NEEDS_RESTART = re.compile(r"related to argument '([^']+)'\) - (can't set (?:immutable|protected) config)")


class Broken(Exception):
    """The connection ended while the server was being changed; the message says what is known."""


def sort_out(module: AnsibleModule) -> dict[str, Any]:
    """Return all declared directives in one; raises ConfError for one that is in the wrong place."""
    directives, secrets = module.params["directives"], module.params["secrets"] or {}
    for name, value in directives.items():
        if canonical(name) in SECRETS:
            # Ansible shows the arguments of a module that failed.
            values = value if isinstance(value, list) else [value]
            module.no_log_values.update(str(item) for item in values if item)
            raise ConfError(f"{name} is secret: put it in `secrets`")
    for name in secrets:
        if canonical(name) not in SECRETS:
            raise ConfError(f"{name} is no secret: put it in `directives`")
    return {**directives, **secrets}


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
                f"include {pattern} sets {', '.join(clash)}, which would override what is declared: take it out there"
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


def config_set(client: Client, values: dict[str, str], address: str) -> dict[str, str]:
    """Set all values at once and return those that need a restart, with the reason; raises ConfError or Broken.

    Redis 7 changes all of them or none.
    """
    left, refused = dict(values), dict[str, str]()
    while left:
        try:
            client.call("CONFIG", "SET", *[word for pair in left.items() for word in pair])
            break
        except ErrorReply as error:
            match = NEEDS_RESTART.search(str(error))
            name = canonical(match[1]) if match else ""
            if match is None or name not in left:
                named = re.search(r"'([^']+)'", str(error))
                raise ConfError(f"Redis refuses {named[1] if named else ', '.join(sorted(left))}: {error}") from error
            refused[name] = match[2]
            del left[name]
        except (OSError, ProtocolError) as error:
            raise Broken(
                f"the connection to {address} broke during CONFIG SET ({error}). The file was not changed; the server "
                "may have taken the new values until its next start. Run this again."
            ) from error
    return refused


class Run:
    """One run of the module: what is, what is wanted, and the way from one to the other."""

    def __init__(self, module: AnsibleModule, client: Client | None, path: str) -> None:
        self.module, self.client, self.path = module, client, path
        self.params: dict[str, Any] = module.params
        given = sort_out(module)
        self.wanted = declared(given)
        self.ownership = Ownership.of(self.params, check_mode=module.check_mode)
        self.before = read(path, "")
        header = self.params["header"] or ""
        top = "".join(f"{line if line.startswith('#') else f'# {line}'.rstrip()}\n" for line in header.splitlines())
        self.after = str(merge(top if self.before is None else self.before, given))
        # A line that Redis has written decides what is read here: nothing that Redis itself may not read.
        with as_user(self.params["owner"]):
            check_includes(self.after, set(self.wanted), module.check_mode)
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
        """Tell whether the server shows another certificate than its file holds; raises OSError."""
        shown = self.client.peer_certificate() if self.client and self.params["reload_tls"] else None
        if shown is None:
            return False
        lines = self.wanted.get("tls-cert-file")
        path = to_live(lines) if lines else self.live.get("tls-cert-file", "")
        if not path or (self.module.check_mode and not os.path.exists(path)):
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
        local = bool(self.params["server"]) and self.params["server"]["host"] in ("127.0.0.1", "::1", "localhost")
        guarded = not (allowed == "yes" or (allowed == "local" and local))
        refused = {name: "can't set immutable config" for name in self.values if name in IMMUTABLE}
        protected = {name: "can't set protected config" for name in self.values if name in PROTECTED and guarded}
        return {**refused, **protected}

    def rehearse(self) -> None:
        """Try the new file where the running server cannot judge it; raises TrialError."""
        blind = self.client is None or self.before is None or self.predict() or self.unseen
        if self.after != self.before and blind:
            trial(self.params["server_binary"], self.after, user=self.params["owner"])

    def write(self) -> dict[str, str]:
        """Write the file beside, change the server, put the file in place; return what needs a restart."""
        folder = os.path.dirname(self.path)
        if not os.path.isdir(folder):
            raise ConfError(f"{folder} is no folder: Redis is not installed")
        self.rehearse()
        if self.after == self.before:
            return self.set()
        try:
            candidate = Candidate(self.path, self.after, self.ownership.over(ownership_of(self.path)).apply)
        except OSError as error:
            raise ConfError(f"{self.path} cannot be written: {error.strerror}") from error
        try:
            if read(self.path, "") != self.before:
                raise ConfError(f"{self.path} was changed by somebody else at the same moment: run this again")
            refused = self.set()
            if self.values.get("appendonly") == "yes":
                self.wait_for_log(refused)
            try:
                candidate.replace()
            except OSError as error:
                self.take_back(refused)
                raise ConfError(f"{self.path} cannot be replaced: {error.strerror}") from error
            return refused
        finally:
            candidate.discard()

    def set(self) -> dict[str, str]:
        """Change the running server, if there is one, and return what needs a restart."""
        return config_set(self.client, self.values, where(self.params["server"])) if self.client else {}

    def wait_for_log(self, refused: dict[str, str]) -> None:
        """Wait until an append-only file that was just switched on holds all data; sets all back when it does not.

        Redis writes it in the background. With `appendonly yes` in the file, a server that died before the end would
        start without its data.
        """
        assert self.client
        deadline = time.monotonic() + self.params["loading_timeout"]
        while True:
            info = str(self.client.call("INFO", "persistence"))
            if "aof_rewrite_in_progress:0" in info and "aof_rewrite_scheduled:0" in info:
                if "aof_last_bgrewrite_status:ok" in info:
                    return
                problem = "Redis could not write it; its log says why"
                break
            if time.monotonic() > deadline:
                problem = f"it is not written after {self.params['loading_timeout']:g} s"
                break
            time.sleep(0.1)
        self.take_back(refused)
        raise ConfError(f"appendonly: no first append-only file: {problem}")

    def take_back(self, refused: dict[str, str]) -> None:
        """Set the running server's old values again."""
        if self.client:
            old = {name: self.live[name] for name in self.values if name not in refused}
            config_set(self.client, old, where(self.params["server"]))

    def restart(self, refused: dict[str, str]) -> list[dict[str, str | None]]:
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

    def main(self) -> dict[str, Any]:
        """Do it all, or say in check mode what would be done; return the result."""
        role = self.client.call("ROLE") if self.client else None
        refused = self.predict() if self.module.check_mode else self.write()
        rewrite = self.after != self.before
        applied = sorted(self.values.keys() - refused.keys())
        changed = rewrite or bool(applied)
        changed = self.ownership.declare(self.path, pretend=self.module.check_mode) or changed
        return {
            "changed": changed,
            "applied": applied,
            "restart": self.restart(refused),
            "server": "none" if not self.params["server"] else "up" if self.client else "down",
            "role": role[0] if isinstance(role, list) else None,
            "backup": f"{self.path}.previous" if rewrite and self.before is not None else None,
            "tls_reloaded": self.tls_reloaded,
            "diff": {
                "before_header": self.path,
                "after_header": self.path,
                "before": mask(self.before or ""),
                "after": mask(self.after),
            },
        }


def run(module: AnsibleModule) -> dict[str, Any]:
    """Return the result; raises what `main` reports."""
    # Before anything else, so that a mistake is told even where the server cannot be reached.
    declared(sort_out(module))
    client = connect(module.params) if module.params["server"] else None
    try:
        return Run(module, client, module.params["path"]).main()
    finally:
        if client:
            client.close()


def main() -> None:
    """Run as Ansible runs a module."""
    module = AnsibleModule(
        argument_spec={
            "path": {"type": "path", "required": True},
            "directives": {"type": "dict", "required": True},
            "secrets": {"type": "dict", "no_log": True, "default": {}},
            "header": {"type": "str"},
            "server_binary": {"type": "path", "default": "/usr/bin/redis-server"},
            "reload_tls": {"type": "bool", "default": True},
            **OWNERSHIP,
            **SERVER_OPTIONS,
        },
        supports_check_mode=True,
    )
    # A rename-command to nothing is an empty text, which is no secret and part of every other one.
    module.no_log_values.discard("")
    try:
        module.exit_json(**sendable(run(module)))
    except Broken as error:
        module.fail_json(msg=str(error))
    except (ConfError, Refused, TrialError, ErrorReply, ProtocolError, ValueError) as error:
        message = sendable(str(error))
        module.fail_json(msg=message if "Nothing was changed" in message else f"{message}. Nothing was changed.")
    except OSError as error:
        module.fail_json(
            msg=f"{error.filename or module.params['path']}: {error.strerror or error}. Nothing was changed."
        )


if __name__ == "__main__":
    main()
