"""
SchedulerService: the wire side of the scheduler.

Checks limits, calls who knows, fills answers; decides nothing itself. What goes wrong with one item is that
item's refusal; what goes wrong with the call is an error of `patchbay.errors`. Requests are read and never
changed, for they may be the caller's own objects.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any, Final

from patchbay.errors import FailedPrecondition, InvalidRequest, NotFound, Unavailable
from patchbay.keys import channel_key
from patchbay.scheduler.v1 import scheduler_pb2, scheduler_pb2_grpc
from patchbay_gateway.kernel.keys import plugin_key
from patchbay_gateway.plugins.grants import grants_of
from patchbay_gateway.scheduler.auth_data import opened
from patchbay_gateway.scheduler.durable import auth_files
from patchbay_gateway.scheduler.durable.port import CredentialRecord
from patchbay_gateway.scheduler.inventory import CONFIGURATION
from patchbay_gateway.scheduler.leases import EpochChanged
from patchbay_gateway.scheduler.messages import fill_status

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from patchbay_gateway.kernel.clock import Clock
    from patchbay_gateway.plugins.distribution import SnapshotHolder
    from patchbay_gateway.plugins.snapshot import Snapshot
    from patchbay_gateway.scheduler.acquiring import Acquiring
    from patchbay_gateway.scheduler.catalogue import Catalogue
    from patchbay_gateway.scheduler.durable.auth_files import RefusedFile
    from patchbay_gateway.scheduler.host_service import SchedulerHostServicer
    from patchbay_gateway.scheduler.hosted import HostedPlugins
    from patchbay_gateway.scheduler.inventory import Inventory, Status
    from patchbay_gateway.scheduler.keeping import Keeper
    from patchbay_gateway.scheduler.login import Logins
    from patchbay_gateway.scheduler.pool import Pool
    from patchbay_gateway.scheduler.records import Records
    from patchbay_gateway.scheduler.refresh import Refresher
    from patchbay_gateway.scheduler.settling import Settling

# Limits of scheduler.proto.
_ACQUIRES: Final = 256
_RENEWALS: Final = 4096
_REPORTS: Final = 1024
_AUTHS: Final = 256


class SchedulerServicer(scheduler_pb2_grpc.SchedulerServiceServicer):
    """The servicer of one scheduler."""

    def __init__(
        self,
        *,
        holder: SnapshotHolder,
        acquiring: Acquiring,
        settling: Settling,
        catalogue: Catalogue,
        inventory: Inventory,
        pool: Pool,
        records: Records,
        refresher: Refresher,
        plugins_roots: tuple[bytes, ...],
        clock: Clock,
        refresh: Callable[[], Awaitable[None]],
        plugins: HostedPlugins,
        logins: Logins,
        host: SchedulerHostServicer,
        keeper: Keeper,
        files: Callable[[], list[tuple[RefusedFile, str, bool]]] = list,
        problems: Callable[[], list[str]] = list,
    ) -> None:
        """*refresh* fetches the newest snapshot; *files* tells of auth files what is not used."""
        self._keeper = keeper
        self._files = files
        self._logins = logins
        self.plugins = plugins
        """Those that this scheduler talks to."""
        self.problems = problems
        """What keeps this scheduler from serving as configured; empty when nothing does."""
        self.host = host
        """What the same scheduler is to plugins, whoever serves it to them."""
        self._holder = holder
        self._refresh = refresh
        self._acquiring = acquiring
        self._settling = settling
        self._catalogue = catalogue
        self._inventory = inventory
        self._pool = pool
        self._records = records
        self._refresher = refresher
        self._plugins_roots = plugins_roots
        self._clock = clock
        self._channel_keys: dict[str, list[bytes]] = {}

    # -- attempts ---------------------------------------------------------------------------------

    async def Acquire(  # noqa: N802 - the method's name in the contract
        self, request: scheduler_pb2.AcquireRequest, context: Any = None
    ) -> scheduler_pb2.AcquireResponse:
        """
        Lease a credential for each item.

        Raises:
            InvalidRequest: Too many items.
            ResourceExhausted: The write-ahead file is full, or too many attempts wait.
            Unavailable: The disk failed.
        """
        _limit(request.items, _ACQUIRES)
        if self._newer(_versions(request)):
            # The edge may have been told of a new one a moment before this scheduler.
            await self._refresh()
        response = scheduler_pb2.AcquireResponse()
        results = [response.results.add() for _ in request.items]
        await self._acquiring.acquire(request.items, results)
        return response

    def _newer(self, versions: set[int]) -> bool:
        """Whether one of *versions* is not known here and not older than all that is."""
        current = self._holder.current
        known = current.version if current is not None else 0
        return any(version > known for version in versions)

    async def Renew(  # noqa: N802 - the method's name in the contract
        self, request: scheduler_pb2.RenewRequest, context: Any = None
    ) -> scheduler_pb2.RenewResponse:
        """
        Extend leases and journal consumption so far.

        Raises:
            InvalidRequest: Too many items.
            ResourceExhausted: The write-ahead file is full, or too many attempts wait.
            Unavailable: The disk failed.
        """
        _limit(request.items, _RENEWALS)
        return scheduler_pb2.RenewResponse(alive=await self._settling.renew(request.items))

    async def Report(  # noqa: N802 - the method's name in the contract
        self, request: scheduler_pb2.ReportRequest, context: Any = None
    ) -> scheduler_pb2.ReportResponse:
        """
        Journal ends and refusals, end their leases, and apply what failures mean for credentials.

        Raises:
            InvalidRequest: Too many items.
            ResourceExhausted: The write-ahead file is full.
            Unavailable: The disk failed.
        """
        _limit(request.items, _REPORTS)
        await self._settling.report(request.items)
        return scheduler_pb2.ReportResponse()

    # -- credentials ------------------------------------------------------------------------------

    async def RefreshCredential(  # noqa: N802 - the method's name in the contract
        self, request: scheduler_pb2.RefreshCredentialRequest, context: Any = None
    ) -> scheduler_pb2.RefreshCredentialResponse:
        """
        Return a version of a credential newer than the one that its provider refused.

        Raises:
            NotFound: No such credential, or one that is not refreshed.
            FailedPrecondition: NEEDS_LOGIN.
            ResourceExhausted: REFRESH_BACKOFF.
            Unavailable: REFRESH_FAILED.
        """
        id_ = request.credential_id
        version = await self._refresher.refresh_now(id_, request.version)
        with contextlib.suppress(Unavailable):  # done here, and elsewhere when Redis is back
            await self._pool.renewed(id_, version)
        return scheduler_pb2.RefreshCredentialResponse(version=version)

    async def ListCredentials(  # noqa: N802 - the method's name in the contract
        self, request: scheduler_pb2.ListCredentialsRequest, context: Any = None
    ) -> scheduler_pb2.ListCredentialsResponse:
        """
        Tell the state of the pool, as the next Acquire sees it.

        Raises:
            Unavailable: There is no snapshot yet.
        """
        snapshot = self._current()
        response = scheduler_pb2.ListCredentialsResponse(degraded=not await self._look())
        for status in await self._inventory.statuses(snapshot, request.ids, request.provider):
            self._fill(response.credentials.add(), status)
        for file, reader, used in self._files():
            response.files.add(source=file.source, reason=file.reason, plugin_id=reader, used=used)
        for id_, why in self._keeper.told():
            response.files.add(source=f"(kept) {id_}", reason=why)
        return response

    async def ResetCredential(  # noqa: N802 - the method's name in the contract
        self, request: scheduler_pb2.ResetCredentialRequest, context: Any = None
    ) -> scheduler_pb2.CredentialStatus:
        """
        Forget cooldowns, backoff, probes and last errors, for all schedulers.

        A model may also be named as clients do.

        Raises:
            NotFound: No such credential, or it has no such model.
            Unavailable: Redis is away; it is done here, and everywhere when it is back.
        """
        status = await self._status(request.credential_id)
        for model in _meant(status, request.upstream_model):
            await self._pool.reset(request.credential_id, model)
        return self._fill(
            scheduler_pb2.CredentialStatus(), await self._status(request.credential_id)
        )

    async def SetCredentialDisabled(  # noqa: N802 - the method's name in the contract
        self, request: scheduler_pb2.SetCredentialDisabledRequest, context: Any = None
    ) -> scheduler_pb2.CredentialStatus:
        """
        Take a credential out of use or back, durably; all of a file, by the file's id.

        Raises:
            NotFound: No such credential.
            FailedPrecondition: DISABLED_BY_CONFIGURATION, it cannot be taken back into use here;
                SHARED_SOURCE, its file holds others too, and they are switched together.
            Unavailable: The durable store does not answer.
        """
        off = request.disabled
        together = self._of_file(request.credential_id)
        for id_ in together or [request.credential_id]:
            await self._switch(id_, off=off, alone=not together)
        first = (together or [request.credential_id])[0]
        return self._fill(scheduler_pb2.CredentialStatus(), await self._status(first))

    def _of_file(self, id_: str) -> list[str]:
        """Return the credentials of the auth file whose id that is; none where it holds only one."""
        return [
            credential.id
            for provider in self._current().providers
            for credential in provider.credentials
            if credential.shared
            and id_ in {auth_files.credential_id(credential.file), credential.file}
        ]

    async def _switch(self, id_: str, *, off: bool, alone: bool) -> None:
        status = await self._status(id_)
        if alone and status.credential.shared:
            file = status.credential.file
            raise FailedPrecondition(
                f"credential {id_} comes from the file {file}, which holds others too; they are "
                f"switched together, as {auth_files.credential_id(file)}",
                reason="SHARED_SOURCE",
            )
        if status.disabled_by == CONFIGURATION and not off:
            raise FailedPrecondition(
                f"credential {id_} is disabled in the configuration; "
                "set `disabled: false` there to use it again",
                reason="DISABLED_BY_CONFIGURATION",
            )

        def change(record: CredentialRecord | None) -> CredentialRecord | None:
            if (record.disabled if record is not None else False) == off:
                return None
            return (record or CredentialRecord(id_)).replace(disabled=off)

        await self._records.update(id_, change)
        with contextlib.suppress(Unavailable):  # it is durable, and the records are followed
            await self._pool.switch(id_, off=off)

    async def KeepAuths(  # noqa: N802 - the method's name in the contract
        self, request: scheduler_pb2.KeepAuthsRequest, context: Any = None
    ) -> scheduler_pb2.KeepAuthsResponse:
        """
        Keep credentials that a plugin brought (keeping.py, `Keeper.keep`).

        Raises:
            InvalidRequest: Too many.
            NotFound: PLUGIN_UNKNOWN.
        """
        _limit(request.auths, _AUTHS)
        plugin = self._current().plugin_by_id.get(request.plugin_id)
        if plugin is None:
            raise NotFound(f"no plugin {request.plugin_id!r}", reason="PLUGIN_UNKNOWN")
        auths = opened(request.auths, plugin.id, self._plugins_roots, self._clock.now())
        ids = await self._keeper.keep(
            plugin.id,
            auths,
            origin=request.origin or "command",
            everywhere=grants_of(plugin).auths == "all",
        )
        return scheduler_pb2.KeepAuthsResponse(credential_ids=ids)

    async def RemoveCredential(  # noqa: N802 - the method's name in the contract
        self, request: scheduler_pb2.RemoveCredentialRequest, context: Any = None
    ) -> scheduler_pb2.RemoveCredentialResponse:
        """Forget a kept credential (keeping.py, `Keeper.remove`)."""
        await self._keeper.remove(request.credential_id)
        return scheduler_pb2.RemoveCredentialResponse()

    async def _look(self) -> bool:
        """Bring the view up to date; return whether Redis answered."""
        snapshot = self._current()
        capped = [c.id for p in snapshot.providers for c in p.credentials if c.max_in_flight]
        try:
            await self._pool.sync(capped)
        except (Unavailable, EpochChanged):
            return False
        return True

    async def _status(self, credential_id: str) -> Status:
        found = await self._inventory.statuses(self._current(), [credential_id])
        if not found:
            raise NotFound(
                f"no credential {credential_id!r} in the configuration",
                reason="CREDENTIAL_NOT_FOUND",
            )
        return found[0]

    def _fill(
        self, message: scheduler_pb2.CredentialStatus, status: Status
    ) -> scheduler_pb2.CredentialStatus:
        refresh = self._refresher.status(status.credential.id)
        fill_status(message, status, refresh, self._clock.now())
        return message

    # -- lists ------------------------------------------------------------------------------------

    async def ListModels(  # noqa: N802 - the method's name in the contract
        self, request: scheduler_pb2.ListModelsRequest, context: Any = None
    ) -> scheduler_pb2.ListModelsResponse:
        """
        List the models that can be served; those that cannot only if they are asked for, with the obstacles.

        Raises:
            Aborted: The snapshot asked for is not known here.
            Unavailable: There is no snapshot yet.
        """
        version = request.snapshot_version
        snapshot = self._acquiring.snapshot(version) if version else self._current()
        response = scheduler_pb2.ListModelsResponse()
        if request.include_unavailable:
            await self._look()
            for name in sorted(snapshot.targets):
                self._explain(response.models.add(id=name), snapshot)
            return response
        for name, providers in self._catalogue.models(snapshot):
            response.models.add(id=name, providers=providers, owned_by=providers[0], available=True)
        return response

    def _explain(self, model: scheduler_pb2.Model, snapshot: Snapshot) -> None:
        """Fill in who can serve a model now, and what keeps the others from it."""
        ready: dict[str, None] = {}
        all_: dict[str, None] = {}
        for provider, credential_id, standing in self._inventory.obstacles(snapshot, model.id):
            all_[provider] = None
            if standing.state == "ready":
                ready[provider] = None
                continue
            obstacle = model.obstacles.add(
                provider=provider,
                credential_id=credential_id,
                reason=standing.state.replace("_", " "),
            )
            if standing.until is not None:
                obstacle.until.FromMilliseconds(int(standing.until * 1000))
        model.providers.extend(ready)
        model.available = bool(ready)
        model.owned_by = next(iter(ready or all_), "")

    async def StartLogin(  # noqa: N802 - the method's name in the contract
        self, request: scheduler_pb2.StartLoginRequest, context: Any = None
    ) -> scheduler_pb2.StartLoginResponse:
        """Begin a login (login.py, `Logins.start`)."""
        return await self._logins.start(request)

    async def CompleteLogin(  # noqa: N802 - the method's name in the contract
        self, request: scheduler_pb2.CompleteLoginRequest, context: Any = None
    ) -> scheduler_pb2.CompleteLoginResponse:
        """Take what a redirect brought (login.py, `Logins.complete`)."""
        await self._logins.complete(request)
        return scheduler_pb2.CompleteLoginResponse()

    async def PollLogin(  # noqa: N802 - the method's name in the contract
        self, request: scheduler_pb2.PollLoginRequest, context: Any = None
    ) -> scheduler_pb2.PollLoginResponse:
        """Tell how a login stands (login.py, `Logins.poll`)."""
        return await self._logins.poll(request.state)

    async def ListChannelKeys(  # noqa: N802 - the method's name in the contract
        self, request: scheduler_pb2.ListChannelKeysRequest, context: Any = None
    ) -> scheduler_pb2.ListChannelKeysResponse:
        """
        Hand out the channel keys of plugins.

        Raises:
            Unavailable: There is no snapshot yet.
        """
        known = self._current().plugin_by_id
        response = scheduler_pb2.ListChannelKeysResponse()
        for plugin_id in request.plugin_ids or known:
            if plugin_id in known:
                for key in self._keys_of(plugin_id):
                    response.keys.add(plugin_id=plugin_id, key=key)
        return response

    def _current(self) -> Snapshot:
        snapshot = self._holder.current
        if snapshot is None:
            raise Unavailable("no snapshot yet", reason="NO_SNAPSHOT", retry_after=1.0)
        return snapshot

    def _keys_of(self, plugin_id: str) -> list[bytes]:
        found = self._channel_keys.get(plugin_id)
        if found is None:
            found = [channel_key(plugin_key(root, plugin_id)) for root in self._plugins_roots]
            self._channel_keys[plugin_id] = found
        return found


def _limit(items: Any, most: int) -> None:
    if len(items) > most:
        raise InvalidRequest(f"{len(items)} items; at most {most} fit", reason="TOO_MANY_ITEMS")


def _versions(request: scheduler_pb2.AcquireRequest) -> set[int]:
    return {item.attempt.snapshot_version for item in request.items}


def _meant(status: Status, model: str) -> list[str]:
    """Return what to reset for *model*, a name of either kind; `""`, all of them, where none is given."""
    known = {upstream for _, upstream, _ in status.models}
    if not model or model in known:
        return [model]
    found = sorted({upstream for public, upstream, _ in status.models if public == model})
    if not found:
        raise NotFound(
            f"credential {status.credential.id!r} has no model {model!r}; it has "
            f"{', '.join(sorted(known)) or 'none'}",
            reason="MODEL_NOT_FOUND",
        )
    return found
