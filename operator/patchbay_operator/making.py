"""
Keys that an installation needs before anything else, made once: the chart's first step.

A Secret that is there stays as it is, whoever made it. The keys of built-in executors follow from the root
`plugins` and are written at each run, for a new release may bring new plugins. Not here: keys of Plugins and
ClientKeys (controller.py).
"""

from __future__ import annotations

import base64
import secrets
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from patchbay.errors import FailedPrecondition
from patchbay_gateway.kernel import keys, logs
from patchbay_gateway.kernel.config import BUILTIN_PLUGINS
from patchbay_operator.cluster import Conflicted
from patchbay_operator.objects.naming import MANAGER

if TYPE_CHECKING:
    from collections.abc import Mapping

    from patchbay_operator.cluster import KubeApi

_ROOTS: Final = ("store", "plugins", "cluster")
_log = logs.get_logger("operator.making")


@dataclass(frozen=True, slots=True)
class Names:
    """Names of the Secrets."""

    roots: str
    client_key: str
    management_key: str
    executor_keys: str
    redis: str = ""
    """Empty: a Redis of somebody else."""
    redis_host: str = ""
    yours: frozenset[str] = frozenset()
    """Those that are somebody's own: they have to be there, and are never made."""


async def make_secrets(api: KubeApi, names: Names) -> None:
    """
    Make what is missing.

    Raises:
        FailedPrecondition: The Secret with roots has no root `plugins`, or one of yours is not there.
        PatchbayError: What the API server says.
    """
    for name in sorted(names.yours):
        if await api.get("Secret", name) is None:
            # Made in silence, a misspelt one would be new roots, under which nothing that is stored opens.
            raise FailedPrecondition(
                f"there is no Secret {name}, which the values name as yours (secrets.existing…); create it, "
                "or correct the name",
                reason="SECRET_NOT_FOUND",
            )
    wanted = {
        names.roots: {root: secrets.token_hex(32) for root in _ROOTS},
        names.client_key: {"key": f"pb-{secrets.token_urlsafe(32)}"},
        names.management_key: {"key": f"pbm-{secrets.token_urlsafe(32)}"},
    }
    for name, values in wanted.items():
        if name not in names.yours:
            await _once(api, name, values)
    if names.redis:
        password = secrets.token_urlsafe(32)
        url = f"redis://:{password}@{names.redis_host}:6379/0"
        await _once(api, names.redis, {"password": password, "url": url})
    roots = await api.get("Secret", names.roots)
    encoded = ((roots or {}).get("data") or {}).get("plugins")
    if not encoded:
        raise FailedPrecondition(
            f"the Secret {names.roots} has no key plugins; it needs store, plugins and cluster, "
            "64 hex digits each (openssl rand -hex 32)",
            reason="ROOT_KEY_MISSING",
        )
    given = {"PATCHBAY_PLUGINS_KEY": base64.b64decode(encoded).decode()}
    generations = keys.load_roots(given, ("plugins",)).plugins
    lines = [
        f"{id_}={keys.plugin_key(r, id_).hex()}" for id_ in BUILTIN_PLUGINS for r in generations
    ]
    await api.apply(_secret(names.executor_keys, {"keys": "\n".join(lines) + "\n"}))


async def _once(api: KubeApi, name: str, values: Mapping[str, str]) -> None:
    try:
        await api.create(_secret(name, values))
        _log.info("made", secret=name)
    except Conflicted:
        _log.info("there already", secret=name)


def _secret(name: str, values: Mapping[str, str]) -> dict[str, object]:
    return {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {
            "name": name,
            "labels": {
                "app.kubernetes.io/part-of": "patchbay",
                "app.kubernetes.io/managed-by": MANAGER,
            },
        },
        "type": "Opaque",
        "data": {k: base64.b64encode(v.encode()).decode() for k, v in values.items()},
    }
