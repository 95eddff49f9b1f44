"""Registration where the gateway's own schedulers have no keys to give yet."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tests.unit.plugins.registry_world import World

from patchbay import errors
from patchbay_gateway.plugins.handshake import Host
from patchbay_gateway.plugins.registry import MAX_KEYS_RETRY, PluginRegistry

if TYPE_CHECKING:
    from collections.abc import Sequence

    from patchbay_gateway.kernel.clock import ManualClock


class Starting(World):
    """Its schedulers come later."""

    def __init__(self, clock: ManualClock) -> None:
        self.started = False
        self.asked = 0
        super().__init__(clock)

    def make_registry(self, **more: Any) -> PluginRegistry:
        return PluginRegistry(
            host=Host("host-1", "test"),
            keys=self.find,
            resolver=self.resolver,
            clock=self.clock,
            connect=self.connect,
            **more,
        )

    async def find(self, plugin_id: str) -> Sequence[bytes]:
        self.asked += 1
        if not self.started:
            raise errors.Unavailable("no scheduler is there yet")
        return self.keys[plugin_id]


async def test_plugin_is_registered_soon_after_the_schedulers_came(clock: ManualClock) -> None:
    world = Starting(clock)
    world.add("10.0.0.1:1")
    await world.apply()
    for _ in range(60):
        await world.settle(1.0)
    assert world.registry.pick("named") is None
    # Often enough not to be waited for, and no busy loop.
    assert 25 <= world.asked <= 40
    world.started = True
    await world.settle(MAX_KEYS_RETRY)
    assert world.registry.pick("named") is not None
    await world.registry.aclose()
