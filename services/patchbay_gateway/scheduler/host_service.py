"""
HostService on a scheduler: credentials for all plugins, HTTP and logs for those that it calls itself.

Edges pass the credential methods on to here, with the plugin's own token. No models are run here: a plugin
that is asked for a choice in the middle of a request must not start others. Not here: what a grant covers and
documents (host_auths.py), who calls (plugins/callbacks).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from patchbay import errors
from patchbay.host.v1 import auth_pb2, model_pb2
from patchbay.keys import channel_key
from patchbay_gateway.kernel.keys import plugin_key
from patchbay_gateway.plugins.callbacks.callers import Callers
from patchbay_gateway.plugins.callbacks.http_calls import HttpCalls
from patchbay_gateway.plugins.callbacks.servicer import CallbackServicer
from patchbay_gateway.plugins.scopes import ScopeTable
from patchbay_gateway.scheduler.durable.auth_files import AuthFile
from patchbay_gateway.scheduler.host_auths import HostAuths

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

    from patchbay_gateway.kernel.channels.port import CallContext
    from patchbay_gateway.kernel.clock import Clock
    from patchbay_gateway.kernel.keys import Roots
    from patchbay_gateway.plugins.callbacks.callers import Caller
    from patchbay_gateway.plugins.distribution import SnapshotHolder
    from patchbay_gateway.plugins.snapshot import Snapshot
    from patchbay_gateway.scheduler.credentials import Credentials
    from patchbay_gateway.scheduler.host_auths import Files
    from patchbay_gateway.scheduler.hosted import HostedPlugins
    from patchbay_gateway.scheduler.inventory import Inventory, Status
    from patchbay_gateway.scheduler.keeping import Keeper
    from patchbay_gateway.scheduler.parsed_files import ParsedFiles
    from patchbay_gateway.scheduler.records import Records
    from patchbay_gateway.scheduler.refresh import Refresher
    from patchbay_gateway.scheduler.refreshing import Refreshing

# ruff: noqa: N802 - methods of a servicer have their names on the wire

NO_MODELS: Final = "NO_MODEL_CALLS_HERE"
_STATES: Final = ("needs_login", "cooling", "full", "no_material", "excluded")
"""What a credential is that serves no model; the first that fits one of its models."""


class SchedulerHostServicer(CallbackServicer):
    """
    The servicer of one scheduler.

    Args:
        callers: Tells who calls.
        scopes: What plugins may call back in; whoever serves this sets their address.
        http: Makes HTTP requests.
        auths: Credentials as plugins may see them.
        holder: Snapshots.
        inventory: How credentials stand.
        records: Tokens.
        refresher: How refreshes stand.
    """

    def __init__(
        self,
        callers: Callers,
        *,
        scopes: ScopeTable,
        http: HttpCalls,
        auths: HostAuths,
        holder: SnapshotHolder,
        inventory: Inventory,
        records: Records,
        refresher: Refresher,
    ) -> None:
        super().__init__(callers, http)
        self.scopes = scopes
        """What plugins of this process may call back in."""
        self._auths = auths
        self._holder = holder
        self._inventory = inventory
        self._records = records
        self._refresher = refresher

    async def ExecuteModel(
        self, request: model_pb2.HostModelExecutionRequest, context: CallContext
    ) -> model_pb2.HostModelExecutionResponse:
        """Refuse: NO_MODEL_CALLS_HERE."""
        raise _no_models(await self._callers.identify(context))

    async def ExecuteModelStream(
        self, request: model_pb2.HostModelExecutionRequest, context: CallContext
    ) -> AsyncIterator[model_pb2.HostModelStreamResponse]:
        """Refuse: NO_MODEL_CALLS_HERE."""
        raise _no_models(await self._callers.identify(context))
        yield

    async def ListAuths(
        self, request: auth_pb2.HostAuthListRequest, context: CallContext
    ) -> auth_pb2.HostAuthListResponse:
        """
        List the credentials that the grant covers, ordered by name.

        Raises:
            PermissionDenied: HOST_ACCESS_DENIED.
        """
        caller = await self._callers.identify(context)
        snapshot = self._current()
        covered = self._auths.covered(caller, snapshot, request.provider)
        ids = [credential.id for _, credential in covered]
        found = await self._inventory.statuses(snapshot, ids) if ids else []
        files = [self._entry(status) for status in found]
        return auth_pb2.HostAuthListResponse(
            files=sorted(files, key=lambda file: (file.name.lower(), file.id))
        )

    async def GetAuth(
        self, request: auth_pb2.HostAuthGetRequest, context: CallContext
    ) -> auth_pb2.HostAuthGetResponse:
        """
        Return the document of one credential, sealed for the plugin.

        Raises:
            PermissionDenied: HOST_ACCESS_DENIED.
            NotFound: AUTH_UNKNOWN.
            FailedPrecondition: AUTH_UNREADABLE.
        """
        caller = await self._callers.identify(context)
        provider, credential = self._auths.find(caller, self._current(), request.auth_index)
        file = self._auths.file_of(credential.id)
        return auth_pb2.HostAuthGetResponse(
            auth_index=request.auth_index,
            name=file.path.name if file is not None else credential.id,
            path=file.source if file is not None else "",
            json=await self._auths.document(caller, provider, credential),
        )

    async def GetAuthRuntime(
        self, request: auth_pb2.HostAuthGetRequest, context: CallContext
    ) -> auth_pb2.HostAuthGetRuntimeResponse:
        """
        Return how one credential stands.

        Raises:
            PermissionDenied: HOST_ACCESS_DENIED.
            NotFound: AUTH_UNKNOWN.
        """
        caller = await self._callers.identify(context)
        snapshot = self._current()
        _, credential = self._auths.find(caller, snapshot, request.auth_index)
        (status,) = await self._inventory.statuses(snapshot, [credential.id])
        return auth_pb2.HostAuthGetRuntimeResponse(auth=self._entry(status))

    async def SaveAuth(
        self, request: auth_pb2.HostAuthSaveRequest, context: CallContext
    ) -> auth_pb2.HostAuthSaveResponse:
        """Keep one document (host_auths.py, `HostAuths.save`)."""
        caller = await self._callers.identify(context)
        path = await self._auths.save(caller, self._current(), request.name, request.json)
        return auth_pb2.HostAuthSaveResponse(name=request.name, path=path)

    def _entry(self, status: Status) -> auth_pb2.HostAuthFileEntry:
        credential, known = status.credential, status.known
        file = self._auths.file_of(credential.id)
        record = self._records.get(credential.id)
        state, why = _state(status)
        entry = auth_pb2.HostAuthFileEntry(
            id=credential.id,
            auth_index=credential.auth_index,
            name=file.path.name if file is not None else credential.id,
            type=credential.kind,
            provider=status.provider.name,
            status=state,
            status_message=why,
            disabled=bool(status.disabled_by),
            unavailable=state != "ready",
            source=_source(credential.secrets, file),
            priority=credential.priority,
            success=known.succeeded,
            failed=known.failed,
        )
        if file is not None:
            entry.path = file.source
        if isinstance(file, AuthFile):
            entry.label, entry.note = file.document.label, file.document.note
            entry.email = entry.account = file.document.email
        if record is not None:
            entry.label = record.label or entry.label
            if record.refreshed_at:
                entry.last_refresh.FromSeconds(int(record.refreshed_at))
        refresh = self._refresher.status(credential.id)
        again = refresh.next_at if refresh is not None and state != "ready" else 0.0
        ends = [s.until for _, _, s in status.models if s.until is not None]
        if state == "cooling" and ends:
            again = min(ends)
        if again:
            entry.next_retry_after.FromMilliseconds(int(again * 1000))
        return entry

    def _current(self) -> Snapshot:
        snapshot = self._holder.current
        if snapshot is None:
            raise errors.Unavailable("no snapshot yet", reason="NO_SNAPSHOT", retry_after=1.0)
        return snapshot


def _no_models(caller: Caller) -> errors.FailedPrecondition:
    return errors.FailedPrecondition(
        f"plugin {caller.plugin_id} asks a scheduler for a model call; only edges make them",
        reason=NO_MODELS,
    )


def _state(status: Status) -> tuple[str, str]:
    """Return how a credential stands as a whole, and why."""
    if status.disabled_by:
        return "disabled", f"by {status.disabled_by}"
    states = {standing.state: standing for _, _, standing in reversed(status.models)}
    if "ready" in states or not states:
        return "ready", ""
    for name in _STATES:
        if name in states:
            return name, states[name].reason
    name, standing = next(iter(states.items()))
    return name, standing.reason


def _source(secrets: object, file: object) -> str:
    if file is not None:
        return "file"
    return "secret" if secrets else "configuration"


def build_host(
    plugins: HostedPlugins,
    *,
    holder: SnapshotHolder,
    inventory: Inventory,
    credentials: Credentials,
    refreshing: Refreshing,
    files: Files,
    roots: Roots,
    clock: Clock,
    keeper: Keeper,
    parsed: ParsedFiles,
    write_files: bool = True,
) -> SchedulerHostServicer:
    """
    Return the servicer of a scheduler whose calls to *plugins* are to open scopes.

    Args:
        plugins: Those that it calls.
        holder: Snapshots.
        inventory: How credentials stand.
        credentials: Material of the configuration.
        refreshing: Tokens.
        files: Auth files.
        roots: Of which `plugins`.
        clock: Time.
        keeper: Keeps documents where there is no directory for them.
        parsed: Reads documents of types that plugins know.
        write_files: Whether files become credentials here.
    """
    scopes = ScopeTable()
    plugins.calls.scopes = scopes

    async def keys(plugin_id: str) -> Sequence[bytes]:
        return [channel_key(plugin_key(root, plugin_id)) for root in roots.plugins]

    return SchedulerHostServicer(
        Callers(holder, keys=keys, scopes=scopes, now=clock.now),
        scopes=scopes,
        http=HttpCalls(),
        auths=HostAuths(
            credentials=credentials,
            records=refreshing.records,
            files=files,
            plugins_roots=roots.plugins,
            clock=clock,
            keeper=keeper,
            parsed=parsed,
            write_files=write_files,
        ),
        holder=holder,
        inventory=inventory,
        records=refreshing.records,
        refresher=refreshing.refresher,
    )
