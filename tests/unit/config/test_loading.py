"""The configuration file: what it may say, and how it is told what is wrong."""

from __future__ import annotations

import textwrap

import pytest

from patchbay.errors import InvalidRequest
from patchbay_gateway.kernel import config
from patchbay_gateway.kernel.config import ConfigError

FULL = """
client_keys:
  - {name: laptop, key_env: LAPTOP_KEY, models: ["*"], tenant: default}
management_keys: [{name: ops, key_file: ops.key}]
providers:
  - name: openai
    plugin: openai-compatible
    base_url: https://api.openai.com/v1
    models: [gpt-5.5, {name: gpt-5.5-2026-03, alias: big-model}]
    proxy_url: null
    retry: {}
    on_disconnect: cancel
    include_usage: true
    attempt_header: null
    credentials:
      - {id: main, api_key_env: OPENAI_API_KEY, priority: 10, weight: 1, prefix: null,
         proxy_url: null, disabled: false, excluded_models: []}
      - id: team
        oauth2: {token_url: "https://auth.example.com/token", client_id: c, refresh_token_file: r}
routes: [{name: big, targets: [{provider: openai, model: gpt-5.5}], fallbacks: []}]
plugins:
  - id: my-filter
    address: 127.0.0.1:7003
    priority: 10
    enabled: true
    config: {threshold: 3, names: [a, b]}
    match: {formats: [], models: ["gpt-*"], routes: [], client_keys: []}
    capabilities: []
    failure_policies: {request_interceptor: Fail}
    timeouts: {request_interceptor: 2s}
    host_access: {models: true, http: {hosts: []}, auths: none}
    public: false
routing: {strategy: round-robin, retry: {rounds: 0, max_credentials: 0, max_wait: 0s},
          affinity: {enabled: false, ttl: 1h}, force_model_prefix: false}
streaming: {first_byte_grace: 20s, keepalive: 15s, nonstream_keepalive: 0s,
            first_byte_timeout: 120s, idle_timeout: 300s, end_grace: 2s, write_stall: 120s}
headers: {passthrough: false, patchbay: true}
limits: {body: 32MiB, in_flight: 256MiB}
auth_dir: null
usage: {database_url: "sqlite:///ledger.db", prices: prices.yaml}
"""

PROVIDER = """
providers:
  - name: openai
    plugin: openai-compatible
    base_url: https://api.openai.com/v1
"""


def parse(text: str, **env: str) -> config.Config:
    return config.parse(textwrap.dedent(text), source="patchbay.yaml", env=env)


