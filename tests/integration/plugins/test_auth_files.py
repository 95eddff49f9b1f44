"""Auth files and commands of a plugin that runs as a process of its own, in a gateway as people run it."""

from __future__ import annotations

import json
import subprocess
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from tests.harness.observing import until
from tests.harness.plugin_process import PluginProcess, new_root
from tests.harness.processes import PATCHBAY
from tests.harness.topology import Up, make_config
from tests.harness.upstream import Upstream
from tests.integration.plugins.conftest import World

if TYPE_CHECKING:
    from collections.abc import Iterator

SAMPLE = Path(__file__).parent / "sample" / "accounts.py"
PATIENCE = 90


@pytest.fixture(scope="module")
def accounts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """A gateway with the plugin, a file with two accounts, and one that nobody understands."""
    directory = tmp_path_factory.mktemp("accounts")
    auth_dir = directory / "auths"
    auth_dir.mkdir()
    (auth_dir / "team.json").write_text(json.dumps({"type": "team", "users": ["ann", "bob"]}))
    (auth_dir / "strange.json").write_text(json.dumps({"type": "team", "nothing": 1}))
    root = new_root()
    upstream = Upstream(directory)
    upstream.process.start()
    plugin = PluginProcess("accounts", SAMPLE, root, directory)
    config = make_config(upstream.url, auth_dir=str(auth_dir))
    config["providers"].append(
        {
            "name": "team",
            "plugin": "openai-compatible",
            "base_url": upstream.url,
            "models": [{"name": "fake-model", "alias": "mine"}],
        }
    )
    config["plugins"] = [{"id": "accounts", "address": plugin.address}]
    gateway = Up(directory, config, {"PATCHBAY_PLUGINS_KEY": root.hex()})
    world = World(gateway, plugin, upstream, auth_dir)
    plugin.start()
    gateway.start()
    yield world
    gateway.stop()
    plugin.stop()
    upstream.process.stop()


def patchbay(world: World, *args: str) -> subprocess.CompletedProcess[str]:
    """Run a verb against the gateway."""
    env = {
        "PATCHBAY_MANAGEMENT_URL": world.gateway.management_url,
        "PATCHBAY_MANAGEMENT_KEY": world.gateway.management_key,
        "PATH": "/usr/bin:/bin",
    }
    command = [str(PATCHBAY), *args]
    return subprocess.run(
        command, env=env, capture_output=True, text=True, check=False, timeout=PATIENCE
    )


def credentials(world: World, *wanted: str) -> dict[str, dict[str, Any]]:
    """Return the credentials of the provider, once they are *wanted*."""
    deadline = time.monotonic() + PATIENCE
    while True:
        answer = httpx.get(
            f"{world.gateway.management_url}/v0/management/credentials?provider=team",
            headers={"authorization": f"Bearer {world.gateway.management_key}"},
            timeout=PATIENCE,
            verify=False,
        )
        found = {c["id"]: c for c in answer.json()} if answer.status_code == 200 else {}
        if set(found) == set(wanted):
            return found
        assert time.monotonic() < deadline, (found, world.plugin.tail())
        time.sleep(0.1)  # polls other processes


def both_serve(world: World) -> bool:
    """Whether two requests were made with the tokens of both accounts."""
    used = set()
    for _ in range(2):
        answer = world.chat("hi", "mine")
        assert answer.status_code in {200, 503}, answer.text
        if answer.status_code == 200:
            used.add(world.upstream.records()[-1]["headers"]["authorization"])
    return used == {"Bearer test-of-ann", "Bearer test-of-bob"}


def says(world: World, text: str) -> None:
    """Wait until the list of credentials warns so."""

    def told() -> bool:
        return text in patchbay(world, "credentials", "list").stderr

    until(told, PATIENCE, f"nobody says: {text}")


def test_accounts_of_a_file_serve_and_outlive_the_plugin(accounts: World) -> None:
    found = credentials(accounts, "team.ann", "team.bob")
    assert found["team.ann"]["source"] == "team.json"
    until(lambda: both_serve(accounts), PATIENCE, "both accounts serve")

    accounts.plugin.stop()
    try:
        accounts.gateway.stop()
        accounts.gateway.start()
        credentials(accounts, "team.ann", "team.bob")
        until(lambda: both_serve(accounts), PATIENCE, "both accounts serve without the plugin")
        says(accounts, "auth file team.json counts as before: plugin accounts")
    finally:
        accounts.plugin.start()


def test_list_says_why_a_file_gives_nothing(accounts: World) -> None:
    says(
        accounts,
        "auth file strange.json is not used: "
        "has neither api_key nor access_token nor refresh_token",
    )


def test_accounts_of_one_file_are_switched_together(accounts: World) -> None:
    credentials(accounts, "team.ann", "team.bob")
    alone = patchbay(accounts, "credentials", "disable", "team.ann")
    assert alone.returncode == 1
    assert "switched together, as team" in alone.stderr
    both = patchbay(accounts, "credentials", "disable", "team")
    assert both.returncode == 0, both.stderr
    assert "team.bob" in both.stdout

    def disabled() -> set[bool]:
        return {c["disabled"] for c in credentials(accounts, "team.ann", "team.bob").values()}

    until(lambda: disabled() == {True}, PATIENCE, "both are disabled")
    assert patchbay(accounts, "credentials", "enable", "team").returncode == 0
    until(lambda: disabled() == {False}, PATIENCE, "both are enabled again")


def test_what_a_command_brings_is_kept(accounts: World) -> None:
    ran = time.monotonic() + PATIENCE
    while True:
        done = patchbay(accounts, "plugin", "exec", "accounts", "--", "--user", "dan")
        if done.returncode == 0:
            break
        assert time.monotonic() < ran, (done.stderr, accounts.plugin.tail())
        time.sleep(0.1)  # polls the handshake
    assert done.stdout == "hello\nCredential team-dan is kept.\n"
    found = credentials(accounts, "team.ann", "team.bob", "team-dan")["team-dan"]
    assert (found["source"], found["brought_by"]) == ("command", "accounts")
    removed = patchbay(accounts, "credentials", "remove", "team-dan")
    assert removed.stdout == "Credential team-dan is gone.\n"
    credentials(accounts, "team.ann", "team.bob")
    refused = patchbay(
        accounts, "plugin", "exec", "accounts", "--", "--user", "eve", "--provider", "fake"
    )
    assert refused.returncode == 1
    assert refused.stdout == "hello\n"
    assert "the credentials are not kept: the credential is not one that" in refused.stderr
