"""
What schedulers report through Redis to an operator, which publishes in their place and talks to nobody else.

Two hashes below `reports`: `models`, plugin id → what it told; `credentials`, credential id → its standing.
`reports:version` grows with each change, so that a look costs one key. All of it can be lost: schedulers
write it again when the version falls behind what they know. Never material. Not here: who works it out
(scheduler/reporting.py), what the operator does with it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, TypeVar

import msgspec

from patchbay_gateway.kernel import logs
from patchbay_gateway.kernel.redis import Script
from patchbay_gateway.plugins.told_models import PluginTold

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from patchbay_gateway.kernel.redis import Store

_log = logs.get_logger("plugins.reports")

MODELS: Final = "models"
CREDENTIALS: Final = "credentials"

# KEYS: version, hash. ARGV: number of fields to remove, those, then field, value, … Returns the version.
_WRITE: Final = Script("""
local gone, news = tonumber(ARGV[1]), 0
for i = 2, 1 + gone do news = news + redis.call('HDEL', KEYS[2], ARGV[i]) end
for i = 2 + gone, #ARGV, 2 do
  if redis.call('HGET', KEYS[2], ARGV[i]) ~= ARGV[i + 1] then
    redis.call('HSET', KEYS[2], ARGV[i], ARGV[i + 1])
    news = news + 1
  end
end
if news > 0 then return redis.call('INCR', KEYS[1]) end
return tonumber(redis.call('GET', KEYS[1]) or 0)
""")


class Standing(msgspec.Struct, frozen=True, omit_defaults=True):
    """How a credential stands; instants are Unix seconds, 0 where there is none."""

    state: str = "ready"
    """`ready`, or why it serves nothing: `disabled`, `no_material`, `needs_login`, `expired`."""
    refresh: str = ""
    """State of its refresh (scheduler/refresh_rules.py); empty: it has none."""
    expires_at: float = 0.0
    """End of the access token."""
    next_at: float = 0.0
    """Next try of a refresh."""
    refresh_error: str = ""
    """What the last refresh failed with; empty when it did not."""
    cooling_until: float = 0.0
    """Until when it rests, or the last of `cooling_models` does."""
    cooling_models: tuple[str, ...] = ()
    """Public names of the models that rest; empty: all of them."""
    last_error: str = ""
    """What the provider complained about, until an attempt succeeds."""


Form = TypeVar("Form", Standing, PluginTold)


class Reports:
    """
    The hashes.

    Args:
        store: Redis. Every method raises Unavailable when it is away.
    """

    def __init__(self, store: Store) -> None:
        self._store = store

    async def version(self) -> int:
        """Return what grows with each change; 0 when there is nothing."""
        found = await self._store.call("GET", self._store.key("reports", "version"))
        return int(found) if found is not None else 0

    async def write(
        self, kind: str, found: Mapping[str, Standing | PluginTold], gone: Iterable[str] = ()
    ) -> int:
        """Write what is *found* and remove what is *gone*; return the version after that."""
        removed = sorted(gone)
        arguments: list[str | bytes | int] = [len(removed), *removed]
        for name in sorted(found):
            arguments += [name, msgspec.json.encode(found[name])]
        keys = [self._store.key("reports", "version"), self._store.key("reports", kind)]
        return int(await self._store.script(_WRITE, keys, arguments))

    async def models(self) -> dict[str, PluginTold]:
        """Return plugin id → what it told."""
        return await self._read(MODELS, PluginTold)

    async def credentials(self) -> dict[str, Standing]:
        """Return credential id → how it stands."""
        return await self._read(CREDENTIALS, Standing)

    async def _read(self, kind: str, form: type[Form]) -> dict[str, Form]:
        flat = await self._store.call("HGETALL", self._store.key("reports", kind))
        pairs = flat.items() if isinstance(flat, dict) else zip(flat[::2], flat[1::2], strict=True)
        found = {}
        for name, value in pairs:
            try:
                found[name.decode()] = msgspec.json.decode(value, type=form)
            except msgspec.MsgspecError as error:
                _log.warning("a report cannot be read", kind=kind, name=name, why=str(error))
        return found
