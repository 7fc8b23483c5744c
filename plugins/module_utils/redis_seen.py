"""What a host and its Redis instances are, asked for redis_audit. Changes nothing.

What must be refused is tried where that is harmless even if it were not refused; the rest is asked with ACL DRYRUN,
which carries nothing out.
"""

from __future__ import annotations

import grp
import hashlib
import os
import pwd
import re
import secrets as random
import shlex
import stat
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from ansible_collections.quantdesk.redis.plugins.module_utils import programs
from ansible_collections.quantdesk.redis.plugins.module_utils.apt_state import Offers
from ansible_collections.quantdesk.redis.plugins.module_utils.audit import Unknown
from ansible_collections.quantdesk.redis.plugins.module_utils.processes import Listener, listeners_of, sockets_of
from ansible_collections.quantdesk.redis.plugins.module_utils.processes import read as read_proc
from ansible_collections.quantdesk.redis.plugins.module_utils.processes import unit_of as unit_of_group
from ansible_collections.quantdesk.redis.plugins.module_utils.redis_acl import AclError
from ansible_collections.quantdesk.redis.plugins.module_utils.redis_built_in import (
    BUILT_IN,
    Permission,
    own_key,
    permissions,
)
from ansible_collections.quantdesk.redis.plugins.module_utils.redis_conf import ConfError
from ansible_collections.quantdesk.redis.plugins.module_utils.redis_cut import Cut, last_cut
from ansible_collections.quantdesk.redis.plugins.module_utils.redis_declared_users import (
    compare,
    loadable,
    rehearse,
    users_of,
    wanted_users,
)
from ansible_collections.quantdesk.redis.plugins.module_utils.redis_directives import Comparison, certificate
from ansible_collections.quantdesk.redis.plugins.module_utils.redis_files import read
from ansible_collections.quantdesk.redis.plugins.module_utils.redis_host import servers
from ansible_collections.quantdesk.redis.plugins.module_utils.redis_probe import ask
from ansible_collections.quantdesk.redis.plugins.module_utils.redis_server import Refused, connect
from ansible_collections.quantdesk.redis.plugins.module_utils.redis_wanted import Host, Instance
from ansible_collections.quantdesk.redis.plugins.module_utils.resp import Client, ErrorReply, ProtocolError
from ansible_collections.quantdesk.redis.plugins.module_utils.rights import RIGHTS, reached
from ansible_collections.quantdesk.redis.plugins.module_utils.secret_places import Places

# Seconds for a connection, and for each reply.
TIMEOUT = 5.0
# Connections at a time: some wait for their time-out, and the server has others to serve.
TOGETHER = 3
# Seconds for a server that is loading its data.
LOADING = 60.0
# Ciphers with a hash of their own are those in CBC mode.
CBC = "SHA1:SHA256:SHA384:@SECLEVEL=0"
# By name: a `*` would bring secrets along.
DIRECTIVES = [
    "port",
    "tls-port",
    "bind",
    "protected-mode",
    "maxmemory",
    "maxmemory-policy",
    "appendonly",
    "appendfsync",
    "save",
    "maxclients",
    "client-output-buffer-limit",
    "tls-replication",
    "enable-debug-command",
    "enable-module-command",
    "enable-protected-configs",
    "acllog-max-len",
]
# Any other user of the host.
SOMEBODY = ("nobody", "nogroup")


@dataclass(frozen=True)
class Answer:
    """What one connection was answered."""

    connected: bool = False
    error: str = "not asked"
    replies: Sequence[Any] = ()
    certificate: Mapping[str, Any] = field(default_factory=dict)

    def first(self) -> Any:
        """Return the first reply, or why there is none."""
        return self.error or self.replies[0]


@dataclass(frozen=True)
class Difference:
    """What differs from the inventory; or `problem`, why that is not known."""

    problem: str = ""
    # Users that are missing, different and too many, by these words.
    users: Mapping[str, Sequence[str]] = field(default_factory=dict)
    # Directives that could be changed live, and what needs a restart.
    applied: Sequence[str] = ()
    restart: Sequence[Mapping[str, Any]] = ()


