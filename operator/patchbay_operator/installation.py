"""
The installation that an operator serves: names, addresses and rules that hold for all of its plugins.

Values of the chart, told in `PATCHBAY_OPERATOR_…` variables. Not here: what one resource says.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, Final

import orjson

if TYPE_CHECKING:
    from collections.abc import Mapping

_PREFIX: Final = "PATCHBAY_OPERATOR_"

PRIVATE_RANGES: Final = (
    *("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16"),
    *("100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16"),
)
PRIVATE_RANGES_6: Final = ("::1/128", "fc00::/7", "fe80::/10")


@dataclass(frozen=True, slots=True)
class Installation:
    """One release of the chart in one namespace."""

    namespace: str
    name: str = "patchbay"
    """Name of the release: `app.kubernetes.io/instance` of everything."""
    cluster_domain: str = "cluster.local"
    edge_callbacks: str = "patchbay-edge:7000"
    """Where plugins call the gateway outside a request (`PATCHBAY_HOST_ADDRESS`)."""
    scheduler_service_account: str = "patchbay-scheduler"
    """Whom the operator lets read the Secrets of credentials."""
    network_policies: bool = True
    """Whether each plugin gets a NetworkPolicy."""
    deny_ranges: tuple[str, ...] = ()
    """Ranges that no plugin reaches, besides private ones and the metadata service."""
    allow_ranges: tuple[str, ...] = ()
    """Ranges that every plugin reaches on any port: a provider within the network, a proxy."""
    cilium: bool = False
    """Whether Cilium's policies hold each plugin to its egress hosts."""
    image_pull_secrets: tuple[str, ...] = ()
    """Secrets for registries, of every plugin."""
    tls_secret: str = ""
    """Secret with the certificate of plugins' pods; empty: gRPC without TLS."""
    tls_name: str = "patchbay"
    """DNS name that certificates of the installation carry."""
    monitoring_namespace: str = ""
    """Namespace that may scrape metrics ports; empty: nobody."""

    @classmethod
    def from_environment(cls, environ: Mapping[str, str]) -> Installation:
        """
        Read `PATCHBAY_OPERATOR_<FIELD>`; lists are JSON, switches `true` or `false`.

        Raises:
            ValueError: The namespace is missing, or a value is not what it should be.
        """
        values: dict[str, Any] = {}
        for field in fields(cls):
            variable = _PREFIX + field.name.upper()
            text = environ.get(variable)
            if not text:
                continue
            if field.type == "bool":
                if text not in {"true", "false"}:
                    raise ValueError(f"{variable} is true or false, not {text!r}")
                values[field.name] = text == "true"
            elif str(field.type).startswith("tuple"):
                try:
                    found = orjson.loads(text)
                except orjson.JSONDecodeError as error:
                    raise ValueError(f"{variable} is a JSON list of texts") from error
                values[field.name] = tuple(str(entry) for entry in found)
            else:
                values[field.name] = text
        if "namespace" not in values:
            raise ValueError(f"set {_PREFIX}NAMESPACE to the namespace of the installation")
        return cls(**values)
