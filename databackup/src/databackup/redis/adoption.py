"""Put a new Redis server in the place of one that somebody else set up, with its data or without.

The old server serves until its data are here, complete and checked as far as they were written; from then until the new
one serves, its clients' writes wait. Two rules hold at every moment, whatever ends this program or the host:

- Whichever of the two servers starts next, it loads every write that was acknowledged.
- What was there before is still there, in the folder `before-adoption-…` below the data or in its old place.

A journal says how far an adoption has come; `recover` puts everything back, or finishes it if the host has started the
new server meanwhile.
"""

from __future__ import annotations

import os
import shutil
import stat
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from grp import getgrnam
from pathlib import Path
from pwd import getpwnam
from typing import Any, Protocol

from databackup import journal, restore
from databackup.errors import Failed
from databackup.journal import Journal, Say
from databackup.owner import plain, remove
from databackup.redis import rdb
from databackup.redis.adoption_files import copy, open_folder, owner_of, swap
from databackup.redis.adoption_plan import KEEP, REPLACE, Plan
from databackup.redis.old_server import Old, old_of
from databackup.redis.replication import Snapshot
from databackup.redis.resp import Client, ErrorReply, ProtocolError
from databackup.redis.restore import SLACK, Service, Target
from databackup.redis.server import Configuration, connect, count, info
from databackup.service import Unit
from databackup.settings import Source

FOLDER = Path("/var/lib/redis-adoption")
# All data of a server that was set aside.
ALL = "all.rdb"
# Seconds for which clients' writes wait at a time: as long as they may wait if this program is killed.
PAUSE = 15.0
# Seconds in which a save of the old server must have ended.
SAVE = 600.0


class New(Service, Protocol):
    """What runs the new server."""

    def enable(self) -> None: ...
    def disable(self) -> None: ...
    def reload(self) -> None: ...


def boot_id() -> str:
    """Return what differs with each boot."""
    return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="utf-8", errors="replace").strip()


