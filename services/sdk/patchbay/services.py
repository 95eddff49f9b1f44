"""
Every unary capability on the wire: one table of services, and the servicers made from it.

A row says which class of plugin serves a method, by which of its own methods, and what request and answer
look like on both sides. A new capability is a new row. Not here: executors and auth providers, whose
servicers are beside their base classes; streams (`patchbay.streams_wire`).
"""

from __future__ import annotations

import dataclasses
import time
from dataclasses import dataclass
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, Final

from patchbay import command_line as cl
from patchbay import errors, wire
from patchbay import frontend_auth as fa
from patchbay import interceptors as ic
from patchbay import lifecycle as lc
from patchbay import management as mg
from patchbay import models as md
from patchbay import router as rt
from patchbay import scheduler_plugin as sp
from patchbay import thinking as th
from patchbay import transform as tf
from patchbay import usage_plugin as up
from patchbay.auth_wire import auth_message
from patchbay.host_config import read_host_config
from patchbay.plugin.v1 import (
    command_line_plugin_pb2,
    frontend_auth_provider_pb2,
    identifier_pb2,
    management_api_pb2,
    model_provider_pb2,
    model_registrar_pb2,
    model_router_pb2,
    request_interceptor_pb2,
    request_lifecycle_pb2,
    request_normalizer_pb2,
    request_translator_pb2,
    response_after_translator_pb2,
    response_before_translator_pb2,
    response_interceptor_pb2,
    response_translator_pb2,
    scheduler_plugin_pb2,
    stream_chunk_interceptor_pb2,
    thinking_applier_pb2,
    transform_pb2,
    usage_plugin_pb2,
)
from patchbay.streams_wire import intercept_handler, transform_handler

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

    from google.protobuf.message import Message

    from patchbay.capability import Plugin
    from patchbay.handshake import Configurations
    from patchbay.host_client import HostConnections
    from patchbay.secrets import SecretOpener

_PACKAGE: Final = "patchbay.plugin.v1."


@dataclass(frozen=True, slots=True)
class Tools:
    """What servicers need beside the plugins."""

    opener: SecretOpener
    """Opens secrets sealed for any plugin here."""
    return_keys: Mapping[str, bytes]
    """Plugin id → key for material that goes back."""
    hosts: HostConnections
    """The ways back to hosts."""
    now: Callable[[], float] = time.time
    """Unix seconds."""


@dataclass(frozen=True, slots=True)
class Call:
    """One unary method."""

    method: str
    """Name on the wire."""
    calls: str
    """Name of the plugin's method."""
    request: type[Any]
    """Dataclass of the request."""
    answer: type[Message]
    """Message of the answer."""


@dataclass(frozen=True, slots=True)
class Service:
    """One service and the class of plugins that serve it."""

    name: str
    """Without the package."""
    plugin: type[Plugin]
    """Who may serve it."""
    calls: tuple[Call, ...]
    """Its unary methods."""
    identifies: bool = False
    """Whether it has the method Identifier."""


_PAYLOAD: Final = transform_pb2.PayloadResponse

