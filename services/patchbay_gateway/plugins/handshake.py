"""
The host's side of the handshake: from a channel to a registration, or to reasons why not.

Challenge, Register, check, NotifyRegistration; a changed configuration goes by Reconfigure. Idempotent,
per host process and address. Layouts and the plugin's side: `patchbay.handshake`. Not here: when it is
done (registry.py).
"""

from __future__ import annotations

import hmac
import secrets
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from patchbay import errors, handshake, tokens
from patchbay.plugin.v1 import plugin_pb2
from patchbay_gateway.kernel.channels import methods
from patchbay_gateway.plugins.policy import POLICIES

if TYPE_CHECKING:
    from collections.abc import Sequence

    from patchbay_gateway.kernel.channels.port import Channel, Metadata

_DEADLINE: Final = POLICIES["register"].deadline


class Refused(Exception):
    """The host will not use the plugin at this address."""

    def __init__(self, *reasons: str) -> None:
        super().__init__("; ".join(reasons))
        self.reasons = reasons


@dataclass(frozen=True, slots=True)
class Host:
    """Who asks."""

    id: str
    """Unique while the process lives; part of call tokens, so without blanks."""
    version: str
    """Of the program, for logs."""


@dataclass(frozen=True, slots=True)
class Registration:
    """A plugin that this host uses at one address."""

    response: plugin_pb2.RegisterResponse
    config_hash: str
    key: bytes
    """The channel key that both sides know."""


async def register(
    channel: Channel, host: Host, plugin_id: str, config: bytes, keys: Sequence[bytes]
) -> Registration:
    """
    Do the whole handshake.

    Args:
        channel: To one address.
        host: Who asks.
        plugin_id: Whom we expect there.
        config: Its configuration, YAML.
        keys: Its channel keys, the newest first.

    Raises:
        Refused: With what the plugin was told, where it could be told.
        PatchbayError: The call failed, or the plugin refused us.
    """
    if not keys:
        raise Refused(f"this process has no key for plugin {plugin_id}")
    nonce = secrets.token_bytes(handshake.NONCE_BYTES)
    named: Metadata = ((tokens.PLUGIN_KEY, plugin_id),)
    challenge = await channel.unary(
        methods.CHALLENGE,
        plugin_pb2.ChallengeRequest(plugin_id=plugin_id, host_id=host.id, host_nonce=nonce),
        deadline=_DEADLINE,
        metadata=named,
    )
    key = next(
        (
            key
            for key in keys
            if hmac.compare_digest(
                challenge.proof,
                handshake.plugin_proof(key, plugin_id, host.id, nonce, challenge.plugin_nonce),
            )
        ),
        None,
    )
    if key is None:
        # Nothing of ours goes there, not even the news: it may be somebody else's process.
        raise Refused(
            f"the process there does not know the key of plugin {plugin_id}; "
            f"give it what `patchbay plugin key {plugin_id}` prints"
        )
    config_hash = handshake.config_hash(config)
    response = await channel.unary(
        methods.REGISTER,
        plugin_pb2.RegisterRequest(
            plugin_id=plugin_id,
            host_id=host.id,
            host_version=host.version,
            protocol_versions=handshake.PROTOCOL_VERSIONS,
            config=config,
            config_hash=config_hash,
            plugin_nonce=challenge.plugin_nonce,
            proof=handshake.host_proof(
                key, plugin_id, host.id, challenge.plugin_nonce, config_hash
            ),
        ),
        deadline=_DEADLINE,
        metadata=named,
    )
    registration = Registration(response, config_hash, key)
    await _decide(channel, host, plugin_id, registration)
    return registration


async def reconfigure(
    channel: Channel, host: Host, plugin_id: str, config: bytes, old: Registration
) -> Registration:
    """
    Give a registered plugin another configuration; its answer replaces the old one whole.

    Raises:
        Refused: What it now declares cannot be used.
        PatchbayError: The call failed, or the plugin refused the configuration.
    """
    config_hash = handshake.config_hash(config)
    response = await channel.unary(
        methods.RECONFIGURE,
        plugin_pb2.ReconfigureRequest(plugin_id=plugin_id, config=config, config_hash=config_hash),
        deadline=_DEADLINE,
        metadata=_metadata(host, plugin_id, old),
    )
    registration = Registration(response, config_hash, old.key)
    await _decide(channel, host, plugin_id, registration)
    return registration


async def _decide(channel: Channel, host: Host, plugin_id: str, registration: Registration) -> None:
    """Tell the plugin what we think of it; Refused when that is not good."""
    reasons = objections(registration.response, plugin_id)
    await channel.unary(
        methods.NOTIFY_REGISTRATION,
        plugin_pb2.NotifyRegistrationRequest(
            plugin_id=plugin_id, host_id=host.id, accepted=not reasons, reasons=reasons
        ),
        deadline=_DEADLINE,
        metadata=_metadata(host, plugin_id, registration),
    )
    if reasons:
        raise Refused(*reasons)


def _metadata(host: Host, plugin_id: str, registration: Registration) -> Metadata:
    return (
        (tokens.PLUGIN_KEY, plugin_id),
        *tokens.TokenSource(registration.key, plugin_id, host.id).metadata(),
    )


def objections(response: plugin_pb2.RegisterResponse, plugin_id: str) -> list[str]:
    """Return what speaks against a plugin that answered so, one sentence each; empty for a good one."""
    reasons = []
    if response.protocol_version not in handshake.PROTOCOL_VERSIONS:
        reasons.append(
            f"protocol version {response.protocol_version} is not one of "
            f"{', '.join(map(str, handshake.PROTOCOL_VERSIONS))}"
        )
    if response.schema_version > handshake.SCHEMA_VERSION:
        reasons.append(
            f"schema version {response.schema_version} is newer than this host's "
            f"{handshake.SCHEMA_VERSION}; update the host"
        )
    elif not response.schema_version:
        reasons.append("schema_version is missing")
    if response.plugin_id != plugin_id:
        reasons.append(f"it is plugin {response.plugin_id!r}, not {plugin_id!r}")
    reasons.extend(
        f"metadata.{name} is empty"
        for name in ("name", "version", "author")
        if not getattr(response.metadata, name).strip()
    )
    reasons.extend(
        f"configuration field {field.name!r} has no type"
        for field in response.metadata.config_fields
        if field.type == plugin_pb2.CONFIG_FIELD_TYPE_UNSPECIFIED
    )
    if not response.capabilities.ListFields():
        reasons.append("it declares no capability that this host knows")
    if response.capabilities.HasField("executor"):
        executor = response.capabilities.executor
        if not executor.input_formats or not executor.output_formats:
            reasons.append("its executor names no input or no output format")
    return reasons


def explain(error: errors.PatchbayError) -> str:
    """Return a failed handshake's reason for people."""
    return f"{error.message} ({error.reason})"
