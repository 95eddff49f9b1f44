"""
Credentials as plugins may see and keep them (pluginapi: host.auth.*).

What a grant covers is all there is for a plugin: `own` are credentials whose provider it executes or whose
auth provider it is. A document is the credential's file with the newest tokens in it, or what the file would
be; it leaves sealed for the plugin. A document that a plugin brings becomes a file in `auth_dir`, and is then
a seed like any other; without such a directory its credentials are kept as records. Not here: who calls
(plugins/callbacks), messages (host_service.py).
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import json
import os
import secrets
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final, Protocol

from patchbay.auth_documents import Refused, head, parse
from patchbay.errors import FailedPrecondition, InvalidRequest, NotFound, Unavailable
from patchbay.keys import return_key, sealing_key
from patchbay.secrets import SecretOpener, seal
from patchbay_gateway.kernel.keys import plugin_key
from patchbay_gateway.scheduler.auth_data import BroughtAuth
from patchbay_gateway.scheduler.durable.auth_files import MAX_BYTES, ProviderKey, credential_id
from patchbay_gateway.scheduler.durable.auth_files import provider_of as provider_of_type

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from patchbay.auth_documents import AuthDocument
    from patchbay.type.v1 import secret_pb2
    from patchbay_gateway.kernel.clock import Clock
    from patchbay_gateway.plugins.callbacks.callers import Caller
    from patchbay_gateway.plugins.snapshot import CredentialEntry, ProviderEntry, Snapshot
    from patchbay_gateway.scheduler.credentials import Credentials
    from patchbay_gateway.scheduler.durable.auth_files import AuthFile, OfferedFile
    from patchbay_gateway.scheduler.keeping import Keeper
    from patchbay_gateway.scheduler.parsed_files import Parsed, ParsedFiles
    from patchbay_gateway.scheduler.records import Records

UNKNOWN: Final = "AUTH_UNKNOWN"
_SEALED_FOR: Final = 900.0
_BUILT_IN: Final = "oauth2"


class Files(Protocol):
    """The auth files of the configuration."""

    @property
    def auth_dir(self) -> Path | None:
        """The directory; None where none is configured."""

    def auth_file(self, credential_id: str) -> AuthFile | OfferedFile | None:
        """Return the file that a credential comes from; None for those of the configuration."""

    def glance(self) -> None:
        """Look soon what changed."""


class HostAuths:
    """
    Credentials for plugins.

    Args:
        credentials: Material of the configuration.
        records: Tokens.
        files: Auth files.
        plugins_roots: Newest first.
        clock: Dates what is sealed.
        keeper: Keeps documents where there is no directory for them.
        parsed: Reads documents of types that plugins know.
        write_files: Whether files become credentials here; False where an operator declares them.
    """

    def __init__(
        self,
        *,
        credentials: Credentials,
        records: Records,
        files: Files,
        plugins_roots: Sequence[bytes],
        clock: Clock,
        keeper: Keeper,
        parsed: ParsedFiles,
        write_files: bool = True,
    ) -> None:
        self._keeper = keeper
        self._parsed = parsed
        self._write_files = write_files
        self._credentials = credentials
        self._records = records
        self._files = files
        self._roots = tuple(plugins_roots)
        self._clock = clock

    def file_of(self, credential_id: str) -> AuthFile | OfferedFile | None:
        """Return the auth file of a credential."""
        return self._files.auth_file(credential_id)

    @staticmethod
    def covered(
        caller: Caller, snapshot: Snapshot, provider: str = ""
    ) -> list[tuple[ProviderEntry, CredentialEntry]]:
        """
        Return what the caller's grant covers.

        Raises:
            PermissionDenied: HOST_ACCESS_DENIED, it covers nothing.
        """
        granted = caller.grants.auths
        caller.need(granted != "none", "use credentials", "auths")
        return [
            (entry, credential)
            for entry in snapshot.providers
            if not provider or entry.name == provider
            for credential in entry.credentials
            if granted == "all" or _own(caller.plugin_id, entry, credential)
        ]

    def find(
        self, caller: Caller, snapshot: Snapshot, auth_index: str
    ) -> tuple[ProviderEntry, CredentialEntry]:
        """
        Return the credential of an index.

        Raises:
            PermissionDenied: HOST_ACCESS_DENIED.
            NotFound: AUTH_UNKNOWN, also for one that the grant does not cover.
        """
        for entry, credential in self.covered(caller, snapshot):
            if credential.auth_index == auth_index:
                return entry, credential
        raise NotFound(f"no credential has the index {auth_index!r}", reason=UNKNOWN)

    async def document(
        self, caller: Caller, provider: ProviderEntry, credential: CredentialEntry
    ) -> secret_pb2.SealedSecret:
        """
        Return the document of a credential, sealed for the caller.

        Raises:
            FailedPrecondition: Its file cannot be read now.
        """
        file = self._files.auth_file(credential.id)
        base: dict[str, Any] = {"type": provider.name}
        if file is not None:
            base = await asyncio.to_thread(_read, file)
        record = self._records.get(credential.id)
        if credential.shared:
            pass  # the tokens of one of several would be out of place in it
        elif record is not None and record.version:
            base.update(record.metadata)
            tokens: Mapping[str, str] = record.material
            nested = base.get("token")
            (nested if isinstance(nested, dict) else base).update(tokens)
            if record.expires_at:
                base["expired"] = _moment(record.expires_at)
            if record.refreshed_at:
                base["last_refresh"] = _moment(record.refreshed_at)
        elif file is None:
            base.update(self._credentials.material(credential))
        return seal(
            sealing_key(plugin_key(self._roots[0], caller.plugin_id)),
            caller.plugin_id,
            credential.id,
            self._credentials.version(credential),
            (),
            self._clock.now() + _SEALED_FOR,
            {"document": json.dumps(base, ensure_ascii=False)},
        )

    async def save(
        self, caller: Caller, snapshot: Snapshot, name: str, sealed: secret_pb2.SealedSecret
    ) -> str:
        """
        Keep a document and return where, for people.

        Raises:
            PermissionDenied: HOST_ACCESS_DENIED.
            InvalidRequest: INVALID_AUTH_NAME, INVALID_AUTH_DOCUMENT.
            NotFound: AUTH_UNKNOWN, no provider that the grant covers takes such a document.
            FailedPrecondition: It cannot be opened; AUTH_CONFIGURED; CREDENTIAL_NOT_DECLARED.
            Unavailable: AUTH_NOT_WRITTEN.
        """
        caller.need(caller.grants.auths != "none", "keep credentials", "auths")
        _check_name(name)
        text = self._opened(caller.plugin_id, name, sealed)
        type_ = self._type(text)
        parsed, problem = await self._parsed.parse(snapshot, name, type_, text)
        if problem:
            raise Unavailable(problem, reason="AUTH_NOT_WRITTEN", retry_after=1.0)
        directory = self._files.auth_dir if self._write_files else None
        if directory is None:
            return await self._keep(caller, name, text, parsed)
        if not parsed.taken:
            self._check_place(caller, snapshot, name, text)
        else:
            types = {auth.provider or parsed.identifier for auth in parsed.auths}
            for each in types or {parsed.identifier}:
                self._check_provider(caller, snapshot, name, each, parsed.plugin_id)
        try:
            path = await asyncio.to_thread(_write, directory, name, text.encode())
        except OSError as error:
            raise Unavailable(
                f"the document cannot be written: {error.strerror}", reason="AUTH_NOT_WRITTEN"
            ) from error
        self._files.glance()
        return str(path)

    def _opened(self, plugin_id: str, name: str, sealed: secret_pb2.SealedSecret) -> str:
        if (sealed.plugin_id, sealed.credential_id) != (plugin_id, name):
            raise FailedPrecondition(
                "the document is sealed for another plugin or name", reason="SECRET_INVALID"
            )
        opener = SecretOpener(
            [return_key(plugin_key(root, plugin_id)) for root in self._roots], cache_size=1
        )
        text = opener.open(sealed, self._clock.now()).get("document")
        if len(text) > MAX_BYTES:
            raise _wrong_document(f"is larger than {MAX_BYTES} bytes")
        return text

    @staticmethod
    def _type(text: str) -> str:
        try:
            found = head(text.encode())
            _check_weight(json.loads(text))
        except Refused as error:
            raise _wrong_document(str(error)) from error
        return found.type

    async def _keep(self, caller: Caller, name: str, text: str, parsed: Parsed) -> str:
        """Keep the credentials of a document as records; return where, for people."""
        said = head(text.encode())
        auth_provider = parsed.plugin_id
        auths = parsed.auths
        if not parsed.taken:
            try:
                document = parse(text.encode())
            except Refused as error:
                raise _wrong_document(str(error)) from error
            auths = (_brought(document),)
            auth_provider = _BUILT_IN if document.token_url else caller.plugin_id
        settings = {
            "prefix": said.prefix,
            "proxy_url": said.proxy_url,
            "priority": said.priority,
            "weight": said.weight,
            "excluded_models": list(said.excluded_models),
        }
        ids = await self._keeper.keep(
            caller.plugin_id,
            [
                dataclasses.replace(
                    auth,
                    provider=auth.provider or parsed.identifier,
                    disabled=auth.disabled or said.disabled,
                )
                for auth in auths
            ],
            origin="document",
            base=credential_id(name),
            auth_provider=auth_provider,
            settings={key: value for key, value in settings.items() if value},
            everywhere=caller.grants.auths == "all",
        )
        return ", ".join(f"credential {id_}" for id_ in ids)

    def _check_place(self, caller: Caller, snapshot: Snapshot, name: str, text: str) -> None:
        """See that what is to be written will be used, and is the plugin's to write."""
        try:
            document = parse(text.encode())
        except Refused as error:
            raise _wrong_document(str(error)) from error
        self._check_provider(caller, snapshot, name, document.type)

    def _check_provider(
        self, caller: Caller, snapshot: Snapshot, name: str, type_: str, reader: str = ""
    ) -> None:
        try:
            provider = provider_of_type(
                type_, [ProviderKey(p.name, p.plugin) for p in snapshot.providers]
            )
        except Refused as error:
            raise _wrong_document(str(error)) from error
        id_ = credential_id(name)
        known = snapshot.credential_by_id.get(id_)
        if known is not None and self._files.auth_file(id_) is None:
            raise FailedPrecondition(
                f"credential {id_} is the configuration's; choose another name",
                reason="AUTH_CONFIGURED",
            )
        if caller.grants.auths == "all":
            return
        entry = snapshot.provider_by_name[provider]
        served = caller.plugin_id in {entry.plugin, reader} or any(
            _own(caller.plugin_id, entry, c) for c in entry.credentials
        )
        mine = known is None or _own(caller.plugin_id, snapshot.provider_of[known.id], known)
        if not served or not mine:
            raise NotFound(
                f"the credential is not one that plugin {caller.plugin_id} serves", reason=UNKNOWN
            )


