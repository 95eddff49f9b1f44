"""
One real API server for a whole run, with our custom resources, and a namespace for each test that wants one.

Not here: how it runs (apiserver.py).
"""

from __future__ import annotations

import asyncio
import secrets
from typing import TYPE_CHECKING, Any

import pytest
from tests.requirements import need

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from tests.harness.apiserver import ApiServer

    from patchbay_operator.cluster import LightkubeApi


@pytest.fixture(scope="session")
def api_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ApiServer]:
    """The session's API server with our CRDs."""
    need("kube-apiserver")
    from tests.harness.apiserver import running_api_server  # noqa: PLC0415 - few runs need it

    with running_api_server(tmp_path_factory.mktemp("api")) as server:
        asyncio.run(install_definitions(server))
        yield server


async def install_definitions(server: ApiServer) -> None:
    """Install our custom resources and wait until they can be listed."""
    from patchbay_operator.api.crds import KINDS  # noqa: PLC0415 - the same

    api = open_client(server, "default")
    path = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"
    try:
        for kind in KINDS:
            await api._call(
                "PATCH",
                f"{path}/{kind.plural}.patchbay.dev",
                query={"fieldManager": "test", "fieldValidation": "Strict"},
                body=kind.crd(),
                headers={"content-type": "application/apply-patch+yaml"},
            )
        for kind in KINDS:
            for _ in range(1800):
                crd = await api._call("GET", f"{path}/{kind.plural}.patchbay.dev")
                conditions = crd.get("status", {}).get("conditions", [])
                states = {c["type"]: c for c in conditions}
                established = states.get("Established", {}).get("status") == "True"
                if established and await _lists(api, kind.name):
                    break
                await asyncio.sleep(
                    0.05
                )  # the API server's own work; nothing tells when it is done
            else:
                raise AssertionError(f"{kind.name} is not established: {conditions}")
            if wrong := states.get("NonStructuralSchema"):
                raise AssertionError(wrong["message"])
    finally:
        await api.aclose()


async def make_namespace(api: LightkubeApi, name: str) -> None:
    """Make a namespace."""
    document: dict[str, Any] = {
        "apiVersion": "v1",
        "kind": "Namespace",
        "metadata": {"name": name},
    }
    await api._call("POST", "/api/v1/namespaces", body=document)


@pytest.fixture
async def kube(api_server: ApiServer) -> AsyncIterator[LightkubeApi]:
    """A client for a namespace that no other test sees."""
    namespace = f"t-{secrets.token_hex(5)}"
    api = open_client(api_server, namespace)
    await make_namespace(api, namespace)
    yield api
    await api.aclose()


def open_client(server: ApiServer, namespace: str) -> LightkubeApi:
    """Return a client with the administrator's rights."""
    from lightkube import KubeConfig  # noqa: PLC0415 - few runs need it

    from patchbay_operator.cluster import LightkubeApi  # noqa: PLC0415 - the same

    return LightkubeApi(namespace, config=KubeConfig.from_file(server.kubeconfig))


async def _lists(api: LightkubeApi, kind: str) -> bool:
    # Right after a definition is made, LIST answers 404 or 429.
    try:
        await api.list(kind)
    except Exception:  # noqa: BLE001 - asked again
        return False
    return True
