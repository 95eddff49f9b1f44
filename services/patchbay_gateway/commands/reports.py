"""
`patchbay usage`: the service when bare, and `patchbay usage report`.

Not here: the sums (the usage service).
"""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, Annotated, Any

import typer

from patchbay_gateway.commands import services
from patchbay_gateway.commands.options import (
    DEFAULT_MANAGEMENT_URL,
    ConfigOption,
    DataDirOption,
    HostOption,
    JsonOption,
    RedisOption,
    UrlOption,
)
from patchbay_gateway.commands.services import GrpcPortOption, HealthPortOption
from patchbay_gateway.edge.management.port import Grouping

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence


def register(app: typer.Typer) -> None:
    """Add the group `usage`."""
    group = typer.Typer(invoke_without_command=True)
    group.callback()(usage)
    group.command()(report)
    app.add_typer(group, name="usage")


def usage(
    context: typer.Context,
    *,
    config: ConfigOption = None,
    host: HostOption = None,
    grpc_port: GrpcPortOption = None,
    health_port: HealthPortOption = None,
    redis_url: RedisOption = None,
    data_dir: DataDirOption = None,
) -> None:
    """Run the usage service: the ledger; gRPC on 7002. With `report`: ask a gateway for sums."""
    if context.invoked_subcommand is not None:
        return
    flags = {
        "host": host,
        "grpc_port": grpc_port,
        "health_port": health_port,
        "redis_url": redis_url,
        "data_dir": data_dir,
    }
    services.finish(context, "usage", config, flags)


def report(
    *,
    since: Annotated[
        str, typer.Option("--since", metavar="24h", help="How far back: 90m, 24h, 7d, or all.")
    ] = "24h",
    by: Annotated[Grouping, typer.Option("--by", help="What to sum by.")] = Grouping.MODEL,
    as_json: JsonOption = False,
    url: UrlOption = DEFAULT_MANAGEMENT_URL,
    data_dir: DataDirOption = None,
) -> None:
    """Sum the ledger: requests, attempts, tokens and cost."""
    from patchbay_gateway.commands.client import connect  # noqa: PLC0415 - when it runs
    from patchbay_gateway.kernel.config.quantities import parse_duration  # noqa: PLC0415 - the same

    if since != "all":
        try:
            parse_duration(since)
        except ValueError as error:
            raise typer.BadParameter(f"{error}, or all", param_hint="--since") from error
    query = {"by": by.value, **({} if since == "all" else {"since": since})}
    rows = connect(url, os.environ, data_dir).get("/v0/management/usage", query)
    if as_json:
        typer.echo(json.dumps(rows, indent=2))
    elif not rows:
        typer.echo(f"No usage in the last {since}." if since != "all" else "No usage yet.")
    else:
        _print_table(rows, by.value.replace("-", "_"))


_COLUMNS = (
    ("requests", "requests"),
    ("attempts", "attempts"),
    ("failed", "failed"),
    ("lost", "lost"),
    ("estimated", "estimated"),
    ("input_tokens", "in"),
    ("cache_read_tokens", "cached"),
    ("output_tokens", "out"),
    ("reasoning_tokens", "reasoning"),
)


def _print_table(rows: Sequence[Mapping[str, Any]], key: str) -> None:
    """Print the sums with a last line over all."""
    from rich.console import Console  # noqa: PLC0415 - only a table needs it
    from rich.table import Table  # noqa: PLC0415 - the same

    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column(key.replace("_", " "), overflow="fold")
    for _, title in _COLUMNS:
        table.add_column(title, justify="right", no_wrap=True)
    table.add_column("cost", justify="right", no_wrap=True)

    def cells(row: Mapping[str, Any]) -> list[str]:
        numbers = [f"{row[name]:,}" for name, _ in _COLUMNS]
        return [*numbers, format_money(row["cost_nano"])]

    for row in rows:
        table.add_row(str(row[key]) or "–", *cells(row))
    if len(rows) > 1:
        names = [*(name for name, _ in _COLUMNS), "cost_nano"]
        total = {name: sum(row[name] for row in rows) for name in names}
        table.add_section()
        table.add_row("all", *cells(total), style="bold")
    console = Console()
    # A pipe has no width; a table cut at 80 columns would be of no use to grep.
    if not console.is_terminal:
        console = Console(width=200)
    console.print(table)


def format_money(nano: int) -> str:
    """Return nano-units as a decimal with at least two places and no rounding."""
    sign, nano = ("-", -nano) if nano < 0 else ("", nano)
    whole, rest = divmod(nano, 10**9)
    places = f"{rest:09d}".rstrip("0").ljust(2, "0")
    return f"{sign}{whole:,}.{places}"
