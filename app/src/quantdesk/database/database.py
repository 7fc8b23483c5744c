"""The source of truth: the engine, and the queries."""

import asyncio
import datetime as dt
import hashlib
import uuid
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from contextlib import AbstractAsyncContextManager, nullcontext
from dataclasses import dataclass
from decimal import Context, Decimal
from functools import partial
from typing import Any, Final, Literal, Protocol, TypeAlias, TypeVar

import asyncpg  # type: ignore[import-untyped]  # ships no types
import msgspec
from sqlalchemy import (
    Delete,
    Row,
    Select,
    Table,
    and_,
    delete,
    event,
    func,
    literal_column,
    select,
)
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import DBAPIError, OperationalError, SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine

from quantdesk.database import migrate
from quantdesk.database.postgres_address import parse_address
from quantdesk.database.tables import (
    accounts,
    assertions,
    orders,
    positions,
    presence,
    prices,
    sessions,
)
from quantdesk.decimals import INTEGER_DIGITS
from quantdesk.redis.cache import Loaded

# Seconds. A health check must answer sooner than whoever asks for it gives up, and an operation
# sooner than its caller. Within an operation's time a database's own limits come first, so that
# it can say what is wrong.
HEALTH_TIMEOUT: Final = 2.0
OPERATION_TIMEOUT: Final = 5.0
CONNECT_TIMEOUT: Final = 3.0
STATEMENT_TIMEOUT: Final = 4.0
LOCK_TIMEOUT: Final = 3.0
# Seconds that a server which has stopped answering gets to hear goodbye, on top of the others.
CLOSE_TIMEOUT: Final = 0.3

# Connections of one process: those that stay, and those that a burst may add. SQLite has one
# writer at a time whatever their number.
POOL_SIZE: Final = 10
POOL_BURST: Final = 10
SQLITE_POOL_SIZE: Final = 5

# Prices that are committed together at most.
PRICE_BATCH: Final = 500

# How long a start expects instances of a release that began sessions otherwise, at least.
OVERLAP: Final = dt.timedelta(minutes=15)

# Each session that begins clears so many sessions and assertions away that have expired, so there
# are never many.
EXPIRED_BATCH: Final = 10

# Enough digits for the exact product of two decimals as callers may send them, and for a sum of
# more of these than there are symbols.
_EXACT: Final = Context(prec=200)

T = TypeVar("T")
AnyRow: TypeAlias = Row[*tuple[Any, ...]]
AnySelect: TypeAlias = Select[*tuple[Any, ...]]
Work: TypeAlias = Callable[[AsyncConnection], Awaitable[T]]
Side = Literal["buy", "sell"]
OrderStatus = Literal["filled", "cancelled"]
PresenceStatus = Literal["online", "away"]


class Price(msgspec.Struct, frozen=True, rename="camel"):
    """A symbol's latest price.

    `price` is a decimal in plain notation, a string so that no reader rounds it to a float. So are
    all prices, quantities and values below.
    """

    symbol: str
    price: str
    updated_at: dt.datetime


class Session(msgspec.Struct, frozen=True, rename="camel"):
    """Who is logged in, and until when. Its id is known to the client alone."""

    user: str
    created_at: dt.datetime
    expires_at: dt.datetime


class Order(msgspec.Struct, frozen=True, rename="camel"):
    """An order that has come to its end; orders do not wait.

    `price` is what it was filled at, or the limit of one that was cancelled.
    """

    id: str
    user: str
    symbol: str
    side: Side
    quantity: str
    price: str
    status: OrderStatus
    created_at: dt.datetime


class Position(msgspec.Struct, frozen=True, rename="camel"):
    """What a user holds of a symbol. `value` is `quantity` times the latest `price`, exactly."""

    symbol: str
    quantity: str
    price: str
    value: str


class Portfolio(msgspec.Struct, frozen=True, rename="camel"):
    """All that a user holds, by symbol."""

    user: str
    positions: list[Position]
    total_value: str


class Presence(msgspec.Struct, frozen=True, rename="camel"):
    """What a user last said of themselves, and when."""

    user: str
    status: PresenceStatus
    last_seen: dt.datetime


class OrderRequest(msgspec.Struct, frozen=True):
    """An order to be carried out at the latest price, or, with a limit, at none worse than that."""

    symbol: str
    side: Side
    quantity: Decimal
    limit: Decimal | None


