"""
Settings of one process: where it listens, where the others are, where it keeps its files.

From flags and `PATCHBAY_…` variables, flags first. Not here: what the gateway serves (model.py).
"""

from __future__ import annotations

import ipaddress
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
)

from patchbay_gateway.kernel.config.fields import check_address
from patchbay_gateway.kernel.config.problems import ConfigError, Problem
from patchbay_gateway.kernel.config.quantities import parse_duration
from patchbay_gateway.kernel.config.secrets import environment_secret

if TYPE_CHECKING:
    from collections.abc import Mapping

    from patchbay.tls import Tls

Service = Literal["up", "edge", "scheduler", "executors", "usage"]

GRPC_PORTS: Final[Mapping[str, int]] = {
    "up": 7000,
    "edge": 7000,
    "scheduler": 7001,
    "usage": 7002,
    "executors": 7003,
}
HEALTH_PORTS: Final[Mapping[str, int]] = {
    "up": 8081,
    "edge": 8081,
    "scheduler": 9101,
    "usage": 9102,
    "executors": 9103,
}

# Understood without our prefix because every platform sets them so.
_PLAIN: Final = {"redis_url": "REDIS_URL", "log_level": "LOG_LEVEL", "log_format": "LOG_FORMAT"}
_SECRET: Final = frozenset({"redis_url"})


def _seconds(value: object) -> object:
    """A test sets PATCHBAY_LEASE_TTL=1.5; people write 1500ms."""
    if isinstance(value, str):
        try:
            return float(value)
        except ValueError:
            return parse_duration(value)
    return value


Seconds = Annotated[float, BeforeValidator(_seconds), Field(gt=0)]
Port = Annotated[int, Field(ge=0, le=65535)]
OptionalAddress = Annotated[str, AfterValidator(lambda v: check_address(v) if v else v)]


def _check_addresses(value: str) -> str:
    """Several addresses with commas: replicas without a name in front of them."""
    return ",".join(check_address(part.strip()) for part in value.split(",")) if value else value


Addresses = Annotated[str, AfterValidator(_check_addresses)]


def _check_name_servers(value: str) -> str:
    for part in _check_addresses(value).split(",") if value else ():
        host = part.rpartition(":")[0].strip("[]")
        try:
            ipaddress.ip_address(host)
        except ValueError:
            raise ValueError(f"{host!r} is no IP address; a name server has no name") from None
    return _check_addresses(value)


NameServers = Annotated[str, AfterValidator(_check_name_servers)]


def default_data_dir(env: Mapping[str, str]) -> Path:
    """Return where a user's programs keep data: XDG_DATA_HOME, else ~/.local/share."""
    home = env.get("XDG_DATA_HOME") or Path(env.get("HOME") or Path.home()) / ".local" / "share"
    return Path(home) / "patchbay"


