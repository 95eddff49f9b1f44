"""Scopes and grants: what a plugin may call back in, and for how long."""

from __future__ import annotations

from typing import Any

import pytest

from patchbay import errors
from patchbay.tokens import CALLBACK_KEY, SCOPE_KEY
from patchbay_gateway.plugins.grants import Grants, grants_of
from patchbay_gateway.plugins.hooks import Hook
from patchbay_gateway.plugins.policy import policy
from patchbay_gateway.plugins.scopes import ScopeTable
from patchbay_gateway.plugins.snapshot import PluginEntry


def hook(plugin_id: str = "a", **access: Any) -> Hook:
    entry = PluginEntry(plugin_id, host_access=dict(access))
    return Hook(plugin_id, "model_router", entry, policy("model_router"))


@pytest.fixture
def table() -> ScopeTable:
    return ScopeTable("127.0.0.1:7000")


def test_scope_tells_the_plugin_where_and_in_what_to_call(table: ScopeTable) -> None:
    scope = table.open(hook(models=True), None)
    assert scope is not None
    assert dict(scope.metadata) == {CALLBACK_KEY: "127.0.0.1:7000", SCOPE_KEY: scope.id}
    assert table.find(scope.id, "a") is scope


@pytest.mark.parametrize(
    "access", [{}, {"models": False}, {"auths": "none"}, {"http": {"hosts": []}}]
)
def test_plugin_without_grants_gets_no_scope(table: ScopeTable, access: dict[str, Any]) -> None:
    assert table.open(hook(**access), None) is None


def test_process_that_serves_no_callbacks_opens_no_scopes() -> None:
    assert ScopeTable().open(hook(models=True), None) is None


def test_ended_scope_is_nobodys(table: ScopeTable) -> None:
    scope = table.open(hook(models=True), None)
    assert scope is not None
    scope.close()
    with pytest.raises(errors.FailedPrecondition) as caught:
        table.find(scope.id, "a")
    assert caught.value.reason == "SCOPE_ENDED"
    assert len(table) == 0


def test_foreign_scope_is_refused_like_an_ended_one(table: ScopeTable) -> None:
    scope = table.open(hook(models=True), None)
    assert scope is not None
    with pytest.raises(errors.FailedPrecondition):
        table.find(scope.id, "b")


def test_what_was_opened_in_a_scope_ends_with_it(table: ScopeTable) -> None:
    scope = table.open(hook(models=True), None)
    assert scope is not None
    ended: list[str] = []
    scope.bind(lambda: ended.append("kept"))
    scope.bind(lambda: ended.append("taken back"))()
    scope.close()
    scope.close()
    assert ended == ["kept"]
    scope.bind(lambda: ended.append("late"))
    assert ended == ["kept", "late"]


def test_host_globs_are_compared_without_regard_to_case_and_final_dot() -> None:
    grants = grants_of(
        PluginEntry("a", host_access={"http": {"hosts": ["*.Example.com", "one:81"]}})
    )
    assert grants.allows_host("API.example.com.", 443)
    assert grants.allows_host("one", 81)
    assert not grants.allows_host("one", 80)
    assert not grants.allows_host("example.com.evil.test", 443)


def test_private_address_is_meant_only_where_the_host_is_spelled_out() -> None:
    grants = Grants(hosts=("*", "db.internal"))
    assert grants.names_host("db.internal", 80)
    assert not grants.names_host("other.internal", 80)


@pytest.mark.parametrize("access", [{"http": "x"}, {"auths": 3}, {"models": "yes"}])
def test_malformed_access_grants_nothing(access: dict[str, object]) -> None:
    assert not grants_of(PluginEntry("a", host_access=access)).some
