"""
Plugins with every capability that break where and how they are told, many of them in processes of their own.

Well, each step turns its own word of the text into capitals, so an answer of the echo provider tells which
steps were passed. A specification says which are broken and how; of some, a file that is read with each call.
Damage that a well-written plugin cannot do (bytes that are no message, answers of 100 MiB, methods that are
not there, a false id) is done below the SDK, in the server. Whatever step is reached is written down.

Run as `plugin.py SPECIFICATION`: forks a process for each address, so that they share what they import, and
kills all of them when it is stopped. SIGHUP has it start anew those that have died and whose file `.again` is
there.
"""

from __future__ import annotations

import asyncio
import contextvars
import functools
import json
import os
import signal
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import grpc

from patchbay import errors
from patchbay.command_line import (
    CommandLineExecutionRequest,
    CommandLineExecutionResponse,
    CommandLinePlugin,
)
from patchbay.executor import (
    Executor,
    ExecutorRequest,
    ExecutorResponse,
    StreamBatch,
    StreamHead,
    StreamTail,
)
from patchbay.frontend_auth import FrontendAuthProvider, FrontendAuthRequest, FrontendAuthResponse
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
)
from patchbay.lifecycle import RequestCompletion, RequestLifecyclePlugin
from patchbay.management import (
    ManagementAPI,
    ManagementRegistrationRequest,
    ManagementRegistrationResponse,
    ManagementRequest,
    ManagementResponse,
    ManagementRoute,
)
from patchbay.models import (
    ModelInfo,
    ModelRegistrar,
    ModelRegistrationRequest,
    ModelRegistrationResponse,
)
from patchbay.router import ModelRouter, ModelRouteRequest, ModelRouteResponse, ModelRouteTargetKind
from patchbay.scheduler_plugin import SchedulerPickRequest, SchedulerPickResponse, SchedulerPlugin
from patchbay.serve import serve
from patchbay.thinking import ThinkingApplier, ThinkingApplyRequest
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
    from collections.abc import AsyncGenerator, Mapping, Sequence

    from patchbay.capability import Plugin
    from patchbay.executor import StreamItem

SERVICE = "/patchbay.plugin.v1."
STEPS = {
    "FrontendAuthProviderService/Authenticate": "auth",
    "ModelRouterService/RouteModel": "route",
    "RequestInterceptorService/InterceptRequestBeforeAuth": "before",
    "RequestInterceptorService/InterceptRequestAfterAuth": "after",
    "RequestNormalizerService/NormalizeRequest": "normalize",
    "RequestTranslatorService/TranslateRequest": "translate",
    "ResponseBeforeTranslatorService/NormalizeResponse": "answerbefore",
    "ResponseBeforeTranslatorService/NormalizeResponseStream": "answerbefore",
    "ResponseTranslatorService/TranslateResponse": "answertranslate",
    "ResponseTranslatorService/TranslateResponseStream": "answertranslate",
    "ResponseAfterTranslatorService/NormalizeResponse": "answerafter",
    "ResponseAfterTranslatorService/NormalizeResponseStream": "answerafter",
    "ResponseInterceptorService/InterceptResponse": "answer",
    "StreamChunkInterceptorService/InterceptStreamChunk": "chunk",
    "ExecutorService/Execute": "execute",
    "ExecutorService/ExecuteStream": "execute",
    "RequestLifecycleService/HandleRequestComplete": "complete",
    "ThinkingApplierService/ApplyThinking": "think",
    "SchedulerPluginService/Pick": "pick",
    "UsagePluginService/HandleUsage": "usage",
    "ManagementAPIService/HandleManagement": "manage",
    "CommandLinePluginService/ExecuteCommandLine": "command",
    "ModelRegistrarService/RegisterModels": "models",
    "PluginService/Register": "register",
}
CAPABILITIES = {
    "auth": "frontend_auth_provider",
    "route": "model_router",
    "before": "request_interceptor",
    "after": "request_interceptor",
    "normalize": "request_normalizer",
    "translate": "request_translator",
    "answerbefore": "response_before_translator",
    "answertranslate": "response_translator",
    "answerafter": "response_after_translator",
    "answer": "response_interceptor",
    "chunk": "response_stream_interceptor",
    "execute": "executor",
    "complete": "request_lifecycle_plugin",
    "think": "thinking_applier",
    "pick": "scheduler",
    "usage": "usage_plugin",
    "manage": "management_api",
    "command": "command_line_plugin",
    "models": "model_registrar",
}
ONCE = frozenset({"usage", "models"})
"""Steps that the gateway repeats by itself: broken the first time, so that it is seen to."""


