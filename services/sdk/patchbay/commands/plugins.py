"""
`patchbay plugin new`, `run` and `check`: from nothing to a plugin with a verdict on it.

Not here: what asks a gateway (`plugin key`, `list`, `exec` are the gateway's own).
"""

from __future__ import annotations

import asyncio
import json
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from patchbay.testing.conformance import Report

_ADDRESS = re.compile(r"unix:.+|(?:\[[0-9a-fA-F:.]+\]|[A-Za-z0-9_.-]+):\d{1,5}")


def register(group: typer.Typer) -> None:
    """Add the verbs to the group `plugin`."""
    group.command()(new)
    group.command()(run)
    group.command()(check)


def new(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Plugin id, for example my-filter.")],
    capability: Annotated[
        list[str] | None,
        typer.Option(help="Capability flag; may come more than once. Default request_interceptor."),
    ] = None,
    directory: Annotated[
        Path | None, typer.Option(help="Folder to make; default ./NAME.", file_okay=False)
    ] = None,
) -> None:
    """Make a plugin: one Python file, its test and a README."""
    from patchbay.commands.scaffold import scaffold  # noqa: PLC0415 - only to run

    folder = directory or Path(name)
    for path in scaffold(name, capability or ["request_interceptor"], folder):
        typer.echo(path)


def run(
    target: Annotated[
        str, typer.Argument(metavar="FILE_OR_MODULE", help="With :Name for one class.")
    ],
    address: Annotated[
        str, typer.Option(help="host:port or unix:/path to listen on.")
    ] = "127.0.0.1:7003",
) -> None:
    """
    Serve the plugins of a Python file or module until Ctrl-C.

    The key comes from PATCHBAY_PLUGIN_KEY or PATCHBAY_PLUGIN_KEY_FILE; without them one is made up and
    printed, which is good for `patchbay plugin check` and for nothing else.
    """
    import secrets  # noqa: PLC0415 - only to run

    from patchbay import logs, serve  # noqa: PLC0415 - the same
    from patchbay.commands.loading import load_plugins  # noqa: PLC0415 - the same

    logs.configure()
    plugins = load_plugins(target)
    ids = [plugin.id for plugin in plugins]
    if os.environ.get("PATCHBAY_PLUGIN_KEY") or os.environ.get("PATCHBAY_PLUGIN_KEY_FILE"):
        found = serve.load_plugin_keys(os.environ, ids)
    else:
        made = secrets.token_bytes(32)
        found = {id_: [made] for id_ in ids}
        typer.echo(f"PATCHBAY_PLUGIN_KEY={made.hex()}")
    asyncio.run(serve.serve_async(*plugins, address=address, plugin_keys=found))