def problems(text: str, **env: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        parse(text, **env)
    return [str(p) for p in caught.value.problems]


def test_every_documented_key_is_understood(tmp_path):
    file = tmp_path / "patchbay.yaml"
    file.write_text(FULL)

    loaded = config.load(file, {})

    provider = loaded.providers[0]
    assert [m.public for m in provider.models] == ["gpt-5.5", "big-model"]
    assert [c.kind for c in provider.credentials] == ["api_key", "oauth2"]
    assert provider.on_disconnect.drain == 0.0
    assert loaded.management_keys[0].key_file == tmp_path / "ops.key"
    assert loaded.usage.prices == tmp_path / "prices.yaml"
    assert loaded.plugins[0].timeouts == {"request_interceptor": 2.0}
    assert loaded.plugins[0].config_yaml() == "names:\n- a\n- b\nthreshold: 3\n"
    assert loaded.limits.body == 32 << 20
    assert loaded.routing.affinity.ttl == 3600.0


def test_what_is_written_out_in_full_is_the_default(tmp_path):
    file = tmp_path / "patchbay.yaml"
    file.write_text(FULL)

    written, default = config.load(file, {}), config.Config()

    for section in ("routing", "streaming", "headers", "limits", "auth_dir"):
        assert getattr(written, section) == getattr(default, section)


def test_empty_file_gives_defaults():
    assert parse("") == parse("# nothing\n") == parse("---\n") == config.Config()


def test_unknown_key_names_the_nearest_and_the_line():
    assert problems("limits:\n  body: 1MiB\n  in_flght: 2MiB\n") == [
        "patchbay.yaml:3: limits.in_flght: unknown key; did you mean in_flight?"
    ]


def test_unknown_key_inside_a_list_is_found():
    text = f"{PROVIDER}    credentials:\n      - id: a\n        api_key_evn: X\n"

    assert problems(text) == [
        (
            "patchbay.yaml:8: providers.0.credentials.0.api_key_evn: unknown key; "
            "did you mean api_key_env?"
        )
    ]


def test_unknown_key_like_no_other_lists_what_is_known():
    (problem,) = problems("headers: {zzzzzz: 1}")

    assert (
        problem == "patchbay.yaml:1: headers.zzzzzz: unknown key; known here: passthrough, patchbay"
    )


def test_all_problems_are_told_at_once():
    found = problems("streaming: {keepalive: 15}\nlimits: {body: big}\nfancy: 1\n")

    assert len(found) == 3
    assert "15 is no duration" in found[0]


def test_config_error_is_an_invalid_request():
    with pytest.raises(InvalidRequest) as caught:
        parse("fancy: 1")

    assert caught.value.reason == "INVALID_CONFIGURATION"


def test_key_that_stands_twice_is_an_error():
    assert problems("limits: {body: 1MiB}\nheaders: {}\nlimits: {body: 2MiB}\n") == [
        "patchbay.yaml:3: limits: stands here twice"
    ]


@pytest.mark.parametrize(
    "text", ["a: [", "a: b: c", "x:\n\ty: 1", "a: !!python/object:os.system {}"]
)
def test_text_that_is_no_yaml_says_where(text):
    (problem,) = problems(text)

    assert problem.startswith(("patchbay.yaml:1: is not YAML", "patchbay.yaml:2: is not YAML"))


@pytest.mark.parametrize("name", ["off", "2026-01-31", "12"])
def test_name_that_yaml_reads_as_something_else_asks_for_quotes(name):
    (problem,) = problems(f"providers: [{{name: {name}, plugin: echo}}]")

    assert problem == "patchbay.yaml:1: providers.0.name: must be text; put it in quotes"


@pytest.mark.parametrize("text", ["- a", "just words", "3"])
def test_document_that_is_no_mapping_is_refused(text):
    assert problems(text) == ["patchbay.yaml:1: must be a mapping of keys"]


def test_missing_file_says_how_to_name_another(tmp_path):
    with pytest.raises(ConfigError, match="No such file or directory; name another with --config"):
        config.load(tmp_path / "none.yaml", {})


@pytest.mark.parametrize(
    ("text", "drain"),
    [
        ("cancel", 0.0),
        ("{drain: 10s}", 10.0),
        ('"drain: 10s"', 10.0),
        ("\n      drain: 500ms", 0.5),
    ],
)
def test_on_disconnect_takes_each_of_its_forms(text, drain):
    loaded = parse(f"{PROVIDER}    on_disconnect: {text}\n")

    assert loaded.providers[0].on_disconnect.drain == drain


def test_on_disconnect_of_another_form_is_refused():
    (problem,) = problems(f"{PROVIDER}    on_disconnect: stop\n")

    assert problem.endswith("on_disconnect: write cancel, or {drain: 10s}")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{name: a}", "needs one of key, key_env, key_file, hash"),
        ("{name: a, key: test-key-1, key_env: X}", "key and key_env exclude each other"),
        ("{name: a, hash: abc}", "match pattern"),
        ("{key: test-key-1}", "is missing"),
        ("{name: a, key: short}", "at least 8 characters"),
        ("{name: 'no blanks', key: test-key-1}", "a name begins with"),
    ],
)
def test_client_key_needs_a_name_and_exactly_one_source(text, message):
    (problem,) = problems(f"client_keys: [{text}]")

    assert message in problem


@pytest.mark.parametrize(
    ("text", "place"),
    [
        (
            "client_keys: [{name: a, key: test-key-1}, {name: a, key: test-key-2}]",
            "client_keys.1.name",
        ),
        (
            "management_keys: [{name: a, key: test-key-1}, {name: a, key: test-key-2}]",
            "management_keys.1.name",
        ),
        ("providers: [{name: a, plugin: echo}, {name: a, plugin: echo}]", "providers.1.name"),
        (
            (
                "providers: [{name: a, plugin: echo, credentials: [{id: x}]}, "
                "{name: b, plugin: echo, credentials: [{id: x}]}]"
            ),
            "providers.1.credentials.0.id",
        ),
        ("plugins: [{id: a, address: 'h:1'}, {id: a, address: 'h:2'}]", "plugins.1.id"),
    ],
)
def test_name_that_appears_twice_is_an_error(text, place):
    (problem,) = problems(text)

    assert f"{place}: " in problem
    assert "appears twice" in problem


def test_provider_of_an_unknown_plugin_is_an_error_unless_listed():
    text = "providers: [{name: p, plugin: mine}]\n"

    (problem,) = problems(text)
    known = "claude, echo, gemini, openai-compatible"
    assert f"no plugin 'mine'; known: {known}; name others under plugins" in problem
    assert parse(text + "plugins: [{id: mine, address: 'mine:7003'}]").providers[0].plugin == "mine"


def test_unknown_auth_provider_is_an_error_unless_listed():
    text = """
providers:
  - name: p
    plugin: claude
    credentials:
      - id: team
        oauth2: {token_url: "https://id.example/t", client_id: c, refresh_token: test, plugin: mine}
"""
    (problem,) = problems(text)
    assert "no auth provider 'mine'; known: oauth2; name others under plugins" in problem
    found = parse(text + "plugins: [{id: mine, address: 'mine:7003'}]").providers[0].credentials[0]
    assert found.oauth2 is not None
    assert found.oauth2.plugin == "mine"


