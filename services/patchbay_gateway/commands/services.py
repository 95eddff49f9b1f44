"""
Verbs that run something: `up`, and each service alone.

A service's module has `run(config, settings)`, which returns the exit status after a drain. Not here:
what they do (embedded.py and each service's main.py).
"""

from __future__ import annotations

import errno
import gc
import importlib
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from patchbay_gateway.commands.options import (
    ConfigOption,
    DataDirOption,
    HostOption,
    ManagementPortOption,
    PortOption,
    RedisOption,
)
from patchbay_gateway.commands.ports import why_not

if TYPE_CHECKING:
    from collections.abc import Callable

    from patchbay_gateway.kernel.config.settings import Service

    Starter = Callable[[Service, Path | None, dict[str, Any]], int]

DEFAULT_FILE = Path("patchbay.yaml")

GrpcPortOption = Annotated[
    int | None, typer.Option("--grpc-port", min=0, max=65535, help="Port of its gRPC server.")
]
HealthPortOption = Annotated[
    int | None,
    typer.Option("--health-port", min=0, max=65535, help="Port of /livez, /readyz and /metrics."),
]

# Setting → flag, of the ports that a service listens on.
_HTTP = {"port": "--port", "management_port": "--management-port"}
_GRPC = {"grpc_port": "--grpc-port", "health_port": "--health-port"}

# Which extra brings what a service imports (pyproject.toml).
_EXTRAS = {
    "up": "up",
    "edge": "edge",
    "scheduler": "scheduler",
    "executors": "executors",
    "usage": "usage",
}


def register(app: typer.Typer) -> None:
    """Add the verbs, all but `usage`, which is a group of its own (reports.py)."""
    app.command()(up)
    app.command()(edge)
    app.command()(scheduler)
    app.command()(executors)


def up(
    context: typer.Context,
    *,
    config: ConfigOption = None,
    host: HostOption = None,
    port: PortOption = None,
    management_port: ManagementPortOption = None,
    workers: Annotated[
        int | None, typer.Option("--workers", min=1, max=64, help="Data processes.")
    ] = None,
    redis_url: RedisOption = None,
    data_dir: DataDirOption = None,
) -> None:
    """
    Run everything on this machine.

    Listens on 127.0.0.1:8080 and, for management, on 8081. Without --redis-url it starts a Valkey of its
    own. Reads patchbay.yaml of the working directory when there is one. Ctrl-C drains; twice cuts.
    """
    if config is None and DEFAULT_FILE.is_file():
        config = DEFAULT_FILE
        typer.echo(f"Using {DEFAULT_FILE} of this directory.", err=True)
    flags = {
        "host": host,
        "port": port,
        "management_port": management_port,
        "workers": workers,
        "redis_url": redis_url,
        "data_dir": data_dir,
    }
    finish(context, "up", config, flags)


def edge(
    context: typer.Context,
    *,
    config: ConfigOption = None,
    host: HostOption = None,
    port: PortOption = None,
    management_port: ManagementPortOption = None,
    grpc_port: GrpcPortOption = None,
    redis_url: RedisOption = None,
    data_dir: DataDirOption = None,
) -> None:
    """
    Run the edge: the client API on 8080 and management on 8081.

    It finds the others by PATCHBAY_SCHEDULER_ADDRESS, PATCHBAY_USAGE_ADDRESS and
    PATCHBAY_EXECUTORS_ADDRESS.
    """
    flags = {
        "host": host,
        "port": port,
        "management_port": management_port,
        "grpc_port": grpc_port,
        "redis_url": redis_url,
        "data_dir": data_dir,
    }
    finish(context, "edge", config, flags)


def scheduler(
    context: typer.Context,
    *,
    config: ConfigOption = None,
    host: HostOption = None,
    grpc_port: GrpcPortOption = None,
    health_port: HealthPortOption = None,
    redis_url: RedisOption = None,
    data_dir: DataDirOption = None,
) -> None:
    """Run a scheduler: credentials, selection, leases and the journal; gRPC on 7001."""
    flags = {
        "host": host,
        "grpc_port": grpc_port,
        "health_port": health_port,
        "redis_url": redis_url,
        "data_dir": data_dir,
    }
    finish(context, "scheduler", config, flags)