class Placed(msgspec.Struct, frozen=True):
    """An order that was placed now, or earlier with the same key (`new` is false).

    `version` is that of the user's portfolio.
    """

    order: Order
    new: bool
    version: int


@dataclass(frozen=True, slots=True)
class _PriceWrite:
    """A price that waits to be committed."""

    symbol: str
    price: Decimal
    written: "asyncio.Future[Loaded[Price]]"


class Unavailable(SQLAlchemyError):
    """The database can't be reached, or did not answer in time.

    Whether a change that was under way is committed is then not known.
    """


class AssertionUsed(Exception):
    """The assertion has begun a session before; nothing was changed."""


class OrderRefused(Exception):
    """The order can't be placed; nothing was changed. The text is for the caller."""


class UnknownSymbol(OrderRefused):
    """The symbol has no price."""


class PositionRefused(OrderRefused):
    """The user would hold less than nothing, or more than can be counted."""


class KeyReused(OrderRefused):
    """The idempotency key belongs to another order."""


class Database:
    """Queries on the source of truth. Every method may raise SQLAlchemyError (see Unavailable).

    An operation takes OPERATION_TIMEOUT seconds at most. One that finds its connection lost before
    anything could be committed is tried once more on a new one, so that a restarted PostgreSQL is
    not noticed.
    """

    def __init__(self, url: str) -> None:
        self.engine: Final = make_engine(url)
        dialect = self.engine.dialect.name
        self._insert = postgresql.insert if dialect == "postgresql" else sqlite.insert
        # A query alone needs no transaction: in PostgreSQL, that would be two more round trips.
        self._reader = (
            self.engine.execution_options(isolation_level="AUTOCOMMIT")
            if dialect == "postgresql"
            else self.engine
        )
        # Until when sessions of a release before this one's may live; see `mixed`.
        self._mixed_until = dt.datetime.min.replace(tzinfo=dt.UTC)
        self._ticked = dt.datetime.min.replace(tzinfo=dt.UTC)
        self._price_writes: list[_PriceWrite] = []
        self._price_writer: asyncio.Task[None] | None = None
        # SQLite lets one writer in after another, but not in turn: some would wait until they fail.
        self._writing: AbstractAsyncContextManager[Any] = (
            asyncio.Lock() if dialect == "sqlite" else nullcontext()
        )

    async def open(self) -> None:
        """Bring the tables to this release's revision."""
        try:
            if self.engine.dialect.name == "sqlite":
                await _write_ahead(self.engine)
            await migrate.upgrade(self.engine)
            await self._look_for_old_sessions()
        except (OSError, TimeoutError) as error:
            raise Unavailable(_why(error)) from error

    async def close(self) -> None:
        """Close the connections."""
        await self.engine.dispose()

    async def healthy(self) -> bool:
        """Tell whether the database answers a read of a table within HEALTH_TIMEOUT seconds."""
        try:
            query = select(prices.c.symbol).limit(1)
            await _limited(_attempt(self._reader, _fetch(query)), HEALTH_TIMEOUT)
        except SQLAlchemyError:
            return False
        return True

    # Prices.

    async def price(self, symbol: str) -> Loaded[Price] | None:
        """Return the latest price of `symbol`, None if it has none."""
        query = select(prices.c.price, prices.c.updated_at, prices.c.version)
        row = _only(await self._read(query.where(prices.c.symbol == symbol)))
        if row is None:
            return None
        return Loaded(Price(symbol, plain(row.price), row.updated_at), row.version)

    async def set_price(self, symbol: str, price: Decimal) -> Loaded[Price]:
        """Write the price of `symbol`; return it as it will be read.

        What comes while a write is under way is committed together, by the next one: a commit is
        what a write costs most. Each still has a version of its own. Of two prices of a symbol the
        one written later has the later `updated_at`, whatever the clocks of two instances say.
        """
        written: asyncio.Future[Loaded[Price]] = asyncio.get_running_loop().create_future()
        self._price_writes.append(_PriceWrite(symbol, price, written))
        if self._price_writer is None or self._price_writer.done():
            self._price_writer = asyncio.create_task(self._write_prices(), name="price-writer")
        return await written

    async def _write_prices(self) -> None:
        while self._price_writes:
            batch = self._price_writes[:PRICE_BATCH]
            del self._price_writes[:PRICE_BATCH]
            by_symbol: dict[str, list[_PriceWrite]] = {}
            for write in batch:
                by_symbol.setdefault(write.symbol, []).append(write)
            try:
                rows = await self._run(partial(self._upsert_prices, by_symbol))
            except SQLAlchemyError as error:
                for write in batch:
                    if not write.written.done():
                        write.written.set_exception(error)
            except BaseException:
                for write in batch:
                    write.written.cancel()
                raise
            else:
                for row in rows:
                    _settle(by_symbol[row.symbol], row)

    async def _upsert_prices(
        self, by_symbol: dict[str, list[_PriceWrite]], connection: AsyncConnection
    ) -> Sequence[AnyRow]:
        now = self._tick()
        # Only a symbol's last price is ever read; its version counts those before it. In order, so
        # that two instances don't wait for each other.
        values = [
            {
                "symbol": symbol,
                "price": writes[-1].price,
                "updated_at": now,
                "version": len(writes),
            }
            for symbol, writes in sorted(by_symbol.items())
        ]
        insert = self._insert(prices)
        new = insert.excluded
        statement = insert.on_conflict_do_update(
            index_elements=[prices.c.symbol],
            set_={
                "price": new.price,
                "updated_at": self._later(new.updated_at, prices.c.updated_at),
                "version": prices.c.version + new.version,
            },
        ).returning(prices.c.symbol, prices.c.version, prices.c.updated_at)
        return (await connection.execute(statement, values)).all()

    # Sessions.

    @property
    def mixed(self) -> bool:
        """Whether a release of before revision 0003 may be running beside this one.

        It reads another cookie, and keeps and removes sessions in Redis under another name. That
        ends by itself with the last session that such a release has begun.
        """
        return _now() < self._mixed_until

    async def create_session(
        self,
        session_id: str,
        user: str,
        lifetime: int,
        *,
        replaced: Sequence[str] = (),
        assertion: tuple[bytes, dt.datetime] | None = None,
    ) -> Loaded[Session]:
        """Begin a session of `lifetime` seconds, and end those whose ids are `replaced`.

        `assertion` is what it begins with: a digest, and when that may be forgotten.

        Raises:
            AssertionUsed: another session has begun with it.
        """
        now = _now()
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
                await connection.execute(_session(former))
            await connection.execute(delete(sessions).where(sessions.c.id_hash.in_(expired)))

        await self._run(work)
        return Loaded(session, version=1, ttl=lifetime)

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
            self._insert(assertions).values(row).on_conflict_do_nothing()
        )
        if not noted.rowcount:
            raise AssertionUsed
        useless = select(assertions.c.digest).where(assertions.c.forget_after <= now)
        useless = useless.limit(EXPIRED_BATCH).with_for_update(skip_locked=True)
        await connection.execute(delete(assertions).where(assertions.c.digest.in_(useless)))

    async def session(self, session_id: str, *, old: bool = False) -> Loaded[Session] | None:
        """Return the session, None if there is none or it has expired. It may be kept as long.

        With `old`, only one that a release of before revision 0003 has begun.
        """
        query = select(sessions).where(sessions.c.id_hash == _digest(session_id))
        if old:
            query = query.where(sessions.c.host_cookie.is_(False))
        row = _only(await self._read(query))
        if row is None:
            return None
        remaining = (row.expires_at - _now()).total_seconds()
        if remaining <= 0:
            return None
        if old:
            self._mixed_until = max(self._mixed_until, row.expires_at)
        session = Session(row.user_name, row.created_at, row.expires_at)
        return Loaded(session, version=1, ttl=max(1, int(remaining)))

    async def delete_session(self, session_id: str) -> None:
        """End the session, if there is one."""

        async def work(connection: AsyncConnection) -> None:
            await connection.execute(_session(session_id))

        await self._run(work)

    async def _look_for_old_sessions(self) -> None:
        query = select(func.max(sessions.c.expires_at).label("last"))
        row = _only(await self._read(query.where(sessions.c.host_cookie.is_(False))))
        if row is not None and row.last is not None:
            # All of them may have expired, and the next one be about to begin.
            self._mixed_until = max(row.last, _now() + OVERLAP)

    # Orders, and what they amount to.

    async def place_order(self, user: str, request: OrderRequest, key: str | None) -> Placed:
        """Carry the order out at the latest price, or cancel it if its limit forbids that.

        With the `key` of an earlier order of this user, nothing happens but that it is returned.

        Raises:
            UnknownSymbol: the symbol has no price.
            PositionRefused: more is sold than held, or the position would get too large.
            KeyReused: `key` came with another order.
        """

        async def work(connection: AsyncConnection) -> Placed:
            # First of all, so that nothing is read before the user's earlier order is committed:
            # this write waits for it. In SQLite it is what makes the transaction a writing one.
            version = await self._upsert(connection, accounts, {"user_name": user}, {})
            if key is not None:
                earlier = await self._earlier(connection, user, request, key)
                if earlier is not None:
                    await connection.rollback()
                    return Placed(earlier, new=False, version=version - 1)
            order = await self._carry_out(connection, user, request, key)
            return Placed(order, new=True, version=version)

        return await self._run(work)

    async def order(self, order_id: str) -> Loaded[Order] | None:
        """Return the order, whosever it is; None if there is none. `order_id` must be a UUID."""
        row = _only(await self._read(select(orders).where(orders.c.id == uuid.UUID(order_id))))
        return None if row is None else Loaded(_order(row), version=1)

    async def portfolio(self, user: str) -> Loaded[Portfolio]:
        """Return what the user holds; its version is 0 until the first order."""
        # One statement, so that version and positions are of one moment.
        query = (
            select(accounts.c.version, positions.c.symbol, positions.c.quantity, prices.c.price)
            .select_from(accounts)
            .outerjoin(positions, positions.c.user_name == accounts.c.user_name)
            .outerjoin(prices, prices.c.symbol == positions.c.symbol)
            .where(accounts.c.user_name == user)
            .order_by(positions.c.symbol)
        )
        rows = await self._read(query)
        held = [row for row in rows if row.symbol is not None]
        values = [_EXACT.multiply(row.quantity, row.price) for row in held]
        total = Decimal(0)
        for value in values:
            total = _EXACT.add(total, value)
        portfolio = Portfolio(
            user,
            [
                Position(row.symbol, plain(row.quantity), plain(row.price), short(value))
                for row, value in zip(held, values, strict=True)
            ],
            short(total),
        )
        return Loaded(portfolio, rows[0].version if rows else 0)

    async def _earlier(
        self, connection: AsyncConnection, user: str, request: OrderRequest, key: str
    ) -> Order | None:
        query = select(orders).where(orders.c.user_name == user, orders.c.idempotency_key == key)
        row = (await connection.execute(query)).one_or_none()
        if row is None:
            return None
        if request != OrderRequest(row.symbol, row.side, row.quantity, row.limit_price):
            raise KeyReused("The Idempotency-Key was used for another order")
        return _order(row)

    async def _carry_out(
        self, connection: AsyncConnection, user: str, request: OrderRequest, key: str | None
    ) -> Order:
        query = (
            select(prices.c.price, positions.c.quantity)
            .select_from(prices)
            .outerjoin(
                positions,
                and_(positions.c.symbol == prices.c.symbol, positions.c.user_name == user),
            )
            .where(prices.c.symbol == request.symbol)
        )
        found = (await connection.execute(query)).one_or_none()
        if found is None:
            raise UnknownSymbol("The symbol has no price")
        signed = request.quantity if request.side == "buy" else -request.quantity
        held = _EXACT.add(found.quantity or Decimal(0), signed)
        if held < 0:
            raise PositionRefused("More is sold than held")
        if held >= Decimal(10) ** INTEGER_DIGITS:
            raise PositionRefused(
                f"A position has at most {INTEGER_DIGITS} digits before the point"
            )
        filled = _acceptable(request, found.price)
        row = {
            "id": uuid.uuid4(),
            "user_name": user,
            "symbol": request.symbol,
            "side": request.side,
            "quantity": request.quantity,
            "limit_price": request.limit,
            "price": found.price if filled else request.limit,
            "status": "filled" if filled else "cancelled",
            "created_at": _now(),
            "idempotency_key": key,
        }
        inserted = await connection.execute(orders.insert().values(row).returning(orders))
        if filled:
            await self._hold(connection, user, request.symbol, held)
        return _order(inserted.one())

    async def _hold(
        self, connection: AsyncConnection, user: str, symbol: str, quantity: Decimal
    ) -> None:
        if quantity == 0:
            await connection.execute(
                delete(positions).where(positions.c.user_name == user, positions.c.symbol == symbol)
            )
            return
        insert = self._insert(positions).values(user_name=user, symbol=symbol, quantity=quantity)
        await connection.execute(
            insert.on_conflict_do_update(
                index_elements=list(positions.primary_key), set_={"quantity": quantity}
            )
        )

    # Presence.

    async def set_presence(self, user: str, status: PresenceStatus) -> Loaded[Presence]:
        """Note that the user was seen now."""
        now = _now()
        values = {"status": status, "seen_at": now}

        async def work(connection: AsyncConnection) -> int:
            return await self._upsert(connection, presence, {"user_name": user}, values)

        return Loaded(Presence(user, status, now), await self._run(work))

    async def presence(self, user: str) -> Loaded[Presence] | None:
        """Return what the user last said, however long ago; None if they never did."""
        row = _only(await self._read(select(presence).where(presence.c.user_name == user)))
        if row is None:
            return None
        return Loaded(Presence(user, row.status, row.seen_at), row.version)

    # The ways to the database.

    def _tick(self) -> dt.datetime:
        """Return the time, or PRICE_BATCH moments after what this returned last if that is later.

        So there is a moment for each price of one symbol in a batch.
        """
        self._ticked = max(_now(), self._ticked + dt.timedelta(microseconds=PRICE_BATCH))
        return self._ticked

    def _later(self, new: Any, old: Any) -> Any:  # noqa: ANN401  # expressions
        if self.engine.dialect.name == "postgresql":
            return func.greatest(
                new, old + literal_column(f"interval '{PRICE_BATCH} microseconds'")
            )
        # Times are text there. One process writes after another, so two of one moment are rare.
        return func.max(new, old)

    async def _upsert(
        self,
        connection: AsyncConnection,
        table: Table,
        key: dict[str, Any],
        values: dict[str, Any],
    ) -> int:
        """Write a row, make its version one more than it was, and return that."""
        insert = self._insert(table).values(**key, **values, version=1)
        statement = insert.on_conflict_do_update(
            index_elements=list(table.primary_key),
            set_={**values, "version": table.c.version + 1},
        ).returning(table.c.version)
        version: int = (await connection.execute(statement)).scalar_one()
        return version

    async def _read(self, query: AnySelect) -> Sequence[AnyRow]:
        return await _limited(_attempt(self._reader, _fetch(query)), OPERATION_TIMEOUT)

    async def _run(self, work: Work[T]) -> T:
        """Run `work` in a transaction, which is committed when it returns."""

        async def in_turn() -> T:
            async with self._writing:
                return await _attempt(self.engine, work)

        return await _limited(in_turn(), OPERATION_TIMEOUT)


