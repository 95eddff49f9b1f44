"""The environment: overrides, providers of `patchbay up`, secrets."""

from __future__ import annotations

import pytest

from patchbay_gateway.kernel import config
from patchbay_gateway.kernel.config import ConfigError, ProcessSettings

OPENAI = "providers: [{name: openai, plugin: openai-compatible, base_url: 'https://a.example/v1'}]"


def test_override_reaches_every_level():
    loaded = config.parse(
        OPENAI,
        env={
            "PATCHBAY_STREAMING__KEEPALIVE": "10s",
            "PATCHBAY_ROUTING__RETRY__ROUNDS": "3",
            "PATCHBAY_HEADERS__PATCHBAY": "false",
            "PATCHBAY_PROVIDERS__0__BASE_URL": "http://127.0.0.1:9/v1",
            "PATCHBAY_PROVIDERS__0__PROXY_URL": "null",
            "PATCHBAY_PROVIDERS__0__MODELS": "[a, {name: b, alias: c}]",
            "PATCHBAY_PROVIDERS__1": "{name: echo, plugin: echo}",
            "PATCHBAY_CLIENT_KEYS": "[{name: ci, key: test-key-1}]",
        },
    )

    assert loaded.streaming.keepalive == 10.0
    assert loaded.routing.retry.rounds == 3
    assert loaded.headers.patchbay is False
    assert loaded.providers[0].base_url == "http://127.0.0.1:9/v1"
    assert [m.public for m in loaded.providers[0].models] == ["a", "c"]
    assert loaded.providers[1].name == "echo"
    assert loaded.client_keys[0].key == "test-key-1"


def test_override_of_one_field_at_a_time_makes_an_entry():
    env = {"PATCHBAY_CLIENT_KEYS__0__NAME": "ci", "PATCHBAY_CLIENT_KEYS__0__KEY": "12345678"}

    assert config.parse("", env=env).client_keys[0].key == "12345678"


def test_override_from_a_file_is_read(tmp_path):
    (tmp_path / "url").write_text("postgresql://ledger\n")
    (tmp_path / "keys").write_text("- name: ci\n  key: test-key-1\n")

    loaded = config.parse(
        "",
        env={
            "PATCHBAY_USAGE__DATABASE_URL_FILE": str(tmp_path / "url"),
            "PATCHBAY_CLIENT_KEYS_FILE": str(tmp_path / "keys"),
        },
    )

    assert loaded.usage.database_url == "postgresql://ledger"
    assert loaded.client_keys[0].name == "ci"


def test_override_and_its_file_exclude_each_other(tmp_path):
    (tmp_path / "url").write_text("sqlite:///b")
    env = {
        "PATCHBAY_USAGE__DATABASE_URL": "sqlite:///a",
        "PATCHBAY_USAGE__DATABASE_URL_FILE": str(tmp_path / "url"),
    }

    with pytest.raises(ConfigError, match="unset one"):
        config.parse("", env=env)


def test_wrong_override_is_told_with_its_variable():
    env = {"PATCHBAY_LIMITS__BDY": "1MiB", "PATCHBAY_STREAMING__KEEPALIVE": "15"}

    with pytest.raises(ConfigError) as caught:
        config.parse("limits: {body: 2MiB}", env=env)

    assert sorted(str(p) for p in caught.value.problems) == [
        "PATCHBAY_LIMITS__BDY: limits.bdy: unknown key; did you mean body?",
        (
            "PATCHBAY_STREAMING__KEEPALIVE: streaming.keepalive: '15' is no duration; "
            "write it like 250ms, 15s, 5m or 1h"
        ),
    ]


def test_override_beyond_the_end_of_a_list_is_an_error():
    with pytest.raises(ConfigError, match="no entry 4 to override"):
        config.parse(OPENAI, env={"PATCHBAY_PROVIDERS__4__NAME": "x"})


@pytest.mark.parametrize(
    "name",
    [
        "PATCHBAY_REDIS_URL",
        "PATCHBAY_USAGE_ADDRESS",
        "PATCHBAY_USAGE_SERVICE_HOST",
        "PATCHBAY_PLUGINS_KEY_FILE",
        "PATCHBAY_PORT",
        "PATCHBAY_EDGE_PORT_8080_TCP",
    ],
)
def test_variable_of_another_purpose_is_no_override(name):
    assert config.parse("", env={name: "anything"}) == config.Config()


def test_empty_variable_is_not_set():
    assert config.parse("", env={"PATCHBAY_LIMITS__BODY": ""}) == config.Config()


