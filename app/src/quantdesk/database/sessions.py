"""Sessions, and the assertions that have begun one."""

import datetime as dt
import hashlib
from collections.abc import Sequence
from typing import Final

import msgspec
from sqlalchemy import Delete, delete, func, select
from sqlalchemy.ext.asyncio import AsyncConnection

from quantdesk.database import clock
from quantdesk.database.tables import assertions, sessions
from quantdesk.database.transactions import Transactions, only
from quantdesk.database.versioned import Versioned

# How long a start expects instances of a release that began sessions otherwise, at least.
OVERLAP: Final = dt.timedelta(minutes=15)

# Each session that begins clears so many sessions and assertions away that have expired, so there
# are never many.
EXPIRED_BATCH: Final = 10


class Session(msgspec.Struct, frozen=True, rename="camel"):
    """A login and when it ends. Only the client knows its id."""

    user: str
    created_at: dt.datetime
    expires_at: dt.datetime


class AssertionUsed(Exception):
    """The assertion has begun a session before; nothing was changed."""


class Sessions:
    """Begins, reads and ends sessions."""

    def __init__(self, transactions: Transactions) -> None:
        self._transactions = transactions
        # Until when sessions of a release before this one's may live; see `mixed_releases`.
        self._mixed_until = dt.datetime.min.replace(tzinfo=dt.UTC)

    @property
    def mixed_releases(self) -> bool:
        """Whether a release of before revision 0003 may be running beside this one.

        It reads another cookie, and keeps and removes sessions in Redis under another name. That
        ends by itself with the last session that such a release has begun.
        """
        return clock.now() < self._mixed_until

    async def create(
        self,
        session_id: str,
        user: str,
        lifetime: int,
        *,
        replaced: Sequence[str] = (),
        assertion: tuple[bytes, dt.datetime] | None = None,
    ) -> Versioned[Session]:
        """Begin a session of `lifetime` seconds, and end those whose ids are `replaced`.

        `assertion` is what it begins with: a digest, and when that may be forgotten.

        Raises:
            AssertionUsed: another session has begun with it.
        """
        now = clock.now()
        session = Session(user, now, now + dt.timedelta(seconds=lifetime))
        expired = select(sessions.c.id_hash).where(sessions.c.expires_at <= now)
        # Rows that another instance is clearing away are left to it.
        expired = expired.limit(EXPIRED_BATCH).with_for_update(skip_locked=True)

        async def work(connection: AsyncConnection) -> None:
            if assertion is not None:
                await self._use(connection, *assertion, now)
            row = {
                "id_hash": _digest(session_id),
                "user_name": user,
                "created_at": session.created_at,
                "expires_at": session.expires_at,
                "host_cookie": True,
            }
            await connection.execute(sessions.insert().values(row))
            for former in replaced:
                await connection.execute(_deletion(former))
            await connection.execute(delete(sessions).where(sessions.c.id_hash.in_(expired)))

        await self._transactions.run(work)
        return Versioned(session, version=1, ttl=lifetime)

    async def _use(
        self,
        connection: AsyncConnection,
        digest: bytes,
        forget_after: dt.datetime,
        now: dt.datetime,
    ) -> None:
        """Note that an assertion is used; raises AssertionUsed if it was before."""
        row = {"digest": digest, "forget_after": forget_after}
        # Of two at the same time, the second waits here for the first one's commit.
        noted = await connection.execute(
            self._transactions.insert(assertions).values(row).on_conflict_do_nothing()
        )
        if not noted.rowcount:
            raise AssertionUsed
        useless = select(assertions.c.digest).where(assertions.c.forget_after <= now)
        useless = useless.limit(EXPIRED_BATCH).with_for_update(skip_locked=True)
        await connection.execute(delete(assertions).where(assertions.c.digest.in_(useless)))

    async def read(self, session_id: str, *, old: bool = False) -> Versioned[Session] | None:
        """Return the session, None if there is none or it has expired. It may be kept as long.

        With `old`, only one that a release of before revision 0003 has begun.
        """
        query = select(sessions).where(sessions.c.id_hash == _digest(session_id))
        if old:
            query = query.where(sessions.c.host_cookie.is_(False))
        row = only(await self._transactions.read(query))
        if row is None:
            return None
        remaining = (row.expires_at - clock.now()).total_seconds()
        if remaining <= 0:
            return None
        if old:
            self._mixed_until = max(self._mixed_until, row.expires_at)
        session = Session(row.user_name, row.created_at, row.expires_at)
        return Versioned(session, version=1, ttl=max(1, int(remaining)))

    async def delete(self, session_id: str) -> None:
        """End the session, if there is one."""

        async def work(connection: AsyncConnection) -> None:
            await connection.execute(_deletion(session_id))

        await self._transactions.run(work)

    async def look_for_old(self) -> None:
        """Find out whether a release of before revision 0003 has begun sessions."""
        query = select(func.max(sessions.c.expires_at).label("last"))
        row = only(await self._transactions.read(query.where(sessions.c.host_cookie.is_(False))))
        if row is not None and row.last is not None:
            # All of them may have expired, and the next one be about to begin.
            self._mixed_until = max(row.last, clock.now() + OVERLAP)


def _digest(session_id: str) -> bytes:
    return hashlib.sha256(session_id.encode()).digest()


def _deletion(session_id: str) -> Delete:
    return delete(sessions).where(sessions.c.id_hash == _digest(session_id))
