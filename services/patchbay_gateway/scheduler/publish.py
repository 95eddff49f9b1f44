"""
What a publisher needs besides `plugins.building`, which makes the snapshot: the digests of client keys.

Not here: reading and watching files (watching.py), publishing (plugins/distribution.py).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from patchbay_gateway.kernel import keys
from patchbay_gateway.plugins.building import build_snapshot

if TYPE_CHECKING:
    from collections.abc import Mapping

    from patchbay_gateway.kernel.config import Config

__all__ = ["build_snapshot", "digest_keys"]


def digest_keys(config: Config, environ: Mapping[str, str], cluster_root: bytes) -> dict[str, str]:
    """
    Return name → digest of the client keys. Reads files: not for the event loop.

    Raises:
        ConfigError: A key's source is missing. It is not left out in silence, for the last key missing
            would look like a gateway without keys.
    """
    digests = {}
    for key in config.client_keys:
        if key.hash is not None:
            digests[key.name] = key.hash
        else:
            plain = key.resolve(environ)
            assert plain is not None
            digests[key.name] = keys.client_key_digest(cluster_root, plain)
    return digests
