"""
The edge's calls to schedulers elsewhere: every address behind every name, the less busy of two first.

Addresses are kept as those of executors are (plugins/addresses.py): a new scheduler is called about a second
after its name has it, one that drains is left at once, one that only times out is ejected for a while. A call
that got no answer goes on to the next address, for all methods are idempotent. Not here: batching (leases.py,
outbox.py), a scheduler in this process (clients.py).
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Final

from patchbay import errors
from patchbay_gateway.kernel.channels import methods
from patchbay_gateway.kernel.channels.port import DRAINING, OF_THE_WAY
from patchbay_gateway.plugins.addresses import Addresses, Health, Peer, choose

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from patchbay_gateway.kernel.channels.port import Method, Req, Res
    from patchbay_gateway.kernel.clock import Clock
    from patchbay_gateway.plugins.addresses import Connect
    from patchbay_gateway.plugins.dns import Resolver

# So long a call waits for the first address; afterwards there is one, or nobody answers.
_FIRST: Final = 2.0
# A call that found this many schedulers wanting has an outage before it.
_MOST_TRIES: Final = 4
# For so many seconds one that failed is asked only when no other is left: the breaker of an address opens
# after five failures, and each of a scheduler's costs a whole batch of requests a wait.
_SHUNNED: Final = 5.0
# What a scheduler does by itself and for everybody: if it cannot, that speaks of it, whatever the reason is.
# All else may have failed at a provider or in a store, and would elsewhere, too.
_ITS_OWN: Final = frozenset(m.path for m in (methods.ACQUIRE, methods.RENEW, methods.REPORT))
# Another scheduler may be asked the same at once.
_ELSEWHERE: Final = OF_THE_WAY | {DRAINING}


class PooledCalls:
    """
    Schedulers by name; a `clients.SchedulerCalls`.

    Args:
        targets: `host:port` each; all addresses of a name are used.
        resolver: Where addresses come from.
        connect: Makes the channel to one address, with the edge's own proof of who calls.
        clock: Paces polls.
    """

    def __init__(
        self, targets: Sequence[str], *, resolver: Resolver, connect: Connect, clock: Clock
    ) -> None:
        self._targets = list(targets)
        self._clock = clock
        self._found = asyncio.Event()
        self._failed: dict[str, float] = {}
        """Address → when it last failed; of the addresses that there are."""
        self._addresses = Addresses(
            resolver=resolver, connect=connect, clock=clock, on_change=lambda _: self._found.set()
        )

    async def start(self) -> None:
        """Begin to look for addresses."""
        await self._addresses.keep(self._targets)

    async def aclose(self) -> None:
        """Close every channel."""
        await self._addresses.aclose()

    async def call(self, method: Method[Req, Res], request: Req, *, deadline: float) -> Res:
        """
        Return some scheduler's answer within *deadline* seconds.

        Raises:
            Unavailable: None answers.
            DeadlineExceeded: None did in time.
        """
        end = self._clock.monotonic() + deadline
        if not self._found.is_set():
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(min(deadline, _FIRST)):
                    await self._found.wait()
        tried: set[str] = set()
        last: errors.PatchbayError | None = None
        again = True
        while len(tried) < _MOST_TRIES:
            able = self._able(tried)
            if not able and len(tried) == 1 and again and _gone(last):
                # The only one may just have been replaced by another process at its address.
                again = False
                able = self._able(())
            left = end - self._clock.monotonic()
            if not able or left <= 0:
                break
            peer = choose(able) or able[0]
            tried.add(peer.address)
            # One that is silent uses up its share of what is left and no more. What waits for a provider,
            # as a refresh does, may rightly take all of it; a connection that is dead its pings end.
            shares = min(len(able), _MOST_TRIES + 1 - len(tried))
            share = left / shares if method.path in _ITS_OWN else left
            try:
                return await _ask(peer, method, request, share)
            except (errors.Unavailable, errors.DeadlineExceeded) as error:
                last = error
                if method.path in _ITS_OWN or error.reason in _ELSEWHERE:
                    self._failed[peer.address] = self._clock.monotonic()
        raise last or errors.Unavailable(
            self._why() or "no scheduler has an address", reason="NO_SCHEDULER", retry_after=2
        )

    def _able(self, tried: Collection[str]) -> list[Peer]:
        """Return whom to ask: those that serve, or else all that do not drain, one of which may be back."""
        left = [p for p in self._peers() if p.address not in tried]
        serving = [p for p in left if p.serving and p.allows()]
        if serving and self._failed:
            recent = self._clock.monotonic() - _SHUNNED
            for address in [a for a, at in self._failed.items() if at < recent]:
                del self._failed[address]
            serving = [p for p in serving if p.address not in self._failed] or serving
        return serving or [p for p in left if p.health is not Health.DRAINING]

    def _peers(self) -> list[Peer]:
        return [peer for target in self._targets for peer in self._addresses.peers(target)]

    def _why(self) -> str:
        return "; ".join(filter(None, (self._addresses.failure(t) for t in self._targets)))


def _gone(error: errors.PatchbayError | None) -> bool:
    """Whether nobody may have been at the address."""
    return isinstance(error, errors.Unavailable) and error.reason in _ELSEWHERE


async def _ask(peer: Peer, method: Method[Req, Res], request: Req, deadline: float) -> Res:
    failed: bool | None = None
    peer.begin()
    try:
        answer = await peer.channel.unary(method, request, deadline=deadline)
    except errors.PatchbayError as error:
        failed = error.reason in OF_THE_WAY
        if error.reason == DRAINING:
            peer.refuse()
        raise
    else:
        failed = False
        return answer
    finally:
        peer.end(failed)