class Adoption:
    """One server that takes another one's place."""

    def __init__(self, plan: Plan, new: New, old: Old, say: Say, folder: Path = FOLDER) -> None:
        self.plan = plan
        self.new = new
        self.old = old
        self.say = say
        self.journal = Journal(folder / f"{plan.name}.journal", plan.name)
        staged = {file["path"]: file["staged"] for file in plan.files}
        options = {**plan.options, "config_file": staged[plan.options["config_file"]]}
        # Where an old server has used the folder, it may be another user's until the new one starts.
        self.target = Target(
            Source(plan.name, "redis", "", "", options),
            new,
            say,
            configuration=Configuration(staged[plan.options["config_file"]]),
            owner=owner_of(Path(options["data"])),
        )
        self.target.journal = self.journal
        self.data = self.target.data
        self.seconds: dict[str, float] = {}

    # --- The old server ---

    @property
    def _dump(self) -> Path:
        return Path(str(self.plan.old["data"]["dir"]), str(self.plan.old["data"]["dbfilename"]))

    @property
    def _appends(self) -> bool:
        return bool(self.plan.old["data"]["appendonly"])

    @property
    def _together(self) -> bool:
        """Whether both servers have their data in one folder."""
        return os.path.realpath(str(self.plan.old["data"]["dir"])) == os.path.realpath(self.data)

    def ask(self) -> Client:
        """Return a connection to the old server; raises Failed when none comes about."""
        old = self.plan.old
        ends = f":{old['port']}"
        listens = [item.removesuffix(ends).strip("[]") for item in old["addresses"] if item.endswith(ends)]
        anywhere = {"127.0.0.1", "0.0.0.0", "::", "*"}.intersection(listens) or not listens
        server = {"host": "127.0.0.1" if anywhere else listens[0], "port": old["port"]}
        problem = Failed("no login was tried")
        for login in (None, *((item["username"], item["password"]) for item in self._logins())):
            try:
                return connect(server, login)
            except Failed as error:
                problem = error
        raise Failed(f"the old server: {problem}; expected that redis_adopt_username and redis_adopt_password log in")

    def _logins(self) -> list[dict[str, str]]:
        logins = [item for item in self.plan.logins if item["password"]]
        if self.plan.old["config_file"]:
            with suppress(Failed, KeyError):
                password = Configuration(self.plan.old["config_file"])["requirepass"]
                logins.append({"username": "default", "password": password})
        return logins

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Make the old server's clients wait with their writes; they go on when this ends, whatever ends it."""
        client = self.ask()
        stop = threading.Event()

        def hold() -> None:
            with suppress(ErrorReply, OSError, ProtocolError):
                while not stop.wait(PAUSE / 3):
                    client.call("CLIENT", "PAUSE", str(int(PAUSE * 1000)), "WRITE")

        try:
            client.call("CLIENT", "PAUSE", str(int(PAUSE * 1000)), "WRITE")
        except ErrorReply as error:
            raise Failed(f"the old server's clients cannot be made to wait (CLIENT PAUSE): {error}") from None
        holder = threading.Thread(target=hold, daemon=True)
        holder.start()
        try:
            yield
        finally:
            stop.set()
            holder.join()
            with suppress(ErrorReply, OSError, ProtocolError, Failed), client:
                client.call("CLIENT", "UNPAUSE")

    def _set(self, **values: str) -> dict[str, str]:
        """Set directives of the old server where it allows that; return what they were."""
        before = {}
        with suppress(ErrorReply, OSError, ProtocolError, Failed), self.ask() as client:
            for name, value in values.items():
                reply = client.call("CONFIG", "GET", name.replace("_", "-"))
                assert isinstance(reply, list)
                if len(reply) == 2 and reply[1] != value:
                    client.call("CONFIG", "SET", name.replace("_", "-"), value)
                    before[name] = str(reply[1])
        return before

    # --- Its data ---

    def fetch(self) -> tuple[Path, int]:
        """Bring the old server's data here; return the file, and how many keys the server counted."""
        with self.ask() as client:
            told = info(client, "persistence", "replication", "server")
            if told.get("loading", "0") != "0":
                raise Failed("the old server is still loading its data; run this again when it is done")
            if told.get("role") != "master":
                raise Failed(f"the old server is a replica of {told.get('master_host')}; expected a primary")
            keys = count(info(client, "keyspace"))
        with self.ask() as client:
            path, size, _ = self.target.receive(Snapshot(client).chunks(), "the old server")
        self.say(f"{size >> 10} KiB are here, {keys} keys by the old server's own count")
        return path, keys

    def _leave_with_data(self, path: Path) -> None:
        """Let the old server find all of its data whenever it starts again, and not save them at its end.

        With an append-only file it has them. Without one, its dump is as old as its last save: it gets this one.
        """
        if self._appends:
            return
        until = time.monotonic() + SAVE
        while True:
            with self.ask() as client:
                if info(client, "persistence").get("rdb_bgsave_in_progress", "0") == "0":
                    break
            if time.monotonic() > until:
                raise Failed("the old server saves without end")
            time.sleep(0.1)
        folder = self._dump.parent.stat()
        copy(path, self._dump, folder.st_uid, folder.st_gid, 0o660)

    # --- The exchange ---

    def _foreign_drop_ins(self) -> list[Path]:
        ours = {file["path"] for file in self.plan.files}
        folder = Path(f"/etc/systemd/system/{self.plan.options['unit']}.d")
        return [path for path in sorted(folder.glob("*")) if str(path) not in ours]

    def _kept(self, aside: Path, path: str | Path) -> Path:
        """Return where a file from elsewhere is kept."""
        return aside / "files" / str(path).strip("/").replace("/", "%")

    def begin(self) -> Path:
        """Write the journal; return the folder where the old things will be."""
        aside = self.data / f"before-adoption-{journal.stamp()}"
        while aside.exists():
            aside = aside.with_name(f"{aside.name}-again")
        drop_ins = [str(path) for path in self._foreign_drop_ins()]
        here = [file["path"] for file in self.plan.files if os.path.lexists(file["path"])]
        (aside / "files").mkdir(mode=0o700, parents=True)
        self.journal.note(
            {
                "boot": boot_id(),
                "aside": str(aside),
                "here": here + drop_ins,
                "inodes": {},
                "moved": [],
                "active": self.old.active(),
                "owner": [self.data.stat().st_uid, self.data.stat().st_gid],
            }
        )
        return aside

    def _noted(self) -> dict[str, Any]:
        words = self.journal.read()
        assert words is not None
        return words

    def put_data(self, aside: Path) -> None:
        """Give the new server's data their names; those that had them are exchanged in one step, and kept."""
        fresh = sorted(self.target.new.iterdir())
        inodes = {item.name: item.stat().st_ino for item in fresh}
        self.journal.note({**self._noted(), "inodes": inodes})
        for item in fresh:
            place = self.data / item.name
            if os.path.lexists(place):
                swap(item, place)
                item.rename(aside / item.name)
            else:
                item.rename(place)
        self.target.new.rmdir()

    def put_files(self, aside: Path) -> None:
        """Put configuration and units in place; what had their names is kept."""
        drop_ins = self._foreign_drop_ins()
        for path in [*(Path(file["path"]) for file in self.plan.files), *drop_ins]:
            if os.path.lexists(path):
                kept = self._kept(aside, path)
                shutil.copy2(path, kept)
                # Its own user reads it again when somebody puts it back.
                os.chown(kept, path.stat().st_uid, path.stat().st_gid)
        for path in drop_ins:
            path.unlink()
        for file in self.plan.files:
            open_folder(Path(file["path"]).parent)
            user = getpwnam(file["owner"])
            group = getgrnam(file["group"])
            copy(Path(file["staged"]), Path(file["path"]), user.pw_uid, group.gr_gid, int(file["mode"], 8))

    def move(self, aside: Path, names: set[str]) -> None:
        """Move what of these is in the new server's folder to the rest of what was there before."""
        moved = sorted(name for name in names if name and os.path.lexists(self.data / name))
        self.journal.note({**self._noted(), "moved": moved})
        for name in moved:
            (self.data / name).rename(aside / name)

    def tidy(self, aside: Path) -> None:
        """Move what the old server had in the new one's folder, and the new one does not use."""
        if self._together:
            self.move(aside, self._old_names - set(self._noted()["inodes"]))

    @property
    def _old_names(self) -> set[str]:
        old = self.plan.old["data"]
        names = {old["dbfilename"], old["appenddirname"], old["appendfilename"]}
        for name in names - {""}:
            if not plain(name):
                raise Failed(f"the old server names a file of its data {name!r}; expected a name without a path")
        return names

    def recover(self) -> str:
        """Undo an adoption that did not end, or finish it where its server serves by now; return what was done."""
        if not self.journal.path.exists():
            self.target.owner.remove(self.target.new)
            return ""
        noted = self._noted()
        aside = Path(noted["aside"])
        rebooted = noted["boot"] != boot_id()
        if noted.get("opening") or (rebooted and self._serves()):
            self._finish(noted, aside, rebooted)
            return "The new server serves: the interrupted adoption is finished."
        if rebooted:
            self._leave_data(noted)
        else:
            if self._placed or not self._same_unit:
                self.new.stop()
            self._data_back(noted, aside)
        self._files_back(noted, aside)
        self.target.owner.remove(self.target.new)
        self.new.settle()
        self.new.reload()
        if not self._same_unit:
            self.new.disable()
        if self.plan.old.get("unit_enabled"):
            self.old.enable()
        self._give_back(noted)
        if noted["active"] and not self.old.active():
            self.old.start(self.target.source.start_timeout)
            self._wait_for_old()
        shutil.rmtree(aside / "files", ignore_errors=True)
        (aside / ALL).unlink(missing_ok=True)
        with suppress(OSError):
            aside.rmdir()
        self.journal.forget()
        return "The old server runs again as before, as an adoption did not end."

    @property
    def _placed(self) -> bool:
        """Whether the unit file, which comes last, is the new server's."""
        last = self.plan.files[-1]
        path = Path(last["path"])
        return path.exists() and path.read_bytes() == Path(last["staged"]).read_bytes()

    def _serves(self) -> bool:
        return self._placed and self.new.active()

    def _finish(self, noted: dict[str, Any], aside: Path, rebooted: bool) -> None:
        """Finish what lacked its end only. The data stay as they are: clients may have written since."""
        if rebooted:
            if self.plan.mode == KEEP:
                self.tidy(aside)
            if not self._same_unit:
                self.old.disable()
            self.new.enable()
            self.new.settle()
            self.journal.forget()
        elif isinstance(self.new, Unit) and (apart := self.new.apart()):
            self.target.open(apart)
        else:
            self.new.settle()
            self.journal.forget()

    def _leave_data(self, noted: dict[str, Any]) -> None:
        """The host has started the old server since: what it uses stays, what only the new one would use goes."""
        used = self._old_names if self._together else set()
        for name, inode in noted["inodes"].items():
            place = self.data / name
            if name not in used and place.exists() and place.stat().st_ino == inode:
                remove(place)

    def _data_back(self, noted: dict[str, Any], aside: Path) -> None:
        for name in noted.get("moved", []):
            if os.path.lexists(aside / name):
                remove(self.data / name)
                (aside / name).rename(self.data / name)
        for name, inode in noted["inodes"].items():
            place, kept = self.data / name, aside / name
            if not place.exists() or place.stat().st_ino != inode:
                # Not exchanged yet.
                continue
            # Exchanged, and not moved yet, where the old one has the new one's name still.
            kept = kept if kept.exists() else self.target.new / name
            if kept.exists():
                swap(place, kept)
                remove(kept)
            else:
                remove(place)

    def _files_back(self, noted: dict[str, Any], aside: Path) -> None:
        for path in noted["here"]:
            kept = self._kept(aside, path)
            if kept.exists():
                found = kept.stat()
                open_folder(Path(path).parent)
                copy(kept, Path(path), found.st_uid, found.st_gid, found.st_mode & 0o7777)
        for file in self.plan.files:
            if file["path"] not in noted["here"]:
                Path(file["path"]).unlink(missing_ok=True)

    def _give_back(self, noted: dict[str, Any]) -> None:
        """Give the folder back to whom it belonged: systemd has given it to the new server's user at that one's start."""
        uid, gid = noted.get("owner", (-1, -1))
        if not self._together or self.data.stat().st_uid == uid:
            return
        for _, folders, names, handle in os.fwalk(self.data, follow_symlinks=False):
            for name in (*folders, *names):
                found = os.stat(name, dir_fd=handle, follow_symlinks=False)
                # Another name of a file may be in a place where that user may not go.
                if stat.S_ISDIR(found.st_mode) or found.st_nlink == 1:
                    os.chown(name, uid, gid, dir_fd=handle, follow_symlinks=False)
        os.chown(self.data, uid, gid)

    @property
    def _same_unit(self) -> bool:
        return bool(self.plan.old.get("unit") == self.plan.options["unit"])

    def _wait_for_old(self) -> None:
        deadline = time.monotonic() + self.target.source.start_timeout
        while True:
            with suppress(Failed, ErrorReply, OSError, ProtocolError), self.ask() as client:
                if info(client, "persistence").get("loading", "0") == "0":
                    return
            if time.monotonic() > deadline:
                raise Failed("the old server was started again and does not answer")
            time.sleep(0.1)

    # --- All of it ---

    def run(self) -> dict[str, Any]:
        """Take over; return what was done. Raises Failed after the old server runs again as before."""
        undone = self.recover()
        if undone:
            self.say(undone)
        limit, used = self.target.configuration.maxmemory, int(self.plan.old.get("used_memory") or 0)
        if self.plan.mode == KEEP and limit and used > limit * SLACK:
            raise Failed(
                f"the old server has {used >> 20} MiB in memory, and the new one's maxmemory is {limit >> 20} MiB: keys "
                "would be thrown away. Expected that they fit: raise redis_maxmemory"
            )
        restore.room(
            self.data, int(self.plan.old.get("used_memory") or 0) + restore.MARGIN, "a second copy of the data"
        )
        began = time.monotonic()
        before = self._set(repl_diskless_sync_delay="0")
        try:
            with self.paused():
                report = self._exchange(before)
        except BaseException as error:
            self._undo(error, before)
        self.seconds["total"] = round(time.monotonic() - began, 2)
        return {**report, "seconds": self.seconds}

    def _exchange(self, before: dict[str, str]) -> dict[str, Any]:
        held = time.monotonic()
        self.say("The old server's clients wait with their writes from now on; reading its data")
        path, keys = self.fetch()
        self._clock("read", held)
        began = time.monotonic()
        before |= self._set(save="")
        self._leave_with_data(path)
        aside = self.begin()
        self.say(f"Stopping the old server ({self.plan.old.get('unit') or self.plan.old.get('pid')})")
        self.old.stop()
        # In this order: whichever configuration the host would start with, the data are there for it.
        if self.plan.mode == KEEP:
            self.put_data(aside)
        self.put_files(aside)
        if self.plan.mode == REPLACE:
            self._set_aside(path, aside)
        self._clock("exchange", began)
        began = time.monotonic()
        report: dict[str, Any] = {"mode": self.plan.mode, "old": {"keys": keys}}
        if self.plan.mode == KEEP:
            apart, file = self.target.load(path)
            self._clock("load", began)
            began = time.monotonic()
            self._counted(file, keys)
            manifest = {"items": file.keys, "digest": file.digest}
            compared = self.target.compare(apart, file, manifest, self.plan.verify == "digest")
            self._clock("compare", began)
            report |= {"before": compared["expected"], "after": compared["found"], "compared": compared["compared"]}
        else:
            apart = self.target.start_apart()
        if self.plan.mode == KEEP:
            self.tidy(aside)
        if not self._same_unit:
            self.old.disable()
        self.new.enable()
        # From here on there is no way back: the new server may have what the old one has not.
        self.journal.note({**self._noted(), "opening": True})
        self.target.open(apart)
        self.seconds["writes_waited"] = round(time.monotonic() - held, 2)
        return {**report, "kept": str(aside)}

    def _set_aside(self, path: Path, aside: Path) -> None:
        """Keep all of the old server's data; the new one begins without."""
        path.rename(aside / ALL)
        self.target.owner.remove(self.target.new)
        names = self._old_names if self._together else set()
        self.move(aside, names | {self.target.dump, self.target.log})

    def _counted(self, file: rdb.Summary, keys: int) -> None:
        least = file.keys_after(int(time.time() * 1000))
        if not least <= keys <= file.keys + file.volatile:
            raise Failed(f"the old server counted {keys} keys, and {file.keys} arrived; expected as many")

    def _clock(self, name: str, began: float) -> None:
        self.seconds[name] = round(time.monotonic() - began, 2)

    def _undo(self, error: BaseException, before: dict[str, str]) -> None:
        """Put everything back, and raise what tells of it."""
        self.say("It failed; the old server is put back")
        try:
            self.recover()
            self._set(**before)
        except (Failed, OSError) as second:
            raise Failed(f"{error}. And the old server could not be put back by itself: {second}") from error
        if isinstance(error, OSError) and error.strerror:
            raise Failed(f"{error.filename or self.data}: {error.strerror}. The old server runs as before") from error
        if isinstance(error, (Failed, ErrorReply, ProtocolError, OSError, rdb.Damaged)):
            raise Failed(f"{error}. The old server runs as before") from error
        raise error


