"""Orders, and the positions that they change."""

import datetime as dt
import uuid
from decimal import Decimal

import msgspec
from sqlalchemy import and_, delete, select
from sqlalchemy.ext.asyncio import AsyncConnection

from quantdesk.database import clock
from quantdesk.database.tables import accounts, orders, positions, prices
from quantdesk.database.transactions import AnyRow, Transactions, only
from quantdesk.database.versioned import Versioned
from quantdesk.decimals import plain
from quantdesk.trading import KeyReused, OrderRequest, OrderStatus, Side, execute


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


class Placed(msgspec.Struct, frozen=True):
    """An order that was placed now, or earlier with the same key (`new` is false).

    `version` is that of the user's portfolio.
    """

    order: Order
    new: bool
    version: int


class Orders:
    """Places and reads orders."""

    def __init__(self, transactions: Transactions) -> None:
        self._transactions = transactions

    async def place(self, user: str, request: OrderRequest, key: str | None) -> Placed:
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
            version = await self._transactions.upsert(connection, accounts, {"user_name": user}, {})
            if key is not None:
                earlier = await self._earlier(connection, user, request, key)
                if earlier is not None:
                    await connection.rollback()
                    return Placed(earlier, new=False, version=version - 1)
            order = await self._carry_out(connection, user, request, key)
            return Placed(order, new=True, version=version)

        return await self._transactions.run(work)

    async def read(self, order_id: str) -> Versioned[Order] | None:
        """Return the order, whosever it is; None if there is none. `order_id` must be a UUID."""
        row = only(
            await self._transactions.read(select(orders).where(orders.c.id == uuid.UUID(order_id)))
        )
        return None if row is None else Versioned(_order(row), version=1)

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
        latest, held = (None, None) if found is None else found
        execution = execute(request, latest, held or Decimal(0))
        row = {
            "id": uuid.uuid4(),
            "user_name": user,
            "symbol": request.symbol,
            "side": request.side,
            "quantity": request.quantity,
            "limit_price": request.limit,
            "price": execution.price,
            "status": execution.status,
            "created_at": clock.now(),
            "idempotency_key": key,
        }
        inserted = await connection.execute(orders.insert().values(row).returning(orders))
        if execution.status == "filled":
            await self._hold(connection, user, request.symbol, execution.held)
        return _order(inserted.one())

    async def _hold(
        self, connection: AsyncConnection, user: str, symbol: str, quantity: Decimal
    ) -> None:
        if quantity == 0:
            await connection.execute(
                delete(positions).where(positions.c.user_name == user, positions.c.symbol == symbol)
            )
            return
        insert = self._transactions.insert(positions).values(
            user_name=user, symbol=symbol, quantity=quantity
        )
        await connection.execute(
            insert.on_conflict_do_update(
                index_elements=list(positions.primary_key), set_={"quantity": quantity}
            )
        )


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
