"""
`patchbay credentials`: the pool as the next request will find it, and the switches on it.

Not here: what the states mean (docs/operations.md, "Who is ready").
"""

from __future__ import annotations

import json
import os
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any
from urllib.parse import quote

import typer

from patchbay_gateway.commands.options import (
    DEFAULT_MANAGEMENT_URL,
    DataDirOption,
    JsonOption,
    UrlOption,
)

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from patchbay_gateway.commands.client import ManagementClient

_PATH = "/v0/management/credentials"
_FILES = "/v0/management/auth-files"
# Reasons that the provider's own words do not explain.
_MEANT = {
    "NO_MATERIAL": "no key or token here; `patchbay doctor` names what is missing",
    "CONFIGURATION": "`disabled` in the configuration",
    "MANAGEMENT": "`patchbay credentials disable`",
    "EXPIRED": "its token has run out and waits for the refresh",
    "EXCLUDED_MODELS": "`excluded_models` in the configuration",
    "WEIGHT": "weight 0",
    "MAX_IN_FLIGHT": "as many requests as it may have",
}

IdArgument = Annotated[str, typer.Argument(metavar="ID", help="Credential id.")]
ModelOption = Annotated[
    str,
    typer.Option("--model", metavar="MODEL", help="Only this model, by either of its names."),
]


def register(app: typer.Typer) -> None:
    """Add the group `credentials`."""
    group = typer.Typer(no_args_is_help=True, help="The pool of credentials.")
    group.command("list")(list_)
    group.command()(show)
    group.command()(reset)
    group.command()(disable)
    group.command()(enable)
    group.command()(remove)
    app.add_typer(group, name="credentials")


def list_(
    *,
    provider: Annotated[
        str, typer.Option("--provider", metavar="NAME", help="Only of this provider.")
    ] = "",
    as_json: JsonOption = False,
    url: UrlOption = DEFAULT_MANAGEMENT_URL,
    data_dir: DataDirOption = None,
) -> None:
    """Show every credential: for each model ready, or why not and until when."""
    query = {"provider": provider} if provider else None
    client = _client(url, data_dir)
    found = client.get(_PATH, query)
    if as_json:
        typer.echo(json.dumps(found, indent=2))
    elif not found:
        of = f" of provider {provider!r}" if provider else ""
        typer.echo(f"No credentials{of} are configured.")
    else:
        _print(found, datetime.now(UTC))
        if any(c["degraded"] for c in found):
            typer.echo("Redis is away: this view may be old.", err=True)
    if not as_json:
        for file in _files(client):
            if file["used"] and not file["plugin"]:
                continue  # what is without effect in it is told by the log and `patchbay doctor`
            said = "" if file["used"] else "is not used: "
            typer.echo(f"auth file {file['file']} {said}{file['why']}", err=True)


def show(
    credential_id: IdArgument,
    *,
    as_json: JsonOption = False,
    url: UrlOption = DEFAULT_MANAGEMENT_URL,
    data_dir: DataDirOption = None,
) -> None:
    """Show one credential with its last errors, limits and refresh."""
    found = _client(url, data_dir).get(_one(credential_id))
    if as_json:
        typer.echo(json.dumps(found, indent=2))
    else:
        _describe(found, datetime.now(UTC))


def reset(
    credential_id: IdArgument,
    *,
    model: ModelOption = "",
    as_json: JsonOption = False,
    url: UrlOption = DEFAULT_MANAGEMENT_URL,
    data_dir: DataDirOption = None,
) -> None:
    """Forget cooldowns, backoff and last errors, for all schedulers at once."""
    query = {"model": model} if model else None
    _changed(_client(url, data_dir).post(_one(credential_id, "reset"), query), as_json=as_json)


def disable(
    credential_id: IdArgument,
    *,
    as_json: JsonOption = False,
    url: UrlOption = DEFAULT_MANAGEMENT_URL,
    data_dir: DataDirOption = None,
) -> None:
    """Take a credential out of use, durably; attempts under way go on."""
    _changed(_client(url, data_dir).post(_one(credential_id, "disable")), as_json=as_json)


def enable(
    credential_id: IdArgument,
    *,
    as_json: JsonOption = False,
    url: UrlOption = DEFAULT_MANAGEMENT_URL,
    data_dir: DataDirOption = None,
) -> None:
    """Take a credential back into use."""
    _changed(_client(url, data_dir).post(_one(credential_id, "enable")), as_json=as_json)


