"""What holds for the cache whatever happens in which order, on several instances at once."""

import asyncio
import signal
import time
import tracemalloc
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path

import msgspec
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from redis import Redis, RedisError

from conftest import HANG, PATIENT_ENV, Server, command, running, until
from quantdesk.database.prices import Price
from quantdesk.database.versioned import Versioned
from quantdesk.redis.cache import Cache
from quantdesk.redis.errors import RedisUnavailable
from quantdesk.redis.gateway import Gateway
from quantdesk.redis.keys import DELETED, GUARD
from quantdesk.redis.reads import Lookup, Outcome
from quantdesk.redis.statistics import Counts, Stats
from quantdesk.settings import CacheTtls, RedisSettings, load_settings

TTLS = CacheTtls(price=30, portfolio=30, order=30, session=30, presence=30)
INSTANCES = 3


class Value(msgspec.Struct, frozen=True):
    """What is cached: an entry that tells its own version."""

    version: int


_decoder = msgspec.json.Decoder(Value)


def redis_settings(server: Server, **env: str) -> RedisSettings:
    environ = {"REDIS_URL": server.url, "DATABASE_URL": "sqlite:////tmp/unused.db"}
    environ |= PATIENT_ENV | env
    redis = load_settings(environ).redis
    assert redis is not None
    return redis


@dataclass
class Instance:
    """One process' cache."""

    cache: Cache
    gateway: Gateway
    # How often each key was dropped here; and of the loads under way, how often when they were
    # first asked for.
    drops: dict[str, int] = field(default_factory=dict)
    loads: dict[str, list[int]] = field(default_factory=dict)
    answers: list[Outcome] = field(default_factory=list)


@asynccontextmanager
async def instances(
    server: Server,
    number: int = INSTANCES,
    *,
    env_name: str = "test",
    ttls: CacheTtls = TTLS,
    **env: str,
) -> AsyncIterator[list[Instance]]:
    redis = redis_settings(server, **env)
    made = []
    for _ in range(number):
        gateway = Gateway(redis, env_name)
        made.append(Instance(Cache(gateway, env_name, ttls, Stats()), gateway))
    for instance in made:
        await instance.gateway.start(HANG)
    try:
        yield made
    finally:
        for instance in made:
            await instance.gateway.stop()
            await instance.cache.finish()


async def in_use(instance: Instance) -> None:
    """Wait until Redis answers an instance, and with that all it was asked before."""
    async with asyncio.timeout(HANG):
        while True:
            with suppress(RedisUnavailable):
                assert await instance.gateway.call("PING") == b"PONG"
                return
            await asyncio.sleep(0.01)


async def behind(instance: Instance) -> None:
    """Wait until an instance has heard all that Redis has answered it so far."""
    with suppress(RedisUnavailable):
        await instance.gateway.call("PING")


