"""Ansible module: what an application runs on a host, and the switch to something else. See DOCUMENTATION."""

from __future__ import annotations

DOCUMENTATION = r"""
module: app_deployment
short_description: Run a release of an application in several instances, replaced one at a time, with the way back
description:
  - An instance is the unit C(NAME@PORT.service), with O(socket) also C(NAME@PORT.socket). C(NAME.target) holds them.
  - Puts O(files) and O(environment) in place, leads O(current) to O(release), and restarts each instance that runs
    anything older, each healthy before the next. With sockets no connection is refused meanwhile.
  - When one does not get healthy, all of it is as before, the instances too, and the task fails with the last lines of
    its journal. A run that was interrupted is completed by the next one, as it asks what runs, not what it changed.
  - Instances whose environment names a C(TLS_CERT_FILE) are asked over TLS. One that shows another certificate than
    that file holds is reloaded (SIGHUP), which drops no connection.
  - Instances of other ports are stopped. So is O(replaces), a unit from before there were instances, and its file goes.
  - In check mode it only reports its steps and what there is.
options:
  name: {description: Name of the application., type: str, required: true}
  ports: {description: "Ports, one for each instance.", type: list, elements: int, required: true}
  socket: {description: Whether systemd listens for the instances., type: bool, default: false}
  address: {description: Where instances are asked for their health., type: str, default: 127.0.0.1}
  health_path: {description: What answers 200 when an instance is well., type: str, default: /}
  timeout: {description: Seconds that an instance may take to get healthy., type: float, default: 30}
  stop_timeout: {description: Seconds that it may take to stop., type: float, default: 30}
  settle: {description: Seconds to wait after an instance got healthy., type: float, default: 0}
  current: {description: Link that leads to the release., type: path, required: true}
  release: {description: Folder of the release; empty asks for nothing., type: str, default: ""}
  replaces: {description: "Service from before there were instances, removed when they run.", type: str, default: ""}
  files:
    description: Units. Those that end in .service or .socket concern the instances.
    type: list
    elements: dict
    default: []
    suboptions:
      path: {description: Where it is., type: path, required: true}
      content: {description: Its whole text., type: str, required: true}
      owner: {description: Who owns it., type: str, default: root}
      group: {description: Its group., type: str, default: root}
      mode: {description: Its mode., type: str, default: "0644"}
  environment:
    description: The environment file.
    type: dict
    suboptions:
      path: {description: Where it is., type: path, required: true}
      owner: {description: Who owns it., type: str, default: root}
      group: {description: Its group., type: str, default: root}
      mode: {description: Its mode., type: str, default: "0640"}
  environment_text:
    description: Its text, never shown. Not within O(environment), as Ansible writes that into the host's journal.
    type: str
  reads:
    description: Other files that an instance reads at its start only, such as trusted authorities.
    type: list
    elements: path
    default: []
  packages: {description: "Debian packages to look for.", type: list, elements: str, default: []}
  user: {description: User to look for., type: str, default: ""}
author: The quantdesk-redis maintainers (!UNKNOWN)
"""

EXAMPLES = r"""
- name: Switch to the release
  quantdesk.redis.app_deployment:
    name: example
    ports: [8001, 8002]
    socket: true
    current: /opt/example/current
    release: /opt/example/releases/1.0
    files:
      - {path: /etc/systemd/system/example@.service, content: "{{ lookup('template', 'example.service.j2') }}"}
    environment: {path: /etc/example/example.env}
    environment_text: "{{ lookup('template', 'environment.j2') }}"
"""

RETURN = r"""
pending: {description: "Whether there is anything to do, or was.", type: bool, returned: always}
before: {description: Release that ran before; empty for none., type: str, returned: always}
reasons: {description: "Why each instance is restarted, started or stopped.", type: dict, returned: always}
trial: {description: "Whether the release, its environment or its unit is new here.", type: bool, returned: always}
written: {description: Files that differ., type: list, returned: always}
installed:
  description: Whether the release is on the host, with the Python that it was installed for.
  type: bool
  returned: always
broken: {description: "Releases that cannot start, by name, and why.", type: dict, returned: always}
missing_packages: {description: Packages that are not installed., type: list, returned: always}
user_exists: {description: Whether the user exists., type: bool, returned: always}
instances: {description: "State of each instance, by port.", type: dict, returned: always}
target: {description: Whether the instances start with the host., type: bool, returned: always}
environment_mode: {description: "Mode, owner and group of the environment file.", type: str, returned: always}
seconds: {description: Seconds that each restart took., type: dict, returned: when something was restarted}
"""

