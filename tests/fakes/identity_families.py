"""
What an identity server keeps: families of refresh tokens, access tokens, and who presented what.

A family descends from one login. With rotation each refresh token is good for one presentation; a consumed
one that comes again revokes the family and every access token of it (RFC 9700 §4.14.2). Tokens tell their
family and generation, so that a log can be read: `test-refresh-a-0`, then `test-refresh-a-1-9f3c…`.

Not here: HTTP and misbehaviour (identity.py).
"""

from __future__ import annotations

import asyncio
import dataclasses
import json
import secrets
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


@dataclass
class Presentation:
    """One arrival of a refresh token, code or device code at the token endpoint."""

    n: int
    at: float
    """Unix seconds, as all times here."""
    grant: str
    """`refresh_token`, `authorization_code` or `device_code`."""
    token: str
    """Name of the token, `family.generation`; `?` when nobody knows it. Never the token."""
    client: str = ""
    client_auth: str = "none"
    """`body`, `basic` or `none`."""
    outcome: str = "open"
    """issued; reuse, revoked, unknown, client, pending, refused; `status N`, garbage, cut."""
    consumed: bool = False
    """The token was used up by this presentation."""
    answered: bool = False
    """The whole answer was handed to the socket."""
    decided_at: float = 0.0
    ended_at: float = 0.0
    issued: str = ""
    """Name of the refresh token that the answer carries."""
    form: dict[str, str] = field(default_factory=dict)
    """Parameters of the request but tokens, codes and secrets."""


@dataclass
class Family:
    """The descendants of one login."""

    name: str
    client: str = ""
    """Only this client may present it; empty: any."""
    scopes: tuple[str, ...] = ()
    generation: int = 0
    revoked: bool = False


class Books:
    """
    Families, tokens and presentations.

    Args:
        log: A file that gets a line of JSON at each change of a presentation.
        now: Unix seconds.
    """

    def __init__(self, log: Path | None = None, now: Callable[[], float] = time.time) -> None:
        self.families: dict[str, Family] = {}
        self.presentations: list[Presentation] = []
        self.now = now
        self._refresh: dict[str, tuple[Family, int]] = {}
        self._consumed: set[str] = set()
        self._access: dict[str, tuple[Family, float]] = {}
        self._log = log.open("a", buffering=1) if log else None
        self._changed = asyncio.Event()

    def open_family(self, name: str, client: str = "", scopes: tuple[str, ...] = ()) -> str:
        """Begin a family and return its first refresh token; a known name begins anew."""
        family = self.families[name] = Family(name, client, scopes)
        # Predictable, because configurations are written before the server runs.
        token = f"test-refresh-{name}-0"
        self._refresh[token] = (family, 0)
        self._consumed.discard(token)
        return token

    def revoke(self, name: str) -> None:
        """Revoke a family, as an administrator does."""
        self.families[name].revoked = True

    def expire(self, name: str) -> None:
        """End all access tokens of a family before their time; refresh tokens stay good."""
        for token, (family, _) in self._access.items():
            if family.name == name:
                self._access[token] = (family, 0.0)

    def name_of(self, token: str) -> str:
        """Return `family.generation` of a refresh token, `?` for an unknown one."""
        found = self._refresh.get(token)
        return f"{found[0].name}.{found[1]}" if found else "?"

    def take(self, token: str, client: str, *, rotate: bool) -> tuple[str, Family | None]:
        """Consume a refresh token: return `issued` and its family, or why not."""
        found = self._refresh.get(token)
        if found is None:
            return "unknown", None
        family = found[0]
        if family.client and family.client != client:
            return "client", None
        if family.revoked:
            return "revoked", None
        if token in self._consumed:
            family.revoked = True
            return "reuse", None
        if rotate:
            self._consumed.add(token)
        return "issued", family

    def next_refresh(self, family: Family) -> str:
        """Return a new refresh token of *family*."""
        family.generation += 1
        token = f"test-refresh-{family.name}-{family.generation}-{secrets.token_hex(8)}"
        self._refresh[token] = (family, family.generation)
        return token

    def next_access(self, family: Family, expires_in: float) -> str:
        """Return a new access token of *family*, good for *expires_in* seconds."""
        token = f"test-access-{family.name}-{family.generation}-{secrets.token_hex(8)}"
        self._access[token] = (family, self.now() + expires_in)
        return token

    def valid(self, access_token: str) -> bool:
        """Whether an access token was issued here, has not expired and its family lives."""
        found = self._access.get(access_token)
        return found is not None and not found[0].revoked and found[1] > self.now()

    def subject(self, access_token: str) -> str:
        """Return the family of an access token that was issued here, or nothing."""
        found = self._access.get(access_token)
        return found[0].name if found else ""

    def present(self, presentation: Presentation) -> None:
        """Note an arrival."""
        self.presentations.append(presentation)
        self._write("presented", presentation)

    def decide(self, presentation: Presentation, outcome: str) -> None:
        """Note what became of it."""
        presentation.outcome = outcome
        presentation.decided_at = self.now()
        self._write("decided", presentation)

    def end(self, presentation: Presentation, *, answered: bool) -> None:
        """Note the end of the answer."""
        presentation.answered = answered
        presentation.ended_at = self.now()
        self._write("ended", presentation)

    def consumptions(self) -> Counter[str]:
        """Return how often each known refresh token was presented, name → count."""
        return Counter(
            p.token
            for p in self.presentations
            if p.grant == "refresh_token" and p.outcome not in {"unknown", "client"}
        )

    def repeated(self) -> dict[str, int]:
        """Return the refresh tokens that were presented more than once."""
        return {token: n for token, n in self.consumptions().items() if n > 1}

    async def until(self, condition: Callable[[], bool], seconds: float = 60.0) -> None:
        """Wait until *condition* holds; it is asked after each change of a presentation."""
        async with asyncio.timeout(seconds):
            while not condition():
                self._changed.clear()
                await self._changed.wait()

    def dump(self) -> list[dict[str, Any]]:
        """Return all presentations as plain data."""
        return [dataclasses.asdict(p) for p in self.presentations]

    def close(self) -> None:
        """Close the log."""
        if self._log:
            self._log.close()
            self._log = None

    def _write(self, event: str, presentation: Presentation) -> None:
        self._changed.set()
        if self._log:
            line = {"event": event} | dataclasses.asdict(presentation)
            self._log.write(json.dumps(line) + "\n")
