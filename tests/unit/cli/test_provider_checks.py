"""`patchbay doctor` for providers: plugin, way to the server, credentials, token endpoint, auth files."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from patchbay_gateway.kernel.config import Config
from patchbay_gateway.provider_checks import examine_pool, examine_providers

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from patchbay_gateway.checks import Check

API = "https://api.example/v1"
TOKENS = "https://id.example/token"


class Network:
    """Servers that cannot be reached, and what was asked."""

    def __init__(self, **away: str) -> None:
        self.away = {f"https://{host.replace('_', '.')}": why for host, why in away.items()}
        self.asked: list[str] = []

    def __call__(self, urls: Iterable[str]) -> dict[str, str]:
        self.asked = list(urls)
        return {url: self.away[url] for url in self.asked if url in self.away}


def checks(
    *credentials: dict[str, Any],
    network: Network | None = None,
    env: dict[str, str] | None = None,
    provider: dict[str, Any] | None = None,
    **more: Any,
) -> dict[str, Check]:
    usual = {"name": "p", "plugin": "openai-compatible", "base_url": API, "models": ["m"]}
    config = Config.model_validate(
        {"providers": [{**usual, "credentials": list(credentials), **(provider or {})}], **more}
    )
    found = list(examine_providers(config, env or {}, network or Network()))
    assert all(check.remedy for check in found if check.status != "ok")
    assert "test-" not in str(found)
    return {check.name.removeprefix("provider "): check for check in found}


def oauth2(**more: Any) -> dict[str, Any]:
    settings = {"token_url": TOKENS, "client_id": "c", "refresh_token": "test-r", **more}
    return {"id": "team", "oauth2": settings}


def test_sound_provider_is_fine_in_all_respects() -> None:
    network = Network()
    found = checks({"id": "main", "api_key": "test-key"}, oauth2(), network=network)

    assert {name: check.status for name, check in found.items()} == {
        "p": "ok",
        "p: base_url": "ok",
        "p: credentials": "ok",
        "p: token endpoint": "ok",
    }
    assert network.asked == ["https://api.example", "https://id.example"]


def test_server_that_cannot_be_reached_is_a_failure_with_the_reason() -> None:
    found = checks(network=Network(api_example="the name cannot be resolved"))

    assert found["p: base_url"].status == "fail"
    assert found["p: base_url"].detail == "https://api.example: the name cannot be resolved"
    assert "HTTPS_PROXY" in found["p: base_url"].remedy


def test_certificate_has_a_remedy_of_its_own() -> None:
    found = checks(network=Network(api_example="the certificate of api.example is not accepted"))

    assert "SSL_CERT_FILE" in found["p: base_url"].remedy


def test_token_endpoint_that_cannot_be_reached_is_a_failure() -> None:
    found = checks(oauth2(), network=Network(id_example="refused"))

    assert found["p: token endpoint"].status == "fail"
    assert "oauth2.token_url" in found["p: token endpoint"].remedy


def test_proxy_on_the_way_is_what_must_be_reached() -> None:
    network = Network()
    found = checks(
        oauth2(),
        network=network,
        env={"HTTPS_PROXY": "http://proxy.example:3128", "NO_PROXY": "id.example"},
    )

    assert network.asked == ["http://proxy.example:3128", "https://id.example"]
    assert "by way of the proxy http://proxy.example:3128" in found["p: base_url"].detail


def test_proxy_of_the_credential_counts_for_its_token_endpoint() -> None:
    network = Network()
    checks(
        {**oauth2(), "proxy_url": "http://own.example:1"},
        network=network,
        provider={"proxy_url": "none"},
        env={"HTTPS_PROXY": "http://proxy.example:3128"},
    )
    assert network.asked == ["https://api.example", "http://own.example:1"]


@pytest.mark.parametrize("user", ["me:test-password", "${PROXY_AUTH}"])
def test_proxy_that_asks_for_a_password_is_examined_without_it(user: str) -> None:
    for where in (
        {"provider": {"proxy_url": f"http://{user}@own.example:1"}},
        {"env": {"HTTPS_PROXY": f"http://{user}@own.example:1"}},
    ):
        network = Network()
        found = checks(network=network, **where)
        assert network.asked == ["http://own.example:1"]
        assert "@" not in found["p: base_url"].detail


def test_missing_keys_are_counted_and_named() -> None:
    main, gone = {"id": "main", "api_key": "test-key"}, {"id": "x", "api_key_env": "GONE"}

    some, none = checks(main, gone)["p: credentials"], checks(gone)["p: credentials"]

    assert (some.status, none.status) == ("warn", "fail")
    assert "1 of 2 credentials have no key or token" in some.detail
    assert "GONE" in some.detail


def test_credentials_that_are_switched_off_do_not_count() -> None:
    gone = {"id": "x", "api_key_env": "GONE", "disabled": True}

    assert checks(gone)["p: credentials"].status == "warn"
    assert checks({"id": "a", "api_key": "test-key"}, gone)["p: credentials"].status == "ok"


def test_provider_without_credentials_sends_no_key() -> None:
    assert checks()["p: credentials"].detail == "no credentials: calls carry no key"


def test_provider_without_models_is_a_warning() -> None:
    assert checks(provider={"models": []})["p"].status == "warn"


def test_plugin_elsewhere_is_named_with_its_address() -> None:
    plugin = {"id": "mine", "address": "plugin.example:7003"}
    found = checks(provider={"plugin": "mine"}, plugins=[plugin])
    assert found["p"].detail == "plugin mine at plugin.example:7003"

    off = checks(provider={"plugin": "mine"}, plugins=[{**plugin, "enabled": False}])
    assert off["p"].status == "fail"


def test_plugin_that_nobody_knows_is_a_failure() -> None:
    assert checks(provider={"plugin": "nobody"})["p"].status == "fail"


def test_auth_files_are_counted_and_the_unused_named(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(json.dumps({"type": "p", "api_key": "test-key"}))
    sound = checks(auth_dir=tmp_path)
    assert (sound["auth_dir"].status, sound["auth_dir"].detail) == ("ok", "1 files are used")
    assert sound["p: credentials"].detail == "1 credentials with key or token"

    (tmp_path / "b.json").write_text(json.dumps({"type": "kimi", "api_key": "test-key"}))
    warned = checks(auth_dir=tmp_path)["auth_dir"]
    assert warned.status == "warn"
    assert "b.json is of type kimi" in warned.detail


def shown(id_: str, *states: str, refresh: str = "", **more: Any) -> dict[str, Any]:
    """Return a credential as the management API shows it."""
    error = {"message": "the token endpoint says no"}
    return {
        "id": id_,
        "provider": "p",
        "disabled": False,
        "models": [{"state": state} for state in states or ("ready",)],
        "refresh": {"state": refresh, "last_error": error} if refresh else None,
        **more,
    }


def pool(*credentials: dict[str, Any]) -> list[tuple[str, str]]:
    found = list(examine_pool(credentials))
    assert all(check.remedy for check in found if check.status != "ok")
    return [(check.name, check.status) for check in found]


def test_pool_in_which_all_serve_is_fine() -> None:
    assert pool(shown("a"), shown("b", refresh="ok"), shown("c", "full")) == [("pool", "ok")]


def test_account_that_needs_a_login_is_a_failure_with_what_the_provider_said() -> None:
    (check,) = examine_pool([shown("a"), shown("b", "needs_login", refresh="needs_login")])

    assert (check.name, check.status) == ("credential b", "fail")
    assert check.detail == "needs login: the token endpoint says no"


def test_refreshes_in_trouble_are_warnings() -> None:
    found = pool(shown("a"), shown("b", refresh="backoff"), shown("c", refresh="ambiguous"))
    assert found == [("credential b", "warn"), ("credential c", "warn")]


def test_provider_of_which_nothing_serves_is_a_warning() -> None:
    cooling = shown("a", "cooling", "cooling")
    off = shown("b", disabled=True, refresh="needs_login")
    assert pool(cooling, off) == [("provider p: pool", "warn")]
    assert pool(cooling, off, shown("c", "cooling", "ready")) == [("pool", "ok")]
