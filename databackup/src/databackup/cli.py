"""databackup: back the data of this host up, and bring them back.

    databackup backup NAME                  one backup, as the timer makes it
    databackup list [NAME]                  what there is in the repository
    databackup restore NAME [--backup ID | --as-of TIME] [--dry-run]
    databackup recover NAME                 put the old data back after a restore that was interrupted
    databackup diagnose NAME                look for damage in the files of a Redis server
    databackup repair NAME [--replica HOST:PORT] [--way replica|restore|fix] [--confirm]
    databackup adopt NAME --plan FILE       put a new Redis server in the place of an old one (the role redis writes FILE)
    databackup status [NAME]                when each source was last backed up
    databackup maintain                     check the repository; forget what is too old, where this host is to do so
    databackup inspect                      look for what a service has put where this program would trust it
    databackup init | check | encrypted | unlock    the repository itself
    databackup --version                    its version, and the digest of its archive

Exit codes: 0 done, 1 failed, 2 wrong usage, 75 another run has the source.
"""

from __future__ import annotations

import argparse
import fcntl
import json
import os
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, NoReturn

from databackup import catalog, kinds, settings, status, version
from databackup.errors import Busy, Failed
from databackup.redis import adoption
from databackup.redis.plan import FIX, REPLICA, WAYS
from databackup.restic import Restic
from databackup.service import Unit

FAILED, BUSY = 1, 75


def say(text: str) -> None:
    """Print a line of progress, for the journal or a terminal."""
    print(text, file=sys.stderr, flush=True)


@contextmanager
def only_one(source: settings.Source, what: str, wait: float = 0.0) -> Iterator[None]:
    """Hold the source's lock; raises Busy when another run has it for longer than `wait` seconds."""
    folder = Path(source.state)
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    with (folder / f"{source.name}.lock").open("a+", encoding="utf-8") as file:
        deadline = time.monotonic() + wait
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except OSError:
                if time.monotonic() >= deadline:
                    file.seek(0)
                    raise Busy(f"{source.name}: another run has it ({file.read().strip() or 'unknown'})") from None
                time.sleep(0.2)
        file.truncate(0)
        file.write(f"{what}, process {os.getpid()}, since {datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}")
        file.flush()
        try:
            yield
        finally:
            file.truncate(0)


def backup(arguments: argparse.Namespace) -> dict[str, Any]:
    """Make one backup of a source."""
    source = settings.source(arguments.name, arguments.config)
    restic = Restic(settings.repository(arguments.config))
    with only_one(source, "a backup"):
        began = time.monotonic()
        try:
            result = restic.patiently(lambda: kinds.of(source, say).backup(restic))
        except BaseException as error:
            status.record_failure(source, str(error) or type(error).__name__)
            raise
        result["seconds"] = round(time.monotonic() - began, 2)
        status.record_success(source, result)
    if "skipped" in result:
        say(f"{source.name}: {result['skipped']}")
    else:
        say(
            f"{source.name}: backup {result['id'][:8]} with {result['items']} items, {result['bytes']} bytes, "
            f"in {result['seconds']} s"
        )
    result.pop("files", None)
    return result


def chosen(arguments: argparse.Namespace, source: settings.Source, restic: Restic) -> catalog.Backup:
    """Return the backup that the arguments ask for."""
    wanted = arguments.source or source.name
    tags = [f"source={wanted}"]
    # Asked for by its id, a backup of another environment is found, and refused by name.
    if arguments.backup == "latest":
        tags.append(f"environment={arguments.environment or source.environment}")
    found = catalog.backups(restic, *tags)
    if restic.unreadable and arguments.backup == "latest":
        known = ", ".join(backup.id[:8] for backup in found[-10:]) or "none"
        raise Failed(
            f"it is not known which backup is the latest: the repository is damaged, {', '.join(restic.unreadable)} "
            f"cannot be read. `databackup check` reports more; choose another one by its id: {known}"
        )
    if arguments.host:
        found = [backup for backup in found if backup.host == arguments.host]
    return catalog.choose(found, arguments.backup, arguments.as_of, wanted)


