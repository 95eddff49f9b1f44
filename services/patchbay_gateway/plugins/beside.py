"""
What of a request is told beside the body that a message is about, as far as the message has room for it.

A message takes one body as large as bodies may be, and a little more; a client must not be able to keep a
plugin from seeing an answer by the size of its request. Not here: the bodies themselves, which are never cut.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from patchbay.server import message_limit_for

if TYPE_CHECKING:
    from patchbay_gateway.plugins.snapshot import Snapshot

# Headers, metadata and names: a client's head is 64 KiB at most, a provider's as much.
_REST: Final = 512 << 10


def with_room(snapshot: Snapshot, body: bytes, *beside: bytes) -> list[bytes]:
    """
    Return *beside* with what has no room next to *body* left out, that is empty; the first goes in first.

    Args:
        snapshot: Says how large bodies may be.
        body: What the message is about.
        beside: What else the plugin would be told.
    """
    left = message_limit_for(snapshot.settings.body_limit) - _REST - len(body)
    found = []
    for each in beside:
        fits = len(each) <= left
        left -= len(each) if fits else 0
        found.append(each if fits else b"")
    return found