class Shared:
    """What the instances of a host have in common, asked once and only when it is wanted."""

    def __init__(self, instances: Sequence[Instance], host: Host) -> None:
        self.instances, self.host = instances, host

    @cached_property
    def units(self) -> dict[str, dict[str, str]]:
        """The state of the instances' units, by name."""
        return units(one.unit for one in self.instances)

    def pid(self, unit: str) -> int:
        """Return the process of a unit; 0 where there is none."""
        return int(self.units.get(unit, {}).get("MainPID") or 0)

    @cached_property
    def sockets(self) -> dict[int, list[Listener]]:
        """The listening sockets of the instances' processes."""
        return sockets_by_process(self.pid(one.unit) for one in self.instances)

    @cached_property
    def places(self) -> Places:
        """Where secrets must not be."""
        return Places()

    @cached_property
    def kernel(self) -> dict[str, str]:
        """The kernel's settings."""
        return kernel()

    @cached_property
    def apt(self) -> dict[str, Any]:
        """What apt offers of Redis; raises OSError and KeyError where there is no apt."""
        found: dict[str, Any] = Offers(distribution(), **self.host.packages).answer()
        return found

    @cached_property
    def undeclared(self) -> list[str]:
        """`PID unit port…` for each server that no declared unit has started."""
        return undeclared((one.unit for one in self.instances), self.host.leave)


class Seen:
    """All that is known of an instance. Each thing is asked when it is wanted, so that a fault is one row's."""

    def __init__(self, wanted: Instance, shared: Shared) -> None:
        self.wanted, self.shared, self.host = wanted, shared, shared.host

    @cached_property
    def answers(self) -> Mapping[str, Answer]:
        """What connections of all kinds were answered, by name."""
        return connections(self.wanted)

    def answer(self, name: str) -> Answer:
        """Return what a connection was answered."""
        return self.answers.get(name, Answer())

    def live(self, name: str) -> str:
        """Return a directive of the running server; raises Unknown where it has not told."""
        replies = self.answer("local").replies
        values = replies[2] if len(replies) > 2 and isinstance(replies[2], dict) else {}
        if name not in values:
            raise Unknown(f"no answer to CONFIG GET {name}")
        return str(values[name])

    def wrong(self, row: str) -> list[str]:
        """Return what the built-in users may against their records, or may not, for a row of the table."""
        rights = wanted_rights(self.wanted)
        told = iter(self.answer("rights").replies)
        pairs = [(name, one, next(told, None)) for name, those in rights.items() for one in those]
        return [text for text in (one.wrong(answer) for name, one, answer in pairs if name == row) if text]

    @cached_property
    def differences(self) -> tuple[Difference, Difference]:
        """What users and directives differ in from the inventory."""
        return compared(self.wanted)

    @property
    def users(self) -> Difference:
        """What users differ in."""
        return self.differences[0]

    @property
    def directives(self) -> Difference:
        """What directives differ in."""
        return self.differences[1]

    @property
    def unit(self) -> Mapping[str, str]:
        """Systemd's report on the unit."""
        return self.shared.units.get(self.wanted.unit, {})

    @property
    def pid(self) -> int:
        """The unit's process; 0 where there is none."""
        return self.shared.pid(self.wanted.unit)

    @cached_property
    def exposure(self) -> str:
        """The figure of systemd-analyze."""
        return exposure(self.wanted.unit)

    @cached_property
    def process_user(self) -> str:
        """Whose the process is."""
        return user_of(self.pid)

    @cached_property
    def confinement(self) -> str:
        """The kernel's report on the process' privileges."""
        return confinement(self.pid)

    @cached_property
    def listening(self) -> list[str]:
        """Where the process listens."""
        return sorted(map(str, self.shared.sockets.get(self.pid, ())))

    @cached_property
    def readable(self) -> list[str]:
        """What of its files others may read, write or run."""
        return readable_by_others(self.wanted.folders)

    @cached_property
    def foreign(self) -> list[str]:
        """What of its configuration any other user of the host reads."""
        return read_by_somebody([self.wanted.conf, self.wanted.acl, self.wanted.credentials])

    @cached_property
    def reached(self) -> list[str]:
        """What the users of other instances reach."""
        return reached_by_others(self.wanted)

    @cached_property
    def folders(self) -> list[str]:
        """`owner mode path` of each of its folders."""
        return [folder_state(path) for path in self.wanted.folders]

    @cached_property
    def odd_files(self) -> list[str]:
        """Which of the two files that root reads and writes are no plain ones of its own."""
        wanted = self.wanted
        return [text for text in (oddity(path, wanted.user) for path in (wanted.conf, wanted.acl)) if text]

    @cached_property
    def passwords(self) -> tuple[int, int]:
        """How many lines of the ACL file have a password in clear, and how many hashes are in it."""
        return passwords_in(self.wanted.acl)

    @cached_property
    def key(self) -> str:
        """`mode owner` of the certificate's key."""
        return key_on_disk(self.wanted.server["key_file"] or "")

    @cached_property
    def certificate(self) -> str:
        """The SHA-256 of the certificate on the disk."""
        return fingerprint(self.wanted.server["cert_file"] or "")

    @cached_property
    def cut(self) -> Cut | None:
        """What the last start has dropped of an append-only file."""
        return last_cut(self.wanted.log, self.wanted.sizes)

    @cached_property
    def secrets(self) -> list[str]:
        """`user in place` for each password that is where it must not be."""
        wanted = self.wanted
        paths = [wanted.acl, wanted.conf, wanted.log, f"/etc/systemd/system/{wanted.unit}"]
        passwords = {user["name"]: user.get("password") or "" for user in wanted.users}
        found: list[str] = self.shared.places.search(passwords, Places.files(paths))
        return found


