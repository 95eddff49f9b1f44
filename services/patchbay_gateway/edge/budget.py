"""
The budget of bytes in flight: how much of requests this process holds at once.

One number per process. Not here: the limit of a single body (body.py).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from patchbay.errors import Unavailable

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType
    from typing import Self

_RETRY_AFTER = 1.0


class ByteBudget:
    """
    Hands out charges against one limit.

    Args:
        limit: Bytes, read at each charge; 0 = none.
    """

    def __init__(self, limit: Callable[[], int]) -> None:
        self._limit = limit
        self.used = 0
        """Bytes charged now."""

    def charge(self) -> Charge:
        """Return an account for one request; use it as a context manager or call `release`."""
        return Charge(self)

    def take(self, size: int, held: int = 0) -> None:
        """
        Charge *size* bytes.

        Args:
            size: Bytes.
            held: Bytes that the same request has charged before.

        Raises:
            Unavailable: reason IN_FLIGHT_LIMIT; nothing was charged.
        """
        limit = self._limit()
        # A single body larger than the whole budget may pass alone; its own cap is another setting.
        if limit and self.used > held and self.used + size > limit:
            raise Unavailable(
                "the gateway holds too many bytes of requests at the moment; try again shortly",
                reason="IN_FLIGHT_LIMIT",
                retry_after=_RETRY_AFTER,
            )
        self.used += size


class Charge:
    """What one request has charged."""

    __slots__ = ("_budget", "size")

    def __init__(self, budget: ByteBudget) -> None:
        self._budget = budget
        self.size = 0

    def __call__(self, size: int) -> None:
        """
        Charge *size* bytes more.

        Raises:
            Unavailable: reason IN_FLIGHT_LIMIT.
        """
        self._budget.take(size, self.size)
        self.size += size

    def refund(self, size: int) -> None:
        """Give *size* bytes back."""
        size = min(size, self.size)
        self._budget.used -= size
        self.size -= size

    def release(self) -> None:
        """Give everything back; again does nothing."""
        self.refund(self.size)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._budget.used -= self.size
        self.size = 0
