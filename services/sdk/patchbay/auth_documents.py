"""
What one auth file of CLIProxyAPI says: a JSON document in, credential fields and seed material out.

Pure; for auth providers that read such documents too. They are those that its logins write
(`claude-someone@example.com.json`, …) and people edit: `type` names the provider, the tokens stand at the
top or under `token`, an expiry has one of six names and three forms, keys may be written with hyphens.
Nothing here writes them: a file is a seed.

Not here: directories, and which configured provider a document belongs to (the gateway's scheduler).
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Mapping

MAX_WEIGHT: Final = 1_000_000
DEFAULT_WEIGHT: Final = 1

# Keys that people write with hyphens, as in its configuration file.
_HYPHENATED: Final = frozenset({
    "api_key", "base_url", "disable_cooling", "excluded_models", "fingerprint_profile",
    "model_aliases", "proxy_url", "request_retry", "request_scoped_errors", "tool_prefix_disabled",
})  # fmt: skip
_EXPIRY: Final = ("expired", "expire", "expires_at", "expiresAt", "expiry", "expires")
_TOKEN_URLS: Final = ("token_url", "token_uri", "token_endpoint")
# Understood by CLIProxyAPI and without a meaning here; told, because silence would look like obedience.
_WITHOUT_EFFECT: Final = (
    "disable_cooling", "fingerprint_profile", "request_retry", "request_scoped_errors",
    "tool_prefix_disabled", "websockets",
)  # fmt: skip
# Above it a number is milliseconds: as seconds it would lie beyond the year 5000.
_MILLISECONDS: Final = 1e11
_TYPE: Final = re.compile(r"[a-z0-9][a-z0-9._-]{0,127}")


class Refused(ValueError):
    """The document is not used; the text says why, in one sentence and without secrets."""


class Torn(Refused):
    """It cannot be read as a document at all: perhaps it is being written just now."""


@dataclass(frozen=True, slots=True)
class AuthDocument:
    """One credential as its file describes it."""

    type: str
    """Provider type, lower case."""
    kind: str
    """`oauth2` or `api_key`."""
    material: Mapping[str, str] = field(repr=False)
    """Non-empty ones of `api_key`, `access_token`, `refresh_token`, `id_token`."""
    token_url: str = ""
    """Token endpoint, where the document names one."""
    client_id: str = ""
    client_secret: str = field(default="", repr=False)
    scopes: tuple[str, ...] = ()
    expires_at: float | None = None
    """When the access token expires, Unix seconds; None: not said."""
    last_refresh: float | None = None
    """Unix seconds."""
    refresh_interval: float | None = None
    """Seconds between refreshes, where the document asks for its own."""
    email: str = ""
    label: str = ""
    note: str = ""
    disabled: bool = False
    priority: int = 0
    weight: int = DEFAULT_WEIGHT
    prefix: str = ""
    proxy_url: str = ""
    base_url: str = ""
    excluded_models: tuple[str, ...] = ()
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    """Request headers of this credential."""
    model_aliases: tuple[tuple[str, str], ...] = ()
    """(name at the provider, alias)."""
    warnings: tuple[str, ...] = ()
    """What was read otherwise than it is written, one sentence each."""

    @property
    def refreshable(self) -> bool:
        """Whether it has a refresh token."""
        return bool(self.material.get("refresh_token"))

    @property
    def seed_hash(self) -> str:
        """
        Hex SHA-256 of the token that the credential grows from.

        Of nothing else: an edited priority must not bring a refresh token back that was used up long ago.
        """
        material = self.material
        seed = (
            material.get("refresh_token")
            or material.get("api_key")
            or material.get("access_token", "")
        )
        return hashlib.sha256(seed.encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class DocumentHead:
    """What a document says beside its material, whatever shape that has."""

    type: str
    """Provider type, lower case; empty where it names none."""
    disabled: bool = False
    priority: int = 0
    weight: int = DEFAULT_WEIGHT
    prefix: str = ""
    proxy_url: str = ""
    excluded_models: tuple[str, ...] = ()
    token_url: str = ""
    client_id: str = ""
    client_secret: str = field(default="", repr=False)
    scopes: tuple[str, ...] = ()
    refresh_interval: float | None = None
    """Seconds."""
    expires_at: float | None = None
    """As in `AuthDocument`, and the next."""
    last_refresh: float | None = None


def head(data: bytes) -> DocumentHead:
    """
    Return what the document *data* says beside its material, for whoever has a plugin read it.

    Raises:
        Refused: It is no object, or has a wrong weight; `Torn` where it is no JSON.
    """
    document = _normalised(_object(data))
    token = document["token"] if isinstance(document.get("token"), dict) else {}
    return DocumentHead(
        type=_text(document, "type").lower(),
        disabled=_flag(document.get("disabled")),
        priority=_priority(document.get("priority"), []),
        weight=_weight(document.get("weight")),
        prefix=_text(document, "prefix").strip("/"),
        proxy_url=_text(document, "proxy_url"),
        excluded_models=_names(document.get("excluded_models")),
        token_url=_first(document, token, _TOKEN_URLS),
        client_id=_first(document, token, ("client_id",)),
        client_secret=_first(document, token, ("client_secret",)),
        scopes=_scopes(document, token),
        refresh_interval=_seconds(document.get("refresh_interval_seconds")),
        expires_at=_expiry(document, token),
        last_refresh=instant(document.get("last_refresh")),
    )


def parse(data: bytes, *, default_type: str = "") -> AuthDocument:
    """
    Return what the document *data* says.

    Args:
        data: JSON text.
        default_type: Type of a document that names none.

    Raises:
        Refused: It is not usable; `Torn` where it is no JSON.
    """
    document = _normalised(_object(data))
    type_ = _text(document, "type").lower() or default_type
    if not type_:
        raise Refused("has no type; it names the provider")
    if type_ == "service_account" or "private_key" in document:
        raise Refused("is a service account key, which no built-in plugin uses")
    if not _TYPE.fullmatch(type_):
        raise Refused("has a type that cannot be the name of a provider")
    token = document["token"] if isinstance(document.get("token"), dict) else {}
    material = _material(document, token)
    warnings: list[str] = []
    without = [key for key in _WITHOUT_EFFECT if document.get(key)]
    if without:
        warnings.append(f"{', '.join(without)} without effect here")
    return AuthDocument(
        type=type_,
        kind="api_key" if "api_key" in material else "oauth2",
        material=material,
        token_url=_first(document, token, _TOKEN_URLS),
        client_id=_first(document, token, ("client_id",)),
        client_secret=_first(document, token, ("client_secret",)),
        scopes=_scopes(document, token),
        expires_at=_expiry(document, token),
        last_refresh=instant(document.get("last_refresh")),
        refresh_interval=_seconds(document.get("refresh_interval_seconds")),
        email=_text(document, "email"),
        label=_text(document, "label"),
        note=_text(document, "note"),
        disabled=_flag(document.get("disabled")),
        priority=_priority(document.get("priority"), warnings),
        weight=_weight(document.get("weight")),
        prefix=_text(document, "prefix").strip("/"),
        proxy_url=_text(document, "proxy_url"),
        base_url=_text(document, "base_url").rstrip("/"),
        excluded_models=_names(document.get("excluded_models")),
        headers=_headers(document.get("headers")),
        model_aliases=_aliases(document.get("model_aliases")),
        warnings=tuple(warnings),
    )


def _object(data: bytes) -> dict[str, Any]:
    try:
        document = json.loads(data)
        # Halves of surrogate pairs pass as text here and nowhere else.
        json.dumps(document, ensure_ascii=False).encode()
    except (ValueError, RecursionError):
        raise Torn("is no JSON") from None
    if not isinstance(document, dict):
        raise Refused("is no JSON object")
    return document


def instant(value: object) -> float | None:
    """Return Unix seconds of an RFC 3339 text or a number of seconds or milliseconds; else None."""
    if isinstance(value, bool) or value is None:
        return None
    if isinstance(value, str):
        text = value.strip()
        try:
            return _number(float(text))
        except ValueError:
            pass
        try:
            moment = datetime.fromisoformat(text)
        except ValueError:
            return None
        if moment.tzinfo is None:
            moment = moment.replace(tzinfo=UTC)
        # Go writes its zero time for "never".
        return moment.timestamp() if moment.year > 1970 else None
    return _number(float(value)) if isinstance(value, int | float) else None


def _number(value: float) -> float | None:
    if not math.isfinite(value) or value <= 0:
        return None
    return value / 1000 if value > _MILLISECONDS else value


def _normalised(document: dict[str, Any]) -> dict[str, Any]:
    """Return the document with known keys in one spelling; what has the right one already wins."""
    found = dict(document)
    for key, value in document.items():
        plain = key.replace("-", "_")
        if plain != key and plain in _HYPHENATED:
            found.setdefault(plain, value)
    return found


def _material(document: Mapping[str, Any], token: Mapping[str, Any]) -> dict[str, str]:
    names = ("api_key", "access_token", "refresh_token", "id_token")
    found = {name: _first(document, token, (name,)) for name in names}
    if isinstance(document.get("token"), str):
        found["access_token"] = found["access_token"] or _text(document, "token")
    found = {name: value for name, value in found.items() if value}
    if not found.keys() & {"api_key", "access_token", "refresh_token"}:
        raise Refused("has neither api_key nor access_token nor refresh_token")
    return found


def _text(document: Mapping[str, Any], key: str) -> str:
    value = document.get(key)
    return value.strip() if isinstance(value, str) else ""


def _first(document: Mapping[str, Any], token: Mapping[str, Any], keys: tuple[str, ...]) -> str:
    for place in (document, token):
        for key in keys:
            if value := _text(place, key):
                return value
    return ""


def _expiry(document: Mapping[str, Any], token: Mapping[str, Any]) -> float | None:
    for place in (document, token):
        for key in _EXPIRY:
            if (found := instant(place.get(key))) is not None:
                return found
    # Some logins write a duration and when it began, in milliseconds.
    began, duration = instant(document.get("timestamp")), _seconds(document.get("expires_in"))
    return began + duration if began is not None and duration is not None else None


def _seconds(value: object) -> float | None:
    try:
        found = float(value) if isinstance(value, str | int | float) else math.nan
    except ValueError:
        return None
    return found if math.isfinite(found) and found > 0 and value is not True else None


def _scopes(document: Mapping[str, Any], token: Mapping[str, Any]) -> tuple[str, ...]:
    for place in (document, token):
        for key in ("scopes", "scope"):
            value = place.get(key)
            if isinstance(value, str) and value.strip():
                return tuple(value.split())
            if isinstance(value, list) and value:
                return tuple(item for item in value if isinstance(item, str))
    return ()


def _flag(value: object) -> bool:
    return value is True or (isinstance(value, str) and value.strip().lower() in {"true", "1"})


def _priority(value: object, warnings: list[str]) -> int:
    try:
        return _whole(value, 0)
    except ValueError:
        warnings.append("priority is no whole number and counts as 0")
        return 0


def _weight(value: object) -> int:
    try:
        weight = _whole(value, DEFAULT_WEIGHT)
    except ValueError:
        raise Refused("has a weight that is no whole number") from None
    if weight > MAX_WEIGHT:
        raise Refused(f"has a weight above {MAX_WEIGHT}")
    # Less than nothing takes no part where the strategy weighs, as nothing does.
    return max(weight, 0)


def _whole(value: object, default: int) -> int:
    if value is None or value == "":
        return default
    if isinstance(value, bool) or (isinstance(value, float) and not value.is_integer()):
        raise ValueError("no whole number")
    if isinstance(value, int | float | str):
        return int(value)
    raise ValueError("no whole number")


def _names(value: object) -> tuple[str, ...]:
    """Return a list of names, or one text with commas, without blanks."""
    parts = value.split(",") if isinstance(value, str) else value
    if not isinstance(parts, list):
        return ()
    return tuple(part.strip() for part in parts if isinstance(part, str) and part.strip())


def _headers(value: object) -> dict[str, str]:
    if not isinstance(value, dict):
        return {}
    return {
        name.strip(): text.strip()
        for name, text in value.items()
        if isinstance(name, str) and isinstance(text, str) and name.strip() and text.strip()
    }


def _aliases(value: object) -> tuple[tuple[str, str], ...]:
    """Return pairs of a list of {name, alias} or a mapping alias → name."""
    if isinstance(value, dict):
        pairs = [(name, alias) for alias, name in value.items()]
    elif isinstance(value, list):
        pairs = [(i.get("name"), i.get("alias")) for i in value if isinstance(i, dict)]
    else:
        return ()
    return tuple(
        (name.strip(), alias.strip())
        for name, alias in pairs
        if isinstance(name, str) and isinstance(alias, str) and name.strip() and alias.strip()
    )
