"""The fake identity server as a process, and its log. Not here: what it can be told to do (tests/fakes)."""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
from tests.harness.processes import Process, free_port

if TYPE_CHECKING:
    from collections.abc import Iterable

_PROGRAM = Path(__file__).resolve().parents[1] / "fakes" / "identity.py"


class Identity:
    """One fake identity server."""

    def __init__(
        self, directory: Path, *, families: Iterable[str] = (), clients: Iterable[str] = ()
    ) -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.token_url = f"{self.url}/token"
        self.log_path = directory / "identity.jsonl"
        options = [f"--family={name}" for name in families] + [f"--client={c}" for c in clients]
        self.process = Process(
            "identity",
            [sys.executable, _PROGRAM, f"--port={self.port}", f"--log={self.log_path}", *options],
            env={},
            directory=directory,
            ready_url=f"{self.url}/__log",
        )

    def behave(self, **behaviour: Any) -> None:
        """Tell it how to misbehave (tests.fakes.identity.Behaviour); nothing: well."""
        self._tell("behave", json=behaviour)

    def release(self) -> None:
        """End all holds."""
        self._tell("release")

    def revoke(self, family: str) -> None:
        """Revoke a family."""
        self._tell("revoke", params={"name": family})

    def expire(self, family: str) -> None:
        """End the access tokens of a family before their time."""
        self._tell("expire", params={"name": family})

    def open_family(self, name: str) -> str:
        """Begin a family; return its first refresh token."""
        return str(self._tell("family", params={"name": name})["refresh_token"])

    def valid(self, access_token: str) -> bool:
        """Whether an access token is good now."""
        answer = httpx.get(
            f"{self.url}/introspect", params={"token": access_token}, timeout=60, verify=False
        )
        return bool(answer.json()["active"])

    def presentations(self) -> list[dict[str, Any]]:
        """Return everything that was presented (tests.fakes.identity_families.Presentation)."""
        found: list[dict[str, Any]] = httpx.get(
            f"{self.url}/__log", timeout=60, verify=False
        ).json()
        return found

    def counts(self) -> Counter[str]:
        """Return how often each refresh token was presented, `family.generation` → count."""
        return Counter(p["token"] for p in self.presentations() if p["grant"] == "refresh_token")

    def _tell(self, what: str, **arguments: Any) -> dict[str, Any]:
        answer = httpx.post(f"{self.url}/__{what}", timeout=60, **arguments, verify=False)
        answer.raise_for_status()
        told: dict[str, Any] = answer.json()
        return told
