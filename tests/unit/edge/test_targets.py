"""From a model name to providers."""

import pytest

from patchbay import errors
from patchbay.plugin.v1 import plugin_pb2
from patchbay_gateway.edge import targets
from patchbay_gateway.plugins.snapshot import (
    CredentialEntry,
    ModelEntry,
    ProviderEntry,
    RouteEntry,
    SettingsEntry,
    Snapshot,
    TargetEntry,
)

OPENAI = plugin_pb2.ExecutorCapability(
    input_formats=["openai"],
    operations=[plugin_pb2.FormatOperations(format="openai", operations=["chat", "embeddings"])],
)
CLAUDE = plugin_pb2.ExecutorCapability(input_formats=["claude"])


class FakeExecutors:
    def __init__(self, **capabilities: plugin_pb2.ExecutorCapability) -> None:
        self.capabilities = capabilities

    def executor(self, plugin_id: str) -> plugin_pb2.ExecutorCapability | None:
        return self.capabilities.get(plugin_id)


def make_credential(**overrides) -> CredentialEntry:
    values = {"id": "c", "auth_index": "00", "kind": "api_key", "version": 1, **overrides}
    return CredentialEntry(**values)


def make_snapshot(**overrides) -> Snapshot:
    providers = (
        ProviderEntry(
            "one",
            "open",
            models=(ModelEntry("gpt-x", "big"), ModelEntry("small")),
            credentials=(make_credential(), make_credential(id="d", disabled=True)),
        ),
        ProviderEntry(
            "two", "open", models=(ModelEntry("big"),), credentials=(make_credential(id="e"),)
        ),
        ProviderEntry("three", "anth", models=(ModelEntry("opus"),)),
    )
    return Snapshot(1, providers=overrides.pop("providers", providers), **overrides)


def test_resolve_alias_at_two_providers_gives_both() -> None:
    found = targets.resolve(
        make_snapshot(), FakeExecutors(open=OPENAI), model="big", dialect="openai", operation="chat"
    )
    assert found == targets.Candidates(("one", "two"), 2)


def test_resolve_unknown_model_is_not_found() -> None:
    with pytest.raises(errors.NotFound) as caught:
        targets.resolve(
            make_snapshot(), FakeExecutors(), model="gpt-x", dialect="openai", operation="chat"
        )
    assert caught.value.reason == "MODEL_NOT_FOUND"


@pytest.mark.parametrize(("dialect", "operation"), [("claude", "chat"), ("openai", "completions")])
def test_resolve_other_dialect_says_so(dialect: str, operation: str) -> None:
    with pytest.raises(errors.InvalidRequest) as caught:
        targets.resolve(
            make_snapshot(),
            FakeExecutors(open=OPENAI),
            model="small",
            dialect=dialect,
            operation=operation,
        )
    assert caught.value.reason == "DIALECT_NOT_AVAILABLE"


def test_resolve_executor_absent_is_unavailable_for_now() -> None:
    with pytest.raises(errors.Unavailable) as caught:
        targets.resolve(
            make_snapshot(), FakeExecutors(), model="small", dialect="openai", operation="chat"
        )
    assert caught.value.retry_after is not None


def test_resolve_route_hides_provider_model_of_its_name() -> None:
    snapshot = make_snapshot(routes=(RouteEntry("big", (TargetEntry("three", "opus"),)),))
    found = targets.resolve(
        snapshot,
        FakeExecutors(open=OPENAI, anth=CLAUDE),
        model="big",
        dialect="claude",
        operation="chat",
    )
    assert found.providers == ("three",)


def test_targets_prefixes_add_and_force_takes_away() -> None:
    provider = ProviderEntry(
        "one", "open", models=(ModelEntry("m"),), credentials=(make_credential(prefix="team"),)
    )
    assert set(Snapshot(1, providers=(provider,)).targets) == {"m", "team/m"}
    forced = Snapshot(1, providers=(provider,), settings=SettingsEntry(force_model_prefix=True))
    assert set(forced.targets) == {"team/m"}


def test_serves_without_operations_means_chat() -> None:
    assert targets.serves(CLAUDE, "claude", "chat")
    assert not targets.serves(CLAUDE, "claude", "count_tokens")
