"""
Who a plugin is: the base of every capability's base class.

A plugin is a class that inherits from one or more capability classes (`Executor`, `RequestInterceptor`, …);
what it inherits from is what it declares. Not here: the capabilities, registration (`patchbay.handshake`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from patchbay.plugin.v1 import plugin_pb2

if TYPE_CHECKING:
    from collections.abc import Sequence


class Plugin:
    """Who a plugin is. Subclasses set the class attributes and inherit from what they can do."""

    id: ClassVar[str]
    """Plugin id, as the configuration names it."""
    name: ClassVar[str]
    """Stable human-readable name."""
    version: ClassVar[str]
    """Release version."""
    author: ClassVar[str]
    """Author or organisation."""
    github_repository: ClassVar[str] = ""
    """URL of source and support."""
    logo: ClassVar[str] = ""
    """Display asset reference."""
    config_fields: ClassVar[Sequence[plugin_pb2.ConfigField]] = ()
    """Fields of the plugin's configuration, for management clients."""
    capability_flag: ClassVar[str] = ""
    """Set by capability classes: the flag of `Capabilities` that stands for them."""

    @property
    def identifier(self) -> str:
        """
        The provider key of executors, auth providers and thinking appliers; the id unless overridden.

        pluginapi asks each of them for its own; a plugin that is several of them serves one provider.
        """
        return self.id

    def capabilities(self) -> plugin_pb2.Capabilities:
        """Return what this plugin declares: a flag for each capability class that it inherits from."""
        declared = plugin_pb2.Capabilities()
        for cls in type(self).__mro__:
            flag = vars(cls).get("capability_flag")
            if flag and flag != "executor":  # executors say more than that they are one
                setattr(declared, flag, True)
        return declared

    async def configure(self, config: bytes) -> None:
        """
        Take a configuration, YAML; empty means none. Called at registration and at each change.

        Raises:
            InvalidRequest: the configuration is wrong; the text goes to the operator.
        """

    async def aclose(self) -> None:
        """Release what the plugin holds. Called once, after its last call ended."""