def test_auth_provider_executes_for_no_provider():
    (problem,) = problems("providers: [{name: p, plugin: oauth2}]\n")
    assert "no plugin 'oauth2'" in problem


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("cooldown: {scope: account}", "cooldown.scope"),
        ("errors: [{status: 429}]", "errors.0.action: is missing"),
        ("errors: [{status: 429, action: stop, match_regex: ['(']}]", "is no regular expression"),
        ("errors: [{status: 42, action: stop}]", "errors.0.status"),
        ("credentials: [{id: c, max_in_flight: -1}]", "credentials.0.max_in_flight"),
    ],
)
def test_pool_key_out_of_its_range_is_an_error(text, told):
    (problem,) = problems(f"providers: [{{name: p, plugin: echo, {text}}}]")
    assert told in problem


def test_wait_for_a_busy_credential_is_bounded():
    (problem,) = problems("routing: {queue: {wait: 2m}}")
    assert "routing.queue.wait: a request waits 60s at most" in problem


def test_route_to_an_unknown_provider_is_an_error():
    text = "routes: [{name: r, targets: [{provider: nope, model: m}], fallbacks: [gone]}]"

    assert problems(text) == [
        "patchbay.yaml:1: routes.0.targets.0.provider: no provider 'nope'; known: none",
        "patchbay.yaml:1: routes.0.fallbacks.0: no route or model 'gone'",
    ]


def test_route_may_fall_back_to_a_model_or_a_prefixed_one():
    text = f"""{PROVIDER}    models: [{{name: m, alias: n}}]
    credentials: [{{id: c, prefix: team}}]
routes: [{{name: r, targets: [{{provider: openai, model: m}}], fallbacks: [n, team/n]}}]
"""

    assert parse(text).routes[0].fallbacks == ("n", "team/n")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{name: p, plugin: openai-compatible}", "needs base_url"),
        ("{name: p, plugin: echo, base_url: api.example.com}", "is no URL"),
        ("{name: p, plugin: echo, base_url: 'https://me:pw@example.com'}", "no user or password"),
        ("{name: p, plugin: echo, proxy_url: 'ftp://x'}", "http://host:port or socks5"),
        ("{name: p, plugin: echo, attempt_header: 'x y'}", "match pattern"),
        ("{name: p, plugin: echo, models: [3]}", "must be a mapping of keys"),
        ("{name: p, plugin: echo, models: x}", "must be a list"),
        ("{name: p, plugin: echo, credentials: [{id: a, weight: -1}]}", "greater than or equal"),
        (
            "{name: p, plugin: echo, credentials: [{id: a, api_key: k, api_key_env: E}]}",
            "exclude each other",
        ),
    ],
)
def test_provider_with_a_wrong_value_says_what_to_write(text, message):
    (problem,) = problems(f"providers: [{text}]")

    assert message in problem


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{id: a, address: somewhere}", "write it like host:7003"),
        ("{id: a, address: 'h:99999'}", "write it like host:7003"),
        ("{id: a, address: 'h:1', timeouts: {nope: 1s}}", "unknown capability nope"),
        ("{id: a, address: 'h:1', capabilities: [executer]}", "unknown capability executer"),
        ("{id: a, address: 'h:1', failure_policies: {executor: Maybe}}", "'Fail' or 'Ignore'"),
        ("{id: a, address: 'h:1', host_access: {auths: some}}", "'none', 'own' or 'all'"),
    ],
)
def test_plugin_with_a_wrong_value_says_what_to_write(text, message):
    (problem,) = problems(f"plugins: [{text}]")

    assert message in problem


def test_ipv6_address_of_a_plugin_is_taken():
    loaded = parse("plugins: [{id: a, address: '[::1]:7003'}]")

    assert loaded.plugins[0].address == "[::1]:7003"


def test_secret_is_in_no_message_and_no_repr():
    text = "client_keys: [{name: a, key: test-key-secret, key_env: B, nope: 1}]"
    (problem,) = problems(text)
    loaded = parse("client_keys: [{name: a, key: test-key-secret}]")

    assert "test-key-secret" not in problem
    assert "test-key-secret" not in repr(loaded)


def test_retry_override_keeps_what_it_does_not_name():
    text = f"{PROVIDER}    retry: {{rounds: 2}}\nrouting: {{retry: {{rounds: 1, max_wait: 5s}}}}\n"
    loaded = parse(text)

    retry = loaded.providers[0].retry.over(loaded.routing.retry)

    assert (retry.rounds, retry.max_credentials, retry.max_wait) == (2, 0, 5.0)


def test_model_is_frozen():
    with pytest.raises(ValueError, match="frozen"):
        setattr(config.Config().limits, "body", 1)  # noqa: B010 - mypy knows, too
