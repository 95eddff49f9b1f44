"""
The CRDs, generated: `python -m patchbay_operator.api.crds charts/patchbay-crds/templates` writes the chart's
templates, with `--check` it tells what would change instead.

Not here: the fields (one module per kind), the form of schemas (structural.py).
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import yaml

from patchbay_operator.api.client_key import ClientKeySpec, ClientKeyStatus
from patchbay_operator.api.fields import API_VERSION, GROUP, VERSION
from patchbay_operator.api.model_route import ModelRouteSpec, ModelRouteStatus
from patchbay_operator.api.plugin import PluginSpec, PluginStatus
from patchbay_operator.api.provider_credential import (
    ProviderCredentialSpec,
    ProviderCredentialStatus,
)
from patchbay_operator.api.structural import structural

if TYPE_CHECKING:
    from patchbay_operator.api.fields import Fields

_HEAD: Final = "# Generated from patchbay_operator.api by `make crds`; do not edit.\n"
_LABEL: Final = r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$"
NAME_BOUND: Final = 54
"""Of a Plugin's name: its Service is called `plugin-<name>`, and that has 63 characters."""


@dataclass(frozen=True, slots=True)
class Column:
    """A column of `kubectl get`."""

    name: str
    path: str
    kind: str = "string"
    wide: bool = False
    """Shown with `-o wide` alone."""

    def document(self) -> dict[str, Any]:
        """Return it as a CRD has it."""
        found: dict[str, Any] = {"name": self.name, "type": self.kind, "jsonPath": self.path}
        return found | ({"priority": 1} if self.wide else {})


def _condition(kind: str, field: str = "status") -> str:
    return f'.status.conditions[?(@.type=="{kind}")].{field}'


_READY: Final = (
    Column("Ready", _condition("Ready")),
    Column("Reason", _condition("Ready", "reason")),
    Column("Message", _condition("Ready", "message"), wide=True),
    Column("Age", ".metadata.creationTimestamp", "date"),
)


@dataclass(frozen=True, slots=True)
class Kind:
    """One custom resource."""

    name: str
    plural: str
    short: str
    spec: type[Fields]
    status: type[Fields]
    description: str
    columns: tuple[Column, ...]
    selectable: tuple[str, ...] = ()
    """Fields that `--field-selector` understands; they need Kubernetes 1.31."""
    scale: bool = False
    rules: tuple[tuple[str, str], ...] = ()
    """CEL rules over the whole resource."""

    def crd(self) -> dict[str, Any]:
        """Return the CustomResourceDefinition."""
        subresources: dict[str, Any] = {"status": {}}
        if self.scale:
            subresources["scale"] = {
                "specReplicasPath": ".spec.replicas",
                "statusReplicasPath": ".status.replicas",
                "labelSelectorPath": ".status.selector",
            }
        schema: dict[str, Any] = {
            "type": "object",
            "description": self.description,
            "required": ["spec"],
            "properties": {
                "apiVersion": {"type": "string"},
                "kind": {"type": "string"},
                "metadata": {"type": "object"},
                "spec": structural(self.spec),
                "status": structural(self.status),
            },
        }
        if self.rules:
            schema["x-kubernetes-validations"] = [
                {"rule": rule, "message": message} for rule, message in self.rules
            ]
        version: dict[str, Any] = {
            "name": VERSION,
            "served": True,
            "storage": True,
            "subresources": subresources,
            "additionalPrinterColumns": [c.document() for c in (*self.columns, *_READY)],
            "schema": {"openAPIV3Schema": schema},
        }
        if self.selectable:
            version["selectableFields"] = [{"jsonPath": path} for path in self.selectable]
        return {
            "apiVersion": "apiextensions.k8s.io/v1",
            "kind": "CustomResourceDefinition",
            "metadata": {
                "name": f"{self.plural}.{GROUP}",
                "labels": {"app.kubernetes.io/part-of": "patchbay"},
            },
            "spec": {
                "group": GROUP,
                "scope": "Namespaced",
                "names": {
                    "kind": self.name,
                    "listKind": f"{self.name}List",
                    "plural": self.plural,
                    "singular": self.name.lower(),
                    "shortNames": [self.short],
                    "categories": ["patchbay"],
                },
                "versions": [version],
            },
        }


