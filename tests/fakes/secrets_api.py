"""The Secrets of a namespace in memory: what `SecretsApi` promises, and outages."""

from __future__ import annotations

import asyncio

from patchbay.errors import Aborted, Unavailable
from patchbay_gateway.scheduler.cluster_secrets import Secret, SecretsApi


class FakeSecrets(SecretsApi):
    """Secrets by name; a revision counts writes."""

    def __init__(self) -> None:
        self.secrets: dict[str, dict[str, bytes]] = {}
        self.revisions: dict[str, int] = {}
        self.away = False
        self.reads: list[str] = []

    def put(self, name: str, **data: str) -> None:
        """Write as a person does."""
        self.secrets[name] = {key.replace("_", "-"): value.encode() for key, value in data.items()}
        self.revisions[name] = self.revisions.get(name, 0) + 1

    async def get(self, name: str) -> Secret | None:
        """Read."""
        await asyncio.sleep(0)
        if self.away:
            raise Unavailable("the API server is away")
        self.reads.append(name)
        if name not in self.secrets:
            return None
        return Secret(name, str(self.revisions[name]), dict(self.secrets[name]), {})

    async def replace(self, secret: Secret, data: dict[str, bytes]) -> Secret:  # type: ignore[override]
        """Compare and set."""
        await asyncio.sleep(0)
        if self.away:
            raise Unavailable("the API server is away")
        if str(self.revisions.get(secret.name)) != secret.revision:
            raise Aborted("changed meanwhile", reason="SECRET_CHANGED")
        self.secrets[secret.name] = dict(data)
        self.revisions[secret.name] += 1
        return Secret(secret.name, str(self.revisions[secret.name]), dict(data), {})