def restore(arguments: argparse.Namespace) -> dict[str, Any]:
    """Bring a backup back."""
    source = settings.source(arguments.name, arguments.config)
    restic = Restic(settings.repository(arguments.config, arguments.repository))
    with only_one(source, "a restore", wait=arguments.wait), ExitStack() as stack:
        began = time.monotonic()
        say("Asking the repository")
        wanted = chosen(arguments, source, restic)
        suffix = kinds.SUFFIXES.get(wanted.facts.get("kind", ""))
        if suffix and not arguments.dry_run:
            path = f"/{wanted.facts.get('source')}.{suffix}"
            stack.enter_context(restic.ahead(wanted.facts.get("data", ""), path))
        manifest = catalog.manifest(restic, wanted)
        age = (datetime.now(UTC) - wanted.time).total_seconds()
        result: dict[str, Any] = {
            "source": source.name,
            "backup": wanted.id,
            "host": wanted.host,
            "time": wanted.time.isoformat(),
            "age_seconds": round(age),
            "items": manifest["items"],
            "bytes": manifest["bytes"],
        }
        say(f"Backup {wanted.id[:8]} of {wanted.host}, {wanted.time:%Y-%m-%dT%H:%M:%SZ}: {manifest['items']} items")
        kind = kinds.of(source, say)
        environment = arguments.environment or source.environment
        if arguments.dry_run:
            kind.check(manifest, environment)
            return {**result, "dry_run": True, "would": kind.would(manifest)}
        result |= kind.restore(restic, wanted.id, manifest, environment, arguments.verify == "digest")
        result["seconds"]["total"] = round(time.monotonic() - began, 2)
    say(
        f"{source.name}: restored in {result['seconds']['total']} s"
        + (f"; kept: {result['kept']}" if result["kept"] else "")
    )
    return result


def fetch(arguments: argparse.Namespace) -> dict[str, Any]:
    """Write the data of a backup into a file, checked, and touch nothing else."""
    source = settings.source(arguments.name, arguments.config)
    restic = Restic(settings.repository(arguments.config, arguments.repository))
    wanted = chosen(arguments, source, restic)
    manifest = catalog.manifest(restic, wanted)
    about = manifest.get("about", {})
    return {
        "backup": wanted.id,
        "kind": manifest["kind"],
        "about": about,
        **kinds.fetch(restic, manifest, Path(arguments.to), say),
    }


def recover(arguments: argparse.Namespace) -> dict[str, Any]:
    """Put the old data back after a restore that was interrupted."""
    Unit.booting = arguments.boot
    recovered, problems = [], []
    for name in [arguments.name] if arguments.name else settings.names(arguments.config):
        try:
            source = settings.source(name, arguments.config)
            # Its server is not there yet; it has kept the names that clients use until the last moment.
            if arguments.boot and source.kind == "postgresql":
                continue
            with only_one(source, "a recovery"):
                done = kinds.of(source, say).recover()
        except Failed as failure:
            if arguments.name:
                raise
            # What one service has in its folder does not keep the others from their data.
            problems.append(f"{name}: {failure}")
            continue
        say(f"{name}: {done}" if done else f"{name}: no interrupted restore; nothing to do")
        recovered += [name] if done else []
    if problems:
        raise Failed("; ".join(problems))
    return {"recovered": recovered}


def diagnose(arguments: argparse.Namespace) -> dict[str, Any]:
    """Look for damage in the files of a Redis server, and change nothing."""
    found = kinds.repair(settings.source(arguments.name, arguments.config), say).diagnose()
    say(found.text)
    return found.told


def repair(arguments: argparse.Namespace) -> dict[str, Any]:
    """Bring a damaged Redis server back by the way that loses least; without --confirm, say which that is."""
    source = settings.source(arguments.name, arguments.config)
    environment = arguments.environment or source.environment
    arguments.host = arguments.host or source.host
    latest: list[catalog.Backup] = []

    def find() -> dict[str, Any]:
        latest.append(chosen(arguments, source, Restic(settings.repository(arguments.config))))
        age = (datetime.now(UTC) - latest[0].time).total_seconds()
        return {**latest[0].facts, "id": latest[0].id, "time": latest[0].time.isoformat(), "age_seconds": round(age)}

    with only_one(source, "a repair", wait=arguments.wait):
        began = time.monotonic()
        server = kinds.repair(source, say)
        found = server.diagnose()
        say(found.text)
        plan = server.plan(found, arguments.replica, arguments.way, find)
        for way, cost in plan.costs.items():
            say(f"{way} costs {cost}")
        for way, reason in plan.closed.items():
            say(f"{way} is not possible: {reason}")
        result = {"source": source.name, "diagnosis": found.told, **plan.told}
        if not arguments.confirm:
            result["text"] = (
                f"Nothing was changed. The way would be {plan.way}, which costs {plan.costs[plan.way]}. To take it: "
                f"--way {plan.way} --confirm (with playbooks/repair.yml: -e repair_way={plan.way} -e repair_confirm=true)"
            )
            say(result["text"])
            return {**result, "dry_run": True}
        say(f"Taking the way {plan.way}")
        server.prepare(found)
        if plan.way == REPLICA:
            result |= server.from_replica(arguments.replica)
        elif plan.way == FIX:
            result |= server.fix(found)
        else:
            restic = Restic(settings.repository(arguments.config))
            manifest = catalog.manifest(restic, latest[0])
            result |= kinds.of(source, say).restore(restic, latest[0].id, manifest, environment, True)
            result["backup"] = latest[0].id
        result["seconds"]["total"] = round(time.monotonic() - began, 2)
    result["text"] = (
        f"{source.name}: repaired by {plan.way} in {result['seconds']['total']} s, {result['found']['keys']} keys; it cost "
        f"{plan.costs[plan.way]}" + (f"; kept: {result['kept']}" if result["kept"] else "")
    )
    say(result["text"])
    return result


