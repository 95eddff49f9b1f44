"""Values to render the chart with, and what is looked up in what Helm makes of them. Not here: tests."""

from __future__ import annotations

from typing import Any

from tests.harness.helm import CHARTS

PRODUCTION = str(CHARTS / "patchbay" / "values-production.yaml")
COMPONENTS = ("edge", "scheduler", "executors", "usage", "operator")
MATRIX: dict[str, tuple[tuple[str, ...], dict[str, Any], tuple[str, ...]]] = {
    "defaults": ((), {}, ()),
    "production": (("-f", PRODUCTION), {}, ("monitoring.coreos.com/v1",)),
    "own keys": (
        (),
        {
            "secrets": {
                "create": False,
                "existingRoots": "roots",
                "existingClientKey": "client",
                "existingManagementKey": "management",
            },
            "redis": {"enabled": False, "existingSecret": "redis"},
        },
        (),
    ),
    "without volumes and policies": (
        (),
        {
            "redis": {"persistence": {"enabled": False}},
            "usage": {"persistence": {"enabled": False}},
            "networkPolicy": {"enabled": False},
        },
        (),
    ),
    "exposed": (
        (),
        {
            "ingress": {
                "enabled": True,
                "className": "x",
                "hosts": [{"host": "llm.example", "paths": ["/"]}],
                "tls": [{"hosts": ["llm.example"], "secretName": "tls"}],
            },
            "httpRoute": {
                "enabled": True,
                "parentRefs": [{"name": "gateway"}],
                "hostnames": ["llm.example"],
            },
            "edge": {"service": {"type": "NodePort", "nodePort": 30080}},
            "prices": [{"model": "*", "currency": "USD", "per_million": {"input_tokens": "1"}}],
        },
        ("gateway.networking.k8s.io/v1/HTTPRoute",),
    ),
}
MATRIX["certificates of ours"] = ((), {"tls": {"enabled": True, "existingSecret": "tls"}}, ())
MATRIX["certificates of cert-manager"] = (
    (),
    {
        "tls": {
            "enabled": True,
            "certManager": {"enabled": True, "issuerRef": {"name": "patchbay", "kind": "Issuer"}},
        }
    },
    ("cert-manager.io/v1",),
)


def of_kind(documents: list[dict[str, Any]], kind: str) -> dict[str, dict[str, Any]]:
    return {d["metadata"]["name"]: d for d in documents if d["kind"] == kind}


def pods_of(documents: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    found = {}
    for document in documents:
        if document["kind"] == "Pod":
            found[document["metadata"]["name"]] = document["spec"]
        elif document["kind"] in {"Deployment", "StatefulSet", "Job"}:
            found[document["metadata"]["name"]] = document["spec"]["template"]["spec"]
    return found
