"""What plugins do beside the path of requests, with real processes in both topologies."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from tests.harness.observing import until
from tests.harness.plugin_process import PluginProcess, new_root
from tests.harness.topology import Services, Up, make_config
from tests.harness.upstream import Upstream
from tests.integration.plugins.conftest import World

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Iterator

AROUND = Path(__file__).parent / "sample" / "around.py"
PAGE = "/v0/resource/plugins/around/status"


@pytest.fixture(scope="module", params=["up", "services"])
def around(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[World]:
    """A gateway with the plugin, both running, the plugin registered everywhere."""
    directory = tmp_path_factory.mktemp(f"around-{request.param}")
    root = new_root()
    upstream = Upstream(directory)
    upstream.process.start()
    log = directory / "usage.jsonl"
    plugin = PluginProcess("around", AROUND, root, directory, {"SAMPLE_LOG": str(log)})
    config = make_config(upstream.url)
    config["plugins"] = [
        {
            "id": "around",
            "address": plugin.address,
            "public": True,
            # On a busy machine too; a choice that comes late fails its request.
            "timeouts": {"scheduler": "20s", "usage_plugin": "60s"},
        }
    ]
    kind = Up if request.param == "up" else Services
    gateway = kind(directory, config, {"PATCHBAY_PLUGINS_KEY": root.hex()})
    world = World(gateway, plugin, upstream, log)
    plugin.start()
    gateway.start()
    wait_ready(world)
    yield world
    gateway.stop()
    plugin.stop()
    upstream.process.stop()


def wait_ready(world: World) -> None:
    """Wait until the edge has the plugin and its routes, the scheduler asks it, and it hears of usage."""
    deadline = time.monotonic() + 60
    while (
        not world.plugins()["around"]["ready"]
        or not world.plugins()["around"]["menus"]
        or not chosen_last(world)
        or not world.log.exists()
    ):
        assert time.monotonic() < deadline, world.plugin.tail()
        time.sleep(0.05)  # polls other processes


def chosen_last(world: World) -> bool:
    """Whether two requests went to the credential that the plugin takes."""
    for _ in range(2):
        if world.chat("hi").status_code != 200:
            return False
    used = [r["headers"]["authorization"] for r in world.upstream.records()[-2:]]
    return all("test-upstream-key-2" in value for value in used)


def key(world: World) -> dict[str, str]:
    """Return the management key."""
    return {"authorization": f"Bearer {world.gateway.management_key}"}


def patchbay(world: World, *args: str) -> subprocess.CompletedProcess[str]:
    """Run a verb against the gateway."""
    return world.gateway.verb(*args)


def test_scheduler_plugin_chooses_every_credential(around: World) -> None:
    assert chosen_last(around)


def test_scheduler_plugin_that_fails_fails_the_request(around: World) -> None:
    with around.client() as http:
        answer = http.post("/v1/embeddings", json={"model": "text-embedding-fake", "input": "x"})
    assert answer.status_code == 503, answer.text


def test_usage_plugin_hears_of_every_attempt(around: World) -> None:
    """Once: what it had taken when a test killed it, it may hear again, so that only these count."""
    answers = [around.chat("counted") for _ in range(4)]
    assert {answer.status_code for answer in answers} == {200}
    asked = [answer.headers["x-request-id"] for answer in answers]

    def heard() -> list[dict[str, Any]]:
        return [line for line in around.lines() if line["request"] in asked]

    until(lambda: {line["request"] for line in heard()} == set(asked), 60, "it hears of all four")
    assert {(line["outcome"], line["auth"]) for line in heard()} == {("succeeded", "second")}
    assert len({line["uid"] for line in heard()}) == len(heard()) == 4


def test_pages_and_routes_are_served(around: World) -> None:
    management = around.gateway.management_url
    page = httpx.get(management + PAGE, headers=key(around), timeout=60, verify=False)
    assert (page.status_code, page.text) == (200, f"GET {PAGE} ")
    public = httpx.get(around.gateway.base_url + PAGE, timeout=60, verify=False)
    assert (public.status_code, public.text) == (200, f"GET {PAGE} ")
    assert public.headers["content-security-policy"].startswith("sandbox")
    unknown = httpx.get(around.gateway.base_url + PAGE + "/x", timeout=60, verify=False)
    assert unknown.status_code == 404
    assert httpx.get(management + PAGE, timeout=60, verify=False).status_code == 401
    posted = httpx.post(
        f"{management}/v0/management/around/echo",
        headers=key(around),
        content=b"hello",
        timeout=60,
        verify=False,
    )
    assert posted.text == "POST /v0/management/around/echo hello"


def test_plugin_that_dies_is_a_502_and_comes_back(around: World) -> None:
    def post(content: bytes) -> int:
        url = f"{around.gateway.management_url}/v0/management/around/echo"
        return httpx.post(
            url, headers=key(around), content=content, timeout=60, verify=False
        ).status_code

    assert post(b"please die") == 502
    assert around.plugin.wait(60) == 1
    until(lambda: not around.plugins()["around"]["ready"], 60, "the edge knows that it is gone")
    around.plugin.start()
    wait_ready(around)
    assert post(b"x") == 200


def test_plugin_list_tells_everything(around: World) -> None:
    found = json.loads(patchbay(around, "plugin", "list", "--json").stdout)
    (plugin,) = [p for p in found if p["id"] == "around"]
    assert {"scheduler", "usage_plugin", "management_api"} <= set(plugin["capabilities"])
    assert plugin["policy"]["scheduler"]["deadline"] == 20
    assert plugin["policy"]["management_api"]["deadline"] == 30
    assert plugin["menus"][0]["path"] == PAGE
    text = patchbay(around, "plugin", "list").stdout
    assert "around 1.0.0  registered" in text


def test_plugin_exec_runs_where_the_plugin_runs(around: World) -> None:
    done = patchbay(around, "plugin", "exec", "around", "--", "--status", "3", "word")
    assert (done.returncode, done.stdout, done.stderr) == (
        3,
        "--status 3 word\n",
        "to stderr\n",
    )
    assert "--status INT" in patchbay(around, "plugin", "exec", "around", "--help").stdout
    assert patchbay(around, "plugin", "exec", "around", "--", "--what").returncode == 1
    assert patchbay(around, "plugin", "exec", "nobody").returncode == 1