import json  # noqa: E402 - Ansible wants the documentation first
import os  # noqa: E402
import pwd  # noqa: E402
import re  # noqa: E402
import shutil  # noqa: E402
import time  # noqa: E402
from dataclasses import dataclass, field  # noqa: E402
from pathlib import Path  # noqa: E402
from typing import Any  # noqa: E402

from ansible.module_utils.basic import AnsibleModule  # noqa: E402
from ansible_collections.quantdesk.redis.plugins.module_utils import programs  # noqa: E402
from ansible_collections.quantdesk.redis.plugins.module_utils.app_units import (  # noqa: E402
    ENVIRONMENT_OPTIONS,
    FILE_OPTIONS,
    PAUSE,
    RUNNING,
    Unwell,
    ask,
    certificate_file,
    certificate_on_disk,
    confinement,
    environment_of,
    journal,
    listed,
    own,
    put,
    show,
    shown_certificate,
    started_at,
    systemctl,
    wait_healthy,
)
from ansible_collections.quantdesk.redis.plugins.module_utils.redis_files import text_of as read  # noqa: E402
from ansible_collections.quantdesk.redis.plugins.module_utils.sendable import sendable  # noqa: E402

RELOAD = "it shows another certificate than the one on the disk"


@dataclass
class Instance:
    """One instance, as systemd and its health URL tell."""

    port: int
    service: str
    socket: str
    state: str = ""
    socket_state: str = ""
    pid: int = 0
    started: float = 0.0
    status: int = 0
    body: str = ""
    # Over TLS: whether it shows what is on the disk, and what it answers in plaintext.
    certificate: str = ""
    plaintext: str = ""

    def describe(self) -> dict[str, Any]:
        """Return the facts that verify.yml checks."""
        try:
            answer = json.loads(self.body)
        except ValueError:
            answer = None
        return {
            "state": self.state,
            "socket": self.socket_state,
            "health": self.status,
            "status": answer.get("status", "") if isinstance(answer, dict) else "",
            "process": confinement(self.pid),
            "certificate": self.certificate,
            "plaintext": self.plaintext,
        }


@dataclass
class Seen:
    """All that matters of a host."""

    before: str
    instances: list[Instance]
    # Units of ports that are not wanted any more, and the service from before there were instances.
    others: list[str]
    legacy: bool
    # Paths of files whose text differs, and of those where only owner or mode do.
    written: list[str] = field(default_factory=list)
    misowned: list[str] = field(default_factory=list)
    # Why a unit is started, restarted or stopped.
    reasons: dict[str, str] = field(default_factory=dict)
    trial: bool = False
    target: bool = False

    @property
    def changes(self) -> bool:
        """Whether there is anything to do."""
        return bool(self.written or self.misowned or self.reasons or not self.target)


def files_of(params: dict[str, Any]) -> list[dict[str, Any]]:
    """Return all files, the environment among them."""
    return [*([environment_of(params)] if params["environment"] else []), *params["files"]]


def certificate_of(params: dict[str, Any]) -> str:
    """Return the certificate that instances serve with, by the environment that is on the disk now."""
    return certificate_file(read(params["environment"]["path"]) or "") if params["environment"] else ""


def url_of(params: dict[str, Any], port: int, scheme: str = "") -> str:
    """Return where an instance answers."""
    host = f"[{params['address']}]" if ":" in params["address"] else params["address"]
    scheme = scheme or ("https" if certificate_of(params) else "http")
    return f"{scheme}://{host}:{port}{params['health_path']}"


def look_at(params: dict[str, Any], port: int, known: dict[str, str]) -> Instance:
    """Return an instance as it is now."""
    name = f"{params['name']}@{port}"
    found = Instance(port, f"{name}.service", f"{name}.socket")
    found.socket_state = known.get(found.socket, "inactive")
    if found.service in known:
        shown = show(found.service)
        found.state, found.pid = shown.get("ActiveState", ""), int(shown.get("MainPID") or 0)
    found.state = found.state or "inactive"
    try:
        found.started = started_at(found.pid) if found.pid else 0.0
    except OSError:
        # It ended since systemd was asked.
        found.pid = 0
    if found.pid:
        found.status, found.body = ask(url_of(params, port))
        if path := certificate_of(params):
            served = shown_certificate(url_of(params, port))
            found.certificate = "the one on the disk" if served == certificate_on_disk(path) else "another one"
            plain, _ = ask(url_of(params, port, "http"))
            found.plaintext = f"an answer, {plain}" if plain else "refused"
    return found


