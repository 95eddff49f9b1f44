"""
The body of a new plugin, capability by capability: something small that runs and passes the check.

Text only. Not here: how it is put together (`patchbay.commands.scaffold`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence


@dataclass(frozen=True, slots=True)
class Template:
    """One capability."""

    base: str
    """Base class as it is written."""
    imports: Mapping[str, Sequence[str]]
    """Module to names."""
    summary: str
    """What the code below does, one sentence."""
    body: str
    """Class attributes and methods."""


def _named(module: str, *names: str) -> dict[str, Sequence[str]]:
    return {f"patchbay.{module}": names}


TEMPLATES: Final[Mapping[str, Template]] = {
    "request_interceptor": Template(
        "RequestInterceptor",
        _named(
            "interceptors",
            "RequestInterceptor",
            "RequestInterceptRequest",
            "RequestInterceptResponse",
        ),
        "Sets a header on every request.",
        '''
    async def intercept_request_before_auth(
        self, request: RequestInterceptRequest
    ) -> RequestInterceptResponse | None:
        """Change a request, or end it; None leaves it as it is."""
        return RequestInterceptResponse(headers=[(b"x-seen-by", self.id.encode())])
''',
    ),
    "response_interceptor": Template(
        "ResponseInterceptor",
        _named(
            "interceptors",
            "ResponseInterceptor",
            "ResponseInterceptRequest",
            "ResponseInterceptResponse",
        ),
        "Sets a header on every whole answer.",
        '''
    async def intercept_response(
        self, request: ResponseInterceptRequest
    ) -> ResponseInterceptResponse | None:
        """Change an answer; None leaves it as it is."""
        return ResponseInterceptResponse(headers=[(b"x-seen-by", self.id.encode())])
''',
    ),
    "response_stream_interceptor": Template(
        "StreamChunkInterceptor[None]",
        _named(
            "interceptors",
            "StreamChunkInterceptor",
            "StreamChunkInterceptRequest",
            "StreamChunkInterceptResponse",
        ),
        "Rewrites a word in the chunks of streamed answers.",
        '''
    async def intercept_stream_chunk(
        self, request: StreamChunkInterceptRequest, state: None
    ) -> StreamChunkInterceptResponse | None:
        """Change or drop a chunk; None leaves it as it is."""
        if b"secret" not in request.body:
            return None
        return StreamChunkInterceptResponse(body=request.body.replace(b"secret", b"******"))
''',
    ),
    "request_lifecycle_plugin": Template(
        "RequestLifecyclePlugin",
        {
            "logging": ["getLogger"],
            **_named("lifecycle", "RequestCompletion", "RequestLifecyclePlugin"),
        },
        "Logs how requests ended.",
        '''
    async def handle_request_complete(self, request: RequestCompletion) -> None:
        """Take the end of a request."""
        getLogger(__name__).info("%s %s", request.request_id, request.outcome)
''',
    ),
    "model_router": Template(
        "ModelRouter",
        _named("router", "ModelRouter", "ModelRouteRequest", "ModelRouteResponse"),
        "Sends models of one name to another provider.",
        '''
    async def route_model(self, request: ModelRouteRequest) -> ModelRouteResponse | None:
        """Say where a request goes; None passes the question on."""
        if request.requested_model != "my-model":
            return None
        return ModelRouteResponse.to_provider("openai", reason="my-model lives there")
''',
    ),
    "executor": Template(
        "Executor",
        {
            "collections.abc": ["AsyncGenerator"],
            **_named(
                "executor",
                "Executor",
                "ExecutorRequest",
                "ExecutorResponse",
                "StreamBatch",
                "StreamHead",
                "StreamItem",
                "StreamTail",
            ),
        },
        "Answers chats by itself.",
        '''
    input_formats = ("openai",)
    output_formats = ("openai",)

    async def execute(self, request: ExecutorRequest) -> ExecutorResponse:
        """Run one call."""
        return ExecutorResponse(
            b'{"object":"chat.completion","choices":[{"index":0,"finish_reason":"stop",'
            b'"message":{"role":"assistant","content":"hello"}}]}'
        )

    async def execute_stream(self, request: ExecutorRequest) -> AsyncGenerator[StreamItem, None]:
        """Run one streamed call."""
        yield StreamHead()
        yield StreamBatch(
            [b'data: {"choices":[{"index":0,"delta":{"content":"hello"}}]}\\n\\n']
        )
        yield StreamBatch([b"data: [DONE]\\n\\n"])
        yield StreamTail()
''',
    ),
    "frontend_auth_provider": Template(
        "FrontendAuthProvider",
        {
            **_named(
                "frontend_auth",
                "FrontendAuthProvider",
                "FrontendAuthRequest",
                "FrontendAuthResponse",
            ),
            **_named("headers", "header"),
        },
        "Knows clients by a header.",
        '''
    async def authenticate(self, request: FrontendAuthRequest) -> FrontendAuthResponse | None:
        """Say who a client is; None if this plugin does not know it."""
        if header(request.headers, "x-team-token") != "test-token":
            return None
        return FrontendAuthResponse(principal="team")
''',
    ),
    "scheduler": Template(
        "SchedulerPlugin",
        _named(
            "scheduler_plugin",
            "SchedulerPickRequest",
            "SchedulerPickResponse",
            "SchedulerPlugin",
        ),
        "Chooses the credential with the fewest attempts under way.",
        '''
    async def pick(self, request: SchedulerPickRequest) -> SchedulerPickResponse | None:
        """Choose a credential; None leaves it to the configured strategy."""
        least = min(request.candidates, key=lambda candidate: candidate.in_flight)
        return SchedulerPickResponse(auth_id=least.id)
''',
    ),
    "request_translator": Template(
        "RequestTranslator",
        _named("transform", "RequestTransformRequest", "RequestTranslator"),
        "Translates requests of a format of its own.",
        '''
    async def translate_request(self, request: RequestTransformRequest) -> bytes | None:
        """Return the payload in the other format; None if this plugin does not know the pair."""
        return request.body if request.from_format == "my-format" else None
''',
    ),
    "request_normalizer": Template(
        "RequestNormalizer",
        _named("transform", "RequestNormalizer", "RequestTransformRequest"),
        "Has the last word on payloads of requests.",
        '''
    async def normalize_request(self, request: RequestTransformRequest) -> bytes | None:
        """Return the changed payload; None leaves it as it is."""
        return None
''',
    ),
    "response_translator": Template(
        "ResponseTranslator",
        _named("transform", "ResponseTransformRequest", "ResponseTranslator"),
        "Translates answers of a format of its own.",
        '''
    async def translate_response(self, request: ResponseTransformRequest) -> bytes | None:
        """Return the answer or chunk in the other format; None if the pair is not known here."""
        return request.body if request.from_format == "my-format" else None
''',
    ),
    "response_before_translator": Template(
        "ResponseBeforeTranslator",
        _named("transform", "ResponseBeforeTranslator", "ResponseTransformRequest"),
        "Sees answers before they are translated.",
        '''
    async def normalize_response_before(self, request: ResponseTransformRequest) -> bytes | None:
        """Return the changed answer or chunk; None leaves it as it is."""
        return None
''',
    ),
    "response_after_translator": Template(
        "ResponseAfterTranslator",
        _named("transform", "ResponseAfterTranslator", "ResponseTransformRequest"),
        "Sees answers after they were translated.",
        '''
    async def normalize_response_after(self, request: ResponseTransformRequest) -> bytes | None:
        """Return the changed answer or chunk; None leaves it as it is."""
        return None
''',
    ),
    "thinking_applier": Template(
        "ThinkingApplier",
        {
            "json": ["dumps", "loads"],
            **_named("thinking", "ThinkingApplier", "ThinkingApplyRequest"),
        },
        "Writes reasoning settings into payloads.",
        '''
    async def apply_thinking(self, request: ThinkingApplyRequest) -> bytes | None:
        """Return the payload with the setting; None leaves it as it is."""
        if request.config is None:
            return None
        return dumps({**loads(request.body), "thinking_budget": request.config.budget}).encode()
''',
    ),
    "model_registrar": Template(
        "ModelRegistrar",
        _named(
            "models",
            "ModelInfo",
            "ModelRegistrar",
            "ModelRegistrationRequest",
            "ModelRegistrationResponse",
        ),
        "Registers a model.",
        '''
    async def register_models(self, request: ModelRegistrationRequest) -> ModelRegistrationResponse:
        """Return the plugin's models."""
        return ModelRegistrationResponse(self.identifier, [ModelInfo("my-model")])
