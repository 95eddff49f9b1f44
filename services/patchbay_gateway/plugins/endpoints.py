"""
Addresses that an operator tells through Redis, beside those of DNS: either is enough.

DNS answers of a cluster may be cached for half a minute; `endpoints` (a hash of host → JSON list of
addresses, written by the operator, without expiry) is a second old. What is told wrongly costs nothing: an
address is used when its health says SERVING and its handshake succeeds. Not here: DNS itself (dns.py), health
(addresses.py).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import msgspec

from patchbay.errors import PatchbayError
from patchbay_gateway.plugins.dns import LookupFailed

if TYPE_CHECKING:
    from patchbay_gateway.kernel.clock import Clock
    from patchbay_gateway.kernel.redis import Store
    from patchbay_gateway.plugins.dns import Resolver

_FRESH: Final = 0.9
"""Seconds for which an answer of Redis serves all hosts; addresses are polled each second."""


class EndpointsResolver:
    """
    A resolver that adds what the operator told.

    Args:
        inner: DNS.
        store: Redis; with it away, what it told last stays.
        clock: Says how old that is.
    """

    def __init__(self, inner: Resolver, *, store: Store, clock: Clock) -> None:
        self._inner = inner
        self._store = store
        self._clock = clock
        self._told: dict[str, frozenset[str]] = {}
        self._at = float("-inf")

    async def resolve(self, host: str) -> frozenset[str]:
        """
        Return all addresses of *host*.

        Raises:
            LookupFailed: DNS cannot say, and the operator told none.
        """
        await self._look()
        told = self._told.get(host.rstrip(".") + ".", frozenset())
        try:
            return await self._inner.resolve(host) | told
        except LookupFailed:
            if told:
                return told
            raise

    async def _look(self) -> None:
        now = self._clock.monotonic()
        if now - self._at < _FRESH:
            return
        self._at = now
        try:
            found = await self._store.call("HGETALL", self._store.key("endpoints"))
        except PatchbayError:
            return
        told = {}
        for host, addresses in (found or {}).items():
            try:
                told[host.decode()] = frozenset(msgspec.json.decode(addresses, type=list[str]))
            except (msgspec.MsgspecError, UnicodeDecodeError):
                continue  # of a release that we do not understand: DNS remains
        self._told = told
