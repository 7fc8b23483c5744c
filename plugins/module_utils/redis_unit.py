"""A unit of Redis: started, or restarted once if it must be, as redis_service documents it."""

from __future__ import annotations

import os
import pwd
import re
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ansible_collections.quantdesk.redis.plugins.module_utils import programs
from ansible_collections.quantdesk.redis.plugins.module_utils.failed import Failed
from ansible_collections.quantdesk.redis.plugins.module_utils.redis_files import read_bytes
from ansible_collections.quantdesk.redis.plugins.module_utils.redis_peer import listening
from ansible_collections.quantdesk.redis.plugins.module_utils.redis_server import (
    SERVER_OPTIONS,
    Refused,
    connect,
    where,
)
from ansible_collections.quantdesk.redis.plugins.module_utils.resp import Client, ErrorReply, ProtocolError

OPTIONS: dict[str, Any] = {
    "unit": {"type": "str", "required": True},
    "enabled": {"type": "bool", "default": True},
    "restart_for": {"type": "list", "elements": "str", "default": []},
    "log_file": {"type": "path"},
    "config_file": {"type": "path"},
    "start_timeout": {"type": "float", "default": 120.0},
    "user": {"type": "str"},
    "data": {"type": "path"},
    **SERVER_OPTIONS,
}
# Refusals in a row, a second apart, after which waiting is no use: each wrong login is a line in the ACL log.
PATIENCE = 3
# Of the log, bytes that may hold the last start.
LOG = 200_000
# What Redis says when it does not take its files. The first line is the cause: others follow from it.
REFUSED = re.compile(
    r"(?:Bad file format|Unknown command .* reading the append only file|Short read or OOM loading DB"
    r"|Wrong signature trying to load DB|Wrong RDB checksum|Internal error in RDB|Can't handle RDB format"
    r"|Terminating server after rdb|Invalid AOF manifest|Unable to obtain the AOF file"
    r"|Fatal error: the truncated file).*"
)
PROPERTIES = "LoadState,ActiveState,UnitFileState,NeedDaemonReload,MainPID,FragmentPath,Slice"
# In the folder of the data: its snapshot was made for a restart only.
FORCED = ".snapshot-for-restart"
# Of a snapshot whose format it does not know.
UNKNOWN_FORMAT = re.compile("Can't handle RDB format")


@dataclass
class State:
    """What systemd and the kernel say of a unit; times are seconds since the epoch."""

    loaded: bool
    active: bool
    enabled: bool
    stale: bool
    pid: int = 0
    started: float = 0.0
    # When each of the unit's files was last changed.
    files: dict[str, float] = field(default_factory=dict)
    # Whether it is neither enabled nor disabled: a unit without an [Install] section.
    fixed: bool = False
    # Whether the program was replaced since the process started.
    replaced: bool = False

    def reasons(self) -> list[str]:
        """Return why the running process is not what is installed."""
        if not self.active:
            return []
        if not self.pid:
            return ["it has no process"]
        reasons = [
            f"{path} is newer than the process" for path, changed in self.files.items() if changed > self.started
        ]
        return reasons + (["the program was replaced"] if self.replaced else [])


@dataclass
class Plan:
    """What to do to a unit, in this order."""

    reload: bool
    # The verb of systemctl, "enable" or "disable"; empty for neither.
    boot: str
    # "start" or "restart"; empty for neither.
    run: str
    reasons: list[str]

    @property
    def changes(self) -> bool:
        """Whether there is anything to do."""
        return bool(self.reload or self.boot or self.run)


def plan(state: State, enabled: bool, restart_for: list[str]) -> Plan:
    """Return what makes a unit in this state run what is installed; `restart_for` are the caller's own reasons."""
    reasons = [*restart_for, *state.reasons()] if state.active else []
    return Plan(
        reload=state.stale or not state.loaded,
        boot="" if state.enabled == enabled or state.fixed else "enable" if enabled else "disable",
        run="restart" if reasons else "" if state.active else "start",
        reasons=reasons,
    )


def started_at(pid: int) -> float:
    """Return when a process started; raises OSError when it is gone. Field 22 of proc(5)'s stat."""
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rsplit(")", 1)[1].split()
    boot = next(
        line
        for line in Path("/proc/stat").read_text(encoding="utf-8", errors="replace").splitlines()
        if line.startswith("btime ")
    )
    return int(boot.split()[1]) + int(fields[19]) / os.sysconf("SC_CLK_TCK")


