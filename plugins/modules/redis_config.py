"""Ansible module: managed directives in redis.conf and on the running server. See DOCUMENTATION."""

from __future__ import annotations

DOCUMENTATION = r"""
module: redis_config
short_description: Keep directives in redis.conf and on the running server as declared
description:
  - Merges directives into the configuration file. Lines that mean the same already, and all that are not managed, stay
    as they are, so a file that Redis rewrote (CONFIG REWRITE, a failover) is not fought over.
  - Sets on the running server what differs there, in one CONFIG SET, all of it or nothing. Restarts nothing; what needs
    a restart is returned, also when an earlier run was interrupted before it.
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

import os  # noqa: E402 - Ansible wants the documentation first
import re  # noqa: E402
import time  # noqa: E402
from typing import Any  # noqa: E402

from ansible.module_utils.basic import AnsibleModule  # noqa: E402
from ansible_collections.quantdesk.redis.plugins.module_utils.redis_conf import (  # noqa: E402
    SECRETS,
    ConfError,
    canonical,
    declared,
    mask,
)
from ansible_collections.quantdesk.redis.plugins.module_utils.redis_directives import Comparison  # noqa: E402
from ansible_collections.quantdesk.redis.plugins.module_utils.redis_files import (  # noqa: E402
    OWNERSHIP,
    Candidate,
    Ownership,
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

# ERR CONFIG SET failed (possibly related to argument 'io-threads') - can't set immutable config
NEEDS_RESTART = re.compile(r"related to argument '([^']+)'\) - (can't set (?:immutable|protected) config)")


class Broken(Exception):
    """The connection ended while the server was being changed; the message reports what is known."""


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


class Run(Comparison):
    """One run of the module: what is, what is wanted, and the way from one to the other."""

    def __init__(self, module: AnsibleModule, client: Client | None, path: str) -> None:
        self.module = module
        self.params: dict[str, Any] = module.params
        self.ownership = Ownership.of(self.params, check_mode=module.check_mode)
        super().__init__(
            sort_out(module),
            path,
            client,
            local=bool(self.params["server"]) and self.params["server"]["host"] in ("127.0.0.1", "::1", "localhost"),
            owner=self.params["owner"],
            header=self.params["header"] or "",
            pretend=module.check_mode,
            reload_tls=self.params["reload_tls"],
        )

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
                raise ConfError(f"{self.path} was changed by another program at the same moment: run this again")
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
                problem = "Redis could not write it; see its log"
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
