"""
The edge's pipeline over fakes in memory: a scheduler with a small pool, executors that say what a test wrote.

Runs in virtual time (virtual_time.py): waits cost nothing. Not here: HTTP, real schedulers.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from patchbay import errors
from patchbay.plugin.v1 import executor_pb2, plugin_pb2
from patchbay.scheduler.v1 import scheduler_pb2
from patchbay_gateway.edge.auth import Authenticator
from patchbay_gateway.edge.budget import ByteBudget
from patchbay_gateway.edge.counting import EdgeCounts
from patchbay_gateway.edge.deciding import Decider
from patchbay_gateway.edge.dialects.table import dialects
from patchbay_gateway.edge.exchange import ClientGone, Head
from patchbay_gateway.edge.judging import Judge
from patchbay_gateway.edge.leases import Leases
from patchbay_gateway.edge.pipeline import Pipeline
from patchbay_gateway.edge.refreshes import Refreshes
from patchbay_gateway.edge.routes.request import RoutedRequest
from patchbay_gateway.edge.steps import PluginSteps
from patchbay_gateway.kernel.channels import methods
from patchbay_gateway.kernel.telemetry import Metrics, NoMetrics
from patchbay_gateway.plugins.calls import PluginCalls
from patchbay_gateway.plugins.distribution import SnapshotHolder
from patchbay_gateway.plugins.snapshot import (
    ClientKeyEntry,
    CredentialEntry,
    ModelEntry,
    PluginEntry,
    ProviderEntry,
    RouteEntry,
    SettingsEntry,
    Snapshot,
)
from patchbay_gateway.translate.native import native_registry

Answer = errors.PatchbayError | bytes | Sequence[bytes | float | errors.PatchbayError]
"""An error; a whole body; or events of a stream with pauses in seconds between, and perhaps an error."""


class LoopClock:
    """The running loop's time as a clock, unix time included."""

    def now(self) -> float:
        return 1_800_000_000.0 + asyncio.get_running_loop().time()

    def monotonic(self) -> float:
        return asyncio.get_running_loop().time()

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)


@dataclass
class Script:
    """What providers answer, what is cooling down, and what was seen."""

    answers: dict[tuple[str, str], list[Answer]] = field(default_factory=lambda: defaultdict(list))
    """(credential, upstream model) → answers in order; the last one stays."""
    default: Answer = b'{"ok":true}'
    blocked: dict[str, float] = field(default_factory=dict)
    """Credential → loop time until which it cools down."""
    cooling: float = 0.0
    """Seconds for which a credential that a fault is held against cools down."""
    refusal: scheduler_pb2.Refusal | None = None
    """What every Acquire is told."""
    refusals: list[scheduler_pb2.Refusal] = field(default_factory=list)
    """What the first ones are told."""
    refreshable: bool = False
    refresh: list[errors.PatchbayError | int] = field(default_factory=list)
    """Answers to RefreshCredential: the new version, or an error."""
    headers: dict[str, str] = field(default_factory=dict)
    """Of good answers."""
    content_type: str = "application/json"
    """Of good answers in one piece."""

    acquired: list[scheduler_pb2.AcquireItem] = field(default_factory=list)
    reports: list[scheduler_pb2.ReportItem] = field(default_factory=list)
    refreshed: list[tuple[str, int]] = field(default_factory=list)
    called: list[tuple[str, str]] = field(default_factory=list)
    """(credential, upstream model) of each call, in order."""
    requests: list[executor_pb2.ExecutorRequest] = field(default_factory=list)
    versions: dict[str, int] = field(default_factory=lambda: defaultdict(lambda: 1))


