"""
Timers of refreshes, shared by all schedulers: each fires in one of them.

Keys: `refresh:due` (sorted set, score = Unix ms), `refresh:inflight` (sorted set, score = end of the claim),
`refresh:fence` (hash, id → token of the present claim). A claim whose scheduler died returns to `due` when it
ends; a scheduler that comes back late is told by its fence. Time is the server's.

Timers only save work: they may be lost, doubled or early without harm, for the durable record decides
(refresh.py). Not here: when a credential is due (refresh_rules.py).
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Protocol

from patchbay_gateway.kernel.redis import Script

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from patchbay_gateway.kernel.redis import Store

# KEYS: due, inflight, fence, epoch. ARGV: most, claim in ms, token of this call.
# Returns {claimed ids, next due in ms from now or -1, epoch}.
_CLAIM: Final = Script("""
local t = redis.call('TIME')
local now = t[1] * 1000 + math.floor(t[2] / 1000)
for _, id in ipairs(redis.call('ZRANGEBYSCORE', KEYS[2], '-inf', now, 'LIMIT', 0, 100)) do
  redis.call('ZREM', KEYS[2], id)
  redis.call('HDEL', KEYS[3], id)
  redis.call('ZADD', KEYS[1], 'NX', now, id)
end
local out = {}
local most = tonumber(ARGV[1])
if most > 0 then
  for _, id in ipairs(redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', now, 'LIMIT', 0, most)) do
    redis.call('ZREM', KEYS[1], id)
    redis.call('ZADD', KEYS[2], now + ARGV[2], id)
    redis.call('HSET', KEYS[3], id, ARGV[3])
    out[#out + 1] = id
  end
end
local first = redis.call('ZRANGE', KEYS[1], 0, 0, 'WITHSCORES')[2]
local pause = -1
if first then pause = math.max(0, math.ceil(first - now)) end
return {out, pause, redis.call('GET', KEYS[4]) or ''}
""")

# KEYS as above. ARGV: id, token, next due in ms or -1. Returns 1 if the claim was still ours.
_FINISH: Final = Script("""
if redis.call('HGET', KEYS[3], ARGV[1]) ~= ARGV[2] then return 0 end
redis.call('HDEL', KEYS[3], ARGV[1])
redis.call('ZREM', KEYS[2], ARGV[1])
if tonumber(ARGV[3]) >= 0 then redis.call('ZADD', KEYS[1], ARGV[3], ARGV[1]) end
return 1
""")

# KEYS as above. ARGV: pairs of id and due in ms, -1 for none. Claimed ones are their claimers' business.
_ARM: Final = Script("""
for i = 1, #ARGV, 2 do
  if not redis.call('ZSCORE', KEYS[2], ARGV[i]) then
    if tonumber(ARGV[i + 1]) >= 0 then
      redis.call('ZADD', KEYS[1], ARGV[i + 1], ARGV[i])
    else
      redis.call('ZREM', KEYS[1], ARGV[i])
    end
  end
end
return 1
""")

_BATCH: Final = 500


@dataclass(frozen=True, slots=True)
class Claim:
    """One timer that has fired here."""

    credential_id: str
    fence: str


@dataclass(frozen=True, slots=True)
class Claims:
    """What a look at the timers found."""

    claims: Sequence[Claim]
    pause: float | None
    """Seconds until the next one is due; None when there is none."""
    epoch: str
    """Another one than before: the timers were lost."""


class Timers(Protocol):
    """The timers. Every method raises Unavailable when they cannot be reached."""

    async def claim(self, most: int) -> Claims:
        """Take up to *most* due timers for as long as a claim lasts."""
        ...

    async def finish(self, claim: Claim, due: float | None) -> bool:
        """End a claim and set the next instant, Unix seconds; return False if it was lost meanwhile."""
        ...

    async def arm(self, due: Mapping[str, float | None]) -> None:
        """Set instants of credentials, Unix seconds; None takes the timer away."""
        ...


class RedisTimers:
    """
    Timers in Redis.

    Args:
        store: The server.
        lease: Seconds that a claim lasts.
    """

    def __init__(self, store: Store, *, lease: float) -> None:
        self._store = store
        self._lease = int(lease * 1000)
        self._keys = [
            *(store.key("refresh", name) for name in ("due", "inflight", "fence")),
            store.key("epoch"),
        ]

    async def claim(self, most: int) -> Claims:
        """Run the script."""
        token = secrets.token_hex(8)
        ids, pause, epoch = await self._store.script(_CLAIM, self._keys, [most, self._lease, token])
        return Claims(
            [Claim(id_.decode(), token) for id_ in ids],
            None if pause < 0 else pause / 1000,
            epoch.decode(),
        )

    async def finish(self, claim: Claim, due: float | None) -> bool:
        """Run the script."""
        arguments: list[str | int] = [claim.credential_id, claim.fence, _milliseconds(due)]
        return bool(await self._store.script(_FINISH, self._keys, arguments))

    async def arm(self, due: Mapping[str, float | None]) -> None:
        """Run the script, a few hundred at a time so that none blocks the server for long."""
        items = list(due.items())
        for start in range(0, len(items), _BATCH):
            arguments: list[str | int] = []
            for id_, at in items[start : start + _BATCH]:
                arguments += [id_, _milliseconds(at)]
            await self._store.script(_ARM, self._keys, arguments)


def _milliseconds(due: float | None) -> int:
    return -1 if due is None else int(due * 1000)
