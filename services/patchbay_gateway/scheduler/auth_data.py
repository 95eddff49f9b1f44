"""
Credentials as auth providers bring them (pluginapi: AuthData), opened and checked.

They come from documents, logins and command lines alike, material sealed with the plugin's return key. What
is opaque stays so: metadata, attributes and material of any names. Not here: asking plugins, what becomes of
what they bring (parsed_files.py, login.py, keeping.py).
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

import orjson

from patchbay.errors import FailedPrecondition, PatchbayError
from patchbay.keys import return_key
from patchbay.secrets import SecretOpener
from patchbay_gateway.kernel.keys import plugin_key
from patchbay_gateway.scheduler.durable.auth_files import credential_id
from patchbay_gateway.scheduler.durable.port import ACCESS_KEYS, NEVER_ACCESS
from patchbay_gateway.scheduler.refresh_rules import Renewal

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from patchbay.plugin.v1 import auth_data_pb2

UNREADABLE: Final = "AUTH_UNREADABLE"
"""Reason: what a plugin brought cannot be used."""


@dataclass(frozen=True, slots=True)
class BroughtAuth:
    """One credential that a plugin brought. Times are Unix seconds, 0 = not said."""

    provider: str
    """Provider key, lower case; empty: it did not say."""
    id: str = ""
    """As the plugin calls it; empty: it did not say."""
    file_name: str = ""
    label: str = ""
    prefix: str = ""
    proxy_url: str = ""
    disabled: bool = False
    material: Mapping[str, str] = field(default_factory=dict, repr=False)
    client_secret: str = field(default="", repr=False)
    access_keys: tuple[str, ...] = ()
    metadata: Mapping[str, Any] | None = field(default=None, repr=False)
    attributes: Mapping[str, str] = field(default_factory=dict)
    expires_at: float = 0.0
    next_refresh_after: float = 0.0

    @property
    def renewable(self) -> bool:
        """Whether its auth provider renews it although there is no `refresh_token`."""
        return not self.material.get("refresh_token") and bool(
            self.expires_at or self.next_refresh_after
        )

    @property
    def usable(self) -> bool:
        """Whether there is something for executors, or to get it with."""
        if self.material.get("refresh_token") or self.renewable:
            return True
        keys = self.access_keys or ACCESS_KEYS
        return any(self.material.get(key) for key in keys if key not in NEVER_ACCESS)

    @property
    def seed_hash(self) -> str:
        """Hex SHA-256 of what the credential grows from: its refresh token, else all of its material."""
        token = self.material.get("refresh_token")
        seed = (
            token.encode()
            if token
            else orjson.dumps(dict(self.material), option=orjson.OPT_SORT_KEYS)
        )
        return hashlib.sha256(seed).hexdigest()

    @property
    def described(self) -> str:
        """Hash of what it says beside its material."""
        said = [
            dict(self.metadata or {}),
            dict(self.attributes),
            list(self.access_keys),
            self.label,
        ]
        return hashlib.sha256(orjson.dumps(said, option=orjson.OPT_SORT_KEYS)).hexdigest()[:16]

    def setting(self, name: str) -> str:
        """Return a setting that is no secret, of the metadata or attributes: `token_url`, `client_id`."""
        value = (self.metadata or {}).get(name) or self.attributes.get(name, "")
        return value if isinstance(value, str) else ""

    @property
    def renewal(self) -> Renewal:
        """The same as what a refresh brings."""
        return Renewal(
            storage=self.material,
            expires_at=self.expires_at,
            next_refresh_after=self.next_refresh_after,
            access_keys=self.access_keys,
            metadata=self.metadata,
            attributes=self.attributes,
            label=self.label,
        )


def opened(
    auths: Iterable[auth_data_pb2.AuthData],
    plugin_id: str,
    plugins_roots: Sequence[bytes],
    now: float,
) -> tuple[BroughtAuth, ...]:
    """
    Return what *plugin_id* brought; empty entries are left out.

    Raises:
        FailedPrecondition: AUTH_UNREADABLE, one of them cannot be opened or is damaged.
    """
    opener = SecretOpener(
        [return_key(plugin_key(root, plugin_id)) for root in plugins_roots], cache_size=1
    )
    found = []
    for auth in auths:
        if not auth.ByteSize():
            continue
        try:
            found.append(_opened(auth, plugin_id, opener, now))
        except (PatchbayError, ValueError) as error:
            raise FailedPrecondition(
                f"what plugin {plugin_id} brought cannot be used: {error}", reason=UNREADABLE
            ) from error
    return tuple(found)


def _opened(
    auth: auth_data_pb2.AuthData, plugin_id: str, opener: SecretOpener, now: float
) -> BroughtAuth:
    material: dict[str, str] = {}
    if auth.HasField("storage"):
        if auth.storage.plugin_id != plugin_id:
            raise ValueError("its storage is another plugin's")
        material = {k: v for k, v in opener.open(auth.storage, now).material().items() if v}
    metadata = orjson.loads(auth.metadata) if auth.metadata else None
    if metadata is not None and not isinstance(metadata, dict):
        raise ValueError("its metadata is no object")
    secret = material.pop("client_secret", "")
    return BroughtAuth(
        provider=auth.provider.strip().lower(),
        id=auth.id.strip(),
        file_name=auth.file_name.strip(),
        label=auth.label.strip(),
        prefix=auth.prefix.strip().strip("/"),
        proxy_url=auth.proxy_url.strip(),
        disabled=auth.disabled,
        material=material,
        client_secret=secret,
        access_keys=tuple(k for k in auth.access_keys if k not in NEVER_ACCESS),
        metadata=metadata,
        attributes=dict(auth.attributes),
        expires_at=auth.expires_at.ToMilliseconds() / 1000,
        next_refresh_after=auth.next_refresh_after.ToMilliseconds() / 1000,
    )


def sub_ids(auths: Sequence[BroughtAuth], base: str) -> list[str]:
    """
    Return an id for each of *auths*: its own, else *base*, told apart by label or place.

    The same for the same document, whatever else there is.
    """
    labels = [auth.label for auth in auths]
    told_apart = all(labels) and len(set(labels)) == len(labels)
    found = []
    for at, auth in enumerate(auths):
        if auth.id:
            # pluginapi: an id may be the path of a file.
            found.append(credential_id(auth.id))
        elif len(auths) == 1:
            found.append(base)
        else:
            found.append(
                credential_id(f"{base}.{auth.label}") if told_apart else f"{base}.{at + 1}"
            )
    return found