class FakeScheduler:
    """A pool of the snapshot's credentials, in order of their ids."""

    def __init__(self, script: Script, snapshot: Snapshot) -> None:
        self._script = script
        self._snapshot = snapshot

    async def call(self, method: Any, request: Any, *, deadline: float) -> Any:
        await asyncio.sleep(0)
        if method is methods.ACQUIRE:
            return scheduler_pb2.AcquireResponse(results=[self._acquire(i) for i in request.items])
        if method is methods.REFRESH_CREDENTIAL:
            return await self._refresh(request)
        raise AssertionError(method)

    async def _refresh(self, request: Any) -> scheduler_pb2.RefreshCredentialResponse:
        self._script.refreshed.append((request.credential_id, request.version))
        await asyncio.sleep(1)
        answer = self._script.refresh.pop(0)
        if isinstance(answer, errors.PatchbayError):
            raise answer
        self._script.versions[request.credential_id] = answer
        return scheduler_pb2.RefreshCredentialResponse(version=answer)

    def _acquire(self, item: scheduler_pb2.AcquireItem) -> scheduler_pb2.AcquireResult:
        script = self._script
        script.acquired.append(item)
        if script.refusals:
            return scheduler_pb2.AcquireResult(refusal=script.refusals.pop(0))
        if script.refusal is not None:
            return scheduler_pb2.AcquireResult(refusal=script.refusal)
        now = asyncio.get_running_loop().time()
        tried = {(t.credential_id, t.upstream_model) for t in item.tried}
        wanted = []
        for provider in self._snapshot.providers:
            models = [
                target.model
                for target in self._snapshot.targets[item.attempt.model]
                if target.provider == provider.name
            ]
            for credential in provider.credentials:
                if (
                    provider.name not in item.providers
                    or credential.id in item.exclude_credential_ids
                    or provider.retry.rounds < item.round
                    or item.pinned_credential_id not in {"", credential.id}
                ):
                    continue
                wanted += [
                    (provider, credential, m) for m in models if (credential.id, m) not in tried
                ]
        wanted.sort(key=lambda w: w[1].id != item.prefer_credential_id)
        for provider, credential, model in wanted:
            if script.blocked.get(credential.id, 0) <= now:
                lease = scheduler_pb2.Lease(
                    attempt=item.attempt,
                    credential_version=script.versions[credential.id],
                    refreshable=script.refreshable,
                )
                lease.attempt.credential_id = credential.id
                lease.attempt.provider = provider.name
                lease.attempt.plugin_id = provider.plugin
                lease.attempt.upstream_model = model
                return scheduler_pb2.AcquireResult(lease=lease)
        refusal = scheduler_pb2.Refusal(
            code=14, reason="CREDENTIALS_TRIED", message="all were tried"
        )
        if wanted:
            refusal = scheduler_pb2.Refusal(
                code=8, reason="MODEL_COOLDOWN", message="all credentials are cooling down"
            )
            first = min(script.blocked[credential.id] for _, credential, _ in wanted)
            refusal.retry_after.FromMilliseconds(int((first - now) * 1000))
        return scheduler_pb2.AcquireResult(refusal=refusal)


class FakeChannel:
    """Answers as the script says."""

    def __init__(self, script: Script) -> None:
        self._script = script

    def _next(self, request: executor_pb2.ExecutorRequest) -> Answer:
        key = (request.auth_id, request.model)
        self._script.called.append(key)
        self._script.requests.append(request)
        answers = self._script.answers[key]
        answer = answers[0] if answers else self._script.default
        if len(answers) > 1:
            answers.pop(0)
        return answer

    async def unary(self, method: Any, request: Any, *, deadline: Any, metadata: Any = ()) -> Any:
        answer = self._next(request)
        await asyncio.sleep(0)
        if isinstance(answer, errors.PatchbayError):
            raise answer
        assert isinstance(answer, bytes)
        response = executor_pb2.ExecutorResponse(
            payload=answer, status=200, content_type=self._script.content_type
        )
        for name, value in self._script.headers.items():
            response.headers[name].values.append(value)
        return response

    def stream(self, method: Any, request: Any, *, deadline: Any, metadata: Any = ()) -> Any:
        return FakeStream(self._next(request), self._script.headers)


