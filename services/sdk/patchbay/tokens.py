"""
Call tokens: who calls, proved by the channel's key in the metadata `patchbay-token`.

    v1.<caller>.<expiry>.<mac>

`caller` is the calling process's id, `expiry` Unix seconds in decimal, `mac` the hex HMAC-SHA-256 under
the key over "call" NUL audience NUL caller NUL expiry. The audience is the plugin id, or the full service
name between the gateway's own services. A token says who and until when; what a call may do is not here.
"""

from __future__ import annotations

import hashlib
import hmac
import time
from typing import TYPE_CHECKING, Final

from patchbay import errors

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    Metadata = Sequence[tuple[str, str | bytes]]

TOKEN_KEY: Final = "patchbay-token"  # noqa: S105 - the name of a metadata key
PLUGIN_KEY: Final = "patchbay-plugin"
CONFIG_KEY: Final = "patchbay-config"
CALLBACK_KEY: Final = "patchbay-callback"
"""Where the plugin may call back: `host:port` of a HostService."""
SCOPE_KEY: Final = "patchbay-scope"
"""In what it may call back: an id of the host's, sent back as it came."""
HOST_SERVICE: Final = "patchbay.host.v1.HostService"

LIFETIME: Final = 300
"""Seconds that a token holds; a new one is made after half of them."""

LEEWAY: Final = 30
"""Seconds by which the clocks of two machines may differ."""

_VERSION = "v1"
_REMEMBERED = 1024


def mint(key: bytes, audience: str, caller: str, expiry: int) -> str:
    """Return the token of *caller* for *audience*, good until *expiry* (Unix seconds)."""
    return f"{_VERSION}.{caller}.{expiry}.{_mac(key, audience, caller, str(expiry))}"


def _mac(key: bytes, audience: str, caller: str, expiry: str) -> str:
    text = b"call\0" + audience.encode() + b"\0" + caller.encode() + b"\0" + expiry.encode()
    return hmac.new(key, text, hashlib.sha256).hexdigest()


def host_audience(plugin_id: str) -> str:
    """Return the audience of a plugin's callbacks; it names the plugin, whose key proves the call."""
    return f"{HOST_SERVICE}/{plugin_id}"


class TokenSource:
    """
    Makes the caller's tokens, a new one when the old has lived half its life.

    Args:
        key: The channel key, or the service key.
        audience: Plugin id or full service name.
        caller: This process's id.
        now: Unix seconds.
    """

    __slots__ = ("_audience", "_caller", "_key", "_now", "_renew_at", "_token")

    def __init__(
        self, key: bytes, audience: str, caller: str, *, now: Callable[[], float] = time.time
    ) -> None:
        self._key = key
        self._audience = audience
        self._caller = caller
        self._now = now
        self._renew_at = 0.0
        self._token = ""

    def current(self) -> str:
        """Return a token that holds for at least half a lifetime."""
        now = self._now()
        if now >= self._renew_at:
            self._token = mint(self._key, self._audience, self._caller, int(now) + LIFETIME)
            self._renew_at = now + LIFETIME / 2
        return self._token

    @property
    def renew_at(self) -> float:
        """Unix seconds from which on `current` makes a new one."""
        return self._renew_at

    def metadata(self) -> tuple[tuple[str, str], ...]:
        """Return the current token as call metadata."""
        return ((TOKEN_KEY, self.current()),)


