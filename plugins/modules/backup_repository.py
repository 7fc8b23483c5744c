"""Ansible module: the repositories of hosts, from the side that keeps them. See DOCUMENTATION."""

from __future__ import annotations

DOCUMENTATION = r"""
module: backup_repository
short_description: List, maintain or fill the repositories of hosts, on the host that keeps them
description:
  - Hosts can only add to their repositories. What is too old is removed from here, with passwords that are lent for the
    run and never written to a disk.
  - restic runs as the account of each repository, so that nothing that a host has put there leads anywhere else.
options:
  path: {description: The folder with a folder for each environment., type: path, required: true}
  environment: {description: The environment of the hosts., type: str, required: true}
  repositories:
    description: The hosts, and the passwords of their repositories.
    type: list
    elements: dict
    default: []
    suboptions:
      host: {description: The host., type: str, required: true}
      password: {description: The password of its repository., type: str, required: true}
  state:
    description:
      - V(listed) lists the backups. V(maintained) removes stale locks and what the policy does not keep, and checks the
        repository. V(noted) tells how long ago that was. V(surveyed) tells whose backups are in the repository that all
        hosts shared, V(initialised) makes repositories like that one, and V(migrated) copies its backups into them.
    type: str
    choices: [listed, maintained, noted, surveyed, initialised, migrated]
    required: true
  retention: {description: "What to keep, such as {daily: 7}.", type: dict, default: {}}
  subset: {description: "How much of the data a check reads, such as 5%.", type: str, default: ""}
  lock_timeout: {description: Seconds to wait for a backup that runs., type: int, default: 300}
  single: {description: "The repository that all hosts shared, as earlier versions made it.", type: path}
  single_password: {description: Its password., type: str}
  without:
    description: Ids of snapshots in it that are not copied, such as such that cannot be read. Eight digits will do.
    type: list
    elements: str
    default: []
author: The quantdesk-redis maintainers (!UNKNOWN)
"""

EXAMPLES = r"""
- name: List the backups of a host
  quantdesk.redis.backup_repository:
    path: /srv/backups
    environment: production
    repositories: [{host: redis1, password: "{{ backup_password }}"}]
    state: listed
"""

RETURN = r"""
repositories:
  description: A dictionary for each repository, with what was found and done, or `failed` and the reason.
  type: list
  returned: always
ages:
  description: "Of V(noted): seconds since each repository was maintained or made."
  type: dict
  returned: when noted
hosts:
  description: "Of V(surveyed): the hosts with backups of the environment, and how many."
  type: dict
  returned: when surveyed
left:
  description: "Of V(surveyed): snapshots of other environments by their names, and others, which stay where they are."
  type: dict
  returned: when surveyed
problem:
  description: "Of V(surveyed): why the repository that all hosts shared cannot be read; empty where restic is missing."
  type: str
  returned: when surveyed
"""

import hashlib  # noqa: E402 - Ansible wants the documentation first
import json  # noqa: E402
import os  # noqa: E402
import pwd  # noqa: E402
import re  # noqa: E402
import shutil  # noqa: E402
import stat  # noqa: E402
import subprocess  # noqa: E402
import time  # noqa: E402
from collections.abc import Iterator  # noqa: E402
from contextlib import contextmanager  # noqa: E402
from datetime import datetime  # noqa: E402
from pathlib import Path  # noqa: E402
from typing import Any  # noqa: E402

from ansible.module_utils.basic import AnsibleModule  # noqa: E402
from ansible_collections.quantdesk.redis.plugins.module_utils import programs  # noqa: E402
from ansible_collections.quantdesk.redis.plugins.module_utils.backup_places import NAME, account, is_plain_folder  # noqa: E402
from ansible_collections.quantdesk.redis.plugins.module_utils.backup_retention import Arrived, kept  # noqa: E402
from ansible_collections.quantdesk.redis.plugins.module_utils.redis_files import Candidate, read  # noqa: E402

