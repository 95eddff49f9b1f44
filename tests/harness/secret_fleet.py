"""
A fleet whose records are in Secrets of a real API server, as in Kubernetes.

Credentials are resources, a real operator makes their Secrets and publishes the snapshot; schedulers reach
the API server as pods do, through a proxy that can hold their writes. Not here: the fleet itself (fleet.py).
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import datetime as dt
import ipaddress
import secrets
import ssl
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from lightkube import KubeConfig
from tests.harness.apiserver_fixtures import make_namespace
from tests.harness.fault_proxy import proxy_in_thread
from tests.harness.fleet import Fleet
from tests.harness.operator_process import CLUSTER_ROOT, ROOT_KEY, OperatorProcess

from patchbay.errors import Aborted
from patchbay_gateway.kernel.clock import SystemClock
from patchbay_gateway.kernel.redis import Store
from patchbay_gateway.plugins.distribution import SnapshotPublisher
from patchbay_gateway.scheduler.cluster_secrets import SecretsApi
from patchbay_gateway.scheduler.durable.secret_store import SecretStore
from patchbay_operator.cluster import LightkubeApi

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator, Mapping
    from pathlib import Path

    from tests.harness.apiserver import ApiServer

    from patchbay_gateway.plugins.snapshot import Snapshot
    from patchbay_gateway.scheduler.durable.port import DurableStore


class SecretFleet(Fleet):
    """
    The fleet.

    Args:
        directory: Of everything.
        server: The API server, with our custom resources.
        schedulers: As the fleet has them, like the rest.
        families: One credential each.
        timeout: Seconds that the identity server gets.
    """

    def __init__(
        self,
        directory: Path,
        server: ApiServer,
        *,
        schedulers: int = 5,
        families: tuple[str, ...] = ("a",),
        timeout: float = 2.0,
    ) -> None:
        self._server = server
        self._namespace = f"t-{secrets.token_hex(5)}"
        self._ask(lambda api: make_namespace(api, self._namespace))
        self._exits = contextlib.ExitStack()
        certificate, key = _certificate(directory)
        front = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        front.load_cert_chain(certificate, key)
        self._proxy = self._exits.enter_context(proxy_in_thread(server, front))
        self._account = directory / "account"
        self._account.mkdir()
        (self._account / "ca.crt").write_bytes(certificate.read_bytes())
        (self._account / "namespace").write_text(self._namespace)
        (self._account / "token").write_text(server.token)
        super().__init__(directory, schedulers=schedulers, families=families, timeout=timeout)
        for name in families:
            self._declare(name)
        self._operator = OperatorProcess(
            directory / "operator",
            kubeconfig=server.kubeconfig,
            redis_url=self.redis_url,
            namespace=self._namespace,
            installation=self._installation,
        )

    def start(self) -> None:
        """Start everything; the operator publishes."""
        self._operator.start()
        super().start()

    def stop(self) -> None:
        """Stop everything."""
        try:
            super().stop()
        finally:
            self._operator.kill()
            self._exits.close()

    def sow(self, family: str, token: str) -> None:
        """Give a credential another seed."""
        document = {
            "apiVersion": "v1",
            "kind": "Secret",
            "metadata": {"name": f"{family}-seed"},
            "data": {"refresh-token": base64.b64encode(token.encode()).decode()},
        }
        self._ask(lambda api: api.apply(document))

    def resource(self, kind: str, name: str) -> dict[str, Any]:
        """Return a resource."""
        found: dict[str, Any] = self._ask(lambda api: api.get(kind, name))
        return found

    def declare(self, kind: str, name: str, spec: Mapping[str, Any]) -> None:
        """Make a resource."""
        document = {
            "apiVersion": "patchbay.dev/v1alpha1",
            "kind": kind,
            "metadata": {"name": name},
            "spec": dict(spec),
        }
        self._ask(lambda api: api.create(document))

    @property
    def plugins_root(self) -> bytes:
        """The root of plugins' keys."""
        return bytes.fromhex(self._roots["PLUGINS"])

    def snapshot(self) -> Snapshot | None:
        """Return what the operator has published."""

        async def body() -> Snapshot | None:
            clock = SystemClock()
            store = Store(
                self.redis_url, installation=self._installation, clock=clock, timeout=20.0
            )
            try:
                while True:
                    # Published anew while it was being read.
                    with contextlib.suppress(Aborted):
                        return await SnapshotPublisher(store, clock=clock).read()
            finally:
                await store.aclose()

        return asyncio.run(body())

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Let nobody write a record while this lasts."""
        with self._proxy.holding():
            yield

    def lock_is_wanted(self) -> bool:
        """Whether somebody wants to write."""
        return self._proxy.held > 0

    def _open(self, roots: list[bytes]) -> DurableStore:
        api = SecretsApi(
            self._server.url,
            self._namespace,
            authority=self._server.authority,
            token=self._account / "token",
        )
        return SecretStore(api, roots, ids=lambda: self.families)

    def _scheduler_env(self) -> Mapping[str, str]:
        return {
            "PATCHBAY_SNAPSHOT_FROM": "operator",
            "PATCHBAY_SERVICE_ACCOUNT_DIR": str(self._account),
            "KUBERNETES_SERVICE_HOST": "127.0.0.1",
            "KUBERNETES_SERVICE_PORT": str(self._proxy.port),
        }

    @staticmethod
    def _make_roots() -> dict[str, str]:
        return {"STORE": secrets.token_hex(32), "PLUGINS": ROOT_KEY, "CLUSTER": CLUSTER_ROOT}

    def _configuration(self) -> Mapping[str, Any]:
        return {"client_keys": [{"name": "tests", "key": "test-client-key"}]}

    def _declare(self, name: str) -> None:
        oauth2 = {
            "tokenUrl": self.identity.token_url,
            "clientId": "test-client",
            "refreshTokenRef": {"name": f"{name}-seed"},
        }
        spec = {
            "provider": "fake",
            "plugin": "openai-compatible",
            "baseUrl": "http://127.0.0.1:9/v1",
            "models": [{"name": "fake-model"}],
            "oauth2": oauth2,
        }
        self.declare("ProviderCredential", name, spec)

    def _ask(self, question: Callable[[LightkubeApi], Awaitable[Any]]) -> Any:
        async def body() -> Any:
            config = KubeConfig.from_file(self._server.kubeconfig)
            api = LightkubeApi(self._namespace, config=config)
            try:
                return await question(api)
            finally:
                await api.aclose()

        return asyncio.run(body())


def _certificate(directory: Path) -> tuple[Path, Path]:
    """Make a certificate for 127.0.0.1 that is its own authority; return its file and its key's."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "fault proxy")])
    now = dt.datetime.now(dt.UTC)
    address = x509.IPAddress(ipaddress.ip_address("127.0.0.1"))
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(days=1))
        .not_valid_after(now + dt.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([address]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    paths = directory / "proxy.crt", directory / "proxy.key"
    pem = serialization.Encoding.PEM
    paths[0].write_bytes(certificate.public_bytes(pem))
    private = key.private_bytes(
        pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    paths[1].write_bytes(private)
    return paths
