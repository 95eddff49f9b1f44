"""
usage.handle: a row of the ledger as usage plugins hear of it.

Not here: the ledger, and when a plugin is asked (usage/).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from patchbay_gateway.kernel.channels import methods

if TYPE_CHECKING:
    from patchbay.plugin.v1 import usage_plugin_pb2
    from patchbay_gateway.plugins.calls import PluginCalls
    from patchbay_gateway.plugins.hooks import Hook
    from patchbay_gateway.plugins.snapshot import PluginEntry

CAPABILITY: Final = "usage_plugin"


def may_listen(plugin: PluginEntry) -> bool:
    """Whether the configuration lets the plugin hear of usage; what it declares is another matter."""
    if plugin.builtin or not plugin.enabled:
        return False
    return not plugin.capabilities or CAPABILITY in plugin.capabilities


async def handle_usage(
    calls: PluginCalls, hook: Hook, record: usage_plugin_pb2.UsageRecord
) -> None:
    """
    Have the plugin take *record*.

    Raises:
        PatchbayError: It did not.
    """
    await calls.unary(hook, methods.HANDLE_USAGE, record)