class FakeStream:
    """One streamed answer."""

    def __init__(self, answer: Answer, headers: dict[str, str]) -> None:
        self._parts = self._run(answer, headers)
        self._cancelled = asyncio.Event()

    def __aiter__(self) -> Any:
        return self._parts

    async def _run(self, answer: Answer, headers: dict[str, str]) -> Any:
        await asyncio.sleep(0)
        if isinstance(answer, errors.PatchbayError):
            raise answer
        assert not isinstance(answer, bytes)
        part = executor_pb2.ExecutorStreamResponse()
        part.head.status = 200
        for name, value in headers.items():
            part.head.headers[name].values.append(value)
        yield part
        for each in answer:
            if isinstance(each, (int, float)):
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._cancelled.wait(), each)
                if self._cancelled.is_set():
                    raise errors.Cancelled("the call was cancelled")
            elif isinstance(each, errors.PatchbayError):
                raise each
            else:
                part = executor_pb2.ExecutorStreamResponse()
                part.batch.chunks.append(each)
                yield part
        part = executor_pb2.ExecutorStreamResponse()
        part.tail.SetInParent()
        yield part

    def cancel(self) -> None:
        self._cancelled.set()

    async def aclose(self) -> None:
        await self._parts.aclose()


class FakeMember:
    """One address of every plugin."""

    address = "here"
    ready = True
    registration = None

    def __init__(self, channel: FakeChannel) -> None:
        self.channel = channel
        self.heard = 0
        """Streams that had an answer while they went on."""
        self.seconds = 0.0

    def metadata(self) -> Any:
        return ()

    def begin(self) -> None:
        pass

    def answered(self) -> None:
        self.heard += 1

    def end(self, failed: bool | None, *, draining: bool = False) -> None:
        pass


class FakeRegistry:
    """Every plugin is there and speaks every dialect."""

    def __init__(self, member: FakeMember) -> None:
        self._member = member

    generation = 0

    def declared(self, plugin_id: str) -> frozenset[str]:
        return frozenset({"executor"})

    def needs(self, plugin_id: str) -> plugin_pb2.InterceptorNeeds:
        return plugin_pb2.InterceptorNeeds()

    def executor(self, plugin_id: str) -> plugin_pb2.ExecutorCapability:
        formats = ("openai", "openai-response", "claude", "gemini")
        capability = plugin_pb2.ExecutorCapability(input_formats=formats, output_formats=formats)
        for name in ("openai", "openai-response", "claude", "gemini"):
            capability.operations.add(format=name, operations=["chat", "count_tokens"])
        return capability

    def pick_able(self, plugin_id: str, capability: str, avoid: Sequence[str]) -> FakeMember | None:
        return None if self._member.address in avoid else self._member


class FakeExchange:
    """One client that keeps what it gets."""

    def __init__(
        self, payload: bytes, headers: errors.Headers, key: bytes = b"Bearer test-key"
    ) -> None:
        self.head = Head("POST", "/", b"", [(b"authorization", key), *headers], "::1")
        self.gone: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.status = 0
        self.headers: dict[bytes, bytes] = {}
        self.sent: list[tuple[float, bytes]] = []
        self.finished = self.aborted = False
        self.committed = False
        self._payload = payload

    async def body(self, limit: int, deadline: float, charge: Any = None) -> bytes:
        return self._payload

    async def send_head(self, status: int, headers: errors.Headers) -> None:
        assert not self.committed, "a second head"
        if self.gone.done():
            raise ClientGone
        self.committed = True
        self.status, self.headers = status, dict(headers)

    async def send(self, data: bytes) -> None:
        assert self.committed, "bytes before the head"
        self.sent.append((asyncio.get_running_loop().time(), data))

    async def finish(self) -> None:
        self.finished = True

    async def abort(self) -> None:
        self.aborted = True

    @property
    def answer(self) -> bytes:
        return b"".join(data for _, data in self.sent)

    def leave(self) -> None:
        if not self.gone.done():
            self.gone.set_result(None)


