"""
Plugins that are killed, hung, slow, that lie or answer nonsense, at each step of a request.

The gateway goes on as the table of policies says (plugins/policy.py): what a broken plugin was to change
stays as it is, and a step that must be passed fails closed.
"""

from __future__ import annotations

import contextlib
import json
import signal
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from tests.harness.plugin_process import PluginProcess, new_root
from tests.harness.topology import Services, Up, make_config
from tests.harness.upstream import Upstream

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from tests.harness.topology import Gateway

HOSTILE = Path(__file__).parent / "hostile" / "plugin.py"
DEADLINE = 0.8
"""Of every step, seconds; a busy machine must not miss it."""
ASKING = ("before", "after", "normalize", "translate")
WHOLE = (*ASKING, "answerbefore", "answertranslate", "answerafter", "answer")
STREAMED = (*ASKING, "answerbefore", "answertranslate", "answerafter", "chunk")
FLAGS = (
    "frontend_auth_provider",
    "model_router",
    "request_interceptor",
    "request_normalizer",
    "request_translator",
    "response_before_translator",
    "response_translator",
    "response_after_translator",
    "response_interceptor",
    "response_stream_interceptor",
    "request_lifecycle_plugin",
)
HOW = ("fail", "bug", "late", "garbage", "huge", "unserved")
"""Damage that the process survives."""


def text(steps: tuple[str, ...]) -> str:
    """Return one word for each step."""
    return " ".join(f"w-{step}-w" for step in steps)


@dataclass(slots=True)
class World:
    """A gateway, and the plugins beside it."""

    gateway: Gateway
    plugins: Mapping[str, PluginProcess]
    orders: Mapping[str, Path]

    def order(self, plugin: str = "hostile", **how: str) -> None:
        """Say how a plugin is to break from now on."""
        path = self.orders[plugin]
        new = path.with_suffix(".new")
        new.write_text(json.dumps(how))
        new.rename(path)

    def post(
        self, said: str, model: str = "echo", *, headers: dict[str, str] | None = None, **more: Any
    ) -> httpx.Response:
        """Ask in the OpenAI dialect."""
        body = {"model": model, "messages": [{"role": "user", "content": said}], **more}
        return httpx.post(
            f"{self.gateway.base_url}/v1/chat/completions",
            json=body,
            headers=self.gateway.headers() if headers is None else headers,
            timeout=30,
        )

    def passed(self, steps: tuple[str, ...], **more: Any) -> set[str]:
        """Return the steps that a request went through."""
        answer = self.post(text(steps), **more)
        assert answer.status_code == 200, answer.text
        assert all(f"w-{s}-w" in answer.text or f"w-{s.upper()}-w" in answer.text for s in steps)
        return {step for step in steps if f"w-{step.upper()}-w" in answer.text}

    def known(self) -> dict[str, dict[str, Any]]:
        """Return what the management API says of plugins."""
        answer = httpx.get(
            f"{self.gateway.management_url}/v0/management/plugins",
            headers={"authorization": f"Bearer {self.gateway.management_key}"},
            timeout=10,
        )
        return {p["id"]: p for p in answer.json()}

    def states(self, plugin: str) -> list[str]:
        """Return the state of each address of *plugin*."""
        return [a["state"] for a in self.known()[plugin]["addresses"]]

    def wait(self, plugin: str, *states: str, limit: float = 20.0) -> None:
        """Wait until the plugin's addresses are in *states*."""
        deadline = time.monotonic() + limit
        while sorted(self.states(plugin)) != sorted(states):
            assert time.monotonic() < deadline, self.known()[plugin]
            time.sleep(0.05)  # polls another process

    def well(self, *plugins: str) -> None:
        """Bring plugins back to health: alive, not stopped, without orders, every address ready."""
        for plugin in plugins:
            self.order(plugin)
            process = self.plugins[plugin]
            if not process.running:
                process.start()
            process.signal(signal.SIGCONT)
        for plugin in plugins:
            self.wait(plugin, "ready")


