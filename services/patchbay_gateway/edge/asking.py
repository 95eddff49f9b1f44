"""
What an executor is asked in one attempt: the request after interceptors, in a format that it takes.

A request that no plugin wants, in a format that the executor takes, passes as it came but for the model's
name and the question for usage. Not here: the call (execution.py), the translations (translation.py).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec
import orjson

from patchbay import errors, status
from patchbay.plugin.v1 import executor_pb2
from patchbay_gateway.edge import body, headers
from patchbay_gateway.edge.translation import Formats
from patchbay_gateway.plugins.beside import with_room
from patchbay_gateway.plugins.response_interceptors import Executed
from patchbay_gateway.translate import thinking_fields
from patchbay_gateway.translate.port import Context

if TYPE_CHECKING:
    from patchbay.scheduler.v1 import scheduler_pb2
    from patchbay_gateway.edge.request import Request
    from patchbay_gateway.edge.steps import PluginSteps
    from patchbay_gateway.plugins.request_interceptors import Intercepted
    from patchbay_gateway.plugins.snapshot import ProviderEntry, Snapshot


class Asked(msgspec.Struct):
    """One attempt's question."""

    message: executor_pb2.ExecutorRequest
    formats: Formats
    hide_usage: bool
    """The client did not ask for usage; we did, and withhold the chunk that only carries it."""
    executed: Executed | None = None
    """What interceptors of the answer are told of the request; None where nobody is."""
    context: Context | None = None
    """What translators of the answer are told; None where the answer passes as it is."""


async def ask(
    request: Request,
    lease: scheduler_pb2.Lease,
    provider: ProviderEntry | None,
    plugins: PluginSteps,
) -> Asked:
    """
    Return what the lease's plugin is to be asked.

    Raises:
        Terminated: An interceptor answered the client.
        InvalidRequest: DIALECT_NOT_AVAILABLE, or what cannot be said in the executor's format.
        Unavailable: PLUGIN_FAILED, NO_EXECUTOR.
    """
    taken = plugins.formats_of(request, lease.attempt.plugin_id)
    assert request.document is not None
    if (
        request.steps is None
        and request.thinking is None
        and taken.client == taken.executor == taken.answer
    ):
        hide = _hides_usage(request, provider)
        payload = _as_it_is(request, request.document, lease, hide=hide)
        sent = headers.for_plugins(request.routed.exchange.head.headers)
        return Asked(_message(request, lease, provider, plugins, taken, sent, payload), taken, hide)
    return await _stepped(request, lease, provider, plugins, taken)


async def _stepped(
    request: Request,
    lease: scheduler_pb2.Lease,
    provider: ProviderEntry | None,
    plugins: PluginSteps,
    taken: Formats,
) -> Asked:
    steps = request.steps or plugins.made(request)
    model = lease.attempt.upstream_model
    current: Intercepted = await steps.after(
        credential=lease.attempt.credential_id,
        model=model,
        to_format=taken.executor,
        attempt=request.number,
    )
    assert request.document is not None
    document = request.document
    if current.body is not document.data:
        document = await steps.scanned(current.body)
    idle = plugins.translation.idle(steps.execution, taken)
    same = taken.client == taken.executor
    hide = same and _hides_usage(request, provider)
    payload = _as_it_is(request, document, lease, hide=hide) if same else current.body
    if not idle:
        payload = await plugins.translation.request(
            steps.execution, taken, model=model, body=payload
        )
    if request.thinking is not None:
        written = thinking_fields.apply(taken.executor, payload, request.thinking)
        payload = written or await plugins.thinking.apply(
            steps.execution,
            taken.executor,
            model,
            level=request.thinking.level,
            budget=request.thinking.budget,
            body=payload,
        )
    context = None
    if not idle:
        context = Context(request.model, current.body, payload, int(request.clock.now()))
    executed = None
    if steps.answer_hooks or steps.chunk_hooks:
        executed = Executed(model, current.headers, current.body, payload)
    message = _message(request, lease, provider, plugins, taken, current.headers, payload)
    if not same:
        (message.original_request,) = with_room(request.snapshot, payload, current.body)
    return Asked(message, taken, hide, executed, context)


def formats_at(request: Request, plugin_id: str, plugins: PluginSteps) -> Formats:
    """
    Return the formats of *request* at a plugin's executor.

    Raises:
        InvalidRequest: DIALECT_NOT_AVAILABLE.
    """
    client = request.routed.dialect.name
    capability = plugins.registry.executor(plugin_id)
    if capability is None:
        # Gone since the lease; whoever picks an address says so.
        return Formats(client, client)
    given = plugins.format_of(capability, request)
    if not given:
        raise errors.InvalidRequest(
            f"the executor of this model takes no request in the {client} dialect",
            reason="DIALECT_NOT_AVAILABLE",
        )
    if given in capability.output_formats or not capability.output_formats:
        return Formats(client, given)
    answer = plugins.answer_format(capability, request, given)
    if not answer:
        raise errors.InvalidRequest(
            f"the answer of this model's executor cannot be given in the {client} dialect",
            reason="DIALECT_NOT_AVAILABLE",
        )
    return Formats(client, given, answer)


def _hides_usage(request: Request, provider: ProviderEntry | None) -> bool:
    assert request.document is not None
    return (
        request.stream
        and (provider is None or provider.include_usage)
        and request.routed.dialect.name == "openai"
        and not request.document.include_usage
    )


def _as_it_is(
    request: Request, document: body.Document, lease: scheduler_pb2.Lease, *, hide: bool
) -> bytes:
    named = request.routed.model_from_path is None
    return body.rewrite(
        document, model=lease.attempt.upstream_model if named else None, include_usage=hide
    )


def _message(
    request: Request,
    lease: scheduler_pb2.Lease,
    provider: ProviderEntry | None,
    plugins: PluginSteps,
    taken: Formats,
    sent: errors.Headers,
    payload: bytes,
) -> executor_pb2.ExecutorRequest:
    info, routed = lease.attempt, request.routed
    message = executor_pb2.ExecutorRequest()
    message.auth_id = info.credential_id
    message.model = info.upstream_model
    message.format = taken.executor
    message.stream = request.stream
    message.source_format = taken.client
    message.payload = payload
    message.operation = routed.operation
    message.attempt_uid = info.attempt_uid
    if routed.alt:
        message.alt = routed.alt
    if lease.attributes:
        message.auth_attributes.update(lease.attributes)
    status.headers_to_map(sent, message.headers)
    if routed.execution_session_id:
        # The name that pluginapi gives it among its metadata.
        message.metadata = orjson.dumps({"execution_session_id": routed.execution_session_id})
    if lease.HasField("secret"):
        message.secret.CopyFrom(lease.secret)
    message.provider.CopyFrom(plugins.settings_of(request.snapshot, provider))
    if provider is not None:
        message.auth_provider = provider.name
        if lease.proxy_url:
            message.provider.proxy_url = lease.proxy_url
    return message


def settings_message(
    snapshot: Snapshot, provider: ProviderEntry | None
) -> executor_pb2.ProviderSettings:
    """Return what executors are told of *provider* in every request of *snapshot*."""
    limits = snapshot.settings.streaming
    settings = executor_pb2.ProviderSettings()
    if provider is not None:
        settings.base_url = provider.base_url
        settings.proxy_url = provider.proxy_url
        settings.attempt_header = provider.attempt_header
        settings.token_factor = provider.token_factor
    settings.first_byte_timeout.FromMilliseconds(int(limits.first_byte_timeout * 1000))
    settings.idle_timeout.FromMilliseconds(int(limits.idle_timeout * 1000))
    return settings
