"""
`patchbay login`: gives a credential its tokens through the provider's own login.

Not here: the login (the gateway's scheduler and the credential's auth provider).
"""

from __future__ import annotations

import os
import time
import webbrowser
from typing import Annotated
from urllib.parse import quote

import typer

from patchbay_gateway.commands.options import (
    DEFAULT_MANAGEMENT_URL,
    DataDirOption,
    JsonOption,
    UrlOption,
)

_PATH = "/v0/management/login"
_PATIENCE = 70.0


def register(app: typer.Typer) -> None:
    """Add the verb."""
    app.command()(login)


def login(
    provider: Annotated[str, typer.Argument(metavar="PROVIDER", help="As in providers[].name.")],
    *,
    credential: Annotated[
        str, typer.Option("--credential", metavar="ID", help="Which, where several log in.")
    ] = "",
    device: Annotated[
        bool, typer.Option("--device", help="By a code on another device, without a redirect.")
    ] = False,
    browser: Annotated[
        bool, typer.Option("--browser/--no-browser", help="Open the address in a browser.")
    ] = True,
    as_json: JsonOption = False,
    url: UrlOption = DEFAULT_MANAGEMENT_URL,
    data_dir: DataDirOption = None,
) -> None:
    """
    Log in at a provider: for its credential with `oauth2` in the configuration, or for a new one.

    Prints an address to open and waits until the login is done. The provider redirects to the management
    port's /v0/management/oauth-callback, as `--url` names it.
    """
    import json  # noqa: PLC0415 - only to run

    from patchbay import errors  # noqa: PLC0415 - the same
    from patchbay_gateway.commands.client import connect  # noqa: PLC0415 - the same

    client = connect(url, os.environ, data_dir)
    flow = "device" if device else ""
    started = client.post(
        _PATH,
        body={"provider": provider, "credential": credential, "flow": flow},
        patience=_PATIENCE,
    )
    typer.echo(f"Open {started['url']}", err=True)
    if started["user_code"]:
        typer.echo(f"and type {started['user_code']}", err=True)
    if browser and not started["user_code"]:
        webbrowser.open(started["url"])
    pause = (
        min(float(started["interval"]), 1.0) if not started["user_code"] else started["interval"]
    )
    while True:
        time.sleep(pause)
        try:
            found = client.get(f"{_PATH}/{quote(started['state'], safe='')}")
        except errors.FailedPrecondition:
            continue  # somebody else asks just now
        if found["status"] != "wait":
            break
        if started["user_code"]:
            pause = float(found["interval"])
    if as_json:
        typer.echo(json.dumps(found, indent=2))
    elif found["status"] == "ok":
        for name in found.get("credentials") or [found["credential"]]:
            typer.echo(f"Credential {name} is logged in.")
        if found["message"]:
            typer.echo(found["message"], err=True)
    if found["status"] == "error":
        typer.echo(f"patchbay: {found['message']}", err=True)
        raise typer.Exit(1)
