"""
The program `patchbay`: it gathers the verbs of whatever is installed.

A distribution adds verbs by an entry point of group `patchbay.commands` that names a function
`register(app)`. An error of `patchbay.errors` ends a verb with its sentence and status 1, never with a
traceback; wrong use ends with 2. A group of verbs that several distributions fill is found by `group`.
Not here: the verbs, but for `version`; those for authors of plugins (`patchbay.commands`).
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import sys
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer
from typer.core import TyperGroup

from patchbay.commands import plugins

if TYPE_CHECKING:
    from collections.abc import Iterable

ENTRY_POINTS: Final = "patchbay.commands"
DISTRIBUTIONS: Final = ("patchbay-gateway", "patchbay-operator", "patchbay-sdk")


class Program(TyperGroup):
    """Turns errors that a user can mend into a sentence and exit status 1."""

    def invoke(self, ctx: Any) -> Any:
        """Run the verb."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            raise typer.Exit(130) from None
        except Exception as error:
            # Imported here because it brings gRPC along, which `--help` has no use for.
            from patchbay.errors import Internal, PatchbayError  # noqa: PLC0415 - see above

            if not isinstance(error, PatchbayError) or isinstance(error, Internal):
                raise
            typer.echo(f"patchbay: {error.message}", err=True)
            raise typer.Exit(1) from None


def build(entry_points: Iterable[importlib.metadata.EntryPoint] | None = None) -> typer.Typer:
    """
    Return the program with all verbs.

    Args:
        entry_points: Where verbs come from; None means the installed distributions.
    """
    app = typer.Typer(
        name="patchbay",
        cls=Program,
        help="Patchbay, a gateway for language-model APIs whose every moving part is a plugin.",
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )

    @app.callback()
    def program() -> None:
        """Patchbay, a gateway for language-model APIs whose every moving part is a plugin."""

    app.command()(version)
    plugins.register(group(app, "plugin", "Plugins: make, serve, check and declare them."))
    if entry_points is None:
        entry_points = importlib.metadata.entry_points(group=ENTRY_POINTS)
    for entry in sorted(entry_points, key=lambda e: e.name):
        try:
            register = entry.load()
        except ImportError as error:
            # One broken distribution must not take the verbs of the others away.
            typer.echo(f"patchbay: no commands of {entry.value}: {error}", err=True)
            continue
        register(app)
    return app


def group(app: typer.Typer, name: str, text: str) -> typer.Typer:
    """Return the group of verbs *name* of *app*, made with the help *text* if nobody did before."""
    for known in app.registered_groups:
        if known.name == name and known.typer_instance is not None:
            return known.typer_instance
    made = typer.Typer(no_args_is_help=True, help=text)
    app.add_typer(made, name=name)
    return made


def version(
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Show the versions of what is installed."""
    found = {}
    for name in DISTRIBUTIONS:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    found["python"] = platform.python_version()
    if as_json:
        typer.echo(json.dumps(found, indent=2))
        return
    for name, number in found.items():
        typer.echo(f"{name} {number}")


def main() -> None:
    """Run the program; the console script."""
    # gRPC logs every connection that a peer closes; it reads this when it is imported, with the verbs.
    os.environ.setdefault("GRPC_VERBOSITY", "ERROR")
    try:
        build()()
    except BrokenPipeError:
        sys.stderr.close()
        sys.exit(1)
