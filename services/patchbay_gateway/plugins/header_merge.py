"""
How plugins change headers: one rule for every interceptor.

Source: pluginapi, interceptor responses. First every name of `clear_headers` goes; then each name of
`headers` replaces all values of that name, and one without values goes too. Others stay where they are.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from patchbay.upstream_headers import HOP_BY_HOP

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from patchbay.errors import Headers
    from patchbay.type.v1 import headers_pb2

# The host's own on an answer: framing, its ids, and what browsers take for the site's word.
_HOSTS: Final = HOP_BY_HOP | {
    b"content-length",
    b"content-encoding",
    b"set-cookie",
    b"date",
    b"x-request-id",
}
_HOSTS_PREFIXES: Final = (b"x-patchbay-", b"access-control-")
_NAME: Final = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_BREAKS: Final = re.compile(rb"[\r\n\0]")
_LINE: Final = re.compile(rb"[^\r\n\0]*")


def for_client(headers: Headers) -> Headers:
    """Return what of a plugin's answer headers may reach the client: each a name and one line."""
    return [
        (name, value)
        for name, value in told(headers)
        if name not in _HOSTS and not name.startswith(_HOSTS_PREFIXES)
    ]


def told(headers: Headers) -> Headers:
    """
    Return headers as they may be used, whoever said them: names in lower case, values of one line.

    What is no name goes; line breaks become blanks, for behind one the next header would begin (RFC 9110,
    section 5.5).
    """
    return [
        (name.lower(), value if _LINE.fullmatch(value) else _BREAKS.sub(b" ", value))
        for name, value in headers
        if _NAME.fullmatch(name)
    ]


def merge(
    current: Headers, changed: Mapping[str, headers_pb2.StringList], cleared: Iterable[str]
) -> Headers:
    """Return *current* after one plugin's changes; the same object when there are none."""
    gone = {name.lower().encode("latin-1", "replace") for name in cleared}
    added: Headers = []
    for name, values in changed.items():
        key = name.lower().encode("latin-1", "replace")
        gone.add(key)
        added += [(key, _value(value)) for value in values.values]
    if not gone:
        return current
    return [pair for pair in current if pair[0] not in gone] + added


def difference(before: Headers, after: Headers) -> tuple[Headers, frozenset[bytes]]:
    """Return the headers of names that plugins set or changed, and the names that they took away."""
    old, new = _by_name(before), _by_name(after)
    changed = {name for name, values in new.items() if old.get(name) != values}
    return [pair for pair in after if pair[0] in changed], frozenset(old.keys() - new.keys())


def changed_by_plugins(head: Headers, upstream: Headers, left: Headers) -> Headers:
    """
    Return the client's *head* with what plugins did to the provider's headers.

    What they set or changed is shown, passed through or not; what they took away is not (pluginapi shows
    neither where passthrough is off; a plugin that hides a header means it).

    Args:
        head: As it would be without plugins.
        upstream: The provider's headers.
        left: The same as the plugins left them.
    """
    changed, gone = difference(upstream, left)
    if not changed and not gone:
        return head
    shown = for_client(changed)
    names = gone | {name for name, _ in shown}
    return [pair for pair in head if pair[0] not in names] + shown


def _by_name(headers: Headers) -> dict[bytes, list[bytes]]:
    found: dict[bytes, list[bytes]] = {}
    for name, value in headers:
        found.setdefault(name, []).append(value)
    return found


def _value(text: str) -> bytes:
    # A line break would begin a header of the plugin's own choice (RFC 9110, section 5.5).
    return _BREAKS.sub(b" ", text.encode("latin-1", "replace"))