def _own(plugin_id: str, provider: ProviderEntry, credential: CredentialEntry) -> bool:
    oauth2 = credential.oauth2
    if plugin_id in {provider.plugin, credential.brought_by}:
        return True
    return oauth2 is not None and oauth2.plugin == plugin_id


def _brought(document: AuthDocument) -> BroughtAuth:
    """Return what the gateway itself reads in a document."""
    where = {"token_url": document.token_url, "client_id": document.client_id}
    return BroughtAuth(
        provider=document.type,
        label=document.label or document.email,
        material={k: v for k, v in document.material.items() if k != "id_token"},
        client_secret=document.client_secret,
        metadata={name: value for name, value in where.items() if value},
        expires_at=document.expires_at or 0.0,
    )


def _check_name(name: str) -> None:
    plain = name.strip()
    if (
        plain != name
        or "/" in name
        or "\\" in name
        or name.startswith(".")
        or not name.lower().endswith(".json")
        or not name.isprintable()
        or len(name.encode()) > 200
    ):
        raise InvalidRequest(
            "the name of a document ends in .json, has no directories and is not hidden",
            reason="INVALID_AUTH_NAME",
        )


def _check_weight(document: dict[str, Any]) -> None:
    """A weight is a whole number, perhaps as text; `parse` is kinder to files that people wrote."""
    weight = document.get("weight", 1)
    if isinstance(weight, str):
        with contextlib.suppress(ValueError):
            weight = int(weight.strip())
    if isinstance(weight, bool) or not isinstance(weight, int) or weight > 1_000_000:
        raise _wrong_document("has a weight that is no whole number up to 1000000")


def _wrong_document(why: str) -> InvalidRequest:
    return InvalidRequest(f"the document {why}", reason="INVALID_AUTH_DOCUMENT")


def _read(file: AuthFile | OfferedFile) -> dict[str, Any]:
    try:
        found = json.loads(file.path.read_bytes())
    except (OSError, ValueError) as error:
        raise FailedPrecondition(
            f"the file {file.source} cannot be read now", reason="AUTH_UNREADABLE"
        ) from error
    if not isinstance(found, dict):
        raise FailedPrecondition(f"the file {file.source} is no object", reason="AUTH_UNREADABLE")
    return found


def _write(directory: Path, name: str, data: bytes) -> Path:
    """Write one file of mode 0600, whole or not at all."""
    directory.mkdir(parents=True, exist_ok=True, mode=0o700)
    # Hidden, so that nobody reads a half of it.
    draft = directory / f".{secrets.token_hex(8)}.draft"
    try:
        with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        target = directory / name
        draft.replace(target)
    finally:
        draft.unlink(missing_ok=True)
    handle = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
    return target


def _moment(seconds: float) -> str:
    return datetime.fromtimestamp(int(seconds), UTC).isoformat().replace("+00:00", "Z")
