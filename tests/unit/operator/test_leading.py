"""Who leads: the lease, and what a replica that does not lead says of itself."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import pytest

from patchbay.errors import Unavailable
from patchbay_gateway.kernel.clock import ManualClock
from patchbay_operator import leading
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


def test_call_that_hangs_is_given_up_before_the_lease_is() -> None:
    assert leading.ANSWER + leading.RETRY < leading.DEADLINE < leading.DURATION
