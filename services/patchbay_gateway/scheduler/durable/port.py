"""
The durable store: one record per credential, the truth about its tokens.

Redis may forget everything; what is here survives. A record changes only by compare-and-set on its revision,
so that of several schedulers that want to change it one wins and the others read anew. Two numbers, not to be
confused: `revision` changes with every write and belongs to the store; `CredentialRecord.version` grows with
every new access material and is what leases carry.

Not here: adapters (directory.py, memory.py), what the fields mean for a refresh (refresh_rules.py).
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping  # noqa: TC003 - msgspec reads the annotations
from dataclasses import dataclass, field
from typing import Any, Final, Literal, Protocol

import msgspec

from patchbay.errors import Aborted, FailedPrecondition

Status = Literal["ok", "backoff", "ambiguous", "needs_login"]
"""What the last refresh left behind; `due` and `refreshing` follow from times and the intent."""

ACCESS_KEYS: Final = ("api_key", "access_token", "token_type")
"""Material that executors get unless the auth provider names other keys."""
NEVER_ACCESS: Final = frozenset({"refresh_token", "client_secret"})
"""Material that no executor gets, whatever an auth provider says."""

SEEDS_KEPT: Final = 8
"""Hashes of earlier seeds that a record remembers."""


class RecordChanged(Aborted):
    """Somebody else wrote the record meanwhile: read it again. Nothing was written."""

    default_reason = "RECORD_CHANGED"


class RecordUnreadable(FailedPrecondition):
    """The record is there and cannot be opened: damaged, or sealed under another root."""

    default_reason = "RECORD_UNREADABLE"


@dataclass(frozen=True, slots=True)
class Intent:
    """Written before a refresh token is presented: who may do that, and until when."""

    token_hash: str
    """`token_hash` of the refresh token."""
    deadline: float
    """Unix seconds. Until then nobody else presents the token; afterwards its holder may not."""
    holder: str
    """Id of one refresh in one process; no two refreshes share it."""


@dataclass(frozen=True, slots=True)
class Failure:
    """A failed refresh, as it is kept and shown; no secrets."""

    message: str
    at: float
    """Unix seconds."""
    code: str = ""
    """The provider's word (`invalid_grant`) or our reason."""
    http_status: int = 0
    """0: no answer arrived."""


@dataclass(frozen=True, slots=True)
class CredentialRecord:
    """Everything durable about one credential. All times are Unix seconds, 0 = not known."""

    id: str
    version: int = 0
    """Of the access material; 0: there was never any."""
    material: Mapping[str, str] = field(default_factory=dict, repr=False)
    """All secret strings (pluginapi: StorageJSON): access_token, refresh_token, or the plugin's own names."""
    access_keys: tuple[str, ...] = ()
    """Keys of `material` that executors get; empty: those of `ACCESS_KEYS` that exist."""
    expires_at: float = 0.0
    """When the access material ends."""
    refreshed_at: float = 0.0
    """When the material was issued to us."""
    next_refresh_after: float = 0.0
    """No timer fires before: an auth provider's wish, or the end of a backoff."""
    status: Status = "ok"
    failures: int = 0
    """Refreshes that failed since the last one that did not."""
    last_error: Failure | None = None
    """Of the last refresh; None when it succeeded."""
    intent: Intent | None = None
    disabled: bool = False
    """Management took it out of use."""
    seed_hash: str = ""
    """Of the user's seed that the tokens descend from; empty: they came by a login."""
    seeds_taken: tuple[str, ...] = ()
    """Hashes of earlier seeds, oldest first, so that a process that still has one does not go back to it."""
    metadata: Mapping[str, Any] = field(default_factory=dict, repr=False)
    """The auth provider's own JSON object (pluginapi: Metadata)."""
    attributes: Mapping[str, str] = field(default_factory=dict)
    """Immutable attributes for executors (pluginapi: Attributes)."""
    label: str = ""
    """For people, for example the account's mail address."""
    account: str = ""
    """Changes when a login gives the credential to another account."""
    described: str = ""
    """Hash of the metadata and attributes that its file gave it; empty: none did."""
    renewable: bool = False
    """Its auth provider renews it although the material has no `refresh_token`."""
    provider: str = ""
    """Provider that it belongs to, for a credential that only this record declares; else empty."""
    plugin: str = ""
    """Auth provider of such a credential."""
    brought_by: str = ""
    """Plugin that brought such a credential."""
    origin: str = ""
    """In which way it came, for people."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """Of such a credential, as the configuration calls them: prefix, proxy_url, priority, weight, …"""

    @property
    def refresh_token(self) -> str:
        """What a refresh presents: the refresh token, or all material of a plugin's own form; or nothing."""
        token = self.material.get("refresh_token", "")
        if token or not self.renewable or not self.material:
            return token
        return msgspec.json.encode(dict(sorted(self.material.items()))).decode()

    @property
    def lineage(self) -> str:
        """Changes when the material may be another account's."""
        return f"{self.seed_hash}/{self.account}"

    @property
    def access(self) -> dict[str, str]:
        """What executors get; never the refresh token."""
        keys = self.access_keys or ACCESS_KEYS
        return {k: v for k, v in self.material.items() if k in keys and k not in NEVER_ACCESS}

    def replace(self, **changes: Any) -> CredentialRecord:
        """Return a record with *changes*."""
        return dataclasses.replace(self, **changes)


@dataclass(frozen=True, slots=True)
class Stored:
    """A record as read."""

    record: CredentialRecord
    revision: str
    """Opaque; hand it back to `write`."""


class DurableStore(Protocol):
    """
    Records by credential id. Shared by schedulers; safe for concurrent use from one event loop.

    A write that was cancelled or failed with Unavailable may have happened; read to know.
    """

    @property
    def open(self) -> bool:
        """Whether it takes records of credentials that nobody declared."""
        ...

    async def revisions(self) -> Mapping[str, str]:
        """
        Return id → revision of all records, to see cheaply what changed.

        Raises:
            Unavailable: The store does not answer.
        """
        ...

    async def read(self, credential_id: str) -> Stored | None:
        """
        Return the newest record; None when there is none.

        Raises:
            RecordUnreadable: It cannot be opened.
            Unavailable: The store does not answer.
        """
        ...

    async def write(self, record: CredentialRecord, *, expected: str | None) -> str:
        """
        Replace the record whose revision is *expected* (None: there is none yet); return the new revision.

        When it returns, the record survives the machine.

        Raises:
            RecordChanged: Another revision is there.
            Unavailable: The store does not answer or is full.
        """
        ...

    async def delete(self, credential_id: str, *, expected: str) -> None:
        """
        Remove the record whose revision is *expected*.

        Raises:
            RecordChanged: Another revision is there, or none.
            Unavailable: The store does not answer.
        """
        ...


def token_hash(token: str) -> str:
    """Return what an intent says of a refresh token: its SHA-256 in hex."""
    return hashlib.sha256(token.encode()).hexdigest()


def encode(record: CredentialRecord) -> bytes:
    """Return the record as JSON; adapters encrypt it."""
    return msgspec.json.encode(record)


def decode(data: bytes) -> CredentialRecord:
    """
    Return the record of `encode`; fields that this release does not know are ignored.

    Raises:
        RecordUnreadable: It is none.
    """
    try:
        return msgspec.json.decode(data, type=CredentialRecord)
    except msgspec.MsgspecError as error:
        raise RecordUnreadable(f"a credential record is damaged: {error}") from error