STATE = Path("/var/lib/backup-vault")
ID = re.compile(r"[0-9a-f]{64}")
# restic writes the lock of a run that is alive anew every five minutes, and takes one of half an hour for stale.
STALE = 1800
# Nothing is being uploaded for so long.
BROKEN = 3600
# A snapshot whose data no backup names, after so long, is of a run that was cut off.
ORPHAN = 86400
# A backup whose own word for its time is so far off from when it arrived is worth a look.
ODD = 86400
LOCKED = "repository is already locked"
# What restic says of a password, and what concerns all snapshots alike.
WRONG = "wrong password"
GENERAL = (LOCKED, "no space left", "ENOSPC", "quota exceeded")
# Where restic, as any account, puts together what it copies: encrypted data.
SCRATCH = "/tmp"
# So many snapshots that were not copied are named with the reason.
NAMED = 5
# Ids on one command line.
MANY = 400
# Rights of a restic that reads the repository that all hosts shared: it may read every file, and nothing else.
READER = [
    "--inh-caps",
    "-all,+dac_read_search",
    "--ambient-caps",
    "-all,+dac_read_search",
    "--bounding-set",
    "-all,+dac_read_search",
]


FROM_SINGLE = ("surveyed", "initialised", "migrated")


class Refused(Exception):
    """One repository cannot be worked on; the others can."""


class Repository:
    """A host's repository."""

    def __init__(self, host: str, password: str, folder: str, user: str) -> None:
        self.host = host
        self.password = password
        self.folder = folder
        if not is_plain_folder(folder):
            raise Refused("there is no folder of it here; playbooks/backup.yml makes it")
        try:
            found = pwd.getpwnam(user)
        except KeyError:
            raise Refused(f"there is no account {user} here; playbooks/backup.yml makes it") from None
        self.uid, self.gid = found.pw_uid, found.pw_gid

    @property
    def there(self) -> bool:
        """Tell whether there is a repository: the folder of a host that has never made a backup is empty."""
        try:
            return stat.S_ISREG(os.lstat(f"{self.folder}/config").st_mode)
        except FileNotFoundError:
            return False

    def restic(self, *words: str, source: tuple[str, str] | None = None, patience: int = 0) -> str:
        """Run restic as the account and return its output; with a `source` to copy from it may read all files."""
        deadline = time.monotonic() + patience
        while True:
            code, out, err = run(["-r", self.folder, *words], self.uid, self.gid, self.password, source)
            if code == 0:
                return out
            if LOCKED in err and time.monotonic() < deadline:
                time.sleep(2)
                continue
            lines = [line for line in (err + out).strip().splitlines() if line.strip()]
            raise Refused(f"restic {words[0]}: {' / '.join(lines[:3])[:500] or f'exit code {code}'}")

    def open_to_group(self) -> None:
        """Let the account's group read, as a repository is lent by that; what restic writes later goes by config."""
        if not os.lstat(f"{self.folder}/config").st_mode & 0o040:
            command = [*as_user(self.uid, self.gid), "chmod", "--recursive", "g=rX", self.folder]
            done = programs.run(command, stdin=subprocess.DEVNULL)
            if done.returncode != 0:
                raise Refused(done.stderr.strip()[:300])

    def snapshots(self) -> list[dict[str, Any]]:
        """Return all snapshots, as restic describes them."""
        found: list[dict[str, Any]] = json.loads(self.restic("snapshots", "--json", "--no-lock", "--quiet")) or []
        return [item for item in found if ID.fullmatch(str(item.get("id")))]

    @contextmanager
    def folder_of(self, name: str) -> Iterator[int]:
        """Hold one of the folders of the repository open, which must be one and not a link to one."""
        outer = os.open(self.folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        try:
            inner = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=outer)
            try:
                yield inner
            finally:
                os.close(inner)
        finally:
            os.close(outer)

    def arrivals(self) -> dict[str, float]:
        """Return when each snapshot came here, by this host's clock."""
        with self.folder_of("snapshots") as handle:
            return {
                name: os.stat(name, dir_fd=handle, follow_symlinks=False).st_mtime
                for name in os.listdir(handle)
                if ID.fullmatch(name)
            }

    def broken(self, *, remove: bool) -> int:
        """Remove lists of backups and of data that are not what their names say, and return how many.

        They are of uploads that this host has cut off; restic reads nothing as long as one lies there.
        """
        count = 0
        for folder in ("snapshots", "index"):
            with self.folder_of(folder) as handle:
                for name in os.listdir(handle):
                    info = os.stat(name, dir_fd=handle, follow_symlinks=False)
                    if not stat.S_ISREG(info.st_mode) or time.time() - info.st_mtime < BROKEN:
                        continue
                    with open(os.open(name, os.O_RDONLY | os.O_NOFOLLOW, dir_fd=handle), "rb") as file:
                        whole = hashlib.file_digest(file, "sha256").hexdigest() == name
                    if not whole:
                        count += 1
                        if remove:
                            os.unlink(name, dir_fd=handle)
        return count

    def stale_locks(self, *, remove: bool) -> int:
        """Remove locks that no run has renewed for long, and return how many. Those of a run that is alive stay.

        restic's own `unlock` goes by names of hosts and numbers of processes, which two hosts may share.
        """
        count = 0
        with self.folder_of("locks") as handle:
            for name in os.listdir(handle):
                try:
                    info = os.stat(name, dir_fd=handle, follow_symlinks=False)
                    if stat.S_ISREG(info.st_mode) and time.time() - info.st_mtime > STALE:
                        count += 1
                        if remove:
                            os.unlink(name, dir_fd=handle)
                except FileNotFoundError:
                    continue
        return count


