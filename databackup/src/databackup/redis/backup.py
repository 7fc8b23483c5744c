"""Back a Redis server up while it serves."""

from __future__ import annotations

import hashlib
import os
import re
from datetime import UTC, datetime
from typing import Any

from databackup import catalog, programs
from databackup.errors import Failed
from databackup.journal import Say
from databackup.owner import Owner
from databackup.redis.digest import Digester
from databackup.redis.proof import Proof
from databackup.redis.replication import Snapshot
from databackup.redis.resp import ErrorReply, ProtocolError
from databackup.redis.restore import SUFFIX
from databackup.redis.server import connect, credentials, info
from databackup.restic import Restic
from databackup.restore import MARGIN, STEP, room
from databackup.settings import Source
from databackup.spool import Spool, Upload, folder


def left_to_replica(told: dict[str, str], peers: list[str]) -> str:
    """Return the address of a replica that is well and backs itself up, if there is one."""
    if told.get("role") != "master":
        return ""
    for name, text in told.items():
        if re.fullmatch("slave[0-9]+", name):
            values = dict(part.split("=", 1) for part in text.split(",") if "=" in part)
            if values.get("ip") in peers and values.get("state") == "online" and int(values.get("lag", 99)) <= 10:
                return values["ip"]
    return ""


def backup(source: Source, restic: Restic, say: Say, owner: Owner, prove: Proof) -> dict[str, Any]:
    """Write one backup and return its manifest, with `id`; or `skipped`, where a replica does it.

    Raises Failed, and then there is no new backup. `owner` is the server's user, and `prove` knows its process.
    """
    options = source.options
    with connect(options["server"], credentials(options["credentials_file"]), prove=prove) as client:
        told = info(client, "server", "persistence", "replication", "memory")
        replica = left_to_replica(told, options.get("peers", []))
        if replica:
            return {"skipped": f"the replica {replica} backs this data up"}
        if told.get("loading", "0") != "0":
            raise Failed("Redis is still loading its data, and has a part of them only. The next run tries again")
        if told.get("role") == "slave" and told.get("master_link_status") != "up":
            raise Failed("this replica has lost its primary, its data may be old; the next run tries again")
        room(folder(source), int(told.get("used_memory", 0)) + MARGIN, "a snapshot")
        when = datetime.now(UTC).replace(microsecond=0)
        try:
            snapshot = Snapshot(client)
            result = _transfer(source, restic, snapshot, when, say, owner)
        except (OSError, ProtocolError) as error:
            raise Failed(f"the snapshot was interrupted: {error}") from None
        except ErrorReply as error:
            raise Failed(f"Redis gives no snapshot: {error}") from None
    facts = {
        "role": told.get("role"),
        "replication_id": snapshot.replication_id,
        "replication_offset": snapshot.offset,
        **result,
        "files": _files(options.get("files", []), owner, say),
    }
    return catalog.complete(restic, source, facts, when)


def _files(paths: list[str], owner: Owner, say: Say) -> dict[str, str]:
    """Return what is in the server's own files. It may have put a link to another one in the place of each."""
    found = {}
    for path in paths:
        try:
            found[path] = owner.read(path).decode(errors="replace")
        except FileNotFoundError:
            continue
        except OSError as error:
            say(f"{path} is left out: {owner.name} cannot read it: {error.strerror}")
    return found


def _transfer(
    source: Source, restic: Restic, snapshot: Snapshot, when: datetime, say: Say, owner: Owner
) -> dict[str, Any]:
    """Take the snapshot, check it, and write it; return the manifest's part about the data."""
    spool = Spool(folder(source))
    digester = Digester(spool.file.fileno())
    try:
        upload = Upload(spool, catalog.open_data(restic, source, SUFFIX, when))
        try:
            hashed = hashlib.sha256()
            said = 0
            for data in snapshot.chunks():
                spool.write(data)
                hashed.update(data)
                digester.advance(spool.size)
                if upload.failure:
                    break
                if spool.size - said >= STEP:
                    said = spool.size
                    say(f"{said >> 20} MiB of the snapshot are here")
            if not upload.failure:
                spool.finish()
                _check(spool.file.fileno(), summary := digester.result(), owner)
            # Only now does restic see the end of the data, without which it makes no snapshot.
            written = upload.commit()
        finally:
            upload.close()
    finally:
        digester.close()
        spool.close()
    return {
        "items": summary.keys,
        "items_that_expire": summary.volatile,
        "digest": summary.digest,
        "bytes": spool.size,
        "sha256": hashed.hexdigest(),
        "rdb_version": summary.version,
        "redis_version": summary.about.get("redis-ver", ""),
        "used_memory": int(summary.about.get("used-mem", 0)),
        "data": written,
    }


def _check(file: int, summary: Any, owner: Owner) -> None:
    """Have Redis' own tool read the snapshot; raises Failed if it finds other than the digest did.

    It is the server that wrote what the tool parses, so the tool has that user's rights: it may read the file, which has no
    name for anybody else, and change nothing.
    """
    os.fchmod(file, 0o444)
    # A path of this process' descriptors opens the file anew, at its beginning, though it has no name.
    reading = os.open(f"/proc/self/fd/{file}", os.O_RDONLY)
    try:
        command = ["redis-check-rdb", f"/proc/self/fd/{reading}"]
        done = programs.run(command, pass_fds=[reading], cwd="/", **owner.identity)
    finally:
        os.close(reading)
    counted = re.search(r"\[info\] ([0-9]+) keys read", done.stdout)
    if done.returncode != 0 or counted is None:
        raise Failed(f"redis-check-rdb refuses the snapshot: {' / '.join(done.stdout.strip().splitlines()[-3:])}")
    if int(counted[1]) != summary.keys:
        raise Failed(f"redis-check-rdb counts {counted[1]} keys in the snapshot, the digest {summary.keys}")
