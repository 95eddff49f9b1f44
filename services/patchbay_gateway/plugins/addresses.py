"""
The addresses behind one `host:port`: found by DNS, judged by their health, called least-loaded first.

A `Peer` is one address with its channel, health and breaker; an `AddressPool` keeps the peers of one
target; `Addresses` shares pools among plugins that name the same target. An address found by DNS gets a
health watch: NOT_SERVING stops new calls at once, SERVING outlives the absence of its record by 60 s.
Calls in flight keep their channel until they end. Not here: who is registered there (registry.py).
"""

from __future__ import annotations

import asyncio
import enum
import random
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from grpc_health.v1 import health_pb2

from patchbay import errors
from patchbay_gateway.kernel.channels.port import Method
from patchbay_gateway.kernel.logs import get_logger
from patchbay_gateway.plugins.breaker import Breaker
from patchbay_gateway.plugins.dns import LookupFailed, literal

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Coroutine, Iterable, Sequence

    from patchbay_gateway.kernel.channels.port import Channel
    from patchbay_gateway.kernel.clock import Clock
    from patchbay_gateway.plugins.dns import Resolver

    Connect = Callable[[str], Channel]
    """Makes the channel to `host:port`."""

POLL_EVERY: Final = 1.0
"""Seconds between two questions to DNS; a new address takes load within 5 s."""
ABSENCE: Final = 60.0
"""Seconds that a serving address outlives its DNS record."""
CONFIRM: Final = 2.0
"""Seconds after which an address that answered DRAINING is asked for its health."""
FIRST_RETRY: Final = 0.1
MAX_RETRY: Final = 2.0
"""Seconds between attempts at a health watch."""

WATCH: Final = Method(
    "/grpc.health.v1.Health/Watch",
    health_pb2.HealthCheckRequest,
    health_pb2.HealthCheckResponse,
)

_log = get_logger("plugins.addresses")


class Health(enum.Enum):
    """What an address says of itself."""

    CONNECTING = "connecting"
    SERVING = "serving"
    DRAINING = "draining"
    """It answers NOT_SERVING: no new calls."""
    UNREACHABLE = "unreachable"
    NO_HEALTH = "serves no grpc.health.v1"


class Peer:
    """
    One address.

    Args:
        address: `host:port`, or `inprocess:<plugin>`.
        channel: The way there; closed by whoever made the peer.
        clock: For the breaker.
        local: It is in this process, where there is no other address to go to: never ejected.
    """

    __slots__ = (
        "_clock",
        "_local",
        "address",
        "breaker",
        "channel",
        "doubtful",
        "generation",
        "health",
        "in_flight",
        "on_idle",
        "on_refusal",
        "reason",
        "seen",
        "task",
    )

    def __init__(
        self, address: str, channel: Channel, clock: Clock, *, local: bool = False
    ) -> None:
        self.address = address
        self._local = local
        self.channel = channel
        self.health = Health.CONNECTING
        self.reason = ""
        """Why it is not serving, for people."""
        self.generation = 0
        """Grows each time it begins to serve: another process may stand there now."""
        self.in_flight = 0
        self.breaker = Breaker()
        self.seen = 0.0
        """When DNS last named it, monotonic seconds."""
        self.doubtful = False
        """Whether an answer said what health has not said since."""
        self.on_refusal: Callable[[], None] | None = None
        """Called when an answer, and not health, said that it drains; the pool's."""
        self.on_idle: Callable[[], None] | None = None
        """Called when the last call in flight ends, once the pool has let the peer go."""
        self.task: asyncio.Task[None] | None = None
        """The health watch, the pool's."""
        self._clock = clock

    @property
    def serving(self) -> bool:
        """Whether new calls are welcome."""
        return self.health is Health.SERVING

    def allows(self) -> bool:
        """Whether the breaker lets a call through now."""
        return not self.breaker.until or self.breaker.allows(self._clock.monotonic())

    def begin(self) -> None:
        """Count a call that starts."""
        self.in_flight += 1
        if self.breaker.until:
            self.breaker.began()

    def answered(self) -> None:
        """Note that a call that goes on has an answer: what is long must not be the only one meanwhile."""
        if self.breaker.until:
            self.breaker.succeeded()

    def end(self, transport_failure: bool | None) -> None:
        """Count a call that ended; None when it ended without telling anything about the address."""
        self.in_flight -= 1
        if transport_failure and not self._local:
            self.breaker.failed(self._clock.monotonic())
        elif transport_failure is False:
            self.breaker.succeeded()
        else:
            self.breaker.left()
        if not self.in_flight and self.on_idle is not None:
            self.on_idle()

    def refuse(self) -> bool:
        """
        Note that it answered DRAINING, and return whether that is news: no new calls.

        Health has the last word: a plugin may have passed on what somebody else answered it.
        """
        if self._local or self.health is Health.DRAINING:
            return False
        self.mark(Health.DRAINING, "it answered DRAINING")
        self.doubtful = True
        if self.on_refusal is not None:
            self.on_refusal()
        return True

    def mark(self, health: Health, reason: str = "") -> bool:
        """Take note of *health* and return whether that is news."""
        self.reason = reason
        self.doubtful = False
        if health is self.health:
            return False
        self.health = health
        if health is Health.SERVING:
            self.generation += 1
            self.breaker.reset()
        return True


