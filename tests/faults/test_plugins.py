"""
Plugins that are killed, hung, slow, that lie or answer nonsense, at each capability, with real processes.

The gateway goes on as the table of policies says (plugins/policy.py): what a broken plugin was to change
stays as it is, and a step that must be passed fails closed. One gateway stands beside plugins that break in
all these ways, and each test asks for those that it is about; `test_every_damage_was_met_at_every_capability`
sees to it that nothing is left out. With PATCHBAY_TEST_FULL_LENGTH=1 plugins die and come back in each step
that must be passed, and the exclusive one breaks in each way.
"""

from __future__ import annotations

import os
import signal
import time
from functools import partial
from typing import TYPE_CHECKING

import httpx
import pytest
from tests.faults.hostile.fleet import (
    ASKING,
    EVERY,
    HOWS,
    LIES,
    STREAMED,
    WHOLE,
    Fleet,
    World,
    text,
)
from tests.harness.topology import Services, Up, make_config

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

FULL = os.environ.get("PATCHBAY_TEST_FULL_LENGTH") == "1"
BROKEN = [how for how in HOWS if how != "slow"]
TALKING = ("fail", "bug", "garbage", "unserved", "huge")
"""Damage that costs no time and that the process survives."""
STRICT_STEPS = ("before", "after", "answer", "chunk", "pick")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """`patchbay up` beside all plugins."""
    found = World(tmp_path_factory.mktemp("hostile-up"), Up, HOWS, lies=True)
    try:
        found.start()
        yield found
    finally:
        found.stop()