def make_world(directory: Path, kind: type[Up | Services], upstream: Upstream) -> World:
    """Return a gateway with a plugin that may be passed by and one that may not, not yet started."""
    root = new_root()
    plugins, orders, entries = {}, {}, []
    limits = dict.fromkeys(FLAGS, f"{DEADLINE}s")
    for name, models, policies in (
        ("hostile", ["echo", "hostile-model", "fake-model"], {}),
        (
            "strict",
            ["strict"],
            {
                "request_interceptor": "Fail",
                "response_interceptor": "Fail",
                "response_stream_interceptor": "Fail",
            },
        ),
    ):
        orders[name] = directory / f"{name}.json"
        env = {"HOSTILE_ID": name, "HOSTILE_ORDERS": str(orders[name])}
        plugins[name] = PluginProcess(name, HOSTILE, root, directory, env)
        entries.append({
            "id": name,
            "address": plugins[name].address,
            "timeouts": limits,
            "match": {"models": models},
            "failure_policies": policies,
            "capabilities": [] if name == "hostile" else [*policies],
        })  # fmt: skip
    # So that an executor that hangs is given up while somebody waits: 10 s later than it should itself.
    limits_of_answers = {"first_byte_timeout": "1s", "idle_timeout": "1s"}
    config = make_config(upstream.url, plugins=entries, streaming=limits_of_answers)
    config["providers"][0]["models"] = ["echo", {"name": "echo", "alias": "strict"}]
    gateway = kind(directory, config, {"PATCHBAY_PLUGINS_KEY": root.hex()})
    return World(gateway, plugins, orders)


@contextlib.contextmanager
def running(directory: Path, kind: type[Up | Services]) -> Iterator[World]:
    """Run everything."""
    upstream = Upstream(directory)
    upstream.process.start()
    world = make_world(directory, kind, upstream)
    for plugin in world.plugins.values():
        plugin.start()
    try:
        world.gateway.start()
        yield world
    finally:
        for plugin in world.plugins.values():
            plugin.signal(signal.SIGCONT)
            plugin.kill()
        world.gateway.stop()
        upstream.process.stop()