def changed_at(params: dict[str, Any]) -> float:
    """Return when what instances are started from last changed."""
    units = [file["path"] for file in files_of(params) if not file["path"].endswith((".socket", ".target"))]
    # A release that was installed again, for another Python, is newer than what runs.
    mark = [f"{params['release']}/installed"] if params["release"] else []
    paths = [path for path in [params["current"], *mark, *units, *params["reads"]] if os.path.lexists(path)]
    return max((os.lstat(path).st_mtime for path in paths), default=0.0)


def why(params: dict[str, Any], instance: Instance, stale: str, rebind: bool, changed: float) -> str:
    """Return why an instance has to be restarted, or an empty text; `stale` is what all of them are restarted for."""
    if instance.state not in RUNNING or not instance.pid:
        return "it does not run"
    if stale:
        return stale
    if params["socket"] != (instance.socket_state == "active"):
        return "systemd is to listen for it" if params["socket"] else "it is to listen by itself"
    if rebind:
        return "its socket changes"
    if instance.started < changed:
        return "it runs the release from before the last change"
    if instance.status != 200:
        return f"it is not healthy ({instance.status or instance.body})"
    return RELOAD if instance.certificate == "another one" else ""


def look(module: AnsibleModule) -> Seen:
    """Return what is, and what is to be done about it."""
    params = module.params
    known = listed(f"{params['name']}@*", *([params["replaces"]] if params["replaces"] else []))
    seen = Seen(
        before=os.readlink(params["current"]) if os.path.islink(params["current"]) else "",
        instances=[look_at(params, port, known) for port in params["ports"]],
        others=[],
        legacy=bool(params["replaces"]) and os.path.exists(f"/etc/systemd/system/{params['replaces']}"),
    )
    wanted = {unit for instance in seen.instances for unit in (instance.service, instance.socket)}
    seen.others = sorted(
        unit
        for unit, state in known.items()
        if unit.startswith(f"{params['name']}@") and unit not in wanted and state in (*RUNNING, "failed")
    )
    seen.written = [file["path"] for file in files_of(params) if read(file["path"]) != file["content"]]
    seen.misowned = [
        file["path"]
        for file in files_of(params)
        if file["path"] not in seen.written and owner_of(file["path"]) != wanted_owner(file)
    ]
    moves = params["release"] not in ("", seen.before)
    news = [path for path in seen.written if not path.endswith((".socket", ".target"))]
    lacks = python_lacks(params["release"])
    seen.trial = moves or bool(news or lacks)
    release = os.path.basename(params["release"])
    stale = f"the release is {release} now" if moves else f"{' and '.join(news)} changed" if news else lacks
    rebind = any(path.endswith(".socket") for path in seen.written)
    changed = changed_at(params)
    for instance in seen.instances:
        if reason := why(params, instance, stale, rebind, changed):
            seen.reasons[instance.service] = reason
    seen.reasons.update({unit: "no such instance is wanted" for unit in seen.others})
    if seen.legacy:
        seen.reasons[params["replaces"]] = "instances take its place"
    target = show(f"{params['name']}.target")
    seen.target = (target.get("UnitFileState"), target.get("ActiveState")) == ("enabled", "active")
    return seen


def make_folder(file: dict[str, Any]) -> None:
    """Make the folder of a file where there is none: as closed as the file, for its group."""
    folder = Path(file["path"]).parent
    if not folder.is_dir():
        folder.mkdir(mode=0o750 if int(file["mode"], 8) & 0o007 == 0 else 0o755)
        shutil.chown(folder, file["owner"], file["group"])


