"""Changes that Redis must learn of: noted before they are sent, sent again after a reconnect."""

import asyncio
from collections import OrderedDict
from itertools import islice
from typing import Final

from quantdesk.redis import keys as entries
from quantdesk.redis.gateway import Gateway
from quantdesk.redis.keys import Keys, Kind
from quantdesk.redis.scripts import INVALIDATE
from quantdesk.redis.wire import Wire

# Seconds of changes before the loss of a connection that are sent again on the next one: the server
# behind that may be a replica that had not received them.
RECALL: Final = 10.0
# Changes that are sent at once.
BATCH: Final = 500


class Invalidations:
    """The versions that entries must be at least, as far as Redis may not know of them."""

    def __init__(self, gateway: Gateway, keys: Keys) -> None:
        self._gateway = gateway
        self._keys = keys
        # Versions that Redis has not confirmed, each until the entry that Redis may still hold has
        # expired. The oldest first.
        self.pending: Final[OrderedDict[str, tuple[int, float]]] = OrderedDict()
        # The same for versions that Redis confirmed at this time, RECALL before the latest at most.
        self._confirmed: OrderedDict[str, tuple[int, float, float]] = OrderedDict()
        gateway.on_recovery(self._send)

    def note(self, kind: Kind, key: str, version: int) -> None:
        """Note a change before it is sent: Redis may fail and recover before the reply."""
        if not self._gateway.enabled:
            return
        now = asyncio.get_running_loop().time()
        known, _ = self.pending.pop(key, (0, 0.0))
        # A read from before may have filled up to this late.
        self.pending[key] = max(version, known), now + entries.GUARD + self._keys.ttl[kind]
        while next(iter(self.pending.values()))[1] < now:
            self.pending.popitem(last=False)

    def confirm(self, key: str, version: int) -> None:
        """Note that Redis knows of a version."""
        pending = self.pending.get(key)
        if pending is None or pending[0] > version:
            return
        del self.pending[key]
        now = asyncio.get_running_loop().time()
        self._confirmed.pop(key, None)
        self._confirmed[key] = *pending, now
        while next(iter(self._confirmed.values()))[2] < now - RECALL:
            self._confirmed.popitem(last=False)

    async def _send(self, wire: Wire) -> None:
        """Remove what changed while Redis was away, or just before, ahead of all reads."""
        now = asyncio.get_running_loop().time()
        for key, (version, end, _) in self._confirmed.items():
            if end > now:
                known, later = self.pending.get(key, (0, 0.0))
                self.pending[key] = max(version, known), max(end, later)
        self._confirmed.clear()
        while self.pending:
            batch = [(key, pending[0]) for key, pending in islice(self.pending.items(), BATCH)]
            await asyncio.gather(
                *(
                    INVALIDATE.call(wire, key, self._keys.guard(key), version, entries.GUARD)
                    for key, version in batch
                )
            )
            for key, version in batch:
                self.confirm(key, version)
