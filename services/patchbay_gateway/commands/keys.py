"""
`patchbay keys`: client keys, wherever they are declared.

A key lives in one of two places: a configuration file (`--config`), or a cluster, as a ClientKey
(`--kubernetes`, `--namespace`, `--context`). Without a place `list` asks a running gateway, which knows both.
A plain key is printed once, by `create`. Not here: the file (keys_file.py), the cluster (keys_cluster.py).
"""

from __future__ import annotations

import dataclasses
import json
import os
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, Protocol

import typer

from patchbay_gateway.commands.options import (
    DEFAULT_MANAGEMENT_URL,
    ConfigOption,
    DataDirOption,
    JsonOption,
    UrlOption,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

PATH: Final = "/v0/management/keys"

NameArgument = Annotated[str, typer.Argument(metavar="NAME", help="Name of the key.")]
KubernetesOption = Annotated[
    bool,
    typer.Option("--kubernetes", "-k", help="In the cluster and namespace that kubectl uses."),
]
NamespaceOption = Annotated[
    str, typer.Option("--namespace", "-n", metavar="NAME", help="In this namespace of a cluster.")
]
ContextOption = Annotated[
    str, typer.Option("--context", metavar="NAME", help="In the cluster of this kubectl context.")
]
TimeoutOption = Annotated[
    float,
    typer.Option(
        "--timeout", min=0.0, metavar="SECONDS", help="Longest wait for the gateway to follow."
    ),
]
PATIENCE: Final = 30.0


@dataclasses.dataclass(frozen=True, slots=True)
class Listed:
    """One key as it is listed; never its material."""

    name: str
    models: Sequence[str]
    tenant: str
    state: str
    """`ready`, or one word for what it is not."""
    message: str = ""
    """What to do, where it is not ready."""
    created: str | None = None
    """RFC 3339; None where nobody knows."""
    source: str = ""
    """Where its material is."""


@dataclasses.dataclass(frozen=True, slots=True)
class Created:
    """A new key."""

    name: str
    key: str | None
    """None: it is somebody's own, or may not be read."""
    source: str
    accepted: bool
    """Whether it is known to open the gateway."""
    note: str = ""
    """What a person should know besides."""


@dataclasses.dataclass(frozen=True, slots=True)
class Revoked:
    """A key that opens nothing any more."""

    name: str
    stopped: str | None
    """When it was seen to have stopped working, RFC 3339; None: nobody could tell."""
    note: str = ""


@dataclasses.dataclass(frozen=True, slots=True)
class Wish:
    """What a new key shall be."""

    name: str
    models: Sequence[str] = ("*",)
    tenant: str = "default"
    secret: str = ""
    """`name` or `name/key` of a Secret that holds it; empty: one is generated."""


class Place(Protocol):
    """Where keys are declared. All methods raise PatchbayError with a sentence that says what to do."""

    def list(self) -> Sequence[Listed]:
        """Return all keys, by name."""
        ...

    def create(self, wish: Wish) -> Created:
        """Declare a key."""
        ...

    def revoke(self, name: str) -> Revoked:
        """Take a key back."""
        ...


def register(app: typer.Typer) -> None:
    """Add the group `keys`."""
    group = typer.Typer(no_args_is_help=True, help="Keys of clients.")
    group.command("list")(list_)
    group.command()(create)
    group.command()(revoke)
    app.add_typer(group, name="keys")


def list_(
    *,
    config: ConfigOption = None,
    kubernetes: KubernetesOption = False,
    namespace: NamespaceOption = "",
    context: ContextOption = "",
    as_json: JsonOption = False,
    url: UrlOption = DEFAULT_MANAGEMENT_URL,
    data_dir: DataDirOption = None,
) -> None:
    """Show the keys of a running gateway, or those of a file or cluster; never what they are."""
    place = _place(config, kubernetes, namespace, context, url, data_dir, PATIENCE)
    found = place.list() if place is not None else _of_gateway(url, data_dir)
    if as_json:
        typer.echo(json.dumps([dataclasses.asdict(key) for key in found], indent=2))
    elif not found:
        typer.echo("There are no client keys.")
    else:
        _print(found, datetime.now(UTC))


def create(
    name: NameArgument,
    *,
    model: Annotated[
        list[str] | None,
        typer.Option(
            "--model", metavar="GLOB", help="A model that it may use; repeat. Default: *."
        ),
    ] = None,
    tenant: Annotated[
        str, typer.Option("--tenant", metavar="NAME", help="Whom its usage is counted for.")
    ] = "default",
    secret: Annotated[
        str,
        typer.Option(
            "--secret", metavar="NAME[/KEY]", help="A Secret that holds the key; none is generated."
        ),
    ] = "",
    config: ConfigOption = None,
    kubernetes: KubernetesOption = False,
    namespace: NamespaceOption = "",
    context: ContextOption = "",
    timeout: TimeoutOption = PATIENCE,
    as_json: JsonOption = False,
    url: UrlOption = DEFAULT_MANAGEMENT_URL,
    data_dir: DataDirOption = None,
) -> None:
    """Make a key and print it, once."""
    place = _needed(_place(config, kubernetes, namespace, context, url, data_dir, timeout))
    made = place.create(Wish(name, tuple(model or ("*",)), tenant, secret))
    if as_json:
        typer.echo(json.dumps(dataclasses.asdict(made), indent=2))
    elif made.key is not None:
        typer.echo(made.key)
    state = "The gateway accepts it." if made.accepted else ""
    said = [f"{made.name}: {made.source}.", state, made.note]
    typer.echo(" ".join(part for part in said if part), err=True)


def revoke(
    name: NameArgument,
    *,
    config: ConfigOption = None,
    kubernetes: KubernetesOption = False,
    namespace: NamespaceOption = "",
    context: ContextOption = "",
    timeout: TimeoutOption = PATIENCE,
    as_json: JsonOption = False,
    url: UrlOption = DEFAULT_MANAGEMENT_URL,
    data_dir: DataDirOption = None,
) -> None:
    """Take a key back, and say when it stopped working."""
    place = _needed(_place(config, kubernetes, namespace, context, url, data_dir, timeout))
    gone = place.revoke(name)
    if as_json:
        typer.echo(json.dumps(dataclasses.asdict(gone), indent=2))
        return
    when = f"stopped working at {gone.stopped}" if gone.stopped else "is taken back"
    typer.echo(f"{gone.name} {when}." + (f" {gone.note}" if gone.note else ""))


def _place(
    config: Path | None,
    kubernetes: bool,
    namespace: str,
    context: str,
    url: str,
    data_dir: Path | None,
    patience: float,
) -> Place | None:
    """Return the place that the options name; a cluster that is named wins over PATCHBAY_CONFIG."""
    if kubernetes or namespace or context:
        if config is not None and not os.environ.get("PATCHBAY_CONFIG"):
            raise typer.BadParameter("--config and a cluster exclude each other; name one place")
        from patchbay_gateway.commands.keys_cluster import ClusterKeys  # noqa: PLC0415 - when it runs

        return ClusterKeys.connect(namespace=namespace, context=context, patience=patience)
    if config is not None:
        from patchbay_gateway.commands.keys_file import FileKeys  # noqa: PLC0415 - the same

        return FileKeys(
            config,
            os.environ,
            data_dir,
            lambda: [k.name for k in _of_gateway(url, data_dir)],
            patience=patience,
        )
    return None


def _needed(place: Place | None) -> Place:
    if place is None:
        raise typer.BadParameter(
            "say where the key is declared: --config FILE for a configuration file, --kubernetes or "
            "--namespace NAME for a cluster (`patchbay keys list` shows what a running gateway knows)"
        )
    return place


def _of_gateway(url: str, data_dir: Path | None) -> list[Listed]:
    from patchbay_gateway.commands.client import connect  # noqa: PLC0415 - when it runs

    found = connect(url, os.environ, data_dir).get(PATH)
    return [Listed(key["name"], key["models"], key["tenant"], "ready") for key in found]


def _print(keys: Sequence[Listed], now: datetime) -> None:
    from rich.console import Console  # noqa: PLC0415 - only a table needs it
    from rich.table import Table  # noqa: PLC0415 - the same

    table = Table(box=None, pad_edge=False, header_style="bold")
    for title in ("name", "tenant", "models", "age", "state", "where", ""):
        table.add_column(title, overflow="fold")
    for key in keys:
        row: list[Any] = [key.name, key.tenant, ", ".join(key.models), _age(key.created, now)]
        table.add_row(*row, key.state, key.source, key.message)
    console = Console()
    if not console.is_terminal:
        console = Console(width=200)
    console.print(table)


def _age(created: str | None, now: datetime) -> str:
    if created is None:
        return "–"
    seconds = max(0, int((now - datetime.fromisoformat(created)).total_seconds()))
    for unit, name in ((86_400, "d"), (3_600, "h"), (60, "m")):
        if seconds >= unit:
            return f"{seconds // unit}{name}"
    return f"{seconds}s"
