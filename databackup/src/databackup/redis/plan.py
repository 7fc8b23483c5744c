"""Which way brings a damaged Redis server back with the least loss, and what each one costs.

Three ways, the better one first:

- `replica`: a snapshot of a live replica, over the replication protocol. It costs what was not replicated.
- `restore`: the latest backup. It costs all writes since.
- `fix`: `redis-check-aof --fix` cuts the append-only file off where the damage begins. It costs all that is behind.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

from databackup.errors import Failed
from databackup.redis.diagnose import CUT, NEWER, SOUND, Diagnosis
from databackup.redis.replica import Replica, Unreachable

REPLICA, RESTORE, FIX = "replica", "restore", "fix"
WAYS = (REPLICA, RESTORE, FIX)


@dataclass
class Plan:
    """The ways of a repair: what each would cost, and why others are closed."""

    way: str = ""
    costs: dict[str, str] = field(default_factory=dict)
    closed: dict[str, str] = field(default_factory=dict)

    @property
    def told(self) -> dict[str, Any]:
        """Return it for JSON."""
        return asdict(self)


def choose(found: Diagnosis, replica: Replica | None, way: str, find: Callable[[], dict[str, Any]]) -> Plan:
    """Return which way a repair takes, and what each one costs; raises Failed where there is nothing to repair.

    `find` returns what is known of the latest backup, and raises Failed where there is none.
    """
    if way == REPLICA and replica is None:
        raise Failed("a re-sync needs a replica: --replica HOST:PORT")
    if not way and (found.serving or (found.server == "loading" and found.starts)):
        raise Failed(f"there is nothing that a repair could better: {found.text} To replace its data, choose a --way")
    if found.state == NEWER:
        raise Failed(f"there is nothing to repair: {found.text}")
    if not way and found.state == SOUND:
        raise Failed(f"there is nothing to repair: {found.text} To replace the data, choose a --way")
    plan = Plan()
    if replica is not None:
        try:
            plan.costs[REPLICA] = replica.cost()
        except Unreachable as error:
            plan.closed[REPLICA] = str(error)
    else:
        plan.closed[REPLICA] = "no replica was named"
    try:
        facts = find()
        plan.costs[RESTORE] = (
            f"all writes of the last {facts['age_seconds']} s: backup {facts['id'][:8]} of {facts['time']} has "
            f"{facts['items']} keys"
        )
    except Failed as error:
        plan.closed[RESTORE] = str(error)
    if found.fixable and not found.serving:
        about = "" if found.commands is None else f", about {found.commands} commands"
        plan.costs[FIX] = (
            f"{found.dropped} of {found.bytes} bytes{about}: all behind byte {found.whole} of {found.file}"
        )
    else:
        plan.closed[FIX] = (
            "Redis serves, and its memory is whole"
            if found.serving
            else "redis-check-aof mends the end of the last append-only file alone"
        )
    # Of a cut tail nothing but its last command is lost, which no client was told of with appendfsync always, and
    # which is of the last second otherwise. Any other way loses as much.
    order = (FIX, *WAYS) if found.state == CUT else WAYS
    plan.way = way or next((name for name in order if name in plan.costs), "")
    if plan.way not in plan.costs:
        reasons = "; ".join(f"{name}: {why}" for name, why in plan.closed.items() if not way or name == way)
        raise Failed(f"{found.text} No way is open to repair that: {reasons}")
    return plan