def run(
    words: list[str], uid: int, gid: int, password: str, source: tuple[str, str] | None = None
) -> tuple[int, str, str]:
    """Run restic as a user, and return exit code, output and messages. Passwords go through pipes."""
    pipes = [secret_pipe(password, uid)]
    environment = {
        "PATH": "/usr/bin:/bin",
        "LC_ALL": "C",
        "HOME": "/nonexistent",
        "TZ": "UTC",
        "TMPDIR": SCRATCH,
        "RESTIC_PASSWORD_FILE": f"/proc/self/fd/{pipes[0]}",
    }
    extra: list[str] = []
    if source:
        pipes.append(secret_pipe(source[1], uid))
        extra = ["--from-repo", source[0], "--from-password-file", f"/proc/self/fd/{pipes[1]}"]
    command = as_user(uid, gid, READER if source or uid == NOBODY else NOTHING)
    try:
        done = subprocess.run(
            [*command, "restic", "--no-cache", *words, *extra],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            check=False,
            env=environment,
            cwd="/",
            umask=0o027,
            pass_fds=pipes,
        )
    except FileNotFoundError as error:
        raise Refused(f"{error.filename} is not installed; playbooks/backup.yml installs it") from None
    finally:
        for pipe in pipes:
            os.close(pipe)
    return done.returncode, done.stdout, done.stderr


def as_user(uid: int, gid: int, rights: list[str] | None = None) -> list[str]:
    """Return the beginning of a command that runs as a user, without any of root's rights but those named."""
    words = ["setpriv", "--reuid", str(uid), "--regid", str(gid), "--clear-groups", "--no-new-privs"]
    return [*words, *(rights or NOTHING)]


NOBODY = 65534
NOTHING = ["--inh-caps", "-all", "--bounding-set", "-all"]


def secret_pipe(secret: str, reader: int) -> int:
    """Return the end of a pipe that a user can read a secret from, once."""
    out, into = os.pipe()
    os.fchown(out, reader, -1)
    os.write(into, f"{secret}\n".encode())
    os.close(into)
    return out