class ProcessSettings(BaseModel):
    """Settings of one process; every field is also `PATCHBAY_<FIELD>`."""

    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)

    service: Service = "up"
    """Which verb started the process."""
    installation: str = Field(default="default", pattern=r"^[A-Za-z0-9._-]{1,64}$")
    """Namespace of all Redis keys; installations may share a Redis."""
    config_path: Path | None = None
    """The configuration file, watched by its publisher."""
    redis_url: str | None = Field(default=None, repr=False)
    """redis://, rediss:// or unix://; None makes `up` start a Valkey of its own."""
    data_dir: Path
    """Keys, write-ahead files, outbox, ledger."""
    host: str = "127.0.0.1"
    """Address to listen on."""
    port: Port = 8080
    """Client HTTP."""
    management_port: Port = 8081
    """Management HTTP of the edge."""
    grpc_port: Port = 7000
    """gRPC of the service."""
    health_port: Port = 8081
    """Health and metrics of a service without other HTTP."""
    scheduler_address: Addresses = ""
    """host:port, several with commas; empty: in process."""
    usage_address: OptionalAddress = ""
    """host:port; empty: in process."""
    executors_address: Addresses = ""
    """host:port of the built-in executors, several with commas; empty: in process."""
    name_servers: NameServers = ""
    """Name servers by address, `host:port`, several with commas; empty: those of resolv.conf. For the
    addresses of schedulers, executors and plugins."""
    tls_dir: Path | None = None
    """Certificates for gRPC between services and plugins: tls.crt, tls.key, ca.crt; None: plain HTTP/2."""
    tls_name: str = Field(default="patchbay", min_length=1, max_length=253)
    """DNS name that all of these certificates carry."""
    advertise_address: OptionalAddress = ""
    """host:port at which plugins reach this process."""
    drain: Seconds = 25.0
    """Seconds that open streams of an edge may go on when it is told to end; grant more until SIGKILL."""
    snapshot_from: Literal["file", "operator"] = "file"
    """Who publishes what services run on: schedulers, from the file; or an operator in Kubernetes, where
    schedulers read credentials from Secrets."""
    plugins: tuple[str, ...] = ()
    """Built-ins that the executors service serves; empty means all."""
    environment_models: dict[str, tuple[str, ...]] = {}
    """Provider of the environment → its models, where `up` was told them by the provider."""
    log_format: Literal["json", "text"] = "text"
    """Form of log lines."""
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    """Least severe line that is written."""
    workers: int = Field(default=1, ge=1, le=64)
    """Data processes of `up`."""
    lease_ttl: Seconds = 60.0
    """Seconds after which a lease that nobody renews has expired."""
    lease_grace: Seconds = 30.0
    """Seconds after expiry before an attempt counts as lost."""
    renew_interval: Seconds = 15.0
    """Seconds between renewals by an edge."""
    refresh_timeout: Seconds = 60.0
    """Seconds that an auth provider gets for one refresh."""
    credentials_dir: Path | None = None
    """Durable records of credentials, shared by the schedulers of a machine; default in `data_dir`."""

    @property
    def tls(self) -> Tls | None:
        """
        Return the certificates of this process.

        Raises:
            FailedPrecondition: A file is missing or cannot be read.
        """
        if self.tls_dir is None:
            return None
        from patchbay.tls import Tls  # noqa: PLC0415 - gRPC is slow to import, and few processes need it

        return Tls(self.tls_dir, self.tls_name)

    @property
    def loopback(self) -> bool:
        """True when only this machine can reach the process."""
        return is_loopback(self.host)

    @property
    def grpc_listen(self) -> str:
        """Where the service's gRPC listens, `host:port`, an IPv6 host in brackets."""
        bare = ":" in self.host and not self.host.startswith("[")
        return f"[{self.host}]:{self.grpc_port}" if bare else f"{self.host}:{self.grpc_port}"

    @classmethod
    def load(
        cls,
        service: Service,
        env: Mapping[str, str] | None = None,
        flags: Mapping[str, Any] | None = None,
    ) -> ProcessSettings:
        """
        Return the settings of a process.

        Args:
            service: Decides default ports, and the address: `up` listens on loopback, the services
                on all.
            env: The environment; None means the process's.
            flags: Field → value of the command line; None values were not given.

        Raises:
            ConfigError: All that is wrong.
        """
        env = os.environ if env is None else env
        values: dict[str, Any] = {
            "service": service,
            "host": "127.0.0.1" if service == "up" else "0.0.0.0",  # noqa: S104 - a container's
            "grpc_port": GRPC_PORTS[service],
            "health_port": HEALTH_PORTS[service],
            "log_format": "text" if service == "up" else "json",
            "data_dir": default_data_dir(env),
        }
        sources: dict[str, str] = {}
        for field in cls.model_fields:
            # PATCHBAY_PLUGINS is the list of the configuration file, not of what is served.
            if field in {"service", "config_path", "plugins", "environment_models"}:
                continue
            for name in (_PLAIN.get(field), f"PATCHBAY_{field.upper()}"):
                if name and (found := _variable(name, field, env)):
                    values[field] = found
                    sources[field] = name
        for field, value in (flags or {}).items():
            if value is not None:
                values[field] = value
                sources[field] = f"--{field.replace('_', '-')}"
        for field in ("log_level", "log_format"):
            values[field] = str(values.get(field, "info")).lower()
        if values["log_level"] == "warn":
            values["log_level"] = "warning"
        try:
            settings = cls.model_validate(values)
        except ValidationError as error:
            problems = []
            for e in error.errors(include_url=False):
                field = str(e["loc"][0]) if e["loc"] else ""
                message = e["msg"].removeprefix("Value error, ").removeprefix("Input ")
                problems.append(Problem("", message, source=sources.get(field, field)))
            raise ConfigError(problems) from error
        if settings.renew_interval >= settings.lease_ttl:
            message = "must be shorter than the lease, or every lease expires between renewals"
            raise ConfigError([Problem("", message, source="PATCHBAY_RENEW_INTERVAL")])
        data_dir = settings.data_dir.expanduser().absolute()
        credentials_dir = settings.credentials_dir or data_dir / "credentials"
        return settings.model_copy(
            update={
                "data_dir": data_dir,
                "credentials_dir": credentials_dir.expanduser().absolute(),
            }
        )


def _variable(name: str, field: str, env: Mapping[str, str]) -> Any:
    """Return what the environment says about a setting; None when nothing."""
    if field in _SECRET:
        return environment_secret(name, env)
    value = env.get(name)
    if not value:
        return None
    if field.endswith("port") and "://" in value:
        # Kubernetes derives PATCHBAY_PORT=tcp://… from a Service called `patchbay`.
        return None
    return value


def is_loopback(host: str) -> bool:
    """True if *host* can be reached from this machine alone."""
    return host in {"localhost", "::1", "[::1]"} or host.startswith("127.")
