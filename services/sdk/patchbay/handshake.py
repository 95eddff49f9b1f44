"""
The handshake of a plugin and a host: proofs, and the plugin's side of it.

Order per host process and address: Challenge (the plugin proves its key), Register (the host proves its
own knowledge of it and hands over the configuration), NotifyRegistration (what the host decided). All
idempotent. Layouts of the proofs: proto/README.md "Without our SDK". Not here: the host's side
(the gateway's plugins/handshake.py), tokens of later calls (`patchbay.tokens`).
"""

from __future__ import annotations

import asyncio
import copy
import hashlib
import hmac
import logging
import secrets
import time
from typing import TYPE_CHECKING, Any, Final

from patchbay import errors
from patchbay.plugin.v1 import plugin_pb2
from patchbay.tokens import CONFIG_KEY, PLUGIN_KEY

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from patchbay.capability import Plugin

_logger = logging.getLogger("patchbay.handshake")

PROTOCOL_VERSIONS: Final = (1,)
"""Versions of the handshake and of metadata conventions that this SDK speaks, newest first."""

SCHEMA_VERSION: Final = 1
"""Version of the message schemas that this SDK was built with."""

NONCE_BYTES: Final = 16
NONCE_LIFETIME: Final = 60.0
"""Seconds within which Register must follow Challenge."""

_MAX_NONCES = 1024
_KEPT_CONFIGURATIONS = 2


def _proof(key: bytes, *parts: bytes) -> bytes:
    return hmac.new(key, b"\0".join(parts), hashlib.sha256).digest()


def plugin_proof(
    key: bytes, plugin_id: str, host_id: str, host_nonce: bytes, plugin_nonce: bytes
) -> bytes:
    """Return ChallengeResponse.proof under the channel *key* (layout "challenge-plugin")."""
    return _proof(
        key, b"challenge-plugin", plugin_id.encode(), host_id.encode(), host_nonce + plugin_nonce
    )


def host_proof(
    key: bytes, plugin_id: str, host_id: str, plugin_nonce: bytes, config_hash: str
) -> bytes:
    """Return RegisterRequest.proof under the channel *key* (layout "challenge-host")."""
    return _proof(
        key,
        b"challenge-host",
        plugin_id.encode(),
        host_id.encode(),
        config_hash.encode(),
        plugin_nonce,
    )


def config_hash(config: bytes) -> str:
    """Return the name of a configuration: the hex SHA-256 of its bytes."""
    return hashlib.sha256(config).hexdigest()


