"""
Who runs: each edge, scheduler and usage process tells so every few seconds, with the snapshot it serves from.

`instances` is a sorted set by the instant until which a process counts as alive (the server's clock),
`instances:data` has what each one says. Not here: who acts on it (management, operator).
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Final

import msgspec

from patchbay.errors import Unavailable
from patchbay_gateway.kernel.redis import Script

if TYPE_CHECKING:
    from collections.abc import Callable

    from patchbay_gateway.kernel.clock import Clock
    from patchbay_gateway.kernel.redis import Store

TTL: Final = 15.0
"""Seconds after its last word that a process counts as alive."""
BEAT_EVERY: Final = 5.0
UNREADY_BEAT_EVERY: Final = 0.5
"""Until it is ready, whoever waits for it wants to know soon."""

# KEYS: set, data. ARGV: id, its words, TTL in ms; a TTL of 0 takes it off.
_BEAT: Final = Script("""
local t = redis.call('TIME')
local now = t[1] * 1000 + math.floor(t[2] / 1000)
if tonumber(ARGV[3]) > 0 then
  redis.call('ZADD', KEYS[1], now + ARGV[3], ARGV[1])
  redis.call('HSET', KEYS[2], ARGV[1], ARGV[2])
else
  redis.call('ZADD', KEYS[1], 0, ARGV[1])
end
for _, id in ipairs(redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', now)) do
  redis.call('ZREM', KEYS[1], id)
  redis.call('HDEL', KEYS[2], id)
end
return 1
""")

_LIST: Final = Script("""
local t = redis.call('TIME')
local now = t[1] * 1000 + math.floor(t[2] / 1000)
local ids = redis.call('ZRANGEBYSCORE', KEYS[1], '(' .. now, '+inf')
if #ids == 0 then return {} end
return redis.call('HMGET', KEYS[2], unpack(ids))
""")


class Instance(msgspec.Struct, frozen=True):
    """What a process says of itself."""

    id: str
    kind: str
    """`edge`, `scheduler` or `usage`."""
    snapshot: int = 0
    """Version that new requests are served from; 0 before the first."""
    ready: bool = False
    release: str = ""
    """Version of the program."""
    plugins: dict[str, str] = {}
    """Plugin id → state of its handshake, for those that speak to plugins."""
    host: str = ""
    """Name of its machine, for those whose siblings look for them."""
    pid: int = 0
    parent: int = 0
    """Process id of what started it."""


class Heartbeat:
    """
    The beat of one process.

    Args:
        store: Redis.
        clock: Paces it.
        describe: Asked for each beat.
    """

    def __init__(self, store: Store, *, clock: Clock, describe: Callable[[], Instance]) -> None:
        self._store = store
        self._clock = clock
        self._describe = describe
        self._ready = False

    async def beat(self, *, alive: bool = True) -> None:
        """
        Tell once; with *alive* false, take it back.

        Raises:
            Unavailable: Redis is away.
        """
        instance = self._describe()
        self._ready = instance.ready
        await self._store.script(
            _BEAT,
            [self._store.key("instances"), self._store.key("instances", "data")],
            [instance.id, msgspec.json.encode(instance), int(TTL * 1000) if alive else 0],
        )

    async def run(self) -> None:
        """Beat until cancelled."""
        while True:
            with contextlib.suppress(Unavailable):  # nobody can read it either
                await self.beat()
            await self._clock.sleep(BEAT_EVERY if self._ready else UNREADY_BEAT_EVERY)


async def list_instances(store: Store) -> list[Instance]:
    """
    Return the processes that are alive, ordered by kind and id.

    Raises:
        Unavailable: Redis is away.
    """
    found = await store.script(_LIST, [store.key("instances"), store.key("instances", "data")], [])
    instances = [msgspec.json.decode(entry, type=Instance) for entry in found if entry is not None]
    return sorted(instances, key=lambda i: (i.kind, i.id))