def executors(
    context: typer.Context,
    *,
    plugins: Annotated[
        str | None,
        typer.Option("--plugins", metavar="ID,ID…", help="Built-ins to serve; all when not given."),
    ] = None,
    config: ConfigOption = None,
    host: HostOption = None,
    grpc_port: GrpcPortOption = None,
    health_port: HealthPortOption = None,
    data_dir: DataDirOption = None,
) -> None:
    """Run the built-in executors: every call to a provider; gRPC on 7003."""
    chosen = None
    if plugins is not None:
        from patchbay_gateway.kernel.config import BUILTIN_PLUGINS  # noqa: PLC0415 - when it runs

        chosen = tuple(p.strip() for p in plugins.split(",") if p.strip())
        if unknown := sorted(set(chosen) - set(BUILTIN_PLUGINS)):
            known = ", ".join(BUILTIN_PLUGINS)
            raise typer.BadParameter(f"no built-in {', '.join(unknown)}; there are {known}")
    flags = {
        "plugins": chosen,
        "host": host,
        "grpc_port": grpc_port,
        "health_port": health_port,
        "data_dir": data_dir,
    }
    finish(context, "executors", config, flags)


def finish(
    context: typer.Context, service: Service, config: Path | None, flags: dict[str, Any]
) -> NoReturn:
    """Start *service*, by the context's own starter if it has one, and exit with its status."""
    starter: Starter = context.obj or start
    raise typer.Exit(starter(service, config, flags))


def start(
    service: Service,
    config: Path | None,
    flags: dict[str, Any],
    *,
    find: Callable[[str], Any] = importlib.import_module,
) -> int:
    """
    Run *service* until it has drained and return its exit status.

    Args:
        service: Which.
        config: Its file; None: none.
        flags: Setting → value of the command line, None where not given.
        find: Imports a module by name.

    Raises:
        ConfigError: File, environment or flags are wrong.
        FailedPrecondition: Its extra is not installed, or a port is taken.
    """
    from patchbay.errors import FailedPrecondition  # noqa: PLC0415 - loads gRPC, only to run
    from patchbay_gateway.commands.discovery import discover_models  # noqa: PLC0415 - the same
    from patchbay_gateway.kernel import logs  # noqa: PLC0415 - the same
    from patchbay_gateway.kernel.config import (  # noqa: PLC0415 - the same
        ProcessSettings,
        in_clear,
        load_for,
        unserved,
    )

    if config is not None:
        flags = {**flags, "config_path": config.expanduser().absolute()}
    if service == "up":
        models = discover_models(os.environ, lambda text: typer.echo(text, err=True))
        flags = {**flags, "environment_models": models or None}
    settings = ProcessSettings.load(service, os.environ, flags)
    loaded = load_for(settings, os.environ)
    idle, clear = unserved(loaded), in_clear(loaded)
    if idle or clear:
        logs.configure(settings.log_format, settings.log_level)
        log = logs.get_logger("configuration")
        if idle:
            log.warning("keys that do nothing in this release", keys=idle)
        if clear:
            log.warning("passwords of proxies lie in clear in Redis and on disk", keys=clear)
    name = "embedded" if service == "up" else f"{service}.main"
    gc.disable()  # nothing that modules make is garbage, and looking for it is a tenth of the start
    try:
        module = find(f"patchbay_gateway.{name}")
    except ModuleNotFoundError as error:
        if error.name is None or error.name.startswith("patchbay_gateway"):
            raise
        extra = _EXTRAS[service]
        raise FailedPrecondition(
            f"{error.name} is not installed: pip install 'patchbay-gateway[{extra}]'"
        ) from error
    finally:
        gc.enable()
    ports = _HTTP if service in {"up", "edge"} else _GRPC
    for field, flag in ports.items():
        if why := why_not(settings.host, getattr(settings, field)):
            raise FailedPrecondition(
                f"{why}; stop what listens there, or choose another with {flag}"
            )
    try:
        status: int = module.run(loaded, settings)
    except OSError as error:
        if error.errno in {errno.EACCES, errno.EROFS, errno.ENOSPC} and error.filename:
            raise FailedPrecondition(
                f"cannot write {error.filename}: {error.strerror}; choose another place with --data-dir"
            ) from error
        raise
    return status
