"""
One operator leads: the holder of a Lease.

The usual numbers: a lease of 15 s, renewed each 2 s, given up after 10 s without a renewal. A Lease is no
fence: two may lead for a moment, so all that a leader does is idempotent. Whoever loses it ends its process,
for a clean start is simpler than a clean stop. Not here: what a leader does.
"""

from __future__ import annotations

import asyncio
import datetime as dt
from typing import TYPE_CHECKING, Any, Final

from patchbay.errors import PatchbayError
from patchbay_gateway.kernel import logs
from patchbay_operator.cluster import Conflicted, Refused

if TYPE_CHECKING:
    from patchbay_gateway.kernel.clock import Clock
    from patchbay_operator.cluster import KubeApi

DURATION: Final = 15.0
DEADLINE: Final = 10.0
RETRY: Final = 2.0
ANSWER: Final = 5.0
"""Seconds that the API server may take."""
# So often the lease may be written between our reading and writing it, by a call of ours that ends late.
_WRITTEN: Final = 3
_FORM: Final = "%Y-%m-%dT%H:%M:%S.%fZ"
_log = logs.get_logger("operator.leading")


class Leadership:
    """
    The lease.

    Args:
        api: The namespace.
        identity: Who asks: the pod's name.
        clock: Time; the holder's clock is never compared with ours.
        name: Of the Lease.
    """

    def __init__(
        self, api: KubeApi, identity: str, *, clock: Clock, name: str = "patchbay-operator"
    ) -> None:
        self._api = api
        self._identity = identity
        self._clock = clock
        self._name = name
        self._seen: tuple[str, str] = ("", "")
        self._seen_at = float("-inf")
        self.leading = False
        self._asked = False
        """Whether the lease may be ours: it was asked for, and nothing since says that it is not."""
        self.problem = ""
        """What keeps the lease from being asked for, for people."""

    async def acquire(self) -> None:
        """Return when we lead."""
        while not await self._try():
            await self._clock.sleep(RETRY)
        self.leading = True
        _log.info("leading", identity=self._identity)

    async def keep(self) -> None:
        """Renew for ever; return when the lease is lost."""
        renewed = self._clock.monotonic()
        while True:
            await self._clock.sleep(RETRY)
            if await self._try():
                renewed = self._clock.monotonic()
            elif self._clock.monotonic() - renewed > DEADLINE or self._held_by_other():
                self.leading = self._asked = False
                _log.error("lost the lease", holder=self._seen[0], why=self.problem)
                return

    async def release(self) -> None:
        """Let another lead at once, if we do, or would have as soon as the API server had answered."""
        if not self._asked:
            return
        self.leading = self._asked = False
        try:
            for _ in range(_WRITTEN):
                if await self._give_back():
                    return
            _log.warning("the lease is not released and will expire", why="others write it")
        except PatchbayError as error:
            _log.warning("the lease is not released and will expire", why=error.message)

    async def _give_back(self) -> bool:
        """Take our name out of the lease; False when it was written meanwhile, perhaps by a call of ours."""
        lease = await self._api.get("Lease", self._name)
        if lease is not None and (lease.get("spec") or {}).get("holderIdentity") == self._identity:
            lease["spec"]["holderIdentity"] = ""
            lease["spec"]["leaseDurationSeconds"] = 1
            try:
                await self._api.replace(lease)
            except Conflicted:
                return False
        return True

    def _held_by_other(self) -> bool:
        return self._seen[0] not in {"", self._identity}

    async def _try(self) -> bool:
        """Ask for the lease once; whether it is ours now."""
        try:
            # A call that hangs would outlast the lease.
            async with asyncio.timeout(ANSWER):
                return await self._ask()
        except TimeoutError:
            self.problem = "the API server does not answer"
            return False

    async def _ask(self) -> bool:
        try:
            lease = await self._api.get("Lease", self._name)
            self.problem = ""
            if lease is None:
                self._asked = True
                await self._api.create(self._document(None))
                return True
            spec = (
                lease.get("spec") or {}
            )  # the chart makes it empty, so that it goes with the release
            holder = spec.get("holderIdentity") or ""
            mark = (holder, str(spec.get("renewTime")))
            if mark != self._seen:
                self._seen, self._seen_at = mark, self._clock.monotonic()
            expired = self._clock.monotonic() - self._seen_at > float(
                spec.get("leaseDurationSeconds") or DURATION
            )
            if holder not in {"", self._identity} and not expired:
                self._asked = False
                return False
            self._asked = True
            await self._api.replace(self._document(lease))
        except Conflicted:
            return False
        except Refused as error:
            self.problem = f"{error.message}; the operator's Role must allow leases"
            _log.error("the lease cannot be asked for", why=self.problem)
            return False
        except PatchbayError as error:
            self.problem = error.message
            return False
        self.problem = ""
        self._seen = (self._identity, "")
        return True

    def _document(self, lease: dict[str, Any] | None) -> dict[str, Any]:
        now = dt.datetime.fromtimestamp(self._clock.now(), dt.UTC).strftime(_FORM)
        if lease is None:
            lease = {
                "apiVersion": "coordination.k8s.io/v1",
                "kind": "Lease",
                "metadata": {"name": self._name},
                "spec": {"leaseTransitions": 0},
            }
        spec = lease.setdefault("spec", {})
        if spec.get("holderIdentity") != self._identity:
            spec["acquireTime"] = now
            spec["leaseTransitions"] = int(spec.get("leaseTransitions") or 0) + 1
        spec["holderIdentity"] = self._identity
        spec["leaseDurationSeconds"] = int(DURATION)
        spec["renewTime"] = now
        return lease