class FakeOutbox:
    """Keeps reports."""

    def __init__(self, script: Script) -> None:
        self._script = script

    def report(self, item: scheduler_pb2.ReportItem) -> None:
        self._script.reports.append(item)
        if item.HasField("fault") and self._script.cooling:
            now = asyncio.get_running_loop().time()
            self._script.blocked[item.attempt.credential_id] = now + self._script.cooling


class Uids:
    """Counts."""

    def __init__(self) -> None:
        self._n = 0

    def mint(self) -> str:
        self._n += 1
        return f"uid{self._n:023}"


def pool(
    *credentials: str, models: Sequence[str] = ("up",), name: str = "p", **fields: Any
) -> ProviderEntry:
    """Return a provider that serves the public model `m` with *models*."""
    return ProviderEntry(
        name=name,
        plugin="x",
        models=tuple(ModelEntry(model, "m") for model in models),
        credentials=tuple(CredentialEntry(c, c, "api_key", 1) for c in credentials),
        **fields,
    )


class Edge:
    """A pipeline over *script* and *providers*. Made inside a running loop."""

    def __init__(
        self,
        script: Script,
        *providers: ProviderEntry,
        settings: SettingsEntry | None = None,
        routes: tuple[RouteEntry, ...] = (),
        metrics: Metrics | None = None,
        models: tuple[str, ...] = ("*",),
        plugins: tuple[PluginEntry, ...] = (),
        registry: FakeRegistry | None = None,
    ) -> None:
        """*models* is the allow-list of the client's key; *registry* knows more than one address."""
        self.snapshot = Snapshot(
            version=1,
            providers=providers,
            plugins=plugins,
            routes=routes,
            client_keys=(ClientKeyEntry("k", "digest of test-key", models),),
            settings=settings or SettingsEntry(),
        )
        self.holder = holder = SnapshotHolder()
        holder.set(self.snapshot)
        clock, outbox = LoopClock(), FakeOutbox(script)
        scheduler = FakeScheduler(script, self.snapshot)
        self.script = script
        self.leases = Leases(
            scheduler, edge_id="e", clock=clock, renew_interval=15, orphaned=lambda _: None
        )
        self.refreshes = Refreshes(scheduler)
        self.member = FakeMember(FakeChannel(script))
        known: Any = registry or FakeRegistry(self.member)
        self.pipeline = Pipeline(
            snapshots=holder,
            registry=known,
            authenticator=Authenticator(lambda key: (f"digest of {key}",), allow_open=False),
            budget=ByteBudget(lambda: 0),
            leases=self.leases,
            outbox=outbox,  # type: ignore[arg-type]
            uids=Uids(),  # type: ignore[arg-type]
            clock=clock,
            installation="i",
            decider=Decider(Judge(clock), self.refreshes),
            counts=EdgeCounts(metrics or NoMetrics()),
            plugins=PluginSteps(known, PluginCalls(known), native_registry(), dialects()),
            random=lambda: 1.0,
        )

    async def ask(
        self,
        payload: bytes = b'{"model":"m"}',
        *,
        dialect: str = "openai",
        leaves_after: float | None = None,
        headers: errors.Headers | None = None,
        key: bytes = b"Bearer test-key",
        **fields: Any,
    ) -> FakeExchange:
        """Send one request and return the client when it is over."""
        exchange = FakeExchange(payload, headers or [], key)
        values = {
            "dialect": dialects()[dialect],
            "operation": "chat",
            "exchange": exchange,
            "model_from_path": None,
            "stream_from_path": None,
            "alt": "",
            "request_id": "req-1",
            "client_request_id": None,
            **fields,
        }
        timer = None
        if leaves_after is not None:
            timer = asyncio.get_running_loop().call_later(leaves_after, exchange.leave)
        task = asyncio.create_task(self.pipeline.run(RoutedRequest(**values)))
        try:
            with contextlib.suppress(ClientGone):
                await task
        finally:
            if timer is not None:
                timer.cancel()
        return exchange
