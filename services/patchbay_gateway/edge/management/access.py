"""
Who may use the management API.

Three ways in: a management key of the configuration, the token file of this machine and, where nothing
else is configured and only this machine can connect (`patchbay up`), no key at all, for reading. What a
web page in the user's browser could do is refused in each of them: an Origin that is not ours always,
and without keys also a Host that is not this machine (DNS rebinding) and a write that is not JSON (a form).

Not here: where keys come from (kernel/config), the token file (kernel/management_token.py).
"""

from __future__ import annotations

import hmac
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, Protocol
from urllib.parse import urlsplit

from patchbay.errors import FailedPrecondition, PermissionDenied, Unauthenticated
from patchbay_gateway.kernel.keys import client_key_digest

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from patchbay.errors import Headers
    from patchbay_gateway.kernel.config import Config

LOCAL_HOSTS: Final = frozenset({"localhost", "127.0.0.1", "::1"})
_READS: Final = frozenset({"GET", "HEAD", "OPTIONS"})
TOKEN_PRINCIPAL: Final = "token-file"  # noqa: S105 - a name
ANONYMOUS: Final = "local"


class Door(Protocol):
    """Lets requests in or not."""

    def admit(self, method: str, headers: Headers) -> str:
        """See `Access.admit`."""
        ...

    def refuse_foreign(self, headers: Headers) -> None:
        """See `Access.refuse_foreign`."""
        ...


@dataclass(frozen=True, slots=True)
class Access:
    """The keys that are accepted, and whether reading needs one."""

    keys: Mapping[str, str] = field(default_factory=dict, repr=False)
    """Digest → name."""
    roots: Sequence[bytes] = field(default=(), repr=False)
    """Cluster roots, newest first: a key is digested under each."""
    token: str = field(default="", repr=False)
    """Content of the token file; empty: there is none."""
    open_reads: bool = False
    """True only for `patchbay up` on loopback without management keys."""

    def admit(self, method: str, headers: Headers) -> str:
        """
        Return the name of who asks.

        Args:
            method: HTTP method.
            headers: Lower-case names.

        Raises:
            PermissionDenied: A request that a foreign web page may have caused.
            Unauthenticated: No key, or a wrong one.
        """
        self.refuse_foreign(headers)
        presented = _bearer(headers)
        if presented and (name := self._name_of(presented)):
            return name
        if presented or not self.open_reads:
            raise Unauthenticated("send a management key as Authorization: Bearer …")
        if method in _READS:
            return ANONYMOUS
        if _header(headers, b"content-type").split(b";")[0].strip().lower() != b"application/json":
            raise PermissionDenied("a change is sent as application/json", reason="NOT_JSON")
        raise Unauthenticated(
            "a change needs the token of the file management-token in the data directory, "
            "sent as Authorization: Bearer …"
        )

    def refuse_foreign(self, headers: Headers) -> None:
        """Raise PermissionDenied for a request that a foreign web page may have caused."""
        host = _header(headers, b"host").decode("latin-1")
        if self.open_reads and _hostname(host) not in LOCAL_HOSTS:
            raise PermissionDenied(
                "this host name is not served without a management key", reason="FOREIGN_HOST"
            )
        origin = _header(headers, b"origin").decode("latin-1")
        if origin and urlsplit(origin).netloc.lower() != host.lower():
            raise PermissionDenied("other origins are not served", reason="FOREIGN_ORIGIN")

    def _name_of(self, presented: str) -> str | None:
        """Return whose key it is; takes as long for a wrong key as for any."""
        found: str | None = None
        if self.token and hmac.compare_digest(self.token.encode(), presented.encode()):
            found = TOKEN_PRINCIPAL
        for digest in (client_key_digest(root, presented) for root in self.roots):
            for known, name in self.keys.items():
                if hmac.compare_digest(known, digest):
                    found = name
        return found


def make_access(
    config: Config,
    environ: Mapping[str, str],
    *,
    roots: Iterable[bytes],
    token: str,
    local_only: bool,
) -> Access:
    """
    Return who may manage a gateway of this configuration.

    Args:
        config: Its `management_keys`.
        environ: Where `key_env` is looked up.
        roots: Cluster roots, newest first.
        token: Of the token file; empty: none.
        local_only: True for `patchbay up` listening on loopback.

    Raises:
        ConfigError: A key cannot be read.
        FailedPrecondition: There are keys but no cluster root to digest them with.
    """
    roots = tuple(roots)
    if config.management_keys and not roots:
        raise FailedPrecondition(
            "management keys need the cluster root: set PATCHBAY_CLUSTER_KEY or its _FILE",
            reason="ROOT_KEY_MISSING",
        )
    keys: dict[str, str] = {}
    for key in config.management_keys:
        plain = key.resolve(environ)
        keys[client_key_digest(roots[0], plain) if plain is not None else str(key.hash)] = key.name
    return Access(keys, roots, token, open_reads=local_only and not keys)


def _header(headers: Headers, name: bytes) -> bytes:
    return next((value for key, value in headers if key == name), b"")


def _bearer(headers: Headers) -> str:
    scheme, _, value = _header(headers, b"authorization").decode("latin-1").partition(" ")
    return value.strip() if scheme.lower() == "bearer" else ""


def _hostname(host: str) -> str:
    """Return the name of a Host header without its port."""
    try:
        return (urlsplit(f"//{host}").hostname or "").lower()
    except ValueError:
        return ""
