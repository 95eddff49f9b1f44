"""
What all leases of one candidate have in common, made once and copied: hot path.

A grant holds until the candidate's sealed secret is due for renewal or the material changes. Not here: who is
chosen (selection.py), that an attempt has only one lease (leases.py).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from patchbay.scheduler.v1 import scheduler_pb2

if TYPE_CHECKING:
    from patchbay.usage.v1 import journal_pb2
    from patchbay_gateway.kernel.clock import Clock
    from patchbay_gateway.plugins.snapshot import Snapshot
    from patchbay_gateway.scheduler.credentials import Credentials
    from patchbay_gateway.scheduler.selection import Candidate

# About 1 KB each.
_KEPT: Final = 4096
# Between the parts of a lease's value; no name has it.
_SEPARATOR: Final = "\x1f"


@dataclass(frozen=True, slots=True)
class Grant:
    """A lease without its attempt."""

    candidate: Candidate
    lease: scheduler_pb2.Lease
    """Shared: copy it, never change it."""
    value: str
    """What Redis keeps of the choice."""
    until: float
    """Unix seconds after which its secret is too old."""
    generation: int
    """Of the material."""
    change: int
    """Of the credential's record."""


def lease_value(provider: str, credential_id: str, upstream_model: str, version: int = 0) -> str:
    """Return what Redis keeps of a choice; *version* is that of the credential, 0 if it is not known."""
    return _SEPARATOR.join((provider, credential_id, upstream_model, str(version)))


def split_value(value: str) -> tuple[str, str, str]:
    """Return provider, credential id and upstream model of a lease's value; empty for what it lacks."""
    provider, credential_id, upstream_model = (*value.split(_SEPARATOR), "", "")[:3]
    return provider, credential_id, upstream_model


class Grants:
    """
    The grants of this scheduler.

    Args:
        credentials: Seals secrets.
        clock: Says when they are old.
        installation: Filled into attempts.
        lease_ttl: Seconds.
        most: Grants that are kept.
    """

    def __init__(
        self,
        credentials: Credentials,
        *,
        clock: Clock,
        installation: str,
        lease_ttl: float,
        most: int = _KEPT,
    ) -> None:
        self._most = most
        self._credentials = credentials
        self._clock = clock
        self._installation = installation
        self._ttl_nanos = int(lease_ttl * 1_000_000_000)
        # By identity: hashing a candidate hashes the whole provider. The grant keeps it alive.
        self._kept: dict[int, Grant] = {}

    def of(self, snapshot: Snapshot, candidate: Candidate, now: float) -> Grant:
        """Return the grant of *candidate* at *now*, Unix seconds."""
        kept = self._kept.get(id(candidate))
        if (
            kept is not None
            and kept.until > now
            and kept.generation == self._credentials.generation
            and kept.change == self._credentials.changes.get(candidate.credential.id, 0)
        ):
            return kept
        grant = self._make(snapshot, candidate)
        if len(self._kept) >= self._most and id(candidate) not in self._kept:
            # The one that was made first: a pool of more is not made anew as a whole.
            del self._kept[next(iter(self._kept))]
        self._kept[id(candidate)] = grant
        return grant

    def _make(self, snapshot: Snapshot, candidate: Candidate) -> Grant:
        provider, credential = candidate.provider, candidate.credential
        secret, until = self._credentials.sealed(provider, credential)
        lease = scheduler_pb2.Lease(
            auth_index=credential.auth_index,
            proxy_url=credential.proxy_url,
            secret=secret,
            attributes=self._credentials.attributes(credential),
            credential_version=self._credentials.version(credential),
            refreshable=self._credentials.refreshable(credential),
        )
        lease.ttl.FromNanoseconds(self._ttl_nanos)
        attempt = lease.attempt
        attempt.installation = self._installation
        attempt.provider = provider.name
        attempt.plugin_id = provider.plugin
        attempt.credential_id = credential.id
        attempt.upstream_model = candidate.upstream_model
        plugin = snapshot.plugin_by_id.get(provider.plugin)
        if plugin is not None and len(plugin.addresses) == 1:
            attempt.plugin_revision = plugin.addresses[0].revision
        return Grant(
            candidate=candidate,
            lease=lease,
            value=lease_value(
                provider.name, credential.id, candidate.upstream_model, lease.credential_version
            ),
            until=until,
            generation=self._credentials.generation,
            change=self._credentials.changes.get(credential.id, 0),
        )

    def fill_direct(
        self,
        lease: scheduler_pb2.Lease,
        attempt: journal_pb2.AttemptInfo,
        plugin_id: str,
        now: float,
    ) -> None:
        """Make *lease* of an attempt that a plugin's own executor serves, without a credential."""
        lease.ttl.FromNanoseconds(self._ttl_nanos)
        lease.attempt.installation = self._installation
        lease.attempt.plugin_id = plugin_id
        lease.attempt.upstream_model = attempt.model
        _describe(lease, attempt, now)


def fill(
    lease: scheduler_pb2.Lease, grant: Grant, attempt: journal_pb2.AttemptInfo, now: float
) -> None:
    """Make *lease* of *grant* for *attempt*, opened *now*."""
    lease.CopyFrom(grant.lease)
    _describe(lease, attempt, now)


def _describe(lease: scheduler_pb2.Lease, attempt: journal_pb2.AttemptInfo, now: float) -> None:
    filled = lease.attempt
    filled.MergeFrom(attempt)
    if not filled.tenant:
        filled.tenant = "default"
    opened = filled.opened_at
    opened.seconds = int(now)
    opened.nanos = int(now % 1 * 1_000_000_000)
