"""
`patchbay doctor`: runs the checks and prints them.

Not here: the checks (doctor.py).
"""

from __future__ import annotations

import dataclasses
import json
import os
from typing import TYPE_CHECKING

import typer

from patchbay_gateway.commands.options import (
    DEFAULT_MANAGEMENT_URL,
    ConfigOption,
    DataDirOption,
    HostOption,
    JsonOption,
    ManagementPortOption,
    PortOption,
    RedisOption,
    UrlOption,
)
from patchbay_gateway.commands.services import DEFAULT_FILE

if TYPE_CHECKING:
    from patchbay_gateway.checks import Check

_MARKS = {
    "ok": typer.style("ok  ", fg=typer.colors.GREEN),
    "warn": typer.style("warn", fg=typer.colors.YELLOW),
    "fail": typer.style("FAIL", fg=typer.colors.RED, bold=True),
}


def register(app: typer.Typer) -> None:
    """Add the verb `doctor`."""
    app.command()(doctor)


def doctor(
    *,
    config: ConfigOption = None,
    host: HostOption = None,
    port: PortOption = None,
    management_port: ManagementPortOption = None,
    redis_url: RedisOption = None,
    data_dir: DataDirOption = None,
    url: UrlOption = DEFAULT_MANAGEMENT_URL,
    as_json: JsonOption = False,
) -> None:
    """Check configuration, Redis, files, ports and the running gateway; say what to do."""
    from patchbay_gateway.doctor import Subject, examine  # noqa: PLC0415 - when it runs
    from patchbay_gateway.kernel.config import ProcessSettings  # noqa: PLC0415 - the same

    if config is None and DEFAULT_FILE.is_file():
        config = DEFAULT_FILE
    flags = {
        "host": host,
        "port": port,
        "management_port": management_port,
        "redis_url": redis_url,
        "data_dir": data_dir,
        "config_path": config.expanduser().absolute() if config is not None else None,
    }
    if url == DEFAULT_MANAGEMENT_URL and management_port:
        url = f"http://127.0.0.1:{management_port}"
    settings = ProcessSettings.load("up", os.environ, flags)
    checks = []
    for check in examine(Subject(settings, os.environ, url)):
        checks.append(check)
        if not as_json:
            _print(check)
    if as_json:
        typer.echo(json.dumps([dataclasses.asdict(c) for c in checks], indent=2))
    raise typer.Exit(1 if any(c.status == "fail" for c in checks) else 0)


def _print(check: Check) -> None:
    typer.echo(f"{_MARKS[check.status]} {check.name}: {check.detail}")
    if check.remedy:
        typer.echo(f"       → {check.remedy}")
