"""
Options that several verbs share.

Not here: what they mean (kernel/config).
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

ConfigOption = Annotated[
    Path | None,
    typer.Option(
        "--config", "-c", envvar="PATCHBAY_CONFIG", metavar="FILE", help="Configuration file."
    ),
]
HostOption = Annotated[
    str | None, typer.Option("--host", metavar="ADDRESS", help="Address to listen on.")
]
PortOption = Annotated[
    int | None, typer.Option("--port", min=0, max=65535, help="Port of the client API.")
]
ManagementPortOption = Annotated[
    int | None,
    typer.Option("--management-port", min=0, max=65535, help="Port of the management API."),
]
RedisOption = Annotated[
    str | None,
    typer.Option("--redis-url", metavar="URL", help="Redis or Valkey to use (also REDIS_URL)."),
]
DataDirOption = Annotated[
    Path | None,
    typer.Option("--data-dir", metavar="DIR", help="Keys, ledger and write-ahead files."),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]
UrlOption = Annotated[
    str,
    typer.Option(
        "--url",
        envvar="PATCHBAY_MANAGEMENT_URL",
        metavar="URL",
        help="Management API of the gateway.",
    ),
]
DEFAULT_MANAGEMENT_URL = "http://127.0.0.1:8081"
