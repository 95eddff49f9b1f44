"""
Watches, by kopf: every event becomes a key of the queue, and nothing else.

kopf's high-level handlers leave annotations and finalizers on resources, so only `on.event` is used. Its
memory of what exists is not: after a gap in a watch (410) kopf lists again and never tells of what was
deleted meanwhile. `Witness` remembers which versions the watch told, to notice one that is silent. Not here:
what is done about a key (controller.py).
"""

from __future__ import annotations

import asyncio
import threading
from typing import TYPE_CHECKING, Any, Final

import kopf

from patchbay_operator.api.fields import GROUP, VERSION
from patchbay_operator.controller import ENDPOINTS, SNAPSHOT, STATUS
from patchbay_operator.objects.naming import MANAGER, PLUGIN_LABEL, addressed

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from lightkube import KubeConfig

    from patchbay_gateway.kernel.clock import Clock
    from patchbay_operator.controller import Controller, Key
    from patchbay_operator.workqueue import WorkQueue

_PLURALS: Final = {
    "plugins": "Plugin",
    "providercredentials": "ProviderCredential",
    "modelroutes": "ModelRoute",
    "clientkeys": "ClientKey",
}


_IDENTITY: Final[Any] = MANAGER


class Witness:
    """What the watch told, compared with what there is."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._told: dict[Key, str] = {}
        self._missed: dict[tuple[Key, str], float] = {}

    def tell(self, key: Key, version: str, deleted: bool) -> None:
        """Take note of an event."""
        if deleted:
            self._told.pop(key, None)
        else:
            self._told[key] = version

    def told(self) -> Mapping[Key, str]:
        """Return what was told until now, for `compare`."""
        return dict(self._told)

    def compare(self, current: Mapping[Key, str], before: Mapping[Key, str]) -> None:
        """
        Take note of what there is.

        Args:
            current: What there is.
            before: What had been told when reading *current* began; what came since may be in it or not.
        """
        now = self._clock.monotonic()
        for key, version in before.items():
            if key not in current and self._told.get(key) == version:
                del self._told[key]
        untold = [(k, v) for k, v in current.items() if self._told.get(k) != v]
        self._missed = {mark: self._missed.get(mark, now) for mark in untold}

    @property
    def silent(self) -> float:
        """Seconds that the oldest untold version has been there."""
        now = self._clock.monotonic()
        return max((now - at for at in self._missed.values()), default=0.0)


def build_registry(
    controller: Controller,
    queue: WorkQueue[Key],
    witness: Witness,
    config: KubeConfig,
    post: Callable[..., object],
) -> kopf.OperatorRegistry:
    """
    Return kopf's handlers.

    Args:
        controller: Told of Deployments.
        queue: Filled.
        witness: Told of every event.
        config: Of the cluster.
        post: Calls a function with arguments in the loop of all these; kopf has a loop of its own.
    """
    registry = kopf.OperatorRegistry()

    @kopf.on.login(registry=registry)
    async def login(**_: Any) -> kopf.ConnectionInfo | None:
        return connection_info(config)

    def watch_resource(plural: str, kind: str) -> None:
        @kopf.on.event(GROUP, VERSION, plural, registry=registry, id=plural)
        async def resource_seen(event: kopf.RawEvent, **_: Any) -> None:
            metadata = event["object"]["metadata"]
            deleted = event["type"] == "DELETED"
            post(witness.tell, (kind, metadata["name"]), metadata["resourceVersion"], deleted)
            if deleted or not only_status(event["object"]):
                post(queue.add, SNAPSHOT)

    for plural, kind in _PLURALS.items():
        watch_resource(plural, kind)

    @kopf.on.event("apps", "v1", "deployments", registry=registry, id="deployments")
    async def deployment_seen(event: kopf.RawEvent, **_: Any) -> None:
        metadata = event["object"]["metadata"]
        plugin = (metadata.get("labels") or {}).get(PLUGIN_LABEL, "")
        if event["type"] == "DELETED":
            post(queue.add, ("Plugin", plugin))
            post(queue.add, STATUS)
        else:
            post(controller.deployment_seen, plugin, metadata.get("generation", 0))

    @kopf.on.event(
        "discovery.k8s.io", "v1", "endpointslices", registry=registry, id="endpointslices"
    )
    async def endpoints_seen(**_: Any) -> None:
        post(queue.add, ENDPOINTS)

    return registry


def only_status(document: Mapping[str, Any]) -> bool:
    """Return whether a resource's spec is one whose status was written already."""
    metadata = document["metadata"]
    status = document.get("status") or {}
    settled = status.get("observedGeneration") == metadata.get("generation")
    return settled and not metadata.get("deletionTimestamp")


def connection_info(config: KubeConfig) -> kopf.ConnectionInfo:
    """Return kopf's form of the connection that lightkube found; kopf asks again when it is refused."""
    single = config.get()
    assert single is not None
    user = single.user
    token = None
    if user is not None and user.token:
        token = user.token
    elif user is not None and user.token_file:
        with open(single.abs_file(user.token_file), encoding="utf-8") as file:  # noqa: PTH123 - str
            token = file.read().strip()
    return kopf.ConnectionInfo(
        server=single.cluster.server,
        ca_path=_path(single, single.cluster.certificate_auth),
        ca_data=single.cluster.certificate_auth_data,
        insecure=single.cluster.insecure,
        token=token,
        certificate_path=_path(single, user.client_cert if user else None),
        certificate_data=user.client_cert_data if user else None,
        private_key_path=_path(single, user.client_key if user else None),
        private_key_data=user.client_key_data if user else None,
    )


def _path(single: Any, path: str | None) -> str | None:
    return str(single.abs_file(path)) if path else None


def build_settings(installation: str) -> kopf.OperatorSettings:
    """Return kopf's settings: no Events, no peering, no look around the cluster, watches that end."""
    settings = kopf.OperatorSettings()
    settings.posting.enabled = False
    settings.scanning.disabled = True
    settings.peering.standalone = True
    settings.networking.request_timeout = 30
    settings.networking.enforce_retry_after = True
    settings.watching.server_timeout = 300
    settings.watching.chunk_size = 500
    chosen = f"{PLUGIN_LABEL},app.kubernetes.io/instance={installation}"
    settings.watching.label_selectors["apps", "v1", "deployments"] = chosen
    settings.watching.label_selectors["discovery.k8s.io", "v1", "endpointslices"] = addressed(
        installation
    )
    return settings


async def watch(
    registry: kopf.OperatorRegistry, settings: kopf.OperatorSettings, namespace: str
) -> None:
    """
    Watch until cancelled; raises what kopf ends with, and RuntimeError when it just ends.

    In a thread with a loop of its own: at its end kopf cancels every task that began after it, and takes the
    process's signals where it can.
    """
    stop = threading.Event()

    def body() -> None:
        asyncio.run(
            kopf.operator(
                registry=registry,
                settings=settings,
                namespaces=[namespace],
                standalone=True,
                # Its own guess asks for the user's name, which a container's number has not.
                identity=_IDENTITY,
                stop_flag=stop,
            )
        )

    running = asyncio.ensure_future(asyncio.to_thread(body))
    try:
        await asyncio.shield(running)
    except asyncio.CancelledError:
        stop.set()
        await running
        raise
    # Events would be missed from here on, and nobody would know.
    raise RuntimeError("the watches have ended")
