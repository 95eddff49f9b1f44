"""
A pool of many accounts at providers that fail in every way, and what may be asked of it from outside.

An account's provider is told by the name of its upstream model what to answer (tests/fakes/script.py), so no
request has to say it. Each credential's `prefix` is its id: `id/model` asks this one alone. Not here: the
gateway's processes (topology.py), what must hold (tests/faults).
"""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any

import httpx
from tests.harness.processes import READY

if TYPE_CHECKING:
    from collections.abc import Iterable

    from tests.harness.topology import Services, Up
    from tests.harness.upstream import Upstream

_KEY = "test-pool-key-"


@dataclass(frozen=True)
class Group:
    """Accounts of one provider that all behave alike."""

    name: str
    size: int
    tells: str = ""
    """What its upstream does, as `status=500,retry_after=5`; empty: it answers."""
    models: tuple[str, ...] = ("pool",)
    """Public names that behave so."""
    well: tuple[str, ...] = ()
    """Public names that it serves well."""

    @property
    def ids(self) -> list[str]:
        """Its credentials."""
        return [f"{self.name}-{i:02}" for i in range(self.size)]

    def provider(self, base_url: str) -> dict[str, Any]:
        """Return the provider as in patchbay.yaml."""
        tells = f"@{self.tells}" if self.tells else ""
        return {
            "name": self.name,
            "plugin": "openai-compatible",
            "base_url": base_url,
            "attempt_header": "x-patchbay-attempt",
            "models": [
                *({"name": f"{model}-up{tells}", "alias": model} for model in self.models),
                *({"name": f"{model}-up", "alias": model} for model in self.well),
            ],
            "credentials": [
                {"id": id_, "api_key": f"{_KEY}{id_}", "prefix": id_} for id_ in self.ids
            ],
        }


class Pool:
    """A running gateway's pool as clients, operators and the providers see it."""

    def __init__(self, gateway: Up | Services, upstream: Upstream) -> None:
        self.gateway = gateway
        self._upstream = upstream
        self._client = httpx.Client(
            base_url=gateway.base_url, headers=gateway.headers(), timeout=READY, verify=False
        )

    def close(self) -> None:
        """Let the connections go."""
        self._client.close()

    def ask(self, model: str, *, stream: bool = False, **fake: Any) -> httpx.Response:
        """Ask for a chat; *fake* outranks what the model's name says."""
        return self._client.post(
            "/v1/chat/completions",
            json={
                "model": model,
                "stream": stream,
                "messages": [{"role": "user", "content": "hello"}],
                "fake": {"chunks": 4, **fake},
            },
        )

    def calls(self, *names: str) -> list[tuple[str, float, int]]:
        """Return (credential, Unix seconds of arrival, status) of what reached the upstream for groups."""
        found = []
        for record in self._upstream.attempts():
            credential = record["headers"].get("authorization", "").rpartition(_KEY)[2]
            if not names or credential.rpartition("-")[0] in names:
                found.append((credential, record["arrived_at"], record["status"]))
        return found

    def verb(self, *arguments: str) -> Any:
        """Run `patchbay credentials …` with --json and return what it prints."""
        done = self.gateway.verb("credentials", *arguments, "--json")
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    def listed(self, *names: str) -> dict[tuple[str, str], dict[str, Any]]:
        """Return (credential, public model) → what `credentials list` says of it."""
        return {
            (credential["id"], model["model"]): model
            for credential in self.verb("list")
            if not names or credential["provider"] in names
            for model in credential["models"]
        }

    def until(
        self, name: str, model: str, state: str, *, failed: bool = False, limit: float = READY
    ) -> dict[str, Any]:
        """
        Wait until the first credential of a group is listed in *state* for *model*; return the line.

        With *failed* a failure of it must be known, too.
        """
        deadline = time.monotonic() + limit
        while True:
            line = self.listed(name)[f"{name}-00", model]
            if line["state"] == state and (line["last_error"] or not failed):
                return line
            assert time.monotonic() < deadline, line
            time.sleep(0.1)  # the state of other processes


def left(line: dict[str, Any]) -> float:
    """Return the seconds until a listed recovery; times are told to the second."""
    return instant(line["until"]) - time.time()


def instant(told: str) -> float:
    """Return Unix seconds of a time as it is listed."""
    return datetime.fromisoformat(told).timestamp()


def make_pool(upstream: str, groups: Iterable[Group], **overrides: Any) -> dict[str, Any]:
    """Return the configuration of a gateway that has *groups* and nothing else."""
    return {
        "client_keys": [{"name": "tests", "key": "test-client-key", "models": ["*"]}],
        "management_keys": [{"name": "tests", "key": "test-management-key"}],
        "providers": [group.provider(upstream) for group in groups],
        **overrides,
    }
