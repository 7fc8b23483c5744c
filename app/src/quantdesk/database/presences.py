"""Presence: the status that users set last, and when."""

import datetime as dt
from typing import Literal

import msgspec
from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncConnection

from quantdesk.database import clock
from quantdesk.database.tables import presence
from quantdesk.database.transactions import Transactions, only
from quantdesk.database.versioned import Versioned

PresenceStatus = Literal["online", "away"]


class Presence(msgspec.Struct, frozen=True, rename="camel"):
    """The status that a user set last, and when."""

    user: str
    status: PresenceStatus
    last_seen: dt.datetime


class Presences:
    """Writes and reads presence."""

    def __init__(self, transactions: Transactions) -> None:
        self._transactions = transactions

    async def write(self, user: str, status: PresenceStatus) -> Versioned[Presence]:
        """Store the user's status with the current time."""
        now = clock.now()
        values = {"status": status, "seen_at": now}

        async def work(connection: AsyncConnection) -> int:
            return await self._transactions.upsert(
                connection, presence, {"user_name": user}, values
            )

        return Versioned(Presence(user, status, now), await self._transactions.run(work))

    async def read(self, user: str) -> Versioned[Presence] | None:
        """Return the status that the user set last, at any time; None if there is none."""
        row = only(
            await self._transactions.read(select(presence).where(presence.c.user_name == user))
        )
        if row is None:
            return None
        return Versioned(Presence(user, row.status, row.seen_at), row.version)