PLUGIN: Final = Kind(
    "Plugin",
    "plugins",
    "plg",
    PluginSpec,
    PluginStatus,
    "A plugin of the gateway, run here from an image or reached at an address.",
    (
        Column("Replicas", ".status.replicas", "integer"),
        Column("Programmed", _condition("Programmed"), wide=True),
        Column("Image", ".spec.image", wide=True),
    ),
    selectable=(".spec.image", ".spec.id"),
    scale=True,
    rules=(
        (
            f"self.metadata.name.size() <= {NAME_BOUND} && self.metadata.name.matches('{_LABEL}')",
            (
                f"the name of a Plugin has at most {NAME_BOUND} characters, a-z 0-9 and -, for its "
                "Service is called after it"
            ),
        ),
    ),
)
PROVIDER_CREDENTIAL: Final = Kind(
    "ProviderCredential",
    "providercredentials",
    "pcred",
    ProviderCredentialSpec,
    ProviderCredentialStatus,
    "One account or key at a provider.",
    (
        Column("Provider", ".spec.provider"),
        Column("Plugin", ".spec.plugin"),
        Column("Priority", ".spec.priority", "integer", wide=True),
        Column("Refresh", _condition("RefreshHealthy", "reason"), wide=True),
        Column("Expires", ".status.expiresAt", wide=True),
        Column("Cooling until", ".status.coolingUntil", wide=True),
        Column("Last error", ".status.lastError", wide=True),
    ),
    selectable=(".spec.provider", ".spec.plugin"),
    rules=(
        (
            "self.metadata.name.size() <= 128",
            "the name of a ProviderCredential has at most 128 characters: usage is counted under it",
        ),
    ),
)
MODEL_ROUTE: Final = Kind(
    "ModelRoute",
    "modelroutes",
    "mroute",
    ModelRouteSpec,
    ModelRouteStatus,
    "A model name of one's own, and what stands behind it.",
    (
        Column("Name", ".spec.name"),
        Column("Provider", ".spec.targets[0].provider"),
        Column("Model", ".spec.targets[0].model"),
    ),
)
CLIENT_KEY: Final = Kind(
    "ClientKey",
    "clientkeys",
    "ckey",
    ClientKeySpec,
    ClientKeyStatus,
    "A key that Patchbay gave to one of its clients, kept in a Secret.",
    (
        Column("Tenant", ".spec.tenant"),
        Column("Secret", ".status.secretName"),
    ),
    selectable=(".spec.tenant",),
    rules=(
        (
            "self.metadata.name.size() <= 128",
            "the name of a ClientKey has at most 128 characters: usage is counted under it",
        ),
    ),
)
KINDS: Final = (PLUGIN, PROVIDER_CREDENTIAL, MODEL_ROUTE, CLIENT_KEY)

__all__ = ["API_VERSION", "CLIENT_KEY", "KINDS", "MODEL_ROUTE", "PLUGIN", "PROVIDER_CREDENTIAL"]


class _Dumper(yaml.SafeDumper):
    """Lists indented under their key, texts on one line, no anchors."""

    def increase_indent(self, flow: bool = False, indentless: bool = False) -> None:
        super().increase_indent(flow, indentless=False)

    def ignore_aliases(self, data: object) -> bool:
        return True


def dump(document: dict[str, Any]) -> str:
    """Return *document* as YAML in the order of its keys."""
    return yaml.dump(document, Dumper=_Dumper, sort_keys=False, width=1000, allow_unicode=True)


def template(kind: Kind) -> str:
    """Return the chart's template of a kind's CRD: annotations and selectable fields are the chart's."""
    text = dump(kind.crd())
    if "{{" in text:
        raise ValueError(f"{kind.name}: the CRD has {{{{, which Helm would read")
    name = f"  name: {kind.plural}.{GROUP}\n"
    keep = (
        "  {{- if .Values.keep }}\n"
        "  annotations:\n"
        "    helm.sh/resource-policy: keep\n"
        "  {{- end }}\n"
    )
    labels = "    app.kubernetes.io/part-of: patchbay\n"
    helm_labels = (
        "    app.kubernetes.io/managed-by: {{ .Release.Service }}\n"
        "    app.kubernetes.io/instance: {{ .Release.Name }}\n"
        '    helm.sh/chart: "{{ .Chart.Name }}-{{ .Chart.Version }}"\n'
    )
    text = text.replace(name, name + keep, 1).replace(labels, labels + helm_labels, 1)
    marker = "      selectableFields:\n"
    if marker in text:
        before, _, after = text.partition(marker)
        text = (
            f'{before}      {{{{- if semverCompare ">=1.31.0-0" .Capabilities.KubeVersion.Version }}}}\n'
            f"{marker}{after}      {{{{- end }}}}\n"
        )
    return _HEAD + text


def files() -> dict[str, str]:
    """Return file name → content of the chart's templates."""
    return {f"{kind.plural}.yaml": template(kind) for kind in KINDS}


def main(argv: list[str] | None = None) -> int:
    """Write the templates, or with --check say which are not what they should be."""
    parser = argparse.ArgumentParser(description="Write the CRD templates of the chart.")
    parser.add_argument("directory", type=Path)
    parser.add_argument("--check", action="store_true")
    arguments = parser.parse_args(argv)
    stale = []
    for name, content in files().items():
        path = arguments.directory / name
        if path.exists() and path.read_text() == content:
            continue
        stale.append(str(path))
        if not arguments.check:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(content)
    if arguments.check and stale:
        sys.stderr.write(f"not current: {', '.join(stale)}; run make crds\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