SERVICES: Final = (
    Service(
        "ModelRegistrarService",
        md.ModelRegistrar,
        (
            Call(
                "RegisterModels",
                "register_models",
                md.ModelRegistrationRequest,
                model_registrar_pb2.ModelRegistrationResponse,
            ),
        ),
    ),
    Service(
        "ModelProviderService",
        md.ModelProvider,
        (
            Call(
                "StaticModels",
                "static_models",
                md.StaticModelRequest,
                model_provider_pb2.ModelResponse,
            ),
            Call(
                "ModelsForAuth",
                "models_for_auth",
                md.AuthModelRequest,
                model_provider_pb2.ModelResponse,
            ),
        ),
    ),
    Service(
        "FrontendAuthProviderService",
        fa.FrontendAuthProvider,
        (
            Call(
                "Authenticate",
                "authenticate",
                fa.FrontendAuthRequest,
                frontend_auth_provider_pb2.FrontendAuthResponse,
            ),
        ),
        identifies=True,
    ),
    Service(
        "SchedulerPluginService",
        sp.SchedulerPlugin,
        (
            Call(
                "Pick", "pick", sp.SchedulerPickRequest, scheduler_plugin_pb2.SchedulerPickResponse
            ),
        ),
    ),
    Service(
        "ModelRouterService",
        rt.ModelRouter,
        (
            Call(
                "RouteModel",
                "route_model",
                rt.ModelRouteRequest,
                model_router_pb2.ModelRouteResponse,
            ),
        ),
    ),
    Service(
        "RequestTranslatorService",
        tf.RequestTranslator,
        (Call("TranslateRequest", "translate_request", tf.RequestTransformRequest, _PAYLOAD),),
    ),
    Service(
        "RequestNormalizerService",
        tf.RequestNormalizer,
        (Call("NormalizeRequest", "normalize_request", tf.RequestTransformRequest, _PAYLOAD),),
    ),
    Service(
        "ResponseTranslatorService",
        tf.ResponseTranslator,
        (Call("TranslateResponse", "translate_response", tf.ResponseTransformRequest, _PAYLOAD),),
    ),
    Service(
        "ResponseBeforeTranslatorService",
        tf.ResponseBeforeTranslator,
        (
            Call(
                "NormalizeResponse",
                "normalize_response_before",
                tf.ResponseTransformRequest,
                _PAYLOAD,
            ),
        ),
    ),
    Service(
        "ResponseAfterTranslatorService",
        tf.ResponseAfterTranslator,
        (
            Call(
                "NormalizeResponse",
                "normalize_response_after",
                tf.ResponseTransformRequest,
                _PAYLOAD,
            ),
        ),
    ),
    Service(
        "RequestInterceptorService",
        ic.RequestInterceptor,
        (
            Call(
                "InterceptRequestBeforeAuth",
                "intercept_request_before_auth",
                ic.RequestInterceptRequest,
                request_interceptor_pb2.RequestInterceptResponse,
            ),
            Call(
                "InterceptRequestAfterAuth",
                "intercept_request_after_auth",
                ic.RequestInterceptRequest,
                request_interceptor_pb2.RequestInterceptResponse,
            ),
        ),
    ),
    Service(
        "ResponseInterceptorService",
        ic.ResponseInterceptor,
        (
            Call(
                "InterceptResponse",
                "intercept_response",
                ic.ResponseInterceptRequest,
                response_interceptor_pb2.ResponseInterceptResponse,
            ),
        ),
    ),
    Service("StreamChunkInterceptorService", ic.StreamChunkInterceptor, ()),
    Service(
        "RequestLifecycleService",
        lc.RequestLifecyclePlugin,
        (
            Call(
                "HandleRequestComplete",
                "handle_request_complete",
                lc.RequestCompletion,
                request_lifecycle_pb2.RequestCompletionResponse,
            ),
        ),
    ),
    Service(
        "ThinkingApplierService",
        th.ThinkingApplier,
        (Call("ApplyThinking", "apply_thinking", th.ThinkingApplyRequest, _PAYLOAD),),
        identifies=True,
    ),
    Service(
        "UsagePluginService",
        up.UsagePlugin,
        (
            Call(
                "HandleUsage", "handle_usage", up.UsageRecord, usage_plugin_pb2.UsageRecordResponse
            ),
        ),
    ),
    Service(
        "CommandLinePluginService",
        cl.CommandLinePlugin,
        (
            Call(
                "RegisterCommandLine",
                "register_command_line",
                cl.CommandLineRegistrationRequest,
                command_line_plugin_pb2.CommandLineRegistrationResponse,
            ),
            Call(
                "ExecuteCommandLine",
                "execute_command_line",
                cl.CommandLineExecutionRequest,
                command_line_plugin_pb2.CommandLineExecutionResponse,
            ),
        ),
    ),
    Service(
        "ManagementAPIService",
        mg.ManagementAPI,
        (
            Call(
                "RegisterManagement",
                "register_management",
                mg.ManagementRegistrationRequest,
                management_api_pb2.ManagementRegistrationResponse,
            ),
            Call(
                "HandleManagement",
                "handle_management",
                mg.ManagementRequest,
                management_api_pb2.ManagementResponse,
            ),
        ),
    ),
)
"""Every capability but executors and auth providers."""

_STREAMED: Final = {
    "ResponseTranslatorService": ("TranslateResponseStream", "translate_response"),
    "ResponseBeforeTranslatorService": ("NormalizeResponseStream", "normalize_response_before"),
    "ResponseAfterTranslatorService": ("NormalizeResponseStream", "normalize_response_after"),
}