''',
    ),
    "model_provider": Template(
        "ModelProvider",
        _named("models", "AuthModelRequest", "ModelInfo", "ModelProvider", "ModelResponse"),
        "Tells the models of its provider.",
        '''
    async def models_for_auth(self, request: AuthModelRequest) -> ModelResponse:
        """Return the models of one credential."""
        return ModelResponse([ModelInfo("my-model")])
''',
    ),
    "auth_provider": Template(
        "AuthProvider",
        _named("auth_provider", "AuthParseRequest", "AuthParseResponse", "AuthProvider"),
        "Reads credentials of its provider.",
        '''
    async def parse_auth(self, request: AuthParseRequest) -> AuthParseResponse:
        """Read one credential document; unhandled leaves it to others."""
        return AuthParseResponse(handled=False)
''',
    ),
    "usage_plugin": Template(
        "UsagePlugin",
        {"logging": ["getLogger"], **_named("usage_plugin", "UsagePlugin", "UsageRecord")},
        "Logs what was consumed.",
        '''
    async def handle_usage(self, record: UsageRecord) -> None:
        """Take one record; it may come again, under the same attempt_uid."""
        tokens = record.detail.total_tokens if record.detail is not None else 0
        getLogger(__name__).info("%s: %d tokens", record.attempt_uid, tokens)
''',
    ),
    "command_line_plugin": Template(
        "CommandLinePlugin",
        _named(
            "command_line",
            "CommandLineExecutionRequest",
            "CommandLineExecutionResponse",
            "CommandLineFlag",
            "CommandLinePlugin",
        ),
        "Has a command line.",
        '''
    flags = (CommandLineFlag("loud", "Say it loudly."),)

    async def execute_command_line(
        self, request: CommandLineExecutionRequest
    ) -> CommandLineExecutionResponse:
        """Run `patchbay plugin exec ID -- ARGS`."""
        said = b"HELLO\\n" if "loud" in request.triggered_flags else b"hello\\n"
        return CommandLineExecutionResponse(stdout=said)
''',
    ),
    "management_api": Template(
        "ManagementAPI",
        _named(
            "management",
            "ManagementAPI",
            "ManagementRequest",
            "ManagementResponse",
            "ResourceRoute",
        ),
        "Has a page.",
        '''
    resources = (ResourceRoute("status", menu="Status"),)

    async def handle_management(self, request: ManagementRequest) -> ManagementResponse:
        """Serve one request."""
        return ManagementResponse(b"all is well", headers=[(b"content-type", b"text/plain")])
''',
    ),
}
"""Capability flag to its template."""