def _settle(writes: list[_PriceWrite], row: AnyRow) -> None:
    """Answer the writes of one symbol that were committed together, in the order they came in."""
    for before, write in enumerate(reversed(writes)):
        # A moment for each, as if they had been committed one after another.
        updated_at = row.updated_at - before * dt.timedelta(microseconds=1)
        price = Price(write.symbol, plain(write.price), updated_at)
        if not write.written.done():
            write.written.set_result(Loaded(price, row.version - before))


def _fetch(query: AnySelect) -> Work[Sequence[AnyRow]]:
    async def work(connection: AsyncConnection) -> Sequence[AnyRow]:
        return (await connection.execute(query)).all()

    return work


async def _attempt(engine: AsyncEngine, work: Work[T]) -> T:
    for last in (False, True):
        async with engine.connect() as connection:
            try:
                result = await work(connection)
            except DBAPIError as error:
                # The pool has let go of all connections from before; the next one is new. What
                # fails later, at the commit, is never repeated: it may have taken effect.
                if last or not error.connection_invalidated:
                    raise
            else:
                await connection.commit()
                return result
    raise AssertionError("the second attempt either returns or raises")


async def _limited(work: Coroutine[Any, Any, T], seconds: float) -> T:
    try:
        async with asyncio.timeout(seconds):
            return await work
    except (OSError, TimeoutError) as error:
        raise Unavailable(_why(error)) from error


