"""What leases of one candidate share: kept, made anew, and given up one by one."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

from tests.unit.scheduler.conftest import make_credential, make_provider, make_snapshot

from patchbay_gateway.kernel.clock import ManualClock
from patchbay_gateway.scheduler.grants import Grants


def candidate(name: str) -> Any:
    credential = make_credential(name)
    provider = make_provider("fake", credential)
    return SimpleNamespace(provider=provider, credential=credential, upstream_model="m")


def test_of_more_candidates_than_are_kept_the_oldest_goes() -> None:
    credentials = SimpleNamespace(
        generation=0,
        changes={},
        sealed=lambda *_: (None, 1e12),
        attributes=lambda _: {},
        version=lambda _: 1,
        refreshable=lambda _: False,
    )
    made = Grants(
        cast("Any", credentials), clock=ManualClock(), installation="t", lease_ttl=60.0, most=3
    )
    snapshot = make_snapshot()
    wanted = [candidate(f"c{n}") for n in range(4)]
    first = [made.of(snapshot, each, 0.0) for each in wanted]
    again = [made.of(snapshot, each, 0.0) for each in wanted[1:]]
    assert all(a is b for a, b in zip(again, first[1:], strict=True))
    assert made.of(snapshot, wanted[0], 0.0) is not first[0]
