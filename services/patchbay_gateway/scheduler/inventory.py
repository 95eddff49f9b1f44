"""
The state of the pool for people: per credential and model ready, or why not and until when.

Says what the next choice would do, by the same look-ups that choices make. Not here: messages (service.py),
how a refresh stands (refresh.py).
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Final

import msgspec

from patchbay.errors import Unavailable
from patchbay_gateway.scheduler.eligibility import Verdict, judge, judged
from patchbay_gateway.scheduler.grants import split_value
from patchbay_gateway.scheduler.marks import MarkError
from patchbay_gateway.scheduler.strategies import WEIGHTED

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from patchbay_gateway.kernel.redis import Store
    from patchbay_gateway.plugins.snapshot import CredentialEntry, ProviderEntry, Snapshot
    from patchbay_gateway.scheduler.credentials import Credentials
    from patchbay_gateway.scheduler.health import HealthView
    from patchbay_gateway.scheduler.tally import Tally

CONFIGURATION: Final = "configuration"
MANAGEMENT: Final = "management"
_BATCH: Final = 500
# Looks at 2,000 keys each; with more leases than that the number is left at what the view knows.
_SCANS: Final = 100


@dataclass(frozen=True, slots=True)
class Standing:
    """Whether a credential serves a model now; the fields are CredentialModelStatus's."""

    state: str
    reason: str = ""
    until: float | None = None
    error: MarkError | None = None


@dataclass(frozen=True, slots=True)
class Known:
    """What Redis and this scheduler count of one credential."""

    succeeded: int = 0
    failed: int = 0
    in_flight: int = 0
    error: MarkError | None = None
    limits: Sequence[tuple[str, int, int, int]] = ()


@dataclass(frozen=True, slots=True)
class Status:
    """One credential."""

    provider: ProviderEntry
    credential: CredentialEntry
    version: int
    disabled_by: str
    known: Known
    models: list[tuple[str, str, Standing]] = field(default_factory=list)
    """(public name, model as the provider names it, whether it is served)."""


