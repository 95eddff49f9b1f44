"""`patchbay up` as people start, stop, restart and mistreat it."""

from __future__ import annotations

import asyncio
import signal
import socket
from typing import TYPE_CHECKING

import httpx
import pytest
from tests.harness.observing import (
    NOWHERE,
    alive,
    ask,
    descendants,
    get,
    open_stream,
    read_whole,
    registrations,
    until,
)
from tests.harness.processes import PATCHBAY, Process, Verb, free_port
from tests.harness.topology import Up, make_config

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from tests.conftest import ValkeyProcess


def refused(
    directory: Path, *arguments: str | Path, env: Mapping[str, str] | None = None
) -> tuple[int, str]:
    """Run `patchbay up` to its end, which must come by itself; return status and output."""
    done = Verb(
        "up", *arguments, env={"HOME": str(directory), **(env or {})}, directory=directory
    ).end()
    return done.returncode, done.stdout + done.stderr


async def test_sigterm_lets_a_stream_end(up: Up) -> None:
    process = up.processes["up"]
    family = descendants(process.pid)
    async with open_stream(up, words=20, delay_ms=50) as chunks:
        process.signal(signal.SIGTERM)
        rest = await read_whole(chunks)
    assert rest.endswith(b"data: [DONE]\n\n")
    assert await asyncio.to_thread(process.wait, 60) == 0
    assert [line for pid, line in family.items() if alive(pid)] == []
    assert "Traceback" not in process.tail(100_000)


async def test_second_signal_cuts(up: Up) -> None:
    process = up.processes["up"]
    async with open_stream(up, words=1000, delay_ms=50) as chunks:
        # Of this drain: an earlier test's may stand above it.
        before = process.log.stat().st_size
        process.signal(signal.SIGTERM)
        await asyncio.to_thread(until, lambda: b"draining" in process.log.read_bytes()[before:])
        process.signal(signal.SIGTERM)
        with pytest.raises((httpx.RemoteProtocolError, httpx.ReadError)):
            await read_whole(chunks)
    await asyncio.to_thread(process.wait, 60)


def test_start_without_configuration_answers(tmp_path: Path) -> None:
    """An empty directory, no file, no key: the echo model is there and open to this machine."""
    port, management = free_port(), free_port()
    process = Process(
        "bare",
        [PATCHBAY, "up", "--port", str(port), "--management-port", str(management)],
        env={"PATCHBAY_DATA_DIR": str(tmp_path / "data")},
        directory=tmp_path,
        ready_url=f"http://127.0.0.1:{management}/readyz",
    )
    process.start()
    try:
        answer = httpx.post(
            f"http://127.0.0.1:{port}/v1/chat/completions",
            json={"model": "echo", "messages": [{"role": "user", "content": "hello"}]},
            timeout=60,
            verify=False,
        )
        assert answer.json()["choices"][0]["message"]["content"] == "hello"
        curl = f"curl http://127.0.0.1:{port}/v1/chat/completions"
        until(lambda: curl in process.log.read_text(), what="it greets")
    finally:
        assert process.stop() == 0


def test_data_directory_of_another_is_refused(up: Up, tmp_path: Path) -> None:
    status, output = refused(
        tmp_path,
        "--config", up.config_path, "--port", str(free_port()),
        "--management-port", str(free_port()), "--data-dir", up.directory / "data",
    )  # fmt: skip
    assert status == 1
    assert "is in use by another Patchbay" in output
    assert "--data-dir" in output
    assert "Traceback" not in output
    assert ask(up).status_code == 200


def test_first_start_without_redis_ends_and_says_what_to_do(tmp_path: Path) -> None:
    """As one process and with workers, at once: each waits a while for the server."""
    verbs = []
    for workers in ("1", "2"):
        directory = tmp_path / workers
        directory.mkdir()
        verbs.append(
            Verb(
                "up", "--port", str(free_port()), "--management-port", str(free_port()),
                "--data-dir", directory / "data", "--workers", workers,
                env={"HOME": str(directory), "REDIS_URL": f"redis://127.0.0.1:{free_port()}"},
                directory=directory,
            )
        )  # fmt: skip
    for verb in verbs:
        done = verb.end()
        output = done.stdout + done.stderr
        assert done.returncode == 1
        assert "Redis is not available" in output
        assert "Start that server or correct REDIS_URL (--redis-url)" in output
        assert "listens on" not in output
        assert "Traceback" not in output


