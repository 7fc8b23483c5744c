"""Find damage in a Redis server's files, and bring the server back by the way that loses least.

Three ways, the better one first:

- `replica`: a snapshot of a live replica, over the replication protocol. It costs what was not replicated.
- `restore`: the latest backup. It costs all writes since.
- `fix`: `redis-check-aof --fix` cuts the append-only file off where the damage begins. It costs all that is behind.

Each ends in the same exchange as a restore: see redis_restore. A replica is only read from. This server never becomes
its primary, so a server that lost its data cannot empty it.

All files are read, copied and linked with the rights of the server's user, whose folder it is.
"""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, BinaryIO

from databackup import programs
from databackup.errors import Failed
from databackup.owner import plain
from databackup.redis import digest, rdb
from databackup.redis.replication import Snapshot
from databackup.redis.resp import Client, ErrorReply, ProtocolError
from databackup.redis.restore import MARGIN, REPAIR, Apart, Seconds, Target, proven, replace
from databackup.redis.server import connect, credentials, info, version_of

SOUND, CUT, DAMAGED, MISSING, NEWER = "sound", "cut tail", "damaged", "missing", "newer"
REPLICA, RESTORE, FIX = "replica", "restore", "fix"
WAYS = (REPLICA, RESTORE, FIX)
# Bytes: of a log; and of what is behind a damage, how much is read as commands, and how much is searched for their number.
LOG = 1 << 20
BEHIND = 64 << 20
COUNTED = 1 << 30
CHUNK = 4 << 20
# Seconds from the note of the sizes to the start that it belongs to.
FRESH = 600
# As Redis writes a command, from its number of words to the length of the first.
COMMAND = re.compile(rb"\*[1-9][0-9]{0,8}\r\n\$[1-9][0-9]{0,3}\r\n[A-Za-z]")
START = "Redis is starting"
TRUNCATED = re.compile(r"!!! Truncating the AOF (.+) at offset ([0-9]+) !!!")
# What Redis says last when it does not take its files.
REFUSED = re.compile(
    r"# ((?:Bad file format|Unknown command .* reading the append only file|Short read or OOM loading DB"
    r"|Wrong signature trying to load DB|Wrong RDB checksum|Internal error in RDB|Can't handle RDB format"
    r"|Terminating server after rdb|Invalid AOF manifest|Unable to obtain the AOF file"
    r"|Fatal error: the truncated file).*)"
)
# What both Redis and its tools say of a snapshot whose format they do not know: nothing of that is damage.
UNKNOWN_FORMAT = re.compile("Can't handle RDB format|Wrong signature", re.IGNORECASE)
UNKNOWN_COMMAND = re.compile("Unknown command '([A-Za-z]+)'")
# Commands in append-only files that Redis 7.0 does not know, and the first that does.
COMMANDS = {
    **dict.fromkeys(("HEXPIRE", "HPEXPIRE", "HEXPIREAT", "HPEXPIREAT", "HPERSIST"), "7.4"),
    **dict.fromkeys(("HGETDEL", "HGETEX", "HSETEX"), "8.0"),
    **dict.fromkeys(("XACKDEL", "XDELEX"), "8.2"),
    **dict.fromkeys(("DELEX", "MSETEX"), "8.4"),
}
# Where an operator goes from there.
NO_REPAIR = (
    "Nothing of it is to be repaired. Have a Redis that reads it serve it; or take the data of before with "
    "playbooks/restore.yml, which keeps these files aside"
)


@dataclass
class Cut:
    """What Redis has dropped at its last start: all of a file behind `offset`."""

    file: str
    offset: int
    # When, as far as the log tells: see times_of.
    times: list[int]
    # None where nobody has noted how long the file was.
    bytes: int | None = None

    @property
    def text(self) -> str:
        """Return it as a sentence."""
        size = "what was" if self.bytes is None else f"{self.bytes} bytes"
        when = " or ".join(datetime.fromtimestamp(at, UTC).isoformat() for at in self.times) or "an unknown time"
        return f"At its start of {when} Redis found {self.file} cut and dropped {size} behind byte {self.offset}."


