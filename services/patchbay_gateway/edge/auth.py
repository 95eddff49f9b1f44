"""
Who a client is: its key among the snapshot's, or open access on loopback.

A key is known by its HMAC only. Not here: plugins that authenticate (plugins/), limits of a key
(scheduler), management keys (management/).
"""

from __future__ import annotations

import functools
import re
from dataclasses import dataclass, field
from fnmatch import translate
from typing import TYPE_CHECKING, Final
from urllib.parse import unquote_plus, urlsplit

from patchbay.errors import InvalidRequest, PermissionDenied, Unauthenticated

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from patchbay_gateway.edge.exchange import Head
    from patchbay_gateway.plugins.snapshot import ClientKeyEntry, Snapshot

_LOOPBACK: Final = frozenset({"localhost", "127.0.0.1", "[::1]", "::1"})
_MAX_KEY: Final = 4096
# Keys seen lately → digest, so that a busy key costs a look-up and not an HMAC a request. The plain key
# is in this process anyway while its requests are.
_DIGESTS: Final = 1024


@dataclass(frozen=True, slots=True)
class Client:
    """An authenticated client."""

    name: str
    """Of the key; `open` under open access."""
    tenant: str
    source: str
    """`authorization`, `x-goog-api-key`, `x-api-key`, `query-key` or `open`."""
    matcher: Callable[[str], object] | None = field(repr=False, compare=False)
    """None: every model."""

    def allows(self, model: str) -> bool:
        """Whether the key's allow-list covers the public name *model*."""
        return self.matcher is None or self.matcher(model) is not None


OPEN: Final = Client(name="open", tenant="default", source="open", matcher=None)


def candidates(head: Head) -> Iterator[tuple[str, str]]:
    """
    Yield (source, key) in the order in which they are tried.

    `Authorization` (with or without `Bearer`), `x-goog-api-key`, `x-api-key`, `?key=`. Empty ones are
    left out.
    """
    found: dict[bytes, bytes] = {}
    for name, value in head.headers:
        if name in {b"authorization", b"x-goog-api-key", b"x-api-key"} and name not in found:
            found[name] = value.strip()
    if key := _bearer_key(found.get(b"authorization", b"")):
        yield "authorization", key
    for name, source in ((b"x-goog-api-key", "x-goog-api-key"), (b"x-api-key", "x-api-key")):
        if value := found.get(name, b""):
            yield source, value.decode("utf-8", "replace")
    if b"key=" in head.query:
        for part in head.query.split(b"&"):
            if part.startswith(b"key=") and len(part) > 4:
                yield "query-key", unquote_plus(part[4:].decode("latin-1"))
                return


