"""
Representative requests: for each method of each capability a message like those that gateways send.

Fields are filled by their names, so that a method that is added is covered when it is declared. Not here:
what is done with them (the rules).
"""

from __future__ import annotations

import json
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from google.protobuf import descriptor_pool

from patchbay.plugin.v1 import executor_pb2
from patchbay.services import SERVICES
from patchbay.testing.connection import PACKAGE, request_class

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from google.protobuf.message import Message

    from patchbay.plugin.v1 import plugin_pb2
    from patchbay.testing.connection import Connection

MODEL: Final = "conformance-model"
CANARY: Final = "test-canary-7f3a9c"
"""Begins every secret that the suite hands out; it must turn up in no log and no error."""

CHAT: Final = json.dumps(
    {"model": MODEL, "max_tokens": 64, "messages": [{"role": "user", "content": "hello there"}]}
).encode()
_PAYLOADS: Final[Mapping[tuple[str, str], Mapping[str, Any]]] = {
    ("gemini", "chat"): {"contents": [{"role": "user", "parts": [{"text": "hello there"}]}]},
    ("gemini", "count_tokens"): {"contents": [{"role": "user", "parts": [{"text": "hello"}]}]},
    ("openai-response", "chat"): {"model": MODEL, "input": "hello there"},
    ("openai", "embeddings"): {"model": MODEL, "input": "hello there"},
    ("openai", "completions"): {"model": MODEL, "prompt": "hello there"},
}
_ANSWER: Final = json.dumps(
    {
        "id": "1",
        "object": "chat.completion",
        "model": MODEL,
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": "fine"},
                "finish_reason": "stop",
            }
        ],
    }
).encode()
CHUNK: Final = b'data: {"id":"1","choices":[{"index":0,"delta":{"content":"n%d "}}]}\n\n'

_VALUES: Final[Mapping[str, Any]] = {
    "request_id": "01CONFORMANCE0000000000000",
    "trace_id": "conformance-trace",
    "source_format": "openai",
    "from_format": "openai",
    "to_format": "claude",
    "model": MODEL,
    "requested_model": MODEL,
    "operation": "chat",
    "content_type": "application/json",
    "body": CHAT,
    "original_request": CHAT,
    "translated_request": CHAT,
    "metadata": b"{}",
    "method": "POST",
    "path": "/v1/chat/completions",
    "remote_address": "192.0.2.7",
    "status_code": 200,
    "attempts": 1,
    "attempt_uid": "01CONFORMANCE0000000000000-1",
    "format": "openai",
    "outcome": "succeeded",
    "available_providers": ["openai", "claude"],
    "providers": ["openai"],
    "auth_id": "conformance",
    "file_name": "conformance.json",
    "base_path": "/v0/management/",
    "program": "patchbay",
    "state": "conformance-state",
    "base_url": "http://127.0.0.1:9/v0/management/oauth-callback",
}


@dataclass(frozen=True, slots=True)
class Facts:
    """What requests are made from."""

    connection: Connection
    capabilities: plugin_pb2.Capabilities
    upstream: str = "http://127.0.0.1:9"
    """Where executors and auth providers are sent."""
    identifiers: Mapping[str, str] = field(default_factory=dict)
    """Service to the provider key that its Identifier answered."""
    page: tuple[str, str] = ("GET", "/")
    """Method and path of one of the plugin's own routes."""


def declared_services(capabilities: plugin_pb2.Capabilities) -> dict[str, str]:
    """Return capability flag to service, for what is declared."""
    found = {
        service.plugin.capability_flag: service.name
        for service in SERVICES
        if getattr(capabilities, service.plugin.capability_flag)
    }
    if capabilities.HasField("executor"):
        found["executor"] = "ExecutorService"
    if capabilities.auth_provider:
        found["auth_provider"] = "AuthProviderService"
    return found


def all_services() -> dict[str, str]:
    """Return capability flag to service, for all that there are."""
    return {
        **{service.plugin.capability_flag: service.name for service in SERVICES},
        "executor": "ExecutorService",
        "auth_provider": "AuthProviderService",
    }


def unary_methods(service: str) -> list[str]:
    """Return the names of a service's methods that are no streams."""
    found = descriptor_pool.Default().FindServiceByName(PACKAGE + service)
    return [m.name for m in found.methods if not m.client_streaming and not m.server_streaming]


def skipped_methods(capabilities: plugin_pb2.Capabilities) -> set[str]:
    """Return methods that a plugin of these capabilities is never asked."""
    found = set()
    if capabilities.interceptor_needs.no_request_before_auth:
        found.add("InterceptRequestBeforeAuth")
    if capabilities.interceptor_needs.no_request_after_auth:
        found.add("InterceptRequestAfterAuth")
    if capabilities.HasField("executor"):
        operations = {name for item in capabilities.executor.operations for name in item.operations}
        if "count_tokens" not in operations:
            found.add("CountTokens")
    return found


def representative(facts: Facts, service: str, method: str) -> Message:
    """Return a request as a gateway would send it."""
    if service == "ExecutorService" and method in {"Execute", "ExecuteStream", "CountTokens"}:
        operation = "count_tokens" if method == "CountTokens" else ""
        return executor_request(facts, stream=method == "ExecuteStream", operation=operation)
    message: Any = request_class(service, method)()
    for descriptor in message.DESCRIPTOR.fields:
        value = _VALUES.get(descriptor.name)
        if value is None or descriptor.message_type is not None:
            continue
        if isinstance(value, list):
            getattr(message, descriptor.name).extend(value)
        elif descriptor.enum_type is None:
            setattr(message, descriptor.name, value)
    _adapt(message, facts, service, method)
    return message  # type: ignore[no-any-return] # made from a descriptor


