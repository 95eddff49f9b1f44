"""
Secrets that stand in a configuration where they are not sealed: user and password of a proxy's URL.

The URL of a proxy is part of the snapshot, which lies in Redis and on disk and goes to every edge. A
reference to a variable of the executors, `${PROXY_...}`, keeps the secret with them. Whoever writes it out is
told: by `config check`, in the log of a starting service. Not here: the references' meaning
(executors/proxies.py).
"""

from __future__ import annotations

from typing import TYPE_CHECKING
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from collections.abc import Iterator

    from patchbay_gateway.kernel.config.model import Config


def in_clear(config: Config) -> tuple[str, ...]:
    """Return the paths, as `providers.0.proxy_url`, of URLs that hold a user or password."""
    return tuple(_paths(config))


def _paths(config: Config) -> Iterator[str]:
    for index, provider in enumerate(config.providers):
        here = f"providers.{index}"
        if _tells(provider.proxy_url):
            yield f"{here}.proxy_url"
        for number, credential in enumerate(provider.credentials):
            if _tells(credential.proxy_url):
                yield f"{here}.credentials.{number}.proxy_url"


def _tells(url: str | None) -> bool:
    user, at, _ = urlsplit(url or "").netloc.rpartition("@")
    # A user's name beside a reference is none.
    return bool(at) and "${" not in user
