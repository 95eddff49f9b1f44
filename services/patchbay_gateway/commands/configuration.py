"""
`patchbay config check` and `patchbay config schema`.

Not here: the model and its loader (kernel/config).
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from patchbay_gateway.commands.options import JsonOption

if TYPE_CHECKING:
    from patchbay_gateway.kernel.config import Config, Problem


_IN_CLEAR = (
    "user and password lie in clear in Redis and in the data directories; "
    "write ${PROXY_AUTH}@ and give the executors that variable"
)


def register(app: typer.Typer) -> None:
    """Add the group `config`."""
    group = typer.Typer(help="The configuration file.", no_args_is_help=True)
    group.command()(check)
    group.command()(schema)
    app.add_typer(group, name="config")


def check(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="The file to check.")],
    as_json: JsonOption = False,
    secrets: Annotated[
        bool, typer.Option("--secrets", help="Demand that every key can be read here and now.")
    ] = False,
) -> None:
    """
    Tell everything that is wrong with a configuration file and its prices; status 1 if anything is.

    A key that this release does nothing with is a warning, and so is a password in the URL of a proxy.
    """
    from patchbay_gateway.kernel import config as configuration  # noqa: PLC0415 - when it runs

    problems: list[configuration.Problem] = []
    loaded = configuration.Config()
    try:
        loaded = configuration.load(file, os.environ)
    except configuration.ConfigError as error:
        problems.extend(error.problems)
    problems.extend(_wrong_prices(file, loaded))
    if secrets:
        problems.extend(configuration.missing_secrets(loaded, os.environ))
    idle, clear = configuration.unserved(loaded), configuration.in_clear(loaded)
    if not as_json:
        for path in idle:
            typer.echo(f"{file}: warning: {path}: this release does nothing with it", err=True)
        for path in clear:
            typer.echo(f"{file}: warning: {path}: {_IN_CLEAR}", err=True)
    if as_json:
        found = [
            {"source": p.source, "line": p.line, "path": p.path, "message": p.message}
            for p in problems
        ]
        told = {
            "ok": not problems,
            "problems": found,
            "warnings": list(idle),
            "in_clear": list(clear),
        }
        typer.echo(json.dumps(told, indent=2))
    elif problems:
        for problem in problems:
            typer.echo(str(problem), err=True)
    else:
        parts = (
            (len(loaded.providers), "provider"),
            (sum(len(p.credentials) for p in loaded.providers), "credential"),
            (len(loaded.routes), "route"),
            (len(loaded.plugins), "plugin"),
            (len(loaded.client_keys), "client key"),
        )
        counted = ", ".join(f"{n} {what}{'' if n == 1 else 's'}" for n, what in parts)
        typer.echo(f"{file}: fine: {counted}")
    raise typer.Exit(1 if problems else 0)


def _wrong_prices(file: Path, config: Config) -> list[Problem]:
    """Return why the prices that *config* names cannot be used; a gateway would not start with them."""
    from patchbay.errors import InvalidRequest  # noqa: PLC0415 - when it runs
    from patchbay_gateway.kernel.config import Problem  # noqa: PLC0415 - the same
    from patchbay_gateway.plugins.prices import load_prices  # noqa: PLC0415 - the same

    if config.usage.prices is None:
        return []
    try:
        load_prices(config.usage.prices)
    except InvalidRequest as error:
        return [Problem("usage.prices", error.message, source=str(file))]
    return []


def schema() -> None:
    """Print the JSON Schema of the configuration file, for editors and other tools."""
    from patchbay_gateway.kernel.config import schema as schemas  # noqa: PLC0415 - when it runs

    typer.echo(json.dumps(schemas.json_schema(), indent=2))