def probes(wanted: Instance) -> list[dict[str, Any]]:
    """Return the connections that are made to an instance, and what is asked on each."""
    blank: dict[str, Any] = {
        **dict.fromkeys(("ca_file", "server_name", "cert_file", "key_file", "foreign_certificate")),
        **dict.fromkeys(("tls_maximum", "tls_ciphers", "password")),
        "username": "default",
    }
    ping = {"commands": [["PING"]]}
    way = {**blank, **wanted.server}
    admin = {**way, "username": "admin", "password": wanted.password("admin")}
    host = wanted.server["host"]
    questions = [["PING"], ["INFO", "server"], ["CONFIG", "GET", *DIRECTIVES]]
    result = [
        {**admin, "name": "local", "commands": questions},
        {**way, "name": "anonymous", "commands": [["PING"], ["INFO", "server"]]},
        {**admin, **ping, "name": "wrong", "password": f"wrong-{random.token_hex(20)}"},
        {**blank, **ping, "name": "plaintext port", "host": host, "port": 6379},
    ]
    if wanted.password("app"):
        commands = [["PING"], ["CONFIG", "GET", "maxmemory"]]
        result.append(
            {**way, "name": "app", "username": "app", "password": wanted.password("app"), "commands": commands}
        )
    if wanted.tls:
        without = {**way, **ping, "cert_file": None, "key_file": None}
        result += [
            {**blank, **ping, "name": "plaintext", "host": host, "port": wanted.tls_port},
            {**way, **ping, "name": "tls 1.1", "tls_maximum": "TLSv1.1", "tls_ciphers": "ALL:@SECLEVEL=0"},
            {**way, **ping, "name": "cbc", "tls_maximum": "TLSv1.2", "tls_ciphers": CBC},
            {**without, "name": "no certificate"},
            {**without, "name": "foreign certificate", "foreign_certificate": True},
        ]
    return result


def _answer(probe: Mapping[str, Any]) -> Answer:
    try:
        return Answer(**ask(probe, TIMEOUT))
    except ValueError as error:
        # Such as a certificate that cannot be read.
        return Answer(error=f"{type(error).__name__}: {error}")


def wanted_rights(wanted: Instance) -> dict[str, list[Permission]]:
    """Return what is asked about the built-in users that there are to be, by the names of the rows."""
    key = own_key(wanted.user_named("app").get("rules", "")) or "x"
    found = {}
    for user in BUILT_IN:
        declared = wanted.user_named(user.name)
        if declared and declared["enabled"] and user.confined(declared["rules"]):
            for right in user.rights:
                found[right.name] = permissions(user, right, declared["rules"], key)
    return found


def connections(wanted: Instance) -> dict[str, Answer]:
    """Make all connections to an instance, and return what each was answered, by name."""
    listed = probes(wanted)
    with ThreadPoolExecutor(max_workers=TOGETHER) as workers:
        found = dict(workers.map(lambda probe: (str(probe["name"]), _answer(probe)), listed))
    admin = listed[0]
    rights = [[*one.question()] for those in wanted_rights(wanted).values() for one in those]
    found["rights"] = _answer({**admin, "commands": rights})
    # Behind all others: what was just refused is in it.
    found["log"] = _answer({**admin, "commands": [["ACL", "LOG", "128"]]})
    return found


