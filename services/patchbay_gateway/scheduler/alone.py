"""
Leases while Redis is away: given by this scheduler alone, by its own view of the pool.

Not here: when that is so (booking.py), what the view knows (health.py).
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from patchbay_gateway.scheduler.grants import split_value

if TYPE_CHECKING:
    from patchbay_gateway.kernel.clock import Clock
    from patchbay_gateway.scheduler.health import HealthView

# Leases given while Redis was away; the oldest are forgotten first, which only costs idempotence.
_LOCAL: Final = 65_536


@dataclass(frozen=True, slots=True)
class Refused:
    """No lease: the pool is not as the choice assumed."""

    why: str
    """COOLING, PROBING, BUSY, DISABLED or OUTDATED."""


@dataclass(frozen=True, slots=True)
class Probing:
    """The lease is the caller's, and the only one of its credential or model for now."""


PROBING: Final = Probing()
Taken = str | Refused | Probing | None
"""None: the lease is the caller's. A string: the value of the lease that the attempt already has."""


class Local:
    """Leases given while Redis was away, so that a repeated Acquire gets the same one."""

    def __init__(self, *, clock: Clock, ttl: float) -> None:
        self._clock = clock
        self._ttl = ttl
        self._leases: OrderedDict[str, tuple[float, str]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._leases)

    def take(self, uid: str, value: str) -> str | None:
        """Take a lease; return the value of the one that stands already, if any."""
        if (standing := self.standing(uid)) is not None:
            return standing
        now = self._clock.monotonic()
        while self._leases:
            oldest = next(iter(self._leases.values()))
            if oldest[0] > now and len(self._leases) < _LOCAL:
                break
            self._leases.popitem(last=False)
        self._leases[uid] = (now + self._ttl, value)
        return None

    def standing(self, uid: str) -> str | None:
        """Return the value of a lease that lives."""
        found = self._leases.get(uid)
        return found[1] if found is not None and found[0] > self._clock.monotonic() else None

    def renew(self, uid: str) -> None:
        """Extend a lease that lives."""
        if (value := self.standing(uid)) is not None:
            self._leases.move_to_end(uid)
            self._leases[uid] = (self._clock.monotonic() + self._ttl, value)

    def end(self, uid: str) -> bool:
        """Forget a lease; return whether it lived."""
        lived = self.standing(uid) is not None
        self._leases.pop(uid, None)
        return lived


def take_alone(local: Local, view: HealthView, uid: str, value: str, cap: int) -> Taken:
    """Take a lease by the view alone; *cap* is the credential's `max_in_flight`, 0 for none."""
    if (standing := local.standing(uid)) is not None:
        return standing
    _, credential_id, model = split_value(value)
    blocked = view.blocked(credential_id, model)
    if blocked is not None and not blocked.probe_allowed:
        return Refused(blocked.state.upper())
    if cap and view.in_flight(credential_id) >= cap:
        return Refused("BUSY")
    local.take(uid, value)
    return PROBING if blocked is not None and view.probe(credential_id, model, uid) else None
