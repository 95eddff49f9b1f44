"""Operator, scheduler, identity server, plugin as processes: what only schedulers know reaches resources."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from tests.harness.fleet import eventually
from tests.harness.plugin_process import PluginProcess
from tests.requirements import need

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.harness.secret_fleet import SecretFleet

pytestmark = [pytest.mark.requires("kube-apiserver"), pytest.mark.timeout(300)]

PLUGIN = Path(__file__).with_name("registrar_plugin.py")


@pytest.fixture(scope="module")
def fleet(
    tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> Iterator[SecretFleet]:
    """One scheduler with an operator, and a credential for each test."""
    need("kube-apiserver")
    from tests.harness.secret_fleet import SecretFleet  # noqa: PLC0415 - few machines can

    made = SecretFleet(
        tmp_path_factory.mktemp("fleet"),
        request.getfixturevalue("api_server"),
        schedulers=1,
        families=("a",),
    )
    try:
        made.start()
        yield made
    finally:
        made.stop()


def _conditions(fleet: SecretFleet, name: str) -> dict[str, dict[str, Any]]:
    status = fleet.resource("ProviderCredential", name).get("status") or {}
    return {c["type"]: c for c in status.get("conditions") or ()}


def _wait(fleet: SecretFleet, kind: str, status: str, reason: str) -> dict[str, Any]:
    """Wait until a condition of the credential is as given and return it."""
    found: dict[str, Any] = {}

    def look() -> bool:
        found.clear()
        found.update(_conditions(fleet, "a").get(kind) or {})
        return (found.get("status"), found.get("reason")) == (status, reason)

    eventually(look, 90, lambda: _conditions(fleet, "a"))
    return found


def test_refresh_that_fails_shows_in_the_status_until_there_is_a_new_token(
    fleet: SecretFleet,
) -> None:
    _wait(fleet, "RefreshHealthy", "True", "Refreshed")
    record = fleet.wait_record("a", lambda r: bool(r.access))
    status = fleet.resource("ProviderCredential", "a")["status"]
    assert status["expiresAt"].endswith("Z")
    fleet.identity.revoke("a")
    fleet.refresh("a", record.version, 0)
    told = _wait(fleet, "RefreshHealthy", "False", "NeedsLogin")
    assert "INVALID_GRANT" in told["message"]
    assert "patchbay login fake --credential a" in told["message"]
    assert "Secret a-seed, key refresh-token" in told["message"]
    shown = str(fleet.resource("ProviderCredential", "a"))
    fleet.sow("a", fleet.identity.open_family("b"))
    _wait(fleet, "RefreshHealthy", "True", "Refreshed")
    for token in (*record.material.values(), record.refresh_token):
        assert token not in shown


def test_models_that_a_plugin_registers_are_in_the_operators_snapshot(
    fleet: SecretFleet, tmp_path: Path
) -> None:
    plugin = PluginProcess("registrar", PLUGIN, fleet.plugins_root, tmp_path)
    plugin.start(wait=0)
    try:
        fleet.declare("Plugin", "registrar", {"address": plugin.address})

        def told() -> set[tuple[str, str]]:
            snapshot = fleet.snapshot()
            assert snapshot is not None
            return {(m.name, m.told_by) for p in snapshot.providers for m in p.models}

        wanted = {("echo", ""), ("fake-model", ""), ("registered", "registrar")}
        eventually(lambda: told() == wanted, 90, told)
        fleet.flush_redis()
        eventually(lambda: fleet.snapshot() is not None, 90)
        assert told() == wanted
    finally:
        plugin.kill()