def parse_state(text: str, own_file: str) -> State:
    """Return the state from the output of `systemctl show`, and what /proc knows besides.

    `own_file` is where an administrator's unit file is. systemd does not notice one that came after the package's was
    loaded.
    """
    values = dict(line.split("=", 1) for line in text.splitlines() if "=" in line)
    hidden = os.path.exists(own_file) and values.get("FragmentPath") != own_file
    state = State(
        loaded=values.get("LoadState") == "loaded",
        active=values.get("ActiveState") in ("active", "activating", "reloading"),
        enabled=values.get("UnitFileState") == "enabled",
        fixed=values.get("UnitFileState") in ("static", "generated"),
        stale=values.get("NeedDaemonReload") == "yes" or hidden,
        pid=int(values.get("MainPID") or 0),
    )
    # Not its drop-ins: what an operator has put there waits for the operator's own restart.
    file = own_file if hidden else values.get("FragmentPath", "")
    state.files = {file: os.stat(file).st_mtime} if os.path.exists(file) else {}
    if state.pid:
        try:
            # btime is a whole second: without it a file from the same second would count as newer.
            state.started = started_at(state.pid) + 1
            state.replaced = os.readlink(f"/proc/{state.pid}/exe").endswith(" (deleted)")
        except OSError:
            # It ended since systemd was asked.
            state.pid = 0
    return state


def systemctl(*words: str, timeout: float | None = None) -> subprocess.CompletedProcess[str]:
    """Run systemctl and return what came of it."""
    done: subprocess.CompletedProcess[str] = programs.run(["systemctl", *words], timeout=timeout)
    return done


def log_of(params: Mapping[str, Any], last: int = LOG) -> str:
    """Return the end of the log, which Redis may write: a link is not followed. Raises OSError."""
    return (read_bytes(params.get("log_file") or "", last) or b"").decode(errors="replace")


def evidence(params: Mapping[str, Any]) -> str:
    """Return the last lines of the unit's state, its journal and its log."""
    command = ["systemctl", "status", "--no-pager", "--lines", "15", params["unit"]]
    text: str = programs.run(command).stdout
    if params["log_file"]:
        try:
            text += "\n" + "\n".join(log_of(params).splitlines()[-15:])
        except OSError as error:
            text += f"\n{error.filename}: {error.strerror}"
    return text


def refusal(params: Mapping[str, Any]) -> str:
    """Return why Redis did not take its files at its last start, in its own words; empty when it was not that."""
    try:
        text = log_of(params)
    except OSError:
        text = ""
    if not text:
        command = ["journalctl", "--unit", params.get("unit", ""), "--lines", "50", "--no-pager", "--output", "cat"]
        try:
            text = programs.run(command).stdout
        except OSError:
            return ""
    # Of a start that went well, nothing that an earlier one said is true any more.
    found = REFUSED.search(text.rpartition("Redis is starting")[2])
    return found[0].strip() if found else ""


def advice(params: Mapping[str, Any]) -> str:
    """Return what an operator can do about a server that does not come up."""
    refused = refusal(params)
    if refused and UNKNOWN_FORMAT.search(refused):
        return (
            f"Redis refuses its data: {refused}. They are not damaged and were not changed: a newer Redis, or Valkey, "
            "wrote them, and playbooks/repair.yml names a version that reads them. Serve them with it, or take the "
            "earlier data with playbooks/restore.yml, which keeps these files aside."
        )
    if refused:
        # One file that was cut, and not the last: that Redis has shortened it before it refused it.
        unchanged = "" if "truncated" in refused else " They were not changed."
        # The advice of Redis itself, redis-check-aof --fix, would be the way that loses most.
        return (
            f"Redis refuses its data: {refused}.{unchanged} There are two ways out: playbooks/repair.yml "
            "reports the damage and the cost of each remedy, and takes the better one (a re-sync from a replica, "
            "else the latest backup, else a fix, which loses all behind the damage), once it is confirmed; and "
            "playbooks/restore.yml brings back a backup that you choose."
        )
    previous = f"{params['config_file']}.previous"
    if params["config_file"] and os.path.exists(previous):
        return f"The configuration from before the last change is {previous}."
    return "Look at the log, repair the fault that it names, and run this again."


def user_of(pid: int) -> str:
    """Return the name of a process' user; empty when it has ended."""
    try:
        status = Path(f"/proc/{pid}/status").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
    uid = int(status.partition("\nUid:")[2].split()[0])
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