@dataclass
class Diagnosis:
    """What is known of a server's files."""

    state: str = SOUND
    # For an operator.
    text: str = ""
    # serving, loading, starting or stopped.
    server: str = "stopped"
    # All files that Redis loads, in bytes.
    bytes: int = 0
    # Where the damage is: the file, its size, and how far it is whole.
    file: str = ""
    size: int = 0
    whole: int = 0
    # What is behind that, in all files: bytes, and about how many commands; None where nobody counted.
    dropped: int = 0
    commands: int | None = None
    # What the tool or Redis said of it.
    said: str = ""
    # Whether Redis would start with it by itself, and whether `redis-check-aof --fix` would make it sound.
    starts: bool = True
    fixable: bool = False
    cut: Cut | None = None

    @property
    def serving(self) -> bool:
        """Tell whether clients have their data."""
        return self.server == "serving"


@dataclass
class Plan:
    """The ways of a repair: what each would cost, and why others are closed."""

    way: str = ""
    costs: dict[str, str] = field(default_factory=dict)
    closed: dict[str, str] = field(default_factory=dict)

    @property
    def told(self) -> dict[str, Any]:
        """Return it for JSON."""
        return asdict(self)


# --- Where a file stops to make sense ---


def _line(file: BinaryIO) -> bytes:
    return file.readline(128)


def _number(text: bytes) -> int:
    match = re.match(rb"[0-9]+", text)
    return int(match[0]) if match else -1


def ends_early(path: Path, whole: int) -> bool:
    """Tell whether Redis comes to the end of the file before it finds something that is no command.

    That is what it takes for a cut tail. It reads on from where `redis-check-aof` stopped, by the rules of
    https://github.com/redis/redis/blob/7.0/src/aof.c (loadSingleAppendOnlyFile).
    """
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        file.seek(whole)
        while file.tell() - whole < BEHIND:
            line = _line(file)
            if line in (b"", b"*"):
                return True
            if line[:1] == b"#":
                continue
            words = _number(line[1:])
            if line[:1] != b"*" or words < 1:
                return False
            for _ in range(words):
                line = _line(file)
                if not line:
                    return True
                if line[:1] != b"$" or ((length := _number(line[1:])) < 0 and line[1:].strip()):
                    return False
                # A text and its end of line.
                if file.tell() + max(length, 0) + 2 > size:
                    return True
                file.seek(max(length, 0) + 2, os.SEEK_CUR)
    return False


def commands_behind(path: Path, whole: int) -> int | None:
    """Return about how many commands begin behind a place; None where there is too much to look through."""
    size = path.stat().st_size
    if size - whole > COUNTED:
        return None
    with path.open("rb") as file:
        file.seek(whole)
        # Whether there are any is to be right; of many, a line that begins like one will do, which is much faster.
        count = sum(1 for _ in COMMAND.finditer(file.read(CHUNK)))
        while data := file.read(CHUNK):
            count += data.count(b"\r\n*")
    return count


# --- The diagnosis ---


def note_sizes(target: Target) -> None:
    """Note how long the append-only files of a server that does not run are.

    Redis says where it cut one off at its start, and not how much that was. A host that comes up after a crash notes it
    before Redis starts.
    """
    if target.service.active():
        return
    # A name that is a path is told where it is needed.
    with contextlib.suppress(OSError, Failed):
        with target.owner.acting():
            logs = sorted((target.data / target.log).glob("*.aof"))
            lines = [f"{path.name} {path.stat().st_size}\n" for path in logs if plain(path.name)]
        sizes_file(target).parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        sizes_file(target).write_text("".join(lines), encoding="utf-8")


def sizes_file(target: Target) -> Path:
    """Return where the sizes are noted."""
    return Path(target.source.state) / f"{target.source.name}.aof-sizes"


