"""
A host's side of one connection to a plugin: the handshake, calls of any method, and what failed.

Speaks the wire as proto/README.md has it and nothing of the gateway, so that what it finds holds for
plugins in any language. Every failed call is kept in `failures`. Not here: verdicts (`patchbay.testing`'s
rules), the gateway's own client.
"""

from __future__ import annotations

import contextlib
import hmac
import secrets
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

import grpc
from google.protobuf import descriptor_pool, message_factory
from google.rpc import error_details_pb2, status_pb2

from patchbay import handshake, keys, services, status
from patchbay.plugin.v1 import auth_provider_pb2, executor_pb2, plugin_pb2
from patchbay.secrets import seal
from patchbay.server import wire_options
from patchbay.tls import open_channel
from patchbay.tokens import CALLBACK_KEY, CONFIG_KEY, PLUGIN_KEY, SCOPE_KEY, TOKEN_KEY, mint

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from google.protobuf.message import Message

    from patchbay.tls import Tls
    from patchbay.type.v1 import secret_pb2

    Metadata = Sequence[tuple[str, str]]

PACKAGE: Final = "patchbay.plugin.v1."
TEST_KEY: Final = b"a key for tests, 32 bytes long.."
"""Key of plugins that a test serves."""
CALL_SECONDS: Final = 10.0

DESCRIBED: Final = (auth_provider_pb2, executor_pb2, plugin_pb2, *services.DESCRIBED)
"""Imported so that every service is found by its name."""


@dataclass(frozen=True, slots=True)
class Failure:
    """One call that failed, and with what details."""

    path: str
    code: grpc.StatusCode
    message: str
    reason: str = ""
    """Of ErrorInfo; empty: the status has none."""
    domain: str = ""
    metadata: Mapping[str, str] = field(default_factory=dict)
    details: bytes = b""
    """The rich status as it came."""

    def __str__(self) -> str:
        return f"{self.path}: {self.code.name} {self.reason or '(no reason)'}: {self.message}"


class CallFailed(Exception):
    """A call ended with an error status."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(str(failure))
        self.failure = failure


class Refused(Exception):
    """The handshake cannot be completed; the text says why."""


def method_of(service: str, method: str) -> Any:
    """Return the descriptor of a method; *service* without its package."""
    return descriptor_pool.Default().FindServiceByName(PACKAGE + service).methods_by_name[method]


def request_class(service: str, method: str) -> type[Message]:
    """Return the class of a method's request."""
    return message_factory.GetMessageClass(method_of(service, method).input_type)


