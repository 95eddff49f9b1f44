"""From resources and values to the snapshot: who takes part, who is told why not, what others notice."""

from __future__ import annotations

from typing import Any

from patchbay_gateway.kernel import config
from patchbay_gateway.plugins.sections import encode_sections
from patchbay_operator.draft import Draft, Gathered, draft
from patchbay_operator.installation import Installation
from patchbay_operator.resources import Resource, understand

INSTALLATION = Installation(namespace="gateway")
BASE = config.parse("providers: [{name: echo, plugin: echo, models: [echo]}]", env={})
PROVIDER = {
    "provider": "openai",
    "plugin": "openai-compatible",
    "baseUrl": "https://api.example/v1",
    "models": [{"name": "gpt", "alias": "big"}],
}


def make(kind: str, name: str, spec: dict[str, Any], *, age: int = 0) -> Resource[Any]:
    """Return a resource; a larger *age* is younger."""
    return understand(
        {
            "kind": kind,
            "metadata": {
                "name": name,
                "uid": f"uid-{name}",
                "generation": 1,
                "creationTimestamp": f"2026-01-01T00:00:{age:02}Z",
            },
            "spec": spec,
        }
    )


def credential(name: str = "main", *, age: int = 0, **changes: Any) -> Resource[Any]:
    return make(
        "ProviderCredential", name, {**PROVIDER, "secretRef": {"name": "s"}, **changes}, age=age
    )


def run(**parts: Any) -> Draft:
    return draft(Gathered(base=BASE, **parts), INSTALLATION)


def test_values_alone_are_a_snapshot() -> None:
    snapshot = run().snapshot(None, 0.0)
    assert [p.name for p in snapshot.providers] == ["echo"]
    (implicit,) = snapshot.providers[0].credentials
    assert (implicit.id, implicit.disabled) == ("echo-default", False)
    assert not snapshot.settings.open_access


def test_plugin_is_found_by_the_name_of_its_service() -> None:
    plugin = make("Plugin", "filter", {"image": "a", "priority": 3, "timeouts": {"executor": "2s"}})
    found = run(plugins=[plugin])
    (entry,) = [p for p in found.snapshot(None, 0.0).plugins if p.id == "filter"]
    assert entry.addresses[0].address == "plugin-filter.gateway.svc.cluster.local.:7003"
    assert (entry.priority, entry.timeouts) == (3, {"executor": 2.0})
    assert found.verdicts["Plugin", "filter"].included


def test_plugin_elsewhere_keeps_its_address_and_id() -> None:
    plugin = make("Plugin", "far", {"address": "far.example:1", "id": "Far.Filter"})
    (entry,) = [
        p for p in run(plugins=[plugin]).snapshot(None, 0.0).plugins if p.id == "Far.Filter"
    ]
    assert entry.addresses[0].address == "far.example:1"


def test_second_plugin_of_an_id_is_told_and_the_first_serves() -> None:
    plugins = [
        make("Plugin", "young", {"image": "a", "id": "x"}, age=2),
        make("Plugin", "old", {"image": "a", "id": "x"}, age=1),
    ]
    found = run(plugins=plugins)
    assert found.verdicts["Plugin", "old"].accepted.ok
    refused = found.verdicts["Plugin", "young"].accepted
    assert (refused.ok, refused.reason) == (False, "Conflict")
    assert "Plugin old" in refused.message
    assert len([p for p in found.config.plugins if p.id == "x"]) == 1


def test_plugin_that_replaces_a_built_in_waits_for_its_first_pod() -> None:
    """What serves now goes on: an image that cannot start must take nothing away."""
    plugin = make("Plugin", "p", {"image": "a", "id": "echo"})
    waiting = run(plugins=[plugin])
    verdict = waiting.verdicts["Plugin", "p"]
    assert (verdict.included, verdict.accepted.ok) == (False, True)
    assert "first pod" in verdict.waits
    assert waiting.snapshot(None, 0.0).plugin_by_id["echo"].builtin
    serving = run(plugins=[plugin], serving={"p"})
    assert serving.verdicts["Plugin", "p"].included
    assert not serving.snapshot(None, 0.0).plugin_by_id["echo"].builtin


def test_plugin_with_a_configuration_that_is_missing_waits() -> None:
    plugin = make("Plugin", "p", {"image": "a", "configFrom": {"secretRef": {"name": "s"}}})
    found = run(plugins=[plugin], configs={"p": None})
    verdict = found.verdicts["Plugin", "p"]
    assert (verdict.resolved.reason, verdict.included) == ("ConfigNotFound", False)
    assert "Secret s" in verdict.resolved.message
    assert run(plugins=[plugin], configs={"p": "a: 1"}).config.plugins[0].config == {"a": 1}


def test_credential_is_a_reference_and_changes_with_its_secret() -> None:
    first = run(credentials=[credential()], secrets={"s": "uid:1"})
    before = first.snapshot(None, 1000.0)
    (provider,) = [p for p in before.providers if p.name == "openai"]
    (entry,) = provider.credentials
    assert (entry.id, entry.kind, entry.version, entry.disabled) == ("main", "api_key", 1000, False)
    assert entry.secrets == {"api_key": "s/api-key"}
    same = run(credentials=[credential()], secrets={"s": "uid:1"}).snapshot(before, 2000.0)
    assert encode_sections(same) == encode_sections(before)
    rotated = run(credentials=[credential()], secrets={"s": "uid:2"}).snapshot(before, 2000.0)
    assert rotated.provider_by_name["openai"].credentials[0].version == 2000


