"""
What a provider's error says, whatever its shape: words, sentence, details.

Providers behind one wire format answer errors in each other's shapes (Google's OpenAI endpoint sends
google.rpc errors in an array), so this reads all of them. Pure. Not here: what the words mean (faulting.py).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

import orjson

from patchbay_gateway.edge.dialects import faults

if TYPE_CHECKING:
    from patchbay import errors

_WORDS: Final = ("code", "type", "status", "reason")


@dataclass(frozen=True, slots=True)
class Said:
    """The body of a provider's error, taken apart."""

    words: tuple[str, ...] = ()
    """Codes, types, statuses and reasons, lower case, most specific first."""
    code: str = ""
    """The most specific of them as the provider wrote it."""
    text: str = ""
    """The sentence for people, as received."""
    param: str = ""
    """The request's field that it is about."""
    details: tuple[dict[str, Any], ...] = ()
    """google.rpc details."""
    error: dict[str, Any] = field(default_factory=dict)
    """The error object itself."""
    page: bool = False
    """A web page in place of an API's answer."""


def read(error: errors.UpstreamError) -> Said:
    """Return what *error* says."""
    body = error.body
    if not body:
        return Said(text=error.message)
    start = body.lstrip()[:1]
    if start == b"<" or "html" in error.content_type:
        return Said(page=True, text=body[:8192].decode("utf-8", "replace"))
    found = faults.upstream_object(error)
    if isinstance(found, list) and found:
        found = found[0]
    if not isinstance(found, dict):
        return Said(text=body[:8192].decode("utf-8", "replace").strip())
    inner = _inner(found)
    places = [inner] if inner is found else [inner, found]
    details = inner.get("details")
    rpc = tuple(d for d in details if isinstance(d, dict)) if isinstance(details, list) else ()
    words: list[str] = [str(d["reason"]) for d in rpc if isinstance(d.get("reason"), str)]
    for place in places:
        words.extend(
            str(place[key]) for key in _WORDS if isinstance(place.get(key), str) and place[key]
        )
    param = inner.get("param")
    return Said(
        words=tuple(word.lower() for word in words),
        code=words[0] if words else "",
        text=faults.upstream_message(error) or error.message,
        param=param if isinstance(param, str) else "",
        details=rpc,
        error=inner,
    )


def _inner(found: dict[str, Any]) -> dict[str, Any]:
    """Return the error object: `error`, `response.error`, `body.error`, or the whole."""
    for outer in (found, found.get("response"), found.get("body")):
        if not isinstance(outer, dict):
            continue
        inner = outer.get("error")
        if isinstance(inner, dict):
            return inner
        # OAuth's form: {"error": "invalid_grant", "error_description": …}
        if isinstance(inner, str) and inner:
            return {"code": inner, "message": outer.get("error_description")}
    # Some relays put the provider's whole answer into the sentence.
    message = found.get("message")
    if isinstance(message, str) and message.startswith("{"):
        try:
            nested = orjson.loads(message)
        except orjson.JSONDecodeError:
            return found
        if isinstance(nested, dict) and isinstance(nested.get("error"), dict):
            return dict(nested["error"])
    return found
