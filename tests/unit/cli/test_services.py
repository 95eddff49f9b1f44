"""Verbs that run a service: what reaches it, and what is said when it cannot start."""

from __future__ import annotations

import errno
import logging
import socket
from importlib.metadata import EntryPoint
from types import SimpleNamespace
from typing import Any

import pytest
import structlog
from typer.testing import CliRunner

from patchbay import cli
from patchbay.errors import FailedPrecondition
from patchbay_gateway.commands import services
from patchbay_gateway.kernel.config import Config, ConfigError, ProcessSettings

ANY_PORTS = {"port": 0, "management_port": 0, "grpc_port": 0, "health_port": 0}
GATEWAY = EntryPoint("gateway", "patchbay_gateway.cli:register", "patchbay.commands")


class Starter:
    """Stands for `services.start` and keeps what it was told."""

    def __init__(self, status: int = 0) -> None:
        self.status = status
        self.service = ""
        self.config: Any = None
        self.flags: dict[str, Any] = {}

    def __call__(self, service: str, config: Any, flags: dict[str, Any]) -> int:
        self.service, self.config = service, config
        self.flags = {name: value for name, value in flags.items() if value is not None}
        return self.status


def invoke(starter: Starter, *arguments: str) -> Any:
    return CliRunner().invoke(cli.build([GATEWAY]), list(arguments), obj=starter)


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("PATCHBAY_CONFIG", "OPENAI_API_KEY", "OPENAI_BASE_URL"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def _restored_logs():
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    structlog.reset_defaults()


def test_up_passes_its_flags_on():
    starter = Starter()

    result = invoke(
        starter, "up", "--config", "f.yaml", "--host", "::1", "--port", "0", "--management-port",
        "1", "--workers", "2", "--redis-url", "redis://r", "--data-dir", "d",
    )  # fmt: skip

    assert result.exit_code == 0
    assert (starter.service, str(starter.config)) == ("up", "f.yaml")
    assert {name: str(value) for name, value in starter.flags.items()} == {
        "host": "::1",
        "port": "0",
        "management_port": "1",
        "workers": "2",
        "redis_url": "redis://r",
        "data_dir": "d",
    }


def test_up_takes_the_file_of_the_working_directory(tmp_path):
    starter = Starter()
    (tmp_path / "patchbay.yaml").write_text("")

    result = invoke(starter, "up")

    assert str(starter.config) == "patchbay.yaml"
    assert "Using patchbay.yaml" in result.stderr


def test_up_without_a_file_takes_none():
    starter = Starter()

    invoke(starter, "up")

    assert starter.config is None


def test_configuration_file_may_be_named_by_the_environment(monkeypatch):
    monkeypatch.setenv("PATCHBAY_CONFIG", "/etc/patchbay.yaml")
    starter = Starter()

    invoke(starter, "scheduler")

    assert str(starter.config) == "/etc/patchbay.yaml"


@pytest.mark.parametrize("service", ["edge", "scheduler", "executors", "usage"])
def test_service_runs_alone(service):
    starter = Starter()

    result = invoke(starter, service, "--config", "f.yaml", "--grpc-port", "0")

    assert result.exit_code == 0
    assert (starter.service, starter.flags) == (service, {"grpc_port": 0})


def test_executors_serve_the_chosen_built_ins():
    starter = Starter()

    invoke(starter, "executors", "--plugins", "openai-compatible, echo")

    assert starter.flags == {"plugins": ("openai-compatible", "echo")}


def test_status_of_the_service_is_the_status_of_the_verb():
    assert invoke(Starter(status=1), "edge").exit_code == 1


def test_usage_report_does_not_start_the_service(monkeypatch):
    monkeypatch.setenv("PATCHBAY_MANAGEMENT_URL", "http://127.0.0.1:9")
    starter = Starter()

    invoke(starter, "usage", "report")

    assert starter.service == ""


class Service:
    """A module with `run`, found instead of the real one."""

    def __init__(self, failure: Exception | None = None) -> None:
        self._failure = failure
        self.name = ""
        self.config: Config | None = None
        self.settings: ProcessSettings | None = None

    def find(self, name: str) -> Any:
        self.name = name
        return SimpleNamespace(run=self.run)

    def run(self, config: Config, settings: ProcessSettings) -> int:
        self.config, self.settings = config, settings
        if self._failure is not None:
            raise self._failure
        return 0


def test_start_loads_the_file_and_runs_the_service(tmp_path):
    (tmp_path / "f.yaml").write_text("providers: [{name: mine, plugin: echo}]")
    service = Service()

    status = services.start(
        "edge", tmp_path / "f.yaml", {**ANY_PORTS, "workers": 2}, find=service.find
    )

    assert (status, service.name) == (0, "patchbay_gateway.edge.main")
    assert service.config is not None
    assert service.settings is not None
    assert service.config.providers[0].name == "mine"
    assert service.settings.config_path == tmp_path / "f.yaml"
    assert service.settings.workers == 2


def test_start_of_up_runs_the_embedded_gateway_with_echo():
    service = Service()

    services.start("up", None, ANY_PORTS, find=service.find)

    assert service.name == "patchbay_gateway.embedded"
    assert service.config is not None
    assert "echo" in [p.name for p in service.config.providers]


@pytest.mark.usefixtures("_restored_logs")
def test_start_says_nothing_of_keys_that_are_served(tmp_path, capsys):
    (tmp_path / "f.yaml").write_text("plugins: [{id: p, address: 'p:1', public: true}]")

    services.start("edge", tmp_path / "f.yaml", ANY_PORTS, find=Service().find)

    assert not capsys.readouterr().err


def test_wrong_configuration_stops_before_the_service(tmp_path):
    (tmp_path / "f.yaml").write_text("fancy: 1")
    service = Service()

    with pytest.raises(ConfigError):
        services.start("up", tmp_path / "f.yaml", {}, find=service.find)

    assert service.name == ""


def test_missing_extra_says_what_to_install():
    def find(_: str) -> Any:
        raise ModuleNotFoundError("No module named 'sqlalchemy'", name="sqlalchemy")

    with pytest.raises(FailedPrecondition, match=r"pip install 'patchbay-gateway\[usage\]'"):
        services.start("usage", None, {}, find=find)


def test_missing_module_of_ours_is_a_bug():
    def find(name: str) -> Any:
        raise ModuleNotFoundError(f"No module named {name!r}", name=name)

    with pytest.raises(ModuleNotFoundError):
        services.start("usage", None, {}, find=find)


def test_start_on_a_directory_it_may_not_write_says_what_to_do():
    failure = PermissionError(errno.EACCES, "Permission denied", "/data/keys")
    service = Service(failure)

    with pytest.raises(FailedPrecondition, match=r"cannot write /data/keys.*--data-dir"):
        services.start("up", None, ANY_PORTS, find=service.find)


@pytest.mark.parametrize(
    ("service", "field", "flag"),
    [
        ("up", "port", "--port"),
        ("edge", "management_port", "--management-port"),
        ("scheduler", "grpc_port", "--grpc-port"),
        ("usage", "health_port", "--health-port"),
    ],
)
def test_taken_port_stops_the_start_with_its_flag(service, field, flag):
    found = Service()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        flags = {**ANY_PORTS, "host": "127.0.0.1", field: listener.getsockname()[1]}
        with pytest.raises(FailedPrecondition, match=f"cannot be had .* another with {flag}"):
            services.start(service, None, flags, find=found.find)

    assert found.config is None


def test_host_that_is_not_here_stops_the_start():
    flags = {**ANY_PORTS, "port": 1, "host": "192.0.2.1"}

    with pytest.raises(FailedPrecondition, match=r"port 1 of 192\.0\.2\.1 cannot be had"):
        services.start("up", None, flags, find=Service().find)