def test_echo_exists_in_up_unless_the_file_names_providers():
    assert [p.name for p in config.for_up(config.Config(), {}).providers] == ["echo"]
    named = config.parse(OPENAI, env={})
    assert [p.name for p in config.for_up(named, {}).providers] == ["openai"]


def test_provider_of_the_environment_does_not_hide_echo():
    env = {"OPENAI_API_KEY": "test-key", "OPENAI_BASE_URL": "http://127.0.0.1:9/v1/"}

    echo, openai = config.for_up(config.Config(), env).providers

    assert (echo.name, openai.name) == ("echo", "openai")
    assert openai.plugin == "openai-compatible"
    assert openai.base_url == "http://127.0.0.1:9/v1"
    assert openai.credentials[0].resolve(env) == "test-key"
    assert "gpt-4o-mini" in [m.public for m in openai.models]


def test_provider_of_the_file_wins_over_the_environment():
    named = config.parse(OPENAI, env={})

    completed = config.with_environment_providers(named, {"OPENAI_API_KEY": "test-key"})

    assert completed is named


def test_provider_whose_plugin_is_not_there_is_left_out():
    env = {"ANTHROPIC_API_KEY": "test-key", "GEMINI_API_KEY": "test-key"}

    one = config.with_environment_providers(config.Config(), env, available={"gemini"})
    assert [p.plugin for p in one.providers] == ["gemini"]
    both = config.with_environment_providers(config.Config(), env).providers
    assert [(p.name, p.plugin) for p in both] == [("anthropic", "claude"), ("gemini", "gemini")]
    assert all(p.base_url == p.api_url != "" and p.models for p in both)


def test_provider_key_from_a_file_and_models_from_outside(tmp_path):
    (tmp_path / "key").write_text("test-key\n")
    env = {"OPENAI_API_KEY_FILE": str(tmp_path / "key")}

    completed = config.with_environment_providers(
        config.Config(), env, models={"openai": ["local-model"]}
    )

    assert completed.providers[0].credentials[0].resolve(env) == "test-key"
    assert [m.public for m in completed.providers[0].models] == ["local-model"]


def test_base_url_of_the_environment_that_is_none_is_an_error():
    env = {"OPENAI_API_KEY": "test-key", "OPENAI_BASE_URL": "localhost:8000"}

    with pytest.raises(ConfigError, match="OPENAI_BASE_URL: is no URL"):
        config.with_environment_providers(config.Config(), env)


def test_load_for_up_completes_and_for_a_service_does_not(tmp_path):
    env = {"HOME": str(tmp_path)}

    assert config.load_for(ProcessSettings.load("up", env), env).providers[0].name == "echo"
    assert config.load_for(ProcessSettings.load("edge", env), env).providers == ()


def test_secret_is_resolved_from_each_source(tmp_path):
    (tmp_path / "key").write_text("  from-file\n")
    env = {"SET": "from-env", "BY_FILE_FILE": str(tmp_path / "key")}

    assert config.resolve_secret("plain", None, None, env) == "plain"
    assert config.resolve_secret(None, "SET", None, env) == "from-env"
    assert config.resolve_secret(None, "BY_FILE", None, env) == "from-file"
    assert config.resolve_secret(None, None, tmp_path / "key", env) == "from-file"
    assert config.resolve_secret(None, None, None, env) is None


def test_secret_that_is_not_there_says_where_it_should_be(tmp_path):
    (tmp_path / "empty").write_text("\n")

    with pytest.raises(ConfigError, match="key a: the environment variable GONE is not set"):
        config.resolve_secret(None, "GONE", None, {}, where="key a")
    with pytest.raises(ConfigError, match="No such file"):
        config.resolve_secret(None, None, tmp_path / "gone", {})
    with pytest.raises(ConfigError, match="is empty"):
        config.resolve_secret(None, None, tmp_path / "empty", {})


def test_missing_secrets_are_all_told_but_those_of_disabled_credentials():
    loaded = config.parse(
        """
client_keys: [{name: a, key_env: A}, {name: b, hash: "%s"}]
providers:
  - name: p
    plugin: echo
    credentials:
      - {id: unused, api_key_env: UNUSED, disabled: true}
      - {id: used, api_key_env: USED}
      - {id: o, oauth2: {token_url: 'https://a.example/t', client_id: c, refresh_token_env: R}}
"""
        % ("0" * 64),
        env={},
    )

    found = [p.path for p in config.missing_secrets(loaded, {})]

    assert found == ["key a", "credential used", "credential o"]
