"""Records of credentials in Secrets of a real API server: rights by name, tokens, conflicts, outages."""

from __future__ import annotations

import base64
from typing import TYPE_CHECKING, Any

import pytest
from tests.harness.fault_proxy import running_proxy

from patchbay.errors import Unavailable
from patchbay_gateway.scheduler.cluster_secrets import SecretsApi
from patchbay_gateway.scheduler.durable.port import CredentialRecord, RecordChanged
from patchbay_gateway.scheduler.durable.secret_store import SecretStore
from patchbay_operator.access import build_role, role_name, state_secret
from patchbay_operator.installation import Installation
from patchbay_operator.resources import understand

if TYPE_CHECKING:
    from pathlib import Path

    from tests.harness.apiserver import ApiServer

    from patchbay_operator.cluster import LightkubeApi

pytestmark = [pytest.mark.requires("kube-apiserver"), pytest.mark.timeout(180)]

RECORD = CredentialRecord("main", version=1, material={"access_token": "test-access"})


async def _secret(kube: LightkubeApi, name: str, **values: str) -> None:
    data = {key: base64.b64encode(value.encode()).decode() for key, value in values.items()}
    metadata = {"name": name}
    await kube.create({"apiVersion": "v1", "kind": "Secret", "metadata": metadata, "data": data})


def _store(api: SecretsApi) -> SecretStore:
    return SecretStore(api, [b"r" * 32], ids=lambda: ["main"])


def _admin(server: ApiServer, kube: LightkubeApi) -> SecretsApi:
    return SecretsApi(
        server.url, kube._namespace, authority=server.authority, token=server.token_file()
    )


async def _account(kube: LightkubeApi) -> str:
    """Give a scheduler's account the Role of the operator for one credential; return its token."""
    spec = {
        "provider": "openai",
        "plugin": "openai-compatible",
        "baseUrl": "https://api.example/v1",
        "secretRef": {"name": "seed"},
    }
    document = {
        "apiVersion": "patchbay.dev/v1alpha1",
        "kind": "ProviderCredential",
        "metadata": {"name": "main"},
        "spec": spec,
    }
    made = await kube.create(document)
    credential = understand(made)
    installation = Installation(namespace=kube._namespace)
    await kube.apply(build_role(installation, [credential]))
    await kube.create(state_secret(credential))
    await kube.create(
        {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "scheduler"}}
    )
    group = "rbac.authorization.k8s.io"
    subject = {"kind": "ServiceAccount", "name": "scheduler", "namespace": kube._namespace}
    binding: dict[str, Any] = {
        "apiVersion": f"{group}/v1",
        "kind": "RoleBinding",
        "metadata": {"name": "scheduler"},
        "roleRef": {"apiGroup": group, "kind": "Role", "name": role_name(installation)},
        "subjects": [subject],
    }
    await kube.create(binding)
    answer = await kube._call(
        "POST",
        kube._path("ServiceAccount", "scheduler") + "/token",
        body={"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {}},
    )
    return str(answer["status"]["token"])


async def test_scheduler_reaches_the_secrets_that_credentials_name_and_no_other(
    kube: LightkubeApi, api_server: ApiServer
) -> None:
    token = await _account(kube)
    await _secret(kube, "seed", **{"api-key": "test-key-seed"})
    await _secret(kube, "other", **{"api-key": "test-key-other"})
    api = SecretsApi(
        api_server.url,
        kube._namespace,
        authority=api_server.authority,
        token=api_server.token_file(token),
    )
    revision = await _store(api).write(RECORD, expected=None)
    stored = await _store(api).read("main")
    assert stored is not None
    assert (stored.record, stored.revision) == (RECORD, revision)
    seed = await api.get("seed")
    assert seed is not None
    assert seed.data == {"api-key": b"test-key-seed"}
    with pytest.raises(Unavailable, match="403"):
        await api.replace(seed, {"api-key": b"test-key-mine"})
    with pytest.raises(Unavailable, match="403"):
        await api.get("other")


async def test_token_that_ended_is_refused_and_the_next_one_is_taken_from_the_file(
    kube: LightkubeApi, api_server: ApiServer
) -> None:
    await _secret(kube, "main-state")
    token = api_server.token_file("test-token-that-ended")
    api = SecretsApi(api_server.url, kube._namespace, authority=api_server.authority, token=token)
    with pytest.raises(Unavailable, match="401"):
        await _store(api).write(RECORD, expected=None)
    token.write_text(api_server.token)
    await _store(api).write(RECORD, expected=None)


async def test_secret_that_was_deleted_or_made_anew_takes_no_older_record(
    kube: LightkubeApi, api_server: ApiServer
) -> None:
    """The operator makes it anew with its resource, which may be another account's."""
    store = _store(_admin(api_server, kube))
    await _secret(kube, "main-state")
    revision = await store.write(RECORD, expected=None)
    await kube.delete("Secret", "main-state")
    with pytest.raises(RecordChanged):
        await store.write(RECORD.replace(version=2), expected=revision)
    await _secret(kube, "main-state")
    with pytest.raises(RecordChanged):
        await store.write(RECORD.replace(version=2), expected=revision)
    assert await store.read("main") is None


async def test_conflict_is_a_change_and_all_else_is_an_outage(
    kube: LightkubeApi, api_server: ApiServer
) -> None:
    await _secret(kube, "main-state")
    async with running_proxy(api_server) as proxy:
        api = SecretsApi(proxy.url, kube._namespace, authority=None, token=api_server.token_file())
        store = _store(api)
        proxy.writes = [409]
        with pytest.raises(RecordChanged):
            await store.write(RECORD, expected=None)
        for status in (429, 500, 401):
            proxy.writes = [status]
            with pytest.raises(Unavailable, match=str(status)):
                await store.write(RECORD, expected=None)
        proxy.away = True
        with pytest.raises(Unavailable):
            await store.read("main")
        with pytest.raises(Unavailable):
            await store.revisions()
        proxy.away = False
        revision = await store.write(RECORD, expected=None)
        assert await store.revisions() == {"main": revision}


async def test_server_that_does_not_listen_is_an_outage(tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text("test-token")
    api = SecretsApi("http://127.0.0.1:9", "default", authority=None, token=token)
    with pytest.raises(Unavailable, match="does not answer"):
        await _store(api).read("main")