DESCRIBED: Final = (
    request_normalizer_pb2,
    request_translator_pb2,
    response_after_translator_pb2,
    response_before_translator_pb2,
    response_translator_pb2,
    stream_chunk_interceptor_pb2,
    thinking_applier_pb2,
)
"""Modules that are imported so that a server finds the descriptors of their services."""


def build_capability_servicers(configurations: Configurations, tools: Tools) -> dict[str, object]:
    """Return full service name → servicer for what the plugins of *configurations* can do."""
    plugins = [configurations.plugin(id_) for id_ in configurations.plugin_ids]
    return {
        _PACKAGE + service.name: _servicer(service, configurations.called, tools)
        for service in SERVICES
        if any(isinstance(plugin, service.plugin) for plugin in plugins)
    }


def _servicer(service: Service, called: Callable[[Any], Plugin], tools: Tools) -> object:
    def plugin(context: Any) -> Any:
        found = called(context)
        if not isinstance(found, service.plugin):
            raise errors.NotFound(
                f"plugin {found.id} does not serve {service.name}", reason="CAPABILITY_NOT_SERVED"
            )
        return found

    async def identifier(_: Message, context: Any) -> identifier_pb2.IdentifierResponse:
        return identifier_pb2.IdentifierResponse(identifier=plugin(context).identifier)

    handlers: dict[str, Any] = {
        call.method: _handler(call, plugin, tools) for call in service.calls
    }
    if service.identifies:
        handlers["Identifier"] = identifier
    if service.name in _STREAMED:
        method, calls = _STREAMED[service.name]
        handlers[method] = transform_handler(plugin, calls)
    if service.plugin is ic.StreamChunkInterceptor:
        handlers["InterceptStreamChunk"] = intercept_handler(plugin, tools.hosts)
    return SimpleNamespace(**handlers)


def _handler(
    call: Call, plugin: Callable[[Any], Any], tools: Tools
) -> Callable[[Any, Any], Awaitable[Message]]:
    fields = {field.name for field in dataclasses.fields(call.request)}
    takes_host = "host" in fields
    takes_secret = "secret" in fields
    takes_callbacks = "callbacks" in fields

    async def handle(request: Any, context: Any) -> Message:
        found = plugin(context)
        more: dict[str, Any] = {}
        if takes_host:
            more["host"] = read_host_config(request.host)
        if takes_secret and request.HasField("secret"):
            more["secret"] = _opened(request.secret, found.id, tools)
        if takes_callbacks:
            more["callbacks"] = tools.hosts.client(found.id, context.invocation_metadata())
        result = await getattr(found, call.calls)(wire.read(call.request, request, **more))
        answer = call.answer()
        if isinstance(result, bytes):
            answer.body = result  # type: ignore[attr-defined] # PayloadResponse
        elif result is not None:
            wire.write(result, answer)
            _return_auths(result, request, answer, found.id, tools)
        return answer

    return handle


def _opened(sealed: Any, plugin_id: str, tools: Tools) -> Any:
    if sealed.plugin_id != plugin_id:
        raise errors.FailedPrecondition(
            f"the secret is sealed for plugin {sealed.plugin_id or '(none)'}, not {plugin_id}",
            reason="SECRET_FOREIGN",
            sent=errors.Sent.NO,
        )
    return tools.opener.open(sealed, tools.now())


def _return_auths(result: Any, request: Any, answer: Any, plugin_id: str, tools: Tools) -> None:
    """Add the credentials in *result* to *answer*, sealed."""
    key = tools.return_keys.get(plugin_id)
    if isinstance(result, md.ModelResponse) and result.auth_update is not None:
        sealed = getattr(request, "secret", None)
        answer.auth_update.CopyFrom(
            auth_message(
                result.auth_update,
                plugin_id,
                key,
                tools.now(),
                credential_id=sealed.credential_id if sealed is not None else "",
                version=sealed.version if sealed is not None else 0,
            )
        )
    elif isinstance(result, cl.CommandLineExecutionResponse):
        answer.auths.extend(
            auth_message(auth, plugin_id, key, tools.now()) for auth in result.auths
        )
