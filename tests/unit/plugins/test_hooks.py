"""Which plugins are asked at a step, and in which order."""

from __future__ import annotations

import pytest

from patchbay.plugin.v1 import plugin_pb2
from patchbay_gateway.plugins.hooks import Facts, Hooks
from patchbay_gateway.plugins.policy import OnError
from patchbay_gateway.plugins.snapshot import PluginEntry, Snapshot

FLAG = "request_interceptor"
FACTS = Facts("openai", "gpt-5.5", route="big", client_key="laptop")


class Declared:
    """What plugins declared."""

    def __init__(self, **flags: set[str]) -> None:
        self.flags = flags
        self.generation = 0

    def declared(self, plugin_id: str) -> frozenset[str]:
        return frozenset(self.flags.get(plugin_id, ()))

    def needs(self, plugin_id: str) -> plugin_pb2.InterceptorNeeds:
        return plugin_pb2.InterceptorNeeds()


def ids(hooks: Hooks, snapshot: Snapshot, facts: Facts = FACTS, flag: str = FLAG) -> list[str]:
    return [hook.plugin_id for hook in hooks.matching(snapshot, flag, facts)]


def test_plugins_are_asked_in_the_snapshots_order() -> None:
    declared = Declared(a={FLAG}, b={FLAG}, c={"usage_plugin"})
    snapshot = Snapshot(1, plugins=(PluginEntry("b"), PluginEntry("a"), PluginEntry("c")))
    assert ids(Hooks(declared), snapshot) == ["b", "a"]


def test_disabled_plugin_is_not_asked() -> None:
    snapshot = Snapshot(1, plugins=(PluginEntry("a", enabled=False),))
    assert ids(Hooks(Declared(a={FLAG})), snapshot) == []


def test_allow_list_takes_capabilities_away() -> None:
    snapshot = Snapshot(1, plugins=(PluginEntry("a", capabilities=("usage_plugin",)),))
    assert ids(Hooks(Declared(a={FLAG})), snapshot) == []


@pytest.mark.parametrize(
    ("match", "accepted"),
    [
        ({}, True),
        ({"models": ("gpt-*",)}, True),
        ({"models": ("claude-*", "gpt-*")}, True),
        ({"models": ("claude-*",)}, False),
        ({"models": ("gpt-*",), "formats": ("claude",)}, False),
        ({"models": ("gpt-*",), "formats": ("openai*",)}, True),
        ({"routes": ("big",), "client_keys": ("lap*",)}, True),
        ({"routes": ("small",)}, False),
        ({"client_keys": ()}, True),
    ],
)
def test_match_is_and_between_keys_and_empty_means_any(
    match: dict[str, tuple[str, ...]], accepted: bool
) -> None:
    snapshot = Snapshot(1, plugins=(PluginEntry("a", match=match),))
    assert ids(Hooks(Declared(a={FLAG})), snapshot) == (["a"] if accepted else [])


def test_plugin_that_must_not_be_passed_by_takes_part_before_it_was_ever_seen() -> None:
    snapshot = Snapshot(1, plugins=(PluginEntry("a", failure_policies={FLAG: "Fail"}),))
    (hook,) = Hooks(Declared()).of(snapshot, FLAG)
    assert hook.policy.on_error is OnError.FAIL_REQUEST


def test_declaration_that_changes_is_noticed() -> None:
    declared = Declared()
    hooks = Hooks(declared)
    snapshot = Snapshot(1, plugins=(PluginEntry("a"),))
    assert ids(hooks, snapshot) == []
    declared.flags["a"] = {FLAG}
    declared.generation += 1
    assert ids(hooks, snapshot) == ["a"]


def test_requests_pinned_to_an_older_snapshot_keep_its_plugins() -> None:
    hooks = Hooks(Declared(a={FLAG}, b={FLAG}))
    older = Snapshot(1, plugins=(PluginEntry("a"),))
    newer = Snapshot(2, plugins=(PluginEntry("b"),))
    assert ids(hooks, newer) == ["b"]
    assert ids(hooks, older) == ["a"]


def test_request_pinned_to_a_snapshot_older_than_all_that_are_kept_has_its_plugins() -> None:
    """While a body was sent slowly, several snapshots came, and other requests used them."""
    hooks = Hooks(Declared(a={FLAG}))
    for version in (2, 3, 4):
        assert not hooks.wanted(Snapshot(version), frozenset({FLAG}))
    oldest = Snapshot(1, plugins=(PluginEntry("a"),))
    for _ in range(2):
        assert hooks.wanted(oldest, frozenset({FLAG}))
        assert ids(hooks, oldest) == ["a"]


def test_own_deadline_of_a_plugin_is_used() -> None:
    snapshot = Snapshot(1, plugins=(PluginEntry("a", timeouts={FLAG: 0.25}),))
    (hook,) = Hooks(Declared(a={FLAG})).of(snapshot, FLAG)
    assert hook.policy.deadline == 0.25


def test_frontend_auth_takes_part_before_it_was_ever_seen() -> None:
    """Where the allow-list says that it is one; else nobody can know."""
    exclusive = "frontend_auth_provider_exclusive"
    allowed = ("frontend_auth_provider", exclusive)
    snapshot = Snapshot(1, plugins=(PluginEntry("a", capabilities=allowed), PluginEntry("b")))
    assert ids(Hooks(Declared()), snapshot, flag=exclusive) == ["a"]
    assert ids(Hooks(Declared()), snapshot, flag="frontend_auth_provider") == ["a"]
    other = Snapshot(2, plugins=(PluginEntry("a", capabilities=("frontend_auth_provider",)),))
    assert ids(Hooks(Declared()), other, flag=exclusive) == []
    assert ids(Hooks(Declared()), other, flag="frontend_auth_provider") == ["a"]
    seen = Declared(a={"frontend_auth_provider"})
    assert ids(Hooks(seen), snapshot, flag=exclusive) == []
