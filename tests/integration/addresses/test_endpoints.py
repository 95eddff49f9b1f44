"""Addresses from Redis beside those of DNS, on a real Valkey."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from patchbay_gateway.kernel.clock import ManualClock
from patchbay_gateway.plugins.dns import LookupFailed
from patchbay_gateway.plugins.endpoints import EndpointsResolver

if TYPE_CHECKING:
    from patchbay_gateway.kernel.redis import Store

HOST = "plugin-x.gateway.svc.cluster.local."


class Dns:
    """Answers, or fails."""

    def __init__(self, *addresses: str, fails: bool = False) -> None:
        self.addresses = frozenset(addresses)
        self.fails = fails

    async def resolve(self, host: str) -> frozenset[str]:
        if self.fails:
            raise LookupFailed("nobody answers")
        return self.addresses


async def _tell(store: Store, addresses: str) -> None:
    await store.call("HSET", store.key("endpoints"), HOST, addresses)


async def test_addresses_of_both_are_found(store: Store) -> None:
    await _tell(store, '["10.0.0.2"]')
    resolver = EndpointsResolver(Dns("10.0.0.1"), store=store, clock=ManualClock())
    assert await resolver.resolve(HOST) == {"10.0.0.1", "10.0.0.2"}
    assert await resolver.resolve(HOST.rstrip(".")) == {"10.0.0.1", "10.0.0.2"}
    assert await resolver.resolve("other.example") == {"10.0.0.1"}


async def test_either_is_enough(store: Store) -> None:
    clock = ManualClock()
    resolver = EndpointsResolver(Dns("10.0.0.1"), store=store, clock=clock)
    assert await resolver.resolve(HOST) == {"10.0.0.1"}
    failing = EndpointsResolver(Dns(fails=True), store=store, clock=clock)
    with pytest.raises(LookupFailed):
        await failing.resolve(HOST)
    await _tell(store, '["10.0.0.2"]')
    await clock.advance(1.0)
    assert await failing.resolve(HOST) == {"10.0.0.2"}


async def test_new_address_is_seen_within_a_second(store: Store) -> None:
    clock = ManualClock()
    resolver = EndpointsResolver(Dns(), store=store, clock=clock)
    assert await resolver.resolve(HOST) == set()
    await _tell(store, '["10.0.0.2", "10.0.0.3"]')
    await clock.advance(1.0)
    assert await resolver.resolve(HOST) == {"10.0.0.2", "10.0.0.3"}


async def test_what_is_no_list_is_left_alone(store: Store) -> None:
    await _tell(store, "{}")
    resolver = EndpointsResolver(Dns("10.0.0.1"), store=store, clock=ManualClock())
    assert await resolver.resolve(HOST) == {"10.0.0.1"}