@dataclass
class Told:
    """How one plugin is to be."""

    id: str
    how: str = ""
    """The damage of the broken steps."""
    broken: list[str] = field(default_factory=list)
    letter: str = "e"
    """What its words begin with."""
    format: str = "openai"
    """What its executor takes."""
    orders: str = ""
    """A file, JSON: step to damage; instead of the above."""
    routes: dict[str, str] = field(default_factory=dict)
    """Model to the plugin whose executor has it."""
    met: str = ""
    """A file for the steps that are reached."""

    def damage(self, step: str) -> str:
        """Return how *step* breaks; empty for well."""
        if self.orders:
            path = Path(self.orders)
            orders: dict[str, str] = json.loads(path.read_text()) if path.exists() else {}
            return orders.get(step, "")
        return self.how if step in self.broken else ""

    def reached(self, step: str) -> None:
        """Write down that *step* was."""
        with Path(self.met).open("a", encoding="utf-8") as met:
            met.write(f"{step}\n")
        if step in ONCE and step in self.broken and self.how != "die":
            self.broken.remove(step)


async def suffer(how: str) -> None:
    """Break as told, where a plugin's own code can."""
    if how == "slow":
        await asyncio.sleep(0.02)  # well within every deadline
    elif how == "late":
        await asyncio.Event().wait()
    elif how == "fail":
        raise errors.FailedPrecondition("as told", reason="AS_TOLD")
    elif how == "bug":
        raise RuntimeError("a bug in the plugin")
    elif how == "die":
        os._exit(1)


