"""
Session affinity: the credential that a session had last is asked first, so that the provider's cache is used.

A binding is a key in Redis per tenant, public model and session identifier, named by a digest of the three;
its value is a credential id, and it lasts `routing.affinity.ttl` beyond the last success. Of several
identifiers the strongest that is bound decides; all of them are bound. A binding is a wish and no pin:
selection asks for it first, and when another credential is leased the session is bound to that one, unless
the first is merely at its cap. A failure that counts against the credential ends the binding, a fault of the
request does not.

Reads of one batch share one command, writes gather for one script call; what was read or written lately is
remembered, which also is all there is while Redis is away. Two schedulers that bind one session at the same
time agree on who came first. Attempts are remembered by the scheduler that leased them; a report that reaches
another one changes nothing, and the next lease elsewhere moves the binding all the same.

Not here: which identifiers a request has (edge), choosing (selection.py).
"""

from __future__ import annotations

import asyncio
import hashlib
from collections import OrderedDict, deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from patchbay.errors import PatchbayError, Unavailable
from patchbay_gateway.kernel import logs
from patchbay_gateway.kernel.redis import Script

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from patchbay_gateway.kernel.clock import Clock
    from patchbay_gateway.kernel.redis import Store

_log = logs.get_logger("scheduler.affinity")

# Identifiers of one request; all of them are bound.
_IDENTIFIERS: Final = 8
# Another scheduler's change is seen this late; seconds.
_FRESH: Final = 2.0
# Bindings and attempts remembered, about 200 bytes each, and writes that may wait.
_KEPT: Final = 65_536
_WAITING: Final = 16_384
_BATCH: Final = 512
# A binding is extended no sooner than after this part of its time, and lasts that much longer.
_SLACK: Final = 0.05

# KEYS: bindings. ARGV, for each: what to do, the value expected, the value, TTL in ms.
# `b` binds unless somebody else did meanwhile, `t` extends and `d` ends a binding that still is to the value.
_WRITE: Final = Script("""
for i = 1, #KEYS do
  local a = 4 * i - 3
  local found = redis.call('GET', KEYS[i])
  if ARGV[a] == 'b' then
    if not found or found == ARGV[a + 1] or found == ARGV[a + 2] then
      redis.call('SET', KEYS[i], ARGV[a + 2], 'PX', ARGV[a + 3])
    end
  elseif found == ARGV[a + 2] then
    if ARGV[a] == 't' then redis.call('PEXPIRE', KEYS[i], ARGV[a + 3]) else redis.call('DEL', KEYS[i]) end
  end
end
return #KEYS
""")


@dataclass(frozen=True, slots=True)
class Session:
    """What is known of a request's session."""

    digests: tuple[str, ...] = ()
    """Of its identifiers, strongest first; empty: no affinity."""
    bound: str = ""
    """Credential id; empty when it has none."""
    ttl: float = 0.0