async def migrate_database(url: str) -> None:
    """Bring the database's tables to this release's revision.

    Raises:
        SQLAlchemyError: it can't be reached (Unavailable), or not be migrated (MigrationError).
    """
    database = Database(url)
    try:
        await database.open()
    finally:
        await database.close()


def plain(value: Decimal) -> str:
    """Return the decimal in plain notation, with the zeros at its end."""
    return format(value, "f")


def short(value: Decimal) -> str:
    """Return the decimal in plain notation, without zeros at its end."""
    return format(_EXACT.normalize(value), "f")


def make_engine(url: str) -> AsyncEngine:
    """Return an engine for DATABASE_URL as the settings have checked it."""
    address = parse_address(url)
    if address is None:
        engine = create_async_engine(
            url,
            connect_args={"timeout": LOCK_TIMEOUT},
            pool_size=SQLITE_POOL_SIZE,
            max_overflow=0,
            pool_timeout=OPERATION_TIMEOUT,
            # Parameters stay out of error texts: those reach the log.
            hide_parameters=True,
        )
        event.listen(engine.sync_engine, "connect", _configure_sqlite)
        return engine
    return create_async_engine(
        # The rest is passed on beside the URL, so that nothing can show a password in it.
        "postgresql+asyncpg://",
        connect_args={
            "host": address.host,
            "port": address.port,
            "user": address.user,
            "password": address.password,
            "database": address.database,
            "ssl": address.tls(),
            "timeout": CONNECT_TIMEOUT,
            "connection_class": _Connection,
            "server_settings": {
                "application_name": "quantdesk",
                "statement_timeout": _milliseconds(STATEMENT_TIMEOUT),
                "lock_timeout": _milliseconds(LOCK_TIMEOUT),
                # Should this process vanish without a word, its locks go soon.
                "idle_in_transaction_session_timeout": _milliseconds(2 * OPERATION_TIMEOUT),
                # Compiling costs more than such short queries take.
                "jit": "off",
            },
        },
        pool_size=POOL_SIZE,
        max_overflow=POOL_BURST,
        pool_timeout=OPERATION_TIMEOUT,
        # The connection used last is taken first, so that those of a burst get old and go.
        pool_use_lifo=True,
        hide_parameters=True,
    )