def test_credential_without_secret_is_out_of_use_and_its_provider_stays() -> None:
    found = run(
        credentials=[credential(), credential("other", age=1, secretRef={"name": "t"})],
        secrets={"t": "1"},
    )
    pool = found.snapshot(None, 0.0).provider_by_name["openai"].credentials
    assert [(c.id, c.disabled) for c in pool] == [("main", True), ("other", False)]
    verdict = found.verdicts["ProviderCredential", "main"]
    assert verdict.resolved.reason == "SecretNotFound"
    assert "kubectl create secret generic s --from-literal=api-key=" in verdict.resolved.message


def test_credentials_that_disagree_on_the_provider_are_told() -> None:
    found = run(
        credentials=[credential(), credential("other", age=1, baseUrl="https://else.example")],
        secrets={"s": "1"},
    )
    verdict = found.verdicts["ProviderCredential", "other"]
    assert verdict.accepted.reason == "Conflict"
    assert verdict.accepted.message.startswith("baseUrl is another than that of main")
    assert len(found.snapshot(None, 0.0).provider_by_name["openai"].credentials) == 1


def test_credential_of_an_unknown_plugin_is_told_which_there_are() -> None:
    found = run(credentials=[credential(plugin="mine")], secrets={"s": "1"})
    verdict = found.verdicts["ProviderCredential", "main"]
    assert (verdict.resolved.reason, verdict.included) == ("PluginNotFound", False)
    assert "openai-compatible" in verdict.resolved.message
    plugin = make("Plugin", "mine", {"image": "a"})
    found = run(credentials=[credential(plugin="mine")], secrets={"s": "1"}, plugins=[plugin])
    assert found.verdicts["ProviderCredential", "main"].included


def test_one_wrong_credential_leaves_the_others_as_they_are() -> None:
    wrong = credential(
        "wrong",
        age=0,
        provider="p",
        errors=[{"status": 400, "matchRegex": ["("], "action": "stop"}],
    )
    found = run(credentials=[wrong, credential(age=1)], secrets={"s": "1"})
    refused = found.verdicts["ProviderCredential", "wrong"].accepted
    assert (refused.reason, "matchRegex" in refused.message) == ("Invalid", True)
    assert [p.name for p in found.config.providers] == ["echo", "openai"]


def test_oauth_credential_keeps_what_is_no_secret() -> None:
    oauth2 = {
        "tokenUrl": "https://id.example/token",
        "clientId": "client",
        "clientSecretRef": {"name": "s"},
        "refreshTokenRef": {"name": "s"},
        "scopes": ["a"],
    }
    found = run(credentials=[credential(secretRef=None, oauth2=oauth2)], secrets={"s": "1"})
    (entry,) = found.snapshot(None, 0.0).provider_by_name["openai"].credentials
    assert entry.kind == "oauth2"
    assert entry.oauth2 is not None
    assert (entry.oauth2.token_url, entry.oauth2.scopes) == ("https://id.example/token", ("a",))
    assert entry.secrets == {"client_secret": "s/client-secret", "refresh_token": "s/refresh-token"}


def test_route_has_its_aliases_and_loses_targets_that_do_not_exist() -> None:
    spec = {
        "name": "big",
        "aliases": ["large"],
        "targets": [{"provider": "echo", "model": "echo"}, {"provider": "nobody", "model": "m"}],
        "fallbacks": ["echo"],
    }
    found = run(routes=[make("ModelRoute", "r", spec)])
    snapshot = found.snapshot(None, 0.0)
    assert [(r.name, len(r.targets), r.fallbacks) for r in snapshot.routes] == [
        ("big", 1, ("echo",)),
        ("large", 1, ("echo",)),
    ]
    verdict = found.verdicts["ModelRoute", "r"]
    assert (verdict.resolved.reason, verdict.included) == ("ProviderNotFound", True)


def test_two_routes_of_a_name_are_one_and_a_conflict() -> None:
    spec = {"name": "big", "targets": [{"provider": "echo", "model": "echo"}]}
    found = run(routes=[make("ModelRoute", "a", spec), make("ModelRoute", "b", spec, age=1)])
    assert found.verdicts["ModelRoute", "b"].accepted.reason == "Conflict"
    assert len(found.config.routes) == 1


def test_client_key_opens_once_its_key_is_known() -> None:
    key = make("ClientKey", "laptop", {"models": ["gpt-*"]})
    assert run(client_keys=[key]).snapshot(None, 0.0).client_keys == ()
    digest = "ab" * 32
    found = run(client_keys=[key], digests={"laptop": digest})
    (entry,) = found.snapshot(None, 0.0).client_keys
    assert (entry.name, entry.digest, entry.models) == ("laptop", digest, ("gpt-*",))
    twin = make("ClientKey", "twin", {}, age=1)
    found = run(client_keys=[key, twin], digests={"laptop": digest, "twin": digest})
    assert found.verdicts["ClientKey", "twin"].accepted.reason == "Conflict"
    off = make("ClientKey", "laptop", {"disabled": True})
    assert run(client_keys=[off], digests={"laptop": digest}).snapshot(None, 0.0).client_keys == ()


def test_values_win_over_resources_of_their_names() -> None:
    found = run(credentials=[credential(provider="echo")], secrets={"s": "1"})
    assert found.verdicts["ProviderCredential", "main"].accepted.reason == "Conflict"


def test_resource_of_another_release_is_told_and_left_out() -> None:
    found = run(plugins=[make("Plugin", "p", {"image": "a", "invented": 1})])
    verdict = found.verdicts["Plugin", "p"]
    assert (verdict.accepted.reason, verdict.included) == ("Invalid", False)