def facts(snapshot: dict[str, Any]) -> dict[str, str]:
    """Return what the tags of a snapshot say."""
    return dict(tag.split("=", 1) for tag in snapshot.get("tags") or [] if "=" in tag)


def identity(snapshot: dict[str, Any]) -> str:
    """Return the id that a snapshot had where it was made."""
    return str(snapshot.get("original", snapshot["id"]))


def is_a(snapshot: dict[str, Any], what: str) -> bool:
    """Tell whether a snapshot is of our program, and its data or its manifest."""
    return {"databackup", what} <= set(snapshot.get("tags") or [])


def listed(repository: Repository) -> dict[str, Any]:
    """Return the backups in a repository, the oldest first."""
    if not repository.there:
        return {"backups": []}
    found = [item for item in repository.snapshots() if is_a(item, "manifest")]
    return {
        "backups": [
            # Whose it is, is told by where it is; the name in it is the writer's choice.
            {
                **facts(item),
                "id": item["id"],
                "time": str(item["time"]),
                "host": repository.host,
                # restic leaves out what is empty.
                "said": str(item.get("hostname", "")),
            }
            for item in sorted(found, key=lambda item: str(item["time"]))
        ]
    }


def series(snapshot: dict[str, Any]) -> str:
    """Return what a snapshot is a backup of."""
    return json.dumps([snapshot.get("hostname"), snapshot.get("paths")])


def doomed(
    snapshots: list[dict[str, Any]], arrivals: dict[str, float], policy: dict[str, Any], now: float
) -> tuple[list[str], list[str]]:
    """Return the snapshots that the policy does not keep, and those of runs that were cut off. Others' stay."""
    manifests = [item for item in snapshots if is_a(item, "manifest") and item["id"] in arrivals]
    stay = kept((Arrived(item["id"], series(item), arrivals[item["id"]]) for item in manifests), policy)
    named = tuple(facts(item).get("data", "none") for item in manifests if item["id"] in stay)
    all_named = tuple(facts(item).get("data", "none") for item in manifests)
    old = [item["id"] for item in manifests if item["id"] not in stay]
    orphans = []
    for item in snapshots:
        if not is_a(item, "data") or item["id"] not in arrivals:
            continue
        if named and identity(item).startswith(named):
            continue
        if all_named and identity(item).startswith(all_named):
            old.append(item["id"])
        elif now - arrivals[item["id"]] > ORPHAN:
            orphans.append(item["id"])
    return old, orphans


def odd_times(snapshots: list[dict[str, Any]], arrivals: dict[str, float]) -> int:
    """Return how many backups tell another time than that at which they arrived, or none that there can be."""
    times = [
        (arrivals[item["id"]], at(item)) for item in snapshots if is_a(item, "manifest") and item["id"] in arrivals
    ]
    return sum(told is None or abs(arrived - told) > ODD for arrived, told in times)


def at(snapshot: dict[str, Any]) -> float | None:
    """Return the time that a snapshot tells of itself; none for what is no time here, such as one of the year 0."""
    text = re.sub(r"(\.\d{1,6})\d*", r"\1", str(snapshot.get("time")))
    try:
        return datetime.fromisoformat(text.replace("Z", "+00:00")).timestamp()
    except ValueError:
        return None


def maintained(module: AnsibleModule, repository: Repository) -> dict[str, Any]:
    """Remove stale locks and what the policy does not keep, and check what is left."""
    if not repository.there:
        return {"empty": True, "changed": False}
    patience = module.params["lock_timeout"]
    locks = repository.stale_locks(remove=not module.check_mode)
    broken = repository.broken(remove=not module.check_mode)
    snapshots, arrivals = repository.snapshots(), repository.arrivals()
    old, orphans = doomed(snapshots, arrivals, module.params["retention"], time.time())
    result = {
        "snapshots": len(snapshots),
        "removed": len(old),
        "cut_off": len(orphans),
        "stale_locks": locks,
        "broken": broken,
        "odd_times": odd_times(snapshots, arrivals),
        "changed": bool(old or orphans or locks or broken),
    }
    if module.check_mode:
        return result
    ids = [*old, *orphans]
    for begin in range(0, len(ids), MANY):
        repository.restic("forget", "--quiet", *ids[begin : begin + MANY], patience=patience)
    repository.restic("prune", "--quiet", patience=patience)
    subset = [f"--read-data-subset={module.params['subset']}"] if module.params["subset"] else []
    repository.restic("check", "--quiet", *subset, patience=patience)
    return result


