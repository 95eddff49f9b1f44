"""
Leases in Redis: one script call carries all that a scheduler has to say.

A lease is the key `lease:{attempt_uid}` with what was chosen as its value and the lease's time as its TTL. An
attempt against whose credential nothing is known and that needs no place under a cap is one SET and one DEL;
the others are checked, counted and settled by the same call (pool_scripts.py). The script refuses to work on
a server of another epoch, so events never enter an emptied stream before those that it lost.

Not here: which attempts share a call, and what happens without Redis (booking.py).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, Protocol

import msgspec

from patchbay_gateway.scheduler.health import Change
from patchbay_gateway.scheduler.marks import End  # noqa: TC001 - a Struct's annotation
from patchbay_gateway.scheduler.pool_scripts import APPLY

if TYPE_CHECKING:
    from collections.abc import Sequence

    from patchbay_gateway.kernel.clock import Clock
    from patchbay_gateway.kernel.redis import Store


class Check(msgspec.Struct, frozen=True, omit_defaults=True):
    """What Redis has to look at before a lease is given."""

    cap: int = msgspec.field(default=0, name="c")
    """`max_in_flight`; 0: none."""


class Sign(msgspec.Struct, frozen=True, omit_defaults=True):
    """A sign of life that is more than one of the lease."""

    uid: str = msgspec.field(name="u")
    credential_id: str = msgspec.field(name="i")
    model: str = msgspec.field(name="m")
    cap: int = msgspec.field(default=0, name="c")
    """1: it holds a place."""
    output: int = msgspec.field(default=0, name="o")
    """1: the provider is answering, so a probe has succeeded."""


class Special(msgspec.Struct, omit_defaults=True):
    """What of a call is not plain; indices begin at 1."""

    takes: dict[int, Check] = msgspec.field(default_factory=dict, name="t")
    renews: dict[int, Sign] = msgspec.field(default_factory=dict, name="r")
    ends: list[End] = msgspec.field(default_factory=list, name="e")

    def __bool__(self) -> bool:
        return bool(self.takes or self.renews or self.ends)


PLAIN: Final = Special()
"""Nothing special. Shared: never changed."""


@dataclass(slots=True)
class Applied:
    """What a batch found."""

    standing: dict[int, str] = field(default_factory=dict)
    """Index of a lease to take → the value of the one that stands already."""
    ended: set[int] = field(default_factory=set)
    """Indices of leases to renew that had ended."""
    refused: dict[int, str] = field(default_factory=dict)
    """Index of a lease not given → why: COOLING, PROBING, BUSY, DISABLED, OUTDATED."""
    probes: set[int] = field(default_factory=set)
    """Indices of leases that probe a cooling credential."""
    changes: list[Change] = field(default_factory=list)
    """What changed in the pool, or was found to be other than the caller knew."""
    counts: list[tuple[str, int]] = field(default_factory=list)
    """Credential with a cap → its attempts under way, oldest first."""


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
        special: Special = PLAIN,
        version: int = 0,
    ) -> Applied:
        """
        Take, renew and end leases and append events, all or nothing.

        Args:
            take: (attempt_uid, value) of each lease.
            renew: The same of attempts that live; one that had ended begins anew if it has a value.
            end: Attempts that ended and are not among the special ones.
            events: Serialised, in the order of their sequences.
            special: What is to be checked, counted or settled.
            version: Of the view that the leases were chosen by; takes are checked unless it is the newest.

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
        clock: Says which windows are over.
    """

    def __init__(self, store: Store, *, ttl: float, clock: Clock) -> None:
        self._store = store
        self._clock = clock
        self._ttl = int(ttl * 1000)
        self._lease = store.key("lease", "")
        self._keys = [store.key("epoch"), store.key("journal"), store.key("pool", "version")]
        self.epoch = ""
        """The epoch that calls demand; set it before the first one."""

    async def apply(
        self,
        take: Sequence[tuple[str, str]],
        renew: Sequence[tuple[str, str]],
        end: Sequence[str],
        events: Sequence[bytes],
        special: Special = PLAIN,
        version: int = 0,
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
            version,
            int(self._clock.now() * 1000),
            self._store.prefix,
            msgspec.json.encode(special) if special else "",
            *[value for _, value in take],
            *[value for _, value in renew],
            *events,
        ]
        reply = await self._store.script(APPLY, keys, args)
        if reply == -1:
            raise EpochChanged
        return _read(reply) if reply else Applied()


def _read(reply: list[list[int | bytes]]) -> Applied:
    standing, ended, refused, probes, changes, counts = reply
    return Applied(
        standing={i - 1: v.decode() for i, v in _pairs(standing)},
        ended={int(i) - 1 for i in ended},
        refused={i - 1: v.decode() for i, v in _pairs(refused)},
        probes={int(i) - 1 for i in probes},
        changes=read_changes(changes),
        counts=[(id_.decode(), n) for n, id_ in _pairs(counts[::-1])][::-1],
    )


def _pairs(flat: list[int | bytes]) -> list[tuple[int, bytes]]:
    return list(zip(flat[::2], flat[1::2], strict=True))  # type: ignore[arg-type]


def read_changes(flat: list[int | bytes]) -> list[Change]:
    """Return the changes that a script noted."""
    found = []
    for at in range(0, len(flat), 5):
        version, kind, id_, scope, value = flat[at : at + 5]
        assert isinstance(version, int)
        assert isinstance(kind, bytes)
        assert isinstance(id_, bytes)
        assert isinstance(scope, bytes)
        assert isinstance(value, bytes)
        found.append(Change(version, kind.decode(), id_.decode(), scope.decode(), value))
    return found
