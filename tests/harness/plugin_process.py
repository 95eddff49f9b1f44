"""
A plugin as a process of its own, with the key that a gateway of the tests derives for it.

Not here: the plugins (tests/integration/plugins), gateways (topology.py).
"""

from __future__ import annotations

import secrets
import sys
from typing import TYPE_CHECKING

from tests.harness.processes import Process, free_port

from patchbay_gateway.kernel.keys import plugin_key

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path


class PluginProcess(Process):
    """One plugin file, run by this Python."""

    def __init__(
        self,
        plugin_id: str,
        file: Path,
        root: bytes,
        directory: Path,
        env: Mapping[str, str] | None = None,
    ) -> None:
        """
        Args:
            plugin_id: Whose key it gets.
            file: What is run; it calls `serve`.
            root: The gateway's `plugins` root.
            directory: Of its log.
            env: Its further environment.
        """
        self.port = free_port()
        super().__init__(
            plugin_id,
            [sys.executable, file],
            env={
                "PATCHBAY_PLUGIN_KEY": plugin_key(root, plugin_id).hex(),
                "SAMPLE_ADDRESS": f"127.0.0.1:{self.port}",
                **(env or {}),
            },
            directory=directory,
            forked=True,
        )

    @property
    def address(self) -> str:
        """Where it listens."""
        return f"127.0.0.1:{self.port}"


def new_root() -> bytes:
    """Return a root key; its hex is what PATCHBAY_PLUGINS_KEY takes."""
    return secrets.token_bytes(32)