@pytest.fixture(scope="module")
def services(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """The four services beside some of them."""
    hows = HOWS if FULL else ("late", "garbage", "die")
    found = World(tmp_path_factory.mktemp("hostile-services"), Services, hows, lies=False)
    try:
        found.start()
        yield found
    finally:
        found.stop()


# -- steps of a request ----------------------------------------------------------------------------------


def test_well_plugin_has_its_part_in_every_step(world: World) -> None:
    whole = world.post(text("w", WHOLE))
    assert [step for step in WHOLE if f"W-{step.upper()}-" not in whole.text] == []
    streamed = world.post(text("w", STREAMED), stream=True)
    assert [step for step in STREAMED if f"W-{step.upper()}-" not in streamed.text] == []


@pytest.mark.parametrize("how", BROKEN)
@pytest.mark.parametrize("stream", [False, True])
def test_broken_step_is_passed_by_and_the_others_are_not(
    world: World, how: str, *, stream: bool
) -> None:
    """Neither a router nor a scheduler plugin that may be ignored keeps a request from its answer."""
    answers = world.answers(how)
    assert answers.passed("e", stream=stream) == set()
    assert answers.passed("w", stream=stream) == set(STREAMED if stream else WHOLE)


def test_slow_steps_are_waited_for(world: World) -> None:
    answers = world.answers("slow")
    for stream, steps in ((False, WHOLE), (True, STREAMED)):
        assert answers.passed("e", stream=stream) == set(steps)
        # The first translator that answers is the only one.
        others = set(steps) - {"translate", "answertranslate"}
        assert answers.passed("w", stream=stream) == others


@pytest.mark.parametrize("step", [*WHOLE, "chunk", "route", "pick"])
def test_plugin_that_dies_in_a_step_costs_no_request(world: World, step: str) -> None:
    world.answers("die")
    assert step in world.fleet.met(f"die-{step}")
    world.wait(lambda: world.known()[f"die-{step}"]["ready"] is False)
    again = world.post(text("w", ASKING), "evil-die")
    assert again.status_code == 200, again.text


def test_router_that_breaks_leaves_the_catalogue(world: World) -> None:
    for how in BROKEN:
        assert world.answers(how).whole.headers["x-patchbay-provider"] == "echo"
        if how != "hung":
            assert world.met(how, "route")


@pytest.mark.parametrize("how", HOWS)
def test_lifecycle_plugin_that_breaks_is_not_noticed(world: World, how: str) -> None:
    assert world.answers(how).whole.status_code == 200
    world.wait(lambda: "complete" in world.fleet.met("well"))


@pytest.mark.parametrize("how", HOWS)
def test_thinking_applier_that_breaks_leaves_the_payload(world: World, how: str) -> None:
    answer = world.think(how)
    assert answer.status_code == 200, answer.text
    said = answer.json()["choices"][0]["message"]["content"]
    assert said.startswith("well ")
    assert ("E-THINK-e" in said) == (how == "slow"), said


# -- executors -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", TALKING)
@pytest.mark.parametrize("stream", [False, True])
def test_executor_that_breaks_fails_its_attempt_alone(
    world: World, how: str, *, stream: bool
) -> None:
    answer = world.post("hi", f"exec-{how}", stream=stream)
    assert 500 <= answer.status_code <= 504, answer.text
    assert answer.json()["error"]["message"]
    assert "RuntimeError" not in answer.text
    assert "well" in world.post("hi", "exec-slow", stream=stream).text


def test_executor_that_dies_fails_its_attempt_alone(world: World) -> None:
    for stream in (False, True):
        # Once it is gone, nobody has the model any more.
        answer = world.post("hi", "exec-die", stream=stream)
        assert answer.status_code in {404, *range(500, 505)}, answer.text
    assert "execute" in world.fleet.met("die-execute")
    assert "well" in world.post("hi", "exec-slow").text


@pytest.mark.parametrize("how", ["late", "hung"])
def test_executor_that_hangs_is_given_up_and_counted(world: World, how: str) -> None:
    for stream in (False, True):
        answer = world.hanging[how, stream].result(90)
        assert answer.status_code in {503, 504}, answer.text
    (address,) = world.known()[world.who(how, "execute")]["addresses"]
    assert address["errors"] == 2


# -- beside the path of a request ------------------------------------------------------------------------


def test_frontend_auth_that_breaks_admits_nobody_and_keys_go_on(world: World) -> None:
    """The one that knows the client comes after all that break."""
    assert world.post("hi", headers={"x-hostile-user": "w"}).status_code == 200
    assert world.post("hi", headers={"x-hostile-user": "nobody"}).status_code == 401
    assert world.post("hi").status_code == 200
    for how in HOWS:
        if how != "hung":
            assert world.met(how, "auth"), how


def test_scheduler_plugin_that_breaks_is_passed_by_where_it_may_be(world: World) -> None:
    for how in HOWS:
        assert world.answers(how).whole.status_code == 200
        if how != "hung":
            assert world.met(how, "pick"), how


def test_usage_plugin_that_breaks_hears_again_and_holds_up_no_other(world: World) -> None:
    assert world.post("hi").status_code == 200

    def taken(plugin: str) -> bool:
        return "usage-taken" in world.fleet.met(plugin)

    world.wait(partial(taken, "well"))
    for how in ("fail", "bug", "garbage", "unserved", "huge", "late"):
        plugin = world.who(how, "usage")
        world.wait(partial(taken, plugin))


@pytest.mark.parametrize("how", HOWS)
def test_management_route_that_breaks_is_a_502(world: World, how: str) -> None:
    plugin = world.who(how, "manage")
    answer = world.manage(plugin)
    if how == "slow":
        assert (answer.status_code, answer.text) == (200, "well")
    else:
        assert answer.status_code == 502, answer.text
        assert answer.headers["content-type"].startswith("text/plain")
    assert world.manage("well").text == "well"


@pytest.mark.parametrize("how", [how for how in HOWS if how != "hung"])
def test_command_line_that_breaks_fails_alone(world: World, how: str) -> None:
    answer = world.command(world.who(how, "command"))
    if how == "slow":
        assert answer.json()["stdout"] == "well"
    else:
        assert answer.status_code >= 400, answer.text
    assert world.command("well").json()["stdout"] == "well"


def test_models_of_a_plugin_that_is_well_are_listed_beside_those_that_break(world: World) -> None:
    def listed() -> set[str]:
        models = f"{world.gateway.base_url}/v1/models"
        found = world.client.get(models, headers=world.gateway.headers()).json()["data"]
        return {model["id"] for model in found}

    world.wait(lambda: "well-model" in listed())
    assert {"echo", "strict"} <= listed()


@pytest.mark.parametrize("lie", LIES)
def test_plugin_that_lies_in_the_handshake_is_not_registered(world: World, lie: str) -> None:
    known = world.known()[lie]
    assert not known["ready"]
    assert known["capabilities"] == []
    assert known["reasons"], known
    answer = world.post(text("w", WHOLE), "evil-lie")
    assert [step for step in WHOLE if f"W-{step.upper()}-" not in answer.text] == []


def test_every_damage_was_met_at_every_capability(world: World) -> None:
    """Whatever is ordered, tests run alone or in another order included."""
    for how in HOWS:
        world.answers(how)
        world.think(how)
        if how != "hung":
            world.manage(world.who(how, "manage"))
            world.command(world.who(how, "command"))
        if how not in {"late", "hung"}:
            world.post("hi", f"exec-{how}")
    world.post("hi", headers={"x-hostile-user": "w"})

    def missed() -> list[tuple[str, str]]:
        # Who is stopped writes nothing down.
        hows = [how for how in HOWS if how != "hung"]
        return [(h, s) for h in hows for s in EVERY if s not in world.fleet.met(world.who(h, s))]

    for how, step in missed():
        world.met(how, step)
    try:
        world.wait(lambda: not missed(), 60)
    finally:
        assert missed() == []


# -- steps that must be passed ---------------------------------------------------------------------------


def ask_strict(world: World, plugin: str, step: str) -> None:
    """See that a request which must pass *plugin* does not, and another one does."""
    answer = world.post("hi", plugin, stream=step == "chunk")
    assert answer.status_code == 503, answer.text
    assert "retry-after" in answer.headers
    assert "hi" not in answer.text.split('"error"')[0]
    assert world.post("hi").status_code == 200


@pytest.mark.parametrize("step", STRICT_STEPS)
def test_step_that_must_be_passed_fails_closed(world: World, step: str) -> None:
    world.fleet.orders("strict")
    for how in TALKING:
        world.fleet.orders("strict", **{step: how})
        ask_strict(world, "strict", step)
    world.fleet.orders("strict")
    assert world.post("hi", "strict", stream=step == "chunk").status_code == 200


@pytest.mark.parametrize("step", STRICT_STEPS if FULL else ["before"])
def test_plugin_that_dies_in_a_step_that_must_be_passed_fails_closed(
    world: World, step: str
) -> None:
    world.fleet.orders("strict", **{step: "die"})
    ask_strict(world, "strict", step)
    world.fleet.orders("strict")
    world.wait(lambda: world.known()["strict"]["ready"] is False)
    for stream in (False, True):
        assert world.post("hi", "strict", stream=stream).status_code == 503
    world.fleet.start_again("strict")
    world.wait(lambda: world.post("hi", "strict").status_code == 200)


def test_stopped_plugin_is_ejected_and_comes_back(world: World) -> None:
    """A process that is there and does nothing: deadlines are all that tells, first while it is only late."""
    world.fleet.orders("tight", **dict.fromkeys(STRICT_STEPS, "late"))
    ask_strict(world, "tight", "before")
    world.fleet.signal("tight", signal.SIGSTOP)
    world.fleet.orders("tight")
    for _ in range(5):
        ask_strict(world, "tight", "before")
    known = world.known()["tight"]
    assert known["addresses"][0]["state"] == "ejected"
    assert known["breaker"] == "open"
    assert known["addresses"][0]["errors"] >= 5
    world.fleet.signal("tight", signal.SIGCONT)
    # The pause of the ejection, 5 s or more, is the gateway's own.
    world.wait(lambda: world.post("hi", "tight").status_code == 200)


# -- services of their own -------------------------------------------------------------------------------


def test_services_go_on_as_one_process_does(services: World) -> None:
    """The same rules where edge, scheduler and executors are processes of their own."""
    for how in services.hows:
        answers = services.answers(how)
        for stream, steps in ((False, WHOLE), (True, STREAMED)):
            if how != "slow":
                assert answers.passed("e", stream=stream) == set(), how
                assert answers.passed("w", stream=stream) == set(steps), how
        if how != "hung":
            assert services.met(how, "pick"), how
    services.fleet.orders("strict", before="fail")
    assert services.post("hi", "strict").status_code == 503
    services.fleet.stop()
    assert services.post("hi").status_code == 200
    assert services.post("hi", "strict").status_code == 503


# -- an exclusive frontend auth plugin -------------------------------------------------------------------


class Guarded:
    """A gateway whose clients a plugin alone knows."""

    def __init__(self, directory: Path) -> None:
        self.fleet = Fleet(directory)
        entry = {
            "timeouts": {"frontend_auth_provider": "2s"},
            "capabilities": ["frontend_auth_provider", "frontend_auth_provider_exclusive"],
        }
        orders = self.fleet.orders("exclusive")
        self.fleet.add({"id": "exclusive", "orders": orders, "entry": entry})
        config = make_config("http://127.0.0.1:9/v1", plugins=self.fleet.entries)
        key = {"PATCHBAY_PLUGINS_KEY": self.fleet.root.hex()}
        self.gateway = Up(directory, config, key)
        self.client = httpx.Client(base_url=self.gateway.base_url, timeout=60, verify=False)
        self.everybody: tuple[dict[str, str], ...] = (self.gateway.headers(), ANN, {})
        self.before: list[int] = []
        """What everybody got before the plugin was there."""

    def start(self) -> None:
        """Start the gateway, ask, and start the plugin."""
        self.gateway.start()
        self.before = [self.post(headers) for headers in self.everybody]
        self.fleet.start()
        self.well()

    def stop(self) -> None:
        """Stop everything."""
        self.fleet.stop()
        self.gateway.stop()
        self.client.close()

    def well(self) -> None:
        """Wait until the plugin knows its client, whatever was before."""
        self.fleet.orders("exclusive")
        self.fleet.signal("exclusive", signal.SIGCONT)
        deadline = time.monotonic() + 90
        while self.post(ANN) != 200:
            assert time.monotonic() < deadline
            time.sleep(0.05)  # polls other processes

    def post(self, headers: dict[str, str]) -> int:
        """Return the status of a request with *headers*."""
        body = {"model": "echo", "messages": [{"role": "user", "content": "hi"}]}
        return self.client.post("/v1/chat/completions", json=body, headers=headers).status_code


ANN = {"x-hostile-user": "ann"}


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guarded]:
    """A gateway that has been asked before its exclusive plugin was there."""
    found = Guarded(tmp_path_factory.mktemp("exclusive"))
    try:
        found.start()
        yield found
    finally:
        found.stop()


def test_exclusive_auth_that_is_not_there_yet_opens_nothing(guarded: Guarded) -> None:
    assert guarded.before == [503, 503, 503]
    guarded.well()
    assert [guarded.post(headers) for headers in guarded.everybody] == [401, 200, 401]
    assert guarded.client.get("/v1/models", headers=ANN).json()["data"]
    assert guarded.client.get("/v1/models", headers=guarded.gateway.headers()).status_code == 401


@pytest.mark.parametrize("how", [*TALKING, "late", "stop", *(["die"] if FULL else [])])
def test_exclusive_auth_that_breaks_answers_everybody_with_503(guarded: Guarded, how: str) -> None:
    guarded.well()
    if how == "stop":
        guarded.fleet.signal("exclusive", signal.SIGSTOP)
    else:
        guarded.fleet.orders("exclusive", auth=how)
    assert [guarded.post(headers) for headers in guarded.everybody] == [503, 503, 503]
    if how == "die":
        guarded.fleet.orders("exclusive")
        guarded.fleet.start_again("exclusive")
    guarded.well()
