"""
The port for RPC: unary, server stream and bidirectional calls, whoever answers.

Every call ends in one of three ways: a result, an error of `patchbay.errors`, or CancelledError when the
caller's task was cancelled, which then also cancels the servicer's task. Deadlines are seconds from now
and end as DeadlineExceeded. A stopped reader blocks the producer within 64 messages or 1 MiB. Messages
are owned by the receiver after the call: neither side changes one it has passed on.

Not here: addresses, retries, breakers (plugins/addresses.py, plugins/breaker.py).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Generic, Protocol, TypeVar

from google.protobuf.message import Message

if TYPE_CHECKING:
    from collections.abc import AsyncIterable, AsyncIterator, Sequence

MESSAGE_TOO_LARGE: Final = "MESSAGE_TOO_LARGE"
"""Reason of a ResourceExhausted: what the caller sends is larger than a message may be."""
ANSWER_TOO_LARGE: Final = "ANSWER_TOO_LARGE"
"""Reason of a ResourceExhausted: what the peer answers is."""
TRANSPORT: Final = "TRANSPORT"
"""Reason of an Unavailable that the channel made: no answer of the peer stands behind it."""
CALL_DEADLINE: Final = "CALL_DEADLINE"
"""Reason of a DeadlineExceeded that the channel made because the caller's deadline passed."""
OF_THE_WAY: Final = frozenset({TRANSPORT, CALL_DEADLINE})
"""Reasons of failures that an address is held to account for, not what answers there."""
DRAINING: Final = "DRAINING"
"""Reason of an Unavailable of a peer that is shutting down: another address may be asked at once."""
NOT_REGISTERED: Final = "NOT_REGISTERED"
"""Reason of an Unavailable of a plugin that does not know, or knows no more, what a call was made under."""

Req = TypeVar("Req", bound=Message)
Res = TypeVar("Res", bound=Message)
Res_co = TypeVar("Res_co", bound=Message, covariant=True)

Metadata = tuple[tuple[str, str], ...]
"""Call metadata: lower-case keys, printable values."""


@dataclass(frozen=True, slots=True)
class Method(Generic[Req, Res]):
    """One RPC method of the contract."""

    path: str
    """`/package.Service/Method`."""
    request: type[Req]
    response: type[Res]


class StreamCall(Protocol[Res_co]):
    """
    A running server stream: iterate it, and close it in every case.

    Iteration raises the terminal error of the RPC; a plain end means status OK.
    """

    def __aiter__(self) -> AsyncIterator[Res_co]: ...

    async def __anext__(self) -> Res_co: ...

    def cancel(self) -> None:
        """Cancel the call without waiting; the servicer sees CancelledError. Idempotent."""

    async def aclose(self) -> None:
        """Cancel the call if it still runs and wait until nothing of it is left. Idempotent."""


class Channel(Protocol):
    """One way to one peer."""

    async def unary(
        self,
        method: Method[Req, Res],
        request: Req,
        *,
        deadline: float | None,
        metadata: Metadata = (),
    ) -> Res:
        """
        Call and wait for the one answer.

        Args:
            method: What to call.
            request: Its message.
            deadline: Seconds from now; None only for execute, whose limits the executor keeps.
            metadata: Sent along.
        """
        ...

    def stream(
        self,
        method: Method[Req, Res],
        request: Req,
        *,
        deadline: float | None,
        metadata: Metadata = (),
    ) -> StreamCall[Res]:
        """Start a server stream; nothing is sent before the first iteration."""
        ...

    def bidi(
        self,
        method: Method[Req, Res],
        requests: AsyncIterable[Req],
        *,
        deadline: float | None,
        metadata: Metadata = (),
    ) -> StreamCall[Res]:
        """Start a bidirectional stream; *requests* is read as the peer takes it."""
        ...

    async def close(self) -> None:
        """Cancel what runs and release everything. Idempotent."""


class CallContext(Protocol):
    """What a servicer may ask of its call: the part of grpc.aio.ServicerContext that both adapters have."""

    def invocation_metadata(self) -> Sequence[tuple[str, str | bytes]] | None:
        """The caller's metadata, as (key, value) pairs."""

    def time_remaining(self) -> float | None:
        """Seconds until the caller's deadline, None without one."""

    def peer(self) -> str:
        """Where the call comes from; `inprocess:` inside the process."""