class Hostile(
    Executor,
    FrontendAuthProvider,
    ModelRouter,
    RequestInterceptor,
    RequestNormalizer,
    RequestTranslator,
    ResponseBeforeTranslator,
    ResponseTranslator,
    ResponseAfterTranslator,
    ResponseInterceptor,
    StreamChunkInterceptor[None],
    RequestLifecyclePlugin,
    ThinkingApplier,
    SchedulerPlugin,
    UsagePlugin,
    ManagementAPI,
    CommandLinePlugin,
    ModelRegistrar,
):
    """All of it."""

    id: ClassVar = "hostile"
    name: ClassVar = "Hostile"
    version: ClassVar = "1"
    author: ClassVar = "tests"
    output_formats: ClassVar[Sequence[str]] = ("openai",)
    told: ClassVar[Told]

    async def marked(self, step: str, body: bytes) -> bytes:
        """Return *body* with the step's word in capitals."""
        await suffer(NOW.get(""))
        word = f"{self.told.letter}-{step}-".encode()
        return body.replace(word, word.upper())

    async def authenticate(self, request: FrontendAuthRequest) -> FrontendAuthResponse | None:
        """Know whoever says so."""
        await suffer(NOW.get(""))
        for name, value in request.headers:
            if (name, value) == (b"x-hostile-user", self.told.letter.encode()):
                return FrontendAuthResponse(authenticated=True, principal=value.decode())
        return None

    async def route_model(self, request: ModelRouteRequest) -> ModelRouteResponse | None:
        """Bring some models to the executors of plugins."""
        await suffer(NOW.get(""))
        if target := self.told.routes.get(request.requested_model):
            return ModelRouteResponse(
                handled=True, target_kind=ModelRouteTargetKind.EXECUTOR, target=target
            )
        return None

    async def intercept_request_before_auth(
        self, request: RequestInterceptRequest
    ) -> RequestInterceptResponse:
        """Mark."""
        return RequestInterceptResponse(body=await self.marked("before", request.body))

    async def intercept_request_after_auth(
        self, request: RequestInterceptRequest
    ) -> RequestInterceptResponse:
        """Mark."""
        return RequestInterceptResponse(body=await self.marked("after", request.body))

    async def normalize_request(self, request: RequestTransformRequest) -> bytes:
        """Mark."""
        return await self.marked("normalize", request.body)

    async def translate_request(self, request: RequestTransformRequest) -> bytes:
        """Mark."""
        return await self.marked("translate", request.body)

    async def normalize_response_before(self, request: ResponseTransformRequest) -> bytes:
        """Mark."""
        return await self.marked("answerbefore", request.body)

    async def translate_response(self, request: ResponseTransformRequest) -> bytes:
        """Mark."""
        return await self.marked("answertranslate", request.body)

    async def normalize_response_after(self, request: ResponseTransformRequest) -> bytes:
        """Mark."""
        return await self.marked("answerafter", request.body)

    async def intercept_response(
        self, request: ResponseInterceptRequest
    ) -> ResponseInterceptResponse:
        """Mark."""
        return ResponseInterceptResponse(body=await self.marked("answer", request.body))

    async def intercept_stream_chunk(
        self, request: StreamChunkInterceptRequest, state: None
    ) -> StreamChunkInterceptResponse:
        """Mark."""
        return StreamChunkInterceptResponse(body=await self.marked("chunk", request.body))

    async def handle_request_complete(self, completion: RequestCompletion) -> None:
        """Hear it."""
        await suffer(NOW.get(""))

    async def apply_thinking(self, request: ThinkingApplyRequest) -> bytes:
        """Mark."""
        return await self.marked("think", request.body)

    async def pick(self, request: SchedulerPickRequest) -> SchedulerPickResponse | None:
        """Take the first."""
        await suffer(NOW.get(""))
        return SchedulerPickResponse(auth_id=request.candidates[0].id)

    async def handle_usage(self, record: UsageRecord) -> None:
        """Take it, and write down that it was taken."""
        await suffer(NOW.get(""))
        self.told.reached("usage-taken")

    async def register_management(
        self, request: ManagementRegistrationRequest
    ) -> ManagementRegistrationResponse:
        """Return a route of our own."""
        return ManagementRegistrationResponse([ManagementRoute(f"{self.id}/do", "POST")])

    async def handle_management(self, request: ManagementRequest) -> ManagementResponse:
        """Be well."""
        await suffer(NOW.get(""))
        return ManagementResponse(b"well")

    async def execute_command_line(
        self, request: CommandLineExecutionRequest
    ) -> CommandLineExecutionResponse:
        """Be well."""
        await suffer(NOW.get(""))
        return CommandLineExecutionResponse(stdout=b"well")

    async def register_models(self, request: ModelRegistrationRequest) -> ModelRegistrationResponse:
        """Return a model of our own."""
        await suffer(NOW.get(""))
        return ModelRegistrationResponse("echo", [ModelInfo(id=f"{self.id}-model")])

    async def execute(self, request: ExecutorRequest) -> ExecutorResponse:
        """Answer as a provider would."""
        await suffer(NOW.get(""))
        message = {"role": "assistant", "content": f"well {request.message.payload.decode()}"}
        choice = {"index": 0, "message": message, "finish_reason": "stop"}
        answer = {"id": "h", "object": "chat.completion", "model": "h", "choices": [choice]}
        return ExecutorResponse(json.dumps(answer).encode(), content_type="application/json")

    async def execute_stream(self, request: ExecutorRequest) -> AsyncGenerator[StreamItem, None]:
        """Answer in one word."""
        await suffer(NOW.get(""))
        yield StreamHead(200, [], "text/event-stream")
        delta: dict[str, Any] = {"index": 0, "delta": {"content": "well"}, "finish_reason": None}
        yield StreamBatch([b"data: " + json.dumps({"choices": [delta]}).encode() + b"\n\n"])
        end = {"index": 0, "delta": {}, "finish_reason": "stop"}
        yield StreamBatch([b"data: " + json.dumps({"choices": [end]}).encode() + b"\n\n"])
        yield StreamBatch([b"data: [DONE]\n\n"])
        yield StreamTail(None)


class Exclusive(FrontendAuthProvider):
    """Knows one client, and wants to be the only one asked."""

    id: ClassVar = "exclusive"
    name: ClassVar = "Exclusive"
    version: ClassVar = "1"
    author: ClassVar = "tests"
    exclusive: ClassVar = True
    told: ClassVar[Told]

    async def authenticate(self, request: FrontendAuthRequest) -> FrontendAuthResponse | None:
        """Know whoever says so."""
        await suffer(NOW.get(""))
        if (b"x-hostile-user", b"ann") in request.headers:
            return FrontendAuthResponse(authenticated=True, principal="ann")
        return None


NOW: contextvars.ContextVar[str] = contextvars.ContextVar("how the call under way is to break")


