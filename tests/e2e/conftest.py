"""
The charts on a cluster of yours: `make test-e2e` with KUBECONFIG set.

PATCHBAY_E2E_VALUES        a values file: images, volumes, what else the cluster needs
PATCHBAY_E2E_URL           where the edge answers; default: a NodePort of the values on 127.0.0.1
PATCHBAY_E2E_PLUGIN_IMAGE  the image of the executors, which plugins of the tests run in, and
PATCHBAY_E2E_PULL          how it is pulled
PATCHBAY_E2E_NAMESPACE     made and deleted; default `patchbay-e2e`
PATCHBAY_E2E_KEEP          set: what is installed is used, and stays; for one step again, in writing it
PATCHBAY_E2E_API_SERVER    a command that stops and starts the API server: called with `stop` and `start`
PATCHBAY_E2E_KILL          a command that kills a container on its node: called with its id
PATCHBAY_E2E_DNS           a command that lets the DNS cache for 30 s: called with `slow` and `restore`

Tests whose command is missing are skipped by name. Images are there already: `docker/build`, then load them
into the nodes in whatever way the cluster has. The files are steps of one life of an installation, in order.
"""

from __future__ import annotations

import base64
import os
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from tests.e2e.gateway import NAMESPACE, Cluster
from tests.harness.helm import CHARTS, find_helm

if TYPE_CHECKING:
    from collections.abc import Iterator


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Only on request: these tests change a cluster."""
    mine = [i for i in items if Path(i.fspath).parent == Path(__file__).parent]
    if not os.environ.get("PATCHBAY_E2E"):
        items[:] = [i for i in items if i not in mine]
    for item in mine:
        item.add_marker(pytest.mark.timeout(900))


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    """The gateway, installed."""
    made = Cluster(Path(find_helm()).parent)
    keep = bool(os.environ.get("PATCHBAY_E2E_KEEP"))
    try:
        if not (keep and NAMESPACE in made.run("kubectl", "get", "namespaces", "-o", "name")):
            _install(made)
        encoded = made.kubectl("get", "secret", "patchbay-client-key", "-o", "jsonpath={.data.key}")
        made.key = base64.b64decode(encoded).decode()
        yield made
    finally:
        if not keep:
            # Pods may have streams to end.
            made.run("kubectl", "delete", "namespace", NAMESPACE, "--timeout=700s", within=720)


def _install(made: Cluster) -> None:
    made.run("kubectl", "create", "namespace", NAMESPACE)
    label = "pod-security.kubernetes.io/enforce=restricted"
    made.run("kubectl", "label", "namespace", NAMESPACE, label)
    made.helm("upgrade", "--install", "patchbay-crds", str(CHARTS / "patchbay-crds"))
    made.install()
