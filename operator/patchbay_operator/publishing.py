"""
What the operator tells the gateway through Redis: snapshots, endpoints; and what the gateway tells back.

Not here: what is in a snapshot (draft.py), who runs it (`plugins.instances`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import orjson

from patchbay_gateway.kernel.redis import Script
from patchbay_gateway.plugins.distribution import SnapshotPublisher
from patchbay_gateway.plugins.instances import list_instances
from patchbay_gateway.plugins.reports import Reports

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from patchbay_gateway.kernel.clock import Clock
    from patchbay_gateway.kernel.redis import Store
    from patchbay_gateway.plugins.instances import Instance
    from patchbay_gateway.plugins.reports import Standing
    from patchbay_gateway.plugins.snapshot import Snapshot
    from patchbay_gateway.plugins.told_models import PluginTold

# KEYS: the hash. ARGV: channel, then field, value, … that it is to consist of. Returns 1 if that is news.
_REPLACE = Script("""
local wanted, news = {}, 0
for i = 2, #ARGV, 2 do wanted[ARGV[i]] = ARGV[i + 1] end
for _, field in ipairs(redis.call('HKEYS', KEYS[1])) do
  if not wanted[field] then redis.call('HDEL', KEYS[1], field); news = 1 end
end
for field, value in pairs(wanted) do
  if redis.call('HGET', KEYS[1], field) ~= value then
    redis.call('HSET', KEYS[1], field, value); news = 1
  end
end
if news == 1 then redis.call('PUBLISH', ARGV[1], '1') end
return news
""")


class Gateway(Protocol):
    """The gateway, as the operator sees it. All methods raise Unavailable when Redis is away."""

    async def current(self) -> Snapshot | None:
        """Return what is published."""
        ...

    async def publish(self, draft: Snapshot) -> Snapshot:
        """Publish, unless just that is published already; return it with its version."""
        ...

    async def version(self) -> int:
        """Return the version that is published, 0 when none is."""
        ...

    async def set_endpoints(self, endpoints: Mapping[str, Sequence[str]]) -> None:
        """Host → the addresses that serve behind it, all of them."""
        ...

    async def instances(self) -> list[Instance]:
        """Return the processes that live."""
        ...

    async def reports_version(self) -> int:
        """Return what changes when a scheduler reports something new."""
        ...

    async def reports(self) -> tuple[dict[str, PluginTold], dict[str, Standing]]:
        """Return what plugins told, by id, and how credentials stand, by name."""
        ...


class RedisGateway:
    """The adapter."""

    def __init__(self, store: Store, *, clock: Clock) -> None:
        self._store = store
        self._publisher = SnapshotPublisher(store, clock=clock)
        self._reports = Reports(store)

    async def current(self) -> Snapshot | None:
        """Return what is published."""
        return await self._publisher.read()

    async def publish(self, draft: Snapshot) -> Snapshot:
        """Publish."""
        return await self._publisher.publish(draft)

    async def version(self) -> int:
        """Return the version that is published."""
        found = await self._store.call("GET", self._store.key("snapshot", "version"))
        return int(found) if found is not None else 0

    async def set_endpoints(self, endpoints: Mapping[str, Sequence[str]]) -> None:
        """Replace all of them at once."""
        arguments: list[str | bytes] = [self._store.key("endpoints")]
        for host in sorted(endpoints):
            arguments += [host, orjson.dumps(sorted(endpoints[host]))]
        await self._store.script(_REPLACE, [self._store.key("endpoints")], arguments)

    async def instances(self) -> list[Instance]:
        """Return the processes that live."""
        return await list_instances(self._store)

    async def reports_version(self) -> int:
        """Return the version of the reports."""
        return await self._reports.version()

    async def reports(self) -> tuple[dict[str, PluginTold], dict[str, Standing]]:
        """Return the reports."""
        return await self._reports.models(), await self._reports.credentials()