class World:
    """A source of truth, the instances in front of it, and what each may still answer."""

    def __init__(self, made: list[Instance]) -> None:
        self.instances = made
        # Versions that were committed. DELETED stays for good.
        self.committed: dict[str, int] = {}
        # What each instance must not go below, and what nobody must, a moment after.
        self.floors: list[dict[str, int]] = [{} for _ in made]
        self.floor: dict[str, int] = {}
        # Whether Redis is up all the time, which is when instances vouch for each other.
        self.calm = True
        self.problems: list[str] = []

    async def read(self, number: int, key: str, before: float, after: float) -> None:
        instance = self.instances[number]
        least = self.floors[number].get(key, 0)
        if self.calm:
            least = max(least, self.floor.get(key, 0))

        drops = instance.drops.get(key, 0)

        async def load() -> Versioned[Value] | None:
            return await self.load(instance, key, drops, before, after)

        async with asyncio.timeout(HANG):
            lookup = await instance.cache.read("price", key, _decoder, load)
        instance.answers.append(lookup.outcome)
        found = DELETED if lookup.value is None else lookup.value.version
        if not least <= found <= self.committed.get(key, 1):
            self.problems.append(f"{number} read {found} of {key}, not {least} or later")

    async def load(
        self, instance: Instance, key: str, drops: int, before: float, after: float
    ) -> Versioned[Value] | None:
        loads = instance.loads.setdefault(key, [])
        if drops in loads:
            self.problems.append(f"loads of {key} overlap")
        loads.append(drops)
        await asyncio.sleep(before)
        version = self.committed.get(key, 1)
        await asyncio.sleep(after)
        loads.remove(drops)
        return None if version == DELETED else Versioned(Value(version), version)

    async def change(self, number: int, key: str, how: str) -> None:
        instance = self.instances[number]
        version = self.committed.get(key, 1)
        if version == DELETED:
            return
        version = self.committed[key] = DELETED if how == "delete" else version + 1
        instance.drops[key] = instance.drops.get(key, 0) + 1
        async with asyncio.timeout(HANG):
            if how == "put":
                await instance.cache.put("price", key, Versioned(Value(version), version))
            else:
                await instance.cache.invalidate("price", key, version)
        floors = self.floors[number]
        floors[key] = max(version, floors.get(key, 0))
        # An answer that is on its way to another instance at this moment is not called back.
        await asyncio.gather(*(behind(instance) for instance in self.instances))
        self.floor[key] = max(version, self.floor.get(key, 0))

    async def quiet(self) -> None:
        """Wait until every instance has Redis, and nothing is under way."""
        for instance in self.instances:
            await instance.cache.finish()
            await in_use(instance)

    def check(self, raw: Redis, env_name: str) -> None:
        """Compare what is left in Redis with the source."""
        for key, version in self.committed.items():
            entry = raw.get(f"qd:{env_name}:price:{key}")
            guard = int(raw.get(f"qd:{env_name}:guard:{{qd:{env_name}:price:{key}}}") or 0)
            if entry is not None:
                kept = _decoder.decode(entry).version
                if kept != version or kept < guard:
                    self.problems.append(f"{key} is kept at {kept}, of {version}, guard {guard}")
        for number, instance in enumerate(self.instances):
            answers, counts = instance.answers, instance.cache.stats.total
            found = Counts(answers.count(Outcome.HIT), answers.count(Outcome.MISS), counts.errors)
            found.sets = counts.sets
            if found != counts or counts.requests > len(answers) or (self.calm and counts.errors):
                self.problems.append(f"{number} counted {counts}, answered {found}")


_pauses = st.sampled_from([0.0, 0.0, 0.001, 0.003, 0.01, 0.03])
_keys = st.sampled_from(["A", "B"])
_reads = st.tuples(st.just("read"), st.integers(0, INSTANCES - 1), _keys, _pauses, _pauses)
_changes = st.tuples(
    st.sampled_from(["invalidate", "invalidate", "put"]),
    st.integers(0, INSTANCES - 1),
    _keys,
    _pauses,
    st.just(0.0),
)
_deletes = st.tuples(st.just("delete"), st.integers(0, INSTANCES - 1), _keys, _pauses, st.just(0.0))
_steps = st.one_of(_reads, _reads, _reads, _reads, _changes, _changes)
# What several users do one after the other, each; and rarely, somebody deletes something.
_users = st.lists(
    st.lists(st.tuples(_pauses, _steps), min_size=8, max_size=25), min_size=4, max_size=8
)
_deletions = st.lists(st.tuples(_pauses, _deletes), max_size=2)
_Step = tuple[float, tuple[str, int, str, float, float]]
_environments = count()


async def act(world: World, steps: list[_Step]) -> None:
    for pause, (what, number, key, before, after) in steps:
        await asyncio.sleep(pause)
        if what == "read":
            await world.read(number, key, before, after)
        else:
            await world.change(number, key, what)