class Single:
    """The repository that all hosts shared."""

    def __init__(self, path: str, password: str, without: list[str]) -> None:
        self.path = path
        self.password = password
        self.without = tuple(without)

    def snapshots(self) -> list[dict[str, Any]]:
        """Return all snapshots in it but for those that are left out."""
        code, out, err = run(
            ["-r", self.path, "snapshots", "--json", "--no-lock", "--quiet"], NOBODY, NOBODY, self.password
        )
        if code != 0:
            expected = (
                "backup_single_password to be the backup_password that it was made with"
                if WRONG in err
                else "a repository that restic can list; a list that is damaged is a file in its folder snapshots"
            )
            raise Refused(f"{self.path} cannot be opened; expected {expected}. restic says: {err.strip()[:300]}")
        found: list[dict[str, Any]] = json.loads(out) or []
        return [item for item in found if not (self.without and str(item["id"]).startswith(self.without))]

    def sorted(self, environment: str) -> tuple[dict[str, list[dict[str, Any]]], dict[str, int]]:
        """Return the snapshots of our program of an environment by host, and how many others there are of which."""
        found: dict[str, list[dict[str, Any]]] = {}
        left: dict[str, int] = {}
        for item in self.snapshots():
            host = str(item.get("hostname"))
            of = facts(item).get("environment", "")
            # A host could call itself anything there; what is no name of a host stays where it is.
            if "databackup" not in (item.get("tags") or []) or not NAME.fullmatch(host) or not NAME.fullmatch(of):
                of = "none"
            elif of == environment:
                found.setdefault(host, []).append(item)
                continue
            left[of] = left.get(of, 0) + 1
        return found, left

    def arrivals(self, wanted: list[dict[str, Any]]) -> dict[str, float]:
        """Return when the files of snapshots came there, by the ids that these had where they were made."""
        found: dict[str, float] = {}
        for item in wanted:
            came = os.lstat(f"{self.path}/snapshots/{item['id']}").st_mtime
            found[identity(item)] = min(came, found.get(identity(item), came))
        return found

    def close(self) -> None:
        """Give it to root, without any right to write."""
        for parent, folders, files, handle in os.fwalk(self.path, topdown=False, follow_symlinks=False):
            for name in [*folders, *files]:
                os.chown(name, 0, 0, dir_fd=handle, follow_symlinks=False)
                mode = os.stat(name, dir_fd=handle, follow_symlinks=False).st_mode
                if stat.S_ISREG(mode) or stat.S_ISDIR(mode):
                    # Root's by now, so nobody puts a link in its place.
                    os.chmod(name, 0o500 if stat.S_ISDIR(mode) else 0o400, dir_fd=handle)
            os.fchown(handle, 0, 0)
            os.fchmod(handle, 0o500)
            del parent


def initialised(module: AnsibleModule, repository: Repository, single: Single) -> dict[str, Any]:
    """Make a repository that cuts data as that of all hosts does, so that copies take no room twice."""
    if repository.there:
        return {"changed": False}
    if not module.check_mode:
        repository.restic("init", "--quiet", "--copy-chunker-params", source=(single.path, single.password))
        repository.open_to_group()
    return {"changed": True}