def inspect(arguments: argparse.Namespace) -> dict[str, Any]:
    """Look for what a service could mislead this program by; changes nothing."""
    found: dict[str, list[str]] = {"journals": [], "names": [], "processes": []}
    for name in settings.names(arguments.config):
        for what, problems in kinds.of(settings.source(name, arguments.config), say).inspect().items():
            found[what] += problems
    for what, problems in found.items():
        for problem in problems:
            say(f"{what}: {problem}")
    return found


def adopt(arguments: argparse.Namespace) -> dict[str, Any]:
    """Put a new Redis server in the place of one that somebody else set up."""
    adoption.FOLDER.mkdir(mode=0o700, exist_ok=True)
    source = settings.Source(arguments.name, "redis", "", "", {}, state=str(adoption.FOLDER))
    with only_one(source, "an adoption"):
        return adoption.undo(arguments.plan, say) if arguments.undo else adoption.adopt(arguments.plan, say)


def listing(arguments: argparse.Namespace) -> dict[str, Any]:
    """List the backups."""
    restic = Restic(settings.repository(arguments.config, arguments.repository))
    tags = [f"source={arguments.name}"] if arguments.name else []
    found = catalog.backups(restic, *tags)
    say(catalog.HEADING if found else "there is no backup in the repository")
    for item in found:
        say(item.line)
    if restic.unreadable:
        say(f"The repository is damaged: {', '.join(restic.unreadable)} cannot be read, see `databackup check`")
    return {"backups": [{"id": b.id, "time": b.time.isoformat(), "host": b.host, **b.facts} for b in found]}


def tell_status(arguments: argparse.Namespace) -> dict[str, Any]:
    """Report when each source was last backed up; fails where that is too long ago."""
    names = [arguments.name] if arguments.name else settings.names(arguments.config)
    told = {name: status.tell(settings.source(name, arguments.config)) for name in names}
    for name, facts in told.items():
        say(f"{name}: {facts['text']}")
    if not all(facts["ok"] for facts in told.values()):
        raise Failed("; ".join(f"{name}: {facts['text']}" for name, facts in told.items() if not facts["ok"]))
    return {"sources": told}


def maintain(arguments: argparse.Namespace) -> dict[str, Any]:
    """Check the repository; where nobody else maintains it, forget what the policy does not keep before."""
    repository = settings.repository(arguments.config)
    restic = Restic(repository)
    if not repository.retention:
        return check(arguments)
    # Locks of interrupted runs: only this host has any here.
    restic.run("unlock", "--quiet", what="stale locks cannot be removed")
    left = catalog.orphans(restic, datetime.now(UTC) - timedelta(hours=1))
    if left:
        say(f"Removing {len(left)} snapshots of interrupted runs")
        restic.run("forget", *left, what="left-overs cannot be removed")
    say("Forgetting backups that are too old")
    restic.run(
        "forget",
        "--tag",
        catalog.PROGRAM,
        "--group-by",
        "host,paths",
        *repository.retention,
        "--prune",
        what="old backups cannot be removed",
    )
    return check(arguments)


def check(arguments: argparse.Namespace) -> dict[str, Any]:
    """Have restic check the repository."""
    repository = settings.repository(arguments.config)
    say("Checking the repository")
    restic = Restic(repository)
    # Without a lock, which would have backups wait for as long as it takes.
    words = ["check", "--no-lock", *repository.check]
    try:
        restic.run(*words, what="the repository is not sound")
    except Failed:
        # A backup that ends meanwhile looks like damage. None does while each source is held.
        with ExitStack() as stack:
            for name in settings.names(arguments.config):
                stack.enter_context(only_one(settings.source(name, arguments.config), "a check", wait=60.0))
            restic.run(*words, what="the repository is not sound")
    say("The repository is sound")
    return {"sound": True}


def init(arguments: argparse.Namespace) -> dict[str, Any]:
    """Make the repository where there is none."""
    restic = Restic(settings.repository(arguments.config))
    there = restic.exists()
    if not there:
        restic.run("init", what="the repository cannot be made")
        say("The repository was made")
    return {"changed": not there}