class TokenVerifier:
    """
    Tells callers from strangers.

    Args:
        keys: The keys of an audience, any generation; empty for an unknown one.
        now: Unix seconds.
    """

    def __init__(
        self, keys: Callable[[str], Sequence[bytes]], *, now: Callable[[], float] = time.time
    ) -> None:
        self._keys = keys
        self._now = now
        # Each caller sends one token for minutes; its HMAC is worth computing once.
        self._good: dict[tuple[str, str], tuple[str, int]] = {}

    def verify(self, audience: str, token: str) -> str:
        """
        Return the caller's id.

        Raises:
            Unauthenticated: TOKEN_INVALID or TOKEN_EXPIRED.
        """
        found = self._good.get((audience, token))
        if found is None:
            found = self._check(audience, token)
            if len(self._good) >= _REMEMBERED:
                self._good.clear()
            self._good[audience, token] = found
        caller, expiry = found
        if self._now() > expiry + LEEWAY:
            self._good.pop((audience, token), None)
            raise errors.Unauthenticated(
                "the call token has expired; compare the clocks of both machines",
                reason="TOKEN_EXPIRED",
                sent=errors.Sent.NO,
            )
        return caller

    def _check(self, audience: str, token: str) -> tuple[str, int]:
        version, _, rest = token.partition(".")
        caller, _, tail = rest.rpartition(".")
        caller, _, expiry = caller.rpartition(".")
        if version == _VERSION and caller and expiry.isascii() and expiry.isdigit():
            for key in self._keys(audience):
                expected = _mac(key, audience, caller, expiry)
                if hmac.compare_digest(expected.encode(), tail.encode()):
                    return caller, int(expiry)
        raise errors.Unauthenticated(
            f"the call token for {audience} is not one of this installation; "
            "give both sides keys of the same root",
            reason="TOKEN_INVALID",
            sent=errors.Sent.NO,
        )


class ServiceAuthenticator:
    """
    Authenticates calls between the gateway's own services (patchbay.server.Authenticate).

    Args:
        keys: The service keys, any generation.
        now: Unix seconds.
    """

    def __init__(self, keys: Sequence[bytes], *, now: Callable[[], float] = time.time) -> None:
        kept = tuple(keys)
        self._verifier = TokenVerifier(lambda _: kept, now=now)

    def __call__(self, path: str, metadata: Metadata) -> None:
        """Check the token of a call to *path*."""
        self._verifier.verify(path[1:].rpartition("/")[0], _value(metadata, TOKEN_KEY))


class PluginAuthenticator:
    """
    Authenticates calls to plugins; Challenge and Register prove themselves in their messages.

    Args:
        channel_keys: Plugin id to its channel keys, any generation.
        plugin_ids: Those served here; a call need not name an only one.
        now: Unix seconds.
    """

    _PROVEN: Final = frozenset(
        f"/patchbay.plugin.v1.PluginService/{name}" for name in ("Challenge", "Register")
    )

    def __init__(
        self,
        channel_keys: Callable[[str], Sequence[bytes]],
        plugin_ids: Sequence[str],
        *,
        now: Callable[[], float] = time.time,
    ) -> None:
        self._verifier = TokenVerifier(channel_keys, now=now)
        self._only = plugin_ids[0] if len(plugin_ids) == 1 else ""

    def __call__(self, path: str, metadata: Metadata) -> None:
        """Check the token of a call to *path*."""
        if path not in self._PROVEN:
            plugin_id = _value(metadata, PLUGIN_KEY) or self._only
            self._verifier.verify(plugin_id, _value(metadata, TOKEN_KEY))


class HostAuthenticator:
    """
    Authenticates callbacks of plugins to HostService (patchbay.server.Authenticate).

    Args:
        channel_keys: Plugin id to its channel keys, any generation; empty for an unknown one.
        now: Unix seconds.
    """

    def __init__(
        self,
        channel_keys: Callable[[str], Sequence[bytes]],
        *,
        now: Callable[[], float] = time.time,
    ) -> None:
        self._verifier = TokenVerifier(
            lambda audience: channel_keys(audience.removeprefix(f"{HOST_SERVICE}/")), now=now
        )

    def __call__(self, path: str, metadata: Metadata) -> None:
        """Check the token of a call to *path*."""
        self.plugin_id(metadata)

    def plugin_id(self, metadata: Metadata) -> str:
        """Return who calls, proved by the plugin's key; raises Unauthenticated."""
        plugin_id = _value(metadata, PLUGIN_KEY)
        self._verifier.verify(host_audience(plugin_id), _value(metadata, TOKEN_KEY))
        return plugin_id


def _value(metadata: Metadata, name: str) -> str:
    for key, value in metadata:
        if key == name and isinstance(value, str):
            return value
    return ""