def migrated(
    module: AnsibleModule, repository: Repository, single: Single, wanted: list[dict[str, Any]]
) -> dict[str, Any]:
    """Copy the snapshots of a host into its own repository; those that are there already are left alone."""
    if not repository.there and module.check_mode:
        return {"snapshots": len(wanted), "copied": len(wanted), "changed": bool(wanted)}
    initialised(module, repository, single)
    if not module.check_mode:
        repository.open_to_group()
    known = originals(repository)
    missing = [item["id"] for item in wanted if identity(item) not in known]
    result: dict[str, Any] = {"snapshots": len(wanted), "copied": len(missing), "changed": bool(missing)}
    if not module.check_mode:
        reasons = copy(repository, single, missing, module.params["lock_timeout"])
        there = originals(repository)
        lost = [item["id"] for item in wanted if identity(item) not in there]
        date_copies(repository, single.arrivals(wanted))
        if lost:
            told = "; ".join(f"{name[:8]}: {reasons.get(name, 'it did not arrive')}" for name in lost[:NAMED])
            names = ", ".join(f'"{name[:8]}"' for name in lost)
            result["copied"] = len(missing) - len(lost)
            result["failed"] = (
                f"{len(lost)} of {len(wanted)} snapshots were not copied ({told}). Run it again; what cannot be read "
                f"is left out by backup_repository_single_without: [{names}]"
            )
    return result


def copy(repository: Repository, single: Single, names: list[str], patience: int) -> dict[str, str]:
    """Copy snapshots, and return why some could not be. One that cannot be read is left behind by itself."""
    reasons: dict[str, str] = {}
    source = (single.path, single.password)
    for begin in range(0, len(names), MANY):
        some = names[begin : begin + MANY]
        try:
            repository.restic("copy", "--quiet", "--no-lock", *some, source=source, patience=patience)
        except Refused as refused:
            if any(word in str(refused) for word in GENERAL):
                raise
            for name in some:
                try:
                    repository.restic("copy", "--quiet", "--no-lock", name, source=source, patience=patience)
                except Refused as alone:
                    reasons[name] = str(alone)
    return reasons


def originals(repository: Repository) -> set[str]:
    """Return the ids that the snapshots of a repository had where they were made."""
    return {identity(item) for item in repository.snapshots()}


def date_copies(repository: Repository, arrivals: dict[str, float]) -> None:
    """Have copies count, for the retention, as if they had arrived when they were made.

    Any host could write any host's backups into the repository that all shared, and have them tell any time: none
    counts for younger than its file there.
    """
    with repository.folder_of("snapshots") as handle:
        for item in repository.snapshots():
            if "original" not in item or identity(item) not in arrivals:
                continue
            arrived = os.stat(item["id"], dir_fd=handle, follow_symlinks=False).st_mtime
            when = dated(at(item), min(arrived, arrivals[identity(item)]), time.time())
            os.utime(item["id"], (when, when), dir_fd=handle, follow_symlinks=False)


def dated(told: float | None, arrived: float, now: float) -> float:
    """Return the time from which a copy counts: the earliest one that is known of it."""
    return max(0.0, min(arrived if told is None else told, arrived, now))


def note(module: AnsibleModule, results: list[dict[str, Any]]) -> None:
    """Write down, for verify.yml, when each repository was last maintained."""
    if module.check_mode:
        return
    STATE.mkdir(mode=0o700, exist_ok=True)
    path = f"{STATE}/{module.params['environment']}.json"
    known: dict[str, Any] = json.loads(read(path) or "{}")
    known |= {item["host"]: time.time() for item in results if "failed" not in item and not item.get("empty")}
    Candidate(path, json.dumps(known, indent=2) + "\n", lambda target: os.chmod(target, 0o600)).replace(keep=False)


