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
