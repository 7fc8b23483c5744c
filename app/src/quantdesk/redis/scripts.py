"""Scripts that Redis runs: each is one round trip, and atomic.

Each is sent whole once on each connection, then by its digest; and whole again should Redis have
forgotten it meanwhile.
"""

import hashlib
from typing import Final

from quantdesk.redis.gateway import Gateway
from quantdesk.redis.wire import Done, Reply, ReplyError, Wire, Word, pack


class Script:
    """One script. `keys` is the number of its arguments that are keys."""

    def __init__(self, keys: int, source: str) -> None:
        self._keys = keys
        self._source = source
        self._digest = hashlib.sha1(source.encode(), usedforsecurity=False).hexdigest()

    def submit(self, gateway: Gateway, done: Done, *arguments: Word) -> None:
        """Run it; `done` gets the reply as by `Gateway.submit`.

        Raises:
            RedisUnavailable: nothing was sent.
        """

        def checked(reply: Reply) -> None:
            if isinstance(reply, ReplyError) and reply.code == "NOSCRIPT":
                try:
                    gateway.submit(pack("EVAL", self._source, self._keys, *arguments), done)
                except Exception as error:  # noqa: BLE001  # `done` gets every error
                    done(error)
            else:
                done(reply)

        if self._digest in gateway.scripts:
            gateway.submit(pack("EVALSHA", self._digest, self._keys, *arguments), checked)
        else:
            gateway.submit(pack("EVAL", self._source, self._keys, *arguments), done)
            gateway.scripts.add(self._digest)

    async def call(self, wire: Wire, *arguments: Word) -> Reply:
        """Run it on a connection of its own; errors as `Wire.call`."""
        return await wire.call("EVAL", self._source, self._keys, *arguments)


# (They read with MGET, so that Redis' count of GETs is that of reads of the cache.)
#
# An entry's guard holds the version of the latest committed change. It outlives every read that was
# under way at that moment, so that none of them can write back what it read before.

# Keep an entry unless it is older than the guard. KEYS: entry, guard. ARGV: version, seconds, data.
FILL: Final = Script(
    2,
    """
local guard = redis.call('MGET', KEYS[2])[1]
if guard and tonumber(guard) > tonumber(ARGV[1]) then return 0 end
redis.call('SET', KEYS[1], ARGV[3], 'EX', ARGV[2])
return 1
""",
)

# Remove an entry. KEYS: entry, guard. ARGV: version, the guard's seconds.
# A full Redis refuses the guard, which must not keep the old entry alive.
INVALIDATE: Final = Script(
    2,
    """
local removed = redis.call('UNLINK', KEYS[1])
local guard = redis.call('MGET', KEYS[2])[1]
if not guard or tonumber(guard) < tonumber(ARGV[1]) then
  redis.pcall('SET', KEYS[2], ARGV[1], 'EX', ARGV[2])
end
return removed
""",
)

# Write an entry through. KEYS: entry, guard. ARGV: version, seconds, data, the guard's seconds.
# A full Redis refuses the guard, which must not keep the old entry alive here either.
PUT: Final = Script(
    2,
    """
local guard = redis.call('MGET', KEYS[2])[1]
if guard and tonumber(guard) > tonumber(ARGV[1]) then return 0 end
local guarded = redis.pcall('SET', KEYS[2], ARGV[1], 'EX', ARGV[4])
if guarded.err then
  redis.call('UNLINK', KEYS[1])
  return guarded
end
redis.call('SET', KEYS[1], ARGV[3], 'EX', ARGV[2])
return 1
""",
)

# Count requests of a client in its window, which begins with its first request. What exceeds the
# limit is not counted. KEYS: counter. ARGV: how many want in, the limit, the window's milliseconds.
# Returns how many got in, the count after that, and the milliseconds that the window has left.
TAKE: Final = Script(
    1,
    """
local wanted = tonumber(ARGV[1])
local limit = tonumber(ARGV[2])
local left = redis.call('PTTL', KEYS[1])
if left < 0 then
  local taken = math.min(wanted, limit)
  if taken > 0 then redis.call('SET', KEYS[1], taken, 'PX', ARGV[3]) end
  return {taken, taken, tonumber(ARGV[3])}
end
local used = redis.call('INCRBY', KEYS[1], wanted)
local over = math.min(wanted, math.max(0, used - limit))
if over > 0 then used = redis.call('INCRBY', KEYS[1], -over) end
return {wanted - over, used, left}
""",
)
