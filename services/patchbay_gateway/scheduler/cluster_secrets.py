"""
Secrets of a Kubernetes namespace, for a scheduler that runs in one.

`SecretsApi` reads and replaces single Secrets by name, which is all that its Role allows. `ClusterMaterial`
keeps the keys that the snapshot's credentials name: they are read again when the snapshot's fingerprint of
them changes, serve until they are, and an API server that is away takes none back. Not here: durable records
(durable/secret_store.py), who may read what (the operator keeps that Role).
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import http.client
import os
import ssl
import urllib.error
import urllib.request
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final
from urllib.parse import quote

import orjson

from patchbay.errors import Aborted, FailedPrecondition, PatchbayError, Unavailable
from patchbay_gateway.kernel import logs
from patchbay_gateway.scheduler.credentials import Material, source_of
from patchbay_gateway.scheduler.refresh_rules import Seed
from patchbay_gateway.scheduler.seeds import Seeds, seed_hash

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

    from patchbay_gateway.kernel.clock import Clock
    from patchbay_gateway.plugins.distribution import SnapshotHolder
    from patchbay_gateway.plugins.snapshot import CredentialEntry
    from patchbay_gateway.scheduler.credentials import Credentials

ACCOUNT: Final = Path("/var/run/secrets/kubernetes.io/serviceaccount")
_TIMEOUT: Final = 10.0
_RETRY: Final = 2.0
_log = logs.get_logger("scheduler.secrets")


@dataclass(frozen=True, slots=True)
class Secret:
    """A Secret as read."""

    name: str
    revision: str
    """Its resourceVersion."""
    data: Mapping[str, bytes] = field(repr=False)
    document: Mapping[str, object] = field(repr=False)
    """As the API server gave it."""


class SecretsApi:
    """
    The API server, for Secrets alone. Blocking calls run in threads.

    Args:
        url: Of the API server.
        namespace: Of the Secrets.
        authority: File of its certificate authority; None for plain HTTP.
        token: File of the token, read for each call, for it changes.
    """

    def __init__(
        self, url: str, namespace: str, *, authority: Path | None, token: Path | None
    ) -> None:
        self._base = f"{url}/api/v1/namespaces/{namespace}/secrets"
        self._context = ssl.create_default_context(cafile=str(authority)) if authority else None
        self._token = token

    @classmethod
    def in_cluster(cls, environ: Mapping[str, str], account: Path | None = None) -> SecretsApi:
        """
        Return the API of the cluster that this process runs in.

        Args:
            environ: Has the API server's address, and PATCHBAY_SERVICE_ACCOUNT_DIR where that is another.
            account: Directory of the service account's token; default where Kubernetes mounts it.

        Raises:
            FailedPrecondition: It runs in none.
        """
        account = account or Path(environ.get("PATCHBAY_SERVICE_ACCOUNT_DIR") or ACCOUNT)
        host, port = environ.get("KUBERNETES_SERVICE_HOST"), environ.get("KUBERNETES_SERVICE_PORT")
        if not host or not (account / "token").exists():
            raise FailedPrecondition(
                "PATCHBAY_SNAPSHOT_FROM=operator needs a pod with a service account's token",
                reason="NOT_IN_A_CLUSTER",
            )
        host = f"[{host}]" if ":" in host else host
        return cls(
            f"https://{host}:{port or 443}",
            (account / "namespace").read_text(encoding="utf-8").strip(),
            authority=account / "ca.crt",
            token=account / "token",
        )

    async def get(self, name: str) -> Secret | None:
        """
        Return the Secret; None when there is none.

        Raises:
            Unavailable: The API server does not answer, or does not allow it yet.
        """
        return await asyncio.to_thread(self._get, name)

    async def replace(self, secret: Secret, data: Mapping[str, bytes]) -> Secret:
        """
        Replace the content of what was read.

        Raises:
            Aborted: It was changed meanwhile.
            Unavailable: The API server does not answer, or does not allow it yet.
        """
        return await asyncio.to_thread(self._replace, secret, data)

    def _get(self, name: str) -> Secret | None:
        content = self._call("GET", name, None)
        return _understand(content) if content is not None else None

    def _replace(self, secret: Secret, data: Mapping[str, bytes]) -> Secret:
        encoded = {key: base64.b64encode(value).decode() for key, value in data.items()}
        body = orjson.dumps({**secret.document, "data": encoded})
        content = self._call("PUT", secret.name, body)
        if content is None:
            raise Aborted(f"the Secret {secret.name} is gone", reason="SECRET_GONE")
        return _understand(content)

    def _call(self, method: str, name: str, body: bytes | None) -> bytes | None:
        headers = {"Accept": "application/json", "Content-Type": "application/json"}
        if self._token is not None:
            headers["Authorization"] = f"Bearer {self._token.read_text(encoding='utf-8').strip()}"
        request = urllib.request.Request(  # noqa: S310 - the cluster's own
            f"{self._base}/{quote(name, safe='')}", data=body, headers=headers, method=method
        )
        try:
            with urllib.request.urlopen(  # noqa: S310 - the same
                request, timeout=_TIMEOUT, context=self._context
            ) as answer:
                content: bytes = answer.read()
                return content
        except urllib.error.HTTPError as error:
            if error.code == 404:
                return None
            if error.code == 409:
                raise Aborted(
                    f"the Secret {name} was changed meanwhile", reason="SECRET_CHANGED"
                ) from error
            raise Unavailable(
                f"the API server refuses {method} of Secret {name}: {error.code} {error.reason}",
                reason="KUBERNETES_UNAVAILABLE",
            ) from error
        except (OSError, http.client.HTTPException) as error:
            raise Unavailable(
                f"the API server does not answer {method} of Secret {name}: {error}",
                reason="KUBERNETES_UNAVAILABLE",
            ) from error


def _understand(content: bytes) -> Secret:
    document = orjson.loads(content)
    data = {}
    for key, value in (document.get("data") or {}).items():
        try:
            data[key] = base64.b64decode(value)
        except binascii.Error:
            continue
    metadata = document["metadata"]
    return Secret(metadata["name"], metadata["resourceVersion"], data, document)


class ClusterMaterial:
    """
    The keys of the snapshot's credentials, from their Secrets.

    Args:
        api: The Secrets.
        credentials: Told of keys.
        sow: Told of seeds of OAuth credentials, besides those of the file; may raise Unavailable.
        holder: The snapshot.
        clock: Paces retries.
    """

    def __init__(
        self,
        api: SecretsApi,
        *,
        credentials: Credentials,
        sow: Callable[[Seeds], Awaitable[None]],
        holder: SnapshotHolder,
        clock: Clock,
    ) -> None:
        self._api = api
        self._credentials = credentials
        self._sow = sow
        self._holder = holder
        self._clock = clock
        self._held: dict[str, str] = {}
        """Credential id → fingerprint that it was read for."""
        self._seeds: dict[str, Seed] = {}
        self._from_file = Seeds()
        self._sowing = asyncio.Lock()
        self._unsown = False
        """Whether seeds of Secrets were read that did not get on."""
        self._complaint = ""

    async def sow(self, seeds: Seeds) -> None:
        """Take the seeds of the file, and hand them on with those of Secrets."""
        self._from_file = seeds
        await self._sow_all()

    async def run(self) -> None:
        """Follow the snapshot until cancelled."""
        changed = asyncio.Event()
        forget = self._holder.on_change(lambda _: changed.set())
        try:
            while True:
                changed.clear()
                if await self.look():
                    await changed.wait()
                else:
                    await self._clock.sleep(_RETRY)
        finally:
            forget()

    async def look(self) -> bool:
        """Read what is not held yet; whether nothing is left to read."""
        snapshot = self._holder.current
        if snapshot is None:
            return True
        entries = [(p, c) for p in snapshot.providers for c in p.credentials if c.secrets]
        for gone in set(self._held) - {entry.id for _, entry in entries}:
            del self._held[gone]
            self._seeds.pop(gone, None)
            self._credentials.forget(gone)
        done = True
        for provider, entry in entries:
            if not entry.fingerprint or self._held.get(entry.id) == entry.fingerprint:
                continue
            try:
                values = await self._read(entry)
            except PatchbayError as error:
                done = False
                self._complain(f"credential {entry.id}: {error.message}")
                continue
            if entry.kind == "oauth2":
                self._seeds[entry.id] = _seed(values)
                self._unsown = True
            else:
                self._credentials.put(
                    entry.id,
                    Material(entry.kind, values, entry.fingerprint),
                    source_of(provider, entry),
                )
            self._held[entry.id] = entry.fingerprint
        if self._unsown:
            try:
                await self._sow_all()
            except PatchbayError as error:
                done = False
                self._complain(f"tokens of Secrets: {error.message}")
        if done:
            self._complaint = ""
        return done

    async def _sow_all(self) -> None:
        # One after the other: an older seed that gets on after a newer one would count as the newer one.
        async with self._sowing:
            both = {**self._from_file.of, **self._seeds}
            self._unsown = False
            try:
                await self._sow(Seeds(both, self._from_file.broken - set(self._seeds)))
            except BaseException:
                self._unsown = True
                raise

    async def _read(self, entry: CredentialEntry) -> dict[str, str]:
        found = {}
        for what, source in entry.secrets.items():
            name, _, key = source.partition("/")
            secret = await self._api.get(name)
            value = secret.data.get(key) if secret is not None else None
            if value is None:
                raise Unavailable(
                    f"the Secret {name} has no key {key!r}; add it", reason="SECRET_KEY_MISSING"
                )
            found[what] = value.decode(errors="replace").strip()
        return found

    def _complain(self, text: str) -> None:
        if text != self._complaint:
            self._complaint = text
            _log.warning("not usable yet", why=text)


def _seed(values: Mapping[str, str]) -> Seed:
    refresh = values.get("refresh_token", "")
    return Seed(
        hash=seed_hash(refresh),
        material={"refresh_token": refresh} if refresh else {},
        client_secret=values.get("client_secret", ""),
    )


def kubernetes(environ: Mapping[str, str] | None = None) -> SecretsApi:
    """Return `SecretsApi.in_cluster` of this process."""
    return SecretsApi.in_cluster(os.environ if environ is None else environ)
