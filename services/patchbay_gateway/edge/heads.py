"""
What the head of a request must be before anything is made of it; both adapters ask the same.

The parser has seen to the rest of the syntax. Not here: who the client is (auth.py), routes (routes/).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from patchbay.errors import Headers

MAX_HEAD: Final = 64 << 10
"""Bytes; llhttp itself sets no bound, and this is twice what the usual servers take."""


def objection(url: bytes, headers: Headers, hosts: int, *, old: bool, read: int) -> int:
    """
    Return the status by which a head is refused, 0 if nothing is wrong with it.

    One Host, which says for whom the request is: another one, or none, is how a request is smuggled past who
    looks at the first (RFC 9112, section 3.2).

    Args:
        url: The target.
        headers: Names in lower case.
        hosts: How many of them are Host.
        old: HTTP/1.0, which knows no Host.
        read: At least as many bytes as the head has.
    """
    if read > MAX_HEAD and _size(url, headers) > MAX_HEAD:
        return 431
    return 400 if hosts > 1 or not (hosts or old) else 0


def only_chunked(headers: Headers) -> bool:
    """
    Whether a body is coded in no other way than in chunks.

    What was coded otherwise would be taken for the body as it is (RFC 9112, section 6.1).
    """
    codings = [value for name, value in headers if name == b"transfer-encoding"]
    return not codings or (len(codings) == 1 and codings[0].strip().lower() == b"chunked")


def _size(url: bytes, headers: Headers) -> int:
    return len(url) + sum(len(name) + len(value) + 4 for name, value in headers)
