"""Credentials on their way back to the host: the dataclass to its message, material sealed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from patchbay import errors
from patchbay.plugin.v1 import auth_data_pb2
from patchbay.secrets import seal
from patchbay.wire import json_bytes

if TYPE_CHECKING:
    from google.protobuf.timestamp_pb2 import Timestamp

    from patchbay.auth_provider import AuthData

# The scheduler opens it as it comes; one that has waited this long has lost its way.
_RETURN_FOR: Final = 900.0
# The end of the year 9999, where protobuf's Timestamp ends.
_LAST: Final = 253_402_300_799.0


def auth_message(
    auth: AuthData,
    plugin_id: str,
    return_key: bytes | None,
    now: float,
    *,
    credential_id: str = "",
    version: int = 0,
) -> auth_data_pb2.AuthData:
    """
    Return the message of *auth*.

    Args:
        auth: The credential.
        plugin_id: Whose it is.
        return_key: Seals the material; None where the plugin has no key.
        now: Unix seconds.
        credential_id: That of the secret in the request; default the credential's own.
        version: That of the secret in the request; 0 where there was none.

    Raises:
        FailedPrecondition: There is material and no key.
    """
    message = auth_data_pb2.AuthData(
        provider=auth.provider,
        id=auth.id,
        file_name=auth.file_name,
        label=auth.label,
        prefix=auth.prefix,
        proxy_url=auth.proxy_url,
        disabled=auth.disabled,
        # An empty object is news: it takes the place of what was there.
        metadata=b"" if auth.metadata is None else json_bytes(auth.metadata) or b"{}",
        attributes=auth.attributes,
        access_keys=auth.access_keys,
    )
    set_time(message.next_refresh_after, auth.next_refresh_after)
    set_time(message.expires_at, auth.expires_at)
    if auth.storage is not None:
        if return_key is None:
            raise errors.FailedPrecondition(
                f"plugin {plugin_id} has no key; set PATCHBAY_PLUGIN_KEY or PATCHBAY_PLUGIN_KEY_FILE",
                reason="SECRET_KEY_UNKNOWN",
            )
        sealed = seal(
            return_key,
            plugin_id,
            credential_id or auth.id,
            version,
            (),
            now + _RETURN_FOR,
            auth.storage,
        )
        message.storage.CopyFrom(sealed)
    return message


def set_time(into: Timestamp, value: float | None) -> None:
    """
    Set a timestamp to Unix seconds; None leaves it unset.

    Providers say "never" by numbers beyond every calendar: those become its last day. A token that was just
    issued must not be lost for it.
    """
    if value is not None:
        into.FromNanoseconds(int(min(max(value, 0.0), _LAST) * 1e9))