@pytest.mark.parametrize("workers", [1, 2])
def test_later_start_without_redis_answers_and_bills_when_it_is_back(
    tmp_path: Path, own_valkey: ValkeyProcess, workers: int
) -> None:
    """From the configuration that is kept on disk."""
    gateway = Up(tmp_path, make_config(NOWHERE), {"REDIS_URL": own_valkey.url}, workers=workers)
    process = gateway.processes["up"]
    try:
        gateway.start()
        assert ask(gateway).status_code == 200
        until(gateway.usage, what="the ledger has the first one")
        assert process.stop() == 0
        own_valkey.kill()
        before = process.log.stat().st_size
        known = registrations(process)["echo"]
        # Not until it is ready: with workers that is asked of Redis.
        process.start(wait=0)
        until(lambda: b"listens on" in process.log.read_bytes()[before:], 90, "it serves")
        assert b"starting without Redis" in process.log.read_bytes()[before:]
        # Its plugins register a moment after the greeting; until then the answer is a 503.
        until(lambda: registrations(process)["echo"] >= known + workers, 90, "plugins register")
        assert [ask(gateway).status_code for _ in range(4)] == [200] * 4
        own_valkey.start()
        until(
            lambda: [(r["requests"], r["lost"]) for r in gateway.usage()] == [(5, 0)],
            90,
            "the ledger has all",
        )
    finally:
        gateway.stop()


@pytest.mark.parametrize("flag", ["--port", "--management-port"])
def test_taken_port_is_refused(tmp_path: Path, flag: str) -> None:
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen(1)
        taken = holder.getsockname()[1]
        ports = {"--port": free_port(), "--management-port": free_port(), flag: taken}
        flags = [part for pair in ports.items() for part in map(str, pair)]
        status, output = refused(tmp_path, *flags, "--data-dir", tmp_path / "data")
    assert status == 1
    assert f"port {taken} of 127.0.0.1 cannot be had" in output
    assert flag in output
    assert "Traceback" not in output


def test_wrong_configuration_is_refused_with_line_and_nearest_name(tmp_path: Path) -> None:
    path = tmp_path / "patchbay.yaml"
    path.write_text("client_keys: []\nprovider: []\n")
    status, output = refused(tmp_path, "--config", path)
    assert status == 1
    assert "provider" in output
    assert "providers" in output
    assert "2" in output
    assert "Traceback" not in output


def counted(up: Up) -> list[tuple[int, int]]:
    """Return (requests, lost) of a model that no other test asks for, and that nobody serves."""
    return [(r["requests"], r["lost"]) for r in up.usage() if r["model"] == "fake-model"]


def test_restart_keeps_ledger_and_keys(up: Up) -> None:
    folder = up.directory / "data" / "keys"
    for _ in range(3):
        assert ask(up, "fake-model").status_code >= 500
    keys = {p.name: p.read_bytes() for p in folder.iterdir()}
    assert up.processes["up"].stop() == 0
    up.start()
    assert ask(up, "fake-model").status_code >= 500
    assert ask(up).status_code == 200
    assert keys
    assert {p.name: p.read_bytes() for p in folder.iterdir()} == keys
    until(lambda: counted(up) == [(4, 0)], what="three from before the restart and one after it")


def test_keys_in_the_data_directory_are_its_owners_alone(up: Up) -> None:
    data = up.directory / "data"
    assert data.stat().st_mode & 0o777 == 0o700
    secret = list((data / "keys").iterdir())
    assert {p.stat().st_mode & 0o777 for p in secret} == {0o600}


def test_probes_answer(up: Up) -> None:
    for path in ("/livez", "/readyz", "/metrics"):
        assert get(up.management_url + path).status_code == 200
    assert get(up.management_url + "/readyz").json()["ready"] is True
    answer = get(up.management_url + "/v0/management/snapshot")
    assert answer.status_code == 401
    key = {"authorization": f"Bearer {up.management_key}"}
    answer = get(up.management_url + "/v0/management/snapshot", headers=key)
    assert answer.status_code == 200
    # A client key opens nothing here, and a management key nothing there.
    assert (
        get(up.management_url + "/v0/management/snapshot", headers=up.headers()).status_code == 401
    )
    assert get(up.base_url + "/v1/models", headers=key).status_code == 401