class Switch:
    """A switch under way: what it has replaced, so that all of it can come back."""

    def __init__(self, module: AnsibleModule, seen: Seen) -> None:
        self.module = module
        self.params: dict[str, Any] = module.params
        self.seen = seen
        self.kept: dict[str, tuple[str, os.stat_result] | None] = {}
        self.link = os.lstat(self.params["current"]) if seen.before else None
        self.touched: list[Instance] = []
        self.legacy_stopped = False
        self.moved = False
        self.seconds: dict[str, float] = {}

    def keep(self, path: str) -> None:
        """Remember a file, or that there is none."""
        text = read(path)
        self.kept[path] = None if text is None else (text, os.stat(path))

    def lead(self, target: str) -> None:
        """Lead `current` somewhere, in one step."""
        link = self.params["current"]
        partial = f"{link}.part"
        Path(partial).unlink(missing_ok=True)
        os.symlink(target, partial)
        os.replace(partial, link)

    def forward(self) -> None:
        """Put all in place and restart what is to be restarted; raises Unwell, OSError."""
        params, seen = self.params, self.seen
        for file in files_of(params):
            if file["path"] in seen.written:
                self.keep(file["path"])
                make_folder(file)
                put(file, self.module)
            elif file["path"] in seen.misowned:
                # Its time stays: it is what instances that run are compared with.
                own(file, self.module)
        if params["release"] not in ("", seen.before):
            self.lead(params["release"])
            self.moved = True
        systemctl("daemon-reload")
        for instance in seen.instances:
            if seen.reasons.get(instance.service) == RELOAD:
                self.reload(instance)
            elif instance.service in seen.reasons:
                began = time.monotonic()
                self.touched.append(instance)
                self.renew(instance)
                self.seconds[instance.service] = round(time.monotonic() - began, 2)
                time.sleep(params["settle"])
        if seen.others:
            # Sockets first: who connects now would start the service again.
            systemctl("stop", *sorted(seen.others, key=lambda unit: not unit.endswith(".socket")))
            systemctl("reset-failed", *seen.others)
        if seen.legacy:
            systemctl("disable", "--now", params["replaces"])
            Path(f"/etc/systemd/system/{params['replaces']}").unlink(missing_ok=True)
            systemctl("daemon-reload")
        if systemctl("enable", "--now", f"{params['name']}.target").returncode != 0:
            raise Unwell(f"{params['name']}.target cannot be enabled")

    def renew(self, instance: Instance) -> None:
        """Start an instance, or restart it, and wait until it is healthy; raises Unwell."""
        params = self.params
        systemctl("reset-failed", instance.service, instance.socket)
        listening = instance.socket_state == "active"
        rebind = any(path.endswith(".socket") for path in self.seen.written)
        if not (params["socket"] and listening and not rebind):
            # Who listens changes, or nobody did.
            self.leave(instance, listening)
        if params["socket"] and systemctl("is-active", instance.socket).returncode != 0:
            self.listen(instance)
        limit = params["stop_timeout"] + params["timeout"]
        if systemctl("restart", instance.service, timeout=limit).returncode != 0:
            raise Unwell(f"{instance.service} did not start")
        # Restart=always: it comes back by itself, unless systemd has given up.
        wait_healthy(
            url_of(params, instance.port), instance.service, params["timeout"], lambda state: state == "failed"
        )

    def reload(self, instance: Instance) -> None:
        """Have an instance load its certificate, and wait until it shows it; raises Unwell."""
        params, wanted = self.params, certificate_on_disk(certificate_of(self.params))
        if systemctl("reload", instance.service, timeout=params["timeout"]).returncode != 0:
            raise Unwell(f"{instance.service} cannot be reloaded")
        deadline = time.monotonic() + params["timeout"]
        while shown_certificate(url_of(params, instance.port)) != wanted:
            if time.monotonic() > deadline:
                raise Unwell(f"{instance.service} continues with another certificate than {certificate_of(params)}")
            time.sleep(PAUSE)

    def leave(self, instance: Instance, listening: bool) -> None:
        """Let go of an instance's port, and of the service from before there were instances."""
        if self.seen.legacy and not self.legacy_stopped:
            self.legacy_stopped = True
            # With sockets its port is taken over as soon as it lets go of it, while it finishes what is under way.
            systemctl("stop", *(["--no-block"] if self.params["socket"] else []), self.params["replaces"])
        if listening or instance.state in RUNNING:
            systemctl("stop", *([instance.socket] if listening else []), instance.service)

    def listen(self, instance: Instance) -> None:
        """Let systemd listen on an instance's port, as soon as it is free; raises Unwell."""
        deadline = time.monotonic() + self.params["timeout"]
        while systemctl("start", instance.socket).returncode != 0:
            if time.monotonic() > deadline:
                raise Unwell(f"port {instance.port} is not free for {instance.socket}")
            time.sleep(0.02)

    def back(self) -> str:
        """Make all of it as it was, and return in words what serves now."""
        params, before = self.params, self.seen.before
        was = {instance.service: (instance.state in RUNNING, instance.socket_state) for instance in self.touched}
        for instance in self.touched:
            running, socket_state = was[instance.service]
            if not running or (socket_state == "active") != params["socket"]:
                systemctl("stop", *([instance.socket] if params["socket"] else []), instance.service)
        if not self.seen.target:
            systemctl("disable", f"{params['name']}.target")
        for path, kept in self.kept.items():
            if kept is None:
                Path(path).unlink(missing_ok=True)
            else:
                text, stat = kept
                file = {"path": path, "content": text, "owner": str(stat.st_uid), "group": str(stat.st_gid)}
                put({**file, "mode": f"{stat.st_mode & 0o7777:04o}"}, self.module)
                os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
        if self.moved and self.link:
            self.lead(before)
            # As it was, times included: instances that were not touched are not older than it.
            os.utime(params["current"], ns=(self.link.st_atime_ns, self.link.st_mtime_ns), follow_symlinks=False)
        elif self.moved:
            Path(params["current"]).unlink(missing_ok=True)
        systemctl("daemon-reload")
        return self.resume(was)

    def resume(self, was: dict[str, tuple[bool, str]]) -> str:
        """Start what ran before, and return in words what serves now."""
        params = self.params
        name = os.path.basename(self.seen.before)
        problems: list[str] = []
        if self.legacy_stopped:
            # What is left of its stop must not undo the start.
            systemctl("stop", params["replaces"])
            systemctl("start", params["replaces"])
        for instance in self.touched:
            running, socket_state = was[instance.service]
            systemctl("reset-failed", instance.service, instance.socket)
            try:
                if socket_state == "active":
                    systemctl("start", instance.socket)
                if running:
                    systemctl("restart", instance.service, timeout=params["stop_timeout"] + params["timeout"])
                if running or self.legacy_stopped:
                    wait_healthy(
                        url_of(params, instance.port), instance.service, params["timeout"], lambda state: False
                    )
            except Unwell as error:
                problems.append(str(error))
        if (
            not self.touched
            and not self.legacy_stopped
            and any(instance.state in RUNNING for instance in self.seen.instances)
        ):
            return "No instance was restarted: running ones continue."
        if not self.seen.before or not (self.legacy_stopped or any(running for running, _ in was.values())):
            return "Nothing ran before it, so it is stopped."
        if problems:
            lacks = python_lacks(self.seen.before)
            why = "; ".join([*problems, *([lacks] if lacks else [])])
            return f"The previous release {name} was brought back, and is NOT healthy either: {why}."
        return f"The previous release {name} serves again."