NONE: Final = Session()
"""A request without session, or without affinity."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """A request whose session is asked for."""

    tenant: str
    model: str
    """Public name."""
    identifiers: Sequence[str]
    """Strongest first."""
    ttl: float
    """Seconds."""


@dataclass(slots=True)
class _Known:
    """A binding as it was seen last."""

    credential_id: str
    seen: float
    extended: float


@dataclass(frozen=True, slots=True)
class _Write:
    digest: str
    verb: str
    expected: str
    credential_id: str
    ttl: float


class Affinity:
    """
    The bindings of sessions.

    `run` is its one worker; whoever builds it owns that task.
    """

    def __init__(self, store: Store, *, clock: Clock) -> None:
        self._store = store
        self._clock = clock
        self._prefix = store.key("affinity", "")
        self._known: OrderedDict[str, _Known] = OrderedDict()
        self._attempts: OrderedDict[str, tuple[Session, str]] = OrderedDict()
        self._writes: deque[_Write] = deque(maxlen=_WAITING)
        self._wake = asyncio.Event()

    async def sessions(self, wanted: Sequence[Wanted]) -> list[Session]:
        """Return the session of each request, with its binding. One command at most."""
        now = self._clock.monotonic()
        digests = [_digests(one) for one in wanted]
        missing = {
            digest: None
            for own in digests
            if not self._remembered(own, now, _FRESH)
            for digest in own
        }
        if missing:
            await self._read(list(missing), now)
        return [
            Session(own, self._remembered(own, now, one.ttl), one.ttl)
            for own, one in zip(digests, wanted, strict=True)
        ]

    def _remembered(self, digests: Collection[str], now: float, within: float) -> str:
        for digest in digests:
            known = self._known.get(digest)
            if known is not None and now - known.seen < within:
                return known.credential_id
        return ""

    async def _read(self, digests: list[str], now: float) -> None:
        try:
            found = await self._store.call("MGET", *[self._prefix + digest for digest in digests])
        except Unavailable:
            return
        for digest, value in zip(digests, found, strict=True):
            if value is None:
                self._known.pop(digest, None)
            else:
                self._remember(digest, value.decode(), now)

    def _remember(self, digest: str, credential_id: str, now: float) -> None:
        known = self._known.get(digest)
        if known is not None and known.credential_id == credential_id:
            known.seen = now
            self._known.move_to_end(digest)
            return
        self._known[digest] = _Known(credential_id, now, now)
        if len(self._known) > _KEPT:
            self._known.popitem(last=False)

    # -- what becomes of attempts -----------------------------------------------------------------

    def leased(
        self, attempt_uid: str, session: Session, credential_id: str, *, keep: bool = False
    ) -> None:
        """
        Bind *session* to the credential that an attempt was leased.

        Args:
            attempt_uid: The attempt.
            session: From `sessions`.
            credential_id: What it was leased.
            keep: The credential that the session is bound to is merely busy: leave it at that.
        """
        if not session.digests or (keep and session.bound):
            return
        self._attempts[attempt_uid] = (session, credential_id)
        if len(self._attempts) > _KEPT:
            self._attempts.popitem(last=False)
        now = self._clock.monotonic()
        for digest in session.digests:
            known = self._known.get(digest)
            if known is None or known.credential_id != credential_id:
                before = known.credential_id if known is not None else session.bound
                self._remember(digest, credential_id, now)
                self._write(_Write(digest, "b", before, credential_id, session.ttl))

    def succeeded(self, attempt_uid: str) -> None:
        """The session goes on: its binding lasts its whole time from now."""
        session, credential_id = self._attempts.pop(attempt_uid, (NONE, ""))
        now = self._clock.monotonic()
        for digest in session.digests:
            known = self._known.get(digest)
            if known is None or known.credential_id != credential_id:
                continue
            known.seen = now
            if now - known.extended >= session.ttl * _SLACK:
                known.extended = now
                self._write(_Write(digest, "t", "", credential_id, session.ttl))

    def failed(self, attempt_uid: str) -> None:
        """The failure counts against the credential: the session is not bound to it any more."""
        session, credential_id = self._attempts.pop(attempt_uid, (NONE, ""))
        for digest in session.digests:
            known = self._known.get(digest)
            if known is not None and known.credential_id == credential_id:
                del self._known[digest]
            self._write(_Write(digest, "d", "", credential_id, session.ttl))

    def ended(self, attempt_uid: str) -> None:
        """The attempt ended in a way that says nothing of its credential."""
        self._attempts.pop(attempt_uid, None)

    # -- writing ----------------------------------------------------------------------------------

    def _write(self, write: _Write) -> None:
        self._writes.append(write)
        self._wake.set()

    async def run(self) -> None:
        """Write what gathers, until cancelled."""
        while True:
            await self._wake.wait()
            self._wake.clear()
            await self.flush()

    async def flush(self) -> None:
        """Write what waits. What Redis does not take now is forgotten: a binding is only a wish."""
        while self._writes:
            count = min(len(self._writes), _BATCH)
            batch = [self._writes.popleft() for _ in range(count)]
            keys = [self._prefix + write.digest for write in batch]
            args: list[str | bytes | int | float] = []
            for write in batch:
                lasts = int(write.ttl * (1 + _SLACK) * 1000)
                args += [write.verb, write.expected, write.credential_id, max(lasts, 1)]
            try:
                await self._store.script(_WRITE, keys, args)
            except Unavailable:
                self._writes.clear()
            except PatchbayError as error:
                _log.error("bindings of sessions were not written", error=str(error))


def _digests(wanted: Wanted) -> tuple[str, ...]:
    scope = f"{wanted.tenant}\0{wanted.model}\0"
    identifiers = dict.fromkeys(wanted.identifiers)
    return tuple(
        hashlib.sha256((scope + identifier).encode()).hexdigest()[:32]
        for identifier in list(identifiers)[:_IDENTIFIERS]
        if identifier
    )
