"""
Leases in Redis: one script call carries all that a scheduler has to say.

A lease is the key `lease:{attempt_uid}` with what was chosen as its value and the lease's time as its TTL.
The script refuses to work on a server of another epoch, so events never enter an emptied stream before those
that it lost.

Not here: which attempts share a call, and what happens without Redis (booking.py).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Protocol

from patchbay_gateway.kernel.redis import Script

if TYPE_CHECKING:
    from collections.abc import Sequence

    from patchbay_gateway.kernel.redis import Store

# KEYS: epoch, journal, then leases to take, to renew, to end.
# ARGV: epoch, number to take, number to renew, TTL in ms, a value per lease to take and to renew, then the
# events. A renewed lease that is gone (a flush, an outage) is made again: its attempt lives.
# Returns -1 for another epoch, else {index, value that stands, …} of leases that were taken before and
# negative indices of renewed ones that had ended.
APPLY: Final = Script("""
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return -1 end
local takes, renews, ttl = tonumber(ARGV[2]), tonumber(ARGV[3]), ARGV[4]
local out = {}
for i = 1, takes do
  local key = KEYS[2 + i]
  if not redis.call('SET', key, ARGV[4 + i], 'PX', ttl, 'NX') then
    out[#out + 1] = i
    out[#out + 1] = redis.call('GET', key)
  end
end
local base = 2 + takes
for i = 1, renews do
  if redis.call('PEXPIRE', KEYS[base + i], ttl) == 0 then
    redis.call('SET', KEYS[base + i], ARGV[4 + takes + i], 'PX', ttl)
    out[#out + 1] = -i
  end
end
base = base + renews
if #KEYS > base then redis.call('DEL', unpack(KEYS, base + 1)) end
for i = 5 + takes + renews, #ARGV do redis.call('XADD', KEYS[2], '*', 'e', ARGV[i]) end
return out
""")


@dataclass(slots=True)
class Applied:
    """What a batch found."""

    standing: dict[int, str]
    """Index of a lease to take → the value of the one that stands already."""
    ended: set[int]
    """Indices of leases to renew that had ended."""


class EpochChanged(Exception):
    """The server is not the one that we knew: flushed, or another one. Nothing was done."""


class LeaseStore(Protocol):
    """Where leases and events go."""

    async def apply(
        self,
        take: Sequence[tuple[str, str]],
        renew: Sequence[tuple[str, str]],
        end: Sequence[str],
        events: Sequence[bytes],
    ) -> Applied:
        """
        Take, renew and end leases and append events, all or nothing.

        Args:
            take: (attempt_uid, value) of each lease.
            renew: The same of attempts that live; one that had ended begins anew.
            end: Attempts that ended.
            events: Serialised, in the order of their sequences.

        Raises:
            Unavailable: No answer; whether it was done is unknown.
            EpochChanged: Another server or a flushed one.
        """
        ...


class RedisLeases:
    """
    The adapter for Redis.

    Args:
        store: The server.
        ttl: Seconds that a lease lives without renewal.
    """

    def __init__(self, store: Store, *, ttl: float) -> None:
        self._store = store
        self._ttl = int(ttl * 1000)
        self._lease = store.key("lease", "")
        self._keys = [store.key("epoch"), store.key("journal")]
        self.epoch = ""
        """The epoch that calls demand; set it before the first one."""

    async def apply(
        self,
        take: Sequence[tuple[str, str]],
        renew: Sequence[tuple[str, str]],
        end: Sequence[str],
        events: Sequence[bytes],
    ) -> Applied:
        """Run the script."""
        lease = self._lease
        keys = [
            *self._keys,
            *[lease + uid for uid, _ in take],
            *[lease + uid for uid, _ in renew],
            *[lease + uid for uid in end],
        ]
        args: list[str | bytes | int | float] = [
            self.epoch,
            len(take),
            len(renew),
            self._ttl,
            *[value for _, value in take],
            *[value for _, value in renew],
            *events,
        ]
        reply = await self._store.script(APPLY, keys, args)
        if reply == -1:
            raise EpochChanged
        applied = Applied({}, set())
        position = 0
        while position < len(reply):
            index = reply[position]
            if index > 0:
                applied.standing[index - 1] = reply[position + 1].decode()
                position += 2
            else:
                applied.ended.add(-index - 1)
                position += 1
        return applied
