"""
Everything that a snapshot is made of, read from the API server and the mounted values.

Always read anew (LIST and GET), never remembered from events: a watch that lost one must not keep a deleted
resource in traffic. Secrets are seen by their metadata; contents are read only of client keys and of plugins'
configurations. Not here: what becomes of it (draft.py).
"""

from __future__ import annotations

import base64
import binascii
import os
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from patchbay_gateway.kernel import config as model
from patchbay_gateway.kernel import keys, logs
from patchbay_gateway.plugins.prices import load_prices
from patchbay_operator.cluster import Gone
from patchbay_operator.draft import Gathered
from patchbay_operator.objects.naming import PLUGIN_LABEL, generated_key_name
from patchbay_operator.objects.workload import references
from patchbay_operator.resources import understand

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping, Sequence
    from pathlib import Path

    from patchbay_gateway.plugins.snapshot import PriceEntry
    from patchbay_operator.api.plugin import PluginSpec
    from patchbay_operator.cluster import KubeApi
    from patchbay_operator.resources import Resource

RESOURCES: Final = ("Plugin", "ProviderCredential", "ModelRoute", "ClientKey")
_SHORTEST_KEY: Final = 8
_log = logs.get_logger("operator.gathering")


@dataclass(frozen=True, slots=True)
class Values:
    """The configuration that the chart's values became."""

    config: model.Config
    digests: Mapping[str, str] = field(default_factory=dict)
    prices: Sequence[PriceEntry] = ()


def read_values(path: Path | None, cluster_root: bytes) -> Values:
    """
    Read the mounted configuration with its keys and prices. Blocking.

    Raises:
        PatchbayError: It cannot be used; the text says why.
    """
    config = model.load(path)
    digests = {}
    for key in config.client_keys:
        plain = key.resolve(os.environ) if key.hash is None else None
        digests[key.name] = key.hash or keys.client_key_digest(cluster_root, plain or "")
    prices = load_prices(config.usage.prices) if config.usage.prices else ()
    return Values(config, digests, prices)


@dataclass(frozen=True, slots=True)
class World:
    """What was gathered, and what workloads need of it."""

    gathered: Gathered
    documents: Mapping[tuple[str, str], dict[str, Any]]
    """(kind, name) → resource as it is stored."""
    versions: Mapping[str, str]
    """`Secret/name` and `ConfigMap/name` → what changes with the content."""


def version_of(document: Mapping[str, Any]) -> str:
    """Return what changes when an object does, or when another takes its name."""
    metadata = document["metadata"]
    return f"{metadata['uid']}:{metadata['resourceVersion']}"


async def versions(api: KubeApi) -> dict[str, str]:
    """Return `Secret/name` and `ConfigMap/name` → version of all in the namespace, by metadata alone."""
    found = {}
    for kind in ("Secret", "ConfigMap"):
        for item in await api.list(kind, metadata_only=True):
            found[f"{kind}/{item['metadata']['name']}"] = version_of(item)
    return found


async def gather(
    api: KubeApi, values: Values, cluster_root: bytes, *, served: Collection[str] = ()
) -> World:
    """Read everything; *served* are uids of Plugins whose pods were ready once."""
    documents: dict[tuple[str, str], dict[str, Any]] = {}
    resources: dict[str, list[Resource[Any]]] = {kind: [] for kind in RESOURCES}
    for kind in RESOURCES:
        try:
            items = await api.list(kind)
        except Gone as error:
            text = f"the API server does not know {kind}s; install the chart patchbay-crds and this goes on"
            raise Gone(f"{text} ({error.message})") from error
        for item in items:
            if item["metadata"].get("deletionTimestamp"):
                continue
            documents[kind, item["metadata"]["name"]] = item
            resources[kind].append(understand(item))
    seen = await versions(api)
    gathered = Gathered(
        base=values.config,
        plugins=resources["Plugin"],
        credentials=resources["ProviderCredential"],
        routes=resources["ModelRoute"],
        client_keys=resources["ClientKey"],
        secrets={
            name.removeprefix("Secret/"): version
            for name, version in seen.items()
            if name.startswith("Secret/")
        },
        configs=await _configs(api, resources["Plugin"]),
        digests=await _digests(api, resources["ClientKey"], seen, cluster_root),
        base_digests=values.digests,
        prices=values.prices,
        serving=await _serving(api, resources["Plugin"], served),
        missing={p.name: _missing(p.spec, seen) for p in resources["Plugin"] if p.spec},
    )
    return World(gathered, documents, seen)


async def _serving(
    api: KubeApi, plugins: Iterable[Resource[PluginSpec]], served: Collection[str]
) -> set[str]:
    ready = {
        item["metadata"]["labels"][PLUGIN_LABEL]
        for item in await api.list("Deployment", labels=PLUGIN_LABEL)
        if int((item.get("status") or {}).get("readyReplicas") or 0)
    }
    return {p.name for p in plugins if p.name in ready or p.uid in served}


def _missing(spec: PluginSpec, seen: Mapping[str, str]) -> tuple[str, ...]:
    wanted = references(spec)
    return tuple(sorted(name for name, needed in wanted.items() if needed and name not in seen))


async def _configs(api: KubeApi, plugins: Iterable[Resource[PluginSpec]]) -> dict[str, str | None]:
    found: dict[str, str | None] = {}
    for plugin in plugins:
        if plugin.spec is None or plugin.spec.config_from is None:
            continue
        source = plugin.spec.config_from
        if source.config_map_ref is not None:
            document = await api.get("ConfigMap", source.config_map_ref.name)
            data = (document or {}).get("data") or {}
            found[plugin.name] = data.get(source.config_map_ref.key)
        elif source.secret_ref is not None:
            found[plugin.name] = await read_secret(
                api, source.secret_ref.name, source.secret_ref.key
            )
    return found


async def _digests(
    api: KubeApi,
    client_keys: Iterable[Resource[Any]],
    seen: Mapping[str, str],
    cluster_root: bytes,
) -> dict[str, str]:
    found = {}
    for resource in client_keys:
        if resource.spec is None:
            continue
        ref = resource.spec.secret_ref
        name, key = (ref.name, ref.key) if ref else (generated_key_name(resource.name), "key")
        if f"Secret/{name}" not in seen:
            continue
        # A Secret of an earlier resource of that name is about to go, and its key was revoked.
        plain = await read_secret(api, name, key, of="" if ref else resource.uid)
        if plain is not None and len(plain.strip()) >= _SHORTEST_KEY:
            found[resource.name] = keys.client_key_digest(cluster_root, plain.strip())
    return found


async def read_secret(api: KubeApi, name: str, key: str, *, of: str = "") -> str | None:
    """
    Return one value of a Secret; None when there is none. By LIST, for which the Role has the right.

    With *of*, the uid of a resource, a Secret that belongs to others is none.
    """
    for document in await api.list("Secret", fields=f"metadata.name={name}"):
        owners = document["metadata"].get("ownerReferences") or ()
        if of and owners and all(owner["uid"] != of for owner in owners):
            continue
        encoded = (document.get("data") or {}).get(key)
        if encoded is None:
            return None
        try:
            return base64.b64decode(encoded).decode()
        except (binascii.Error, UnicodeDecodeError):
            _log.warning("not text", secret=name, key=key)
    return None