def ages(path: str, environment: str) -> dict[str, int]:
    """Return how many seconds ago each repository of an environment was maintained; one that is new, was made."""
    folder = f"{path}/{environment}"
    known: dict[str, float] = json.loads(read(f"{STATE}/{environment}.json") or "{}")
    found: dict[str, int] = {}
    for host in sorted(os.listdir(folder)) if is_plain_folder(folder) else []:
        try:
            made = os.lstat(f"{folder}/{host}/config").st_mtime
        except (FileNotFoundError, NotADirectoryError):
            continue
        found[host] = round(time.time() - max(made, known.get(host, 0)))
    return found


def main() -> None:
    """Run as Ansible runs a module."""
    module = AnsibleModule(
        argument_spec={
            "path": {"type": "path", "required": True},
            "environment": {"type": "str", "required": True},
            "repositories": {
                "type": "list",
                "elements": "dict",
                "default": [],
                "options": {
                    "host": {"type": "str", "required": True},
                    "password": {"type": "str", "required": True, "no_log": True},
                },
            },
            "state": {
                "type": "str",
                "choices": ["listed", "maintained", "noted", "surveyed", "initialised", "migrated"],
                "required": True,
            },
            "retention": {"type": "dict", "default": {}},
            "subset": {"type": "str", "default": ""},
            "lock_timeout": {"type": "int", "default": 300},
            "single": {"type": "path"},
            "single_password": {"type": "str", "no_log": True},
            "without": {"type": "list", "elements": "str", "default": []},
        },
        required_if=[("state", kind, ("single", "single_password")) for kind in FROM_SINGLE]
        + [("state", "maintained", ("retention",))],
        supports_check_mode=True,
    )
    path, environment, state = (module.params[name] for name in ("path", "environment", "state"))
    if not all(
        NAME.fullmatch(name) for name in [environment, *(item["host"] for item in module.params["repositories"])]
    ):
        module.fail_json(msg="found a name that is none; expected names of an environment and of hosts")
    if state == "maintained" and not module.params["retention"]:
        module.fail_json(msg="retention: found nothing; expected what to keep, such as {daily: 7}")
    if state == "noted":
        module.exit_json(changed=False, ages=ages(path, environment), repositories=[])
    single = Single(module.params["single"] or "", module.params["single_password"] or "", module.params["without"])
    old: dict[str, list[dict[str, Any]]] = {}
    if state in ("surveyed", "migrated"):
        left: dict[str, int] = {}
        problem = ""
        try:
            # Before the first run there may be none on the host.
            if shutil.which("restic") or state == "migrated":
                old, left = single.sorted(environment)
        except Refused as refused:
            problem = str(refused)
        if state == "surveyed":
            many = {host: len(items) for host, items in old.items()}
            module.exit_json(changed=False, hosts=many, left=left, problem=problem, repositories=[])
        if problem:
            module.fail_json(msg=problem)

    results: list[dict[str, Any]] = []
    for item in module.params["repositories"]:
        host = item["host"]
        try:
            place = f"{path}/{environment}/{host}"
            repository = Repository(host, item["password"], place, account(environment, host))
            if state == "listed":
                done = listed(repository)
            elif state == "maintained":
                done = maintained(module, repository)
            elif state == "initialised":
                done = initialised(module, repository, single)
            else:
                done = migrated(module, repository, single, old.get(host, []))
        except (Refused, OSError) as error:
            done = {"failed": str(error), "changed": False}
        results.append({"host": host, **done})
    failed = [f"{item['host']}: {item['failed']}" for item in results if "failed" in item]
    changed = any(item.get("changed", False) for item in results)
    if state == "maintained":
        note(module, results)
    if state == "migrated" and not failed:
        forgotten = sorted(set(old) - {item["host"] for item in results})
        if forgotten:
            failed.append(f"{module.params['single']}: the backups of {', '.join(forgotten)} were not migrated")
        elif not module.check_mode:
            single.close()
    if failed and state != "listed":
        module.fail_json(msg="; ".join(failed), repositories=results, changed=changed)
    module.exit_json(changed=changed, repositories=results)


if __name__ == "__main__":
    main()
