"""Sessions while a release of before revision 0003 runs beside this one, and after it."""

import datetime as dt
import hashlib
import secrets
from collections.abc import Awaitable, Callable
from typing import Any

import httpx
import msgspec
import pytest
from redis import Redis
from sqlalchemy import text

from conftest import Calendar, Running, Server, Start
from logins import Issuer
from quantdesk.database import clock

CURRENT = "/api/sessions/current"
ENV = {"APP_ENV": "production", "ADMIN_TOKEN": "t" * 32}


class Former:
    """The release before, as far as the database and Redis show it: its statements and keys."""

    def __init__(self, app: Running, raw: Redis) -> None:
        self._engine = app.services.database.engine
        self.raw = raw

    async def begin(self, user: str, seconds: int = 3600) -> str:
        """Begin a session; return its id, which that release sends as the cookie `session`."""
        session_id = secrets.token_urlsafe(32)
        now = dt.datetime.now(dt.UTC)
        row = {
            "id": hashlib.sha256(session_id.encode()).digest(),
            "user": user,
            "now": now.isoformat(" "),
            "end": (now + dt.timedelta(seconds=seconds)).isoformat(" "),
        }
        statement = (
            "INSERT INTO sessions (id_hash, user_name, created_at, expires_at) "
            "VALUES (:id, :user, :now, :end)"
        )
        async with self._engine.begin() as connection:
            await connection.execute(text(statement), _plain(row))
        body = {"user": user, "createdAt": now, "expiresAt": now + dt.timedelta(seconds=seconds)}
        if seconds > 0:
            self.raw.set(self.key(session_id), msgspec.json.encode(body), ex=seconds)
        return session_id

    async def end(self, session_id: str) -> None:
        """End a session."""
        digest = hashlib.sha256(session_id.encode()).digest()
        async with self._engine.begin() as connection:
            await connection.execute(
                text("DELETE FROM sessions WHERE id_hash = :id"), {"id": digest}
            )
        self.raw.delete(self.key(session_id))

    async def knows(self, session_id: str) -> bool:
        """Return whether that release takes a session for one that lives."""
        if self.raw.exists(self.key(session_id)):
            return True
        digest = hashlib.sha256(session_id.encode()).digest()
        query = text("SELECT count(*) FROM sessions WHERE id_hash = :id")
        async with self._engine.connect() as connection:
            return bool((await connection.execute(query, {"id": digest})).scalar_one())

    @staticmethod
    def key(session_id: str) -> str:
        return f"qd:development:session:{session_id}"


def _plain(row: dict[str, Any]) -> dict[str, Any]:
    # As SQLite keeps it: without a zone.
    return {name: v.removesuffix("+00:00") if isinstance(v, str) else v for name, v in row.items()}


@pytest.fixture
def issuer() -> Issuer:
    return Issuer()


Pair = tuple[Former, Running]
MakePair = Callable[[], Awaitable[Pair]]


@pytest.fixture
def both(start: Start, issuer: Issuer, redis_server: Server, raw: Redis) -> MakePair:
    """Start this release where the one before has a session."""

    async def make() -> Pair:
        # (The first one only makes the tables.)
        former = Former(await start(redis_server), raw)
        await former.begin("somebody")
        return former, await start(redis_server, **ENV, **issuer.env)

    return make


async def read(app: Running, **cookies: str) -> httpx.Response:
    cookie = "; ".join(
        f"{name.replace('host', '__Host-session')}={v}" for name, v in cookies.items()
    )
    return await app.client.get(CURRENT, headers={"Cookie": cookie})


async def log_in(app: Running, issuer: Issuer, user: str = "alice") -> dict[str, str]:
    answer = await app.client.post("/api/sessions", json={"assertion": issuer.sign(user)})
    assert answer.status_code == 201
    app.client.cookies.clear()
    found = [cookie.split(";")[0].split("=") for cookie in answer.headers.get_list("Set-Cookie")]
    return {name.replace("__Host-session", "host"): value for name, value in found}