class Authenticator:
    """
    Looks keys up.

    Args:
        digest: A key's hex HMACs under the client-key roots, newest first (kernel/keys.py).
        allow_open: Whether this process may answer without a key where the snapshot wishes it. The snapshot
            is shared by processes that listen elsewhere, so its wish alone opens nothing.
    """

    def __init__(self, digest: Callable[[str], tuple[str, ...]], *, allow_open: bool) -> None:
        self._allow_open = allow_open
        self._digest = functools.lru_cache(maxsize=_DIGESTS)(digest)
        # Raw `Authorization` → digests: what nearly every request asks for, in one look-up.
        self._bearer = functools.lru_cache(maxsize=_DIGESTS)(self._bearer_digests)
        # (digest, source) → the snapshot's entry and the client made of it.
        self._clients: dict[tuple[str, str], tuple[ClientKeyEntry, Client]] = {}

    def authenticate(self, head: Head, snapshot: Snapshot) -> Client:
        """
        Return who sent *head*.

        Raises:
            Unauthenticated: No candidate is a key of the snapshot; reason MISSING_KEY or UNKNOWN_KEY.
            PermissionDenied: Open access, foreign Host or Origin; reason FOREIGN_HOST, FOREIGN_ORIGIN.
            InvalidRequest: Open access, POST of something else than JSON; reason UNSUPPORTED_MEDIA.
        """
        if self._allow_open and snapshot.settings.open_access:
            check_open(head)
            return OPEN
        keys: Mapping[str, ClientKeyEntry] = snapshot.client_key_by_digest
        for name, value in head.headers:
            if name == b"authorization":
                for digest in self._bearer(value):
                    if digest in keys:
                        return self._client(keys[digest], digest, "authorization")
                break
        missing = True
        for source, key in candidates(head):
            missing = False
            if len(key) > _MAX_KEY:
                continue
            for digest in self._digest(key):
                if digest in keys:
                    return self._client(keys[digest], digest, source)
        if missing:
            raise Unauthenticated(
                "no API key: send it as 'Authorization: Bearer <key>', 'x-api-key', "
                "'x-goog-api-key' or '?key='",
                reason="MISSING_KEY",
            )
        raise Unauthenticated("the API key is not known here", reason="UNKNOWN_KEY")

    def _bearer_digests(self, value: bytes) -> tuple[str, ...]:
        key = _bearer_key(value)
        return self._digest(key) if 0 < len(key) <= _MAX_KEY else ()

    def _client(self, entry: ClientKeyEntry, digest: str, source: str) -> Client:
        known = self._clients.get((digest, source))
        if known is not None and known[0] is entry:
            return known[1]
        if len(self._clients) >= _DIGESTS:
            self._clients.clear()
        client = Client(entry.name, entry.tenant, source, _matcher(entry.models))
        self._clients[digest, source] = entry, client
        return client


def _bearer_key(value: bytes) -> str:
    value = value.strip()
    if value[:7].lower() == b"bearer ":
        value = value[7:].strip()
    return "" if value.lower() == b"bearer" else value.decode("utf-8", "replace")


@functools.lru_cache(maxsize=_DIGESTS)
def _matcher(globs: tuple[str, ...]) -> Callable[[str], object] | None:
    if "*" in globs:
        return None
    if not globs:
        return lambda _: None
    return re.compile("|".join(translate(glob) for glob in globs)).match


def check_open(head: Head) -> None:
    """
    Demand what open access demands, so that no web page in the user's browser can use it.

    Host must be a loopback name (against DNS rebinding), Origin absent or of the same, and a POST must
    be JSON by its content type (a plain form post needs no preflight).
    """
    host = origin = content_type = b""
    for name, value in head.headers:
        # Several of a name are one list (RFC 9110, section 5.3), and a list is none of what is asked for.
        if name == b"host":
            host = host + b"," + value if host else value
        elif name == b"origin":
            origin = origin + b"," + value if origin else value
        elif name == b"content-type":
            content_type = content_type + b"," + value if content_type else value
    if _host_name(host) not in _LOOPBACK:
        raise PermissionDenied(
            "without client keys only requests to localhost, 127.0.0.1 or [::1] are answered; "
            "configure client_keys to use another host name",
            reason="FOREIGN_HOST",
        )
    if origin and not _is_loopback_origin(origin, host):
        raise PermissionDenied(
            "without client keys requests from web pages of another origin are refused",
            reason="FOREIGN_ORIGIN",
        )
    if head.method == "POST":
        media = content_type.partition(b";")[0].strip().lower()
        if media != b"application/json" and not media.endswith(b"+json"):
            raise InvalidRequest(
                "without client keys a POST needs 'content-type: application/json'",
                reason="UNSUPPORTED_MEDIA",
            )


def _host_name(host: bytes) -> str:
    text = host.decode("latin-1").strip().lower()
    if text.startswith("["):
        return text.partition("]")[0] + "]"
    return text.rpartition(":")[0] if text.count(":") == 1 else text


def _is_loopback_origin(origin: bytes, host: bytes) -> bool:
    try:
        parts = urlsplit(origin.decode("latin-1").strip().lower())
    except ValueError:
        return False
    # The same origin only: another port of this machine is another program's page.
    return parts.scheme in {"http", "https"} and parts.netloc.encode() == host.strip().lower()