@pytest.fixture(scope="module")
def up(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """All processes around `patchbay up`, started once."""
    with running(tmp_path_factory.mktemp("hostile-up"), Up) as world:
        yield world


@pytest.fixture(scope="module")
def services(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """All processes around the four services, started once."""
    with running(tmp_path_factory.mktemp("hostile-services"), Services) as world:
        yield world


@pytest.fixture
def world(up: World) -> World:
    """`patchbay up`, every plugin well."""
    up.well("hostile", "strict")
    return up


def test_well_plugin_has_its_part_in_every_step(world: World) -> None:
    assert world.passed(WHOLE) == set(WHOLE)
    assert world.passed(STREAMED, stream=True) == set(STREAMED)
    assert world.post("hi", "hostile-model").json()["choices"][0]["message"]["content"] == "well"


@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize("stream", [False, True])
def test_broken_step_is_passed_by_and_the_others_are_not(
    world: World, how: str, *, stream: bool
) -> None:
    steps = STREAMED if stream else WHOLE
    for step in steps:
        world.order(**{step: how})
        began = time.monotonic()
        passed = world.passed(steps, stream=stream)
        # Who makes 100 MiB has no time for the steps beside it.
        assert passed == set(steps) - {step} or (how == "huge" and step not in passed), (step, how)
        assert time.monotonic() - began < DEADLINE + 3, (step, how)


def test_slow_steps_are_waited_for(world: World) -> None:
    world.order(**dict.fromkeys(WHOLE, "slow"))
    assert world.passed(WHOLE) == set(WHOLE)


@pytest.mark.parametrize("step", [*WHOLE, "chunk", "route", "complete"])
def test_plugin_that_dies_in_a_step_costs_no_request(world: World, step: str) -> None:
    world.order(**{step: "die"})
    stream = step == "chunk"
    steps = STREAMED if stream else WHOLE
    assert step not in world.passed(steps, stream=stream)
    assert world.plugins["hostile"].wait(10) == 1
    assert world.passed(steps, stream=stream) == set()


def test_stopped_plugin_is_ejected_and_comes_back(world: World) -> None:
    """A process that is there and does nothing: deadlines are all that tells."""
    world.plugins["hostile"].signal(signal.SIGSTOP)
    began = time.monotonic()
    assert world.passed(WHOLE) == set()
    assert world.states("hostile") == ["ejected"]
    assert world.known()["hostile"]["breaker"] == "open"
    (address,) = world.known()["hostile"]["addresses"]
    assert address["errors"] >= 5
    quick = time.monotonic()
    assert world.passed(WHOLE) == set()
    assert time.monotonic() - quick < DEADLINE
    assert quick - began < 20 * DEADLINE
    world.plugins["hostile"].signal(signal.SIGCONT)
    deadline = time.monotonic() + 20
    while world.passed(WHOLE) != set(WHOLE):
        assert time.monotonic() < deadline
        time.sleep(0.2)  # the pause of the ejection, 5 s, is the gateway's own
    assert world.states("hostile") == ["ready"]


@pytest.mark.parametrize("how", HOW)
def test_router_that_breaks_leaves_the_catalogue(world: World, how: str) -> None:
    world.order(route=how)
    assert world.passed(WHOLE) == set(WHOLE)
    assert world.post("hi", "hostile-model").status_code == 404


@pytest.mark.parametrize("how", ["fail", "bug", "garbage", "huge", "unserved", "die"])
@pytest.mark.parametrize("stream", [False, True])
def test_executor_that_breaks_fails_its_attempt_alone(
    world: World, how: str, *, stream: bool
) -> None:
    world.order(execute=how)
    answer = world.post("hi", "hostile-model", stream=stream)
    assert 500 <= answer.status_code <= 504, answer.text
    assert answer.json()["error"]["message"]
    assert "RuntimeError" not in answer.text
    world.well("hostile")
    assert "well" in world.post("hi", "hostile-model", stream=stream).text


def test_executor_that_hangs_is_given_up_and_counted(world: World) -> None:
    world.order(execute="late")
    errors = world.known()["hostile"]["addresses"][0]["errors"]
    began = time.monotonic()
    answer = world.post("hi", "hostile-model", stream=True)
    assert answer.status_code in {503, 504}, answer.text
    assert 5 < time.monotonic() - began < 20
    assert world.known()["hostile"]["addresses"][0]["errors"] == errors + 1
    assert world.passed(WHOLE) == set(WHOLE)


@pytest.mark.parametrize("how", [*HOW, "die"])
def test_frontend_auth_that_breaks_admits_nobody_and_keys_go_on(world: World, how: str) -> None:
    ann = {"x-hostile-user": "ann"}
    assert world.post("hi", headers=ann).status_code == 200
    world.order(auth=how)
    assert world.post("hi", headers=ann).status_code == 401
    assert world.post("hi").status_code == 200


@pytest.mark.parametrize("how", HOW)
def test_lifecycle_plugin_that_breaks_is_not_noticed(world: World, how: str) -> None:
    world.order(complete=how)
    for _ in range(3):
        began = time.monotonic()
        assert world.passed(WHOLE) == set(WHOLE)
        assert time.monotonic() - began < 3


@pytest.mark.parametrize("how", [*HOW, "die"])
@pytest.mark.parametrize("step", ["before", "after", "answer", "chunk"])
def test_step_that_must_be_passed_fails_closed(world: World, step: str, how: str) -> None:
    stream = step == "chunk"
    deadline = time.monotonic() + 15
    while (well := world.post("hi", "strict", stream=stream)).status_code != 200:
        assert time.monotonic() < deadline, well.text
    world.order("strict", **{step: how})
    answer = world.post("hi", "strict", stream=stream)
    assert answer.status_code == 503, answer.text
    assert "retry-after" in answer.headers
    assert "hi" not in answer.text.split('"error"')[0]
    assert world.post("hi").status_code == 200


def test_plugin_that_must_be_passed_and_is_away_fails_closed(world: World) -> None:
    world.plugins["strict"].kill()
    for stream in (False, True):
        assert world.post("hi", "strict", stream=stream).status_code == 503
    assert world.post("hi").status_code == 200


@pytest.mark.parametrize("lie", ["other-id", "future", "nothing"])
def test_plugin_that_lies_in_the_handshake_is_not_registered(world: World, lie: str) -> None:
    plugin = world.plugins["hostile"]
    plugin.kill()
    world.order(register=lie)
    plugin.start()
    world.wait("hostile", "refused")
    known = world.known()["hostile"]
    assert not known["ready"]
    assert known["capabilities"] == []
    assert known["reasons"], known
    assert world.passed(WHOLE) == set()


def test_services_go_on_as_one_process_does(services: World) -> None:
    """The same rules where edge, scheduler and executors are processes of their own."""
    services.well("hostile", "strict")
    assert services.passed(WHOLE) == set(WHOLE)
    assert services.passed(STREAMED, stream=True) == set(STREAMED)
    services.order(before="late", answer="garbage")
    assert services.passed(WHOLE) == set(WHOLE) - {"before", "answer"}
    services.order("strict", before="fail")
    assert services.post("hi", "strict").status_code == 503
    for plugin in services.plugins.values():
        plugin.kill()
    assert services.passed(WHOLE) == set()
    assert services.post("hi", "strict").status_code == 503


# -- an exclusive frontend auth plugin -----------------------------------------------------------------


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """A gateway whose clients a plugin alone knows; not yet started."""
    directory = tmp_path_factory.mktemp("exclusive")
    root = new_root()
    orders = directory / "orders.json"
    env = {"HOSTILE_ID": "exclusive", "HOSTILE_ORDERS": str(orders)}
    plugin = PluginProcess("exclusive", HOSTILE, root, directory, env)
    entry = {
        "id": "exclusive",
        "address": plugin.address,
        "timeouts": {"frontend_auth_provider": f"{DEADLINE}s"},
        "capabilities": ["frontend_auth_provider", "frontend_auth_provider_exclusive"],
    }
    config = make_config("http://127.0.0.1:9/v1", plugins=[entry])
    gateway = Up(directory, config, {"PATCHBAY_PLUGINS_KEY": root.hex()})
    yield World(gateway, {"exclusive": plugin}, {"exclusive": orders})
    plugin.kill()
    gateway.stop()


def test_exclusive_auth_that_is_not_there_yet_opens_nothing(guarded: World) -> None:
    guarded.gateway.start()
    assert guarded.post("hi").status_code == 503
    assert guarded.post("hi", headers={"x-hostile-user": "ann"}).status_code == 503
    guarded.well("exclusive")
    assert guarded.post("hi", headers={"x-hostile-user": "ann"}).status_code == 200
    assert guarded.post("hi").status_code == 401
    models = f"{guarded.gateway.base_url}/v1/models"
    assert httpx.get(models, headers={"x-hostile-user": "ann"}).json()["data"]
    assert httpx.get(models, headers=guarded.gateway.headers()).status_code == 401


@pytest.mark.parametrize("how", [*HOW, "die", "stop"])
def test_exclusive_auth_that_breaks_answers_everybody_with_503(guarded: World, how: str) -> None:
    guarded.gateway.start()
    guarded.well("exclusive")
    if how == "stop":
        guarded.plugins["exclusive"].signal(signal.SIGSTOP)
    else:
        guarded.order("exclusive", auth=how)
    for _ in range(2):
        for headers in (guarded.gateway.headers(), {"x-hostile-user": "ann"}, {}):
            answer = guarded.post("hi", headers=headers)
            assert answer.status_code == 503, answer.text
    guarded.plugins["exclusive"].signal(signal.SIGCONT)