class Repair:
    """A server that may have lost its data. `find` returns the latest backup, or raises Failed with the reason."""

    def __init__(self, target: Target) -> None:
        self.target = target
        self.say = target.say
        self.options = target.options
        self.service = target.service
        self.owner = target.owner
        self.appends = target.configuration["appendonly"] == "yes"
        self.name = target.configuration["appendfilename"]
        self.folder = target.data / target.log
        self.unit = str(self.options["unit"])

    def diagnose(self) -> Diagnosis:
        """Read the server's files and its log, and return what is wrong; changes nothing.

        A base and a dump have a checksum. What is appended has none: a value that was changed and has kept its length is
        not found, neither here nor by Redis.
        """
        if self.target.cut_off:
            raise Failed(
                f"a restore was cut off, so what is in {self.target.data} is neither the old nor the new data; "
                f"`databackup recover {self.target.source.name}` puts the old ones back"
            )
        found = Diagnosis(server=self._server())
        refusal, found.cut = self._log()
        # A running server that has just rewritten its file has removed what was being read.
        for last in (False, False, True):
            manifest = self._manifest_text()
            try:
                with self.owner.acting():
                    self._look(found)
            except FileNotFoundError as error:
                if last:
                    raise Failed(
                        f"{error.filename}: {error.strerror}, time and again; is Redis rewriting it?"
                    ) from None
                continue
            if found.state in (SOUND, CUT) or manifest == self._manifest_text():
                break
        down = found.server in ("stopped", "starting")
        command = UNKNOWN_COMMAND.match(refusal)
        if found.state == SOUND and down and command and (needed := COMMANDS.get(command[1].upper())):
            found.state, found.starts, found.said = NEWER, False, refusal
            found.text = (
                f"{found.text} in form, and has commands of a newer Redis: {refusal}. Redis {needed} or newer reads it, and "
                f"{self._installed} is here. {NO_REPAIR}."
            )
        elif found.state == SOUND and refusal and down:
            found.state, found.starts, found.said = DAMAGED, False, refusal
            found.text = f"{found.text} in form, and yet Redis did not take them at its last start: {refusal}."
        elif found.state == SOUND:
            found.text += "."
        running = {
            "serving": "Redis serves.",
            "loading": "Redis is loading.",
            "starting": f"{self.unit} is being started and does not answer.",
            "stopped": f"{self.unit} does not run.",
        }[found.server]
        if found.serving and found.state == NEWER:
            running = (
                "Redis serves, from its memory, what it loaded before that, and overwrites the file at its next save: if "
                "you need it, copy it now."
            )
        elif found.serving and not found.starts:
            running = (
                "Redis serves, from its memory, what it loaded before that. Have it write its files anew: BGREWRITEAOF "
                "(BGSAVE without an append-only file). Do not restart it before."
            )
        cut = f" {found.cut.text}" if found.cut else ""
        found.text = f"{found.text} {running}{cut}"
        return found

    def _server(self) -> str:
        """Tell whether the server serves, loads, is being started, or does not run."""
        if not self.service.active():
            return "stopped"
        try:
            login = credentials(self.options["credentials_file"])
            with connect(self.options["server"], login, timeout=10, prove=self.target.prove) as client:
                loading = info(client, "persistence").get("loading", "0")
            return "serving" if loading == "0" else "loading"
        except ErrorReply:
            return "loading"
        except (Failed, OSError, ProtocolError) as error:
            # One that refuses our login is there all the same.
            return "serving" if "refuses the user" in str(error) else "starting"

    def _log(self) -> tuple[str, Cut | None]:
        """Return of the last start why Redis refused its files, and what it has dropped."""
        name = self.target.configuration.values.get("logfile", "").strip("\"'")
        path = self.target.data / name
        try:
            with self.owner.open(path) as file:
                file.seek(max(0, os.fstat(file.fileno()).st_size - LOG))
                text = file.read(LOG).decode(errors="replace")
        except OSError:
            text = self.service.last_words()
        lines = text.rpartition(START)[2].splitlines()
        refusal, cut = "", None
        for line in lines:
            if match := REFUSED.search(line):
                # The first is the cause: others follow from it.
                refusal = refusal or match[1]
            if match := TRUNCATED.search(line):
                cut = Cut(match[1], int(match[2]), times_of(line))
                cut.bytes = self._noted(cut)
        return refusal, cut

    def _noted(self, cut: Cut) -> int | None:
        """Return how much a start has dropped, if the file's length was noted before it."""
        try:
            path = sizes_file(self.target)
            # What was noted long before another start says nothing of this one.
            noted = int(path.stat().st_mtime)
            if not any(0 <= at - noted < FRESH for at in cut.times):
                return None
            sizes = dict(line.rsplit(" ", 1) for line in path.read_text(encoding="utf-8").splitlines())
            dropped = int(sizes.get(cut.file, 0)) - cut.offset
            return dropped if dropped > 0 else None
        except (OSError, ValueError):
            return None

    def _manifest_text(self) -> str:
        try:
            return self.owner.read(self.folder / f"{self.name}.manifest").decode(errors="replace")
        except OSError:
            return ""

    def _look(self, found: Diagnosis) -> None:
        if self.appends:
            self._look_at_log(found)
        else:
            self._look_at_dump(found)

    def _look_at_dump(self, found: Diagnosis) -> None:
        path = self.target.data / self.target.dump
        if not path.is_file():
            self._missing(found, f"{path} is not there")
            return
        found.bytes = path.stat().st_size
        if problem := self._check_rdb(path):
            self._damaged_rdb(found, path, problem)
            return
        found.state, found.text = SOUND, f"{path} is sound, {found.bytes} bytes"

    def _check_rdb(self, path: Path) -> tuple[int, str] | None:
        """Return how far a snapshot can be read and what is wrong there; None for a sound one."""
        done = self._tool("redis-check-rdb", str(path))
        return None if done.returncode == 0 else _rdb_error(done.stdout)

    @property
    def _installed(self) -> str:
        return ".".join(map(str, version_of(self.options["binary"])))

    def _damaged_rdb(self, found: Diagnosis, path: Path, problem: tuple[int, str]) -> None:
        found.state, found.starts, found.fixable = DAMAGED, False, False
        found.file, found.size = path.name, path.stat().st_size
        if UNKNOWN_FORMAT.search(problem[1]) and self._newer(found, path):
            found.said = problem[1]
            return
        found.whole, found.said = problem
        found.dropped = found.size - found.whole
        found.text = (
            f"{path} is damaged at byte {found.whole} of {found.size}: {found.said}. Redis does not start with it, and no "
            "tool mends a snapshot."
        )

    def _newer(self, found: Diagnosis, path: Path) -> bool:
        """Tell whether a snapshot that is refused was written by a newer Redis, and note that."""
        ours = version_of(self.options["binary"])
        origin = rdb.origin_of(path)
        if origin is None or not origin.beyond(ours):
            return False
        found.state, found.starts, found.fixable = NEWER, False, False
        found.file, found.size = path.name, path.stat().st_size
        broken = rdb.broken(path)
        whole = f" It is not whole either: {broken}." if broken else ""
        found.text = f"{path} {origin.unread(ours)}.{whole} {NO_REPAIR}."
        return True

    def _missing(self, found: Diagnosis, what: str) -> None:
        # Redis begins with nothing, and nobody is told.
        found.state, found.starts, found.fixable = MISSING, True, False
        found.text = f"{what}: Redis would start with no data at all."

    def _look_at_log(self, found: Diagnosis) -> None:
        """Look at the append-only file: a manifest, a base, and what was written since."""
        path = self.folder / f"{self.name}.manifest"
        text = self._manifest_text()
        old = self.target.data / self.name
        if not path.exists() and old.is_file():
            self._look_at_old_log(found, old)
            return
        if not text.strip():
            self._missing(found, f"{path} is {'empty' if path.exists() else 'not there'}")
            return
        names = manifest_files(text)
        if names is None:
            found.state, found.starts, found.fixable = DAMAGED, False, False
            found.file, found.size, found.dropped = path.name, len(text), len(text)
            found.text = f"{path} is damaged: it names no files. Redis does not start with it."
            return
        there = [self.folder / name for name in names]
        if gone := [item.name for item in there if not item.is_file()]:
            found.state, found.starts, found.fixable = DAMAGED, False, False
            found.file = gone[0]
            found.text = f"{self.folder} has no {', '.join(gone)}, which its manifest names. Redis does not start so."
            return
        found.bytes = sum(item.stat().st_size for item in there)
        done = self._tool("redis-check-aof", str(path))
        if done.returncode == 0:
            found.state, found.starts = SOUND, True
            found.text = f"{self.folder} is sound, {found.bytes} bytes in {len(there)} files"
            return
        # A base that begins with VALKEY is no snapshot for the tool, but commands that are damaged from the first byte.
        if rdb.foreign(there[0]) and self._newer(found, there[0]):
            return
        self._judge(found, there, done.stdout)

    def _look_at_old_log(self, found: Diagnosis, path: Path) -> None:
        """Look at the one file of a Redis before 7: with no manifest there, Redis takes it over at its start."""
        found.bytes = path.stat().st_size
        done = self._tool("redis-check-aof", str(path))
        if done.returncode == 0:
            found.state, found.starts = SOUND, True
            found.text = (
                f"{path} is sound, {found.bytes} bytes in one file, as Redis before 7 writes it; Redis takes it over"
            )
            return
        if self._newer(found, path):
            return
        last = " / ".join(done.stdout.strip().splitlines()[-2:])
        found.state, found.starts, found.fixable = DAMAGED, False, False
        found.file, found.size, found.said = path.name, found.bytes, last
        found.text = f"{path}, as Redis before 7 writes it, is not whole: {last}."

    def _judge(self, found: Diagnosis, there: list[Path], told: str) -> None:
        """Make out of what redis-check-aof said what Redis would do."""
        analyzed = re.findall(r"AOF analyzed: filename=(.+), size=([0-9]+), ok_up_to=([0-9]+),", told)
        if not analyzed and (names := re.findall(r"Checking RDB file (.+)", told)):
            # Of a base that it cannot read the tool says no more; it may even end by a signal.
            self._damaged_rdb(found, self.folder / names[-1], _rdb_error(told))
            return
        if not analyzed:
            raise Failed(f"redis-check-aof cannot read {self.folder}: {' / '.join(told.strip().splitlines()[-3:])}")
        found.file, found.size, found.whole = analyzed[-1][0], int(analyzed[-1][1]), int(analyzed[-1][2])
        path = self.folder / found.file
        behind = there[there.index(path) + 1 :]
        reason = re.findall(r"^0x\s*[0-9a-f]+: (.+)", told, re.MULTILINE)
        found.said = reason[-1] if reason else "it is not whole"
        found.dropped = found.size - found.whole + sum(item.stat().st_size for item in behind)
        found.commands = _sum([commands_behind(path, found.whole), *(commands_behind(item, 0) for item in behind)])
        found.fixable = not behind
        early = ends_early(path, found.whole)
        if early and found.serving:
            found.state, found.starts = SOUND, True
            found.text = (
                f"{self.folder} is sound up to byte {found.whole} of {path.name} at least; Redis writes behind it"
            )
            return
        # Of a cut, not more than the last command or transaction is left. If whole commands are behind it, what Redis
        # takes for a cut is a damaged length in the middle.
        likely = (early and found.commands is not None and found.commands <= 1) or self._transaction(path, found.whole)
        found.starts = early and not behind
        about = "" if found.commands is None else f", with about {found.commands} commands,"
        where = f"{path} is whole up to byte {found.whole} of {found.size} ({found.said})."
        if found.starts and likely:
            found.state = CUT
            found.text = (
                f"{where} What follows is the beginning of something that was never written to its end: Redis starts by "
                f"itself, and drops these {found.dropped} bytes."
            )
            return
        found.state = DAMAGED
        if found.starts:
            found.text = (
                f"{where} The {found.dropped} bytes behind that{about} are no cut tail, but Redis takes them for one: it would "
                "start and drop them all. Do not start it."
            )
        else:
            found.text = (
                f"{where} Redis does not start with it; without the {found.dropped} of {found.bytes} bytes from there on"
                f"{about} it would."
            )

    @staticmethod
    def _transaction(path: Path, whole: int) -> bool:
        """Tell whether a transaction begins there that has no end: its commands are whole, and none of them counts."""
        with path.open("rb") as file:
            file.seek(whole)
            return file.read(32).upper().startswith(b"*1\r\n$5\r\nMULTI\r\n") and ends_early(path, whole)

    def _tool(self, name: str, *words: str, answer: str = "") -> subprocess.CompletedProcess[str]:
        """Run one of Redis' tools as the owner of the data, and return what came of it."""
        beside = Path(self.options["binary"]).with_name(name)
        program = str(beside) if beside.exists() else shutil.which(name)
        if program is None:
            raise Failed(f"{name}: there is no such program; the package redis-tools has it")
        return programs.run([program, *words], input=answer, cwd="/", **self.owner.identity)

    # --- The repair ---

    def plan(self, found: Diagnosis, address: str, way: str, find: Callable[[], dict[str, Any]]) -> Plan:
        """Return which way a repair takes, and what each one costs; raises Failed where there is nothing to repair.

        `find` returns what is known of the latest backup, and raises Failed where there is none.
        """
        if way == REPLICA and not address:
            raise Failed("a re-sync needs a replica: say which, with --replica HOST:PORT")
        if not way and (found.serving or (found.server == "loading" and found.starts)):
            raise Failed(
                f"there is nothing that a repair could better: {found.text} To replace its data, say which --way"
            )
        if found.state == NEWER:
            raise Failed(f"there is nothing to repair: {found.text}")
        if not way and found.state == SOUND:
            raise Failed(f"there is nothing to repair: {found.text} To replace the data, say which --way")
        plan = Plan()
        if address:
            try:
                plan.costs[REPLICA] = self._ask_replica(address)
            except Unreachable as error:
                plan.closed[REPLICA] = str(error)
        else:
            plan.closed[REPLICA] = "no replica was named"
        try:
            facts = find()
            plan.costs[RESTORE] = (
                f"all writes of the last {facts['age_seconds']} s: backup {facts['id'][:8]} of {facts['time']} has "
                f"{facts['items']} keys"
            )
        except Failed as error:
            plan.closed[RESTORE] = str(error)
        if found.fixable and not found.serving:
            about = "" if found.commands is None else f", about {found.commands} commands"
            plan.costs[FIX] = (
                f"{found.dropped} of {found.bytes} bytes{about}: all behind byte {found.whole} of {found.file}"
            )
        else:
            plan.closed[FIX] = (
                "Redis serves, and its memory is whole"
                if found.serving
                else "redis-check-aof mends the end of the last append-only file alone"
            )
        # Of a cut tail nothing but its last command is lost, which no client was told of with appendfsync always, and
        # which is of the last second otherwise. Any other way loses as much.
        order = (FIX, *WAYS) if found.state == CUT else WAYS
        plan.way = way or next((name for name in order if name in plan.costs), "")
        if plan.way not in plan.costs:
            reasons = "; ".join(f"{name}: {why}" for name, why in plan.closed.items() if not way or name == way)
            raise Failed(f"{found.text} No way is open to repair that: {reasons}")
        return plan

    def _replica(self, address: str) -> Client:
        host, _, port = address.rpartition(":")
        if not host or not port.isdigit():
            raise Failed(f"replica: found {address!r}; expected HOST:PORT")
        # By the same certificates, and under the name that the operator gave.
        way = {name: value for name, value in self.options["server"].items() if name != "server_name"}
        server = {**way, "host": host.strip("[]"), "port": int(port)}
        try:
            return connect(server, credentials(self.options["credentials_file"]))
        except Failed as error:
            raise Unreachable(str(error)) from None

    def _ask_replica(self, address: str) -> str:
        """Return what a re-sync from a replica costs; raises Failed for one that has nothing to give."""
        with self._replica(address) as client:
            try:
                told = info(client, "server", "persistence", "replication", "memory", "keyspace")
            except ErrorReply as error:
                raise Failed(f"the replica {address} does not answer: {error}. Try again, or leave it out") from None
            except (OSError, ProtocolError) as error:
                raise Unreachable(f"the replica {address} does not answer: {error}") from None
        if told.get("loading", "0") != "0":
            raise Failed(f"the replica {address} is still loading its data. Try again in a moment, or leave it out")
        keys = sum(
            int(value.split(",")[0].split("=")[1]) for name, value in told.items() if re.match(r"db[0-9]+$", name)
        )
        if not keys:
            raise Failed(
                f"the replica {address} is empty; expected one with the data. Has it followed a primary that had lost "
                "them? Name another one, or leave it out"
            )
        ours = {
            "redis_version": told["redis_version"],
            "used_memory": told["used_memory"],
            "bytes": told["used_memory"],
        }
        environment = self.target.source.environment
        try:
            self.target.check({"environment": environment, **ours}, environment)
        except Failed as error:
            raise Failed(f"of the data of the replica {address}, as of a backup: {error}") from None
        if told.get("master_sync_in_progress", "0") != "0":
            raise Failed(
                f"the replica {address} is taking over a primary's data. Try again when it has, or leave it out"
            )
        if told.get("role") == "slave" and told.get("master_link_status") != "up":
            # Asked all the same, it answers NOMASTERLINK.
            raise Failed(
                f"the replica {address} has {keys} keys and has lost its primary; Redis gives no snapshot in that state. Make it "
                f"independent first, which keeps its data, with REPLICAOF NO ONE on {address}. Then run this again"
            )
        return f"what was not replicated to {address}, which has {keys} keys"

    def prepare(self, found: Diagnosis) -> None:
        """Stop a server that does nothing but try to start."""
        undone = self.target.recover()
        if undone:
            self.say(undone)
        if not found.serving and self.service.active():
            self.say(f"Stopping {self.unit}, which does not come up")
            self.service.stop()

    def from_replica(self, address: str) -> dict[str, Any]:
        """Put a snapshot of a replica in place, or leave everything as it was.

        The replica is asked for its data as for a backup, and for nothing else. This server is never made its primary:
        a replica would throw its data away for those of its primary, which has none.
        """
        manifest: dict[str, Any] = {}

        def fetch() -> Path:
            self.say(f"Fetching a snapshot of {address}")
            path, size, sha256 = self.target.receive(self._snapshot(address), f"the snapshot of {address}")
            digester = digest.of_file(path, self.owner)
            try:
                summary = digester.result()
            finally:
                digester.close()
            if problem := self._check_rdb(path):
                raise Failed(f"redis-check-rdb refuses the snapshot of {address} at byte {problem[0]}: {problem[1]}")
            if not summary.keys:
                raise Failed(f"the snapshot of {address} is empty; expected one with the data")
            manifest.update(items=summary.keys, digest=summary.digest, bytes=size, sha256=sha256)
            return path

        def load(path: Path, seconds: Seconds) -> tuple[Apart, dict[str, Any]]:
            return proven(self.target, path, manifest, True, seconds)

        return replace(self.target, REPAIR, "the replica's data", fetch, load)

    def _snapshot(self, address: str) -> Iterator[bytes]:
        with self._replica(address) as client:
            try:
                yield from Snapshot(client).chunks()
            except (OSError, ProtocolError, ErrorReply) as error:
                raise Failed(f"the snapshot of {address} was cut off: {error}") from None

    def fix(self, found: Diagnosis) -> dict[str, Any]:
        """Cut the append-only file off where the damage begins, in a copy, or leave everything as it was."""
        target = self.target

        def fetch() -> Path:
            self.say(f"Copying {found.file}, and cutting the copy off at byte {found.whole}")
            self._copy(found.file)
            path = target.new / target.log / f"{self.name}.manifest"
            done = self._tool("redis-check-aof", "--fix", str(path), answer="y\n")
            if done.returncode != 0:
                raise Failed(f"redis-check-aof --fix: {' / '.join(done.stdout.strip().splitlines()[-3:])}")
            return path

        def load(_path: Path, seconds: Seconds) -> tuple[Apart, dict[str, Any]]:
            began = time.monotonic()
            apart = target.start_apart()
            seconds["load"] = round(time.monotonic() - began, 2)
            login = credentials(self.options["admin_credentials_file"])
            with connect(apart, login, prove=target.prove) as client:
                try:
                    live = rdb.summarize(Snapshot(client).chunks())
                except rdb.Damaged as error:
                    raise Failed(f"what Redis has cannot be read back: {error}") from None
            return apart, {"found": {"keys": live.keys, "digest": live.digest}, "dropped": found.dropped}

        return replace(target, REPAIR, "the fixed files", fetch, load)

    def _copy(self, damaged: str) -> None:
        """Make the folder again beside it: what is cut off is copied, the rest has a second name."""
        target = self.target
        with self.owner.acting():
            needed = (self.folder / damaged).stat().st_size + MARGIN
        free = shutil.disk_usage(target.data).free
        if free < needed:
            raise Failed(
                f"{target.data}: found {free >> 20} MiB free; expected room for a copy of {damaged}, {needed >> 20} MiB"
            )
        folder = target.new / target.log
        manifest = f"{self.name}.manifest"
        try:
            target.make_new(folder)
            for name in (manifest, *(manifest_files(self._manifest_text()) or ())):
                if name in (manifest, damaged):
                    # Blocks are shared where the file system can.
                    command = ["cp", "--reflink=auto", "--", str(self.folder / name), str(folder / name)]
                    done = programs.run(command, umask=0o077, **self.owner.identity)
                    if done.returncode != 0:
                        raise Failed(f"{name} cannot be copied: {done.stderr.strip()}")
                else:
                    with self.owner.acting():
                        os.link(self.folder / name, folder / name, follow_symlinks=False)
        except OSError as error:
            raise Failed(f"{folder}: {error.strerror}; nothing else was touched") from None