def remove(
    credential_id: IdArgument,
    *,
    as_json: JsonOption = False,
    url: UrlOption = DEFAULT_MANAGEMENT_URL,
    data_dir: DataDirOption = None,
) -> None:
    """Forget a credential that a login, a command or a plugin brought, tokens and all."""
    done = _client(url, data_dir).delete(_one(credential_id))
    typer.echo(json.dumps(done, indent=2) if as_json else f"Credential {credential_id} is gone.")


def _files(client: ManagementClient) -> Sequence[Mapping[str, Any]]:
    """Return what is told of auth files; nothing by a gateway that does not know the question."""
    from patchbay import errors  # noqa: PLC0415 - when it runs

    try:
        found: Sequence[Mapping[str, Any]] = client.get(_FILES)
    except errors.NotFound:
        return ()
    return found


def _one(credential_id: str, verb: str = "") -> str:
    return "/".join(part for part in (_PATH, quote(credential_id, safe=""), verb) if part)


def _client(url: str, data_dir: Path | None) -> ManagementClient:
    from patchbay_gateway.commands.client import connect  # noqa: PLC0415 - when it runs

    return connect(url, os.environ, data_dir)


def _changed(credential: Mapping[str, Any], *, as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps(credential, indent=2))
    else:
        _print([credential], datetime.now(UTC))
        if others := [id_ for id_ in credential.get("switched", ()) if id_ != credential["id"]]:
            typer.echo(f"The same file's others with it: {', '.join(others)}")


def _print(credentials: Sequence[Mapping[str, Any]], now: datetime) -> None:
    from rich.console import Console  # noqa: PLC0415 - only a table needs it
    from rich.table import Table  # noqa: PLC0415 - the same

    table = Table(box=None, pad_edge=False, header_style="bold")
    for title in ("provider", "credential", "model", "state", "until", "why", "refresh", "running"):
        table.add_column(title, overflow="fold")
    for credential in credentials:
        refresh = credential["refresh"]
        cap = credential["max_in_flight"]
        rows = credential["models"] or [
            {"model": "–", "state": "no model", "until": None, "reason": None, "last_error": None}
        ]
        for index, model in enumerate(rows):
            first = index == 0
            table.add_row(
                credential["provider"] if first else "",
                credential["id"] if first else "",
                model["model"],
                model["state"].replace("_", " "),
                _until(model["until"], now),
                _why(model),
                (refresh["state"] if refresh else "–") if first else "",
                f"{credential['in_flight']}{f' of {cap}' if cap else ''}" if first else "",
            )
    console = Console()
    if not console.is_terminal:
        console = Console(width=200)
    console.print(table)


def _describe(credential: Mapping[str, Any], now: datetime) -> None:
    _print([credential], now)
    lines = [
        (
            f"kind {credential['kind']}, version {credential['version']}, "
            f"plugin {credential['plugin']}, "
            f"priority {credential['priority']}, weight {credential['weight']}"
        ),
        f"attempts: {credential['succeeded']:,} succeeded, {credential['failed']:,} failed",
    ]
    if credential.get("source"):
        lines.append(f"from {credential['source']}, by plugin {credential['brought_by']}")
    if credential["disabled"]:
        lines.append(f"disabled by {credential['disabled_by']}")
    for limit in credential["rate_limits"]:
        left = "?" if limit["remaining"] is None else f"{limit['remaining']:,}"
        most = "?" if limit["limit"] is None else f"{limit['limit']:,}"
        after = "" if limit["reset_seconds"] is None else f", whole in {limit['reset_seconds']:g} s"
        lines.append(f"limit {limit['unit']}: {left} of {most} left{after}")
    if refresh := credential["refresh"]:
        lines.append(
            f"refresh {refresh['state']}: expires {refresh['expires_at'] or 'never'}, "
            f"refreshed {refresh['refreshed_at'] or 'never'}, next {refresh['next_at'] or '–'}"
        )
        if refresh["last_error"]:
            lines.append(f"refresh failed: {_said(refresh['last_error'])}")
    if credential["last_error"]:
        lines.append(f"last error: {_said(credential['last_error'])}")
    for line in lines:
        typer.echo(line)


def _until(text: str | None, now: datetime) -> str:
    if text is None:
        return ""
    seconds = max(0, round((datetime.fromisoformat(text) - now).total_seconds()))
    return f"{text} (in {seconds} s)"


def _why(model: Mapping[str, Any]) -> str:
    reason = model["reason"] or ""
    parts = [_MEANT.get(reason, reason)]
    if model["last_error"]:
        parts.append(_said(model["last_error"]))
    return ": ".join(part for part in parts if part)


def _said(error: Mapping[str, Any]) -> str:
    status = f"{error['http_status']} " if error["http_status"] else ""
    code = f"{error['code']}: " if error["code"] else ""
    return f"{status}{code}{error['message']}"
