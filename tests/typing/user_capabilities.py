"""
Every capability as a plugin author writes it, for type checkers alone; nobody runs it.

Lines that must be refused carry `type: ignore` with mypy's code of the refusal: strict mode reports an
ignore that refuses nothing, so a line that begins to pass fails the check.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from patchbay.auth_provider import (
    AuthData,
    AuthProvider,
    AuthRefreshRequest,
    AuthRefreshResponse,
)
from patchbay.command_line import (
    CommandLineExecutionRequest,
    CommandLineExecutionResponse,
    CommandLineFlag,
    CommandLineFlagType,
    CommandLinePlugin,
)
from patchbay.frontend_auth import FrontendAuthProvider, FrontendAuthRequest, FrontendAuthResponse
from patchbay.headers import header, parameter
from patchbay.host_types import HostModelExecutionRequest, HTTPRequest
from patchbay.interceptors import (
    RequestInterceptor,
    RequestInterceptRequest,
    RequestInterceptResponse,
    ResponseInterceptor,
    ResponseInterceptRequest,
    ResponseInterceptResponse,
    StreamChunkInterceptor,
    StreamChunkInterceptRequest,
    StreamChunkInterceptResponse,
    StreamStart,
)
from patchbay.lifecycle import RequestCompletion, RequestCompletionOutcome, RequestLifecyclePlugin
from patchbay.management import ManagementAPI, ManagementRequest, ManagementResponse, ResourceRoute
from patchbay.models import (
    AuthModelRequest,
    ModelInfo,
    ModelProvider,
    ModelRegistrar,
    ModelRegistrationRequest,
    ModelRegistrationResponse,
    ModelResponse,
    StaticModelRequest,
    ThinkingSupport,
)
from patchbay.router import ModelRouter, ModelRouteRequest, ModelRouteResponse
from patchbay.scheduler_plugin import (
    SchedulerBuiltin,
    SchedulerPickRequest,
    SchedulerPickResponse,
    SchedulerPlugin,
)
from patchbay.serve import serve
from patchbay.thinking import ThinkingApplier, ThinkingApplyRequest, ThinkingMode
from patchbay.transform import (
    RequestNormalizer,
    RequestTransformRequest,
    RequestTranslator,
    ResponseAfterTranslator,
    ResponseBeforeTranslator,
    ResponseTransformRequest,
    ResponseTranslator,
)
from patchbay.usage_plugin import UsagePlugin, UsageRecord

if TYPE_CHECKING:
    from collections.abc import Sequence


class Catalogue(ModelRegistrar, ModelProvider):
    """Tells models."""

    id: ClassVar = "catalogue"
    name: ClassVar = "Catalogue"
    version: ClassVar = "1.0.0"
    author: ClassVar = "You"

    async def register_models(self, request: ModelRegistrationRequest) -> ModelRegistrationResponse:
        """Return one."""
        return ModelRegistrationResponse("parrot", [ModelInfo("parrot-1")])

    async def static_models(self, request: StaticModelRequest) -> ModelResponse:
        """Return one with reasoning."""
        hidden: Sequence[str] = request.host.excluded_models.get("parrot", ())
        thinking = ThinkingSupport(min=1, max=8, levels=("low", "high"))
        return ModelResponse([ModelInfo("parrot-1", thinking=thinking)] if not hidden else [])

    async def models_for_auth(self, request: AuthModelRequest) -> ModelResponse:
        """Return what the account has."""
        _ = request.secret["access_token"]  # type: ignore[index]  # there may be none
        if request.secret is not None:
            request.secret.check(request.base_url)
            answer = await request.callbacks.http_do(HTTPRequest(request.base_url))
            count: int = answer.status_code
            return ModelResponse([ModelInfo(f"parrot-{count}")])
        return ModelResponse(["parrot-1"])  # type: ignore[list-item]  # names are no models


class Doorkeeper(FrontendAuthProvider, AuthProvider):
    """Knows clients and credentials."""

    id: ClassVar = "doorkeeper"
    exclusive: ClassVar = True

    async def authenticate(self, request: FrontendAuthRequest) -> FrontendAuthResponse | None:
        """Let in who has the word."""
        if header(request.headers, "x-word") == "test-word":
            return FrontendAuthResponse("friend", {"tenant": "blue"})
        if parameter(request.query, "word"):
            return FrontendAuthResponse(authenticated=True)  # type: ignore[call-arg]  # who is it?
        return None

    async def refresh_auth(self, request: AuthRefreshRequest) -> AuthRefreshResponse:
        """Get a new token."""
        request.secret().check("https://parrot.example")
        return AuthRefreshResponse(
            AuthData(storage={"access_token": "test-access"}, expires_at=4e9)
        )


class Chooser(SchedulerPlugin, ModelRouter):
    """Chooses credentials and routes."""

    async def pick(self, request: SchedulerPickRequest) -> SchedulerPickResponse | None:
        """Choose the idle one."""
        best = min(request.candidates, key=lambda candidate: candidate.in_flight)
        if best.status == "probing":
            return SchedulerPickResponse(delegate_builtin=SchedulerBuiltin.ROUND_ROBIN)
        return SchedulerPickResponse(best.id)

    async def route_model(self, request: ModelRouteRequest) -> ModelRouteResponse | None:
        """Send parrots home."""
        if "openai" not in request.available_providers:
            return ModelRouteResponse.to_provider("parrot", model="parrot-1")
        return ModelRouteResponse("self")  # type: ignore[arg-type]  # a kind is a member, not a word


class Filter(RequestInterceptor, ResponseInterceptor, StreamChunkInterceptor[list[bytes]]):
    """Intercepts everything."""

    needs_request_body: ClassVar = False

    async def intercept_request_before_auth(
        self, request: RequestInterceptRequest
    ) -> RequestInterceptResponse | None:
        """End what is forbidden."""
        if request.metadata.get("forbidden"):
            return RequestInterceptResponse(
                terminate=True, status_code=429, response_headers=[(b"retry-after", b"1")]
            )
        return RequestInterceptResponse({"x": "y"})  # type: ignore[arg-type]  # headers are pairs

    async def intercept_response(
        self, request: ResponseInterceptRequest
    ) -> ResponseInterceptResponse | None:
        """Ask another model."""
        asked = HostModelExecutionRequest("parrot-1", request.body)
        async with await request.callbacks.execute_model_stream(asked) as stream:
            chunks: list[bytes] = [chunk async for chunk in stream]
        return ResponseInterceptResponse(body=b"".join(chunks), clear_headers=["etag"])

    async def open_stream(self, start: StreamStart) -> list[bytes]:
        """Keep chunks."""
        return [start.original_request]

    async def intercept_stream_chunk(
        self, request: StreamChunkInterceptRequest, state: list[bytes]
    ) -> StreamChunkInterceptResponse | None:
        """Drop repetitions."""
        state.append("text")  # type: ignore[arg-type]  # the state is of bytes
        if request.history_chunks and request.history_chunks[-1] == request.body:
            return StreamChunkInterceptResponse(drop_chunk=True)
        return None


class Transformer(
    RequestTranslator,
    RequestNormalizer,
    ResponseTranslator,
    ResponseBeforeTranslator,
    ResponseAfterTranslator,
    ThinkingApplier,
):
    """Turns payloads."""

    async def translate_request(self, request: RequestTransformRequest) -> bytes | None:
        """Translate one pair."""
        return request.body if (request.from_format, request.to_format) == ("a", "b") else None

    async def normalize_request(self, request: RequestTransformRequest) -> str:  # type: ignore[override]  # payloads are bytes
        """Return a string."""
        return request.model

    async def translate_response(self, request: ResponseTransformRequest) -> bytes | None:
        """Count chunks."""
        request.state["chunks"] = request.state.get("chunks", 0) + 1
        return request.body

    async def apply_thinking(self, request: ThinkingApplyRequest) -> bytes | None:
        """Write a budget."""
        if request.config is not None and request.config.mode is ThinkingMode.BUDGET:
            return request.body + str(request.config.budget).encode()
        return None


class Listener(RequestLifecyclePlugin, UsagePlugin):
    """Hears of ends."""

    async def handle_request_complete(self, request: RequestCompletion) -> None:
        """Log failures."""
        if request.outcome is RequestCompletionOutcome.FAILED:
            await request.callbacks.log("warn", request.error, status=request.status_code)

    async def handle_usage(self, record: UsageRecord) -> None:
        """Add up."""
        tokens: int = record.detail.total_tokens  # type: ignore[union-attr]  # there may be none
        record.cost_nano = tokens  # type: ignore[misc]  # a record is its sender's


class Console(CommandLinePlugin, ManagementAPI):
    """Has commands and pages."""

    flags: ClassVar[Sequence[CommandLineFlag]] = (
        CommandLineFlag("login", "Log in"),
        CommandLineFlag("count", type=CommandLineFlagType.INT, default_value="1"),
    )
    resources: ClassVar[Sequence[ResourceRoute]] = (ResourceRoute("status", menu="Status"),)

    async def execute_command_line(
        self, request: CommandLineExecutionRequest
    ) -> CommandLineExecutionResponse:
        """Say hello."""
        count: str = request.flags["count"].value
        return CommandLineExecutionResponse(f"hello {count}\n".encode())

    async def handle_management(self, request: ManagementRequest) -> ManagementResponse:
        """Serve the page."""
        return ManagementResponse(b"<p>fine", headers=[(b"content-type", b"text/html")])


def main() -> None:
    """Serve all at one address."""
    serve(Catalogue(), Doorkeeper(), Chooser(), Filter(), Transformer(), Listener(), Console())
