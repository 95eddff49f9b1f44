"""
`patchbay plugin exec`: a plugin's command line through the management API.

Not here: reading the flags (plugins/command_line.py, in the gateway).
"""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from pathlib import Path


def run(plugin_id: str, args: Sequence[str], *, url: str, data_dir: Path | None) -> int:
    """
    Run it and return its exit status.

    Args:
        plugin_id: Whose.
        args: What it is told; `--help` alone shows its flags.
        url: Of the management API.
        data_dir: Where the token file is.

    Raises:
        PatchbayError: It did not run.
    """
    from patchbay_gateway.commands.client import connect  # noqa: PLC0415 - only to run

    client = connect(url, os.environ, data_dir)
    path = f"/v0/management/plugins/{quote(plugin_id, safe='')}"
    if args and args[0] == "--":
        args = args[1:]
    elif args and args[0] in {"--help", "-h"}:
        for line in _help(plugin_id, client.get(f"{path}/command-line")):
            sys.stdout.write(f"{line}\n")
        return 0
    done = client.post(f"{path}/exec", body={"args": list(args)}, patience=None)
    sys.stdout.write(done["stdout"])
    sys.stderr.write(done["stderr"])
    for credential in done.get("credentials", ()):
        sys.stdout.write(f"Credential {credential} is kept.\n")
    return int(done["exit_code"]) & 0xFF


def _help(plugin_id: str, flags: Iterable[Mapping[str, Any]]) -> list[str]:
    lines = [f"Usage: patchbay plugin exec {plugin_id} -- [FLAGS] [ARGS]", ""]
    for flag in flags:
        kind = "" if flag["kind"] == "bool" else f" {flag['kind'].upper()}"
        default = f"  [default: {flag['default']}]" if flag["default"] else ""
        lines.append(f"  --{flag['name']}{kind:<12}  {flag['usage']}{default}")
    return lines
