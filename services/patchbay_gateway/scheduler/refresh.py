"""
Refreshes OAuth-like credentials: each once for the whole fleet, whoever asks and however many.

One refresh is a flight: read the durable record anew → write an intent into it (compare-and-set: of several
schedulers one wins) → have the auth provider present the refresh token → write the new material → tell all.
Who loses waits for the winner's version and never presents the token itself. A process has one flight per
credential; timers, requests that met a 401 and tokens that ran out all join it. Timers only say when to look:
without Redis, tokens that have run out and requests still cause flights, and the record still decides.

A flight is never cut short after its intent was written but by the end of its deadline: a process that stops
waits for its flights. Not here: what may be done to a record (refresh_rules.py), the call (auth_calls.py).
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from patchbay.errors import (
    FailedPrecondition,
    NotFound,
    PatchbayError,
    ResourceExhausted,
    Sent,
    Unavailable,
)
from patchbay_gateway.kernel import logs
from patchbay_gateway.scheduler import refresh_rules as rules
from patchbay_gateway.scheduler.auth_calls import Ask
from patchbay_gateway.scheduler.durable.port import Intent, RecordChanged, Stored, token_hash

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from patchbay_gateway.kernel.clock import Clock
    from patchbay_gateway.kernel.telemetry import Metrics
    from patchbay_gateway.plugins.snapshot import OAuth2Entry, Snapshot
    from patchbay_gateway.scheduler.auth_calls import AuthProviders
    from patchbay_gateway.scheduler.durable.port import CredentialRecord
    from patchbay_gateway.scheduler.records import Records
    from patchbay_gateway.scheduler.refresh_rules import RefreshStatus, Seed

_log = logs.get_logger("scheduler.refresh")

POLL_EVERY: Final = 0.2
"""Seconds between looks of a flight that waits for another scheduler's."""
WRITE_AGAIN: Final = 0.5
"""Seconds between tries to write what a provider has issued."""
MOST_FLIGHTS: Final = 16
_WAITED_FOR: Final = 25.0


@dataclass(frozen=True, slots=True)
class Refreshable:
    """One credential that is refreshed."""

    id: str
    provider: str
    plugin_id: str
    settings: OAuth2Entry = field(repr=False)
    proxy_url: str = ""
    declared: bool = True
    """Whether the configuration has it; otherwise it came by a file or a login."""

    @property
    def lead(self) -> float:
        """Seconds before the token's end."""
        return self.settings.refresh_lead


def refreshables(snapshot: Snapshot) -> dict[str, Refreshable]:
    """Return credential id → what is refreshed under *snapshot*."""
    return {
        credential.id: Refreshable(
            credential.id,
            provider.name,
            credential.oauth2.plugin,
            credential.oauth2,
            credential.proxy_url or provider.proxy_url,
            not credential.brought_by,
        )
        for provider in snapshot.providers
        for credential in provider.credentials
        if credential.oauth2 is not None and not credential.disabled
    }


