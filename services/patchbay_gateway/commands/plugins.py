"""
`patchbay plugin`: what the operator of a gateway hands to plugins.

Not here: plugins themselves (the SDK).
"""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, Annotated

import typer

from patchbay.cli import group
from patchbay_gateway.commands import plugin_exec
from patchbay_gateway.commands.options import (
    DEFAULT_MANAGEMENT_URL,
    DataDirOption,
    JsonOption,
    UrlOption,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path
    from typing import Any


def register(app: typer.Typer) -> None:
    """Add to the group `plugin`, which has the SDK's verbs."""
    plugin = group(app, "plugin", "Plugins of this gateway.")
    plugin.command()(key)
    plugin.command("list")(list_)
    plugin.command(
        "exec",
        # `--help` behind an ID is the plugin's.
        add_help_option=False,
        context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False},
    )(exec_)


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


def list_(
    *,
    as_json: JsonOption = False,
    url: UrlOption = DEFAULT_MANAGEMENT_URL,
    data_dir: DataDirOption = None,
) -> None:
    """Show every plugin: where it is registered, with what, and why not elsewhere."""
    from patchbay_gateway.commands.client import connect  # noqa: PLC0415 - only to run

    found = connect(url, os.environ, data_dir).get("/v0/management/plugins")
    if as_json:
        typer.echo(json.dumps(found, indent=2))
        return
    if not found:
        typer.echo("No plugins are configured.")
    for plugin in found:
        for line in _lines(plugin):
            typer.echo(line)


def _lines(plugin: Mapping[str, Any]) -> Iterator[str]:
    version = f" {plugin['version']}" if plugin["version"] else ""
    state = "registered" if plugin["ready"] else "not registered"
    yield f"{plugin['id']}{version}  {state}" + ("  built-in" if plugin["builtin"] else "")
    for reason in plugin["reasons"]:
        yield f"  why       {reason}"
    if plugin["capabilities"]:
        yield f"  does      {', '.join(plugin['capabilities'])}"
    if plugin["calls"] or plugin["breaker"] != "closed":
        yield (
            f"  calls     {plugin['calls']}, {plugin['errors']} without an answer, "
            f"{plugin['latency_ms']:g} ms each, breaker {plugin['breaker']}"
        )
    for address in plugin["addresses"]:
        reasons = "; ".join(address["reasons"])
        yield f"  at        {address['address']}  {address['state']}" + (
            f"  {reasons}" if reasons and reasons not in plugin["reasons"] else ""
        )
    for field in plugin["config_fields"]:
        yield f"  config    {field['name']} ({field['type']})  {field['description']}"
    for menu in plugin["menus"]:
        yield f"  page      {menu['path']}  {menu['menu']}"


def exec_(
    context: typer.Context,
    words: Annotated[
        list[str] | None,
        typer.Argument(metavar="ID [-- ARGS]", help="The plugin, and what it is told."),
    ] = None,
    *,
    url: UrlOption = DEFAULT_MANAGEMENT_URL,
    data_dir: DataDirOption = None,
) -> None:
    """
    Run a plugin's own command line, where the plugin runs; `ID --help` shows its flags.

    Its output and exit status are this one's.
    """
    plugin_id, *args = words or ["--help"]
    if plugin_id in {"--help", "-h"}:
        typer.echo(context.get_help())
        return
    raise typer.Exit(plugin_exec.run(plugin_id, args, url=url, data_dir=data_dir))