class Unreachable(Failed):
    """A replica that cannot be asked: another way is taken."""


def told(found: Diagnosis) -> dict[str, Any]:
    """Return a diagnosis for JSON."""
    return asdict(found)


def manifest_files(text: str) -> list[str] | None:
    """Return the files that a manifest of Redis names, in the order in which they are loaded; None for no manifest."""
    base: list[str] = []
    later: list[str] = []
    for line in text.splitlines():
        if not line.strip() or line.startswith("#"):
            continue
        try:
            words = shlex.split(line)
        except ValueError:
            return None
        values = dict(zip(words[::2], words[1::2], strict=False))
        if not {"file", "seq", "type"} <= set(values) or not plain(values["file"]):
            return None
        if values["type"] == "b":
            base.append(values["file"])
        elif values["type"] == "i":
            later.append(values["file"])
    return base + later or None


def _rdb_error(told: str) -> tuple[int, str]:
    """Return where and why one of Redis' tools stopped to read a snapshot."""
    after = told.rpartition("--- RDB ERROR DETECTED ---")[2]
    match = re.search(r"\[offset ([0-9]+)\] (.+)", after)
    return (int(match[1]), match[2].strip()) if match else (0, " / ".join(told.strip().splitlines()[-2:]))


def _sum(counts: list[int | None]) -> int | None:
    return None if None in counts else sum(count or 0 for count in counts)


def times_of(line: str) -> list[int]:
    """Return the time of a line of Redis' log, in seconds since the epoch; two in the hour that a clock shows twice.

    The log has the host's own time without its zone. Empty where the line has no time.
    """
    match = re.search(r"([0-9]{1,2} [A-Z][a-z]{2} [0-9]{4} [0-9:]{8})", line)
    if match is None:
        return []
    local = datetime.strptime(match[1], "%d %b %Y %H:%M:%S")
    return sorted({int(local.replace(fold=fold).timestamp()) for fold in (0, 1)})