class Refresher:
    """
    The refreshes of this scheduler.

    Args:
        records: The durable records.
        providers: Who presents refresh tokens.
        clock: Time.
        timeout: Seconds that a provider gets.
        name: Of this process, for logs and intents.
        metrics: Counts what refreshes came to.
    """

    def __init__(
        self,
        records: Records,
        providers: AuthProviders,
        *,
        clock: Clock,
        timeout: float,
        name: str,
        metrics: Metrics,
    ) -> None:
        self._outcomes = metrics.counter(
            "scheduler_refreshes_total", "Refreshes of tokens by the state they led to.", ["state"]
        )
        self._lost = metrics.gauge(
            "scheduler_credentials_need_login", "Credentials that only a login helps."
        )
        self._records = records
        self._providers = providers
        self._clock = clock
        self._timeout = timeout
        self._name = name
        self._known: Mapping[str, Refreshable] = {}
        self._seeds: Mapping[str, Seed] = {}
        self._broken: frozenset[str] = frozenset()
        self._seen: dict[str, str] = {}
        self._flights: dict[str, asyncio.Task[None]] = {}
        self._closing = False

    # -- what there is ----------------------------------------------------------------------------

    def apply(self, snapshot: Snapshot) -> None:
        """Take the credentials of *snapshot*."""
        self._known = refreshables(snapshot)

    @property
    def known(self) -> Mapping[str, Refreshable]:
        """Credential id → what is refreshed."""
        return self._known

    def client_secret(self, credential_id: str) -> str:
        """Return what the configuration has as the credential's client secret; empty: none."""
        seed = self._seeds.get(credential_id)
        return seed.client_secret if seed is not None else ""

    @property
    def busy(self) -> int:
        """Flights under way."""
        return len(self._flights)

    async def sow(self, seeds: Mapping[str, Seed], broken: frozenset[str] = frozenset()) -> None:
        """
        Take what the user gave; where it is new, the record grows from it.

        Args:
            seeds: Credential id → seed.
            broken: Credentials whose secrets this process was not given: others refresh them.

        Raises:
            Unavailable: The durable store does not answer; call again.
        """
        self._seeds, self._broken = seeds, broken
        now = self._clock.now()
        for id_, seed in seeds.items():
            told = f"{seed.hash}/{seed.described}"
            anew = self._seen.get(id_, told) != told
            record = self._records.get(id_)
            if rules.sown(record, id_, seed, now, anew=anew) is not None:

                def grow(
                    there: CredentialRecord | None,
                    id_: str = id_,
                    seed: Seed = seed,
                    anew: bool = anew,
                ) -> CredentialRecord | None:
                    return rules.sown(there, id_, seed, now, anew=anew)

                with contextlib.suppress(RecordChanged, FailedPrecondition):
                    await self._records.update(id_, grow)
            self._seen[id_] = told

    def able(self, credential_id: str) -> bool:
        """Whether this process could refresh the credential now."""
        known = self._known.get(credential_id)
        if known is None or credential_id in self._broken:
            return False
        return self._providers.ready(known.plugin_id)

    def due(self, credential_id: str) -> float | None:
        """Return when the credential is to be refreshed, Unix seconds; None when no timer helps."""
        known = self._known.get(credential_id)
        if known is None:
            return None
        return rules.due_at(self._records.get(credential_id), known.lead)

    def urgent(self) -> list[str]:
        """Return credentials whose token has run out and that could be refreshed."""
        now = self._clock.now()
        return [
            id_
            for id_, known in self._known.items()
            if rules.urgent(self._records.get(id_), known.lead, now) and self.able(id_)
        ]

    def count_lost(self) -> None:
        """Bring the gauge of credentials that need a login up to date."""
        records = (self._records.get(id_) for id_ in self._known)
        self._lost.set(sum(r is not None and r.status == "needs_login" for r in records))

    def status(self, credential_id: str) -> RefreshStatus | None:
        """Return how the credential's refresh stands; None for one that is not refreshed."""
        known = self._known.get(credential_id)
        if known is None:
            return None
        record = self._records.get(credential_id)
        return rules.status_of(record, known.lead, self._clock.now())

    # -- flights ----------------------------------------------------------------------------------

    async def refresh_now(self, credential_id: str, version: int) -> int:
        """
        Return a version of the credential newer than *version*, which its provider refused.

        Raises:
            NotFound: No such credential, or one that is not refreshed.
            FailedPrecondition: NEEDS_LOGIN, only the user can help.
            ResourceExhausted: REFRESH_BACKOFF, the last try failed a moment ago; `retry_after` says when
                the next one is due.
            Unavailable: REFRESH_FAILED, this try failed; its text is the provider's.
        """
        known = self._known.get(credential_id)
        if known is None:
            raise NotFound(
                f"credential {credential_id} is not refreshed", reason="CREDENTIAL_NOT_REFRESHED"
            )
        own = False
        while True:
            record = self._records.get(credential_id)
            if record is not None and record.version > version:
                return record.version
            if own or self._closing:
                raise self._obstacle(known, record)
            # A flight that was under way may have ended without a try: a timer's, that was not due.
            own = await self.fly(credential_id, newer_than=version)

    async def fly(self, credential_id: str, *, newer_than: int | None = None) -> bool:
        """
        Join the credential's flight, or begin one; return when it has ended, well or not.

        Returns whether it was begun here.

        Args:
            credential_id: Which.
            newer_than: A version that is no good, whatever its times say. None: only if it is due.
        """
        flight = self._flights.get(credential_id)
        own = flight is None
        if flight is None:
            if self._closing:
                return True
            flight = asyncio.get_running_loop().create_task(
                self._flight(credential_id, newer_than), name=f"refresh {credential_id}"
            )
            self._flights[credential_id] = flight
            flight.add_done_callback(lambda task: self._landed(credential_id, task))
        # A caller that leaves does not take the flight with it.
        await asyncio.wait({flight})
        return own

    def _landed(self, credential_id: str, task: asyncio.Task[None]) -> None:
        self._flights.pop(credential_id, None)
        if not task.cancelled() and (error := task.exception()) is not None:
            _log.error("a refresh crashed", credential=credential_id, exc_info=error)

    async def _flight(self, credential_id: str, newer_than: int | None) -> None:
        try:
            while not await self._try(credential_id, newer_than):
                pass
        except PatchbayError as error:
            # Of the durable store: nothing was presented.
            _log.warning("cannot refresh", credential=credential_id, why=error.message)

    async def _try(self, credential_id: str, newer_than: int | None) -> bool:
        """Take one step; return whether the flight has ended."""
        known = self._known.get(credential_id)
        stored = await self._records.read(credential_id)
        if known is None or stored is None:
            return True
        record, now = stored.record, self._clock.now()
        if newer_than is not None and record.version > newer_than:
            return True
        if record.status == "needs_login" or not record.refresh_token or record.disabled:
            return True
        if rules.resting(record, now):
            return True
        intent = record.intent
        if intent is not None and intent.deadline + rules.SKEW > now:
            if newer_than is None:
                return True  # a timer comes again
            await self._clock.sleep(min(POLL_EVERY, max(intent.deadline + rules.SKEW - now, 0.01)))
            return False
        due = rules.due_at(record, known.lead)
        if newer_than is None and (due is None or due > now):
            return True
        if self._closing or not self.able(credential_id):
            return True
        return await self._present(known, stored)

    async def _present(self, known: Refreshable, stored: Stored) -> bool:
        record = stored.record
        intent = Intent(
            token_hash(record.refresh_token),
            self._clock.now() + self._timeout,
            f"{self._name}/{secrets.token_hex(8)}",
        )
        try:
            stored = await self._records.write(
                rules.intended(record, intent), expected=stored.revision
            )
        except RecordChanged:
            return False  # somebody else was faster
        seed = self._seeds.get(known.id)
        ask = Ask(
            plugin_id=known.plugin_id,
            provider=known.provider,
            settings=known.settings,
            record=stored.record,
            client_secret=seed.client_secret if seed is not None else "",
            proxy_url=known.proxy_url,
            deadline=intent.deadline,
        )
        try:
            renewal = await self._providers.refresh(ask)
        except PatchbayError as error:
            await self._failed(known, stored, intent, error)
            return True
        now = self._clock.now()
        kept = await self._keep(
            known.id,
            stored,
            lambda there: (
                rules.renewed(there, renewal, known.lead, now)
                if rules.presents(there, intent)
                else None
            ),
        )
        if kept is not None:
            self._outcomes.labels("ok").inc()
            _log.info("refreshed", credential=known.id, version=kept.record.version)
        else:
            _log.warning("a refresh came too late: the token is another one", credential=known.id)
        return True

    async def _failed(
        self, known: Refreshable, stored: Stored, intent: Intent, error: PatchbayError
    ) -> None:
        now = self._clock.now()

        def note(there: CredentialRecord) -> CredentialRecord | None:
            ours = there.intent is not None and there.intent.holder == intent.holder
            return rules.failed(there, error, now) if ours else None

        kept = await self._keep(known.id, stored, note)
        if kept is not None:
            self._outcomes.labels(kept.record.status).inc()
        _log.warning(
            "a refresh failed",
            credential=known.id,
            why=error.message,
            reason=error.reason,
            token="as it was" if rules.certain(error) else "perhaps used up",
            state=kept.record.status if kept is not None else "another's",
        )

    async def _keep(
        self,
        credential_id: str,
        stored: Stored | None,
        change: Callable[[CredentialRecord], CredentialRecord | None],
    ) -> Stored | None:
        """
        Write what became of the record, for as long as it takes: what was issued exists nowhere else.

        Returns None where *change* has nothing to say to the record that is there now.
        """
        while True:
            try:
                if stored is None:
                    stored = await self._records.read(credential_id)
                changed = change(stored.record) if stored is not None else None
                if changed is None:
                    return None
                return await self._records.write(
                    changed, expected=stored.revision if stored is not None else None
                )
            except RecordChanged:
                stored = None
            except PatchbayError as error:
                _log.error(
                    "a refreshed credential cannot be kept, trying again",
                    credential=credential_id,
                    why=error.message,
                )
                stored = None
                await self._clock.sleep(WRITE_AGAIN)

    def _obstacle(self, known: Refreshable, record: CredentialRecord | None) -> PatchbayError:
        """Return why there is no newer version."""
        status = rules.status_of(record, known.lead, self._clock.now())
        why = f": {status.last_error.message}" if status.last_error is not None else ""
        if status.state == "needs_login":
            return FailedPrecondition(
                f"credential {known.id} needs a login or a new refresh token{why}",
                reason="NEEDS_LOGIN",
                sent=Sent.NO,
            )
        wait = max(status.next_at - self._clock.now(), 0.0)
        if status.state in {"backoff", "ambiguous"} and wait:
            return ResourceExhausted(
                f"credential {known.id} cannot be refreshed now{why}",
                reason="REFRESH_BACKOFF",
                retry_after=wait,
                sent=Sent.NO,
            )
        return Unavailable(
            f"credential {known.id} was not refreshed{why or ': its auth provider is not ready'}",
            reason="REFRESH_FAILED",
            retry_after=1.0,
            sent=Sent.NO,
        )

    async def aclose(self) -> None:
        """Begin no flight any more and wait for those under way."""
        self._closing = True
        flights = set(self._flights.values())
        if not flights:
            return
        _, left = await asyncio.wait(flights, timeout=_WAITED_FOR)
        for flight in left:
            # Its intent stays in the record: somebody else tries again after its deadline.
            flight.cancel()
        if left:
            _log.warning("refreshes were cut short", count=len(left))
            await asyncio.wait(left)