def check(
    target: Annotated[
        str, typer.Argument(metavar="ADDRESS", help="host:port, or a file or module to run.")
    ],
    plugin_id: Annotated[
        str, typer.Option("--id", help="Plugin id; default all that keys or the file name.")
    ] = "",
    key_file: Annotated[
        Path | None,
        typer.Option(
            help="File with its key; default PATCHBAY_PLUGIN_KEY or _FILE.", dir_okay=False
        ),
    ] = None,
    config: Annotated[
        Path | None, typer.Option(help="File with its configuration, YAML.", dir_okay=False)
    ] = None,
    command: Annotated[
        str,
        typer.Option(
            "--run",
            metavar="COMMAND",
            help="Program that serves the plugin at ADDRESS; it is run, and given a key of its own.",
        ),
    ] = "",
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """
    Try every rule of the contract on a plugin, in any language.

    A file or module, or the program of --run, is run by the check itself, which then also sees its log
    and its end. Exit status 1 if a rule is broken.
    """
    from patchbay.testing.conformance import check as judge  # noqa: PLC0415 - only to run
    from patchbay.tls import Tls  # noqa: PLC0415 - the same

    settings = config.read_bytes() if config is not None else b""
    if command:

        async def look() -> list[Report]:
            return [await _start_and_check(command, target, plugin_id, settings)]
    elif _ADDRESS.fullmatch(target):
        keys = _keys(plugin_id, key_file)

        async def look() -> list[Report]:
            tls = Tls.from_environment(os.environ)
            return [
                await judge(target, id_, key, config=settings, tls=tls) for id_, key in keys.items()
            ]
    else:

        async def look() -> list[Report]:
            return await _run_and_check(target, plugin_id, settings)

    reports = asyncio.run(look())
    if as_json:
        found = [report.as_json() for report in reports]
        typer.echo(json.dumps(found[0] if len(found) == 1 else found, indent=2))
    else:
        for report in reports:
            typer.echo(f"plugin {report.plugin_id} at {report.address}")
            typer.echo(report.table())
    if not all(report.passed for report in reports):
        raise typer.Exit(1)


def _keys(plugin_id: str, key_file: Path | None) -> Mapping[str, bytes]:
    """Return the plugins to look for and their keys."""
    from patchbay.serve import load_plugin_keys  # noqa: PLC0415 - only to run

    environ: Mapping[str, str] = os.environ
    if key_file is not None:
        environ = {"PATCHBAY_PLUGIN_KEY_FILE": str(key_file)}
    ids: Sequence[str] = [plugin_id] if plugin_id else []
    if not ids and not (
        environ.get("PATCHBAY_PLUGIN_KEY") or environ.get("PATCHBAY_PLUGIN_KEY_FILE")
    ):
        raise typer.BadParameter("which plugin is it? Give --id, and its key", param_hint="--id")
    found = load_plugin_keys(environ, ids)
    if not found:
        raise typer.BadParameter(
            "the key names no plugin; give --id, or lines id=key", param_hint="--id"
        )
    return {id_: keys[0] for id_, keys in found.items() if not plugin_id or id_ == plugin_id}


async def _start_and_check(command: str, address: str, plugin_id: str, config: bytes) -> Report:
    """Return the report of the plugin that *command* serves at *address*."""
    import secrets  # noqa: PLC0415 - only to run
    import shlex  # noqa: PLC0415 - the same

    from patchbay.testing.conformance import check as judge  # noqa: PLC0415 - the same
    from patchbay.testing.spawned import started  # noqa: PLC0415 - the same
    from patchbay.tls import Tls  # noqa: PLC0415 - the same

    if not _ADDRESS.fullmatch(address) or not plugin_id:
        raise typer.BadParameter(
            "say where the program listens, host:port, and with --id who it is", param_hint="--run"
        )
    key, tls = secrets.token_bytes(32), Tls.from_environment(os.environ)
    async with started(shlex.split(command), address, key, tls=tls) as running:
        return await judge(address, plugin_id, key, config=config, running=running, tls=tls)


async def _run_and_check(target: str, plugin_id: str, config: bytes) -> list[Report]:
    """Return a report for each plugin of *target*, each in a process of its own."""
    import secrets  # noqa: PLC0415 - only to run

    from patchbay import errors  # noqa: PLC0415 - the same
    from patchbay.commands.loading import load_plugins  # noqa: PLC0415 - the same
    from patchbay.testing.conformance import check as judge  # noqa: PLC0415 - the same
    from patchbay.testing.spawned import spawned  # noqa: PLC0415 - the same

    ids = [plugin.id for plugin in load_plugins(target)]
    wanted = [id_ for id_ in ids if not plugin_id or id_ == plugin_id]
    if not wanted:
        raise errors.NotFound(
            f"{target} has no plugin {plugin_id}, only {', '.join(ids)}", reason="NO_PLUGIN"
        )
    reports = []
    for id_ in wanted:
        key = secrets.token_bytes(32)
        async with spawned(target, key) as running:
            reports.append(await judge(running.address, id_, key, config=config, running=running))
    return reports
