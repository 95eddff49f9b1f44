"""What auth files add to a configuration: credentials beside the configured ones, and seeds."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from patchbay_gateway.kernel.config import Config
from patchbay_gateway.plugins.building import build_snapshot
from patchbay_gateway.scheduler.credentials import Material
from patchbay_gateway.scheduler.durable.auth_files import read_auth_dir
from patchbay_gateway.scheduler.durable.auth_seeds import Planted, plant

if TYPE_CHECKING:
    from pathlib import Path

    from patchbay_gateway.kernel.config import Credential

ENDPOINT = {"token_url": "https://id.example/token", "client_id": "test-client"}


def config_with(*credentials: dict[str, Any], **more: Any) -> Config:
    provider = {"name": "claude", "plugin": "openai-compatible", "base_url": "https://api.example"}
    return Config.model_validate(
        {"providers": [{**provider, "credentials": list(credentials), "models": ["m"]}], **more}
    )


def planted(directory: Path, config: Config, **files: dict[str, Any]) -> Planted:
    for name, document in files.items():
        (directory / f"{name}.json").write_text(json.dumps({"type": "claude", **document}))
    return plant(config, read_auth_dir(directory), {"SECRET": "test-env-secret"})


def credential_of(found: Planted, id_: str) -> Credential:
    return next(c for p in found.config.providers for c in p.credentials if c.id == id_)


def test_key_file_is_a_credential_like_a_configured_one(tmp_path: Path) -> None:
    found = planted(
        tmp_path,
        config_with({"id": "main", "api_key": "test-main"}),
        spare={
            "api_key": "test-key",
            "priority": 3,
            "weight": 2,
            "prefix": "p",
            "proxy_url": "direct",
            "excluded_models": ["gpt-*"],
            "disabled": True,
        },
    )

    assert [c.id for c in found.config.providers[0].credentials] == ["main", "spare"]
    spare = credential_of(found, "spare")
    assert (spare.kind, spare.resolve({})) == ("api_key", "test-key")
    assert (spare.priority, spare.weight, spare.prefix, spare.proxy_url) == (3, 2, "p", "direct")
    assert (spare.excluded_models, spare.disabled) == (("gpt-*",), True)
    assert (found.seeds, found.refused, found.warnings) == ({}, (), ())


def test_tokens_become_a_seed_with_their_times(tmp_path: Path) -> None:
    document = {
        "access_token": "test-a",
        "refresh_token": "test-r",
        "id_token": "test-i",
        "client_secret": "test-secret",
        "email": "person@example.com",
        "expired": 1772359200,
        "last_refresh": 1772355600,
        "refresh_interval_seconds": 900,
        **ENDPOINT,
    }
    found = planted(tmp_path, config_with(), team=document)

    seed = found.seeds["team"]
    assert dict(seed.material) == {"access_token": "test-a", "refresh_token": "test-r"}
    assert (seed.client_secret, seed.label) == ("test-secret", "person@example.com")
    assert (seed.expires_at, seed.refreshed_at) == (1772359200.0, 1772355600.0)
    source = credential_of(found, "team").oauth2
    assert source is not None
    assert (source.token_url, source.client_id) == tuple(ENDPOINT.values())
    assert (source.refresh_lead, source.client_auth) == (900.0, "body")
    assert "test-" not in repr(found)


def test_endpoint_is_that_of_the_provider_where_the_file_names_none(tmp_path: Path) -> None:
    main = {
        "id": "main",
        "oauth2": {**ENDPOINT, "refresh_token": "test-main", "client_secret_env": "SECRET"},
    }
    found = planted(tmp_path, config_with(main), team={"refresh_token": "test-r"})

    source = credential_of(found, "team").oauth2
    assert source is not None
    assert (source.token_url, source.refresh_token) == (ENDPOINT["token_url"], "test-r")
    assert found.seeds["team"].client_secret == "test-env-secret"
    assert found.warnings == ()


def test_without_an_endpoint_the_access_token_serves_and_is_not_refreshed(tmp_path: Path) -> None:
    document = {"access_token": "test-a", "refresh_token": "test-r"}
    found = planted(tmp_path, config_with(), team=document)

    assert dict(found.seeds["team"].material) == {"access_token": "test-a"}
    assert "is not refreshed" in found.warnings[0].reason


def test_provider_with_two_endpoints_lends_none(tmp_path: Path) -> None:
    other = {**ENDPOINT, "token_url": "https://other.example/token"}
    found = planted(
        tmp_path,
        config_with(
            {"id": "a", "oauth2": {**ENDPOINT, "refresh_token": "test-1"}},
            {"id": "b", "oauth2": {**other, "refresh_token": "test-2"}},
        ),
        team={"refresh_token": "test-r"},
    )
    source = credential_of(found, "team").oauth2
    assert source is not None
    assert source.token_url == ""


def test_wrong_values_refuse_one_file_and_are_not_quoted(tmp_path: Path) -> None:
    found = planted(
        tmp_path,
        config_with(),
        proxy={"api_key": "test-key", "proxy_url": "test-nonsense"},
        url={"refresh_token": "test-r", "token_url": "test-nonsense", "client_id": "c"},
        type={"api_key": "test-key", "type": "kimi"},
        good={"api_key": "test-key"},
    )

    reasons = {refused.source: refused.reason for refused in found.refused}
    assert reasons["proxy.json"] == "has a wrong proxy_url"
    assert reasons["url.json"] == "has a wrong token_url"
    assert "no provider has that name" in reasons["type.json"]
    assert [c.id for c in found.config.providers[0].credentials] == ["good"]


def test_settings_that_are_the_providers_are_told_to_be_without_effect(tmp_path: Path) -> None:
    found = planted(
        tmp_path,
        config_with(),
        team={"api_key": "test-key", "headers": {"x": "1"}, "base_url": "https://x.example"},
    )
    assert "base_url, headers without effect" in found.warnings[0].reason


def test_credentials_of_files_are_in_the_snapshot(tmp_path: Path) -> None:
    document = {"refresh_token": "test-r", **ENDPOINT}
    found = planted(tmp_path, config_with(), team=document)

    snapshot = build_snapshot(
        found.config,
        material={"team": Material("oauth2", found.seeds["team"].material, "f")},
        digests={},
        prices=(),
        previous=None,
        now=1.0,
        open_access=False,
    )

    (entry,) = snapshot.providers[0].credentials
    assert (entry.id, entry.kind, entry.disabled) == ("team", "oauth2", False)
    assert entry.oauth2 is not None
    assert entry.oauth2.token_url == ENDPOINT["token_url"]
