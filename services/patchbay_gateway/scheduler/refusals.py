"""
Why nobody can be had: of all that keeps credentials from serving, the refusal that helps the caller most.

| found | refusal |
|---|---|
| somebody who was not tried is full | CREDENTIALS_BUSY: a place becomes free sooner than a cooldown ends |
| nobody untried has material here | CREDENTIAL_MATERIAL_MISSING |
| somebody who was tried would be ready | CREDENTIALS_TRIED |
| some rest after failures | MODEL_COOLDOWN with the earliest recovery and the provider's last error |
| all are out of use | NO_CREDENTIAL |

Not here: who is kept by what (ring.py).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from patchbay.errors import PatchbayError, ResourceExhausted, Unavailable
from patchbay_gateway.scheduler.ring import Obstacle, Why

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping

    from patchbay_gateway.scheduler.marks import MarkError


class Cooling(ResourceExhausted):
    """All that could serve rest after failures; `retry_after` is the earliest recovery."""

    default_reason = "MODEL_COOLDOWN"

    def __init__(
        self, message: str, *, retry_after: float, last_error: MarkError | None = None
    ) -> None:
        super().__init__(message, retry_after=retry_after)
        self.last_error = last_error
        """What the provider of the first to recover said."""


@dataclass(frozen=True, slots=True)
class Reason:
    """Why nobody can be had."""

    reason: str
    """UPPER_SNAKE."""
    text: str
    """A sentence, without what changes with time."""
    soonest: Obstacle | None = None
    """The cooldown that ends first."""

    def error(self, now: float) -> PatchbayError:
        """Return the refusal at *now*, Unix seconds."""
        if self.soonest is not None:
            blocked = self.soonest.blocked
            last = blocked.last_error if blocked is not None else None
            # Not positive: a probe is under way, or the clocks differ a little. Not before a moment.
            wait = self.soonest.until - now if self.soonest.until > now else 1.0
            text = f"{self.text}; the first is back in {math.ceil(wait)} s"
            return Cooling(text, retry_after=wait, last_error=last)
        if self.reason == "CREDENTIALS_BUSY":
            return ResourceExhausted(self.text, reason=self.reason, retry_after=1.0)
        soon = 1.0 if self.reason == "CREDENTIAL_MATERIAL_MISSING" else None
        return Unavailable(self.text, reason=self.reason, retry_after=soon)


def explain(
    model: str,
    found: Mapping[str, Obstacle | None],
    left: Collection[str],
    unusable: Callable[[str], str] = lambda _: "no_material",
) -> Reason:
    """
    Return the reason that helps most.

    Args:
        model: Public name.
        found: Credential id → what keeps it from serving; None where only this request tried it.
        left: Those of them that this request has not tried.
        unusable: Credential id → why its material cannot be used: `no_material`, `expired` (until it is
            refreshed), `needs_login` or `disabled`.
    """
    standing = {id_: obstacle for id_, obstacle in found.items() if obstacle is not None}
    whys = {id_: obstacle.why for id_, obstacle in standing.items()}
    if any(whys.get(id_) is Why.BUSY for id_ in left):
        return Reason(
            "CREDENTIALS_BUSY",
            f"every ready credential for {model!r} has as many requests as it may have",
        )
    if left and all(whys.get(id_) is Why.MATERIAL for id_ in left):
        return _unusable(model, {unusable(id_) for id_ in left})
    if len(standing) < len(found) or (not left and Why.BUSY in whys.values()):
        return Reason("CREDENTIALS_TRIED", f"every credential for {model!r} was tried")
    cooling = [o for o in standing.values() if o.why is Why.COOLING]
    if cooling:
        soonest = min(cooling, key=lambda o: o.until)
        text = f"every credential for {model!r} rests after failures"
        return Reason("MODEL_COOLDOWN", text, soonest)
    away = {unusable(id_) for id_, why in whys.items() if why is Why.MATERIAL}
    away |= {o.blocked.reason.lower() for o in standing.values() if o.blocked is not None}
    return _unusable(model, away)


def _unusable(model: str, states: Collection[str]) -> Reason:
    if "no_material" in states:
        return Reason(
            "CREDENTIAL_MATERIAL_MISSING",
            f"the credentials for {model!r} have no usable key here; the log says why",
        )
    if "expired" in states:
        return Reason(
            "CREDENTIAL_MATERIAL_MISSING",
            f"the credentials for {model!r} have run out and wait for their refresh",
        )
    why = f" ({', '.join(sorted(states))})".replace("_", " ") if states else ""
    return Reason("NO_CREDENTIAL", f"no credential serves {model!r}{why}")