def _adapt(message: Any, facts: Facts, service: str, method: str) -> None:
    """Set what has no one value for all methods."""
    identifier = facts.identifiers.get(service, facts.connection.plugin_id)
    names = message.DESCRIPTOR.fields_by_name
    if service.startswith("Response"):
        message.body = _ANSWER
    if "headers" in names:
        message.headers["content-type"].values.append("application/json")
        message.headers["user-agent"].values.append("conformance/1")
    if service == "FrontendAuthProviderService" and method == "Authenticate":
        message.headers["authorization"].values.append(f"Bearer {CANARY}-client")
    if "provider" in names and names["provider"].message_type is None:
        message.provider = identifier
    if "auth_provider" in names:
        message.auth_provider = identifier
    if "secret" in names:
        message.secret.CopyFrom(facts.connection.seal(material(), [facts.upstream]))
    if method == "ParseAuth":
        document = json.dumps({"type": identifier, **material()})
        message.raw_json.CopyFrom(facts.connection.seal({"document": document}))
    if "base_url" in names and service in {"ModelProviderService", "AuthProviderService"}:
        message.base_url = facts.upstream
    if service == "AuthProviderService" and "config" in names:
        message.config = json.dumps(
            {"token_url": f"{facts.upstream}/token", "client_id": "conformance"}
        ).encode()
    special = _SPECIAL.get(method)
    if special is not None:
        special(message, facts)


def _pick(message: Any, _: Facts) -> None:
    message.provider = "openai"
    for name in ("first", "second"):
        message.candidates.add(id=name, provider="openai", status="ready")


def _thinking(message: Any, _: Facts) -> None:
    message.model.id = MODEL
    message.config.mode = 1
    message.config.budget = 1024


def _usage(message: Any, _: Facts) -> None:
    message.requested_at.FromSeconds(int(time.time()))
    message.detail.items.add(unit="input_tokens", quantity=3)


def _completion(message: Any, _: Facts) -> None:
    message.outcome = 1
    message.started_at.FromSeconds(int(time.time()))
    message.completed_at.FromSeconds(int(time.time()))


def _registration(message: Any, facts: Facts) -> None:
    message.resource_base_path = f"/v0/resource/plugins/{facts.connection.plugin_id}/"


def _page(message: Any, facts: Facts) -> None:
    message.method, message.path = facts.page
    message.body = b""


def _http(message: Any, facts: Facts) -> None:
    message.method, message.url = "GET", f"{facts.upstream}/v1/models"
    message.body = b""
    message.provider.base_url = facts.upstream


_SPECIAL: Final[Mapping[str, Callable[[Any, Facts], None]]] = {
    "Pick": _pick,
    "ApplyThinking": _thinking,
    "HandleUsage": _usage,
    "HandleRequestComplete": _completion,
    "RegisterManagement": _registration,
    "HandleManagement": _page,
    "HttpRequest": _http,
}


def material() -> dict[str, str]:
    """Return a secret's plain text."""
    return {
        "api_key": f"{CANARY}-key",
        "access_token": f"{CANARY}-access",
        "refresh_token": f"{CANARY}-refresh",
    }


def executor_request(
    facts: Facts, *, stream: bool = False, operation: str = "", body: bytes = b""
) -> executor_pb2.ExecutorRequest:
    """Return a call of a model, in the first format and operation that the executor declares."""
    executor = facts.capabilities.executor
    name, wanted = _format(executor, operation)
    payload = {**_PAYLOADS.get((name, wanted), json.loads(CHAT))}
    if stream and name != "gemini":
        payload["stream"] = True
    message = executor_pb2.ExecutorRequest(
        auth_id="conformance",
        auth_provider=facts.identifiers.get("ExecutorService", facts.connection.plugin_id),
        model=MODEL,
        format=name,
        source_format=name,
        stream=stream,
        operation=wanted,
        payload=body or json.dumps(payload).encode(),
        attempt_uid="01CONFORMANCE0000000000000-1",
        content_type="application/json",
        alt="sse" if stream and name == "gemini" else "",
        secret=facts.connection.seal(material(), [facts.upstream]),
        provider=executor_pb2.ProviderSettings(base_url=base_url(facts.upstream, name)),
    )
    message.headers["content-type"].values.append("application/json")
    return message


def base_url(upstream: str, name: str) -> str:
    """Return what a provider of that format has for `base_url`."""
    return f"{upstream}/v1" if name in {"openai", "openai-response"} else upstream


def _format(executor: plugin_pb2.ExecutorCapability, operation: str) -> tuple[str, str]:
    """Return a format and an operation in it."""
    formats: Sequence[str] = executor.input_formats or ("openai",)
    by_format = {item.format: list(item.operations) for item in executor.operations}
    if operation:
        for name in formats:
            if operation in by_format.get(name, ()):
                return name, operation
        return formats[0], operation
    for name in formats:
        if "chat" in (by_format.get(name) or ["chat"]):
            return name, "chat"
    return formats[0], (by_format.get(formats[0]) or ["chat"])[0]
