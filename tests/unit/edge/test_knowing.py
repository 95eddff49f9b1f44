"""Who a client is where keys, open access and frontend auth plugins meet (edge/knowing.py)."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest

from patchbay import errors
from patchbay_gateway.edge import knowing
from patchbay_gateway.edge.auth import Authenticator, Client
from patchbay_gateway.edge.exchange import Head
from patchbay_gateway.plugins.snapshot import ClientKeyEntry, SettingsEntry, Snapshot

KEYS = Authenticator(lambda key: (f"d:{key}",), allow_open=True)
CLOSED = Snapshot(1, client_keys=(ClientKeyEntry("laptop", "d:test-key"),))
OPEN = Snapshot(1, settings=SettingsEntry(open_access=True))


def client(snapshot: Snapshot, key: str = "", *, plugins: str = "") -> Client | None:
    headers = [(b"host", b"localhost"), (b"content-type", b"application/json")]
    if key:
        headers.append((b"authorization", f"Bearer {key}".encode()))
    exchange = SimpleNamespace(head=Head("POST", "/", b"", headers, "127.0.0.1"))
    frontend = SimpleNamespace(
        exclusive=lambda _: object() if plugins == "exclusive" else None,
        any=lambda _: bool(plugins),
    )
    routed: Any = SimpleNamespace(client=None, exchange=exchange)
    return knowing.client(routed, snapshot, KEYS, cast("Any", SimpleNamespace(frontend=frontend)))


def test_configured_key_comes_before_plugins() -> None:
    for plugins in ("", "some"):
        assert (known := client(CLOSED, "test-key", plugins=plugins))
        assert known.name == "laptop"


def test_unknown_key_is_for_plugins_to_know() -> None:
    assert client(CLOSED, "test-other", plugins="some") is None
    with pytest.raises(errors.Unauthenticated):
        client(CLOSED, "test-other")


def test_exclusive_plugin_decides_over_configured_keys_and_open_access() -> None:
    assert client(CLOSED, "test-key", plugins="exclusive") is None
    assert client(OPEN, plugins="exclusive") is None


def test_open_access_ends_where_a_plugin_says_who_enters() -> None:
    assert (known := client(OPEN))
    assert known.name == "open"
    assert client(OPEN, plugins="some") is None
