"""The configuration file is followed, in one process and in four, without harm to what runs."""

from __future__ import annotations

import asyncio
import copy
import functools
import time
from typing import TYPE_CHECKING, Any

import pytest
from tests.harness.observing import (
    NOWHERE,
    ask,
    get,
    open_stream,
    read_whole,
    until,
    write_config,
)
from tests.harness.topology import Services, Up, make_config

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.harness.processes import Process

# Looked at each second, polled each second, and a loaded machine.
SOON = 60.0


@pytest.fixture(params=["up", "services"])
def gateway(request: pytest.FixtureRequest) -> Iterator[Up | Services]:
    """Both topologies, each with its first configuration again at the end."""
    found: Up | Services = request.getfixturevalue(request.param)
    yield found
    write_config(found, make_config(NOWHERE))
    until(lambda: models(found) == ["echo", "fake-model", "text-embedding-fake"])


def models(gateway: Up | Services, key: str = "test-client-key") -> list[str]:
    """Return the names that a key sees."""
    answer = get(f"{gateway.base_url}/v1/models", headers={"authorization": f"Bearer {key}"})
    return [m["id"] for m in answer.json()["data"]] if answer.status_code == 200 else []


def with_model(name: str) -> dict[str, Any]:
    """Return the configuration with one echo model more."""
    config = copy.deepcopy(make_config(NOWHERE))
    config["providers"][0]["models"].append({"name": "echo", "alias": name})
    return config


async def test_new_model_is_served_and_open_streams_go_on(gateway: Up | Services) -> None:
    assert (await asyncio.to_thread(ask, gateway, "parrot")).status_code == 404

    async def read_one() -> bytes:
        async with open_stream(gateway, words=60, delay_ms=50) as chunks:
            return await read_whole(chunks)

    # One begins every half second and takes three, so some are open whenever the change comes.
    async with asyncio.TaskGroup() as tasks:
        readings = [tasks.create_task(read_one())]
        write_config(gateway, with_model("parrot"))
        deadline = time.monotonic() + SOON
        while (await asyncio.to_thread(ask, gateway, "parrot")).status_code != 200:
            assert time.monotonic() < deadline, "it is not served"
            await asyncio.sleep(0.5)  # polls another process
            readings.append(tasks.create_task(read_one()))
    assert all(reading.result().endswith(b"data: [DONE]\n\n") for reading in readings)
    assert "parrot" in models(gateway)


def test_key_that_is_taken_away_is_refused(gateway: Up | Services) -> None:
    config = make_config(NOWHERE)
    config["client_keys"].append({"name": "second", "key": "test-second-key", "models": ["echo"]})
    write_config(gateway, config)
    until(lambda: models(gateway, "test-second-key") == ["echo"], SOON)
    write_config(gateway, make_config(NOWHERE))
    until(lambda: models(gateway, "test-second-key") == [], SOON)
    assert ask(gateway).status_code == 200


def test_rotated_management_key_takes_the_place_of_the_former(gateway: Up | Services) -> None:
    def opens(key: str) -> bool:
        url = f"{gateway.management_url}/v0/management/snapshot"
        return get(url, headers={"authorization": f"Bearer {key}"}).status_code == 200

    file = gateway.directory / "rotated-key"
    file.write_text("test-rotated-one\n")
    config = make_config(NOWHERE)
    config["management_keys"].append({"name": "rotated", "key_file": file.name})
    write_config(gateway, config)
    until(lambda: opens("test-rotated-one"), SOON)
    file.write_text("test-rotated-two\n")
    until(lambda: opens("test-rotated-two"), SOON)
    assert not opens("test-rotated-one")
    assert opens(gateway.management_key)


BROKEN = ["providers: [}", "provider: []", "client_keys: [{name: x}]"]


def test_broken_file_changes_nothing(gateway: Up | Services) -> None:
    """The log says why; the next good file is taken."""
    followers = [p for n, p in gateway.processes.items() if n == "up" or n.startswith("scheduler")]
    for broken in BROKEN:
        before = {p.name: p.log.stat().st_size for p in followers}
        write_config(gateway, broken)
        for process in followers:
            until(
                functools.partial(_says, process, before[process.name]),
                SOON,
                f"{process.name} says nothing of {broken}",
            )
        assert ask(gateway).status_code == 200
    assert models(gateway) == ["echo", "fake-model", "text-embedding-fake"]
    write_config(gateway, with_model("magpie"))
    until(lambda: ask(gateway, "magpie").status_code == 200, SOON)


def _says(process: Process, start: int) -> bool:
    """Whether the log of *process* tells of a refused file, from byte *start* on."""
    return b"the configuration is not used" in process.log.read_bytes()[start:]
