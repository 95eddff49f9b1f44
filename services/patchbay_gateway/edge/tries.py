"""
What one request has tried, and whether and how it may go on: rounds, credentials, models, addresses.

A round goes over the pool once: a credential that failed is out for the rest of it, or only for the model
that failed where the credential has others for the name (an alias pool). `retry.max_credentials` bounds a
round, `retry.rounds` how many further ones there are, `retry.max_wait` the wait before one. Pure state, no
I/O. Not here: what a failure means (kernel/outcomes.py), which credential is next (scheduler).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from patchbay_gateway.kernel import outcomes
from patchbay_gateway.kernel.outcomes import FaultKind, Next

if TYPE_CHECKING:
    from patchbay import errors
    from patchbay.scheduler.v1 import scheduler_pb2
    from patchbay_gateway.edge.targets import Candidates
    from patchbay_gateway.kernel.outcomes import Fault

MAX_ATTEMPTS: Final = 10
"""However many credentials and rounds there are, a request that failed so often gives up."""

RESTLESS: Final = "POOL_RESTLESS"
"""Refusal: credentials changed under each choice that was made. It says nothing of any of them."""
_MOST_RESTLESS: Final = 3
"""So often a request asks again after it; each time the scheduler has made several choices."""

_LATE: Final = 1.0
"""Seconds. A credential recovers later than was foretold by what its failure took to reach all schedulers."""
_MOST_LATE: Final = 3
"""So often such a wait goes on."""

# Refusals that another round may not meet again.
_PASSING: Final = frozenset({"MODEL_COOLDOWN", "CREDENTIALS_BUSY", "CREDENTIALS_TRIED"})


class Tries:
    """The attempts of one request so far."""

    __slots__ = (
        "_candidates",
        "_excluded",
        "_last",
        "_late",
        "_prefer",
        "_refreshed",
        "_restless",
        "_round",
        "_seen",
        "_tried",
        "_waited",
        "addresses",
        "number",
    )

    def __init__(self, candidates: Candidates) -> None:
        self.number = 0
        """Attempts made."""
        self.addresses: list[str] = []
        """Addresses that failed."""
        self._candidates = candidates
        self._round = 0
        self._excluded: list[str] = []
        self._tried: list[tuple[str, str]] = []
        self._seen: set[str] = set()
        """Credentials of this round."""
        self._prefer = ""
        self._refreshed: set[str] = set()
        self._waited = False
        """Whether this round has had its wait."""
        self._late = 0
        """How often that wait went on."""
        self._restless = 0
        self._last: Fault | None = None

    def fill(self, item: scheduler_pb2.AcquireItem) -> None:
        """Tell the scheduler what was tried."""
        if not self.number and not self._round:
            return
        item.round = self._round
        item.prefer_credential_id = self._prefer
        if self._prefer and self._capped:
            # Its other models, and nobody else.
            item.pinned_credential_id = self._prefer
        item.exclude_credential_ids.extend(self._excluded)
        for credential, model in self._tried:
            item.tried.add(credential_id=credential, upstream_model=model)

    def may_refresh(self, lease: scheduler_pb2.Lease) -> bool:
        """Whether the lease's credential can be refreshed and was not yet for this request."""
        return lease.refreshable and lease.attempt.credential_id not in self._refreshed

    def failed(
        self,
        lease: scheduler_pb2.Lease,
        following: Next,
        error: errors.PatchbayError,
        fault: Fault | None,
        address: str,
    ) -> bool:
        """
        Note a failed attempt and say whether there may be another.

        Args:
            lease: Of the attempt.
            following: What was decided.
            error: What ended it.
            fault: What a provider's failure is.
            address: The executor's address that was called; empty if none was.
        """
        info = lease.attempt
        self._last = fault
        self._seen.add(info.credential_id)
        if following is Next.STOP or self.number >= MAX_ATTEMPTS:
            return False
        if following is Next.ADDRESS:
            self.addresses.append(address)
            self._prefer = ""
            return True
        if following is Next.REFRESH:
            self._refreshed.add(info.credential_id)
            self._prefer = info.credential_id
            return True
        if self._same_once_more(error, fault):
            return True
        if following is Next.MODEL and self._candidates.pooled:
            self._tried.append((info.credential_id, info.upstream_model))
            self._prefer = info.credential_id
        else:
            self._excluded.append(info.credential_id)
            self._prefer = ""
        return self._any_left() or self._another_round()

    def refused(self, refusal: errors.PatchbayError) -> float | None:
        """Return the seconds after which to ask again, None to give up."""
        if refusal.reason == RESTLESS:
            # No round is over, so no setting of rounds and their waits speaks of it.
            self._restless += 1
            return (refusal.retry_after or 0.0) if self._restless <= _MOST_RESTLESS else None
        if refusal.reason not in _PASSING and not (self._prefer and self._capped):
            return None
        wait = max(refusal.retry_after or 0.0, 0.0)
        if not self._seen and self._round and not self._waited:
            # A new round found everybody cooling down: this is the wait that it stands for.
            self._waited = True
        elif not self._seen and self._waited and wait <= _LATE and self._late < _MOST_LATE:
            self._late += 1
        elif self._another_round():
            self._waited = wait > 0
        else:
            return None
        return wait if wait <= self._candidates.retry.max_wait else None

    @property
    def _capped(self) -> bool:
        """Whether this round may use no further credential."""
        return 0 < self._candidates.retry.max_credentials <= len(self._seen)

    def _any_left(self) -> bool:
        if self._capped and not self._prefer:
            return False
        return len(self._excluded) < self._candidates.credentials

    def _another_round(self) -> bool:
        if self._round >= self._candidates.retry.rounds:
            return False
        if self._last is not None and not outcomes.worth_a_round(self._last):
            return False
        self._round += 1
        self._excluded.clear()
        self._tried.clear()
        self._seen.clear()
        self._prefer = ""
        self._waited = False
        self._late = 0
        return True

    def _same_once_more(self, error: errors.PatchbayError, fault: Fault | None) -> bool:
        """Whether the only credential gets a second try: nothing can have reached the provider."""
        return (
            self._candidates.credentials <= 1
            and self.number == 1
            and fault is not None
            and fault.kind is FaultKind.CONNECTION
            and error.sent is error.sent.NO
        )
