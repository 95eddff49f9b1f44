"""The management application: probes, metrics, API, refusals."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx
import pytest

from patchbay import errors
from patchbay.scheduler.v1 import scheduler_pb2
from patchbay_gateway.edge.management.access import Access
from patchbay_gateway.edge.management.app import build_management_app
from patchbay_gateway.edge.management.pool import Pool
from patchbay_gateway.edge.management.port import ManagementPorts
from patchbay_gateway.kernel.channels import methods
from patchbay_gateway.kernel.clock import ManualClock
from patchbay_gateway.kernel.health import HealthApp
from patchbay_gateway.kernel.telemetry import NoMetrics
from patchbay_gateway.plugins.snapshot import (
    ClientKeyEntry,
    CredentialEntry,
    ModelEntry,
    PluginEntry,
    ProviderEntry,
    RouteEntry,
    Snapshot,
    TargetEntry,
)

SNAPSHOT = Snapshot(
    7,
    plugins=(PluginEntry("echo", builtin=True, config="password: test-secret"),),
    routes=(RouteEntry("big", (TargetEntry("p", "m"),)),),
    providers=(
        ProviderEntry(
            "p",
            "echo",
            proxy_url="http://me:test-secret@proxy:3128",
            models=(ModelEntry("m", "public"),),
            credentials=(
                CredentialEntry("c", "abc", "api_key", 1, fingerprint="test-secret", prefix="team"),
            ),
        ),
    ),
    client_keys=(ClientKeyEntry("laptop", digest="test-secret"),),
)
ROW = {"model": "m", "requests": 1, "cost_nano": 5}


def cooling() -> scheduler_pb2.CredentialStatus:
    """Return a credential that cools for one model until 2026-01-02T03:04:05Z."""
    status = scheduler_pb2.CredentialStatus(
        id="main", provider="p", plugin_id="openai-compatible", kind="oauth2", version=3
    )
    model = status.models.add(model="m", upstream_model="up", state="cooling", reason="QUOTA")
    model.until.FromJsonString("2026-01-02T03:04:05Z")
    model.last_error.message = "slow down"
    model.last_error.http_status = 429
    status.refresh.state = "ok"
    status.rate_limits.add(unit="tokens", limit=10, remaining=-1)
    return status


class Process:
    """What an edge would answer."""

    def __init__(self) -> None:
        self.snapshot: Snapshot | None = SNAPSHOT
        self.reason: str | None = None
        self.asked: list[tuple[float | None, str]] = []
        self.failure: Exception | None = None
        self.calls: list[tuple[str, Any]] = []
        self.credentials = [cooling()]
        self.models = scheduler_pb2.ListModelsResponse()

    async def usage(self, since: float | None, by: str) -> list[dict[str, Any]]:
        self.asked.append((since, by))
        if self.failure is not None:
            raise self.failure
        return [ROW]

    async def call(self, method: Any, request: Any, *, deadline: float) -> Any:
        """Answer as a scheduler would."""
        assert deadline > 0
        self.calls.append((method.path.rpartition("/")[2], request))
        if self.failure is not None:
            raise self.failure
        if method is methods.LIST_CREDENTIALS:
            wanted = [c for c in self.credentials if not request.ids or c.id in request.ids]
            return scheduler_pb2.ListCredentialsResponse(credentials=wanted)
        if method is methods.LIST_MODELS:
            return self.models
        return self.credentials[0]

    def ports(self) -> ManagementPorts:
        return ManagementPorts(
            health=HealthApp({"snapshot": lambda: self.reason}, NoMetrics()),
            snapshot=lambda: self.snapshot,
            usage=self.usage,
            plugins=lambda: [{"id": "echo", "ready": True}],
            pool=Pool(self),
        )


@pytest.fixture
def process() -> Process:
    return Process()


def client(
    process: Process, access: Access | None = None, base: str = "http://127.0.0.1:8081"
) -> httpx.AsyncClient:
    app = build_management_app(
        process.ports(), access or Access(open_reads=True), clock=ManualClock(1_000_000.0)
    )
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    return httpx.AsyncClient(transport=transport, base_url=base)


async def test_livez_and_readyz_answer_without_key_and_by_any_name(process):
    async with client(process, Access(), base="http://10.1.2.3:8081") as http:
        assert (await http.get("/livez")).status_code == 200
        assert (await http.get("/readyz")).json()["ready"] is True
        process.reason = "no snapshot yet"
        failing = await http.get("/readyz")

    assert failing.status_code == 503
    assert failing.json()["failing"] == {"snapshot": "no snapshot yet"}


async def test_metrics_need_no_key_but_no_foreign_host_may_read_an_open_one(process):
    async with client(process, Access()) as http:
        assert (await http.get("/metrics")).status_code == 200
    async with client(process, base="http://evil.example") as http:
        assert (await http.get("/metrics")).status_code == 403


@pytest.mark.parametrize(
    "path",
    ["/v0/management/usage", "/v0/management/snapshot", "/v0/management/nothing", "/elsewhere"],
)
async def test_without_key_everything_else_is_401(process, path):
    async with client(process, Access(token="test-token")) as http:
        answer = await http.get(path)

    assert answer.status_code == 401
    assert answer.headers["www-authenticate"].startswith("Bearer")
    assert answer.json()["error"]["code"] == "UNAUTHENTICATED"
    assert process.asked == []


async def test_usage_takes_a_duration_back_from_now(process):
    async with client(process) as http:
        answer = await http.get("/v0/management/usage", params={"since": "1h", "by": "client-key"})

    assert answer.json() == [ROW]
    assert process.asked == [(1_000_000.0 - 3600, "client-key")]
    assert answer.headers["cache-control"] == "no-store"


@pytest.mark.parametrize(
    ("since", "expected"),
    [
        ("", None),
        ("1970-01-02T00:00:00Z", 86400.0),
        ("1970-01-02T01:00:00+01:00", 86400.0),
        ("1970-01-02", 86400.0),
        ("1234.5", 1234.5),
    ],
)
async def test_usage_takes_an_instant(process, since, expected):
    async with client(process) as http:
        answer = await http.get(f"/v0/management/usage?since={since}")

    assert answer.status_code == 200
    assert process.asked == [(expected, "model")]


@pytest.mark.parametrize("query", ["since=soon", "by=colour"])
async def test_usage_with_a_wrong_parameter_is_400_in_our_shape(process, query):
    async with client(process) as http:
        answer = await http.get(f"/v0/management/usage?{query}")

    assert answer.status_code == 400
    assert answer.json()["error"]["code"] == "INVALID_REQUEST"


@pytest.mark.parametrize(
    ("failure", "status"),
    [
        (errors.Unavailable("the usage service is away", retry_after=2.0), 503),
        (errors.DeadlineExceeded("too slow"), 504),
        (errors.Internal("secret detail"), 500),
    ],
)
async def test_usage_that_fails_is_told_with_its_status(process, failure, status):
    process.failure = failure
    async with client(process) as http:
        answer = await http.get("/v0/management/usage")

    assert answer.status_code == status
    assert "secret detail" not in answer.text
    if failure.retry_after:
        assert answer.headers["retry-after"] == "2"


async def test_snapshot_is_shown_without_secrets(process):
    async with client(process) as http:
        answer = await http.get("/v0/management/snapshot")

    shown = answer.json()
    assert shown["version"] == 7
    assert shown["client_keys"] == [{"name": "laptop", "models": ["*"], "tenant": "default"}]
    assert shown["providers"][0]["proxy_url"] == "http://***@proxy:3128"
    assert "test-secret" not in answer.text


async def test_no_snapshot_yet_is_404(process):
    process.snapshot = None
    async with client(process) as http:
        answer = await http.get("/v0/management/snapshot")

    assert (answer.status_code, answer.json()["error"]["code"]) == (404, "NO_SNAPSHOT")


async def test_models_name_what_stands_behind(process):
    async with client(process) as http:
        models = (await http.get("/v0/management/models")).json()

    target = {"provider": "p", "model": "m", "plugin": "echo"}
    unknown: dict[str, Any] = {"available": None, "providers": [], "obstacles": []}
    assert models == [
        {"id": "big", "route": True, "targets": [target], **unknown},
        {"id": "public", "route": False, "targets": [target], **unknown},
        {"id": "team/public", "route": False, "targets": [target], **unknown},
    ]


async def test_plugins_are_those_of_the_registry(process):
    async with client(process) as http:
        assert (await http.get("/v0/management/plugins")).json() == [
            {"id": "echo", "ready": True, "menus": []}
        ]


async def test_docs_page_lists_the_routes_and_loads_nothing(process):
    async with client(process, Access()) as http:
        page = await http.get("/docs")
        document = (await http.get("/openapi.json")).json()
        root = await http.get("/")

    assert all(path in page.text for path in document["paths"])
    assert "<script" not in page.text
    assert "default-src 'none'" in page.headers["content-security-policy"]
    assert root.headers["location"] == "/docs"
    assert set(document["paths"]) == {
        "/v0/management/usage",
        "/v0/management/snapshot",
        "/v0/management/models",
        "/v0/management/login",
        "/v0/management/login/{state}",
        "/v0/management/oauth-callback",
        "/v0/management/plugins",
        "/v0/management/plugins/{plugin_id}/command-line",
        "/v0/management/plugins/{plugin_id}/exec",
        "/v0/management/auth-files",
        "/v0/management/keys",
        "/v0/management/credentials",
        "/v0/management/credentials/{credential_id}",
        "/v0/management/credentials/{credential_id}/reset",
        "/v0/management/credentials/{credential_id}/disable",
        "/v0/management/credentials/{credential_id}/enable",
    }


async def test_unknown_path_and_method_answer_in_our_shape(process):
    async with client(process, Access(token="test-token")) as http:
        http.headers["authorization"] = "Bearer test-token"
        unknown = await http.get("/v0/management/nothing")
        wrong = await http.post("/v0/management/usage")

    assert (unknown.status_code, unknown.json()["error"]["code"]) == (404, "NOT_FOUND")
    assert (wrong.status_code, wrong.json()["error"]["code"]) == (405, "METHOD_NOT_ALLOWED")


async def test_no_answer_allows_another_origin(process):
    async with client(process) as http:
        answer = await http.options(
            "/v0/management/usage",
            headers={"origin": "https://evil.example", "access-control-request-method": "GET"},
        )

    assert answer.status_code == 403
    assert not [name for name in answer.headers if name.startswith("access-control")]


async def test_first_requests_at_once_load_the_api_once(process):
    async with client(process) as http:
        answers = await asyncio.gather(*(http.get("/v0/management/plugins") for _ in range(5)))

    assert {a.status_code for a in answers} == {200}


async def test_lifespan_is_answered():
    app = build_management_app(Process().ports(), Access())
    incoming = iter([{"type": "lifespan.startup"}, {"type": "lifespan.shutdown"}])
    sent: list[Any] = []

    async def receive() -> Any:
        return next(incoming)

    async def send(message: Any) -> None:
        sent.append(message["type"])

    await app({"type": "lifespan"}, receive, send)

    assert sent == ["lifespan.startup.complete", "lifespan.shutdown.complete"]


async def test_credentials_tell_per_model_why_not_and_until_when(process):
    async with client(process) as http:
        (credential,) = (await http.get("/v0/management/credentials?provider=p")).json()
    assert process.calls[0][1].provider == "p"
    assert credential["id"] == "main"
    assert credential["refresh"]["state"] == "ok"
    assert credential["rate_limits"] == [
        {"unit": "tokens", "limit": 10, "remaining": None, "reset_seconds": None}
    ]
    (model,) = credential["models"]
    assert model["state"] == "cooling"
    assert model["until"] == "2026-01-02T03:04:05Z"
    assert model["last_error"]["http_status"] == 429


async def test_one_credential_or_404(process):
    async with client(process) as http:
        assert (await http.get("/v0/management/credentials/main")).json()["id"] == "main"
        missing = await http.get("/v0/management/credentials/nobody")
    assert missing.status_code == 404
    assert missing.json()["error"]["code"] == "CREDENTIAL_NOT_FOUND"


@pytest.mark.parametrize(
    ("verb", "rpc"),
    [
        ("reset?model=up", "ResetCredential"),
        ("disable", "SetCredentialDisabled"),
        ("enable", "SetCredentialDisabled"),
    ],
)
async def test_switches_reach_the_scheduler(process, verb, rpc):
    async with client(process, Access(open_reads=True, token="test-token")) as http:
        answer = await http.post(
            f"/v0/management/credentials/main/{verb}",
            json={},
            headers={"authorization": "Bearer test-token"},
        )
    assert answer.status_code == 200, answer.text
    ((name, request),) = process.calls
    assert name == rpc
    assert request.credential_id == "main"
    if name == "ResetCredential":
        assert request.upstream_model == "up"
    else:
        assert request.disabled == (verb == "disable")


async def test_what_the_configuration_disables_cannot_be_enabled_here(process):
    process.failure = errors.FailedPrecondition("it is in the file", reason="BY_CONFIGURATION")
    async with client(process, Access(token="test-token")) as http:
        answer = await http.post(
            "/v0/management/credentials/main/enable",
            json={},
            headers={"authorization": "Bearer test-token"},
        )
    assert answer.status_code == 409
    assert answer.json()["error"]["message"] == "it is in the file"


async def test_models_tell_what_stands_in_the_way(process):
    model = process.models.models.add(id="public", available=False)
    obstacle = model.obstacles.add(provider="p", credential_id="main", reason="cooling")
    obstacle.until.FromJsonString("2026-01-02T03:04:05Z")
    async with client(process) as http:
        found = {m["id"]: m for m in (await http.get("/v0/management/models")).json()}
    assert found["public"]["available"] is False
    assert found["public"]["obstacles"] == [
        {
            "provider": "p",
            "credential": "main",
            "reason": "cooling",
            "until": "2026-01-02T03:04:05Z",
        }
    ]