def python_lacks(release: str) -> str:
    """Return what keeps the Python of an installed release from starting it; nothing where it can, or is not installed.

    A virtual environment leads to the host's Python. An upgrade of the distribution removes that one or puts another
    one in its place, which does not look into the folder of packages of the one before.
    """
    if not os.path.exists(f"{release}/installed"):
        return ""
    program = os.path.realpath(f"{release}/venv/bin/python")
    if not os.access(program, os.X_OK):
        return f"its Python {program} is gone"
    made_for = sorted(path.parent.name for path in Path(release).glob("venv/lib/python3.*/site-packages"))
    name = os.path.basename(program)
    # Of a program with another kind of name nothing is known.
    if re.fullmatch(r"python3\.[0-9]+", name) and made_for and name not in made_for:
        return f"it was installed for {made_for[-1]}, and {name} is in its place"
    return ""


def broken(releases: Path) -> dict[str, str]:
    """Return the installed releases of a folder that cannot start, and why."""
    found = {mark.parent.name: python_lacks(str(mark.parent)) for mark in sorted(releases.glob("*/installed"))}
    return {name: lacks for name, lacks in found.items() if lacks}


def installed(release: str) -> bool:
    """Tell whether a release is there to the end, for any user to run: an earlier version took over a strict umask."""
    if not os.path.exists(f"{release}/installed") or python_lacks(release):
        return False
    folders = [release, f"{release}/venv", f"{release}/venv/bin", f"{release}/venv/lib"]
    return all(os.path.isdir(folder) and os.stat(folder).st_mode & 0o005 == 0o005 for folder in folders)


