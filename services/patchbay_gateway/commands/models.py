"""
`patchbay models`: what clients may ask for, who serves it now, and what stands in the way of the others.

Not here: the states of credentials in full (credentials.py).
"""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, Annotated, Any

import typer

from patchbay_gateway.commands.options import (
    DEFAULT_MANAGEMENT_URL,
    DataDirOption,
    JsonOption,
    UrlOption,
)

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

_PATH = "/v0/management/models"
# A large pool fails alike; who wants each asks for the credentials.
_SHOWN = 3


def register(app: typer.Typer) -> None:
    """Add the verb `models`."""
    app.command("models")(models)


def models(
    name: Annotated[
        str, typer.Argument(metavar="[MODEL]", help="Only this one, as clients call it.")
    ] = "",
    *,
    as_json: JsonOption = False,
    url: UrlOption = DEFAULT_MANAGEMENT_URL,
    data_dir: DataDirOption = None,
) -> None:
    """Show every model: who serves it now, and why others do not."""
    from patchbay import errors  # noqa: PLC0415 - when it runs
    from patchbay_gateway.commands.client import connect  # noqa: PLC0415 - the same

    found = connect(url, os.environ, data_dir).get(_PATH)
    if name:
        found = [model for model in found if model["id"] == name]
        if not found:
            raise errors.NotFound(f"no provider and no route serves {name!r}")
    if as_json:
        typer.echo(json.dumps(found, indent=2))
    elif not found:
        typer.echo("No models are configured: give a provider `models`.")
    else:
        _print(found, everything=bool(name))


def _print(models: Sequence[Mapping[str, Any]], *, everything: bool) -> None:
    from rich.console import Console  # noqa: PLC0415 - only a table needs it
    from rich.table import Table  # noqa: PLC0415 - the same

    table = Table(box=None, pad_edge=False, header_style="bold")
    for title in ("model", "now", "leads to", "cannot serve it"):
        table.add_column(title, overflow="fold")
    for model in models:
        targets = [f"{t['provider']}: {t['model']}" for t in model["targets"]]
        table.add_row(
            model["id"],
            {True: "available", False: "not available"}.get(model["available"], "unknown"),
            "\n".join(targets) or "–",
            "\n".join(_obstacles(model["obstacles"], everything=everything)),
        )
    console = Console()
    if not console.is_terminal:
        console = Console(width=200)
    console.print(table)


def _obstacles(found: Sequence[Mapping[str, Any]], *, everything: bool) -> list[str]:
    lines = []
    for obstacle in found:
        until = f" until {obstacle['until']}" if obstacle["until"] else ""
        lines.append(f"{obstacle['credential']}: {obstacle['reason'].replace('_', ' ')}{until}")
    if everything or len(lines) <= _SHOWN:
        return lines
    return [*lines[:_SHOWN], f"and {len(lines) - _SHOWN} more"]
