"""
Names, labels and owners of the objects that a resource becomes.

Selectors are immutable in a Deployment, so `selector` must never change. Not here: the objects.
"""

from __future__ import annotations

from typing import Any, Final

from patchbay_operator.api.fields import API_VERSION, GROUP

PLUGIN_LABEL: Final = f"{GROUP}/plugin"
MANAGER: Final = "patchbay-operator"
"""Field manager, and `app.kubernetes.io/managed-by`."""

SERVICE_LABEL: Final = "kubernetes.io/service-name"
"""On an EndpointSlice: whose it is."""


def addressed(installation: str) -> str:
    """Return the selector of the EndpointSlices that the gateway is told of: all that it calls by name."""
    return (
        f"app.kubernetes.io/instance={installation},"
        "app.kubernetes.io/component in (plugin,scheduler,executors)"
    )


def child_name(plugin: str) -> str:
    """Return the name of a Plugin's objects; with the prefix they collide with nothing of the chart."""
    return f"plugin-{plugin}"


def key_secret_name(plugin: str) -> str:
    """Return the name of the Secret with a Plugin's own key."""
    return f"plugin-{plugin}-key"


def state_secret_name(credential: str) -> str:
    """Return the name of the Secret that takes a ProviderCredential's rotated tokens."""
    return f"{credential}-state"


def generated_key_name(client_key: str) -> str:
    """Return the name of the Secret in which a generated client key is kept."""
    return f"{client_key}-client-key"


def selector(plugin: str, installation: str) -> dict[str, str]:
    """Return the labels by which a Plugin's pods are found."""
    return {
        "app.kubernetes.io/name": "patchbay",
        "app.kubernetes.io/instance": installation,
        "app.kubernetes.io/component": "plugin",
        PLUGIN_LABEL: plugin,
    }


def labels(plugin: str, installation: str) -> dict[str, str]:
    """Return the labels of a Plugin's objects."""
    return {
        **selector(plugin, installation),
        "app.kubernetes.io/managed-by": MANAGER,
        "app.kubernetes.io/part-of": "patchbay",
    }


def owned(kind: str, name: str, uid: str) -> list[dict[str, Any]]:
    """Return the reference by which an object goes with its resource."""
    return [
        {
            "apiVersion": API_VERSION,
            "kind": kind,
            "name": name,
            "uid": uid,
            "controller": True,
            # Blocking would demand rights on finalizers, and nothing here waits for children.
            "blockOwnerDeletion": False,
        }
    ]


def selector_text(chosen: dict[str, str]) -> str:
    """Return a selector in the form of `status.selector`."""
    return ",".join(f"{key}={value}" for key, value in sorted(chosen.items()))
