"""Rules of the handshake and of the metadata of calls. Not here: what capabilities answer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import grpc

from patchbay import handshake
from patchbay.plugin.v1 import plugin_pb2
from patchbay.testing.connection import CallFailed, Failure, Refused
from patchbay.testing.rules import Broken, Rule, Skipped

if TYPE_CHECKING:
    from collections.abc import Awaitable

    from patchbay.testing.rules import Subject

_WRONG_KEY: Final = b"another key, which nobody knows."
_CODE = grpc.StatusCode


async def refused(
    call: Awaitable[object], code: grpc.StatusCode, reason: str, what: str
) -> Failure:
    """Return the failure of *call*; Broken where it succeeds or ends with something else."""
    try:
        await call
    except CallFailed as error:
        failure = error.failure
        if failure.code is not code or failure.reason != reason:
            raise Broken(f"{what} should be {code.name} {reason}, was {failure}") from None
        return failure
    except Refused as error:
        raise Broken(f"{what} was accepted; {error}") from None
    raise Broken(f"{what} was accepted")


async def _challenge(subject: Subject) -> None:
    connection = subject.connect()
    try:
        first = await connection.challenge()
        second = await connection.challenge()
    except (CallFailed, Refused) as error:
        raise Broken(str(error)) from None
    if not first.plugin_nonce or first.plugin_nonce == second.plugin_nonce:
        raise Broken("two challenges were answered with the same nonce")


async def _wrong_id(subject: Subject) -> None:
    connection = subject.connect("nobody-of-that-name")
    await refused(
        connection.challenge(), _CODE.NOT_FOUND, "PLUGIN_UNKNOWN", "a challenge of another plugin"
    )


async def _nonce_length(subject: Subject) -> None:
    connection = subject.connect()
    request = plugin_pb2.ChallengeRequest(
        plugin_id=subject.plugin_id, host_id=connection.host_id, host_nonce=b"short"
    )
    await refused(
        connection.unary("PluginService", "Challenge", request),
        _CODE.INVALID_ARGUMENT,
        "INVALID_NONCE",
        "a nonce of 5 bytes",
    )


async def _wrong_key(subject: Subject) -> None:
    connection = subject.connect()
    nonce = (await _challenged(connection)).plugin_nonce
    await refused(
        connection.present(nonce, subject.config, key=_WRONG_KEY),
        _CODE.UNAUTHENTICATED,
        "PROOF_INVALID",
        "a host with another key",
    )


async def _nonce_once(subject: Subject) -> None:
    connection = subject.connect()
    nonce = (await _challenged(connection)).plugin_nonce
    try:
        await connection.present(nonce, subject.config)
    except CallFailed as error:
        raise Skipped(f"the plugin does not register: {error}") from None
    await refused(
        connection.present(nonce, subject.config),
        _CODE.UNAUTHENTICATED,
        "CHALLENGE_UNKNOWN",
        "a second Register with one nonce",
    )


async def _challenged(connection: object) -> plugin_pb2.ChallengeResponse:
    try:
        return await connection.challenge()  # type: ignore[attr-defined, no-any-return] # a Connection
    except (CallFailed, Refused) as error:
        raise Skipped(f"the challenge fails: {error}") from None


async def _register(subject: Subject) -> None:
    connection = subject.connect()
    try:
        answer = await connection.register(subject.config)
    except (CallFailed, Refused) as error:
        raise Broken(str(error)) from None
    found = []
    if answer.protocol_version not in handshake.PROTOCOL_VERSIONS:
        found.append(f"protocol_version is {answer.protocol_version}")
    if answer.plugin_id != subject.plugin_id:
        found.append(f"plugin_id is {answer.plugin_id!r}")
    found += [
        f"metadata.{name} is empty"
        for name in ("name", "version", "author")
        if not getattr(answer.metadata, name).strip()
    ]
    found += [
        f"configuration field {item.name!r} has no type"
        for item in answer.metadata.config_fields
        if not item.type
    ]
    if not answer.capabilities.ListFields():
        found.append("no capability is declared")
    executor = answer.capabilities.executor
    if answer.capabilities.HasField("executor") and not (
        executor.input_formats and executor.output_formats
    ):
        found.append("the executor names no input or no output format")
    if found:
        raise Broken("; ".join(found))


async def _schema(subject: Subject) -> None:
    connection = await subject.registered()
    assert connection.registration is not None
    version = connection.registration.schema_version
    if not 1 <= version <= handshake.SCHEMA_VERSION:
        raise Broken(
            f"schema_version is {version}; hosts of today take 1 to {handshake.SCHEMA_VERSION}"
        )


async def _newer_host(subject: Subject) -> None:
    connection = subject.connect()
    for versions in ((99, *handshake.PROTOCOL_VERSIONS), (99,)):
        nonce = (await _challenged(connection)).plugin_nonce
        try:
            answer = await connection.present(nonce, subject.config, versions=versions)
        except CallFailed as error:
            if error.failure.reason and versions == (99,):
                continue
            raise Broken(f"a host of versions {versions}: {error}") from None
        if answer.protocol_version not in handshake.PROTOCOL_VERSIONS:
            raise Broken(f"answered protocol version {answer.protocol_version} to {versions}")


async def _config_hash(subject: Subject) -> None:
    connection = subject.connect()
    nonce = (await _challenged(connection)).plugin_nonce
    await refused(
        connection.present(nonce, subject.config, named_hash=handshake.config_hash(b"another")),
        _CODE.INVALID_ARGUMENT,
        "CONFIG_HASH_MISMATCH",
        "a configuration under the hash of another",
    )


async def _idempotent(subject: Subject) -> None:
    first = await subject.registered()
    other = subject.connect()
    try:
        again = await other.register(subject.config)
        same = await other.reconfigure(subject.config)
        third = await other.reconfigure(subject.config)
    except (CallFailed, Refused) as error:
        raise Broken(f"the same configuration again: {error}") from None
    if not first.registration == again == same == third:
        raise Broken("the same configuration again was answered with another registration")


async def _notify(subject: Subject) -> None:
    connection = await subject.registered()
    try:
        await connection.notify(False, "only a test")
        await connection.notify(True)
    except CallFailed as error:
        raise Broken(str(error)) from None


async def _unknown_config(subject: Subject) -> None:
    connection = await subject.registered()
    service, method, request = await subject.cheap_call()
    failure = await refused(
        connection.unary(
            service,
            method,
            request,
            metadata=connection.metadata(config=handshake.config_hash(b"never sent")),
        ),
        _CODE.UNAVAILABLE,
        "NOT_REGISTERED",
        "a call under a configuration that was never sent",
    )
    if failure.metadata.get("sent") != "NO":
        raise Broken("NOT_REGISTERED without `sent` NO: hosts would not dare to call again")


async def _previous_config(subject: Subject) -> None:
    connection = subject.connect()
    service, method, request = await subject.cheap_call()
    try:
        await connection.register(subject.config)
        older = connection.metadata()
        # Another text of the same meaning.
        await connection.reconfigure(subject.config + b"\n# the same again\n")
    except (CallFailed, Refused) as error:
        raise Skipped(
            f"the plugin does not take the configuration with a comment: {error}"
        ) from None
    try:
        for metadata in (older, connection.metadata()):
            await connection.unary(service, method, request, metadata=metadata)
    except CallFailed as error:
        if error.failure.reason == "NOT_REGISTERED":
            raise Broken(f"of two configurations one is forgotten: {error}") from None
    finally:
        await connection.reconfigure(subject.config)


async def _token(subject: Subject) -> None:
    connection = await subject.registered()
    service, method, request = await subject.cheap_call()
    bad = {
        "a call without a token": ("", "TOKEN_INVALID"),
        "a token under another key": (connection.token(key=_WRONG_KEY), "TOKEN_INVALID"),
        "a token for another plugin": (connection.token(audience="other"), "TOKEN_INVALID"),
        "a token of an hour ago": (connection.token(expires_in=-3600), "TOKEN_EXPIRED"),
    }
    for what, (token, reason) in bad.items():
        await refused(
            connection.unary(service, method, request, metadata=connection.metadata(token=token)),
            _CODE.UNAUTHENTICATED,
            reason,
            what,
        )


RULES: Final = (
    Rule(
        "handshake.challenge",
        "Challenge is answered with the proof of the plugin's key and a nonce of its own.",
        "two challenges; the proofs are computed anew",
        _challenge,
    ),
    Rule(
        "handshake.wrong-id",
        "Challenge for a plugin that is not served is NOT_FOUND, PLUGIN_UNKNOWN.",
        "a challenge of another id",
        _wrong_id,
    ),
    Rule(
        "handshake.nonce-length",
        "A nonce that is not 16 bytes is INVALID_ARGUMENT, INVALID_NONCE.",
        "a challenge with 5 bytes",
        _nonce_length,
    ),
    Rule(
        "handshake.wrong-key",
        "A host that does not know the key is refused: UNAUTHENTICATED, PROOF_INVALID.",
        "Register with a proof under another key",
        _wrong_key,
    ),
    Rule(
        "handshake.nonce-once",
        "A nonce is good for one Register.",
        "the same Register twice",
        _nonce_once,
    ),
    Rule(
        "handshake.register",
        "Register tells who the plugin is and what it can do, whole.",
        "Register; every field that hosts insist on is looked at",
        _register,
    ),
    Rule(
        "handshake.schema",
        "The schema version is one that hosts of today take.",
        "the answer to Register",
        _schema,
    ),
    Rule(
        "handshake.newer-host",
        "A host of a newer protocol is answered with a version that the plugin speaks.",
        "Register with versions 99 and 1, and with 99 alone",
        _newer_host,
    ),
    Rule(
        "handshake.config-hash",
        "A configuration under a wrong hash is INVALID_ARGUMENT, CONFIG_HASH_MISMATCH.",
        "Register with the hash of something else",
        _config_hash,
    ),
    Rule(
        "handshake.idempotent",
        "The same configuration again, also of another host, changes nothing.",
        "Register by a second host, then Reconfigure twice",
        _idempotent,
    ),
    Rule(
        "handshake.notify",
        "NotifyRegistration is taken, whatever was decided.",
        "once refused, once accepted",
        _notify,
    ),
    Rule(
        "metadata.unknown-config",
        "A call under an unknown configuration is UNAVAILABLE, NOT_REGISTERED, sent NO.",
        "a call that names a configuration never sent",
        _unknown_config,
    ),
    Rule(
        "metadata.previous-config",
        "The last two configurations are kept, for calls that are under way.",
        "Reconfigure, then a call under each",
        _previous_config,
    ),
    Rule(
        "metadata.token",
        "Calls without a good token are UNAUTHENTICATED.",
        "no token, a foreign key, a foreign plugin, an old one",
        _token,
    ),
)
"""In order of the handshake."""
