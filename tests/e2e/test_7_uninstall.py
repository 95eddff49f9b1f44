"""The end of an installation, as its NOTES say it: resources first, then the release."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.e2e.gateway import eventually

if TYPE_CHECKING:
    from tests.e2e.gateway import Cluster

STAYS = {
    "secrets/patchbay-roots",
    "secrets/patchbay-client-key",
    "secrets/patchbay-management-key",
    "secrets/patchbay-executor-keys",
    "secrets/patchbay-redis",
}
OURS = {
    # of these tests, of Kubernetes in each namespace, and the release of the definitions
    "configmaps/whoami",
    "secrets/mode",
    "configmaps/kube-root-ca.crt",
    "serviceaccounts/default",
}


def _left(cluster: Cluster) -> set[str]:
    """Return kind/name of all that is in the namespace, but for Events, volumes and definitions."""
    kinds = cluster.kubectl(
        "api-resources", "--namespaced", "--verbs=list", "-o", "name", "--cached=false"
    ).split()
    found = set()
    for kind in kinds:
        if kind.startswith(("events", "pods.metrics")):
            continue
        for line in cluster.kubectl("get", kind, "-o", "name").split():
            found.add(f"{kind.partition('.')[0]}/{line.partition('/')[2]}")
    return {name for name in found if "patchbay-crds" not in name} - OURS


async def test_uninstall_leaves_the_secrets_made_once_and_the_volumes(cluster: Cluster) -> None:
    claims = cluster.kubectl("get", "pvc", "-o", "name").split()
    volumes = {f"persistentvolumeclaims/{c.partition('/')[2]}" for c in claims}
    cluster.kubectl("delete", "patchbay", "--all", "--timeout=100s")
    cluster.helm("uninstall", "patchbay", "--wait")
    last: list[set[str]] = [set()]

    def settled() -> bool:
        last[0] = _left(cluster)
        return last[0] == STAYS | volumes

    try:
        await eventually(settled, "nothing but what stays", within=240)
    except AssertionError:
        raise AssertionError(
            f"too much: {last[0] - STAYS - volumes}; missing: {STAYS | volumes - last[0]}"
        ) from None
    definitions = cluster.run("kubectl", "get", "crds", "-o", "name")
    for plural in ("plugins", "providercredentials", "modelroutes", "clientkeys"):
        assert f"{plural}.patchbay.dev" in definitions