class AddressPool:
    """
    The peers of one target.

    Args:
        target: `host:port`; the host is a name or an address.
        resolver: Asked for the host's addresses.
        connect: Makes channels.
        clock: Paces polls and retries.
        on_change: Called after each change of peers or of their health.
    """

    def __init__(
        self,
        target: str,
        *,
        resolver: Resolver,
        connect: Connect,
        clock: Clock,
        on_change: Callable[[], None],
    ) -> None:
        self.target = target
        self.host, self.port = split_target(target)
        self.peers: dict[str, Peer] = {}
        self.failure = ""
        """What keeps DNS from answering, for people."""
        self._resolver = resolver
        self._connect = connect
        self._clock = clock
        self._on_change = on_change
        self._tasks: set[asyncio.Task[None]] = set()
        self._confirming: set[Peer] = set()
        self._leaving: set[Peer] = set()
        self._looking: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to look for addresses and to watch them."""
        self._looking = self._spawn(self._poll(), f"dns {self.target}")

    def retire(self) -> None:
        """Stop looking; each channel is closed when its last call has ended. Then `over`."""
        if self._looking is not None:
            self._looking.cancel()
        for peer in self.peers.values():
            self._release(peer, "no longer configured")
        self.peers.clear()

    @property
    def over(self) -> bool:
        """Whether nothing is left of a pool that has retired."""
        return not self._leaving and not self._tasks

    async def aclose(self) -> None:
        """Stop looking and close every channel, whatever runs on it."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)
        peers = (*self.peers.values(), *self._leaving)
        for peer in peers:
            # A call that ends after this finds nobody who would look after a task.
            peer.on_idle = peer.on_refusal = None
        for peer in peers:
            await peer.channel.close()
        self.peers.clear()
        self._leaving.clear()

    def _spawn(self, coroutine: Coroutine[Any, Any, None], name: str) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(coroutine, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            _log.error("task crashed", task=task.get_name(), exc_info=error)

    async def _poll(self) -> None:
        while True:
            try:
                await self.poll_once()
            except Exception as error:  # noqa: BLE001 - who stops asking never hears of an address again
                if not self.failure:
                    _log.error("addresses kept", target=self.target, exc_info=error)
                self.failure = f"looking it up failed: {type(error).__name__}"
            else:
                if literal(self.host):
                    return
            await self._clock.sleep(POLL_EVERY)

    async def poll_once(self) -> None:
        """Ask DNS once and take what it says; a failure changes nothing."""
        try:
            found = await self._resolver.resolve(self.host)
        except LookupFailed as error:
            if not self.failure:
                _log.warning("addresses kept", target=self.target, reason=str(error))
            self.failure = str(error)
        else:
            self.failure = ""
            self._take({join_target(host, self.port) for host in found})

    def _take(self, found: Collection[str]) -> None:
        now = self._clock.monotonic()
        news = False
        for address in found:
            peer = self.peers.get(address)
            if peer is None:
                peer = self.peers[address] = Peer(address, self._connect(address), self._clock)
                peer.on_refusal = partial(self._refused, peer)
                peer.task = self._spawn(self._watch(peer), f"health {address}")
                news = True
            peer.seen = now
        for peer in list(self.peers.values()):
            if peer.address not in found and peer.seen <= now - (ABSENCE if peer.serving else 0.0):
                del self.peers[peer.address]
                self._release(peer, "no longer in DNS")
                news = True
        if news:
            self._on_change()

    def _release(self, peer: Peer, why: str) -> None:
        """Close a peer's channel when its last call has ended."""
        if peer.task is not None:
            peer.task.cancel()
        peer.on_refusal = None
        peer.mark(Health.UNREACHABLE, why)
        self._leaving.add(peer)

        def close() -> None:
            peer.on_idle = None
            self._spawn(self._close(peer), f"close {peer.address}")

        if peer.in_flight:
            peer.on_idle = close
        else:
            close()

    async def _close(self, peer: Peer) -> None:
        await peer.channel.close()
        self._leaving.discard(peer)

    def _refused(self, peer: Peer) -> None:
        # Once at a time: one that says that it serves, and refuses all the same, is asked no more for that.
        if peer not in self._confirming:
            self._confirming.add(peer)
            self._spawn(self._confirm(peer), f"confirm {peer.address}")
        self._on_change()

    async def _confirm(self, peer: Peer) -> None:
        """Ask *peer* for its health while nothing has been heard of it since it answered DRAINING."""
        try:
            while True:
                await self._clock.sleep(CONFIRM)
                if not peer.doubtful or self.peers.get(peer.address) is not peer:
                    return
                call = peer.channel.stream(WATCH, health_pb2.HealthCheckRequest(), deadline=CONFIRM)
                try:
                    async for answer in call:
                        self._heard(peer, answer.status)
                        break
                except errors.PatchbayError as error:
                    _log.info("no word of health", address=peer.address, reason=error.message)
                finally:
                    await call.aclose()
        finally:
            # In the same turn in which it looked last: whoever refuses after that is looked at anew.
            self._confirming.discard(peer)

    async def _watch(self, peer: Peer) -> None:
        """Follow the health of *peer* for ever."""
        pause = FIRST_RETRY
        while True:
            health, reason = Health.UNREACHABLE, "the connection ended"
            call = peer.channel.stream(WATCH, health_pb2.HealthCheckRequest(), deadline=None)
            try:
                async for answer in call:
                    pause = FIRST_RETRY
                    self._heard(peer, answer.status)
            except errors.FailedPrecondition as error:
                health, reason = Health.NO_HEALTH, error.message
            except errors.PatchbayError as error:
                reason = error.message
            except Exception as error:  # noqa: BLE001 - who stops watching never hears that it serves
                reason = f"the watch failed: {type(error).__name__}"
                _log.error("watch of an address failed", address=peer.address, exc_info=error)
            finally:
                await call.aclose()
            if peer.mark(health, reason):
                _log.info("address lost", address=peer.address, state=health.value, reason=reason)
                self._on_change()
            # Processes that lost the same peer must not come back in step.
            await self._clock.sleep(pause * random.uniform(0.5, 1.5))  # noqa: S311 - no secret
            pause = min(pause * 2, MAX_RETRY)

    def _heard(self, peer: Peer, status: int) -> None:
        if status == health_pb2.HealthCheckResponse.SERVING:
            news = peer.mark(Health.SERVING)
        else:
            news = peer.mark(Health.DRAINING, "it answers NOT_SERVING")
        if news:
            _log.info("address changed", address=peer.address, state=peer.health.value)
            self._on_change()


class Addresses:
    """
    The pools of this process, one per target, shared.

    Args:
        resolver: As in AddressPool.
        connect: As in AddressPool.
        clock: As in AddressPool.
        on_change: Called with the target after each change.
    """

    def __init__(
        self,
        *,
        resolver: Resolver,
        connect: Connect,
        clock: Clock,
        on_change: Callable[[str], None],
    ) -> None:
        self._resolver = resolver
        self._connect = connect
        self._clock = clock
        self._on_change = on_change
        self._pools: dict[str, AddressPool] = {}
        self._retired: list[AddressPool] = []
        """Pools that nobody wants any more, while calls run on their channels."""

    def peers(self, target: str) -> Iterable[Peer]:
        """Return the peers of *target* now."""
        pool = self._pools.get(target)
        return tuple(pool.peers.values()) if pool is not None else ()

    def failure(self, target: str) -> str:
        """Return what keeps DNS from answering for *target*, if anything."""
        pool = self._pools.get(target)
        return pool.failure if pool is not None else ""

    async def keep(self, targets: Collection[str]) -> None:
        """Have pools for *targets* and for nothing else; what runs on the others' channels may end."""
        self._retired = [pool for pool in self._retired if not pool.over]
        for target in targets:
            if target not in self._pools:
                pool = AddressPool(
                    target,
                    resolver=self._resolver,
                    connect=self._connect,
                    clock=self._clock,
                    on_change=lambda target=target: self._on_change(target),  # type: ignore[misc]
                )
                self._pools[target] = pool
                pool.start()
        for target in [t for t in self._pools if t not in targets]:
            pool = self._pools.pop(target)
            pool.retire()
            self._retired.append(pool)

    async def aclose(self) -> None:
        """Close every pool, whatever runs on its channels."""
        pools = [*self._pools.values(), *self._retired]
        self._pools.clear()
        self._retired.clear()
        for pool in pools:
            await pool.aclose()


def choose(peers: Sequence[Peer], exclude: Collection[str] = ()) -> Peer | None:
    """Return the less loaded of two random peers that may be called, None when there is none."""
    able = [p for p in peers if p.serving and p.address not in exclude and p.allows()]
    if len(able) <= 1:
        return able[0] if able else None
    first, second = random.sample(able, 2)
    return first if first.in_flight <= second.in_flight else second


def split_target(target: str) -> tuple[str, str]:
    """
    Return host and port of *target*; brackets around an IPv6 address are taken off.

    Raises:
        InvalidRequest: It is not `host:port`.
    """
    host, _, port = target.rpartition(":")
    if not host or not port.isdigit():
        raise errors.InvalidRequest(
            f"{target!r} is no address; write host:port", reason="ADDRESS_INVALID"
        )
    return host.removeprefix("[").removesuffix("]"), port


def join_target(host: str, port: str) -> str:
    """Return `host:port`, with brackets around an IPv6 address."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