class Connection:
    """
    One plugin at one address, as a host sees it.

    Args:
        address: `host:port` or `unix:/path`.
        plugin_id: Whom we expect there.
        key: Its key (not a derived one).
        host_id: Who asks; default a name of its own.
        message_limit: Largest message that this side takes and sends, bytes; -1 for none.
        callback: Where the plugin may call back; empty: it may not.
        scope: In what.
        tls: Certificates of this side; None: without TLS.
    """

    def __init__(
        self,
        address: str,
        plugin_id: str,
        key: bytes,
        *,
        host_id: str = "",
        message_limit: int = -1,
        callback: str = "",
        scope: str = "",
        tls: Tls | None = None,
    ) -> None:
        self.address = address
        self.plugin_id = plugin_id
        self.key = key
        self.host_id = host_id or f"test-{secrets.token_hex(4)}"
        self.config_hash = ""
        self.registration: plugin_pb2.RegisterResponse | None = None
        self.failures: list[Failure] = []
        self._callback = ((CALLBACK_KEY, callback), (SCOPE_KEY, scope)) if callback else ()
        self._channel_key = keys.channel_key(key)
        options = [
            *wire_options(message_limit),
            # Connections are not shared: some rules break theirs.
            ("grpc.use_local_subchannel_pool", 1),
            # gRPC widens a reader's window by what it has measured, after 33 MiB in one message to many MiB:
            # what a plugin buffers would be lost among what waits here.
            ("grpc.http2.bdp_probe", 0),
        ]
        self.channel = open_channel(address, options, tls)

    async def aclose(self) -> None:
        """Close the connection."""
        await self.channel.close()

    def metadata(
        self, *, plugin_id: str | None = None, config: str | None = None, token: str | None = None
    ) -> list[tuple[str, str]]:
        """Return a call's metadata; an empty string leaves an entry out."""
        named = self.plugin_id if plugin_id is None else plugin_id
        wanted = self.config_hash if config is None else config
        if token is None:
            token = self.token()
        found = [(PLUGIN_KEY, named), (CONFIG_KEY, wanted), (TOKEN_KEY, token), *self._callback]
        return [(key, value) for key, value in found if value]

    def token(self, *, expires_in: float = 300, audience: str = "", key: bytes = b"") -> str:
        """Return a call token, good in every part that is not named."""
        return mint(
            key or self._channel_key,
            audience or self.plugin_id,
            self.host_id,
            int(time.time() + expires_in),
        )

    def seal(
        self,
        material: Mapping[str, str],
        origins: Iterable[str] = (),
        *,
        credential_id: str = "conformance",
        version: int = 1,
        seconds: float = 60,
    ) -> secret_pb2.SealedSecret:
        """Return *material* sealed for the plugin, good for so many *seconds*."""
        return seal(
            keys.sealing_key(self.key),
            self.plugin_id,
            credential_id,
            version,
            origins,
            time.time() + seconds,
            material,
        )

    async def challenge(self, *, plugin_id: str | None = None) -> plugin_pb2.ChallengeResponse:
        """Ask for the proof of the key and check it; raises Refused or CallFailed."""
        wanted = self.plugin_id if plugin_id is None else plugin_id
        nonce = secrets.token_bytes(handshake.NONCE_BYTES)
        answer: plugin_pb2.ChallengeResponse = await self.unary(
            "PluginService",
            "Challenge",
            plugin_pb2.ChallengeRequest(plugin_id=wanted, host_id=self.host_id, host_nonce=nonce),
            metadata=[(PLUGIN_KEY, wanted)],
        )
        proof = handshake.plugin_proof(
            self._channel_key, wanted, self.host_id, nonce, answer.plugin_nonce
        )
        if not hmac.compare_digest(answer.proof, proof):
            raise Refused(f"the process at {self.address} does not know the key of {wanted}")
        return answer

    async def present(
        self,
        nonce: bytes,
        config: bytes = b"",
        *,
        key: bytes | None = None,
        named_hash: str | None = None,
        versions: Sequence[int] = handshake.PROTOCOL_VERSIONS,
    ) -> plugin_pb2.RegisterResponse:
        """Send Register for the challenge that gave *nonce*; what is named may be wrong on purpose."""
        name = handshake.config_hash(config) if named_hash is None else named_hash
        answer: plugin_pb2.RegisterResponse = await self.unary(
            "PluginService",
            "Register",
            plugin_pb2.RegisterRequest(
                plugin_id=self.plugin_id,
                host_id=self.host_id,
                host_version="conformance",
                protocol_versions=versions,
                config=config,
                config_hash=name,
                plugin_nonce=nonce,
                proof=handshake.host_proof(
                    key or self._channel_key, self.plugin_id, self.host_id, nonce, name
                ),
            ),
            metadata=[(PLUGIN_KEY, self.plugin_id)],
        )
        return answer

    async def register(self, config: bytes = b"") -> plugin_pb2.RegisterResponse:
        """Do the handshake up to the answer; later calls name this configuration."""
        answer = await self.present((await self.challenge()).plugin_nonce, config)
        self.registration = answer
        self.config_hash = handshake.config_hash(config)
        return answer

    async def reconfigure(self, config: bytes) -> plugin_pb2.RegisterResponse:
        """Hand over another configuration; later calls name it."""
        name = handshake.config_hash(config)
        answer: plugin_pb2.RegisterResponse = await self.unary(
            "PluginService",
            "Reconfigure",
            plugin_pb2.ReconfigureRequest(
                plugin_id=self.plugin_id, config=config, config_hash=name
            ),
        )
        self.config_hash = name
        return answer

    async def notify(self, accepted: bool, *reasons: str) -> None:
        """Tell the plugin what was decided."""
        await self.unary(
            "PluginService",
            "NotifyRegistration",
            plugin_pb2.NotifyRegistrationRequest(
                plugin_id=self.plugin_id, host_id=self.host_id, accepted=accepted, reasons=reasons
            ),
        )

    async def unary(
        self,
        service: str,
        method: str,
        request: Message | bytes,
        *,
        seconds: float | None = CALL_SECONDS,
        metadata: Metadata | None = None,
    ) -> Any:
        """
        Call a unary method; *request* may be bytes as they go over the wire.

        Raises:
            CallFailed: It ended with another status than OK.
        """
        found = method_of(service, method)
        call = self.channel.unary_unary(
            f"/{PACKAGE}{service}/{method}",
            request_serializer=_serialized,
            response_deserializer=message_factory.GetMessageClass(found.output_type).FromString,
        )
        with self.recording(f"{service}/{method}"):
            return await call(
                request, timeout=seconds, metadata=self.metadata() if metadata is None else metadata
            )

    def stream(
        self, service: str, method: str, request: Message | None = None, *, seconds: float = 60.0
    ) -> Any:
        """Open a stream; with None for a request, one that the caller writes to as well."""
        found = method_of(service, method)
        make: Any = self.channel.stream_stream if request is None else self.channel.unary_stream
        call = make(
            f"/{PACKAGE}{service}/{method}",
            request_serializer=_serialized,
            response_deserializer=message_factory.GetMessageClass(found.output_type).FromString,
        )
        if request is None:
            return call(timeout=seconds, metadata=self.metadata())
        return call(request, timeout=seconds, metadata=self.metadata())

    async def read(self, call: Any, path: str) -> Any:
        """Return the next message of a stream, None at its end; raises CallFailed."""
        with self.recording(path):
            message = await call.read()
        return None if message is grpc.aio.EOF else message

    @contextlib.contextmanager
    def recording(self, path: str) -> Any:
        """Turn a failed call into CallFailed and keep what it failed with."""
        try:
            yield
        except grpc.aio.AioRpcError as error:
            failure = read_failure(path, error)
            self.failures.append(failure)
            raise CallFailed(failure) from None


def _serialized(request: Message | bytes) -> bytes:
    return request if isinstance(request, bytes) else request.SerializeToString()


def read_failure(path: str, error: grpc.aio.AioRpcError) -> Failure:
    """Return what *error* says."""
    details = b""
    for key, value in error.trailing_metadata() or ():
        if key == status.DETAILS_KEY and isinstance(value, bytes):
            details = value
    info = error_details_pb2.ErrorInfo()
    with contextlib.suppress(Exception):  # garbage for details is the same as none
        for detail in status_pb2.Status.FromString(details).details:
            if detail.Is(error_details_pb2.ErrorInfo.DESCRIPTOR):
                detail.Unpack(info)
    return Failure(
        path,
        error.code(),
        error.details() or "",
        info.reason,
        info.domain,
        dict(info.metadata),
        details,
    )
