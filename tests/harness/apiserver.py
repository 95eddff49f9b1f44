"""
A real API server for tests: etcd and kube-apiserver of the directory that KUBEBUILDER_ASSETS names.

Each has ports and a directory of its own; nothing survives. No controllers run: what they would do (status,
endpoints, garbage collection) the tests do, or go without. Not here: the controllers (control_plane.py), a
whole cluster, for which KUBECONFIG names one.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import subprocess
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import TYPE_CHECKING

import yaml
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from tests.conftest import pick_port

if TYPE_CHECKING:
    from collections.abc import Iterator

ASSETS = "KUBEBUILDER_ASSETS"
_PATIENCE = 180.0


def assets() -> Path | None:
    """Return the directory with etcd and kube-apiserver; None when there is none."""
    directory = Path(os.environ.get(ASSETS) or "/usr/local/kubebuilder/bin")
    programs = [directory / name for name in ("etcd", "kube-apiserver")]
    return directory if all(os.access(program, os.X_OK) for program in programs) else None


class ApiServer:
    """A running API server."""

    def __init__(self, directory: Path, assets_directory: Path) -> None:
        self._directory = directory
        self._assets = assets_directory
        self._etcd_port = pick_port()
        self.port = pick_port()
        self.token = secrets.token_hex(16)
        self.kubeconfig = directory / "kubeconfig"
        self._processes: list[subprocess.Popen[bytes]] = []

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"https://127.0.0.1:{self.port}"

    def start(self) -> None:
        """Start both and wait until the API answers."""
        self._start_etcd()
        self.start_api()

    def _start_etcd(self) -> None:
        peer = pick_port()
        client = f"http://127.0.0.1:{self._etcd_port}"
        self._spawn(
            "etcd",
            *(
                "--data-dir",
                str(self._directory / "etcd"),
                "--unsafe-no-fsync",
                "--log-level=error",
            ),
            *("--listen-client-urls", client, "--advertise-client-urls", client),
            *("--listen-peer-urls", f"http://127.0.0.1:{peer}"),
            *("--initial-advertise-peer-urls", f"http://127.0.0.1:{peer}"),
            *("--initial-cluster", f"default=http://127.0.0.1:{peer}"),
        )

    def start_api(self) -> None:
        """Start the API server alone, after `stop_api`."""
        key = self._directory / "service-account.key"
        if not key.exists():
            private = rsa.generate_private_key(public_exponent=65537, key_size=2048)
            key.write_bytes(
                private.private_bytes(
                    Encoding.PEM, PrivateFormat.TraditionalOpenSSL, NoEncryption()
                )
            )
        tokens = self._directory / "tokens.csv"
        tokens.write_text(f'{self.token},admin,admin,"system:masters"\n')
        self._spawn(
            "kube-apiserver",
            *("--etcd-servers", f"http://127.0.0.1:{self._etcd_port}"),
            *("--bind-address", "127.0.0.1", "--secure-port", str(self.port)),
            *("--cert-dir", str(self._directory / "pki"), "--token-auth-file", str(tokens)),
            *("--service-account-issuer", "https://kubernetes.default.svc"),
            *(
                "--service-account-key-file",
                str(key),
                "--service-account-signing-key-file",
                str(key),
            ),
            *("--service-cluster-ip-range", "10.96.0.0/16", "--authorization-mode", "RBAC"),
            *(
                "--disable-admission-plugins",
                "ServiceAccount",
                "--endpoint-reconciler-type",
                "none",
            ),
        )
        deadline = time.monotonic() + _PATIENCE
        while not self._answers():
            if time.monotonic() > deadline or self._processes[-1].poll() is not None:
                log = (self._directory / "kube-apiserver.log").read_text(errors="replace")
                raise AssertionError(f"kube-apiserver did not start: {log[-2000:]}")
            time.sleep(0.1)  # a start-up, not a behaviour
        self.kubeconfig.write_text(yaml.safe_dump(self.configuration(self.url)))

    def configuration(self, url: str) -> dict[str, object]:
        """Return a kubeconfig for the server, or for what stands before it at *url*."""
        # The certificate that it makes for itself is followed by its authority's.
        cluster: dict[str, object] = {"server": url}
        if url.startswith("https"):
            cluster["certificate-authority"] = str(self._directory / "pki" / "apiserver.crt")
        return {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "test", "cluster": cluster}],
            "users": [{"name": "admin", "user": {"token": self.token}}],
            "contexts": [{"name": "test", "context": {"cluster": "test", "user": "admin"}}],
            "current-context": "test",
        }

    @property
    def authority(self) -> Path:
        """File with the certificate that clients trust."""
        return self._directory / "pki" / "apiserver.crt"

    def token_file(self, token: str = "") -> Path:
        """Write *token*, by default the administrator's, to a file as pods have it, and return that."""
        path = self._directory / f"token-{secrets.token_hex(4)}"
        path.write_text(token or self.token)
        return path

    def stop_api(self) -> None:
        """Stop the API server; etcd keeps what there is."""
        self._end(self._processes.pop())

    def stop(self) -> None:
        """Stop both."""
        while self._processes:
            self._end(self._processes.pop())

    def _end(self, process: subprocess.Popen[bytes]) -> None:
        process.kill()
        process.wait()

    def _spawn(self, program: str, *options: str) -> None:
        with (self._directory / f"{program}.log").open("ab") as log:
            self._processes.append(
                subprocess.Popen(
                    [str(self._assets / program), *options],
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    cwd=self._directory,
                )
            )

    def _answers(self) -> bool:
        authority = self._directory / "pki" / "apiserver.crt"
        if not authority.exists():
            return False
        with contextlib.suppress(OSError, urllib.error.URLError, ValueError):
            import ssl  # noqa: PLC0415 - of the start alone

            context = ssl.create_default_context(cafile=str(authority))
            request = urllib.request.Request(
                f"{self.url}/readyz", headers={"Authorization": f"Bearer {self.token}"}
            )
            with urllib.request.urlopen(request, timeout=10, context=context) as answer:
                return bool(answer.status == 200)
        return False


@contextlib.contextmanager
def running_api_server(directory: Path) -> Iterator[ApiServer]:
    """Run an API server in *directory*."""
    found = assets()
    assert found is not None
    server = ApiServer(directory, found)
    try:
        server.start()
        yield server
    finally:
        server.stop()
