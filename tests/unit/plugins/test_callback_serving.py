"""At which port callbacks are served, and what plugins are told of it."""

from __future__ import annotations

import asyncio
import socket
from typing import TYPE_CHECKING, Any

import pytest

from patchbay import errors
from patchbay_gateway.kernel.config import ProcessSettings
from patchbay_gateway.plugins.callbacks.serving import advertised, serving_callbacks, wanted
from patchbay_gateway.plugins.distribution import SnapshotHolder
from patchbay_gateway.plugins.scopes import ScopeTable
from patchbay_gateway.plugins.snapshot import AddressEntry, PluginEntry, Snapshot

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

MODELS: dict[str, object] = {"models": True}


def settings(path: Path, **fields: Any) -> ProcessSettings:
    """Return settings of `up` on loopback."""
    return ProcessSettings(data_dir=path, **{"host": "127.0.0.1", "grpc_port": 7000, **fields})


@pytest.mark.parametrize(
    ("fields", "port", "told"),
    [
        ({}, 7000, "127.0.0.1:7000"),
        ({}, 40123, "127.0.0.1:40123"),
        ({"host": "::1"}, 7000, "[::1]:7000"),
        ({"host": "0.0.0.0"}, 7000, f"{socket.gethostname()}:7000"),
        ({"advertise_address": "10.0.0.7:17000"}, 7000, "10.0.0.7:17000"),
        ({"advertise_address": "10.0.0.7:17000"}, 40123, "10.0.0.7:40123"),
    ],
)
def test_plugins_are_told_an_address_that_they_reach(
    tmp_path: Path, fields: dict[str, Any], port: int, told: str
) -> None:
    assert advertised(settings(tmp_path, **fields), port) == told


@pytest.mark.parametrize(
    ("entry", "yes"),
    [
        (PluginEntry("p", addresses=(AddressEntry("a:1"),), host_access=MODELS), True),
        (PluginEntry("p", addresses=(AddressEntry("a:1"),)), False),
        (PluginEntry("p", addresses=(AddressEntry("a:1"),), host_access={"models": False}), False),
        (PluginEntry("p", builtin=True, host_access=MODELS), False),
        (PluginEntry("p", enabled=False, host_access=MODELS), False),
    ],
)
def test_port_is_wanted_where_a_plugin_elsewhere_is_granted_something(
    entry: PluginEntry, *, yes: bool
) -> None:
    assert wanted(Snapshot(1, plugins=(entry,))) is yes
    assert not wanted(None)


class Nothing:
    """A servicer of nothing."""


async def test_up_opens_the_port_with_the_first_grant_and_closes_it_at_the_end(
    tmp_path: Path,
    free_port: int,
    no_leaked_tasks: Callable[[], object],  # noqa: ARG001 - looks after all is closed
) -> None:
    scopes, holder = ScopeTable(), SnapshotHolder()
    async with serving_callbacks(
        Nothing(), scopes, settings=settings(tmp_path), holder=holder, port=free_port, always=False
    ):
        assert scopes.address == ""
        holder.set(Snapshot(1))
        await asyncio.sleep(0)
        assert scopes.address == ""
        holder.set(Snapshot(2, plugins=(PluginEntry("p", host_access=MODELS),)))
        async with asyncio.timeout(30):
            while not scopes.address:  # noqa: ASYNC110 - nothing tells when it is bound
                await asyncio.sleep(0.01)
        assert scopes.address == f"127.0.0.1:{free_port}"
    assert scopes.address == ""


async def test_port_that_is_taken_is_fatal_for_a_service_and_not_for_up(tmp_path: Path) -> None:
    scopes, holder = ScopeTable(), SnapshotHolder()
    holder.set(Snapshot(1, plugins=(PluginEntry("p", host_access=MODELS),)))
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        given: Any = {"settings": settings(tmp_path), "holder": holder, "port": port}
        with pytest.raises(errors.FailedPrecondition):
            async with serving_callbacks(Nothing(), scopes, always=True, **given):
                pass
        async with serving_callbacks(Nothing(), scopes, always=False, **given):
            assert scopes.address.startswith("127.0.0.1:")
            assert not scopes.address.endswith(f":{port}")


@pytest.mark.parametrize("turns", range(10))
async def test_port_that_is_being_opened_at_the_end_is_closed(
    tmp_path: Path, free_port: int, turns: int
) -> None:
    holder = SnapshotHolder()
    async with serving_callbacks(
        Nothing(),
        ScopeTable(),
        settings=settings(tmp_path),
        holder=holder,
        port=free_port,
        always=False,
    ):
        await asyncio.sleep(0)
        holder.set(Snapshot(1, plugins=(PluginEntry("p", host_access=MODELS),)))
        for _ in range(turns):
            await asyncio.sleep(0)
    with socket.socket() as free:
        free.bind(("127.0.0.1", free_port))