async def forget_scripts(server: Server) -> None:
    with server.client() as raw:
        for _ in range(5):
            raw.script_flush()
            await asyncio.sleep(0.02)


async def kill_connections(server: Server) -> None:
    with server.client() as raw:
        command(raw, "CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")


async def restart(server: Server) -> None:
    server.kill()
    await asyncio.sleep(0.03)
    server.start()


async def be_away(server: Server) -> None:
    server.kill()
    await asyncio.sleep(0.4)
    server.start()


async def freeze(server: Server) -> None:
    server.signal(signal.SIGSTOP)
    await asyncio.sleep(0.35)
    server.signal(signal.SIGCONT)


async def stutter(server: Server) -> None:
    server.signal(signal.SIGSTOP)
    await asyncio.sleep(0.05)
    server.signal(signal.SIGCONT)


STORMS: list[Callable[[Server], Awaitable[None]]] = [
    kill_connections,
    restart,
    be_away,
    freeze,
    stutter,
    forget_scripts,
]


async def storm(server: Server, storms: list[tuple[float, int]]) -> None:
    for pause, number in storms:
        await asyncio.sleep(0.01 + pause)
        with suppress(RedisError):
            await STORMS[number](server)


_bounded = settings(
    max_examples=12,
    deadline=None,
    # Not made smaller: it takes long, and what happens depends on the moment as well.
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


@_bounded
@given(users=_users, deletions=_deletions)
async def test_nothing_old_is_read_while_redis_is_up(
    redis_server: Server, raw: Redis, users: list[list[_Step]], deletions: list[_Step]
) -> None:
    env_name = f"calm-{next(_environments)}"
    async with instances(redis_server, env_name=env_name) as made:
        world = World(made)
        tasks = [act(world, steps) for steps in [*users, deletions]]
        await asyncio.gather(forget_scripts(redis_server), *tasks)
        await world.quiet()
        world.check(raw, env_name)
    assert world.problems == []


@_bounded
@given(
    users=_users,
    deletions=_deletions,
    storms=st.lists(st.tuples(_pauses, st.integers(0, len(STORMS) - 1)), min_size=1, max_size=4),
)
async def test_an_instance_never_goes_back_behind_its_own_changes(
    redis_server: Server,
    users: list[list[_Step]],
    deletions: list[_Step],
    storms: list[tuple[float, int]],
) -> None:
    env_name = f"stormy-{next(_environments)}"
    # So brief that a frozen Redis counts as down.
    async with instances(redis_server, env_name=env_name, REDIS_COMMAND_TIMEOUT="200") as made:
        world = World(made)
        world.calm = False
        tasks = [act(world, steps) for steps in [*users, deletions]]
        await asyncio.gather(storm(redis_server, storms), *tasks)
        await world.quiet()
        with redis_server.client() as raw:
            world.check(raw, env_name)
    assert world.problems == []


class Gate:
    """A load that a test holds between what it read and its return."""

    def __init__(self, *versions: int | None) -> None:
        self.entered = asyncio.Event()
        self.open = asyncio.Event()
        self.loads = 0
        self._versions = list(versions)

    async def load(self) -> Versioned[Value] | None:
        self.loads += 1
        version = self._versions.pop(0)
        self.entered.set()
        await self.open.wait()
        return None if version is None else Versioned(Value(version), version)


def reader(
    instance: Instance, load: Callable[[], Awaitable[Versioned[Value] | None]]
) -> "asyncio.Task[Lookup[Value]]":
    read = instance.cache.read("price", "A", _decoder, load)
    return asyncio.create_task(asyncio.wait_for(read, HANG))


def version(lookup: Lookup[Value]) -> int | None:
    return None if lookup.value is None else lookup.value.version


KEY = "qd:test:price:A"


@pytest.mark.parametrize(("old", "new"), [(1, 2), (1, None), (None, 2)])
async def test_who_comes_after_a_change_elsewhere_does_not_share_the_load_of_before(
    redis_server: Server, raw: Redis, old: int | None, new: int | None
) -> None:
    async with instances(redis_server, 2) as (here, elsewhere):
        gate = Gate(old, new)
        early = reader(here, gate.load)
        await gate.entered.wait()
        await elsewhere.cache.invalidate("price", "A", DELETED if new is None else new)
        late = [reader(here, gate.load) for _ in range(20)]
        await asyncio.sleep(0.02)
        # They wait rather than load at the same time.
        assert gate.loads == 1
        gate.open.set()
        assert version(await early) == old
        assert {version(lookup) for lookup in await asyncio.gather(*late)} == {new}
        assert gate.loads == 2
        await here.gateway.call("PING")
        assert raw.get(KEY) == (None if new is None else b'{"version":2}')


async def test_who_comes_during_a_load_shares_it_where_nothing_changed(
    redis_server: Server, raw: Redis
) -> None:
    async with instances(redis_server, 1) as (here,):
        gate = Gate(1)
        early = reader(here, gate.load)
        await gate.entered.wait()
        late = [reader(here, gate.load) for _ in range(20)]
        await asyncio.sleep(0.02)
        raw.config_resetstat()
        gate.open.set()
        lookups = await asyncio.gather(early, *late)
        assert {(version(lookup), lookup.outcome) for lookup in lookups} == {(1, Outcome.MISS)}
        # And no question to Redis besides.
        assert "cmdstat_get" not in raw.info("commandstats")
        assert (here.cache.stats.total.misses, here.cache.stats.total.sets) == (21, 1)


async def test_who_comes_during_a_load_shares_it_without_redis() -> None:
    here = Instance(Cache(gateway := Gateway(None, "test"), "test", TTLS, Stats()), gateway)
    gate = Gate(1)
    early = reader(here, gate.load)
    await gate.entered.wait()
    late = [reader(here, gate.load) for _ in range(20)]
    await asyncio.sleep(0)
    gate.open.set()
    lookups = await asyncio.gather(early, *late)
    assert {(version(lookup), lookup.outcome) for lookup in lookups} == {(1, Outcome.BYPASS)}


@pytest.mark.parametrize("redis", [True, False])
async def test_who_comes_after_a_change_here_does_not_wait_for_the_load_of_before(
    redis_server: Server, redis: bool
) -> None:
    gateway = Gateway(redis_settings(redis_server) if redis else None, "test")
    here = Instance(Cache(gateway, "test", TTLS, Stats()), gateway)
    await gateway.start(HANG)
    before, after = Gate(1), Gate(2)
    early = reader(here, before.load)
    await before.entered.wait()
    await here.cache.invalidate("price", "A", 2)
    after.open.set()
    assert version(await reader(here, after.load)) == 2
    before.open.set()
    assert version(await early) == 1
    outcome = Outcome.HIT if redis else Outcome.BYPASS
    again = Gate(2)
    again.open.set()
    lookup = await reader(here, again.load)
    assert (version(lookup), lookup.outcome) == (2, outcome)
    await gateway.stop()


async def test_failed_load_is_everybodys_failure(redis_server: Server) -> None:
    async with instances(redis_server, 1) as (here,):
        gate = asyncio.Event()
        entered = asyncio.Event()

        async def fail() -> Versioned[Value] | None:
            entered.set()
            await gate.wait()
            raise ValueError("on purpose")

        early = reader(here, fail)
        await entered.wait()
        late = reader(here, fail)
        await asyncio.sleep(0)
        gate.set()
        outcomes = await asyncio.gather(early, late, return_exceptions=True)
        assert [str(outcome) for outcome in outcomes] == ["on purpose"] * 2
        again = Gate(1)
        again.open.set()
        assert version(await reader(here, again.load)) == 1


async def test_redis_that_forgot_a_change_is_not_told_what_was_before(
    redis_server: Server,
) -> None:
    async with instances(redis_server, 2) as (here, elsewhere):
        gate = Gate(1)
        early = reader(here, gate.load)
        await gate.entered.wait()
        await elsewhere.cache.invalidate("price", "A", 2)
        # Without persistence: the change's guard is gone.
        redis_server.kill()
        redis_server.start()
        for instance in (here, elsewhere):
            await in_use(instance)
        gate.open.set()
        assert version(await early) == 1
        await here.cache.finish()
        await here.gateway.call("PING")
        with redis_server.client() as raw:
            assert raw.get(KEY) is None


async def test_older_write_through_is_neither_kept_nor_counted(
    redis_server: Server, raw: Redis
) -> None:
    async with instances(redis_server, 2) as (here, elsewhere):
        await elsewhere.cache.put("price", "A", Versioned(Value(3), 3))
        await here.cache.put("price", "A", Versioned(Value(2), 2))
        assert raw.get(KEY) == b'{"version":3}'
        assert (here.cache.stats.total.sets, here.cache.stats.total.errors) == (0, 0)
        assert elsewhere.cache.stats.total.sets == 1


@pytest.mark.parametrize("how", ["put", "invalidate"])
async def test_full_redis_keeps_nothing_old(redis_server: Server, raw: Redis, how: str) -> None:
    async with instances(redis_server, 1) as (here,):
        await here.cache.put("price", "A", Versioned(Value(1), 1))
        raw.config_set("maxmemory", "1")
        if how == "put":
            await here.cache.put("price", "A", Versioned(Value(2), 2))
            assert here.cache.stats.total.errors == 1
        else:
            await here.cache.invalidate("price", "A", 2)
        assert raw.get(KEY) is None
        assert here.gateway.available


async def remember(cache: Cache, names: range) -> None:
    for name in names:
        await cache.put("session", str(name), Versioned(Value(1), 1))


async def test_changes_without_redis_do_not_pile_up() -> None:
    disabled = Cache(Gateway(None, "test"), "test", TTLS, Stats())
    await remember(disabled, range(100))
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        await remember(disabled, range(20_000))
        after, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert after - before < 100_000


async def test_change_of_an_entry_that_has_expired_is_not_sent_again(redis_server: Server) -> None:
    async with instances(redis_server, 1) as (here,):
        redis_server.kill()
        await until(lambda: not here.gateway.available)
        await remember(here.cache, range(1000))
        pending, passed = here.cache._invalidations.pending, GUARD + TTLS.session
        # As if that time had passed.
        for key, (number, end) in list(pending.items()):
            pending[key] = number, end - passed
        await remember(here.cache, range(1000, 1005))
        redis_server.start()
        await in_use(here)
        with redis_server.client() as raw:
            assert raw.info("commandstats")["cmdstat_eval"]["calls"] == 5


async def test_many_changes_are_sent_soon_after_a_reconnect(redis_server: Server) -> None:
    async with instances(redis_server, 1) as (here,):
        redis_server.kill()
        await until(lambda: not here.gateway.available)
        await remember(here.cache, range(20_000))
        redis_server.start()
        started = time.process_time()
        await in_use(here)
        assert time.process_time() - started < 3
        with redis_server.client() as raw:
            assert raw.dbsize() == 20_000
            used = raw.info("cpu")
        assert used["used_cpu_user"] + used["used_cpu_sys"] < 3


async def test_load_that_nobody_waits_for_ends_before_the_database_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ended = False
    async with running(tmp_path) as app:
        await app.put_price("A", 1)
        read = app.services.database.prices.read

        async def slow(symbol: str) -> Versioned[Price] | None:
            nonlocal ended
            await asyncio.sleep(0.1)
            price = await read(symbol)
            ended = True
            return price

        monkeypatch.setattr(app.services.database.prices, "read", slow)
        task = asyncio.create_task(app.get("/api/prices/A"))
        await asyncio.sleep(0.02)
        task.cancel()
    assert ended