def encrypted(arguments: argparse.Namespace) -> dict[str, Any]:
    """Return whether the repository can be read without its password; changes nothing."""
    restic = Restic(settings.repository(arguments.config))
    with tempfile.NamedTemporaryFile("w", encoding="utf-8") as file:
        file.write(f"{os.urandom(16).hex()}\n")
        file.flush()
        restic.environment["RESTIC_PASSWORD_FILE"] = file.name
        try:
            restic.run("cat", "config", "--no-lock", what="the repository cannot be opened")
        except Failed as error:
            if "refuses the password" not in str(error):
                raise
            say("Nobody reads the repository without its password")
            return {"encrypted": True}
    raise Failed("the repository was opened with an invented password")


def unlock(arguments: argparse.Namespace) -> dict[str, Any]:
    """Remove the locks of runs that were interrupted."""
    repository = settings.repository(arguments.config)
    if not repository.retention:
        raise Failed(
            "unlock: this host does not maintain its repository (backup_prune); the repository's host removes the locks of "
            "interrupted runs by itself, half an hour later"
        )
    Restic(repository).run("unlock", what="the locks cannot be removed")
    return {}


def parser() -> argparse.ArgumentParser:
    """Return what reads the command line."""
    top = argparse.ArgumentParser(prog="databackup", description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    top.add_argument("--config", type=Path, default=settings.FOLDER, help=argparse.SUPPRESS)
    top.add_argument("--version", action="version", version=f"%(prog)s {version()}")
    top.add_argument("--json", action="store_true", help="print the result as one line of JSON")
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def add(name: str, run: Any, *, named: str = "") -> argparse.ArgumentParser:
        command = commands.add_parser(name, help=run.__doc__)
        command.set_defaults(run=run)
        if named:
            command.add_argument("name", metavar="NAME", nargs="?" if named == "?" else None, default="")
        return command

    def add_choice(command: argparse.ArgumentParser) -> None:
        command.add_argument("--backup", default="latest", help="latest, or an id from the list")
        command.add_argument("--as-of", default="", help="the last one up to this time, such as 2026-01-31T14:00:00Z")
        command.add_argument("--host", default="", help="only of this host")
        command.add_argument("--source", default="", help="of a source with another name")
        command.add_argument("--environment", default="", help="take one of another environment")

    def add_repository(command: argparse.ArgumentParser) -> None:
        command.add_argument(
            "--repository",
            type=Path,
            metavar="FILE",
            help="another host's, as playbooks/restore.yml lends it for a while",
        )

    add("backup", backup, named="NAME")
    command = add("restore", restore, named="NAME")
    add_choice(command)
    add_repository(command)
    command.add_argument("--dry-run", action="store_true", help="check everything that can be, and change nothing")
    command.add_argument("--verify", choices=["digest", "count"], default="digest", help="how live data are compared")
    command.add_argument("--wait", type=float, default=60.0, help="seconds to wait for a backup that runs")
    command = add("fetch", fetch, named="NAME")
    add_choice(command)
    add_repository(command)
    command.add_argument("--to", required=True, help="file to write")
    command = add("recover", recover, named="?")
    command.add_argument("--boot", action="store_true", help="stop and start nothing: systemd is about to")
    add("diagnose", diagnose, named="NAME")
    command = add("repair", repair, named="NAME")
    add_choice(command)
    command.add_argument("--replica", default="", metavar="HOST:PORT", help="a server that has the data, too")
    command.add_argument("--way", choices=WAYS, default="", help="take this one")
    command.add_argument("--confirm", action="store_true", help="do it; without this only report the steps")
    command.add_argument("--wait", type=float, default=60.0, help="seconds to wait for a backup that runs")
    command = add("adopt", adopt, named="NAME")
    command.add_argument("--plan", type=Path, required=True, help="the plan that the role redis has prepared")
    command.add_argument("--undo", action="store_true", help="put the old server back after an interrupted run")
    add_repository(add("list", listing, named="?"))
    add("status", tell_status, named="?")
    for name, run in (
        ("maintain", maintain),
        ("check", check),
        ("init", init),
        ("encrypted", encrypted),
        ("inspect", inspect),
        ("unlock", unlock),
    ):
        add(name, run)
    return top


def interrupted(number: int, _frame: Any) -> NoReturn:
    """End as for an error, so that everything is put back."""
    # A second one must not cut that short.
    for other in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
        signal.signal(other, signal.SIG_IGN)
    raise Failed(f"ended by {signal.Signals(number).name}")


def main() -> int:
    """Run as a command."""
    os.umask(0o077)
    arguments = parser().parse_args()
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
        signal.signal(number, interrupted)
    try:
        result = arguments.run(arguments)
    except Failed as failure:
        # The journal shows a line with this prefix as an error; a terminal shows it as text.
        mark = "" if sys.stderr.isatty() or arguments.json else "<3>"
        say(f"{mark}databackup: {failure}")
        if arguments.json:
            print(json.dumps({"failed": True, "msg": str(failure)}))
        return BUSY if isinstance(failure, Busy) else FAILED
    if arguments.json:
        print(json.dumps(result))
    return 0
