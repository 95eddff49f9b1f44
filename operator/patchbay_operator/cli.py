"""The program `patchbay-operator`. Not here: what it runs (run.py)."""

from __future__ import annotations

import os
import sys
from typing import Annotated

import typer

from patchbay.errors import PatchbayError
from patchbay_operator import __version__

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    help="Turns Patchbay's custom resources into workloads and configuration.",
)


@app.command()
def run() -> None:
    """Run the operator; its settings are environment variables that the chart sets."""
    from patchbay_operator.run import run as serve  # noqa: PLC0415 - `version` needs none of it

    try:
        status = serve(os.environ)
    except PatchbayError as error:
        typer.echo(error.message, err=True)
        raise typer.Exit(1) from error
    raise typer.Exit(status)


@app.command()
def make_secrets(
    *,
    namespace: Annotated[str, typer.Option(help="Namespace of the Secrets.")],
    roots: Annotated[str, typer.Option(help="Name of the Secret with the root keys.")],
    client_key: Annotated[str, typer.Option(help="Name of the Secret with the first client key.")],
    management_key: Annotated[str, typer.Option(help="Name of that with the management key.")],
    executor_keys: Annotated[str, typer.Option(help="Name of that with keys of built-ins.")],
    redis: Annotated[str, typer.Option(help="Name of that of our own Redis.")] = "",
    redis_host: Annotated[str, typer.Option(help="Host of our own Redis.")] = "",
    yours: Annotated[list[str] | None, typer.Option(help="One that is there; not made.")] = None,
) -> None:
    """Make each key that is missing, once; the chart's first step."""
    import asyncio  # noqa: PLC0415 - of this verb alone

    from patchbay_operator.cluster import LightkubeApi  # noqa: PLC0415 - the same
    from patchbay_operator.making import Names  # noqa: PLC0415 - the same
    from patchbay_operator.making import make_secrets as make  # noqa: PLC0415 - the same

    own = frozenset(yours or ())
    names = Names(roots, client_key, management_key, executor_keys, redis, redis_host, own)

    async def body() -> None:
        api = LightkubeApi(namespace)
        try:
            await make(api, names)
        finally:
            await api.aclose()

    try:
        asyncio.run(body())
    except PatchbayError as error:
        typer.echo(error.message, err=True)
        raise typer.Exit(1) from error


@app.command()
def version() -> None:
    """Print the version."""
    typer.echo(__version__)


@app.command()
def crds(
    directory: Annotated[str, typer.Argument(help="Directory of the chart's templates.")],
) -> None:
    """Write the definitions of the custom resources as templates of the chart."""
    from patchbay_operator.api.crds import main as write  # noqa: PLC0415 - the same

    raise typer.Exit(write([directory]))


def main() -> None:
    """Entry point."""
    sys.exit(app())