class Configurations:
    """
    The plugins of one address, each with its last two configurations.

    The first configuration goes to the object that the author made; a later one to a copy of it as it was
    before any configuration, so that calls in flight keep what they started with. Objects made in
    `__init__` are shared by the copies.
    """

    def __init__(self, plugins: Iterable[Plugin]) -> None:
        self._plugins = {plugin.id: plugin for plugin in plugins}
        self._pristine = {id_: copy.copy(plugin) for id_, plugin in self._plugins.items()}
        self._kept: dict[str, dict[str, Plugin]] = {id_: {} for id_ in self._plugins}
        self._retired: list[Plugin] = []
        self._configuring = {id_: asyncio.Lock() for id_ in self._plugins}
        self._closed = False

    @property
    def plugin_ids(self) -> tuple[str, ...]:
        """Ids of the plugins served here."""
        return tuple(self._plugins)

    def plugin(self, plugin_id: str) -> Plugin:
        """
        Return the plugin of that id in its newest configuration.

        Raises:
            NotFound: It is not served here.
        """
        kept = self._kept.get(plugin_id)
        if kept is None:
            raise errors.NotFound(
                f"no plugin {plugin_id!r} is served here", reason="PLUGIN_UNKNOWN"
            )
        return next(reversed(kept.values())) if kept else self._plugins[plugin_id]

    def called(self, context: Any) -> Plugin:
        """
        Return the plugin, in the configuration, that a call's metadata name.

        Raises:
            NotFound: It is not served here.
            InvalidRequest: Several are, and the call names none.
            Unavailable: NOT_REGISTERED, the configuration is not known here; another address, or the same
                after a new registration, may serve the call.
        """
        plugin_id = wanted = ""
        for key, value in context.invocation_metadata() or ():
            if key == PLUGIN_KEY:
                plugin_id = value
            elif key == CONFIG_KEY:
                wanted = value
        if not plugin_id:
            if len(self._plugins) != 1:
                raise errors.InvalidRequest(
                    f"several plugins are served here; name one in the metadata {PLUGIN_KEY}",
                    reason="PLUGIN_NOT_NAMED",
                )
            plugin_id = next(iter(self._plugins))
        if not wanted:
            return self.plugin(plugin_id)
        kept = self._kept.get(plugin_id)
        found = kept.get(wanted) if kept is not None else self.plugin(plugin_id)
        if found is None:
            raise errors.Unavailable(
                f"plugin {plugin_id} is not registered here with configuration {wanted[:12]}",
                reason="NOT_REGISTERED",
                sent=errors.Sent.NO,
            )
        return found

    async def configure(self, plugin_id: str, config: bytes) -> Plugin:
        """Make *config* the newest configuration of a plugin; one that is kept already stays as it is."""
        self.plugin(plugin_id)
        kept, name = self._kept[plugin_id], config_hash(config)
        # Each process of a gateway registers by itself, and often all at once.
        async with self._configuring[plugin_id]:
            found = kept.pop(name, None)
            if found is None:
                found = self._plugins[plugin_id]
                if kept:
                    found = copy.copy(self._pristine[plugin_id])
                await found.configure(config)
            kept[name] = found
            if len(kept) > _KEPT_CONFIGURATIONS:
                self._retired.append(kept.pop(next(iter(kept))))
        return found

    async def aclose(self) -> None:
        """Close every object that was configured, and those that never were. Idempotent."""
        if self._closed:
            return
        self._closed = True
        seen = {id(p): p for p in (*self._plugins.values(), *self._retired)}
        for kept in self._kept.values():
            seen.update({id(p): p for p in kept.values()})
        for plugin in seen.values():
            await plugin.aclose()