class Inventory:
    """
    Tells how the pool stands.

    Args:
        credentials: Who has material.
        view: What is held against them.
        tally: What Redis was not told yet.
        store: Redis.
    """

    def __init__(
        self, credentials: Credentials, view: HealthView, tally: Tally, store: Store
    ) -> None:
        self._credentials = credentials
        self._view = view
        self._tally = tally
        self._store = store

    def standing(
        self, provider: ProviderEntry, credential: CredentialEntry, upstream_model: str
    ) -> Standing:
        """Return whether *credential* serves the model now, leaving aside what its configuration excludes."""
        if by := self.disabled_by(credential):
            return Standing("disabled", by.upper())
        obstacle = self._credentials.obstacle(provider, credential)
        if obstacle in {"disabled", "needs_login", "no_material"}:
            return Standing(obstacle, obstacle.upper())
        blocked = self._view.blocked(credential.id, upstream_model)
        if blocked is not None and not blocked.probe_allowed:
            state = "needs_login" if blocked.needs_login else blocked.state
            return Standing(state, blocked.reason, blocked.until, blocked.last_error)
        if obstacle:
            return Standing("cooling", obstacle.upper())
        if credential.max_in_flight and (
            self._view.in_flight(credential.id) >= credential.max_in_flight
        ):
            return Standing("full", "MAX_IN_FLIGHT")
        if blocked is not None:
            # The next attempt is a probe: it may go, and decides about those after it.
            return Standing("ready", blocked.reason, None, blocked.last_error)
        return Standing("ready")

    def disabled_by(self, credential: CredentialEntry) -> str:
        """Return `configuration`, `management` or nothing."""
        if credential.disabled:
            return CONFIGURATION
        return MANAGEMENT if self._view.disabled(credential.id) else ""

    def _models(
        self, snapshot: Snapshot, provider: ProviderEntry, credential: CredentialEntry
    ) -> Iterator[tuple[str, str, Standing]]:
        force = snapshot.settings.force_model_prefix
        enabled = msgspec.structs.replace(credential, disabled=False)
        for model in provider.models:
            name = model.public
            verdict = judge(enabled, name, model.public, force_prefix=force)
            if verdict is Verdict.OTHER_PREFIX:
                name = f"{credential.prefix}/{model.public}"
                verdict = judge(enabled, name, model.public, force_prefix=force)
            if verdict is Verdict.EXCLUDED:
                standing = Standing("excluded", "EXCLUDED_MODELS")
            elif snapshot.settings.strategy == WEIGHTED and credential.weight <= 0:
                standing = Standing("excluded", "WEIGHT")
            else:
                standing = self.standing(provider, credential, model.name)
            yield name, model.name, standing

    async def statuses(
        self, snapshot: Snapshot, ids: Sequence[str] = (), provider: str = ""
    ) -> list[Status]:
        """
        Return the credentials of *snapshot*, ordered by provider and id, perhaps only some of them.

        Without Redis the counters are what this scheduler alone has seen.
        """
        wanted = [
            (entry, credential)
            for entry in sorted(snapshot.providers, key=lambda p: p.name)
            if not provider or entry.name == provider
            for credential in sorted(entry.credentials, key=lambda c: c.id)
            if not ids or credential.id in ids
        ]
        known = await self._count([credential.id for _, credential in wanted])
        leased = await self._leased() if wanted else {}
        return [
            Status(
                entry,
                credential,
                self._credentials.version(credential),
                self.disabled_by(credential),
                self._with_leases(known[credential.id], credential.id, leased),
                list(self._models(snapshot, entry, credential)),
            )
            for entry, credential in wanted
        ]

    async def _count(self, ids: Sequence[str]) -> dict[str, Known]:
        found: dict[str, Known] = {}
        for at in range(0, len(ids), _BATCH):
            part = ids[at : at + _BATCH]
            replies: list[object] = [None] * len(part)
            if self._store.available:
                replies = await self._fetch(part)
            for id_, reply in zip(part, replies, strict=True):
                found[id_] = self._known(id_, reply if isinstance(reply, dict) else {})
        return found

    async def _fetch(self, ids: Sequence[str]) -> list[object]:
        try:
            return await self._store.pipeline(
                [["HGETALL", self._store.key("cred", id_)] for id_ in ids]
            )
        except Unavailable:
            return [None] * len(ids)

    @staticmethod
    def _with_leases(known: Known, credential_id: str, leased: Mapping[str, int] | None) -> Known:
        return known if leased is None else replace(known, in_flight=leased.get(credential_id, 0))

    async def _leased(self) -> dict[str, int] | None:
        """
        Return credential id → attempts under way, by the leases in Redis; None when they cannot be counted.

        Only credentials with a cap are counted as attempts come and go; for the others this is read when
        somebody asks.
        """
        found: dict[str, int] = {}
        cursor: bytes = b"0"
        try:
            for _ in range(_SCANS):
                cursor, names = await self._store.call(
                    "SCAN", cursor, "MATCH", self._store.key("lease", "*"), "COUNT", 2000
                )
                values = await self._store.call("MGET", *names) if names else []
                for value in values:
                    if value:
                        id_ = split_value(value.decode())[1]
                        found[id_] = found.get(id_, 0) + 1
                if cursor == b"0":
                    return found
        except Unavailable:
            pass
        return None

    def _known(self, credential_id: str, fields: Mapping[bytes, bytes]) -> Known:
        here = self._tally.of(credential_id)
        error = here.error.encode() or fields.get(b"error", b"")
        limits = here.limits.encode() or fields.get(b"limits", b"")
        return Known(
            succeeded=int(fields.get(b"ok", 0)) + here.succeeded,
            failed=int(fields.get(b"failed", 0)) + here.failed,
            in_flight=self._view.in_flight(credential_id),
            error=msgspec.json.decode(error, type=MarkError) if error else None,
            limits=msgspec.json.decode(limits, type=list[tuple[str, int, int, int]])
            if limits
            else (),
        )

    def obstacles(self, snapshot: Snapshot, name: str) -> list[tuple[str, str, Standing]]:
        """Return (provider, credential id, standing) of each credential that could be meant by a name."""
        found = []
        for provider, target, credential, verdict in judged(snapshot, name):
            if verdict in {Verdict.SERVES, Verdict.DISABLED}:
                standing = self.standing(provider, credential, target.model)
            else:
                standing = Standing(verdict.value, verdict.name)
            found.append((provider.name, credential.id, standing))
        return found
