"""Mutual TLS between two processes of the gateway: who is let in, and a certificate that is renewed."""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING

import pytest
from tests.fakes import probe_service
from tests.harness.certificates import Authority

from patchbay import errors
from patchbay.server import Server
from patchbay.tls import Tls
from patchbay_gateway.kernel.channels.remote import RemoteChannel

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path


@contextlib.asynccontextmanager
async def _serving(tls: Tls) -> AsyncIterator[str]:
    server = Server({probe_service.SERVICE: probe_service.ProbeServicer()}, tls=tls)
    port = await server.start("127.0.0.1:0")
    try:
        yield f"127.0.0.1:{port}"
    finally:
        await server.stop()


async def _ask(address: str, tls: Tls | None) -> bytes:
    channel = RemoteChannel(address, tls=tls)
    try:
        request = probe_service.Bytes(value=b"hello")
        return (await channel.unary(probe_service.UNARY, request, deadline=60)).value
    finally:
        await channel.close()


async def test_both_sides_of_one_authority_talk(tmp_path: Path) -> None:
    authority = Authority()
    async with _serving(Tls(authority.issue(tmp_path / "server"))) as address:
        assert await _ask(address, Tls(authority.issue(tmp_path / "client"))) == b"echo hello"


async def test_nobody_else_is_let_in(tmp_path: Path) -> None:
    authority = Authority()
    strangers = [None, Tls(Authority().issue(tmp_path / "stranger"))]
    async with _serving(Tls(authority.issue(tmp_path / "server"))) as address:
        for tls in strangers:
            with pytest.raises(errors.Unavailable):
                await _ask(address, tls)


async def test_server_of_another_name_is_not_believed(tmp_path: Path) -> None:
    authority = Authority()
    async with _serving(Tls(authority.issue(tmp_path / "server", "another"))) as address:
        client = authority.issue(tmp_path / "client")
        with pytest.raises(errors.Unavailable):
            await _ask(address, Tls(client))
        assert await _ask(address, Tls(client, "another")) == b"echo hello"


async def test_renewed_certificate_is_served_without_a_restart(tmp_path: Path) -> None:
    server = Authority("first").issue(tmp_path / "server")
    async with _serving(Tls(server)) as address:
        second = Authority("second")
        second.issue(server)
        for path in server.iterdir():
            os.utime(path, (1, 1))  # files of one moment have one time
        assert await _ask(address, Tls(second.issue(tmp_path / "client"))) == b"echo hello"


def test_missing_file_is_named(tmp_path: Path) -> None:
    directory = Authority().issue(tmp_path / "half")
    (directory / "ca.crt").unlink()
    with pytest.raises(errors.FailedPrecondition, match=r"ca\.crt"):
        Tls.from_environment({"PATCHBAY_TLS_DIR": str(directory)})
    assert Tls.from_environment({}) is None