def adopt(path: Path, say: Say) -> dict[str, Any]:
    """Carry out the plan in a file; see Adoption.run."""
    plan = Plan.load(path)
    result = Adoption(plan, Unit(plan.options["unit"], plan.options["command"]), old_of(plan), say).run()
    # The prepared files are copies now, and the plan has the old server's login.
    shutil.rmtree(path.parent)
    return {**result, "changed": True, "text": told(plan, result)}


def told(plan: Plan, result: dict[str, Any]) -> str:
    """Return a result in words."""
    waited = f"clients' writes waited {result['seconds']['writes_waited']} s"
    if plan.mode == REPLACE:
        return f"{plan.name}: set the old server's {result['old']['keys']} keys aside in {result['kept']}; {waited}"
    proof = f"digest {result['after']['digest']} before and after" if result["compared"] == "digest" else "counted"
    return f"{plan.name}: took over {result['after']['keys']} keys, {proof}; {waited}; kept: {result['kept']}"


def undo(path: Path, say: Say) -> dict[str, Any]:
    """Put the old server of a plan back after a run that was interrupted, or finish it; see Adoption.recover."""
    plan = Plan.load(path)
    done = Adoption(plan, Unit(plan.options["unit"], plan.options["command"]), old_of(plan), say).recover()
    if done:
        say(done)
    return {"done": done, "changed": bool(done)}
