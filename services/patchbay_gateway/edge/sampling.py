"""
Which good answers tell the scheduler of the provider's rate limits: the first, every sixteenth, and those
that say that little is left.

Numbers are read at every fourth only, and at each while little is left; the rest costs a look for a header's
name. Not here: reading them (dialects/limits.py).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from patchbay_gateway.edge.dialects import limits

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from patchbay.type.v1 import headers_pb2
    from patchbay_gateway.edge.dialects.limits import Limit
    from patchbay_gateway.edge.dialects.port import Dialect
    from patchbay_gateway.kernel.clock import Clock

_EVERY: Final = 16
# Numbers are read only so often: they cost ten times what the look for their name does.
_READ: Final = 4
# A tenth of the limit is little.
_LITTLE: Final = 10
# Credentials that are counted; beyond it counting starts anew.
_MOST: Final = 20_000


class LimitSampler:
    """Counts answers per credential; one per edge."""

    def __init__(self) -> None:
        self._seen: dict[str, int] = {}
        self._low: set[str] = set()
        """Credentials of which little was left when it was last read."""

    def take(
        self,
        credential_id: str,
        headers: Mapping[str, headers_pb2.StringList],
        dialect: Dialect,
        clock: Clock,
    ) -> Sequence[Limit]:
        """
        Return the limits that a good answer's headers tell, empty where nobody needs to know.

        Args:
            credential_id: Whose limits they are.
            headers: Of the provider's answer, as an executor hands them on.
            dialect: That the provider answered in.
            clock: Asked only where there is something to read.
        """
        for remaining, _ in dialect.limit_signs:
            if remaining in headers:
                break
        else:
            return ()
        seen = self._seen.get(credential_id, 0)
        if len(self._seen) >= _MOST:
            self._seen.clear()
            self._low.clear()
        self._seen[credential_id] = seen + 1
        if seen % _READ and credential_id not in self._low:
            return ()
        if _little(headers, dialect.limit_signs):
            self._low.add(credential_id)
        else:
            self._low.discard(credential_id)
            if seen % _EVERY:
                return ()
        return limits.parse(
            ((name, values.values[0]) for name, values in headers.items() if values.values),
            clock.now(),
        )


def _little(
    headers: Mapping[str, headers_pb2.StringList], signs: Sequence[tuple[str, str]]
) -> bool:
    for names in signs:
        # Looked up by membership: reading a missing key of a message's map would add it.
        if not all(name in headers and headers[name].values for name in names):
            continue
        remaining, limit = (headers[name].values[0] for name in names)
        if remaining.isdecimal() and limit.isdecimal() and int(remaining) * _LITTLE <= int(limit):
            return True
    return False
