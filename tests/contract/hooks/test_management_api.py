"""Routes, pages and commands of plugins, behind both channels."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, ClassVar

import httpx
import pytest
from tests.harness.hosting import CHANNELS, hosting

from patchbay import errors
from patchbay.command_line import (
    CommandLineExecutionRequest,
    CommandLineExecutionResponse,
    CommandLineFlag,
    CommandLineFlagType,
    CommandLinePlugin,
)
from patchbay.management import (
    ManagementAPI,
    ManagementRequest,
    ManagementResponse,
    ManagementRoute,
    ResourceRoute,
)
from patchbay.plugin.v1 import management_api_pb2
from patchbay_gateway.edge.management.access import Access
from patchbay_gateway.edge.management.app import build_management_app
from patchbay_gateway.edge.management.pool import Pool
from patchbay_gateway.edge.management.port import ManagementPorts
from patchbay_gateway.kernel.health import HealthApp
from patchbay_gateway.kernel.telemetry import NoMetrics
from patchbay_gateway.plugins.command_line import CommandLines, Flag, parse
from patchbay_gateway.plugins.management_api import ManagementPlugins
from patchbay_gateway.plugins.snapshot import Snapshot

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tests.harness.hosting import Hosted


class Pages(ManagementAPI, CommandLinePlugin):
    id: ClassVar = "pages"
    name: ClassVar = "Pages"
    version: ClassVar = "1"
    author: ClassVar = "tests"
    routes: ClassVar[Sequence[ManagementRoute]] = (
        ManagementRoute("/v0/management/pages/echo", "post"),
        ManagementRoute("pages/items/"),
        ManagementRoute("usage"),
        ManagementRoute("pages/old", menu="Old"),
        ManagementRoute("pages/:id"),
        ManagementRoute(""),
    )
    resources: ClassVar[Sequence[ResourceRoute]] = (
        ResourceRoute("status", "Status", "How it is"),
        ResourceRoute("/plugins/pages/deep/er"),
        ResourceRoute("../escape"),
    )

    def __init__(self) -> None:
        self.seen: list[ManagementRequest] = []
        self.runs: list[CommandLineExecutionRequest] = []

    async def handle_management(self, request: ManagementRequest) -> ManagementResponse:
        self.seen.append(request)
        if request.body == b"fail":
            raise errors.Internal("broken inside")
        headers = [(b"content-type", b"text/plain"), (b"Set-Cookie", b"a=b"), (b"x-own", b"1")]
        return ManagementResponse(f"{request.path} here".encode(), 201, headers)

    flags: ClassVar[Sequence[CommandLineFlag]] = (
        CommandLineFlag("count", "How often", CommandLineFlagType.INT, "1"),
        CommandLineFlag("loud"),
        CommandLineFlag("help"),
        CommandLineFlag("bad name"),
    )

    async def execute_command_line(
        self, request: CommandLineExecutionRequest
    ) -> CommandLineExecutionResponse:
        self.runs.append(request)
        return CommandLineExecutionResponse(b"out\n", b"err\n", exit_code=3)


class Rival(Pages):
    id: ClassVar = "rival"


def manage(hosted: Hosted, access: Access | None = None) -> httpx.AsyncClient:
    """Return a client of the management API over the plugins."""

    async def usage(_: float | None, __: str) -> list[dict[str, Any]]:
        return [{"builtin": True}]

    ports = ManagementPorts(
        health=HealthApp({}, NoMetrics()),
        snapshot=lambda: hosted.snapshot,
        usage=usage,
        plugins=hosted.registry.status,
        pool=Pool(None),  # type: ignore[arg-type] # not asked
        plugin_pages=ManagementPlugins(
            hosted.registry, hosted.hooks, hosted.calls, lambda: hosted.snapshot
        ),
        command_lines=CommandLines(hosted.hooks, hosted.calls, lambda: hosted.snapshot),
    )
    app = build_management_app(ports, access or Access(open_reads=True))
    return httpx.AsyncClient(
        transport=httpx.ASGITransport(app, raise_app_exceptions=False),
        base_url="http://127.0.0.1:8081",
        headers={"content-type": "application/json"},
    )


ACCESS = Access(token="test-token")
KEY = {"authorization": "Bearer test-token", "x-mine": "1"}


@pytest.mark.parametrize("channel", CHANNELS)
async def test_route_gets_the_request_without_the_callers_key(channel: str) -> None:
    plugin = Pages()
    async with hosting([plugin], channel) as hosted, manage(hosted, ACCESS) as http:
        url = "/v0/management/pages/echo?a=1&a=2&key=test-secret"
        answer = await http.post(url, headers=KEY, content=b"body")
        assert (await http.get("/v0/management/pages/items", headers=KEY)).status_code == 201
    assert (answer.status_code, answer.text) == (201, "/v0/management/pages/echo here")
    assert answer.headers["x-own"] == "1"
    assert "set-cookie" not in answer.headers
    seen = plugin.seen[0]
    assert (seen.method, seen.body) == ("POST", b"body")
    assert list(seen.query) == [("a", "1"), ("a", "2")]
    assert (b"x-mine", b"1") in list(seen.headers)
    assert not any(name == b"authorization" for name, _ in seen.headers)


@pytest.mark.parametrize("channel", CHANNELS)
async def test_page_is_sandboxed_and_gets_no_body(channel: str) -> None:
    plugin = Pages()
    async with hosting([plugin], channel) as hosted, manage(hosted, ACCESS) as http:
        http.headers.update(KEY)
        answer = await http.get("/v0/resource/plugins/pages/status")
        assert (await http.get("/v0/resource/plugins/pages/deep/er")).status_code == 201
        assert (await http.get("/v0/resource/plugins/pages/pages/old")).status_code == 201
        assert (await http.get("/v0/resource/plugins/pages/escape")).status_code == 404
        assert (await http.get("/v0/resource/plugins/other/status")).status_code == 404
        assert (await http.post("/v0/resource/plugins/pages/status")).status_code == 405
    assert answer.status_code == 201
    assert answer.headers["content-security-policy"].startswith("sandbox")
    assert plugin.seen[0].body == b""


async def test_pages_and_routes_need_a_key() -> None:
    async with hosting([Pages()]) as hosted, manage(hosted, ACCESS) as http:
        for path in ("/v0/management/pages/items", "/v0/resource/plugins/pages/status"):
            assert (await http.get(path)).status_code == 401


async def test_own_routes_are_never_taken_over() -> None:
    plugin = Pages()
    async with hosting([plugin]) as hosted, manage(hosted) as http:
        assert (await http.get("/v0/management/usage")).json() == [{"builtin": True}]
        assert (await http.post("/v0/management/usage", headers=KEY)).status_code in {401, 405}
    assert not plugin.seen


@pytest.mark.parametrize("channel", CHANNELS)
async def test_failure_is_a_502_in_plain_text(channel: str) -> None:
    async with hosting([Pages()], channel) as hosted, manage(hosted, ACCESS) as http:
        answer = await http.post("/v0/management/pages/echo", headers=KEY, content=b"fail")
    assert answer.status_code == 502
    assert answer.headers["content-type"].startswith("text/plain")
    assert "broken inside" not in answer.text


async def test_first_by_priority_has_a_route_of_two() -> None:
    first, second = Pages(), Rival()
    async with hosting([first, second]) as hosted, manage(hosted) as http:
        await http.get("/v0/management/pages/items")
        await http.get("/v0/resource/plugins/rival/status")
    assert len(first.seen) == len(second.seen) == 1


async def test_public_pages_are_those_of_public_plugins() -> None:
    public = {"public": True}
    path = "/v0/resource/plugins/{}/status"
    async with hosting([Pages(), Rival()], rival=public) as hosted:
        pages = ManagementPlugins(
            hosted.registry, hosted.hooks, hosted.calls, lambda: hosted.snapshot
        )
        assert await pages.page(path.format("pages"), public=True) is None
        assert await pages.page(path.format("rival"), public=True) is not None


class Commands(CommandLinePlugin):
    id: ClassVar = "commands"
    name: ClassVar = "Commands"
    version: ClassVar = "1"
    author: ClassVar = "tests"


async def test_plugin_without_pages_has_none_beside_one_with() -> None:
    async with hosting([Pages(), Commands()]) as hosted, manage(hosted) as http:
        answer = await http.get("/v0/resource/plugins/commands/status")
    assert answer.status_code == 404


class Registering:
    """Plugins that answer what they register when a test lets them: registry, hooks and calls in one."""

    generation = 0

    def __init__(self, *ids: str) -> None:
        self.answers = {id_: asyncio.Event() for id_ in ids}
        self.asked = {id_: asyncio.Event() for id_ in ids}
        self.here: list[str] = []

    def of(self, snapshot: Any, capability: str) -> tuple[Any, ...]:
        return tuple(SimpleNamespace(plugin_id=id_) for id_ in self.here)

    def declaring(self, plugin_id: str, capability: str) -> tuple[str, ...]:
        return (plugin_id,)

    async def unary(self, hook: Any, *_: Any, **__: Any) -> Any:
        self.asked[hook.plugin_id].set()
        await self.answers[hook.plugin_id].wait()
        answer = management_api_pb2.ManagementRegistrationResponse()
        answer.routes.add(path=f"{hook.plugin_id}/items")
        return answer


async def test_route_of_a_plugin_that_came_while_another_was_asked_is_found() -> None:
    plugins: Any = Registering("one", "two")
    pages = ManagementPlugins(
        plugins, plugins, plugins, lambda: Snapshot(version=1), patience=float(60)
    )
    plugins.here = ["one"]
    async with asyncio.timeout(60):
        before = asyncio.create_task(pages.route("GET", "/v0/management/nobody"))
        await plugins.asked["one"].wait()
        plugins.here = ["one", "two"]
        after = asyncio.create_task(pages.route("GET", "/v0/management/two/items"))
        await plugins.asked["two"].wait()
        plugins.answers["two"].set()
        for _ in range(5):
            await asyncio.sleep(0)
        plugins.answers["one"].set()
        found = await after
        assert await before is None
    assert found is not None
    assert found.plugin_id == "two"


async def test_list_tells_menus_policies_and_breaker() -> None:
    async with hosting([Pages()]) as hosted, manage(hosted) as http:
        await http.get("/v0/resource/plugins/pages/status")
        (row,) = (await http.get("/v0/management/plugins")).json()
    assert [(m["path"], m["menu"]) for m in row["menus"]] == [
        ("/v0/resource/plugins/pages/pages/old", "Old"),
        ("/v0/resource/plugins/pages/status", "Status"),
    ]
    assert row["policy"]["management_api"] == {"deadline": 30.0, "on_error": "502 plain text"}
    assert row["breaker"] == "closed"
    assert row["calls"] >= 2
    assert row["latency_ms"] > 0
    assert row["addresses"][0]["capabilities"] == ["command_line_plugin", "management_api"]


@pytest.mark.parametrize("channel", CHANNELS)
async def test_command_line_runs_with_its_flags(channel: str) -> None:
    plugin = Pages()
    async with hosting([plugin], channel) as hosted, manage(hosted, ACCESS) as http:
        flags = await http.get("/v0/management/plugins/pages/command-line", headers=KEY)
        url = "/v0/management/plugins/pages/exec"
        done = await http.post(url, headers=KEY, json={"args": ["--count=2", "-loud", "x"]})
        bad = await http.post(url, headers=KEY, json={"args": ["--count", "two"]})
        unknown = await http.post(url.replace("pages", "nobody"), headers=KEY, json={})
    assert [f["name"] for f in flags.json()] == ["count", "loud"]
    said = {"exit_code": 3, "stdout": "out\n", "stderr": "err\n"}
    assert done.json() == {**said, "credentials": []}, "it returned none to keep"
    assert (bad.status_code, bad.json()["error"]["code"]) == (400, "BAD_FLAG")
    assert (unknown.status_code, unknown.json()["error"]["code"]) == (404, "NO_COMMAND_LINE")
    (run,) = plugin.runs
    assert list(run.args) == ["--count=2", "-loud", "x"]
    assert {name: value.value for name, value in run.triggered_flags.items()} == {
        "count": "2",
        "loud": "true",
    }
    assert run.flags["count"].set


@pytest.mark.parametrize(
    ("args", "values", "rest"),
    [
        (["--n", "5"], {"n": "5"}, []),
        (["-n=5", "--", "--n", "x"], {"n": "5"}, ["--n", "x"]),
        (["a", "--d=15s", "-"], {"d": "15s"}, ["a", "-"]),
        (["--b", "a"], {"b": "true"}, ["a"]),
        (["--b=false"], {"b": "false"}, []),
    ],
)
def test_flags_are_read_as_declared(
    args: list[str], values: dict[str, str], rest: list[str]
) -> None:
    flags = [Flag("n", "int"), Flag("d", "duration"), Flag("b", "bool")]
    assert parse(flags, args) == (values, rest)


@pytest.mark.parametrize("args", [["--n"], ["--n=x"], ["--d=soon"], ["--b=maybe"], ["--other"]])
def test_flags_that_do_not_fit_are_refused(args: list[str]) -> None:
    flags = [Flag("n", "int"), Flag("d", "duration"), Flag("b", "bool")]
    with pytest.raises(errors.InvalidRequest):
        parse(flags, args)