def compared(wanted: Instance) -> tuple[Difference, Difference]:
    """Compare users and directives with the running server, or with their files where none runs."""
    logins = [{"username": name, "password": wanted.password(name) or None} for name in ("admin", "default")]
    way = {"server": wanted.server, "logins": logins, "credentials_file": None}
    client: Client | None = None
    try:
        client = connect({**way, "timeout": TIMEOUT, "loading_timeout": LOADING})
        users = _explained(lambda: compared_users(wanted, client))
        return users, _explained(lambda: compared_directives(wanted, client))
    except (Refused, ErrorReply, ProtocolError, OSError) as error:
        problem = Difference(problem=_words(error))
        return problem, problem
    finally:
        if client:
            client.close()


def _words(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    return str(error)


def _explained(question: Callable[[], Difference]) -> Difference:
    try:
        return question()
    except (AclError, ConfError, ErrorReply, ProtocolError, OSError, ValueError) as error:
        return Difference(problem=_words(error))


def compared_users(wanted: Instance, client: Client | None) -> Difference:
    """Compare the users."""
    declared = wanted_users(
        [{"password": None, "previous_password": None, "password_hashes": [], **user} for user in wanted.users]
    )
    # A link in the place of the file is a finding, whatever the server has.
    text = read(wanted.acl)
    if client is None:
        return Difference(users=compare(loadable(text) or {}, declared))
    return Difference(users=compare(users_of(client.call("ACL", "LIST")), rehearse(client, declared)))


def compared_directives(wanted: Instance, client: Client | None) -> Difference:
    """Compare the directives."""
    local = wanted.server["host"] in ("127.0.0.1", "::1", "localhost")
    found = Comparison(wanted.directives, wanted.conf, client, local=local, owner=wanted.user)
    refused = found.predict()
    return Difference(applied=sorted(found.values.keys() - refused.keys()), restart=found.restart(refused))


def units(names: Iterable[str]) -> dict[str, dict[str, str]]:
    """Return the state of units, by name."""
    wanted = list(names)
    words = ["systemctl", "show", "--property", "Id,ActiveState,UnitFileState,MainPID", "--", *wanted]
    blocks = programs.run(words).stdout.split("\n\n")
    found = [dict(line.split("=", 1) for line in block.splitlines() if "=" in line) for block in blocks]
    return {block.get("Id", ""): block for block in found}


def exposure(unit: str) -> str:
    """Return the figure of systemd-analyze; nothing where it tells none."""
    said = programs.run(["systemd-analyze", "security", "--no-pager", unit]).stdout
    match = re.search(r"Overall exposure level for .*: ([0-9.]+) ", said)
    return match[1] if match else ""


def user_of(pid: int) -> str:
    """Return the name of the user of a process; nothing where there is none."""
    match = re.search(r"^Uid:\t(\d+)", read_proc(f"/proc/{pid}/status"), re.MULTILINE) if pid else None
    return name_of(int(match[1])) if match else ""


def name_of(uid: int) -> str:
    """Return a user's name; the number of one who has none."""
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


def confinement(pid: int) -> str:
    """Return the kernel's report on a process' privileges."""
    lines = read_proc(f"/proc/{pid}/status").splitlines() if pid else []
    return " ".join(line.replace("\t", "") for line in lines if re.match("(NoNewPrivs|Seccomp|CapEff):", line))


def sockets_by_process(pids: Iterable[int]) -> dict[int, list[Listener]]:
    """Return the listening sockets of processes."""
    there = listeners_of("self")
    inodes = {listener.inode for listener in there}
    held = {pid: sockets_of(pid, inodes) for pid in pids if pid}
    return {pid: [one for one in there if one.inode in mine] for pid, mine in held.items()}


def undeclared(declared: Iterable[str], leave: Iterable[str]) -> list[str]:
    """Return `PID unit port…` for each server of this host that none of the units has started, but for those left."""
    known, others = set(declared), servers()
    sockets = sockets_by_process(one.pid for one in others)
    found = []
    for one in others:
        unit = "" if one.container else unit_of_group(one.group)
        ports = sorted({listener.port for listener in sockets.get(one.pid, ())})
        if unit in known or (ports and str(ports[0]) in leave):
            continue
        found.append(f"{one.pid} {unit or '-'} {' '.join(map(str, ports)) or '-'}")
    return found


def distribution() -> str:
    """Return the distribution as `debian 12`; nothing where the host does not tell."""
    try:
        words = shlex.split(read_proc("/etc/os-release"), comments=True)
    except ValueError:
        return ""
    told = dict(word.split("=", 1) for word in words if "=" in word)
    return f"{told.get('ID', '')} {told.get('VERSION_ID', '').partition('.')[0]}"


def kernel() -> dict[str, str]:
    """Return the kernel's settings that Redis lives by."""
    huge = re.search(r"\[(.*)\]", read_proc("/sys/kernel/mm/transparent_hugepage/enabled"))
    return {
        "overcommit": read_proc("/proc/sys/vm/overcommit_memory").strip(),
        "somaxconn": read_proc("/proc/sys/net/core/somaxconn").strip(),
        "huge pages": huge[1] if huge else "",
    }


def readable_by_others(folders: Iterable[str]) -> list[str]:
    """Return what is below folders and open to others in any way."""
    found = []
    for folder in folders:
        for place, names, files in os.walk(folder):
            for path in (os.path.join(place, name) for name in [*names, *files]):
                try:
                    mode = os.lstat(path).st_mode
                except FileNotFoundError:
                    # Redis makes and removes files at any moment.
                    continue
                if stat.S_IMODE(mode) & 0o007:
                    found.append(path)
    return sorted(found)


def other_users(own: str) -> list[str]:
    """Return the users of this host that servers of other instances run as, or that pretend to be such."""
    names = {user.pw_name for user in pwd.getpwall() if re.match(r"redis(-|$)", user.pw_name)}
    return sorted(names - {own})


def reached_by_others(wanted: Instance) -> list[str]:
    """Return `user right path` for what other instances' users reach of an instance."""
    places = [wanted.folder, wanted.conf, wanted.acl, wanted.data, wanted.log_folder, wanted.log]
    folders = set(wanted.folders)
    questions = [(path, right) for path in places for right in RIGHTS if right != "x" or path in folders]
    return [
        f"{user} {right} {path}" for user in other_users(wanted.user) for path, right in reached(user, user, questions)
    ]


def folder_state(path: str) -> str:
    """Return `owner mode path` of a folder."""
    try:
        found = os.stat(path)
    except FileNotFoundError:
        return f"{path} is not there"
    return f"{name_of(found.st_uid)} {stat.S_IMODE(found.st_mode):o} {path}"


def oddity(path: str, user: str) -> str:
    """Return what a file is instead of a plain one of the user's, with one name; nothing where it is."""
    try:
        found = os.lstat(path)
    except FileNotFoundError:
        return f"{path} is not there"
    owner = name_of(found.st_uid)
    kinds = {stat.S_IFREG: "regular file", stat.S_IFLNK: "symbolic link", stat.S_IFDIR: "directory"}
    kind = kinds.get(stat.S_IFMT(found.st_mode), "special file")
    if (kind, found.st_nlink, owner) == ("regular file", 1, user):
        return ""
    return f"{path}: {kind}, names: {found.st_nlink}, of {owner}"


def passwords_in(path: str) -> tuple[int, int]:
    """Return how many lines of an ACL file have a password in clear, and how many hashes are in it; raises OSError."""
    # It may have another name besides, which is a finding of its own.
    handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    with os.fdopen(handle, encoding="utf-8", errors="replace") as file:
        text = file.read()
    clear = sum(re.search(r"(^| )>", line) is not None for line in text.splitlines())
    return clear, len(set(re.findall("#[0-9a-f]{64}", text)))


def key_on_disk(path: str) -> str:
    """Return `mode owner` of a key; nothing where there is none."""
    try:
        found = os.stat(path)
    except OSError:
        return ""
    return f"{stat.S_IMODE(found.st_mode):o} {name_of(found.st_uid)}"


def fingerprint(path: str) -> str:
    """Return the SHA-256 of the first certificate in a file; nothing where there is none."""
    try:
        found = certificate(path)
    except (OSError, ValueError):
        return ""
    return hashlib.sha256(found).hexdigest() if found else ""


def read_by_somebody(paths: Iterable[str]) -> list[str]:
    """Return which files a user of the host can read that none of them is for."""
    user, group = SOMEBODY
    try:
        grp.getgrnam(group)
    except KeyError:
        # Of other distributions.
        group = user
    return [path for path, _ in reached(user, group, [(path, "r") for path in paths])]


def look(instances: Sequence[Instance], host: Host) -> list[Seen]:
    """Return what is known of all instances of this host, as it will be asked."""
    shared = Shared(instances, host)
    return [Seen(wanted, shared) for wanted in instances]