class PluginServicer:
    """
    patchbay.plugin.v1.PluginService over the plugins of one address.

    Args:
        configurations: The plugins.
        channel_keys: Plugin id to channel keys, the newest first.
        now: Seconds that never go back.
    """

    def __init__(
        self,
        configurations: Configurations,
        channel_keys: Mapping[str, Sequence[bytes]],
        *,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._configurations = configurations
        self._keys = channel_keys
        self._now = now
        self._nonces: dict[bytes, tuple[str, str, float]] = {}

    async def Challenge(  # noqa: N802 - the method's name on the wire
        self, request: plugin_pb2.ChallengeRequest, context: Any
    ) -> plugin_pb2.ChallengeResponse:
        """Prove the plugin's key and hand out a nonce."""
        self._configurations.plugin(request.plugin_id)
        if len(request.host_nonce) != NONCE_BYTES:
            raise errors.InvalidRequest(
                f"host_nonce must be {NONCE_BYTES} bytes", reason="INVALID_NONCE"
            )
        keys = self._channel_keys(request.plugin_id)
        nonce = secrets.token_bytes(NONCE_BYTES)
        now = self._now()
        self._nonces = {n: v for n, v in self._nonces.items() if v[2] > now}
        if len(self._nonces) >= _MAX_NONCES:
            raise errors.ResourceExhausted(
                "too many registrations at once", reason="TOO_MANY_CHALLENGES", retry_after=5
            )
        self._nonces[nonce] = (request.plugin_id, request.host_id, now + NONCE_LIFETIME)
        return plugin_pb2.ChallengeResponse(
            plugin_nonce=nonce,
            proof=plugin_proof(
                keys[0], request.plugin_id, request.host_id, request.host_nonce, nonce
            ),
        )

    async def Register(  # noqa: N802 - the method's name on the wire
        self, request: plugin_pb2.RegisterRequest, context: Any
    ) -> plugin_pb2.RegisterResponse:
        """Check the host's proof, take the configuration and say who we are."""
        plugin_id, host_id, until = self._nonces.pop(request.plugin_nonce, ("", "", 0.0))
        if (plugin_id, host_id) != (request.plugin_id, request.host_id) or until <= self._now():
            raise errors.Unauthenticated(
                "the nonce is unknown or older than a minute; begin with Challenge",
                reason="CHALLENGE_UNKNOWN",
            )
        if not any(
            hmac.compare_digest(
                request.proof,
                host_proof(key, plugin_id, host_id, request.plugin_nonce, request.config_hash),
            )
            for key in self._channel_keys(plugin_id)
        ):
            raise errors.Unauthenticated(
                f"the host does not know the key of plugin {plugin_id}", reason="PROOF_INVALID"
            )
        version = next(
            (v for v in request.protocol_versions if v in PROTOCOL_VERSIONS), PROTOCOL_VERSIONS[0]
        )
        if version not in request.protocol_versions:
            # Answered all the same: the host can say what is wrong, we cannot be heard otherwise.
            return self._response(self._configurations.plugin(plugin_id), version)
        return await self._configure(plugin_id, request.config, request.config_hash, version)

    async def Reconfigure(  # noqa: N802 - the method's name on the wire
        self, request: plugin_pb2.ReconfigureRequest, context: Any
    ) -> plugin_pb2.RegisterResponse:
        """Take another configuration; the previous one stays for calls that name it."""
        return await self._configure(
            request.plugin_id, request.config, request.config_hash, PROTOCOL_VERSIONS[0]
        )

    async def NotifyRegistration(  # noqa: N802 - the method's name on the wire
        self, request: plugin_pb2.NotifyRegistrationRequest, context: Any
    ) -> plugin_pb2.NotifyRegistrationResponse:
        """Log what the host decided."""
        if request.accepted:
            _logger.info(
                "host %s uses plugin %s",
                request.host_id,
                request.plugin_id,
                extra={"host_id": request.host_id, "plugin_id": request.plugin_id},
            )
        else:
            _logger.warning(
                "host %s refused plugin %s: %s",
                request.host_id,
                request.plugin_id,
                "; ".join(request.reasons),
                extra={"host_id": request.host_id, "plugin_id": request.plugin_id},
            )
        return plugin_pb2.NotifyRegistrationResponse()

    async def _configure(
        self, plugin_id: str, config: bytes, named: str, version: int
    ) -> plugin_pb2.RegisterResponse:
        if config_hash(config) != named:
            raise errors.InvalidRequest(
                "config_hash is not the SHA-256 of config", reason="CONFIG_HASH_MISMATCH"
            )
        return self._response(await self._configurations.configure(plugin_id, config), version)

    def _channel_keys(self, plugin_id: str) -> Sequence[bytes]:
        keys = self._keys.get(plugin_id)
        if not keys:
            raise errors.FailedPrecondition(
                f"plugin {plugin_id} has no key here; set PATCHBAY_PLUGIN_KEY to what "
                f"`patchbay plugin key {plugin_id}` prints",
                reason="PLUGIN_KEY_MISSING",
            )
        return keys

    @staticmethod
    def _response(plugin: Plugin, version: int) -> plugin_pb2.RegisterResponse:
        return plugin_pb2.RegisterResponse(
            protocol_version=version,
            schema_version=SCHEMA_VERSION,
            plugin_id=plugin.id,
            metadata=plugin_pb2.Metadata(
                name=plugin.name,
                version=plugin.version,
                author=plugin.author,
                github_repository=plugin.github_repository,
                logo=plugin.logo,
                config_fields=plugin.config_fields,
            ),
            capabilities=plugin.capabilities(),
        )
