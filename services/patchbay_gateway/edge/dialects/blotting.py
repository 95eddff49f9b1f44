"""
What of a provider's error may be shown: secrets are blotted out, long texts are cut.

A provider, or a proxy before it, may quote what it was sent, the gateway's own key included. A document of
which nothing had to be blotted out passes as it is; of any other only type, code, message and param survive,
each cleaned, and the dialect builds it anew. Pure. Not here: whose shape a document has (the dialects), what
it means (faulting.py).
"""

from __future__ import annotations

import re
from typing import Any, Final

_MAX_MESSAGE: Final = 2048
_MAX_FIELD: Final = 256
# No provider's error is as long as this; a longer document is not worth the search.
_MAX_DOCUMENT: Final = 64 << 10
_BLOT: Final = "[REDACTED]"

# What follows the word for a secret. Quotes may be escaped, for documents are quoted inside strings. A bare
# `key` is the name of many a parameter: what has no digit is none of a secret's.
_SECRETS: Final = re.compile(
    r"(?i)("
    r"(?:(?<![a-z0-9])(?:api[_-]?key|(?:access|refresh|auth|id|session)?[_-]?token|(?:client)?[_-]?secret"
    r"|(?:private|secret)[_-]?key|authorization|passw(?:or)?d)"
    r"|(?<![a-z0-9])key(?=[\\\"']*\s*[:=]\s*[\\\"']*[^\s\"',;}&]*[0-9]))"
    r"\b[\\\"']*\s*[:=]\s*[\\\"']*(?:(?:bearer|basic|token|api-?key|digest|negotiate)\s+)?+"
    r"|\bbearer\s+|\bapi key provided:\s*)(?!\[REDACTED\])[^\s\"',;}&\\]{6,}"
)
_LOOKS_SECRET: Final = re.compile(
    r"\b(?:(?:sk|pk|rk|gsk|xai|pplx|hf|ghp|gho|key)[-_]|AIza|ya29\.|eyJ)[A-Za-z0-9_\-.*]{8,}"
)
# User and password of a URL (RFC 3986, section 3.2.1).
_USER_INFO: Final = re.compile(r"(?<=://)[^\s/@\"'<>]{1,1024}@")


def clean(text: str) -> str:
    """Return *text* cut to 2048 characters and without secrets."""
    return _cut(blotted(text), _MAX_MESSAGE)


def field(text: str) -> str:
    """Return the value of a field that is no sentence: without secrets, cut to 256 characters."""
    return _cut(blotted(text), _MAX_FIELD)


def brief(text: str) -> str:
    """Return *text* as it may be kept and shown: without secrets, one line, at most 2048 bytes."""
    # Cut before the work and after: blotting out makes a text longer, but not by much.
    line = " ".join(blotted(text[: 4 * _MAX_MESSAGE]).split())
    encoded = line.encode("utf-8", "replace")
    if len(encoded) <= _MAX_MESSAGE:
        return line
    return encoded[: _MAX_MESSAGE - 3].decode("utf-8", "ignore") + "…"


def blotted(text: str) -> str:
    """Return *text* without secrets, however long."""
    text = _USER_INFO.sub(f"{_BLOT}@", text)
    return _LOOKS_SECRET.sub(_BLOT, _SECRETS.sub(rf"\1{_BLOT}", text))


def harmless(document: bytes, parsed: Any) -> bool:
    """
    Whether a provider's document may be shown as it is.

    Args:
        document: As it came, a body or an event of a stream.
        parsed: Its JSON; strings are looked at unescaped too.
    """
    if len(document) > _MAX_DOCUMENT or _tells(document.decode("utf-8", "replace")):
        return False
    # No recursion: the depth is the provider's choice.
    waiting: list[Any] = [parsed]
    while waiting:
        found = waiting.pop()
        if isinstance(found, str):
            if _tells(found):
                return False
        elif isinstance(found, list):
            waiting += found
        elif isinstance(found, dict):
            for name, value in found.items():
                if isinstance(value, dict | list):
                    waiting.append(value)
                elif isinstance(value, str) and (_tells(f"{name}: {value}") or _tells(value)):
                    return False
    return True


def _tells(text: str) -> bool:
    return bool(
        _SECRETS.search(text)
        or _LOOKS_SECRET.search(text)
        or (text.find("://") >= 0 and _USER_INFO.search(text))
    )


def _cut(text: str, most: int) -> str:
    return text if len(text) <= most else text[:most] + "…"