def missing(packages: list[str]) -> list[str]:
    """Return the packages that are not installed."""
    if not packages:
        return []
    argv = ["dpkg-query", "--show", "--showformat", "${db:Status-Abbrev} ${Package}\\n", *packages]
    lines = programs.run(argv).stdout.splitlines()
    there = {line.split()[1] for line in lines if line.startswith("ii")}
    return [package for package in packages if package not in there]


def exists(user: str) -> bool:
    """Return whether a user exists."""
    try:
        pwd.getpwnam(user)
    except KeyError:
        return False
    return True


def wanted_owner(file: dict[str, Any]) -> str:
    """Return the result of owner_of for a file that is as wanted."""
    return f"{int(file['mode'], 8):o} {file['owner']}:{file['group']}"


def owner_of(path: str) -> str:
    """Return mode, owner and group of a file in words; empty when there is none."""
    shown: str = programs.run(["stat", "--format", "%a %U:%G", path]).stdout
    return shown.strip()


def shown(module: AnsibleModule, seen: Seen) -> dict[str, Any]:
    """Return what the module answers."""
    params = module.params
    units = [file for file in params["files"] if file["path"] in seen.written]
    return {
        "changed": seen.changes,
        "pending": seen.changes,
        "before": seen.before,
        "reasons": seen.reasons,
        "trial": seen.trial,
        "written": seen.written,
        "installed": installed(params["release"]),
        "broken": broken(Path(params["release"] or seen.before or "/nonexistent/release").parent),
        "missing_packages": missing(params["packages"]),
        "user_exists": exists(params["user"]) if params["user"] else True,
        "instances": {str(instance.port): instance.describe() for instance in seen.instances},
        "target": seen.target,
        "environment_mode": owner_of(params["environment"]["path"]) if params["environment"] else "",
        "diff": [
            {
                "before_header": file["path"],
                "after_header": file["path"],
                "before": sendable(read(file["path"]) or ""),
                "after": file["content"],
            }
            for file in units
        ],
    }


def main() -> None:
    """Run as Ansible runs a module."""
    module = AnsibleModule(
        argument_spec={
            "name": {"type": "str", "required": True},
            "ports": {"type": "list", "elements": "int", "required": True},
            "socket": {"type": "bool", "default": False},
            "address": {"type": "str", "default": "127.0.0.1"},
            "health_path": {"type": "str", "default": "/"},
            "timeout": {"type": "float", "default": 30.0},
            "stop_timeout": {"type": "float", "default": 30.0},
            "settle": {"type": "float", "default": 0.0},
            "current": {"type": "path", "required": True},
            "release": {"type": "str", "default": ""},
            "replaces": {"type": "str", "default": ""},
            "files": {"type": "list", "elements": "dict", "default": [], "options": FILE_OPTIONS},
            "environment": {"type": "dict", "options": ENVIRONMENT_OPTIONS},
            "environment_text": {"type": "str", "no_log": True},
            "reads": {"type": "list", "elements": "path", "default": []},
            "packages": {"type": "list", "elements": "str", "default": []},
            "user": {"type": "str", "default": ""},
        },
        supports_check_mode=True,
    )
    try:
        seen = look(module)
        answer = shown(module, seen)
        if module.check_mode or not seen.changes:
            module.exit_json(**answer)
    except FileNotFoundError as error:
        module.fail_json(msg=f"{error.filename}: there is no such program; this host does not run systemd")
    switch = Switch(module, seen)
    since = time.time()
    try:
        switch.forward()
    except (Unwell, OSError) as error:
        name = os.path.basename(module.params["release"])
        last = switch.touched[-1].service if switch.touched else f"{module.params['name']}.target"
        log = journal(last, since)
        now = switch.back()
        module.fail_json(
            msg=f"{module.params['name']} {name} did not become healthy: {error}.\n{now}\nIts last lines:\n{log}",
            reasons=seen.reasons,
        )
    module.exit_json(**answer, seconds=switch.seconds)


if __name__ == "__main__":
    main()
