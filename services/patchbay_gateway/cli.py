"""
The gateway's verbs of the program `patchbay`.

Registering imports no service: a verb imports what it runs when it runs. Not here: the verbs themselves
(commands/).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from patchbay_gateway.commands import (
    configuration,
    credentials,
    diagnosis,
    keys,
    login,
    models,
    plugins,
    reports,
    services,
)

if TYPE_CHECKING:
    import typer


def register(app: typer.Typer) -> None:
    """Add the gateway's verbs to *app* (entry point of group `patchbay.commands`)."""
    services.register(app)
    configuration.register(app)
    reports.register(app)
    credentials.register(app)
    keys.register(app)
    login.register(app)
    models.register(app)
    diagnosis.register(app)
    plugins.register(app)
