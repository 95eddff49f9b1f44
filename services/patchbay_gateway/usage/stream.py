"""
The journal's stream as the ledger uses it: read in a group, acknowledge and delete, publish watermarks.

Keys: `journal` (stream, group `ledger`, field `e`), `journal:dead` (what can never be counted, and why),
`journal:watermark` (writer → sequence; the channel of the same name carries `writer sequence`),
`journal:backlog` (writer → events it still holds; kept by schedulers), `lease:{attempt_uid}`.

Not here: when any of it happens (consumer.py, sweeper.py).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Protocol

import msgspec

from patchbay_gateway.kernel.redis import CommandRefused, ensure_epoch

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from patchbay_gateway.kernel.redis import Store

GROUP: Final = "ledger"
FIELD: Final = b"e"

_DEAD_LIMIT: Final = 10_000
_FORGET_AFTER_MS: Final = 3_600_000


class Entry(msgspec.Struct, frozen=True, gc=False):
    """One entry of the stream."""

    id: bytes
    data: bytes | None
    """The serialised event; None when the entry was deleted or has no such field."""


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """An entry that can never be counted."""

    data: bytes
    reason: str


class Stream(Protocol):
    """What consumer, sweeper and service need; all of it raises Unavailable when Redis is away."""

    async def read(self, count: int, block_ms: int) -> list[Entry]:
        """Return new entries, waiting up to *block_ms* for the first; 0 does not wait."""
        ...

    async def unacknowledged(self, count: int) -> list[Entry]:
        """Return entries that this consumer was given and did not acknowledge."""
        ...

    async def claim(self, count: int, idle_ms: int) -> list[Entry]:
        """Take over entries that another consumer has held for *idle_ms*; forget consumers long gone."""
        ...

    async def acknowledge(
        self, ids: Sequence[bytes], dead: Sequence[DeadLetter], watermarks: Mapping[str, int]
    ) -> None:
        """Put *dead* aside, delete the entries *ids* and publish *watermarks*, in one round trip."""
        ...

    async def publish(self, watermarks: Mapping[str, int]) -> None:
        """Publish *watermarks*."""
        ...

    async def epoch(self) -> str:
        """Return the name of the server's present life."""
        ...

    async def held_by_others(self) -> int:
        """Return how many entries other consumers hold."""
        ...

    async def backlog(self) -> int:
        """Return how many events writers say they still hold."""
        ...

    async def leased(self, uids: Sequence[str]) -> set[str]:
        """Return those attempts whose lease lives."""
        ...

    async def dead_letters(self) -> int:
        """Return how many entries were put aside."""
        ...


class RedisStream:
    """
    The stream in Redis.

    Args:
        store: Of this installation.
        consumer: Name in the group. A process that takes its name up again gets its entries back at once.
    """

    def __init__(self, store: Store, *, consumer: str) -> None:
        self._store = store
        self._consumer = consumer
        self._journal = store.key("journal")
        self._dead = store.key("journal", "dead")
        self._watermark = store.key("journal", "watermark")

    async def read(self, count: int, block_ms: int) -> list[Entry]:
        """See `Stream`; a group that is missing is made anew from the stream's beginning."""
        read = await self._store.read_group(self._journal, GROUP, self._consumer, count, block_ms)
        return [Entry(i, fields.get(FIELD)) for i, fields in read]

    async def unacknowledged(self, count: int) -> list[Entry]:
        """See `Stream`."""
        read = await self._store.read_group(
            self._journal, GROUP, self._consumer, count, 0, after="0"
        )
        return [Entry(i, fields.get(FIELD)) for i, fields in read]

    async def claim(self, count: int, idle_ms: int) -> list[Entry]:
        """See `Stream`."""
        try:
            claimed = await self._store.call(
                *("XAUTOCLAIM", self._journal, GROUP, self._consumer, idle_ms, "0-0"),
                *("COUNT", count),
            )
            consumers = await self._store.call("XINFO", "CONSUMERS", self._journal, GROUP)
        except CommandRefused as error:
            if error.word in {"NOGROUP", "ERR"}:  # no group or no stream yet: nothing to claim
                return []
            raise
        for consumer in consumers:
            seen = _plain(consumer)
            name = bytes(seen["name"]).decode()
            if name != self._consumer and not seen["pending"] and seen["idle"] > _FORGET_AFTER_MS:
                await self._store.call("XGROUP", "DELCONSUMER", self._journal, GROUP, seen["name"])
        return [
            Entry(i, dict(zip(fields[::2], fields[1::2], strict=True)).get(FIELD))
            # Redis 6.2 answers nil for an entry that was deleted meanwhile.
            for i, fields in filter(None, claimed[1])
            if fields
        ]

    async def acknowledge(
        self, ids: Sequence[bytes], dead: Sequence[DeadLetter], watermarks: Mapping[str, int]
    ) -> None:
        """See `Stream`."""
        commands: list[Sequence[Any]] = [
            [
                *("XADD", self._dead, "MAXLEN", "~", _DEAD_LIMIT, "*"),
                *(FIELD, letter.data, "reason", letter.reason),
            ]
            for letter in dead
        ]
        if ids:
            commands.append(["XACK", self._journal, GROUP, *ids])
            commands.append(["XDEL", self._journal, *ids])
        commands.extend(self._publishing(watermarks))
        if commands:
            await self._store.pipeline(commands)

    async def publish(self, watermarks: Mapping[str, int]) -> None:
        """See `Stream`."""
        if commands := self._publishing(watermarks):
            await self._store.pipeline(commands)

    def _publishing(self, watermarks: Mapping[str, int]) -> list[Sequence[Any]]:
        if not watermarks:
            return []
        pairs = [part for pair in watermarks.items() for part in pair]
        told = [["PUBLISH", self._watermark, f"{w} {s}"] for w, s in watermarks.items()]
        return [["HSET", self._watermark, *pairs], *told]

    async def epoch(self) -> str:
        """See `Stream`."""
        return await ensure_epoch(self._store)

    async def held_by_others(self) -> int:
        """See `Stream`."""
        try:
            summary = await self._store.call("XPENDING", self._journal, GROUP)
        except CommandRefused as error:
            if error.word == "NOGROUP":
                return 0
            raise
        return sum(
            int(count) for name, count in summary[3] or () if name.decode() != self._consumer
        )

    async def backlog(self) -> int:
        """See `Stream`."""
        return sum(
            int(n) for n in await self._store.call("HVALS", self._store.key("journal", "backlog"))
        )

    async def leased(self, uids: Sequence[str]) -> set[str]:
        """See `Stream`."""
        if not uids:
            return set()
        found = await self._store.pipeline(
            [["EXISTS", self._store.key("lease", uid)] for uid in uids]
        )
        return {uid for uid, exists in zip(uids, found, strict=True) if exists}

    async def dead_letters(self) -> int:
        """See `Stream`."""
        return int(await self._store.call("XLEN", self._dead))


def _plain(consumer: Any) -> dict[str, Any]:
    """Return a consumer's properties, which older servers send as a flat list."""
    pairs = (
        consumer.items()
        if isinstance(consumer, dict)
        else zip(consumer[::2], consumer[1::2], strict=True)
    )
    return {bytes(name).decode(): value for name, value in pairs}
