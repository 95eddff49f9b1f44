"""
The charts on a cluster of yours: `make test-e2e` with KUBECONFIG set.

PATCHBAY_E2E_VALUES  a values file: images, volumes, what else the cluster needs
PATCHBAY_E2E_URL     where the edge answers; default: a NodePort of the values on 127.0.0.1
Runs in the namespace `patchbay-e2e`, which is made and deleted. Images are there already: `docker/build`,
then load them into the nodes in whatever way the cluster has.
"""

from __future__ import annotations

import base64
import os
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from tests.harness.helm import CHARTS, find_helm

if TYPE_CHECKING:
    from collections.abc import Iterator

NAMESPACE = "patchbay-e2e"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Only on request: these tests change a cluster."""
    if not os.environ.get("PATCHBAY_E2E"):
        mine = [i for i in items if Path(i.fspath).parent == Path(__file__).parent]
        items[:] = [i for i in items if i not in mine]


class Cluster:
    """kubectl and helm, for the namespace of the tests."""

    def __init__(self, tools: Path) -> None:
        self._tools = tools
        self.values = os.environ.get("PATCHBAY_E2E_VALUES", "")
        self.url = os.environ.get("PATCHBAY_E2E_URL", "http://127.0.0.1:30880")
        self.key = ""

    def run(self, *argv: str, given: str = "", within: float = 300.0) -> str:
        """Run and return what it printed; AssertionError with its words when it fails."""
        done = subprocess.run(
            [str(self._tools / argv[0]), *argv[1:]],
            input=given,
            capture_output=True,
            text=True,
            check=False,
            timeout=within,
        )
        assert done.returncode == 0, f"{argv}: {done.stdout[-2000:]}{done.stderr[-2000:]}"
        return done.stdout

    def kubectl(self, *argv: str, given: str = "", within: float = 120.0) -> str:
        """Run kubectl in the namespace."""
        return self.run("kubectl", "-n", NAMESPACE, *argv, given=given, within=within)

    def helm(self, *argv: str) -> str:
        """Run helm in the namespace."""
        return self.run("helm", "-n", NAMESPACE, *argv)

    def install(self, *options: str) -> str:
        """Install or upgrade the gateway and wait until it is ready."""
        values = ("-f", self.values) if self.values else ()
        return self.helm(
            *("upgrade", "--install", "patchbay", str(CHARTS / "patchbay")),
            *(*values, *options, "--wait", "--timeout", "240s"),
        )


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    """The gateway, installed."""
    made = Cluster(Path(find_helm()).parent)
    made.run("kubectl", "create", "namespace", NAMESPACE)
    try:
        label = "pod-security.kubernetes.io/enforce=restricted"
        made.run("kubectl", "label", "namespace", NAMESPACE, label)
        made.helm("upgrade", "--install", "patchbay-crds", str(CHARTS / "patchbay-crds"))
        made.install()
        encoded = made.kubectl("get", "secret", "patchbay-client-key", "-o", "jsonpath={.data.key}")
        made.key = base64.b64decode(encoded).decode()
        yield made
    finally:
        made.run("kubectl", "delete", "namespace", NAMESPACE, "--timeout=180s", within=200)
