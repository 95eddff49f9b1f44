"""Who leads: the lease, and what a replica that does not lead says of itself."""

from __future__ import annotations

import asyncio
import copy
from typing import TYPE_CHECKING, Any, cast

import pytest

from patchbay.errors import Unavailable
from patchbay_gateway.kernel.clock import ManualClock
from patchbay_operator import leading
from patchbay_operator.cluster import Conflicted
from patchbay_operator.leading import Leadership

if TYPE_CHECKING:
    from patchbay_operator.cluster import KubeApi


class Leases:
    """An API server that knows one Lease."""

    def __init__(self) -> None:
        self.lease: dict[str, Any] | None = None
        self.away = False
        self.silent = False

    async def get(self, kind: str, name: str) -> dict[str, Any] | None:
        """Return it."""
        if self.silent:
            raise TimeoutError
        if self.away:
            raise Unavailable("the API server is away", reason="AWAY")
        return self.lease

    async def create(self, document: dict[str, Any]) -> dict[str, Any]:
        """Take it."""
        self.lease = document
        return document

    replace = create


class SlowLeases(Leases):
    """One whose answers to writes are lost: what was asked for is done all the same."""

    def __init__(self) -> None:
        super().__init__()
        self.written = asyncio.Event()
        self.slow = True

    async def create(self, document: dict[str, Any]) -> dict[str, Any]:
        """Take it, and answer never."""
        self.lease = copy.deepcopy(document)
        if self.slow:
            self.written.set()
            await asyncio.Event().wait()
        return document

    async def get(self, kind: str, name: str) -> dict[str, Any] | None:
        """Return a copy."""
        return copy.deepcopy(await super().get(kind, name))

    async def replace(self, document: dict[str, Any]) -> dict[str, Any]:
        """Take it, unless it was written meanwhile."""
        if self.conflicts:
            self.conflicts -= 1
            raise Conflicted("it was changed")
        return await self.create(document)

    conflicts = 0


def lead(leases: Leases, identity: str, clock: ManualClock) -> Leadership:
    return Leadership(cast("KubeApi", leases), identity, clock=clock)


async def test_first_leads_and_the_second_waits_without_a_complaint() -> None:
    leases, clock = Leases(), ManualClock()
    first, second = lead(leases, "a", clock), lead(leases, "b", clock)
    assert await first._try()
    assert not await second._try()
    assert second.problem == ""


@pytest.mark.parametrize("fault", ["away", "silent"])
async def test_replica_that_waits_has_no_complaint_once_the_api_server_is_back(fault: str) -> None:
    leases, clock = Leases(), ManualClock()
    first, second = lead(leases, "a", clock), lead(leases, "b", clock)
    assert await first._try()
    setattr(leases, fault, True)
    assert not await second._try()
    assert second.problem
    setattr(leases, fault, False)
    assert not await second._try()
    assert second.problem == ""


async def test_second_leads_when_the_first_has_not_renewed() -> None:
    leases, clock = Leases(), ManualClock()
    first, second = lead(leases, "a", clock), lead(leases, "b", clock)
    assert await first._try()
    assert not await second._try()
    await clock.advance(leading.DURATION + 1)
    assert await second._try()
    assert leases.lease is not None
    assert leases.lease["spec"]["holderIdentity"] == "b"


async def test_replica_that_ends_while_it_asks_leaves_no_lease_behind() -> None:
    """Else nobody leads until the lease of a pod that is gone has expired."""
    leases, clock = SlowLeases(), ManualClock()
    first = lead(leases, "a", clock)
    asking = asyncio.create_task(first.acquire())
    async with asyncio.timeout(60):
        await leases.written.wait()
    asking.cancel()
    await asyncio.gather(asking, return_exceptions=True)
    leases.slow = False
    leases.conflicts = 1  # its own last renewal arrived in between
    await first.release()
    assert leases.lease is not None
    assert leases.lease["spec"]["holderIdentity"] == ""
    assert await lead(leases, "b", clock)._try()


async def test_replica_that_only_waited_leaves_the_lease_alone() -> None:
    leases, clock = Leases(), ManualClock()
    first, second = lead(leases, "a", clock), lead(leases, "b", clock)
    assert await first._try()
    assert not await second._try()
    await second.release()
    assert leases.lease is not None
    assert leases.lease["spec"]["holderIdentity"] == "a"


def test_call_that_hangs_is_given_up_before_the_lease_is() -> None:
    assert leading.ANSWER + leading.RETRY < leading.DEADLINE < leading.DURATION