class _Connection(asyncpg.Connection):  # type: ignore[misc]  # its base has no types
    """A connection that is not waited for as long as its callers would."""

    async def close(self, *, timeout: float | None = None) -> None:  # noqa: ASYNC109  # the base's
        """Say goodbye for CLOSE_TIMEOUT seconds at most, then hang up."""
        await super().close(timeout=min(timeout or CLOSE_TIMEOUT, CLOSE_TIMEOUT))


class _Cursor(Protocol):
    def execute(self, statement: str) -> object: ...
    def close(self) -> None: ...


class _Driver(Protocol):
    def cursor(self) -> _Cursor: ...


def _configure_sqlite(connection: _Driver, _record: object) -> None:
    cursor = connection.cursor()
    cursor.execute("PRAGMA foreign_keys=ON")
    cursor.close()


async def _write_ahead(engine: AsyncEngine) -> None:
    """Have SQLite keep a write-ahead log, so that readers and the writer don't block each other.

    The file remembers it. Of instances that start at once on a new file, all but one find it
    locked, and here SQLite does not wait by itself.
    """
    loop = asyncio.get_running_loop()
    deadline = loop.time() + LOCK_TIMEOUT
    while True:
        try:
            async with engine.connect() as connection:
                await connection.exec_driver_sql("PRAGMA journal_mode=WAL")
        except OperationalError as error:
            if "locked" not in str(error.orig) or loop.time() > deadline:
                raise
            await asyncio.sleep(0.01)
        else:
            return


def _milliseconds(seconds: float) -> str:
    return str(int(seconds * 1000))


def _why(error: Exception) -> str:
    if isinstance(error, TimeoutError):
        return "The database did not answer in time"
    return str(error) or type(error).__name__


def _now() -> dt.datetime:
    return dt.datetime.now(dt.UTC)


def _digest(session_id: str) -> bytes:
    return hashlib.sha256(session_id.encode()).digest()


def _session(session_id: str) -> Delete:
    return delete(sessions).where(sessions.c.id_hash == _digest(session_id))


def _only(rows: Sequence[AnyRow]) -> AnyRow | None:
    return rows[0] if rows else None


def _acceptable(request: OrderRequest, latest: Decimal) -> bool:
    if request.limit is None:
        return True
    return latest <= request.limit if request.side == "buy" else latest >= request.limit


def _order(row: AnyRow) -> Order:
    return Order(
        id=str(row.id),
        user=row.user_name,
        symbol=row.symbol,
        side=row.side,
        quantity=plain(row.quantity),
        price=plain(row.price),
        status=row.status,
        created_at=row.created_at,
    )
