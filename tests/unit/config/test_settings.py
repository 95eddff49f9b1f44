"""Settings of one process."""

from __future__ import annotations

from pathlib import Path

import pytest

from patchbay_gateway.kernel.config import ConfigError, ProcessSettings, is_loopback


def test_up_listens_on_loopback_and_services_on_all_addresses():
    up, edge = ProcessSettings.load("up", {}), ProcessSettings.load("edge", {})

    assert (up.host, up.port, up.management_port, up.log_format) == (
        "127.0.0.1",
        8080,
        8081,
        "text",
    )
    assert up.loopback
    assert (edge.host, edge.log_format) == ("0.0.0.0", "json")
    assert not edge.loopback


@pytest.mark.parametrize(
    ("service", "grpc", "health"),
    [
        ("edge", 7000, 8081),
        ("scheduler", 7001, 9101),
        ("usage", 7002, 9102),
        ("executors", 7003, 9103),
    ],
)
def test_each_service_has_its_ports(service, grpc, health):
    settings = ProcessSettings.load(service, {})

    assert (settings.grpc_port, settings.health_port) == (grpc, health)


def test_flag_wins_over_variable_over_default():
    env = {"PATCHBAY_PORT": "9000", "PATCHBAY_MANAGEMENT_PORT": "9001"}

    settings = ProcessSettings.load("up", env, {"port": 9100, "host": None})

    assert (settings.port, settings.management_port, settings.host) == (9100, 9001, "127.0.0.1")


def test_plain_names_are_understood_and_the_prefixed_ones_win():
    env = {"REDIS_URL": "redis://a", "LOG_LEVEL": "WARN", "LOG_FORMAT": "json"}

    settings = ProcessSettings.load("up", env)

    assert (settings.redis_url, settings.log_level, settings.log_format) == (
        "redis://a",
        "warning",
        "json",
    )
    prefixed = ProcessSettings.load("up", {**env, "PATCHBAY_REDIS_URL": "redis://b"})
    assert prefixed.redis_url == "redis://b"


def test_redis_url_from_a_file_is_read_and_not_shown(tmp_path):
    (tmp_path / "url").write_text("redis://:pw@host\n")

    settings = ProcessSettings.load("edge", {"PATCHBAY_REDIS_URL_FILE": str(tmp_path / "url")})

    assert settings.redis_url == "redis://:pw@host"
    assert "pw" not in repr(settings)


@pytest.mark.parametrize(("text", "seconds"), [("1.5", 1.5), ("1500ms", 1.5), ("2m", 120.0)])
def test_knob_takes_seconds_or_a_duration(text, seconds):
    env = {"PATCHBAY_LEASE_TTL": text, "PATCHBAY_RENEW_INTERVAL": "0.5"}

    assert ProcessSettings.load("edge", env).lease_ttl == seconds


def test_renewal_slower_than_the_lease_is_refused():
    with pytest.raises(ConfigError, match="must be shorter than the lease"):
        ProcessSettings.load("edge", {"PATCHBAY_LEASE_TTL": "10"})


@pytest.mark.parametrize(
    "env",
    [
        {"LOG_FORMAT": "xml"},
        {"LOG_LEVEL": "loud"},
        {"PATCHBAY_PORT": "70000"},
        {"PATCHBAY_WORKERS": "0"},
        {"PATCHBAY_SCHEDULER_ADDRESS": "scheduler"},
        {"PATCHBAY_LEASE_TTL": "soon"},
    ],
)
def test_wrong_value_names_the_variable(env):
    (variable,) = env

    with pytest.raises(ConfigError) as caught:
        ProcessSettings.load("up", env)

    assert str(caught.value).startswith(f"{variable}: ")


def test_port_that_kubernetes_made_of_a_service_name_is_ignored():
    env = {"PATCHBAY_PORT": "tcp://10.0.0.1:8080"}

    assert ProcessSettings.load("edge", env).port == 8080


def test_list_of_plugins_of_the_file_is_no_setting():
    env = {"PATCHBAY_PLUGINS": "[{id: a, address: 'a:1'}]"}

    assert ProcessSettings.load("executors", env).plugins == ()


def test_data_directory_follows_the_user_and_becomes_absolute(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    assert ProcessSettings.load("up", {"HOME": "/home/me"}).data_dir == Path(
        "/home/me/.local/share/patchbay"
    )
    assert ProcessSettings.load("up", {"XDG_DATA_HOME": "/x"}).data_dir == Path("/x/patchbay")
    assert ProcessSettings.load("up", {}, {"data_dir": "d"}).data_dir == tmp_path / "d"


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("127.0.0.1", True),
        ("127.0.0.2", True),
        ("::1", True),
        ("localhost", True),
        ("0.0.0.0", False),
        ("::", False),
        ("10.0.0.1", False),
        ("", False),
    ],
)
def test_loopback_is_known(host, expected):
    assert is_loopback(host) is expected


@pytest.mark.parametrize(
    ("host", "listen"),
    [
        ("0.0.0.0", "0.0.0.0:7002"),
        ("::", "[::]:7002"),
        ("[::1]", "[::1]:7002"),
        ("localhost", "localhost:7002"),
    ],
)
def test_grpc_of_an_ipv6_host_is_in_brackets(host, listen, tmp_path):
    settings = ProcessSettings(service="usage", host=host, grpc_port=7002, data_dir=tmp_path)
    assert settings.grpc_listen == listen
