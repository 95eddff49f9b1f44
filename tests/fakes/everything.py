"""A plugin with every capability that `patchbay.services` serves: it records requests and answers as told."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from patchbay import (
    command_line,
    frontend_auth,
    interceptors,
    lifecycle,
    management,
    models,
    router,
    scheduler_plugin,
    thinking,
    transform,
    usage_plugin,
)
from patchbay.wire import is_repeated

if TYPE_CHECKING:
    from google.protobuf.message import Message


class Everything(
    models.ModelRegistrar,
    models.ModelProvider,
    frontend_auth.FrontendAuthProvider,
    scheduler_plugin.SchedulerPlugin,
    router.ModelRouter,
    transform.RequestTranslator,
    transform.RequestNormalizer,
    transform.ResponseTranslator,
    transform.ResponseBeforeTranslator,
    transform.ResponseAfterTranslator,
    interceptors.RequestInterceptor,
    interceptors.ResponseInterceptor,
    interceptors.StreamChunkInterceptor[list[str]],
    lifecycle.RequestLifecyclePlugin,
    thinking.ThinkingApplier,
    usage_plugin.UsagePlugin,
    command_line.CommandLinePlugin,
    management.ManagementAPI,
):
    """Set `answer` to a result or an exception; `seen` is the newest request."""

    id = "everything"
    name = "Everything"
    version = "1.0"
    author = "tests"
    exclusive = True

    def __init__(self) -> None:
        self.answer: Any = None
        self.seen: Any = None

    async def _said(self, request: Any) -> Any:
        self.seen = request
        if isinstance(self.answer, BaseException):
            raise self.answer
        return self.answer

    register_models = _said
    static_models = _said
    models_for_auth = _said
    authenticate = _said
    pick = _said
    route_model = _said
    translate_request = _said
    normalize_request = _said
    translate_response = _said
    normalize_response_before = _said
    normalize_response_after = _said
    intercept_request_before_auth = _said
    intercept_request_after_auth = _said
    intercept_response = _said
    handle_request_complete = _said
    apply_thinking = _said

    async def handle_usage(self, record: usage_plugin.UsageRecord) -> None:
        await self._said(record)

    register_command_line = _said
    execute_command_line = _said
    register_management = _said
    handle_management = _said


def fill(message: Message, salt: str = "a") -> Any:
    """Set every field of *message*, also within, to something that is not its default; return it."""
    for number, field in enumerate(message.DESCRIPTOR.fields):
        _fill_field(message, field, f"{salt}{number}")
    return message


def _fill_field(message: Any, field: Any, salt: str) -> None:
    name, kind = field.name, field.message_type
    value = getattr(message, name)
    if kind is not None and kind.GetOptions().map_entry:
        inner = kind.fields_by_name["value"]
        for key in ("x-one", "x-two"):
            if inner.message_type is None:
                value[key] = salt
            elif inner.message_type.name == "StringList":
                value[key].values.extend([salt, "", "second"])
            else:
                fill(value[key], salt)
    elif kind is not None and is_repeated(field):
        fill(value.add(), salt)
        fill(value.add(), salt + "b")
    elif kind is not None and kind.full_name == "google.protobuf.Timestamp":
        value.FromNanoseconds(1_800_000_000_123_456_000)
    elif kind is not None and kind.full_name == "google.protobuf.Duration":
        value.FromNanoseconds(1_250_000_000)
    elif kind is not None:
        if kind.name != "SealedSecret":
            fill(value, salt)
    elif is_repeated(field):
        value.extend([salt, salt + "b"])
    elif field.enum_type is not None:
        setattr(message, name, field.enum_type.values[-1].number)
    elif field.cpp_type == field.CPPTYPE_STRING and isinstance(value, bytes):
        json = name in {"metadata", "config", "fields"}
        setattr(message, name, b'{"big":9007199254740993}' if json else salt.encode())
    elif isinstance(value, str):
        setattr(message, name, salt)
    elif isinstance(value, bool):
        setattr(message, name, True)
    else:
        setattr(message, name, 7)
