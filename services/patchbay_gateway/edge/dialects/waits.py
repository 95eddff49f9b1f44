"""
How long a provider asks to wait, in seconds: headers, google.rpc RetryInfo, resets of limits used up.

| where | form |
|---|---|
| `retry-after-ms` | milliseconds |
| `retry-after` | seconds or an HTTP date |
| body, google.rpc.RetryInfo | `retryDelay: "34.07s"` |
| body, `resets_in_seconds`, `resets_at` | seconds, unix seconds |
| `x-ratelimit-reset-*` | `6m0s`, seconds, or unix seconds or milliseconds |
| `anthropic-ratelimit-*-reset` | RFC 3339 or unix seconds |
| sentence | `try again in 1.2s` |

The first that is sound wins; garbage, negative and boundless values are as good as nothing. Nothing is capped
here: the policy does (kernel/outcomes.py). Pure.
"""

from __future__ import annotations

import email.utils
import re
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from patchbay.errors import Headers
    from patchbay_gateway.edge.dialects.said import Said

_UNITS: Final = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_PART: Final = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h|d)")
_DURATION: Final = re.compile(r"(?:\d+(?:\.\d+)?(?:ms|s|m|h|d))+")
_AGAIN: Final = re.compile(r"(?i)\btry again in ((?:\d+(?:\.\d+)?(?:ms|s|m|h|d))+)")
_UNIX: Final = 1e9
"""From here on a number of seconds is an instant (2001), not a wait (31 years)."""
_UNIX_MS: Final = 1e12
_BEYOND: Final = 1e15
"""No number from here on is meant; as an instant in milliseconds it is the year 33658."""


def wait_of(
    told: float | None, headers: Headers, said: Said, now: float, *, resets: bool
) -> float | None:
    """
    Return the seconds to wait, None when the provider did not say.

    Args:
        told: What the executor read.
        headers: The provider's.
        said: The provider's body.
        now: Unix seconds.
        resets: Whether limits were exceeded, so that their resets mean something.
    """
    by_name = {name: value.decode("latin-1").strip() for name, value in headers}
    milliseconds = number(by_name.get(b"retry-after-ms", ""))
    if milliseconds is not None:
        return milliseconds / 1000
    for found in (retry_after(by_name.get(b"retry-after", ""), now), _sound(told)):
        if found is not None:
            return found
    found = _in_body(said, now)
    if found is None and resets:
        found = _of_resets(by_name, now)
    if found is None and resets and (match := _AGAIN.search(said.text)):
        found = duration(match[1].lower())
    return found


def number(text: str) -> float | None:
    """Return a number that is neither negative nor beyond all measure, else None."""
    try:
        return _sound(float(text))
    except ValueError:
        return None


def retry_after(text: str, now: float) -> float | None:
    """Return the seconds of a Retry-After, None for garbage."""
    if not text:
        return None
    seconds = number(text)
    if seconds is not None:
        return seconds
    try:
        moment = email.utils.parsedate_to_datetime(text)
        if moment.tzinfo is None:
            moment = moment.replace(tzinfo=UTC)
        return max(moment.timestamp() - now, 0.0)
    except (ValueError, OverflowError, IndexError):
        return None


def duration(text: str) -> float | None:
    """Return the seconds of `1s`, `6m0s`, `17ms`, `2m59.56s`; None for anything else."""
    if not _DURATION.fullmatch(text):
        return None
    return _sound(sum(float(amount) * _UNITS[unit] for amount, unit in _PART.findall(text)))


def until(text: str, now: float) -> float | None:
    """Return the seconds until a reset: a duration, seconds, an instant in unix or RFC 3339 form."""
    seconds = number(text)
    if seconds is None:
        seconds = duration(text)
    if seconds is not None:
        if seconds >= _UNIX_MS:
            seconds /= 1000
        return seconds if seconds < _UNIX else max(seconds - now, 0.0)
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        return None
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    try:
        return max(moment.timestamp() - now, 0.0)
    except (OverflowError, ValueError):
        return None


def _in_body(said: Said, now: float) -> float | None:
    for detail in said.details:
        delay = detail.get("retryDelay")
        if isinstance(delay, str) and (found := duration(delay)) is not None:
            return found
    for key in ("resets_in_seconds", "resets_at", "retry_after"):
        told: Any = said.error.get(key)
        if isinstance(told, int | float) and not isinstance(told, bool):
            sound = _sound(float(told))
            if sound is not None:
                return sound if sound < _UNIX else max(sound - now, 0.0)
    return None


def _of_resets(by_name: dict[bytes, str], now: float) -> float | None:
    """Return the longest reset of the limits of which nothing is left."""
    waits: list[float] = []
    for name, value in by_name.items():
        if name.startswith(b"x-ratelimit-reset"):
            left = by_name.get(name.replace(b"-reset", b"-remaining", 1))
        elif name.startswith(b"anthropic-ratelimit-") and name.endswith(b"-reset"):
            stem = name.removesuffix(b"-reset")
            left = by_name.get(stem + b"-remaining")
            if left is None and by_name.get(stem + b"-status") == "rejected":
                left = "0"
        else:
            continue
        if left is not None and number(left) == 0.0 and (found := until(value, now)) is not None:
            waits.append(found)
    return max(waits) if waits else None


def _sound(seconds: float | None) -> float | None:
    # Comparisons with NaN are false.
    return seconds if seconds is not None and 0 <= seconds < _BEYOND else None
