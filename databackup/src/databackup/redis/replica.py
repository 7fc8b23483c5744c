"""A replica that a damaged server gets its data from. It is only read from, over the replication protocol."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from databackup.errors import Failed
from databackup.redis.replication import Snapshot
from databackup.redis.resp import Client, ErrorReply, ProtocolError
from databackup.redis.restore import Target
from databackup.redis.server import connect, count, credentials, info


class Unreachable(Failed):
    """A replica that cannot be asked: another way is taken."""


class Replica:
    """One server, by the address that the operator gave."""

    def __init__(self, address: str, target: Target) -> None:
        self.address = address
        self.target = target
        self.options: dict[str, Any] = target.options

    def _connect(self) -> Client:
        host, _, port = self.address.rpartition(":")
        if not host or not port.isdigit():
            raise Failed(f"replica: found {self.address!r}; expected HOST:PORT")
        # By the same certificates, and under the name that the operator gave.
        way = {name: value for name, value in self.options["server"].items() if name != "server_name"}
        server = {**way, "host": host.strip("[]"), "port": int(port)}
        try:
            return connect(server, credentials(self.options["credentials_file"]))
        except Failed as error:
            raise Unreachable(str(error)) from None

    def cost(self) -> str:
        """Return what a re-sync from it costs; raises Failed if it has nothing to give, Unreachable if it does not answer."""
        with self._connect() as client:
            try:
                told = info(client, "server", "persistence", "replication", "memory", "keyspace")
            except ErrorReply as error:
                raise Failed(
                    f"the replica {self.address} does not answer: {error}. Try again, or leave it out"
                ) from None
            except (OSError, ProtocolError) as error:
                raise Unreachable(f"the replica {self.address} does not answer: {error}") from None
        if told.get("loading", "0") != "0":
            raise Failed(
                f"the replica {self.address} is still loading its data. Try again in a moment, or leave it out"
            )
        keys = count(told)
        if not keys:
            raise Failed(
                f"the replica {self.address} is empty; expected one with the data. Has it followed a primary that had lost "
                "them? Name another one, or leave it out"
            )
        ours = {
            "redis_version": told["redis_version"],
            "used_memory": told["used_memory"],
            "bytes": told["used_memory"],
        }
        try:
            self.target.accept(ours)
        except Failed as error:
            raise Failed(f"of the data of the replica {self.address}, as of a backup: {error}") from None
        if told.get("master_sync_in_progress", "0") != "0":
            raise Failed(
                f"the replica {self.address} is taking over a primary's data. Try again when it has, or leave it out"
            )
        if told.get("role") == "slave" and told.get("master_link_status") != "up":
            # Asked all the same, it answers NOMASTERLINK.
            raise Failed(
                f"the replica {self.address} has {keys} keys and has lost its primary; Redis gives no snapshot in that state. Make it "
                f"independent first, which keeps its data, with REPLICAOF NO ONE on {self.address}. Then run this again"
            )
        return f"what was not replicated to {self.address}, which has {keys} keys"

    def snapshot(self) -> Iterator[bytes]:
        """Yield its data as of one moment; raises Failed when they end early."""
        with self._connect() as client:
            try:
                yield from Snapshot(client).chunks()
            except (OSError, ProtocolError, ErrorReply) as error:
                raise Failed(f"the snapshot of {self.address} was interrupted: {error}") from None