class Unsaved(Exception):
    """The data are not on the disk, and the server is to stop; the message has the reason."""


def saves(client: Client) -> tuple[bool, bool]:
    """Return whether a server keeps a log, and whether it keeps snapshots."""
    reply = client.call("CONFIG", "GET", "appendonly", "save")
    assert isinstance(reply, list)
    settings = dict(zip(reply[::2], reply[1::2], strict=True))
    return settings["appendonly"] == "yes", settings["save"] != ""


def absent(address: str) -> bool:
    """Return whether this host has an address no more."""
    with socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET) as probe:
        try:
            probe.bind((address, 0))
        except OSError:
            return True
    return False


def stranded(params: Mapping[str, Any], pid: int) -> str:
    """Return why the server cannot be reached any more: all addresses that it listens on have left the host.

    Otherwise it is reached at one of them, and told of the new ones while it runs.
    """
    addresses = listening(pid, params["server"]["port"]) if params["server"] and pid else []
    gone = bool(addresses) and all(map(absent, addresses))
    return f"it listens on {', '.join(addresses)}, which this host has no more" if gone else ""


def slice_changed(shown: str) -> bool:
    """Return whether systemd has another file of the unit's slice than is there: it says who may reach the unit."""
    found = re.search(r"^Slice=(\S+)$", shown, re.MULTILINE)
    return (
        found is not None and systemctl("show", found[1], "--property", "NeedDaemonReload", "--value").stdout == "yes\n"
    )


def save(client: Client, data: str, seconds: float) -> None:
    """Have the server's data on the disk when it ends, whether it saves them by itself or not.

    Raises Unsaved: then nothing was stopped.
    """
    log, snapshots = saves(client)
    if not log:
        if not snapshots and not os.path.lexists(f"{data}/dump.rdb"):
            remember(data)
        try:
            client.call("BGSAVE")
        except ErrorReply as error:
            if "in progress" not in str(error):
                raise Unsaved(str(error)) from error
    deadline = time.monotonic() + seconds
    while True:
        lines = str(client.call("INFO", "persistence")).split("\r\n")
        info = dict(line.split(":", 1) for line in lines if ":" in line)
        if log or info["rdb_bgsave_in_progress"] == "0":
            break
        if time.monotonic() > deadline:
            raise Unsaved(f"its snapshot is not written after {seconds:g} s")
        time.sleep(0.1)
    name = "aof_last_write_status" if log else "rdb_last_bgsave_status"
    if info[name] != "ok":
        raise Unsaved(f"{name} is {info[name]}; see its log")
    if not log and not snapshots:
        # It writes what came since at its end, as any server with a point of saving does. Its file has none, as before.
        client.call("CONFIG", "SET", "save", "3600 1")


def nobody(params: Mapping[str, Any]) -> Client:
    """Raise what tells that the server of a process that runs does not answer."""
    raise Unsaved(f"nothing listens on {where(params['server'])}")


def remember(data: str) -> None:
    """Note in the folder of the data that its snapshot is for one restart, also for a run after this one."""
    with open_data(data) as folder, suppress(FileExistsError):
        os.close(os.open(FORCED, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600, dir_fd=folder))


def forget(params: Mapping[str, Any]) -> bool:
    """Remove the snapshot of a server that keeps none, where one was made for its restart: after a crash it would begin
    with old data. Return whether there was a note of one."""
    data = params["data"]
    if not data or not params["server"] or not os.path.lexists(f"{data}/{FORCED}"):
        return False
    with connect(params) or nobody(params) as client:
        # By now its file may have it keep them.
        kept = any(saves(client))
    with open_data(data) as folder:
        for name in [FORCED] if kept else ["dump.rdb", FORCED]:
            with suppress(FileNotFoundError):
                os.unlink(name, dir_fd=folder)
    return True