async def test_session_of_the_former_release_goes_on(both: MakePair) -> None:
    former, app = await both()
    session = await former.begin("alice")
    for _ in range(2):
        answer = await read(app, session=session)
        assert (answer.status_code, answer.json()["data"]["user"]) == (200, "alice")


async def test_session_of_this_release_is_one_to_the_former_too(
    both: MakePair, issuer: Issuer
) -> None:
    former, app = await both()
    cookies = await log_in(app, issuer)
    assert set(cookies) == {"host", "session"}
    assert await former.knows(cookies["session"])
    assert (await read(app, **cookies)).status_code == 200
    # Under the former name alone it is none here: another host of the domain could have set it.
    assert (await read(app, session=cookies["session"])).status_code == 401


@pytest.mark.parametrize("begun_by", ["former", "this"])
@pytest.mark.parametrize("ended_by", ["former", "this"])
async def test_end_of_a_session_is_its_end_on_both(
    both: MakePair, issuer: Issuer, begun_by: str, ended_by: str
) -> None:
    former, app = await both()
    if begun_by == "this":
        cookies = await log_in(app, issuer)
        session = cookies["session"]
        # That release keeps in Redis what it has read.
        former.raw.set(former.key(session), b"{}")
    else:
        session = await former.begin("alice")
        cookies = {"session": session}
    assert (await read(app, **cookies)).status_code == 200
    if ended_by == "former":
        await former.end(session)
    else:
        header = "; ".join(f"{n.replace('host', '__Host-session')}={v}" for n, v in cookies.items())
        ended = await app.client.delete(CURRENT, headers={"Cookie": header})
        assert ended.status_code == 200
        assert len(ended.headers.get_list("Set-Cookie")) == 2
    assert not await former.knows(session)
    assert (await read(app, **cookies)).status_code == 401


async def test_new_session_ends_the_formers(both: MakePair, issuer: Issuer) -> None:
    former, app = await both()
    session = await former.begin("alice")
    body = {"assertion": issuer.sign("bob")}
    answer = await app.client.post(
        "/api/sessions", json=body, headers={"Cookie": f"session={session}"}
    )
    assert answer.status_code == 201
    assert not await former.knows(session)


async def test_it_is_over_when_the_last_session_of_the_former_has_ended(
    both: MakePair, issuer: Issuer, monkeypatch: pytest.MonkeyPatch, raw: Redis
) -> None:
    _, app = await both()
    calendar = Calendar()
    monkeypatch.setattr(clock, "now", lambda: calendar.now(dt.UTC))
    calendar.moment = dt.datetime.now(dt.UTC) + dt.timedelta(hours=1, seconds=1)
    cookies = await log_in(app, issuer)
    assert set(cookies) == {"host"}
    # What the former knew it by is no cookie any more, whatever session it names.
    assert (await read(app, session=cookies["host"])).status_code == 401
    assert [key for key in raw.keys("*") if cookies["host"].encode() in key] == []


async def test_first_login_after_the_start_may_be_at_the_former(
    start: Start, issuer: Issuer, redis_server: Server, raw: Redis
) -> None:
    """At night nobody has a session when the first host is switched."""
    former = Former(await start(redis_server), raw)
    app = await start(redis_server, **ENV, **issuer.env)
    session = await former.begin("alice")
    assert (await read(app, session=session)).status_code == 200
    assert set(await log_in(app, issuer)) == {"host", "session"}
    # Nor does it matter that what there was has expired.
    await former.begin("bob", -60)
    await former.end(session)
    later = await start(redis_server, **ENV, **issuer.env)
    assert set(await log_in(later, issuer)) == {"host", "session"}


async def test_new_database_has_no_transition(start: Start, issuer: Issuer) -> None:
    app = await start(**ENV, **issuer.env)
    assert set(await log_in(app, issuer)) == {"host"}
    assert not app.services.database.sessions.mixed_releases