class Below(grpc.aio.ServerInterceptor):
    """Notes calls, tells the plugin's code how to break, and damages below the SDK."""

    def __init__(self, told: Sequence[Told]) -> None:
        self._told = {each.id: each for each in told}

    async def intercept_service(self, continuation: Any, details: Any) -> Any:
        """Return the handler of a call, damaged as told."""
        step = STEPS.get(details.method.removeprefix(SERVICE), "")
        named = {key: str(value) for key, value in details.invocation_metadata or ()}
        told = self._told.get(named.get("patchbay-plugin", ""))
        if told is None and len(self._told) == 1:
            (told,) = self._told.values()
        if not step or told is None:
            return await continuation(details)
        how = told.damage(step)
        told.reached(step)
        if how == "unserved":
            return None
        handler = await continuation(details)
        if how == "garbage":
            return handler._replace(response_serializer=lambda _: b"\xff" * 64)
        if how == "huge":
            return handler._replace(response_serializer=_huge)
        if how in LIES:
            return handler._replace(response_serializer=_liar(how))
        return _suffering(handler, how) if how else handler


def _suffering(handler: Any, how: str) -> Any:
    """Return *handler* with the damage in the context of its calls."""

    def damaged(method: Any) -> Any:
        async def handle(request: Any, context: Any) -> Any:
            NOW.set(how)
            return await method(request, context)

        return handle if method is not None else None

    return handler._replace(
        unary_unary=damaged(handler.unary_unary),
        unary_stream=damaged(handler.unary_stream),
        stream_stream=damaged(handler.stream_stream),
    )


LIES = ("other-id", "future", "nothing")


@functools.cache
def _much() -> bytes:
    # Field 2 of every answer that matters is skipped or is bytes: 100 MiB of it.
    return b"\x12\x80\x80\x80\x32" + bytes(100 << 20)


def _huge(_: Any) -> bytes:
    return _much()


def _liar(how: str) -> Any:
    def serialize(message: Any) -> bytes:
        if how == "other-id":
            message.plugin_id = "somebody-else"
        elif how == "future":
            message.schema_version = 99
        else:
            message.ClearField("capabilities")
        return bytes(message.SerializeToString())

    return serialize


def make(told: Told) -> Plugin:
    """Return the plugin that is as told."""
    base = Exclusive if told.id == "exclusive" else Hostile
    fields = {
        "id": told.id,
        "told": told,
        "input_formats": (told.format,),
        # Of the thinking applier: whose payloads it knows.
        "identifier": told.format,
    }
    made: Plugin = type(base.__name__, (base,), fields)()
    return made


def run(address: str, plugins: Sequence[Mapping[str, Any]]) -> None:
    """Serve at one address until killed."""
    told = [Told(**each) for each in plugins]
    original = grpc.aio.server

    def server(*args: Any, **kwargs: Any) -> Any:
        return original(*args, **{**kwargs, "interceptors": [Below(told)]})

    grpc.aio.server = server
    serve(*(make(each) for each in told), address=address, message_limit=200 << 20)


def fork(process: Mapping[str, Any]) -> int:
    """Return the id of a new process that serves *process*."""
    pid = os.fork()
    if pid:
        new = Path(process["pid_file"]).with_suffix(".new-pid")
        new.write_text(str(pid))
        new.rename(process["pid_file"])
        return pid
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _WANTED)
    run(process["address"], process["plugins"])
    os._exit(0)


_WANTED = (signal.SIGTERM, signal.SIGHUP, signal.SIGCHLD)


def main() -> None:
    """Keep the processes of a specification."""
    processes = json.loads(Path(sys.argv[1]).read_text())
    signal.pthread_sigmask(signal.SIG_BLOCK, _WANTED)
    running = {fork(process): process for process in processes}
    dead: list[Any] = []
    while True:
        number = signal.sigwait(_WANTED)
        if number == signal.SIGTERM:
            break
        while running and (pid := os.waitpid(-1, os.WNOHANG)[0]):
            dead.append(running.pop(pid))
        # Whichever comes first, the wish or the death that it speaks of.
        for each in tuple(dead):
            again = Path(each["pid_file"]).with_suffix(".again")
            if again.exists():
                again.unlink()
                running[fork(each)] = each
                dead.remove(each)
    for pid in running:
        os.kill(pid, signal.SIGKILL)


if __name__ == "__main__":
    main()
