"""Find damage in a Redis server's files, and change nothing.

All files are read with the rights of the server's user, whose folder it is.
"""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from databackup.errors import Failed
from databackup.redis import rdb, scan
from databackup.redis.log import Cut, last_start
from databackup.redis.resp import ErrorReply, ProtocolError
from databackup.redis.restore import Target
from databackup.redis.server import connect, credentials, info, version_of

SOUND, CUT, DAMAGED, MISSING, NEWER = "sound", "cut tail", "damaged", "missing", "newer"
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
        """Return whether clients have their data."""
        return self.server == "serving"

    @property
    def told(self) -> dict[str, Any]:
        """Return it for JSON."""
        return asdict(self)


class Examination:
    """A look at a server's files and its log."""

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
                f"a restore was interrupted, so the content of {self.target.data} is neither the old nor the new data; "
                f"`databackup recover {self.target.source.name}` puts the old ones back"
            )
        found = Diagnosis(server=self._server())
        refusal, found.cut = last_start(self.target)
        # A running server that has just rewritten its file has removed what was being read.
        for last in (False, False, True):
            manifest = self.manifest_text()
            try:
                with self.owner.acting():
                    self._look(found)
            except FileNotFoundError as error:
                if last:
                    raise Failed(
                        f"{error.filename}: {error.strerror}, time and again; is Redis rewriting it?"
                    ) from None
                continue
            if found.state in (SOUND, CUT) or manifest == self.manifest_text():
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
                "Redis serves, from its memory, what it loaded before that. Write its files anew: BGREWRITEAOF "
                "(BGSAVE without an append-only file). Do not restart it before."
            )
        cut = f" {found.cut.text}" if found.cut else ""
        found.text = f"{found.text} {running}{cut}"
        return found

    def _server(self) -> str:
        """Return whether the server serves, loads, is being started, or does not run."""
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

    def manifest_text(self) -> str:
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
        if problem := self.check_rdb(path):
            self._damaged_rdb(found, path, problem)
            return
        found.state, found.text = SOUND, f"{path} is sound, {found.bytes} bytes"

    def check_rdb(self, path: Path) -> tuple[int, str] | None:
        """Return how far a snapshot can be read and what is wrong there; None for a sound one."""
        done = self.target.tool("redis-check-rdb", str(path))
        return None if done.returncode == 0 else scan.rdb_error(done.stdout)

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
        """Return whether a snapshot that is refused was written by a newer Redis, and note that."""
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
        # Redis begins with nothing, and no message is printed.
        found.state, found.starts, found.fixable = MISSING, True, False
        found.text = f"{what}: Redis would start with no data at all."

    def _look_at_log(self, found: Diagnosis) -> None:
        """Look at the append-only file: a manifest, a base, and what was written since."""
        path = self.folder / f"{self.name}.manifest"
        text = self.manifest_text()
        old = self.target.data / self.name
        if not path.exists() and old.is_file():
            self._look_at_old_log(found, old)
            return
        if not text.strip():
            self._missing(found, f"{path} is {'empty' if path.exists() else 'not there'}")
            return
        names = scan.manifest_files(text)
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
        done = self.target.tool("redis-check-aof", str(path))
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
        done = self.target.tool("redis-check-aof", str(path))
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
            self._damaged_rdb(found, self.folder / names[-1], scan.rdb_error(told))
            return
        if not analyzed:
            raise Failed(f"redis-check-aof cannot read {self.folder}: {' / '.join(told.strip().splitlines()[-3:])}")
        found.file, found.size, found.whole = analyzed[-1][0], int(analyzed[-1][1]), int(analyzed[-1][2])
        path = self.folder / found.file
        behind = there[there.index(path) + 1 :]
        reason = re.findall(r"^0x\s*[0-9a-f]+: (.+)", told, re.MULTILINE)
        found.said = reason[-1] if reason else "it is not whole"
        found.dropped = found.size - found.whole + sum(item.stat().st_size for item in behind)
        found.commands = _sum(
            [scan.commands_behind(path, found.whole), *(scan.commands_behind(item, 0) for item in behind)]
        )
        found.fixable = not behind
        early = scan.ends_early(path, found.whole)
        if early and found.serving:
            found.state, found.starts = SOUND, True
            found.text = (
                f"{self.folder} is sound up to byte {found.whole} of {path.name} at least; Redis writes behind it"
            )
            return
        # Of a cut, not more than the last command or transaction is left. If whole commands are behind it, what Redis
        # takes for a cut is a damaged length in the middle.
        likely = (early and found.commands is not None and found.commands <= 1) or scan.transaction_begins(
            path, found.whole
        )
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


def _sum(counts: list[int | None]) -> int | None:
    return None if None in counts else sum(count or 0 for count in counts)