@contextmanager
def open_data(data: str) -> Iterator[int]:
    """Give a descriptor of the folder of the data, which Redis may write: what it links to is not followed."""
    folder = os.open(data, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        yield folder
    finally:
        os.close(folder)


def wait(params: Mapping[str, Any], seconds: float) -> str:
    """Wait until the server takes a login and has its data; return what is wrong after `seconds`, or an empty text."""
    if not params["server"]:
        return ""
    deadline = time.monotonic() + seconds
    refusals = 0
    while True:
        try:
            client = connect(params)
            if client is not None:
                client.close()
                return ""
            problem, refusals = f"no process listens on {where(params['server'])}", 0
        except (Refused, ProtocolError, OSError) as error:
            problem, refusals = str(error), refusals + 1
        if time.monotonic() > deadline or refusals == PATIENCE or not unit_alive(params["unit"]):
            return problem
        time.sleep(1 if refusals else 0.1)


def unit_alive(unit: str) -> bool:
    """Return whether systemd runs the unit or is about to."""
    return systemctl("is-active", unit).stdout.strip() in ("active", "activating", "reloading")


def bring_up(params: Mapping[str, Any], *, check_mode: bool) -> dict[str, Any]:
    """Bring the unit up and return what was done; raises Failed when it does not come up."""
    unit = params["unit"]
    if check_mode and not os.path.exists("/run/systemd/system"):
        return {"changed": True, "started": True, "restarted": False, "reasons": []}
    shown = systemctl("show", unit, "--property", PROPERTIES)
    if shown.returncode != 0:
        raise Failed(f"systemd does not know {unit}: {shown.stderr.strip()}")
    state = parse_state(shown.stdout, f"/etc/systemd/system/{unit}")
    state.stale = state.stale or slice_changed(shown.stdout)
    owner = user_of(state.pid) if state.active and state.pid else ""
    moves = bool(params["user"] and owner and owner != params["user"])
    own = [f"it runs as {owner}, and its user is {params['user']}"] if moves else []
    own += [reason] if state.active and (reason := stranded(params, state.pid)) else []
    todo = plan(state, params["enabled"], [*params["restart_for"], *own])
    done: dict[str, Any] = {
        "changed": todo.changes,
        "started": todo.run == "start",
        "restarted": todo.run == "restart",
        "reasons": todo.reasons,
    }
    if check_mode:
        return done
    began = time.monotonic()
    if moves and params["server"]:
        try:
            with connect(params) or nobody(params) as client:
                save(client, params["data"], params["start_timeout"])
        except (Refused, Unsaved, ErrorReply, ProtocolError, OSError) as error:
            raise Failed(
                f"{unit} is to run as {params['user']} and was not restarted, as its data must be on the disk "
                f"before: {error}",
                **done | {"changed": False, "restarted": False},
            ) from error
    carry_out(params, todo, done)
    problem = wait(params, params["start_timeout"])
    if problem:
        raise Failed(f"{unit} runs, but {problem}\n{advice(params)}\n{evidence(params)}", **done)
    try:
        # Also that of a run that was interrupted.
        done["changed"] = forget(params) or done["changed"]
    except (Refused, Unsaved, ErrorReply, ProtocolError, OSError) as error:
        raise Failed(
            f"{unit} runs, but {params['data']}/dump.rdb, made for its restart, is still there: {error}"
        ) from error
    done["main_pid"] = state.pid
    if todo.run:
        done["seconds"] = round(time.monotonic() - began, 2)
        done["main_pid"] = int(systemctl("show", unit, "--property", "MainPID", "--value").stdout.strip() or 0)
    return done


def carry_out(params: Mapping[str, Any], todo: Plan, done: dict[str, Any]) -> None:
    """Do what is planned; raises Failed where systemd refuses."""
    unit = params["unit"]
    for words in ([["daemon-reload"]] if todo.reload else []) + ([[todo.boot, unit]] if todo.boot else []):
        result = systemctl(*words)
        if result.returncode != 0:
            raise Failed(f"systemctl {' '.join(words)} failed: {result.stderr.strip()}", **done)
    if todo.run:
        # A unit that failed too often in a row is let off first.
        systemctl("reset-failed", unit)
        if systemctl(todo.run, unit, timeout=params["start_timeout"] + 600).returncode != 0:
            raise Failed(f"{unit} did not {todo.run}. {advice(params)}\n{evidence(params)}", **done)


def converge(params: Mapping[str, Any], *, check_mode: bool) -> dict[str, Any]:
    """Have the unit run what is installed, or say in check mode what would be done; `params` as in OPTIONS.

    Raises Failed.
    """
    try:
        return bring_up(params, check_mode=check_mode)
    except FileNotFoundError as error:
        raise Failed(f"{error.filename}: there is no such program; this host does not run systemd") from error
    except subprocess.TimeoutExpired as error:
        raise Failed(
            f"{' '.join(map(str, error.cmd))} took more than {error.timeout:.0f} s\n{evidence(params)}"
        ) from error
