"""
`patchbay plugin`: what the operator of a gateway hands to plugins.

Not here: plugins themselves (the SDK).
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Annotated

import typer

from patchbay.cli import group
from patchbay_gateway.commands.options import DataDirOption

if TYPE_CHECKING:
    from pathlib import Path


def register(app: typer.Typer) -> None:
    """Add to the group `plugin`, which has the SDK's verbs."""
    plugin = group(app, "plugin", "Plugins of this gateway.")
    plugin.command()(key)


def key(
    plugin_id: Annotated[str, typer.Argument(metavar="ID", help="As in plugins[].id.")],
    data_dir: DataDirOption = None,
) -> None:
    """
    Print the key of a plugin, for PATCHBAY_PLUGIN_KEY in its environment.

    Derived from the root `plugins` (PATCHBAY_PLUGINS_KEY or the data directory). It is a secret.
    """
    from patchbay_gateway.kernel.config import ProcessSettings  # noqa: PLC0415 - only to run
    from patchbay_gateway.kernel.keys import load_roots, plugin_key  # noqa: PLC0415 - the same

    flags: dict[str, Path | None] = {"data_dir": data_dir}
    settings = ProcessSettings.load("up", os.environ, flags)
    roots = load_roots(os.environ, ["plugins"], settings.data_dir)
    typer.echo(plugin_key(roots.plugins[0], plugin_id).hex())
